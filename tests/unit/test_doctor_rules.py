"""What the doctor makes of facts, by value; and the facts of this machine, gathered for real. MPI: tests/mpi."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mpinas.doctor import gather, judge_job, judge_machine, show
from mpinas.doctor.child import Child, answer
from mpinas.doctor.facts import FolderFacts, Gpu, Horovod, JobFacts, Mpi, RankFacts, Ranks, Step, Sum, Trial
from mpinas.doctor.finding import Finding, counted, exit_code
from mpinas.doctor.folder_probe import existing_part, kind_of, probe
from mpinas.doctor.judge_machine import GIB

OPEN_MPI = "Open MPI v5.0.11, package: Open MPI x@y, ident: 5.0.11"
BUILT = Horovod("0.28.1", mpi=True, nccl=False, cuda=False, gloo=True)


def rank(number: int, host: str = "n0", cores: tuple[int, ...] = (0, 1), **more) -> RankFacts:
    defaults = {"pid": 100 + number, "python": "3.11.2", "mpi": OPEN_MPI, "torch": "2.6.0", "horovod": BUILT}
    return RankFacts(number, host, cores=cores, **{**defaults, **more})


def gpu(index: int, uuid: str = "") -> tuple[Gpu, ...]:
    return (Gpu(index, "A100", uuid),)


def levels(findings: list[Finding]) -> dict[str, str]:
    return {it.check: it.level for it in findings}


# rows


@pytest.mark.parametrize("level", ["fault", "warning"])
def test_no_fault_without_a_word_on_what_to_do(level):
    with pytest.raises(ValueError, match="without a word"):
        Finding("MPI", level, "broken")


def test_exit_code_and_last_line():
    ok, warning = Finding("a", "ok", "x"), Finding("b", "warning", "x", "do")
    fault = Finding("c", "fault", "x", "do")
    assert (exit_code([ok, warning]), exit_code([ok, fault])) == (0, 2)
    assert counted([ok]) == "nothing wrong"
    assert counted([fault, warning, fault]) == "2 faults and 1 warning"


# this machine


@pytest.mark.parametrize(
    ("machine", "system", "level"),
    [("x86_64", "Linux 6.1", "ok"), ("aarch64", "Linux 5.14", "ok"), ("arm64", "Darwin 23", "warning"),
     ("ppc64le", "Linux 5", "warning")],
)  # fmt: skip
def test_architecture(machine, system, level):
    assert judge_machine.architecture(machine, system).level == level


def test_requirements_are_those_of_the_job():
    lines = ["click>=8.1", 'h5py>=3.11; extra == "device"', "scikit-learn>=1; extra == 'job'", 'torch; extra == "job"']
    assert judge_machine.requirements(lines) == ["click", "scikit-learn", "torch"]


def test_packages():
    there = {"torch": "2.6", "mpi4py": "4.1", "horovod": "0.28.1", "pyzmq": "27", "numpy": "2"}
    good = judge_machine.packages("3.11.2", there)
    assert (good.level, good.found) == (
        "ok", "Python 3.11.2, torch 2.6, mpi4py 4.1, horovod 0.28.1, pyzmq 27, and 1 others",
    )  # fmt: skip
    bad = judge_machine.packages("3.11.2", {**there, "horovod": None, "torch": None})
    assert (bad.level, bad.found) == ("fault", "Python 3.11.2; missing: torch, horovod")
    assert judge_machine.packages("3.11.2", {}).level == "warning"


@pytest.mark.parametrize(
    ("errors", "code", "level", "found"),
    [
        ({"h5py": "", "onnx": ""}, 0, "ok", "2 more modules"),
        ({"h5py": "no libhdf5", "onnx": ""}, 0, "fault", "h5py: no libhdf5"),
        ({"h5py": "", "onnx": None}, -4, "fault", "importing onnx ends Python (signal 4)"),
        ({"h5py": None}, None, "fault", "importing h5py takes longer than the limit"),
        ({}, 1, "fault", "Python does not start (exit code 1): SyntaxError: no"),
    ],
)
def test_imports(errors, code, level, found):
    row = judge_machine.imports(errors, code, "Traceback\nSyntaxError: no")
    assert (row.level, row.found) == (level, found)


def test_environment():
    assert judge_machine.environment({"HOROVOD_CYCLE_TIME": "1"}).level == "ok"
    bad = judge_machine.environment({"HOROVOD_CPU_OPERATIONS": "GLOO", "HOROVOD_CONTROLLER": "gloo"})
    assert bad.level == "fault"
    assert bad.advice == "`unset HOROVOD_CONTROLLER HOROVOD_CPU_OPERATIONS`, in the job script too"


@pytest.mark.parametrize(
    ("job", "end", "level", "found"),
    [
        ("", None, "not checked", "not in a Slurm job"),
        ("7", None, "not checked", "Slurm tells no end of job 7"),
        ("7", 1000.0 + 7200, "ok", "2:00:00 of Slurm job 7"),
        ("7", 1000.0 + 899, "warning", "0:14:59 of Slurm job 7"),
    ],
)
def test_time_left(job, end, level, found):
    row = judge_machine.time_left(1000.0, job, end)
    assert row.level == level
    assert row.found.startswith(found)


WELL = FolderFacts("/p/scratch", "gpfs", 100 * GIB, 10**6, Trial(0.01), Trial(0.001))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {"file system": "ok", "space": "ok", "write": "ok", "lock": "ok"}),
        ({"kind": "tmpfs"}, {"file system": "warning"}),
        ({"free_bytes": 4 * GIB}, {"space": "warning"}),
        ({"free_bytes": GIB // 20}, {"space": "fault"}),
        ({"free_inodes": 9_999}, {"space": "warning"}),
        ({"free_inodes": 100}, {"space": "fault"}),
        ({"free_inodes": None}, {"space": "ok"}),
        ({"write": Trial(0.0, "Read-only file system"), "lock": Trial(0.0, "x")},
         {"write": "fault", "lock": "not checked"}),
        ({"write": Trial(1.5)}, {"write": "warning"}),
        ({"lock": Trial(0.0, "Function not implemented")}, {"write": "ok", "lock": "warning"}),
    ],
)  # fmt: skip
def test_file_system(change, expected):
    values = {name: getattr(WELL, name) for name in FolderFacts.__struct_fields__}
    found = levels(judge_machine.folder(FolderFacts(**{**values, **change})))
    assert found == {"file system": "ok", "space": "ok", "write": "ok", "lock": "ok", **expected}


def test_advice_on_a_file_system_is_true_of_what_a_job_does():
    facts = FolderFacts("/p/scratch", "lustre", 100 * GIB, 10**6, Trial(1.5), Trial(0.0, "Function not implemented"))
    advice = {each.check: each.advice for each in judge_machine.folder(facts) if each.level == "warning"}
    assert advice == {
        "write": "use a faster file system: rank 0 waits for what it writes",
        "lock": "nothing: running.json alone keeps a second job out",
    }


def test_a_file_system_that_does_not_answer_is_a_fault():
    (hangs,) = judge_machine.no_folder("/p/dead", None, "")
    (dies,) = judge_machine.no_folder("/p/odd", 1, "Traceback\nPermissionError: [Errno 13] /p/odd")
    assert (hangs.level, hangs.found) == ("fault", "/p/dead: does not answer")
    assert (dies.level, dies.found) == ("fault", "/p/odd: PermissionError: [Errno 13] /p/odd")


def test_bridge_findings_become_rows():
    told = [
        {"check": "packages", "level": "OK", "text": "…"},
        {"check": "reach", "level": "OK", "text": "tcp://x answers"},
        {"check": "handshake", "level": "FAIL", "text": "the relay does not know this key"},
    ]
    rows = judge_machine.bridge(2, told, "")
    assert levels(rows) == {"bridge port": "ok", "bridge handshake": "fault"}
    assert levels(judge_machine.bridge(None, [], "")) == {"bridge": "fault"}
    assert judge_machine.bridge(2, [], "edge-bridge: BRIDGE.json: no such file")[0].found.endswith("no such file")


def test_a_relay_without_a_device_is_a_warning():
    assert judge_machine.devices(0, ["jetson", "pi"], "").found == "2: jetson, pi"
    assert judge_machine.devices(0, [], "").level == "warning"
    assert judge_machine.devices(2, [], "edge-bridge: no answer").found == "edge-bridge: no answer"


# the job


def heard(*lines, **more) -> JobFacts:
    job = JobFacts(**more)
    for line in lines:
        job.take(line)
    return job


def started(size: int = 3, multiple: bool = True, launch_error: str = "") -> Mpi:
    return Mpi(OPEN_MPI, "MPI_THREAD_MULTIPLE" if multiple else "MPI_THREAD_FUNNELED", multiple, size, launch_error)


def test_a_whole_job_is_well():
    trio = (rank(0), rank(1), rank(2, "n1"))
    job = heard(Step("x"), started(), Ranks(trio, ()), Sum((1, 2), device="cpu", took_s=0.25))
    rows = judge_job.mpi(job)
    assert levels(rows) == {"MPI": "ok", "thread level": "ok", "launcher": "ok"}
    assert [it.found for it in rows] == ["Open MPI v5.0.11", "MPI_THREAD_MULTIPLE", "3 ranks on 2 nodes"]
    assert levels(judge_job.ranks(job)) == {"ranks": "ok"}
    total = judge_job.allreduce(job.sum)
    assert (total.level, total.found) == ("ok", "2 trainers without rank 0, on the CPU: right, 0.2 s with the start")


def test_what_keeps_mpi_from_starting_is_named():
    hangs = heard(Step("starting MPI"), code=None)
    dies = heard(Step("starting MPI"), code=-6)
    missing = heard(Step("starting MPI"))
    missing.no_mpi = "libmpi.so.40: cannot open"
    found = [judge_job.mpi(job) for job in (hangs, dies, missing)]
    assert all(levels(rows) == {"MPI": "fault"} for rows in found)
    assert [rows[0].found for rows in found] == [
        "hangs: starting MPI", "signal 6: starting MPI; see standard error", "mpi4py: libmpi.so.40: cannot open",
    ]  # fmt: skip


def test_a_job_that_ends_half_way_says_where():
    job = heard(started(), Step("importing torch and Horovod"), code=-11)
    assert judge_job.mpi(job)[-1].found == "signal 11: importing torch and Horovod"


def test_too_few_threads_are_a_fault():
    row = judge_job.mpi(heard(started(multiple=False), Ranks((rank(0),), ()), Sum(())))[1]
    assert (row.check, row.level) == ("thread level", "fault")
    assert row.found.startswith("MPI_THREAD_FUNNELED")


def test_a_launcher_that_does_not_fit_is_a_fault():
    from mpinas.errors import UserError
    from mpinas.parallel.world import check_launch

    with pytest.raises(UserError) as caught:
        check_launch({"SLURM_STEP_NUM_TASKS": "4"}, 1)
    row = judge_job.mpi(heard(started(1, launch_error=str(caught.value)), Ranks((rank(0),), ()), Sum(())))[2]
    assert (row.check, row.level) == ("launcher", "fault")
    assert row.found == "SLURM_STEP_NUM_TASKS=4, but MPI sees a world of 1"
    assert row.advice.startswith("start with `srun --mpi=pmix`")


@pytest.mark.parametrize(
    ("library", "path", "version", "level"),
    [
        (OPEN_MPI, "/a/mpirun", "mpirun (Open MPI) 5.0.11\n", "ok"),
        (OPEN_MPI, "/usr/bin/mpirun", "mpirun (Open MPI) 4.1.4\n", "warning"),
        (OPEN_MPI, "/usr/bin/mpirun", "HYDRA build details:\n  Version: 4.1\n", "warning"),
        (OPEN_MPI, "", "", "not checked"),
        ("MPICH Version:\t4.1\nMPICH", "/usr/bin/mpirun", "HYDRA build details:\n", "not checked"),
    ],
)
def test_mpirun_must_be_of_the_same_mpi(library, path, version, level):
    assert judge_job.mpirun(library, path, version).level == level


def test_silent_ranks_and_ranks_that_differ_are_named():
    trio = (rank(0), rank(1), rank(2, "n1", torch="2.5.0"))
    rows = judge_job.ranks(heard(Ranks(trio, (3, 4, 7))))
    assert [it.found for it in rows] == ["no word from ranks 3-4,7", "torch of rank 2 is 2.5.0, of most 2.6.0"]
    assert {it.level for it in rows} == {"fault"}


def test_a_run_folder_that_another_node_does_not_see_is_a_fault():
    trio = (rank(0, folder="/p/run"), rank(1, folder="/p/run"), rank(2, "n1", folder="/"))
    (row,) = judge_job.ranks(heard(Ranks(trio, ())))
    assert (row.level, row.found) == ("fault", "/p/run is not there on n1")


def test_a_run_folder_on_a_disk_of_each_node_is_a_warning():
    disk, lent = {"folder": "/tmp", "folder_kind": "xfs"}, {"folder": "/tmp", "folder_kind": "nfs4"}
    (row,) = judge_job.ranks(heard(Ranks((rank(0, **disk), rank(1, **disk), rank(2, "n1", **disk)), ())))
    assert (row.level, row.found) == ("warning", "/tmp is on a disk of their own (xfs) of n0, n1")
    assert levels(judge_job.ranks(heard(Ranks((rank(0, **disk), rank(1, "n1", **lent)), ())))) == {"ranks": "ok"}


@pytest.mark.parametrize(
    ("change", "level", "found"),
    [
        ({}, "ok", "0.28.1 with MPI, gloo"),
        ({"horovod": None, "horovod_error": "No module named 'horovod'"}, "fault", "No module named 'horovod'"),
        ({"horovod": Horovod("0.28.1", mpi=False, nccl=False, cuda=False, gloo=True)}, "fault",
         "0.28.1 with gloo: without MPI"),
        ({"gpus": gpu(0)}, "warning", "0.28.1 with MPI, gloo: gradients of GPUs would go through the main memory"),
        ({"gpus": gpu(0), "horovod": Horovod("0.28.1", mpi=True, nccl=True, cuda=True, gloo=False)}, "ok",
         "0.28.1 with MPI, NCCL, CUDA"),
        ({"torch_error": "libtorch"}, "not checked", "torch cannot be imported: libtorch"),
    ],
)  # fmt: skip
def test_horovod_build(change, level, found):
    row = judge_job.horovod_build(rank(0, **change))
    assert (row.level, row.found) == (level, found)


def test_torch():
    assert judge_job.torch(rank(0, cuda="12.4")).found == "2.6.0, for CUDA 12.4"
    assert judge_job.torch(rank(0, torch="", torch_error="GLIBC_2.38")).level == "fault"


@pytest.mark.parametrize(
    ("total", "level", "found"),
    [
        (None, "not checked", "the job did not get so far"),
        (Sum((), "not all ranks are there"), "not checked", "not all ranks are there"),
        (Sum((1, 2, 3), errors={3: "a", 2: "b"}), "fault", "rank 2: b"),
        (Sum((1, 2, 3), silent=(2,)), "fault", "no answer from rank 2"),
    ],
)
def test_allreduce(total, level, found):
    row = judge_job.allreduce(total)
    assert (row.level, row.found) == (level, found)


# GPUs and cores

EIGHT = "".join(f"GPU {i}: A100 (UUID: GPU-{i})\n" for i in range(4))


def test_places_are_counted_by_node():
    found = [rank(0, "a"), rank(1, "a"), rank(2, "a"), rank(3, "b"), rank(4, "b")]
    assert judge_job.places(found) == {0: (0, -1), 1: (1, 0), 2: (2, 1), 3: (0, 0), 4: (1, 1)}


def test_each_trainer_with_a_gpu_of_its_own_is_well():
    shown_one = [rank(0), *(rank(i, gpus=gpu(0, f"GPU-{i}"), visible=str(i)) for i in (1, 2))]
    both = (Gpu(0, "A100", "GPU-1"), Gpu(1, "A100", "GPU-2"))
    shown_all = [rank(0), rank(1, gpus=both), rank(2, gpus=both)]
    assert judge_job.gpus(shown_one, EIGHT).found == "2 x A100, one for each trainer"
    assert judge_job.gpus(shown_all, EIGHT).level == "ok"


@pytest.mark.parametrize(
    "ranks",
    [
        [rank(0), rank(1, gpus=gpu(0, "GPU-7")), rank(2, gpus=gpu(0, "GPU-7"))],
        [rank(0), rank(1, gpus=gpu(0), visible="3"), rank(2, gpus=gpu(0), visible="3")],
    ],
)
def test_two_trainers_on_one_gpu_are_a_fault(ranks):
    row = judge_job.gpus(ranks, EIGHT)
    assert (row.level, row.found) == ("fault", "ranks 1-2 share a GPU of n0")


def test_the_same_number_on_another_node_is_another_gpu():
    found = [rank(0), rank(1, gpus=gpu(0), visible="0"), rank(2, "n1", gpus=gpu(0), visible="0")]
    assert judge_job.gpus(found, EIGHT).level == "ok"


def test_a_coordinator_may_see_the_gpu_of_a_trainer():
    assert judge_job.gpus([rank(0, gpus=gpu(0, "GPU-1")), rank(1, gpus=gpu(0, "GPU-1"))], EIGHT).level == "ok"


@pytest.mark.parametrize(
    ("ranks", "nvidia_smi", "level", "found"),
    [
        ([rank(0), rank(1)], None, "ok", "none: trainers use the CPU"),
        ([rank(0), rank(1)], EIGHT, "warning", "4 on this node, and trainers see none: torch is a CPU build"),
        ([rank(0, cuda="12"), rank(1, cuda="12", visible="")], EIGHT, "fault",
         "4 on this node, and trainers see none: CUDA_VISIBLE_DEVICES is ''"),
        ([rank(0, cuda="12"), rank(1, cuda="12")], EIGHT, "fault", "4 on this node, and trainers see none"),
        ([rank(0), rank(1, gpus=gpu(0, "GPU-1")), rank(2)], EIGHT, "fault", "rank 2 sees no GPU, others do"),
    ],
)  # fmt: skip
def test_trainers_without_a_gpu(ranks, nvidia_smi, level, found):
    row = judge_job.gpus(ranks, nvidia_smi)
    assert (row.level, row.found) == (level, found)


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([rank(0, cores=(0,)), rank(1, cores=(1,))], {"cores": "ok"}),
        ([rank(0, cores=(0,)), rank(1, cores=(0,))], {"cores": "warning"}),
        ([rank(0, cores=(0,)), rank(1, "n1", cores=(0,))], {"cores": "ok"}),
        ([rank(0), rank(1), rank(2)], {"cores": "ok"}),
        ([rank(0), rank(1), rank(2), rank(3)], {"cores": "warning"}),
        ([rank(0, threads="2"), rank(1, threads="2")], {"cores": "ok"}),
        ([rank(0, threads="2"), rank(1, threads="8")], {"threads": "warning"}),
    ],
)
def test_cores_and_threads(ranks, expected):
    assert levels(judge_job.cores(ranks)) == expected


def test_cores_in_words():
    (shared,) = judge_job.cores([rank(0, cores=(5,)), rank(1, cores=(5,))])
    assert shared.found == "ranks 0-1 share core 5 of n0"
    (crowded,) = judge_job.cores([rank(i) for i in range(4)])
    assert crowded.found == "3 trainers on 2 cores of n0"
    (many,) = judge_job.cores([rank(0), rank(1, threads="8")])
    assert many.found == "OMP_NUM_THREADS=8, and rank 1 has 2 cores"


def test_spans():
    assert judge_job.span([8, 0, 1, 2, 3, 10, 11]) == "0-3,8,10-11"


# on the screen


def test_a_rank_that_is_alone_does_both():
    assert [(it["role"], it["local_rank"]) for it in show.rank_rows([rank(0)])] == [("both", 0)]


def test_who_is_where():
    found = [
        rank(0, "jwb01"),
        rank(1, "jwb01", (4, 5), gpus=gpu(0, "GPU-8c5c4f5e-1a2b")),
        rank(2, "jwb02", visible="3"),
    ]
    rows = show.rank_rows(found)
    assert [(it["role"], it["local_rank"], it["cores"]) for it in rows] == [
        ("coordinator", 0, [0, 1]), ("trainer", 1, [4, 5]), ("trainer", 0, [0, 1]),
    ]  # fmt: skip
    assert rows[1]["gpu"] == {"index": 0, "name": "A100", "uuid": "GPU-8c5c4f5e-1a2b"}
    out = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    show.rank_table(rows, out)
    out.file.close()
    assert out.export_text().splitlines()[2:] == [
        "   1  jwb01  101  trainer          1  4-5    0 GPU-8c5c4f5e            ",
        "   2  jwb02  102  trainer          0  0-1    - (CUDA_VISIBLE_DEVICES=3)",
        "MPI of rank 0-2: Open MPI v5.0.11",
    ]


# facts, gathered for real


def test_a_child_that_hangs_is_given_up():
    with Child([sys.executable, "-c", "print('here', flush=True); import signal; signal.pause()"]) as child:
        assert next(child.lines(60)) == "here"
        assert list(child.lines(0.1)) == []
        assert child.ended(0.0) is None
        pid = child._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_how_a_child_ended():
    assert answer([sys.executable, "-c", "import os; os.abort()"], 30)[0] == -6
    code, printed, said = answer([sys.executable, "-c", "print(1); print(2, end=''); raise OSError('so')"], 30)
    assert (code, printed, said.splitlines()[-1]) == (1, "1\n2", "OSError: so")
    assert answer(["no-such-program"], 30) == (127, "", "no-such-program: No such file or directory")


def test_a_child_that_speaks_is_heard_by_people(capfd):
    with Child([sys.executable, "-c", "import sys; print('PMIx: no server', file=sys.stderr)"], speaks=True) as child:
        assert list(child.lines(60)) == []
        assert child.ended(60) == 0
    assert capfd.readouterr().err == "PMIx: no server\n"


def test_a_child_inherits_what_the_launcher_gave_us():
    """MPICH's and ParaStation's PMI is a socket that each rank inherits."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    code, _, said = answer([sys.executable, "-c", f"import os; os.write({writer}, b'init')"], 30)
    os.close(writer)
    assert code == 0, said
    assert os.read(reader, 10) == b"init"
    os.close(reader)


