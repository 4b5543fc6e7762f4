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
    """0: done; 2: something the user can mend, said in one line by one rank; 130: interrupted."""
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
        if _speaks():
            text = " ".join(error.format_message().split())
            where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "mpinas"
            print(f"mpinas: error: {text} See `{where} --help`.", file=sys.stderr, flush=True)
        sys.exit(2)
    except UserError as error:
        if _speaks():
            print(f"mpinas: error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(SPEAK_S)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("mpinas"):
            raise
        if _speaks():
            print(f"mpinas: error: {error.name} is not installed here: `pip install 'mpinas[job]'`, or `make setup`",
                  file=sys.stderr)  # fmt: skip
        sys.exit(2)
    except LeaveAlike:
        time.sleep(SPEAK_S)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)


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
