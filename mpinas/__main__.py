"""`python -m mpinas` and the console script: runs the command line and turns what goes wrong into an exit code."""

from __future__ import annotations

import errno
import os
import sys
import time
from typing import NoReturn

import click

from mpinas.errors import UserError, disk_trouble

#: mpirun ends all ranks when the first leaves with a code that is not 0: that is to be the one that says why.
SPEAK_S = 2.0


def main() -> None:
    """0: done; 2: something the user can mend, said in one line by one rank; 75: ended in peace and not finished, to go
    on with --resume; 130: interrupted; 1: nobody reads the output any more, or a fault of the program."""
    if not os.environ.get("COLUMNS", "0").strip("0"):
        os.environ.pop("COLUMNS", None)  # a terminal without a size: a table would have no room at all
    try:
        try:
            _run()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        _end_unheard(error)


def _run() -> None:
    try:
        from mpinas.cli import cli
    except KeyboardInterrupt:
        sys.exit(130)
    from mpinas.parallel.world import LeaveAlike

    try:
        cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _refuse(_usage(error))
    except UserError as error:
        _refuse(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("mpinas"):
            raise
        _refuse(f"{error.name} is not installed here: `pip install 'mpinas[job]'`, or `make setup`")
    except LeaveAlike:
        _refuse("", speaks=False)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)


def _refuse(message: str, speaks: bool | None = None) -> NoReturn:
    """One rank says it, in one line; the others give it the time."""
    from mpinas.parallel.world import note_code

    if _speaks() if speaks is None else speaks:
        print(f"mpinas: error: {message}", file=sys.stderr, flush=True)
        note_code(2)
    else:
        time.sleep(SPEAK_S)
    sys.exit(2)


def _usage(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split()).rstrip(".")
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
    return f"{text} (see `{command} --help`)" if command else text


def _end_unheard(error: OSError) -> NoReturn:
    """Standard output, as a rule, cannot be written: into a file on a full disk, or a pipe that nobody reads."""
    if error.errno != errno.EPIPE and (trouble := disk_trouble(error)) is None:
        raise error
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in buffers has nowhere to go
    if error.errno == errno.EPIPE:
        sys.exit(1)  # as click has it
    where = "" if error.filename else "standard output: "
    print(f"mpinas: error: {where}{trouble}; free some space, or write to another place", file=sys.stderr)
    sys.exit(2)


def _speaks() -> bool:
    """Is this the one process of a job, launched by whatever launcher, that may complain? MPI may not have started."""
    ranks = (os.environ.get(name) for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


if __name__ == "__main__":
    main()
