"""The one way in which tests launch MPI jobs and wait for them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import mpi_environment, mpirun_command

Launch = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def mpirun(tmp_path: Path) -> Launch:
    """Run `mpirun -n RANKS python ARGUMENTS` to its end, or to the time-out; the finished process."""

    def launch(
        ranks: int,
        *arguments: str,
        timeout: float = 240,
        check: bool = True,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*mpirun_command(ranks), sys.executable, *arguments],
            cwd=tmp_path,
            env=mpi_environment(**(env or {})),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return launch
