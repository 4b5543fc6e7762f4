"""How the tests start an MPI job."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

#: Top of the project.
ROOT = Path(__file__).parents[2]
_SESSIONS = tempfile.TemporaryDirectory(prefix="mpinas-mpirun-", ignore_cleanup_errors=True)


def mpirun_command(ranks: int) -> list[str]:
    """The mpirun beside this Python if there is one (`make setup`), else the system's."""
    beside = Path(sys.executable).with_name("mpirun")
    return [str(beside) if beside.exists() else "mpirun", "--oversubscribe", "-n", str(ranks)]


def mpi_environment(**more: str) -> dict[str, str]:
    """For a job of a few small ranks, as root or not.

    An mpirun that is killed leaves its `ompi.PID` behind, and the next of that process id would not start ("The PMIx
    server's listener thread failed to start"): each job has a folder of its own for it.
    """
    session = tempfile.mkdtemp(dir=_SESSIONS.name)
    quiet = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **quiet, "PRTE_MCA_prte_tmpdir_base": session, **more}


def run_mpi(
    ranks: int,
    *arguments: str,
    cwd: Path,
    timeout: float = 500,
    check: bool = True,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `mpirun -n RANKS python ARGUMENTS` in `cwd` to its end, or to the time-out; the finished process."""
    command = [*mpirun_command(ranks), sys.executable, *arguments]
    environment = mpi_environment(**(env or {}))
    # a session of its own, as that of a terminal: the job makes it nice, and all of it can be ended
    with subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:  # fmt: skip
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # mpirun alone may be a wrapper, whose job would go on
            raise
    code = process.returncode
    if check:
        assert code == 0, f"exit {code}\n{output}\n{errors}"
    # Open MPI's launcher may crash on its own way out, after it has said how the job ended (seen once)
    if code == -signal.SIGSEGV and (told := re.search(r"Exit code: +(\d+)", errors)):
        code = int(told[1])
    return subprocess.CompletedProcess(command, code, output, errors)
