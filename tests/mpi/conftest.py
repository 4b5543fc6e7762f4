"""The one way in which tests launch MPI jobs and wait for them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from launching import run_mpi

Launch = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def mpirun(tmp_path: Path) -> Launch:
    """Run `mpirun -n RANKS python ARGUMENTS` in the test's folder; see `launching.run_mpi`."""
    return partial(run_mpi, cwd=tmp_path)
