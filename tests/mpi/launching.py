"""How the tests start an MPI job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: Top of the project.
ROOT = Path(__file__).parents[2]


def mpirun_command(ranks: int) -> list[str]:
    """The mpirun beside this Python if there is one (`make setup`), else the system's."""
    beside = Path(sys.executable).with_name("mpirun")
    return [str(beside) if beside.exists() else "mpirun", "--oversubscribe", "-n", str(ranks)]


def mpi_environment(**more: str) -> dict[str, str]:
    """For a job of a few small ranks, as root or not."""
    quiet = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **quiet, **more}


def run_mpi(
    ranks: int,
    *arguments: str,
    cwd: Path,
    timeout: float = 240,
    check: bool = True,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `mpirun -n RANKS python ARGUMENTS` in `cwd` to its end, or to the time-out; the finished process."""
    done = subprocess.run(
        [*mpirun_command(ranks), sys.executable, *arguments],
        cwd=cwd,
        env=mpi_environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check:
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
