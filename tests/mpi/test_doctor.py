"""The doctor in real jobs: well, and with each thing broken that MPI, its launcher or a library can break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import mpi_environment

#: Where nothing hangs: a busy machine must not look like a fault.
PATIENT = ("--limit", "200")
#: A torch that hangs on one rank.
SILENT = "import os, signal\nif os.environ.get('PMIX_RANK') == '2': signal.pause()\nraise ImportError('none here')\n"


def doctor(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Without a launcher, as on a login node."""
    return subprocess.run(
        [sys.executable, "-m", "mpinas", "doctor", *arguments], cwd=cwd, env=mpi_environment(**environment),
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


def modules(folder: Path, **texts: str) -> str:
    """A PYTHONPATH on which these modules come first."""
    for name, text in texts.items():
        path = folder / "modules" / name / "__init__.py"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return f"{folder / 'modules'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"


def faults(told: dict) -> dict[str, str]:
    return {it["check"]: it["found"] for it in told["findings"] if it["level"] == "fault"}


def test_a_job_that_is_well(mpirun, tmp_path):
    done = mpirun(3, "-m", "mpinas", "doctor", "--run-folder", "runs/first", "--json", *PATIENT)
    told = json.loads(done.stdout)
    assert faults(told) == {}
    rows = {it["check"]: (it["level"], it["found"]) for it in told["findings"]}
    assert rows["thread level"] == ("ok", "MPI_THREAD_MULTIPLE")
    assert rows["launcher"] == ("ok", "3 ranks on 1 node")
    assert rows["ranks"] == ("ok", "all answer and are alike")
    assert rows["allreduce"][0] == "ok"
    assert rows["allreduce"][1].startswith("2 trainers without rank 0, on the CPU: right")
    assert rows["mpirun"][0] == "ok"
    assert rows["file system"][1].startswith(f"{tmp_path}: ")
    assert [(it["rank"], it["role"], it["local_rank"]) for it in told["ranks"]] == [
        (0, "coordinator", 0), (1, "trainer", 1), (2, "trainer", 2),
    ]  # fmt: skip
    assert len({it["pid"] for it in told["ranks"]}) == 3


def test_without_a_launcher_nothing_is_left_in_shared_memory(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    told = doctor("--ranks", *PATIENT, cwd=tmp_path, OMPI_MCA_btl_sm_backing_directory=str(shared))
    assert told.returncode == 0, told.stderr
    assert not list(shared.iterdir())


def test_who_is_where(mpirun):
    done = mpirun(2, "-m", "mpinas", "doctor", "--ranks", *PATIENT)
    head, first, second, library = done.stdout.splitlines()
    assert head.split() == ["rank", "host", "pid", "role", "local", "cores", "GPU"]
    assert (first.split()[0], first.split()[3:5]) == ("0", ["coordinator", "0"])
    assert (second.split()[0], second.split()[3:5]) == ("1", ["trainer", "1"])
    assert library.startswith("MPI of rank 0-1: ")


def test_a_job_of_its_own_kind_of_wrong(tmp_path):
    """Too few threads, a forbidden variable, and a launcher that MPI does not know: all three are told."""
    done = doctor("--json", *PATIENT, cwd=tmp_path, MPI4PY_RC_THREAD_LEVEL="funneled", HOROVOD_CONTROLLER="gloo",
                  SLURM_STEP_NUM_TASKS="3")  # fmt: skip
    assert done.returncode == 2
    assert set(faults(json.loads(done.stdout))) == {"thread level", "environment", "launcher"}


def test_an_mpi_that_cannot_be_loaded_is_one_fault_among_findings(tmp_path):
    path = modules(tmp_path, mpi4py="raise ImportError('libmpi.so.40: cannot open')")
    done = doctor(*PATIENT, cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 2, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert ["MPI", "fault", "mpi4py:", "libmpi.so.40:", "cannot", "open"] in [line.split() for line in lines]
    assert lines[-1] == "mpinas doctor: 1 fault"
    assert all(len(line) <= 80 for line in lines)


def test_a_library_that_kills_the_process_does_not_kill_the_doctor(tmp_path):
    done = doctor("--json", *PATIENT, cwd=tmp_path, PYTHONPATH=modules(tmp_path, torch="import os; os.abort()"))
    assert done.returncode == 2
    told = faults(json.loads(done.stdout))
    assert told["job"] == "signal 6: importing torch and Horovod"


@pytest.mark.parametrize("arguments", [["--ranks"], []])
def test_a_rank_that_hangs_is_named(mpirun, tmp_path, arguments):
    path = modules(tmp_path, torch=SILENT)
    done = mpirun(3, "-m", "mpinas", "doctor", "--limit", "10", *arguments, check=False, env={"PYTHONPATH": path})
    assert done.returncode == 2, done.stderr
    assert "no word from rank 2" in (done.stderr if arguments else done.stdout)
    assert ("not all ranks are there" in done.stdout) == (not arguments)
