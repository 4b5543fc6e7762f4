"""Job scripts: what they ask Slurm for, and what their shell does, run on stand-ins for the cluster's commands."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from mpinas.cli import cli
from mpinas.errors import UserError
from mpinas.slurm.jobscript import render
from mpinas.slurm.request import Request, job_name
from mpinas.slurm.system import Coordinator, Partition, System, load_system, system_names

EXAMPLES = sorted((Path(__file__).parents[2] / "jobscripts").glob("*.sbatch"))
PAGES = sorted((Path(__file__).parents[2] / "docs/platforms").glob("*.md"))


def made(system, **asked):
    asked = {"nodes": 2, "time": "4:00:00", "account": "PROJECT", **asked}
    return render(load_system(str(system)), Request(**asked))


def options(script):
    """What each component of the job asks for."""
    found = re.findall(r"^#SBATCH (\S+)", script, re.MULTILINE)
    parts = [[]]
    for option in found:
        if option == "hetjob":
            parts.append([])
        else:
            parts[-1].append(option)
    return parts


# ---- the examples


def test_there_is_an_example_of_every_system_and_of_heterogeneous_jobs():
    expected = {*system_names(), "jureca-dc-heterogeneous", "deep-heterogeneous", "generic-gpu-heterogeneous"}
    assert {file.stem for file in EXAMPLES} == expected


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_what_the_command_in_its_head_makes(file):
    text = file.read_text()
    command = shlex.split(re.search(r"^# Made by: mpinas (.*)$", text, re.MULTILINE)[1])
    assert CliRunner().invoke(cli, command, catch_exceptions=False).stdout == text


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_a_program_that_bash_takes(file):
    done = subprocess.run(["bash", "-n", file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_the_examples():
    done = subprocess.run(
        ["shellcheck", "--severity=warning", *EXAMPLES], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


# ---- the pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_commands_that_work(page):
    text = page.read_text().replace("\\\n", " ").replace("ours.toml", "generic-gpu")
    commands = re.findall(r"mpinas (jobscript \S+ --nodes .*?) -o ", text)
    assert commands
    for command in commands:
        assert CliRunner().invoke(cli, command.split(), catch_exceptions=False).stdout.startswith("#!/bin/bash\n")


def test_the_pages_know_every_system_and_every_key_of_its_file():
    text = {page.stem: page.read_text() for page in PAGES}
    assert [name for name in system_names() if f"`{name}`" not in text["README"]] == []
    keys = [f"`{key}`" for struct in (Partition, Coordinator) for key in struct.__struct_fields__]
    keys += [f"`{key}`" for key in set(System.__struct_fields__) - {"partitions", "coordinator", "placeholders"}]
    keys += ["`[[partitions]]`", "`[coordinator]`", "`[[placeholders]]`", "`[[environment]]`"]
    assert [key for key in keys if key not in text["generic"] and key not in ("`name`", "`environment`")] == []
    linked = set(re.findall(r"\(docs/platforms/(\w+)\.md\)", "".join(map(made, system_names()))))
    assert linked == set(text) - {"README"}


# ---- what Slurm is asked for


def test_an_extra_task_shares_the_cores_of_the_first_node():
    (asked,) = options(made("juwels-booster"))
    assert asked == [
        "--job-name=mpinas-experiment",
        "--output=%x-%j.out",
        "--open-mode=append",
        "--account=PROJECT",
        "--time=4:00:00",
        "--signal=USR2@180",
        "--requeue",
        "--partition=booster",
        "--nodes=2",
        "--ntasks-per-node=5",
        "--cpus-per-task=9",
        "--gres=gpu:4",
        "--hint=nomultithread",
    ]


def test_a_heterogeneous_job_has_a_node_for_the_coordinator_and_leaves_the_others_to_trainers():
    coordinator, trainers = options(made("jureca-dc", layout="heterogeneous", partition="dc-gpu-devel", time="1:00:00"))
    assert coordinator[-5:] == [
        "--partition=dc-cpu", "--nodes=1", "--ntasks=1", "--cpus-per-task=128", "--hint=nomultithread",
    ]  # fmt: skip
    assert trainers[-6:] == [
        "--partition=dc-gpu-devel", "--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=32", "--gres=gpu:4",
        "--hint=nomultithread",
    ]  # fmt: skip
    for component in (coordinator, trainers):
        assert {"--account=PROJECT", "--time=1:00:00", "--signal=USR2@180", "--requeue"} <= set(component)


def test_without_gpus_every_task_is_alike():
    (asked,) = options(made("generic-cpu", account=""))
    assert asked[-6:] == [
        "--partition=cpu", "--nodes=2", "--ntasks-per-node=8", "--cpus-per-task=4", "--exclusive", "--mem=0",
    ]  # fmt: skip
    assert not [option for option in asked if option.startswith("--account")]


@pytest.mark.parametrize(("time", "signal_s"), [("0:02:00", 30), ("10:00", 150), ("12:00", 180), ("1-00:00:00", 180)])
def test_the_signal_comes_early_enough_and_not_at_the_start(time, signal_s):
    assert f"--signal=USR2@{signal_s}" in options(made("generic-cpu", time=time))[0]


def test_the_job_is_named_after_its_run_folder():
    assert "--job-name=mpinas-last" in options(made("generic-cpu", run="runs/of mine/last"))[0]
    assert "--job-name=mpinas-digits" in options(made("generic-cpu", experiment="examples/digits.toml"))[0]
    assert job_name("runs/first/") == "mpinas-first"


def test_parastation_machines_are_started_by_srun_alone_and_others_by_pmix():
    for name in system_names():
        lines = [line for line in made(name).splitlines() if line.startswith("srun ")]
        assert [line.startswith("srun --mpi=pmix ") for line in lines] == [name.startswith("generic")], name


# ---- what is refused

OWN = """
title = "ours"
architecture = "x86_64"
gpus = 2
cores = 16
account = false
[[partitions]]
name = "fast"
nodes_max = 8
time_max = "1-00:00:00"
"""


@pytest.mark.parametrize(
    ("system", "asked", "message"),
    [
        ("juwels-booster", {"account": ""}, "juwels-booster: jobs there need a project that pays: add --account NAME"),
        ("juwels-booster", {"nodes": 257}, "partition booster gives a job 256 nodes at most; add --partition largeb"),
        ("juwels-booster", {"nodes": 937}, "--nodes 937: .* 256 nodes at most; ask for what it gives"),
        ("juwels-booster", {"nodes": 8, "partition": "largebooster"}, "is for 257 nodes and more; add --partition boo"),
        ("juwels-booster", {"time": "1-00:00:01"}, "--time 1-00:00:01: partition booster gives a job 24:00:00 at most"),
        ("juwels-booster", {"partition": "dc-gpu"}, "trainers on booster, develbooster, largebooster; another one"),
        ("deep", {"nodes": 76}, "--nodes 76: partition dp-esb gives a job 75 nodes at most"),
        ("deep-dam", {"nodes": 17}, "--nodes 17: partition dp-dam gives a job 16 nodes at most"),
        ("jupiter", {"layout": "heterogeneous"}, "jupiter has no partition without GPUs to put rank 0 on"),
        ("generic-cpu", {"layout": "heterogeneous"}, "generic-cpu has no GPUs that rank 0 would waste"),
        ("generic-cpu", {"time": "4 hours"}, "--time '4 hours' is no duration: write HH:MM:SS"),
        ("generic-cpu", {"time": "0:01:59"}, "--time 0:01:59: is too short"),
        ("generic-cpu", {"nodes": 0}, "--nodes 0: a job needs one at least"),
        ("generic-cpu", {"max_requeues": -1}, "--max-requeues -1"),
        ("generic-cpu", {"key": "job.key"}, "--key job.key: is for a relay; name its connection file with --bridge"),
        ("generic-cpu", {"account": "a\n#SBATCH --nodes=9"}, "--account 'a.n.SBATCH --nodes=9': is no name that Slurm"),
        ("generic-cpu", {"partition": "a b"}, "--partition 'a b': is no name that Slurm knows"),
        ("generic-cpu", {"run": "runs/a b"}, "--run 'runs/a b': the job is named after it"),
        ("generic-cpu", {"run": ".."}, "--run '..': the job is named after it"),
        ("generic-cpu", {"experiment": "a\nb.toml"}, "--experiment 'a.nb.toml': has characters"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(system, asked, message):
    with pytest.raises(UserError, match=message) as refused:
        made(system, **asked)
    assert "\n" not in str(refused.value)


def test_one_rank_trains_nothing(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(OWN.replace("gpus = 2", "cores_per_rank = 16"))
    with pytest.raises(
        UserError, match=r"--nodes 1: gives .*small\.toml one rank, and rank 0 trains nothing; ask for 2"
    ):
        made(path, nodes=1)
    assert "# 2 nodes: 1 trainer with 16 cores each; rank 0 coordinates.\n" in made(path, nodes=2)


def test_a_file_of_ones_own_is_named_by_its_path(tmp_path):
    path = tmp_path / "ours.toml"
    path.write_text(OWN)
    script = made(path, account="", nodes=8)
    assert f"# Made by: mpinas jobscript {path} --nodes 8 --time 4:00:00\n" in script
    assert {"--partition=fast", "--ntasks-per-node=3", "--cpus-per-task=5", "--gres=gpu:2"} < set(options(script)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("gpus = 2", "gpu_count = 2"), "contains unknown field `gpu_count`"),
        (("gpus = 2", 'gpus = "two"'), "gpus: expected `int`, got `str`"),
        (("cores = 16", ""), "missing required field `cores`"),
        (("cores = 16", "cores = 2"), "gpus = 2 and cores = 2: every GPU's rank and the coordinator need a core"),
        (("gpus = 2", ""), "a machine without GPUs needs cores_per_rank, from 1 to its 16 cores a node"),
        (("gpus = 2", "cores_per_rank = 17"), "needs cores_per_rank, from 1 to its 16 cores"),
        (('"ours"', '"ours"\nlauncher = "mpirun"'), "launcher: "),
        (('"ours"', '"ours"\nlauncher = "srun --mpi=pmix\\n"'), "launcher: "),
        (('"x86_64"', '"x86"'), "architecture: invalid enum value 'x86'"),
        (('"fast"', '"fast lane"'), r"partitions\[0\]\.name: has characters that cannot stand in a job script there"),
        (("nodes_max = 8", "nodes_max = 8\nnodes_min = 9"), "partition fast: nodes_max is below nodes_min"),
        (('"1-00:00:00"', '"a day"'), "partition fast: time_max: 'a day' is no duration"),
        (("time_max", '[[partitions]]\nname = "fast"\ntime_max'), "partitions: fast, fast: name each once"),
        (('"ours"', '"ours"\nname = "us"'), "leave the key name out"),
        (('"ours"', '"ours\\n#SBATCH --nodes=9"'), "title: has characters that cannot stand in a job script there"),
        (('"ours"', '"ours"\nmodules = ["ml A \\\\"]'), "modules: a line must not end in a backslash"),
        (('"ours"', "ours"), "not valid TOML"),
    ],
)
def test_a_system_file_that_is_wrong_is_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "ours.toml"
    assert change[0] in OWN
    path.write_text(OWN.replace(*change))
    with pytest.raises(UserError, match=message) as refused:
        load_system(str(path))
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_an_unknown_system_is_told_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"system juwels is unknown; did you mean juwels-booster\?"):
        load_system("juwels")
    with pytest.raises(UserError, match=r"none.toml: cannot be read: No such file"):
        load_system(str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_system(str(tmp_path))


# ---- the command


def test_the_command_lists_systems_and_writes_a_file_once(tmp_path, files_up_to):
    listed = CliRunner().invoke(cli, ["jobscript", "--list"], catch_exceptions=False).output.splitlines()
    assert [line.split()[0] for line in listed] == system_names()
    file = tmp_path / "job.sbatch"
    command = ["jobscript", "generic-gpu", "--nodes", "1", "--time", "60", "-o", str(file)]
    assert "then: sbatch" in CliRunner().invoke(cli, command, catch_exceptions=False).output
    assert file.read_text() == made("generic-gpu", nodes=1, time="1:00:00", account="")
    command[-1] = str(tmp_path / "other.sbatch")
    said = CliRunner().invoke(cli, [*command, "--experiment", "no.toml"], catch_exceptions=False).stderr
    assert said == "mpinas: no.toml is not there yet; the job looks for it from where sbatch is called\n"
    there = CliRunner().invoke(cli, [*command[:-1], str(tmp_path / "third"), "--experiment", str(file)])
    assert there.stderr == ""
    bridge = CliRunner().invoke(
        cli, [*command[:-1], "-", "--experiment", str(file), "--bridge", "b", "--key", str(file)]
    )
    assert bridge.stderr == said.replace("no.toml", "b")
    assert bridge.stdout.startswith("#!/bin/bash\n")
    command[-1] = str(file)
    with pytest.raises(UserError, match="exists already; name another file or remove it"):
        CliRunner().invoke(cli, command, catch_exceptions=False)
    with files_up_to(100), pytest.raises(UserError, match="fourth: cannot be written: File too large"):
        CliRunner().invoke(cli, [*command[:-1], str(tmp_path / "fourth")], catch_exceptions=False)
    assert not (tmp_path / "fourth").exists()


def test_what_is_missing_is_said_in_one_line_with_code_2():
    command = [sys.executable, "-m", "mpinas", "jobscript", "deep", "--nodes", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "mpinas: error: --time is missing: mpinas jobscript SYSTEM --nodes N --time HH:MM:SS, or --list\n"
    )


# ---- what the script does: the cluster's commands are stand-ins, all else is the script as rendered

# srun: every task in turn, on the hosts of SLURM_HOSTFILE or in blocks; components of a heterogeneous job after each
# other, with ranks that go on. Its exit code is the largest, as srun's. It may stay though all its tasks have ended.
SRUN = """
import os, signal, subprocess, sys
groups, words = [], sys.argv[1:]
while words:
    end = words.index(":") if ":" in words else len(words)
    groups.append(words[:end])
    words = words[end + 1:]
