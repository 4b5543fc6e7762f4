"""`python -m mpinas` and the console script: runs the command line and turns what goes wrong into an exit code."""

from __future__ import annotations

import os
import sys
import time

import click

from mpinas.errors import UserError

#: mpirun ends all ranks when the first leaves with a code that is not 0: that is to be the one that says why.
SPEAK_S = 2.0


def main() -> None:
    """0: done; 2: something the user can mend, said in one line by one rank; 130: interrupted."""
    try:
        from mpinas.cli import cli
    except KeyboardInterrupt:
        sys.exit(130)
    from mpinas.parallel.world import LeaveAlike

    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        if _speaks():
            error.show()
        sys.exit(error.exit_code)
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


def _speaks() -> bool:
    """Is this the one process of a job, launched by whatever launcher, that may complain? MPI may not have started."""
    ranks = (os.environ.get(name) for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


if __name__ == "__main__":
    main()
