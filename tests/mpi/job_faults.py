"""Faults against whole jobs, each as a trial whose outcome is counted: what broke, how it ended, how it went on.

A trial: a small search on real digits, 3 ranks, one group of two trainers; at a moment drawn from the seed, while the
group trains, the fault strikes. If the job ends by it, it is resumed. Then the search must be at its end, with nothing
evaluated twice, nothing lost, no process, port or shared memory left. For `test_job_faults.py` (once each) and
`benchmarks/faults.py`; `benchmarks/soak.py` takes jobs and faults from here, and strikes again and again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from launching import ROOT, mpi_environment, mpirun_command

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.errors import UserError
from mpinas.history import journal
from mpinas.history.run_folder import RunFolder
from mpinas.report import results
from mpinas.training.checkpoint import Unusable, read_archive

RANKS = 3
EVALUATIONS = 6
#: A rank that gives no sign of life for so long ends the job, here.
STALL_S = 10
#: Within how many seconds a job is over that a fault ends; a stall is noticed in its own time.
END_S = 30.0
EXPERIMENT = f"""
[task]
name = "task.py:Fragile"
[search]
evaluations = {EVALUATIONS}
seed = 3
population = 4
[training]
group_size = 2
epochs = 8
checkpoint_seconds = 1
stall_seconds = {STALL_S}
[edge]
exporters = 1
"""
#: The digits, with a training that breaks once wherever a file of a certain name appears, and takes 2 GB of memory in
#: the process that a file of another name tells.
TASK = """
import os
from pathlib import Path
from mpinas.examples.digits import DigitsTask

FOLDER = Path(__file__).parent

class Fragile(DigitsTask):
    def loss(self, outputs, targets):
        try:
            (FOLDER / "break").unlink()
        except FileNotFoundError:
            if (FOLDER / "hoard").exists() and int((FOLDER / "hoard").read_text()) == os.getpid():
                [b"x" * (16 << 20) for _ in range(128)]
            return super().loss(outputs, targets)
        raise RuntimeError("broken on purpose")
"""
MARK = "MPINAS_TRIAL"
#: Nothing in a trial takes so long, on a machine as busy as it may be.
LIMIT_S = 300.0
#: What must be gone so long after the job has ended.
GONE_S = 10.0
#: A fault strikes when fewer than so many candidates are evaluated, and then waits for so many seconds of training.
LATEST_EVALUATED, LATEST_S = 4, 3.0
#: Size of the file system that is filled.
DISK_BYTES = 64 << 20
#: More than so much memory makes the kernel kill a process, in a trial of that.
MEMORY_BYTES = 64 << 20
#: Where groups of processes with such a limit are made (control groups, version 1).
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one trial.

    Attributes
    ----------
    ended_s
        From the fault to the end of the job; None where it went on.
    code
        Exit code of the job that was broken.
    named
        The rank or the cause was said, by the job or its launcher.
    work_named
        The job said what the rank was at; None where no rank died.
    first_order_s
        From the start of the next job to its first order; None where none was needed.
    twice, lost
        Candidates evaluated twice; candidates evaluated before the fault and not afterwards.
    again
        Epochs trained again by the next job that the checkpoints left by the broken one had in them.
    hung
        A job that had to be killed, or processes that outlived theirs.
    left
        Files in shared memory and listening sockets of a job that were there after its end.
    finished
        The search came to its end.
    """

    fault: str
    seed: int
    ended_s: float | None
    code: int | None
    named: bool
    work_named: bool | None
    first_order_s: float | None
    twice: int
    lost: int
    again: int
    hung: int
    left: int
    finished: bool
    remark: str = ""

    @property
    def good(self) -> bool:
        """Was it as it should be?"""
        bad = (self.twice, self.lost, self.again, self.hung, self.left)
        return self.finished and self.named and not any(bad) and (self.ended_s or 0.0) <= limit_s(self.fault)


def limit_s(fault: str) -> float:
    """Within how many seconds a job has to end that this fault ends."""
    return END_S + (STALL_S if fault == "SIGSTOP a rank" else 0.0)