@pytest.fixture
def broken_modules(tmp_path, monkeypatch):
    for name, text in {"ours_well": "", "ours_broken": "raise ImportError('no libx.so\\nmore')", "ours_fatal": "import os; os.abort()"}.items():  # fmt: skip # noqa: E501
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.mark.usefixtures("broken_modules")
def test_modules_are_imported_where_they_can_do_no_harm():
    errors, code, _ = gather.imports(["ours_well", "ours_broken", "torch"], 30)
    assert (errors, code) == ({"ours_well": "", "ours_broken": "no libx.so"}, 0)
    errors, code, _ = gather.imports(["ours_fatal", "ours_well"], 30)
    assert (errors, code) == ({"ours_fatal": None}, -6)


def test_versions_are_those_of_this_environment():
    found = gather.versions()
    assert {"torch", "mpi4py", "horovod", "pyzmq", "click"} <= set(found)
    assert "pytest" not in found
    assert None not in found.values()


def test_the_file_system_of_a_folder_to_be(tmp_path):
    facts = gather.folder(tmp_path / "runs" / "first", 30)
    assert isinstance(facts, FolderFacts)
    assert facts.path == str(tmp_path)
    assert (facts.write.error, facts.lock.error) == ("", "")
    assert facts.free_bytes == pytest.approx(os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize, rel=0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_takes_no_files():
    facts = probe(Path("/proc"))
    assert facts.kind == "proc"
    assert facts.write.error
    assert levels(judge_machine.folder(facts))["write"] == "fault"


def test_the_existing_part_of_a_path(tmp_path):
    (tmp_path / "file").touch()
    assert existing_part(tmp_path / "file" / "x") == tmp_path
    assert existing_part(tmp_path) == tmp_path


def test_the_kind_of_file_system_is_that_of_the_nearest_mount():
    mounts = (
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "2 1 0:5 / /p/my\\040data rw,relatime shared:2 - lustre mds:/x rw\n"
        "3 1 0:6 / /p rw - gpfs p rw\n"
        "4 1 0:7 / /t rw - ext4 a rw\n"
        "5 4 0:8 / /t rw - tmpfs b rw\n"
    )
    assert kind_of("/home/anna", mounts) == "ext4"
    assert kind_of("/p/my data/run", mounts) == "lustre"
    assert kind_of("/p/my", mounts) == "gpfs"
    assert kind_of("/tt", mounts) == "ext4"
    assert kind_of("/t/x", mounts) == "tmpfs"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, 0), ({"SLURM_PROCID": "3"}, 3), ({"PMIX_RANK": "2", "SLURM_PROCID": "0"}, 2), ({"PMI_RANK": "?"}, 0)],
)
def test_the_rank_before_mpi_has_started(environment, expected):
    assert gather.rank_told(environment) == expected


