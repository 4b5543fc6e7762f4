"""What benchmarks need to start real jobs of mpinas: recordings, `mpirun`, an end in time, and the machine's name.

Must not know what the jobs are for.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mpinas.errors import UserError
from mpinas.history.run_folder import RunFolder
from mpinas.report.results import load

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "runs" / "demo-data"
#: What `examples/demo.sh` simulates: (file or folder, arguments).
RECORDINGS = (
    ("train.hdf5", "--layout v1.0 --objects T1,T2,T3,T4,T5,T6,T7,T8 --layers 5 --lines 15 --seed 1"),
    ("test", "--layout v1.1 --objects U1,U2,U3,U4 --layers 3 --lines 15 --seed 2"),
)
#: A job that is told to end has so long to end well, in seconds.
PARTING_S = 60.0


def shown(path: Path) -> str:
    """As it is written in commands, which are given at the top of the project."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def machine() -> str:
    """Name of its CPU and number of its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def simulate_recordings() -> None:
    """Write the recordings that the experiments name, unless they are there; each appears when it is complete."""
    for name, arguments in RECORDINGS:
        path = DATA / name
        part = path.with_name(f"part-{name}")
        if path.exists():
            continue
        if part.is_dir():
            shutil.rmtree(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        mpinas = [sys.executable, "-m", "mpinas", "data", "simulate", str(part), *arguments.split()]
        subprocess.run(mpinas, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        part.rename(path)


def is_finished(run: RunFolder) -> bool:
    """Has its search come to its end?"""
    return run.journal_file.exists() and load(run).finished is not None


def bring_to_end(run: RunFolder, beginning: Sequence[str], ranks: int, limit_s: float) -> str:
    """Begin a run or go on with it; "" or, in words, why it has not come to its end.

    Parameters
    ----------
    beginning
        Arguments of mpinas that begin the run; what the job says is appended to a file beside its folder.
    limit_s
        The job is told to end after so long.

    Raises
    ------
    UserError
        There is no mpirun.
    """
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpirun is None:
        raise UserError("mpirun is missing: run `make setup`, or load the MPI module")
    arguments = ["search", "--resume", "--run", shown(run.path)] if run.path.exists() else beginning
    command = [mpirun, "--oversubscribe", "-n", str(ranks), sys.executable, "-m", "mpinas", *arguments]
    log = run.path.with_name(f"{run.path.name}.log")
    with open(log, "ab") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            part_from(process)
            return f"not ended after {limit_s / 60:.0f} minutes; call again to go on"
        except BaseException:
            part_from(process)
            raise
    return f"the job ended with {code}; see {log}" if code else ""


def part_from(process: subprocess.Popen[bytes]) -> None:
    """End a job so that it can be gone on with: in peace if it does, else at once."""
    process.send_signal(signal.SIGUSR2)  # which mpirun passes on
    try:
        process.wait(PARTING_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
