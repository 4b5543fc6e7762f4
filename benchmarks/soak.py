"""Search for hours while things break, watch the memory of rank 0, relay and agent, and keep docs/reliability.md.

    python benchmarks/soak.py [--minutes 120] [--seed 0] [--pace 1] [--record FILE] [--write PAGE] [--json]

One search on the digits, 3 ranks, resumed in the same run folder after each job, so that its journal grows. Faults
strike at moments drawn from the seed. Everything is appended to --record (JSON lines) as it comes: a soak that is
stopped (Ctrl-C) ends all its processes and shows the table so far, and the same command again does the minutes that
are missing, in a new run folder. Jobs and faults are those of `tests/mpi/job_faults.py`; figures: `soak_figures.py`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tracemalloc
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TextIO

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "mpi")]

from job_faults import FAULTS, MORE_FAULTS, TASK, Job, outlived  # noqa: E402
from pages import replace_table  # noqa: E402
from soak_figures import Ended, History, Record, Sample, Strike, good, table  # noqa: E402

from mpinas.coordination import events as ev  # noqa: E402
from mpinas.coordination import messages as msg  # noqa: E402
from mpinas.coordination.lifecycle import State  # noqa: E402
from mpinas.history import journal  # noqa: E402
from mpinas.history.run_folder import RunFolder, plan_of  # noqa: E402
from mpinas.parallel.means import coordinator_of, space_of  # noqa: E402
from mpinas.report import results  # noqa: E402
from mpinas.tasks import make_task  # noqa: E402

BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"
#: More than a soak gets done; where it does, another search begins. Trainings are short, so that much else happens.
EXPERIMENT = """
[task]
name = "task.py:Fragile"
[search]
evaluations = 20000
seed = 3
[training]
group_size = 2
epochs = 2
checkpoint_seconds = 1
"""
STRIKES = {**FAULTS, **MORE_FAULTS}
#: Every so many seconds one of these. What is killed or ended shows no slope unless it has lived for a while: relay,
#: agent and whole jobs are broken less often.
PASSING = ("SIGKILL exporter", "exception in training", "SIGSTOP a rank for a moment")
HELPERS = ("SIGKILL relay", "SIGKILL agent")
ENDING = ("SIGKILL coordinator", "SIGKILL leader", "SIGKILL member", "USR2", "TERM")
EVERY_S = {PASSING: (20.0, 60.0), HELPERS: (480.0, 960.0), ENDING: (900.0, 1500.0)}
SAMPLE_S = 5.0
SAY_S = 60.0
#: A process's first minutes are left out of its slope: it loads code when first needed, and its heap fills.
WARM_UP_S = 180.0
#: A life that is shorter after its warm-up says nothing.
LEAST_S = 300.0
#: A journal that stands still for so long, or a job that takes so long to end, hangs.
HANG_S = 120.0
HANG = "hang"
KINDS = {kind.__name__: kind for kind in (Sample, Strike, Ended, History)}


@click.command(help=__doc__)
@click.option("--minutes", type=click.FloatRange(0), default=120, show_default=True, help="With those in the record.")
@click.option("--seed", default=0, show_default=True)
@click.option("--pace", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
              help="Scales the times between faults, the warm-up and the shortest life that counts.")  # fmt: skip
@click.option("--record", "path", type=click.Path(path_type=Path), default=ROOT / "runs" / "soak.jsonl",
              show_default=True)  # fmt: skip
@click.option("--write", "page", type=click.Path(path_type=Path, exists=True), help="Page whose table is replaced.")
@click.option("--json", "as_json", is_flag=True, help="Print the record instead of the table.")
def main(minutes: float, seed: int, pace: float, path: Path, page: Path | None, as_json: bool) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = read(path)
    ended = [each for each in record if isinstance(each, Ended)]
    seconds = 60 * minutes - sum(each.seconds for each in ended)
    if seconds > 0:
        with open(path, "a") as file:
            soak = Soak(seconds, pace, random.Random(f"{seed}-{len(ended)}"), record, file)
            try:
                soak.go()
            except KeyboardInterrupt:
                click.echo("stopped; the same command goes on", err=True)
            soak.leave()
    text = table(record, WARM_UP_S * pace, LEAST_S * pace) + "\n" + how(pace)
    click.echo(json.dumps([asdict(each) for each in record]) if as_json else text)
    if page is not None:
        replace_table(page, BEGIN, END, text)
    if not good(record):
        sys.exit(1)


class Soak:
    """Jobs, one after the other, for so many `seconds`; what is seen goes to `record` and to its `file`."""

    def __init__(self, seconds: float, pace: float, rng: random.Random, record: list[Record], file: TextIO) -> None:
        self._end_s = time.monotonic() + seconds
        self._pace, self._rng = pace, rng
        self._record, self._file = record, file
        self._number = 1 + max((each.job for each in record if not isinstance(each, History)), default=-1)
        self._folder = Path(tempfile.mkdtemp(prefix="mpinas-soak-"))
        (self._folder / "experiment.toml").write_text(EXPERIMENT)
        (self._folder / "task.py").write_text(TASK)
        self._said_s = time.monotonic()
        self._runs = 0
        self._begin_run()

    def _begin_run(self) -> None:
        self._runs += 1
        self._run = self._folder / f"run-{self._runs}"
        self._reader = journal.Reader(RunFolder(self._run).journal_file)
        self._tally = Tally()
        self._given_up = 0

    def go(self) -> None:
        while time.monotonic() < self._end_s:
            if self._tally.finished:
                self._keep(remembered(self._run))
                self._begin_run()
            self._one_job()

    def leave(self) -> None:
        """Of the last run: what a search remembers by design; its folder goes, unless something is to be looked at."""
        if self._tally.evaluated:
            self._keep(remembered(self._run))
        if good(self._record):
            shutil.rmtree(self._folder)
        else:
            click.echo(f"logs and journals: {self._folder}", err=True)

    def _keep(self, each: Record) -> None:
        self._record.append(each)
        self._file.write(json.dumps({"kind": type(each).__name__, **asdict(each)}) + "\n")
        self._file.flush()

    def _one_job(self) -> None:
        resumed = self._run.is_dir()
        job = Job(self._folder, uuid.uuid4().hex, self._run, resume=resumed, log=f"job-{self._number}.log")
        before, cause = self._tally.copy(), "interrupted"
        try:
            cause = self._until_it_ends(job)
        finally:
            self._keep(self._ended(job, cause, before, resumed))
            self._number += 1

    def _until_it_ends(self, job: Job) -> str:
        """Why it ended, or has to."""
        due_s: dict[tuple[str, ...], float] = {}
        self._tally.at_work = False
        moved_s = sampled_s = time.monotonic()
        while True:
            time.sleep(0.5)
            over = job.process.poll() is not None
            if self._read():
                moved_s = time.monotonic()
                # the clocks of the faults run once the job is at work
                due_s = due_s or (self._drawn(*EVERY_S) if self._tally.at_work else {})
            now_s = time.monotonic()
            if over:
                return "search at its end" if self._tally.finished else "by itself"
            if now_s - moved_s > HANG_S:
                return HANG
            if now_s > self._end_s:
                if self._tally.at_work:  # before, it is deaf to signals
                    job.process.send_signal(signal.SIGUSR2)
                    return "soak over" if job.wait(HANG_S) else HANG
                return "soak over"
            if now_s - sampled_s >= SAMPLE_S:
                sampled_s = now_s
                self._sample(job)
            for kinds in [kinds for kinds, at_s in due_s.items() if now_s >= at_s]:
                fault = self._strike(job, kinds)
                if fault in (*ENDING, HANG):
                    return fault
                due_s |= self._drawn(kinds) if fault else {}

    def _drawn(self, *of: tuple[str, ...]) -> dict[tuple[str, ...], float]:
        """When each kind of fault strikes next."""
        return {kinds: time.monotonic() + self._pace * self._rng.uniform(*EVERY_S[kinds]) for kinds in of}

    def _strike(self, job: Job, kinds: tuple[str, ...]) -> str:
        """One fault of these kinds; "" where what it is for is just not there."""
        fault = self._rng.choice(kinds)
        struck_s = time.monotonic()
        try:
            STRIKES[fault](job, self._run, self._rng)
        except (AssertionError, LookupError, ProcessLookupError, FileExistsError):
            # it is being started again, or no training has come to the last exception yet
            return ""
        ended = fault in ENDING and job.wait(HANG_S)
        self._keep(Strike(self._number, fault, time.monotonic() - struck_s if ended else None))
        return fault if ended or fault not in ENDING else HANG

    def _read(self) -> bool:
        """Take in what has been added to the journal; was there anything?"""
        if not RunFolder(self._run).journal_file.is_file():
            return False
        events = [event for _, event in self._reader.more()]
        for event in events:
            self._tally.take(event)
        return bool(events)

    def _sample(self, job: Job) -> None:
        found = dict(job.ranks())
        pids = {"rank 0": found[0]} if 0 in found else {}
        for role, name in (("relay", "relay"), ("agent", "device")):
            with contextlib.suppress(AssertionError):
                pids[role] = job.helper(name)
        for role, pid in pids.items():
            with contextlib.suppress(OSError, LookupError):  # it has just ended
                began, age_s, own, rss = memory(pid)
                evaluated = len(self._tally.evaluated)
                self._keep(Sample(self._number, role, pid, began, age_s, own, rss, evaluated))
        if time.monotonic() - self._said_s >= SAY_S:
            self._said_s = time.monotonic()
            self._say()

    def _say(self) -> None:
        latest = {each.role: each for each in self._record[-10:] if isinstance(each, Sample)}
        memories = ", ".join(f"{role} {each.own_kib / 1024:.1f} MiB" for role, each in latest.items())
        strikes = sum(isinstance(each, Strike) for each in self._record)
        left = (self._end_s - time.monotonic()) / 60
        evaluated = len(self._tally.evaluated)
        click.echo(
            f"{left:.0f} minutes left: job {self._number}, {evaluated} evaluated, {strikes} faults; {memories}",
            err=True,
        )

    def _ended(self, job: Job, cause: str, before: Tally, resumed: bool) -> Ended:
        """End it where it has not, and see what has become of it."""
        job.wait(0.0)
        hung = (cause == HANG) + outlived(job.mark)
        self._read()
        lost = given_up = 0
        if self._tally.evaluated:
            ledger = results.load(RunFolder(self._run))
            lost = len(self._tally.evaluated.keys() - ledger.evaluated.keys())
            given_up, self._given_up = ledger.count(State.FAILED) - self._given_up, ledger.count(State.FAILED)
        remark = "" if cause in (*ENDING, "soak over", "interrupted", "search at its end") else cause
        if remark:
            remark = f"{cause}: {job.said()[-1500:]}"
            click.echo(f"job {self._number} ended otherwise than meant, {remark}", err=True)
        return Ended(
            self._number,
            cause,
            job.process.returncode,
            resumed,
            time.monotonic() - job.began_s,
            self._tally.evaluated.total() - before.evaluated.total(),
            self._tally.attempts_failed - before.attempts_failed,
            given_up,
            self._tally.twice - before.twice,
            lost,
            hung,
            remark,
        )


@dataclass
class Tally:
    """What a journal says has happened."""

    evaluated: Counter[int] = field(default_factory=Counter)
    attempts_failed: int = 0
    finished: bool = False
    #: The latest job has given an order.
    at_work: bool = False

    def take(self, event: ev.Event) -> None:
        if isinstance(event, msg.Evaluated):
            self.evaluated[event.candidate] += 1
        elif isinstance(event, msg.EvaluationFailed):
            self.attempts_failed += 1
        elif isinstance(event, ev.Begun | ev.Ordered):
            self.at_work = isinstance(event, ev.Ordered)
        elif isinstance(event, ev.Finished):
            self.finished = True

    @property
    def twice(self) -> int:
        return sum(count > 1 for count in self.evaluated.values())

    def copy(self) -> Tally:
        return replace(self, evaluated=self.evaluated.copy())


def memory(pid: int) -> tuple[int, float, int, int]:
    """(when it began in clock ticks, age in seconds, its own memory and all that is resident in KiB) of a process."""
    began = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    age_s = float(Path("/proc/uptime").read_text().split()[0]) - began / os.sysconf("SC_CLK_TCK")
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    kib = {name: int(status[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmSwap", "VmRSS")}
    return began, age_s, kib["RssAnon"] + kib["RssShmem"] + kib["VmSwap"], kib["VmRSS"]


def remembered(run: Path) -> History:
    """What a coordinator holds that has folded this run's journal, events and all, and does nothing else."""
    folder = RunFolder(run)
    experiment = folder.experiment()
    task = make_task(experiment.task, experiment.search.seed)
    space = space_of(task, experiment)
    tracemalloc.start()
    coordinator = coordinator_of(task, experiment, plan_of(experiment), space)
    empty = tracemalloc.get_traced_memory()[0]
    coordinator.replay(journal.read(folder.journal_file))
    gc.collect()
    full = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return History(len(coordinator.ledger.evaluated), (full - empty) / 1024)


def read(path: Path) -> list[Record]:
    """A record; a torn last line is left out, and mended."""
    found: list[Record] = []
    whole, _, torn = (path.read_text() if path.exists() else "").rpartition("\n")
    if torn:
        path.write_text(whole + "\n")
    for line in whole.splitlines():
        fields = json.loads(line)
        found.append(KINDS[fields.pop("kind")](**fields))
    return found


def how(pace: float) -> str:
    paced = f" --pace {pace:g}" if pace != 1 else ""
    warm_up, least = WARM_UP_S * pace / 60, LEAST_S * pace / 60
    return (
        f"\nFilled by `python benchmarks/soak.py{paced}`, {date.today()}, {os.cpu_count()} cores; warm-up "
        f"{warm_up:g} minutes, lives of at least {least:g} minutes after it."
    )


if __name__ == "__main__":
    main()