def test_a_real_relay_with_no_device_and_none_at_all(tmp_path):
    place, connection = tmp_path / "bridge", tmp_path / "BRIDGE.json"
    place.mkdir(mode=0o700)
    command = [sys.executable, "-m", "edge_bridge", "relay", "--local", str(place), "--connection", str(connection)]
    with subprocess.Popen([*command, "--exit-with-stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as relay:
        file = Path(relay.stdout.readline().decode().strip())
        code, found, said = gather.bridge_check(file, None, 30)
        assert code == 0, said
        assert {it["check"] for it in found} >= {"connection file", "key file", "reach", "handshake"}
        assert set(levels(judge_machine.bridge(code, found, said)).values()) == {"ok"}
        assert gather.bridge_devices(file, None, 30)[:2] == (0, [])
        copy = tmp_path / "copy.json"
        copy.write_bytes(file.read_bytes())
    code, found, said = gather.bridge_check(copy, None, 30)
    assert code == 2
    assert "fault" in levels(judge_machine.bridge(code, found, said)).values()


def test_a_bridge_file_that_is_not_there(tmp_path):
    code, found, said = gather.bridge_check(tmp_path / "none.json", None, 30)
    rows = judge_machine.bridge(code, found, said)
    assert exit_code(rows) == 2
    assert "none.json" in json.dumps([it.found for it in rows])