rank = worst = 0
for group in groups:
    n = next(i for i, word in enumerate(group) if not word.startswith("--"))
    given = dict(word[2:].split("=", 1) for word in group[:n])
    tasks = int(given["ntasks"])
    if given.get("distribution") == "arbitrary":
        hosts = open(os.environ["SLURM_HOSTFILE"]).read().split()
    else:
        hosts = [f"n{given.get('het-group', '')}"] * tasks
    assert len(hosts) == tasks, (hosts, tasks)
    for place, host in enumerate(hosts):
        nodes = list(dict.fromkeys(hosts))
        task = {"SLURM_PROCID": rank, "SLURM_LOCALID": hosts[:place].count(host), "SLURM_NODEID": nodes.index(host)}
        env = {**os.environ, **{name: str(value) for name, value in task.items()}, "HOST": host}
        worst = max(worst, subprocess.run(group[n:], env=env).returncode)
        rank += 1
if stays := os.environ.get("STAYS"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN if stays == "deaf" else signal.SIG_DFL)
    print("pid", os.getpid(), flush=True)
    signal.pause()
sys.exit(worst)
"""

SCONTROL = """
import os, sys
if sys.argv[1:3] == ["show", "hostnames"]:
    print(sys.argv[3].replace(",", "\\n"))