class Job:
    """One mpirun of a trial, and all processes that it brings about. `log`: name of the file for what it says."""

    def __init__(self, folder: Path, mark: str, run: Path, *, resume: bool, log: str = "") -> None:
        self.folder, self.mark, self.run = folder, mark, run
        arguments = ["--resume"] if resume else [str(folder / "experiment.toml")]
        self.log = folder / (log or ("resumed.log" if resume else "job.log"))
        self.began_s = time.monotonic()
        environment = mpi_environment(**{MARK: mark})
        with open(self.log, "wb") as output:
            self.process = subprocess.Popen(
                [*mpirun_command(RANKS), sys.executable, "-m", "mpinas", "search", *arguments, "--run", str(run)],
                cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def ranks(self) -> dict[int, int]:
        """Process id by rank."""
        found = {}
        for pid, environment in marked(self.mark):
            rank = environment.get("OMPI_COMM_WORLD_RANK")
            if rank is not None:
                found[int(rank)] = pid
        return found

    def helper(self, role: str) -> int:
        """Process id of the relay or the device agent."""
        for pid in self._started_as("edge_bridge", role):
            return pid
        raise AssertionError(f"no {role} is running")

    def exporters(self) -> list[int]:
        """Process ids of the exporters."""
        return list(self._started_as("mpinas.training.exporter"))

    def _started_as(self, *words: str) -> Iterator[int]:
        for pid, _ in marked(self.mark):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                if all(word in line for word in words):
                    yield pid

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a fact on disk; the job must be alive meanwhile."""
        end_s = time.monotonic() + LIMIT_S
        while not condition():
            assert self.process.poll() is None, f"the job ended early:\n{self.said()}"
            assert time.monotonic() < end_s, f"waited in vain:\n{self.said()}"
            time.sleep(0.02)

    def wait(self, limit_s: float = LIMIT_S) -> bool:
        """Has it ended by itself?"""
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            for pid, _ in marked(self.mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            return False
        return True


def marked(mark: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    """(process id, environment) of every living process of a trial."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                content = (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if f"{MARK}={mark}".encode() in content.split(b"\0") and state != "Z":
                pairs = (each.decode(errors="replace").partition("=") for each in content.split(b"\0"))
                yield int(entry.name), {name: value for name, _, value in pairs}


def history(run: Path) -> list[ev.Event]:
    """Events so far; none where there is no journal yet."""
    try:
        return [event for _, event in journal.read(RunFolder(run).journal_file)]
    except UserError:
        return []


def evaluated(run: Path) -> list[int]:
    return [event.candidate for event in history(run) if type(event) is msg.Evaluated]


def at_work(run: Path) -> ev.Ordered | None:
    """The order to train a candidate that is being carried out; whose first epoch is over."""
    order, seen = None, False
    for event in history(run):
        if type(event) is ev.Ordered:
            order, seen = (event, False) if event.work == "evaluate" else (None, False)
        elif isinstance(event, msg.Answer | ev.Begun):
            order = None
        seen = seen or type(event) is msg.Progress
    return order if seen else None


def tried_again(run: Path) -> bool:
    """Has a training got an exception, and its candidate a second order?"""
    failed: set[int] = set()
    for event in history(run):
        if type(event) is msg.EvaluationFailed and event.reason == "error":
            failed.add(event.candidate)
        elif type(event) is ev.Ordered and event.candidate in failed:
            return True
    return False


def saved(run: Path) -> dict[int, int]:
    """How many epochs are in the checkpoint of each candidate that has one."""
    found = {}
    for file in RunFolder(run).models.glob("[0-9]*/checkpoint.pt"):
        with contextlib.suppress(Unusable):
            tree = torch.load(io.BytesIO(read_archive(file)), weights_only=True)
            found[int(file.parent.name)] = int(tree["epochs_done"])
    return found


#: Strikes: (job, its run folder, random) -> what the job should say of it; "" where it should go on.
Strike = Callable[[Job, Path, random.Random], str]


def latest_order(run: Path) -> ev.Ordered:
    """The one that is being carried out, or was last."""
    return at_work(run) or next(event for event in reversed(history(run)) if type(event) is ev.Ordered)


def named_dead(rank: int) -> str:
    """A pattern: what the job or its launcher says of a rank that has died."""
    return rf"rank {rank} (on \S+ \(process|with PID)"


def kill_rank(of: Callable[[ev.Ordered], int]) -> Strike:
    def strike(job: Job, run: Path, rng: random.Random) -> str:
        rank = of(latest_order(run))
        os.kill(job.ranks()[rank], signal.SIGKILL)
        return named_dead(rank)

    return strike


def kill_helper(role: str) -> Strike:
    def strike(job: Job, run: Path, rng: random.Random) -> str:
        os.kill(job.helper(role), signal.SIGKILL)
        return ""

    return strike


def kill_exporter(job: Job, run: Path, rng: random.Random) -> str:
    exporters = job.exporters()
    assert exporters, "no exporter is running"
    os.kill(rng.choice(exporters), signal.SIGKILL)
    return ""


def pause(job: Job, run: Path, rng: random.Random) -> str:
    """Stop a rank, shorter than what counts as a stall."""
    pid = job.ranks()[rng.randrange(RANKS)]
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(rng.uniform(0.5, STALL_S / 2))
    finally:
        os.kill(pid, signal.SIGCONT)
    return ""


def ask_to_end(number: signal.Signals) -> Strike:
    """As Slurm does: every rank gets the signal. mpirun hands on USR2; after TERM it kills within half a second."""

    def strike(job: Job, run: Path, rng: random.Random) -> str:
        for pid in job.ranks().values():
            os.kill(pid, number)
        return "to go on: start `mpinas search --resume"

    return strike


def raise_in_training(job: Job, run: Path, rng: random.Random) -> str:
    (job.folder / "break").touch(exist_ok=False)
    return ""


def stall(job: Job, run: Path, rng: random.Random) -> str:
    rank = rng.randrange(RANKS)
    os.kill(job.ranks()[rank], signal.SIGSTOP)
    return rf"mpinas: rank {rank}\b.* has given no sign of life for"


def fill_disk(job: Job, run: Path, rng: random.Random) -> str:
    file = os.open(run.parent / "ballast", os.O_CREAT | os.O_WRONLY)
    size = 1 << 20
    while size:
        try:
            os.write(file, b"x" * size)
        except OSError:
            size //= 2
    os.close(file)
    return "No space left on device"


def exhaust_memory(job: Job, run: Path, rng: random.Random) -> str:
    """What one rank allocates from now on is limited, and it allocates much: the kernel kills it."""
    rank = rng.choice(latest_order(run).members)
    pid = job.ranks()[rank]
    (memory_group(job.folder) / "cgroup.procs").write_text(str(pid))
    (job.folder / "hoard.part").write_text(str(pid))
    (job.folder / "hoard.part").rename(job.folder / "hoard")
    return named_dead(rank)


FAULTS: dict[str, Strike] = {
    "SIGKILL coordinator": kill_rank(lambda order: 0),
    "SIGKILL leader": kill_rank(lambda order: order.members[0]),
    "SIGKILL member": kill_rank(lambda order: order.members[-1]),
    "SIGKILL relay": kill_helper("relay"),
    "SIGKILL agent": kill_helper("device"),
    "exception in training": raise_in_training,
    "SIGSTOP a rank": stall,
    "out of memory": exhaust_memory,
    "disk full": fill_disk,
}

#: What a search also has to live through, or to be resumed after; of no interest once, in a trial.
MORE_FAULTS: dict[str, Strike] = {
    "SIGKILL exporter": kill_exporter,
    "SIGSTOP a rank for a moment": pause,
    "USR2": ask_to_end(signal.SIGUSR2),
    "TERM": ask_to_end(signal.SIGTERM),
}


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of a few megabytes; root alone can make one."""
    folder.mkdir()
    size = f"size={DISK_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def memory_group(folder: Path) -> Path:
    """Where the kernel's limits on the memory of a trial's processes are."""
    return MEMORY_GROUPS / f"mpinas-trial-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"


@contextlib.contextmanager
def small_memory(folder: Path) -> Iterator[None]:
    """A group of processes, empty as yet, that the kernel gives a few megabytes more."""
    group = memory_group(folder)
    group.mkdir(exist_ok=True)
    try:
        (group / "memory.limit_in_bytes").write_text(str(MEMORY_BYTES))
        (group / "memory.swappiness").write_text("0")
        yield
    finally:
        end_s = time.monotonic() + GONE_S
        while group.exists() and time.monotonic() < end_s:
            with contextlib.suppress(OSError):  # its last process is still ending
                group.rmdir()
            time.sleep(0.1)


def trial(fault: str, seed: int, folder: Path) -> Outcome:
    """Break one job in `folder`, which is there and empty, and see."""
    (folder / "experiment.toml").write_text(EXPERIMENT)
    (folder / "task.py").write_text(TASK)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(small_disk(folder / "disk")) if fault == "disk full" else folder
        if fault == "out of memory":
            stack.enter_context(small_memory(folder))
        return _trial(fault, seed, folder, place / "run")


def _trial(fault: str, seed: int, folder: Path, run: Path) -> Outcome:
    rng, mark = random.Random(f"{fault}-{seed}"), uuid.uuid4().hex
    job = Job(folder, mark, run, resume=False)
    hung, left, again, remark, ended_s, first_order_s, work_named = 0, 0, 0, "", None, None, None
    try:
        done, wait_s = rng.randrange(LATEST_EVALUATED), rng.uniform(0, LATEST_S)  # the moment is what is random
        job.until(lambda: len(evaluated(run)) >= done and at_work(run))
        time.sleep(wait_s)
        before, had = evaluated(run), held(mark)
        struck_s = time.monotonic()
        expected = FAULTS[fault](job, run, rng)
        if not job.wait():
            hung, remark = 1, f"the job hung: {job.said()[-600:]}"
        code, named = job.process.returncode, re.search(expected, job.said()) is not None
        if fault == "exception in training":
            named = named and tried_again(run)
        if ("SIGKILL" in fault or fault == "out of memory") and code:
            work_named = re.search("it was at work on candidate|it coordinated", job.said()) is not None
        if code:
            ended_s = time.monotonic() - struck_s
        hung += outlived(mark)
        left += left_behind(had)
        (run.parent / "ballast").unlink(missing_ok=True)
        if results.load(RunFolder(run)).finished is None:
            orders, kept, told = _orders(run), saved(run), len(history(run))
            job = Job(folder, mark, run, resume=True)
            job.until(lambda: _orders(run) > orders)
            first_order_s = time.monotonic() - job.began_s
            had = held(mark)
            hung += not job.wait()
            hung += outlived(mark)
            left += left_behind(had)
            progress = [event for event in history(run)[told:] if type(event) is msg.Progress]
            again = sum(event.epoch <= kept.get(event.candidate, 0) for event in progress)
    finally:
        job.wait(0.0)
    after = Counter(evaluated(run))
    finished = results.load(RunFolder(run)).finished
    good = finished is not None and finished.startswith(f"{EVALUATIONS} of {EVALUATIONS}")
    if not good or not named:
        remark = remark or f"expected {expected!r}; {job.said()[-1500:]}"
    twice, lost = sum(count > 1 for count in after.values()), len(set(before) - set(after))
    return Outcome(
        fault, seed, ended_s, code, named, work_named, first_order_s, twice, lost, again, hung, left, good, remark
    )  # fmt: skip


def _orders(run: Path) -> int:
    return sum(type(event) is ev.Ordered for event in history(run))


def outlived(mark: str) -> int:
    """How many processes of a job are there some seconds after its end; they are killed."""
    end_s = time.monotonic() + GONE_S
    while (left := list(marked(mark))) and time.monotonic() < end_s:
        time.sleep(0.1)
    for pid, _ in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(left)


@dataclass(frozen=True, slots=True)
class Held:
    """What the processes of a trial have of the machine: files in shared memory, listening sockets by their inodes."""

    segments: frozenset[Path]
    sockets: frozenset[str]


def held(mark: str) -> Held:
    """As it is now."""
    segments, sockets = set(), set()
    for pid, _ in marked(mark):
        with contextlib.suppress(OSError):  # it has just ended
            maps = Path(f"/proc/{pid}/maps").read_text()
            segments.update(Path(path) for path in re.findall(r" (/dev/shm/.+?)(?: \(deleted\))?$", maps, re.MULTILINE))
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets.update(re.findall(r"socket:\[(\d+)\]", os.readlink(descriptor)))
    return Held(frozenset(segments), frozenset(sockets) & listening())


def listening() -> frozenset[str]:
    """Inodes of all TCP sockets of this machine that listen."""
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return frozenset(row[9] for row in rows if row[3] == "0A")


def left_behind(had: Held) -> int:
    """How much of it is there some seconds after the job's end; files in shared memory are removed."""
    end_s = time.monotonic() + GONE_S
    while True:
        files = [path for path in had.segments if path.exists()]
        sockets = had.sockets & listening()
        if not (files or sockets) or time.monotonic() >= end_s:
            break
        time.sleep(0.1)
    for path in files:
        path.unlink(missing_ok=True)
    return len(files) + len(sockets)


def why_not(fault: str) -> str:
    """Why a fault cannot be tried here; "" if it can."""
    if fault == "disk full" and (os.geteuid() != 0 or shutil.which("mount") is None):
        return "only root can mount a small file system"
    if fault == "out of memory" and not os.access(MEMORY_GROUPS, os.W_OK):
        return f"no control groups for memory that may be made in {MEMORY_GROUPS}"
    return ""


__all__ = ["FAULTS", "MORE_FAULTS", "ROOT", "Outcome", "trial", "why_not"]
