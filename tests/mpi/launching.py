"""How the tests start an MPI job."""

from __future__ import annotations

import os
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