else:
    open("scontrol.log", "a").write(" ".join(sys.argv[1:]) + "\\n")
    sys.exit(int(os.environ.get("REQUEUE_FAILS", "0")))
"""

SQUEUE = """
import os
print(os.environ.get("ENDS", "N/A"))
"""

# Its time of day is what a file says; each look is noted.
DATE = """
import os, sys
if sys.argv[1] != "+%s":
    os.execv("/bin/date", sys.argv)
now = open("clock").read()
open("date.log", "a").write(now + "\\n")
print(now)
"""

# Each sleep is noted, and short.
SLEEP = """
import sys, time
open("sleep.log", "a").write(sys.argv[1] + "\\n")
time.sleep(0.01)
"""

# The search: says who it is, adds to the journal, ends as it is told to.
SEARCH = """
import json, os, signal, sys
row = {name: os.environ.get(name) for name in
       ("SLURM_PROCID", "HOST", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SRUN_CPUS_PER_TASK",
        "HOROVOD_CONTROLLER", "NCCL_SOCKET_IFNAME", "MODULES")}
open("tasks.jsonl", "a").write(json.dumps({**row, "argv": sys.argv[1:]}) + "\\n")
if os.environ.get("WORKS"):
    os.makedirs("runs/first", exist_ok=True)
    open("runs/first/experiment.toml", "a").close()
    open("runs/first/journal.jsonl", "a").write("an event\\n")
