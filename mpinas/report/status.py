"""How a run is getting on, from any machine that sees its folder: reads only, and asks Slurm what it has in its queue.

Must not know MPI, nor write anything: the run's job may be at work. Its journal may end in half a line.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mpinas.config import Experiment
from mpinas.coordination import events as ev
from mpinas.coordination.ledger import Ledger, following
from mpinas.coordination.lifecycle import State
from mpinas.errors import UserError
from mpinas.history.journal import Reader
from mpinas.history.lock import JobState, Life, Owner, Sight, life_of, look, slurm_job_state
from mpinas.history.run_folder import RunFolder, terms_of
from mpinas.report.live import withdrawn

#: After so many seconds without a beat a job is taken for dead, unless Slurm says otherwise. Several beats: clocks of
#: two machines differ, and a network file system may tell late.
SILENT_S = 60.0
#: Seconds between two looks of `watch`.
LOOK_S = 5.0
#: With less room than that a job has most likely ended for want of it.
FULL_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Queued:
    """A job in Slurm's queue; `start` and `reason` in Slurm's words."""

    job: str
    state: str
    start: str
    reason: str


@dataclass(frozen=True, slots=True)
class UnderWay:
    """An order that is, or was, carried out. Epoch 0 of 0 where the work has none."""

    work: str
    candidate: int
    epoch: int
    epochs: int
    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """All that is known. Times are Unix times, in seconds.

    Attributes
    ----------
    state
        "queued", "starting", "running", "stopped" (it ended in peace and is not finished), "died", "finished", or
        "damaged" (`reason` says what).
    owner
        The job that holds the run's lock, or did when it died; `beat` is its last sign of life.
    evaluations
        How many candidates the search is to evaluate; `evaluated`: so far.
    under_way
        At this moment, or when the job died.
    withdrawn
        Trainers whose GPU failed, in words.
    per_hour, left_s
        Evaluations, by the rate of the job that runs; seconds until all are done, at this rate.
    ends_at
        When the scheduler ends the job.
    """

    run: str
    time: float
    state: str
    reason: str = ""
    owner: Owner | None = None
    beat: float | None = None
    task: str = ""
    simulated: bool = False
    evaluations: int = 0
    evaluated: int = 0
    rejected: int = 0
    failed: int = 0
    front: int = 0
    under_way: Sequence[UnderWay] = ()
    devices_lost: str | None = None
    withdrawn: Sequence[str] = ()
    per_hour: float | None = None
    left_s: float | None = None
    ends_at: float | None = None
    queue: Sequence[Queued] = ()

    @property
    def over(self) -> bool:
        """Whether nothing happens any more before somebody does something."""
        return self.state in ("stopped", "died", "finished", "damaged")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


@dataclass(slots=True)
class _Past:
    """What the journal has told so far."""

    reader: Reader
    ledger: Ledger
    experiment: Experiment
    #: When the job that wrote last began, and how many had been evaluated before.
    began: float | None = None
    before: int = 0
    events: int = 0

    def read_on(self) -> None:
        for when, event in self.reader.more():
            if isinstance(event, ev.Begun):
                self.began, self.before = when, len(self.ledger.evaluated)
            with following(self.events, event):
                self.ledger.apply(event, when)
            self.events += 1

    def is_of(self, sight: Sight) -> bool:
        """Whether it is the job that holds the lock that wrote last, and not one before it."""
        return sight.owner is None or (self.began is not None and self.began >= sight.owner.since)


class Observer:
    """Looks at a run, again and again if need be; what it has read once it does not read again.

    Parameters
    ----------
    queue
        Jobs in Slurm's queue by their name.
    job_state
        What Slurm says of a job by its id.
    """

    def __init__(
        self,
        path: Path,
        queue: Callable[[str], list[Queued]] | None = None,
        job_state: JobState | None = None,
    ) -> None:
        self._path = path
        self._queue = queue or queued_jobs
        self._job_state = job_state or slurm_job_state
        self._past: _Past | None = None

    def look(self, now: float) -> Status:
        """The status at this moment (Unix time). Raises UserError where there is no run, and none is queued."""
        queue = self._queue(f"mpinas-{os.path.basename(os.path.abspath(self._path))}")  # as job scripts name the job
        if not self._path.exists() and queue:
            return self._unbegun(queue, now)
        folder = RunFolder.existing(self._path)
        try:
            sight = look(folder.lock_file)
            if not folder.journal_file.exists() and sight is None:
                folder.check_journal(begun=False)
                return self._unbegun(queue, now)
            past = self._read(folder)
            if sight is None:
                folder.check_journal(begun=past.events > 0)
        except UserError as error:
            return Status(run=str(self._path), time=now, state="damaged", reason=str(error), queue=queue)
        return self._of(past, sight, queue, now)

    def _read(self, folder: RunFolder) -> _Past:
        past, self._past = self._past, None
        if past is not None:
            with contextlib.suppress(UserError):  # the file may have been put in the place of another: from the start
                past.read_on()
                self._past = past
                return past
        experiment = folder.experiment()
        past = _Past(Reader(folder.journal_file), Ledger(terms_of(experiment)), experiment)
        if folder.journal_file.exists():
            past.read_on()
        self._past = past
        return past

    def _unbegun(self, queue: Sequence[Queued], now: float) -> Status:
        running = any(each.state == "RUNNING" for each in queue)
        state = "starting" if running else "queued" if queue else "stopped"
        return Status(run=str(self._path), time=now, state=state, queue=queue,
                      reason="" if queue else "no job has begun on it")  # fmt: skip

    def _of(self, past: _Past, sight: Sight | None, queue: Sequence[Queued], now: float) -> Status:
        ledger = past.ledger
        alive = sight is not None and is_alive(sight, now, self._job_state)
        if not alive and not ledger.finished and any(each.state == "RUNNING" for each in queue):
            sight, state, reason = None, "starting", ""
        else:
            state, reason = self._state(past, sight, alive, queue, full=shutil.disk_usage(self._path).free < FULL_BYTES)
        evaluations, evaluated = past.experiment.search.evaluations, len(ledger.evaluated)
        per_hour = None
        if state == "running" and past.began is not None and evaluated > past.before and now > past.began:
            per_hour = 3600 * (evaluated - past.before) / (now - past.began)
        return Status(
            run=str(self._path),
            time=now,
            state=state,
            reason=reason,
            owner=sight.owner if sight else None,
            beat=sight.beat if sight else None,
            task=ledger.task,
            simulated=ledger.simulated,
            evaluations=evaluations,
            evaluated=evaluated,
            rejected=ledger.count(State.REJECTED),
            failed=ledger.count(State.FAILED),
            front=len(ledger.front),
            under_way=_under_way(ledger, sight.beat if state == "died" else now) if sight and past.is_of(sight) else (),
            devices_lost=ledger.device_lost,
            withdrawn=withdrawn(ledger),
            per_hour=per_hour,
            left_s=None if per_hour is None else 3600 * max(0, evaluations - evaluated) / per_hour,
            ends_at=ledger.ends_at if state == "running" else None,
            queue=queue,
        )

    @staticmethod
    def _state(
        past: _Past, sight: Sight | None, alive: bool, queue: Sequence[Queued], *, full: bool
    ) -> tuple[str, str]:  # fmt: skip
        """(state, why)."""
        ledger = past.ledger
        if sight is not None and alive and not past.is_of(sight):
            return "starting", ""
        if ledger.finished:
            return "finished", ledger.finished
        if alive:
            return ("running" if ledger.trainers else "starting"), ledger.stop_reason or ""
        if sight is not None:
            asked = f"; it had been asked to end ({ledger.stop_reason})" if ledger.stop_reason else ""
            state, why = "died", f"no sign of life, and no end in the journal{asked}"
        else:
            state, why = "stopped", ledger.stop_reason or "its job ended before the search did; see what it printed"
        if full:
            why += "; its file system is full"
        return ("queued", f"the job before: {state} ({why})") if queue else (state, why)


def is_alive(sight: Sight, now: float, job_state: JobState = slurm_job_state) -> bool:
    """Whether the job that left this lock file still runs, as far as can be told without waiting."""
    owner, silent = sight.owner, now - sight.beat >= SILENT_S
    if owner is None:
        return not silent
    life = life_of(owner, Owner.myself(now), job_state)
    if life is Life.UNKNOWN and silent and owner.job:
        return job_state(owner.job) == "RUNNING"  # perhaps on another cluster, but then it is not known here
    return life is Life.ALIVE or (life is Life.UNKNOWN and not silent)


def _under_way(ledger: Ledger, now: float) -> list[UnderWay]:
    found = []
    for group in ledger.groups.values():
        order, rungs = group.order, ledger.terms.rungs
        trained = order.work == "evaluate"
        hosts = dict.fromkeys(ledger.trainers[rank].host for rank in group.members)
        epoch, epochs = (ledger.known(order.candidate).epoch, rungs[order.rung]) if trained else (0, 0)
        found.append(
            UnderWay(order.work, order.candidate, epoch, epochs, tuple(group.members), tuple(hosts), now - group.since)
        )
    return found


def queued_jobs(name: str) -> list[Queued]:
    """This user's jobs of this name, as squeue tells them; none where there is no Slurm."""
    try:
        told = subprocess.run(
            ["squeue", "--me", "--noheader", "--name", name, "--format", "%i %T %S %r"],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split(maxsplit=3) for line in told.stdout.splitlines()] if told.returncode == 0 else []
    return [Queued(*row) for row in rows if len(row) == 4]


def watch(
    path: Path,
    show: Callable[[Status], None],
    clock: Callable[[], float] = time.time,
    wait: Callable[[float], None] = time.sleep,
) -> Status | None:
    """Look and show until the run is over, or somebody interrupts; what was seen last. Raises UserError as `look`."""
    observer, status = Observer(path), None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            status = observer.look(clock())
            show(status)
            if status.over:
                break
            wait(LOOK_S)
    return status