if os.environ.get("WAITS"):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("pid", os.getpid(), flush=True)
    signal.pause()
if (wanted := os.environ.get("WANTS")) and not os.path.lexists(os.environ["MPINAS_CODE_FILE"]):
    os.symlink(wanted, os.environ["MPINAS_CODE_FILE"])
code = int(os.environ.get("CODE", "0"))
sys.exit(code)
"""


class Cluster:
    """A folder to submit from, with commands of a cluster first on PATH."""

    def __init__(self, folder):
        self.folder = folder
        self._command("bin/srun", SRUN)
        self._command("bin/scontrol", SCONTROL)
        self._command("bin/squeue", SQUEUE)
        self._command("bin/date", DATE)
        (folder / "clock").write_text("1000")
        self._command("bin/module", 'import sys; open("modules.log", "a").write(" ".join(sys.argv[1:]) + "\\n")')
        self._command(".venv/bin/python", SEARCH)
        (folder / ".venv/bin/activate").write_text(f"export PATH={folder}/.venv/bin:$PATH; unset NOBODY_SET_THIS\n")

    def _command(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(0o755)

    def hurry(self):
        """What the script waits for by `sleep` is soon over."""
        self._command("bin/sleep", SLEEP)

    def start(self, script, **environment):
        (self.folder / "job.sbatch").write_text(script)
        names = [name for name in os.environ if name.startswith(("SLURM", "CUDA", "HOROVOD", "SRUN", "OMP", "NCCL"))]
        env = {name: value for name, value in os.environ.items() if name not in names}
        env |= {"PATH": f"{self.folder}/bin:{env['PATH']}", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n1,n2"}
        return subprocess.Popen(
            ["bash", "job.sbatch"], cwd=self.folder, env=env | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, script, **environment):
        """Exit code, and what the script said on both streams."""
        process = self.start(script, **environment)
        out, err = process.communicate(timeout=250)
        return process.returncode, out + err

    def lines(self, name):
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def tasks(self):
        return [json.loads(line) for line in self.lines("tasks.jsonl")]


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


@pytest.fixture
def two_tasks(tmp_path):
    """A system where a job of one node has two tasks."""
    path = tmp_path / "small.toml"
    path.write_text(OWN.replace("gpus = 2", "cores_per_rank = 8"))
    return path


@pytest.mark.parametrize("listed", [None, "0,1,2,3", "2"])
def test_with_an_extra_task_each_trainer_has_a_gpu_of_its_own_and_rank_0_none(cluster, listed):
    listing = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert cluster.run(made("generic-gpu", run="runs/first"), **listing) == (0, "")
    found = [(int(t["SLURM_PROCID"]), t["HOST"], t["CUDA_VISIBLE_DEVICES"]) for t in cluster.tasks()]
    assert found == [
        (0, "n1", ""), (1, "n1", "0"), (2, "n1", "1"), (3, "n1", "2"), (4, "n1", "3"),
        (5, "n2", "0"), (6, "n2", "1"), (7, "n2", "2"), (8, "n2", "3"),
    ]  # fmt: skip


def test_gpus_are_taken_from_the_list_that_slurm_gives(cluster):
    assert cluster.run(made("generic-gpu", nodes=1), SLURM_JOB_NODELIST="n1", CUDA_VISIBLE_DEVICES="a,b,c,d")[0] == 0
    assert [task["CUDA_VISIBLE_DEVICES"] for task in cluster.tasks()] == ["", "a", "b", "c", "d"]


def test_one_gpu_a_node(cluster):
    script = made("deep").replace("stage=Stages/20xx", "stage=Stages/2000", 1)
    assert cluster.run(script) == (0, "")
    found = [(task["HOST"], task["CUDA_VISIBLE_DEVICES"]) for task in cluster.tasks()]
    assert found == [("n1", ""), ("n1", "0"), ("n2", "0")]


def test_in_a_heterogeneous_job_too(cluster):
    assert cluster.run(made("generic-gpu", nodes=1, layout="heterogeneous")) == (0, "")
    found = [(int(t["SLURM_PROCID"]), t["HOST"], t["CUDA_VISIBLE_DEVICES"]) for t in cluster.tasks()]
    assert found == [(0, "n0", ""), (1, "n1", "0"), (2, "n1", "1"), (3, "n1", "2"), (4, "n1", "3")]
    assert [task["OMP_NUM_THREADS"] for task in cluster.tasks()] == ["4", "8", "8", "8", "8"]


@pytest.mark.parametrize(
    ("rank", "local", "node"),
    [(5, 4, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)],
    ids=["a fifth task on the second node", "rank 0 is not the first there", "nor the second", "nor elsewhere"],
)
def test_tasks_in_other_places_than_asked_for_stop_with_a_line(rank, local, node):
    shell = re.search(r"^gpu_of_task='\n(.*?)^'", made("generic-gpu"), re.MULTILINE | re.DOTALL)[1]
    place = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURM_NODEID": str(node)}
    done = subprocess.run(
        ["bash", "-c", shell, "task", "echo", "started"], env={**os.environ, **place}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert f"rank {rank} is task {local} of node {node}: tasks are not placed as this script asks" in done.stderr


def test_a_new_run_and_one_that_goes_on(cluster, two_tasks):
    script = made(
        two_tasks, nodes=1, experiment="my files/a'b.toml", run="runs/first", bridge="b r.json", key="job.key"
    )  # fmt: skip
    assert cluster.run(script, WORKS="yes") == (0, "")
    assert cluster.run(script) == (0, "")
    told = [task["argv"] for task in cluster.tasks()]
    edge = ["-m", "mpinas", "search", "--run", "runs/first", "--edge", "b r.json", "--set", "edge.key=job.key"]
    assert told == [[*edge, "my files/a'b.toml"]] * 2 + [[*edge, "--resume"]] * 2


def test_a_run_whose_job_died_before_its_first_event_goes_on(cluster, two_tasks):
    (cluster.folder / "runs/first").mkdir(parents=True)
    (cluster.folder / "runs/first/experiment.toml").touch()
    assert cluster.run(made(two_tasks, nodes=1, run="runs/first")) == (0, "")
    assert {task["argv"][-1] for task in cluster.tasks()} == {"--resume"}


def test_environment_of_the_tasks(cluster):
    script = made("juwels-booster", nodes=1).replace("stage=Stages/20xx", "stage=Stages/2000", 1)
    assert cluster.run(script, SLURM_JOB_NODELIST="n1", HOROVOD_CONTROLLER="gloo") == (0, "")
    for task in cluster.tasks():
        assert task["HOROVOD_CONTROLLER"] is None
        assert (task["OMP_NUM_THREADS"], task["SRUN_CPUS_PER_TASK"], task["NCCL_SOCKET_IFNAME"]) == ("9", "9", "ib0")
    assert cluster.lines("modules.log") == ["purge", "load Stages/2000 GCC OpenMPI CUDA NCCL PyTorch"]


def test_what_the_site_decides_of_the_fabric_stands_in_the_script_as_a_comment(cluster):
    for system, names in (("generic-gpu", ["NCCL_SOCKET_IFNAME", "UCX_NET_DEVICES"]),
                          ("generic-cpu", ["UCX_NET_DEVICES"]), ("deep-dam", ["NCCL_SOCKET_IFNAME"])):  # fmt: skip
        assert re.findall(r"^# export (\w+)=", made(system), re.MULTILINE) == names
    assert cluster.run(made("generic-gpu")) == (0, "")
    assert {task["NCCL_SOCKET_IFNAME"] for task in cluster.tasks()} == {None}


def test_a_placeholder_that_is_left_stops_the_job_with_a_line(cluster):
    code, said = cluster.run(made("juwels-booster"))
    assert code == 2
    assert said == "mpinas: stage=Stages/20xx is a placeholder: set it at the top of the job script\n"
    assert (cluster.tasks(), cluster.lines("modules.log")) == ([], [])


GO_ON = "submit this script again to go on\n"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CODE": "0"}, (0, [], "")),
        ({"CODE": "2", "WANTS": "2"}, (2, [], "")),
        ({"CODE": "137", "WANTS": "1", "WORKS": "yes"}, (1, [], "")),
        ({"CODE": "75"}, (0, ["requeue 77"], "mpinas: ended with code 75; back into the queue, to go on\n")),
        ({"CODE": "75", "SLURM_RESTART_COUNT": "2"}, (0, ["requeue 77"], None)),
        ({"CODE": "75", "SLURM_RESTART_COUNT": "3"},
         (75, [], f"mpinas: ended with code 75, after 3 requeues; {GO_ON}")),
        ({"CODE": "137", "WORKS": "yes"}, (0, ["requeue 77"], None)),
        ({"CODE": "128", "WORKS": "yes", "SLURM_HET_JOB_ID": "70"}, (0, ["requeue 70"], None)),
        ({"CODE": "14", "WORKS": "yes"}, (0, ["requeue 77"], None)),
        ({"CODE": "127"}, (127, [], f"mpinas: ended with code 127, before it did anything; {GO_ON}")),
        ({"CODE": "139"}, (139, [], f"mpinas: ended with code 139, before it did anything; {GO_ON}")),
        ({"CODE": "75", "REQUEUE_FAILS": "1"}, (75, ["requeue 77"], None)),
    ],
)  # fmt: skip
def test_which_ends_are_requeued(cluster, two_tasks, environment, expected):
    code, said = cluster.run(made(two_tasks, nodes=1, run="runs/first", max_requeues=3), **environment)
    requeued, message = expected[1], expected[2]
    assert (code, cluster.lines("scontrol.log")) == (expected[0], requeued)
    if message is not None:
        assert said == message


def test_a_requeue_that_slurm_refuses_says_how_to_go_on(cluster, two_tasks):
    _, said = cluster.run(made(two_tasks, nodes=1), CODE="75", REQUEUE_FAILS="1")
    assert said.endswith(f"mpinas: ended with code 75, and Slurm did not requeue it; {GO_ON}")


def test_what_a_rank_wants_the_job_to_end_with_counts_and_not_what_srun_says(cluster, two_tasks):
    code, _ = cluster.run(made(two_tasks, nodes=1, run="runs/first"), CODE="137", WORKS="yes", WANTS="2")
    assert (code, cluster.lines("scontrol.log")) == (2, [])
    assert not list(cluster.folder.glob(".mpinas-code-*"))
    code, _ = cluster.run(made(two_tasks, nodes=1, run="runs/first"), CODE="1", WORKS="yes", WANTS="0")
    assert (code, cluster.lines("scontrol.log")) == (0, []), "the search was over, and MPI ended badly"
    code, _ = cluster.run(made(two_tasks, nodes=1, run="runs/first"), CODE="137", WORKS="yes", WANTS="75")
    assert (code, cluster.lines("scontrol.log")) == (0, ["requeue 77"])


@pytest.mark.parametrize("stays", ["yes", "deaf"])
@pytest.mark.parametrize(("said", "expected", "requeued"), [("0", 0, []), ("2", 2, []), ("75", 0, ["requeue 77"])])
def test_srun_is_ended_when_it_stays_after_the_search(cluster, two_tasks, stays, said, expected, requeued):
    cluster.hurry()
    code, out = cluster.run(made(two_tasks, nodes=1, run="runs/first"), WANTS=said, STAYS=stays)
    assert (code, cluster.lines("scontrol.log")) == (expected, requeued)
    assert "mpinas: the search has ended two minutes ago, and srun has not: ending it\n" in out
    assert sum(map(int, cluster.lines("sleep.log"))) >= 120


def test_srun_is_left_alone_while_no_rank_has_said_that_it_is_over(cluster, two_tasks):
    cluster.hurry()
    process = cluster.start(made(two_tasks, nodes=1, run="runs/first"), WORKS="yes", STAYS="yes")
    srun = int(process.stdout.readline().split()[1])
    deadline_s = time.monotonic() + 120
    while len(cluster.lines("sleep.log")) < 40 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert len(cluster.lines("sleep.log")) >= 40
    os.kill(srun, signal.SIGUSR1)
    out, _ = process.communicate(timeout=250)
    assert (process.returncode, cluster.lines("scontrol.log")) == (0, ["requeue 77"])
    assert out == "mpinas: ended with code 138; back into the queue, to go on\n"


@pytest.mark.parametrize(
    ("end", "now", "requeued"),
    [
        ({"SLURM_JOB_END_TIME": "5000"}, 4939, []),
        ({"SLURM_JOB_END_TIME": "5000"}, 4940, ["requeue 77"]),
        ({"ENDS": "1970-01-01T01:23:20"}, 4939, []),
        ({"ENDS": "1970-01-01T01:23:20"}, 4940, ["requeue 77"]),
        ({}, 1000 + 4 * 3600 - 61, []),
        ({}, 1000 + 4 * 3600 - 60, ["requeue 77"]),
    ],
)
def test_a_cancelled_job_is_not_requeued_but_one_whose_walltime_is_over_is(cluster, two_tasks, end, now, requeued):
    """Of scancel, the script and the tasks get TERM; the search then ends in peace. What counts is when TERM came."""
    process = cluster.start(made(two_tasks, nodes=1), WAITS="yes", TZ="UTC", **end)
    first = int(process.stdout.readline().split()[1])
    (cluster.folder / "clock").write_text(str(now))
    os.kill(process.pid, signal.SIGTERM)
    deadline_s = time.monotonic() + 120
    while str(now) not in cluster.lines("date.log") and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert str(now) in cluster.lines("date.log"), "the script heeds TERM while the tasks run"
    (cluster.folder / "clock").write_text("9999999999")
    os.kill(first, signal.SIGTERM)
    os.kill(int(process.stdout.readline().split()[1]), signal.SIGTERM)  # the stand-in starts one after the other
    _, said = process.communicate(timeout=250)
    assert cluster.lines("scontrol.log") == requeued
    assert process.returncode == (0 if requeued else 75)
    assert bool(requeued) or said == f"mpinas: ended with code 75, because it was told to; {GO_ON}"


def test_outside_a_job_nothing_runs(cluster):
    code, said = cluster.run(made("generic-cpu"), SLURM_JOB_ID="")
    assert code != 0
    assert cluster.tasks() == []
    assert "submit this script with sbatch" in said
