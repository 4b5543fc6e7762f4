"""What is known of a run: a fold over its events. Reads the journal's past and the running job's present alike.

It decides nothing; `coordinator` does. An event that cannot follow what came before raises and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.lifecycle import State, step
from mpinas.errors import ProtocolError
from mpinas.search import Genome

#: Objectives of the search, all minimised, in the order the search is told them.
OBJECTIVES = ("error", "latency_s")
BASELINE = 0


@dataclass(slots=True)
class Candidate:
    """One network and all that is known of it."""

    id: int
    genome: Genome
    #: States so far, oldest first; never empty.
    history: list[State] = field(default_factory=lambda: [State.PROPOSED])
    #: How often a group was ordered to evaluate it.
    attempts: int = 0
    size_bytes: int | None = None
    parameters: int | None = None
    measurement: dict[str, Any] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    train_seconds: float | None = None
    group: int | None = None
    #: Why it was rejected or failed.
    reason: str | None = None
    assessed: bool = False
    #: Empty where the test file has no labels or the assessment failed (then `reason` says why).
    test_metrics: dict[str, float] = field(default_factory=dict)
    onnx_difference: float | None = None
    epoch: int = 0

    @property
    def state(self) -> State:
        """Where it stands now."""
        return self.history[-1]

    @property
    def latency_s(self) -> float | None:
        """Median latency on the device, in seconds."""
        return None if self.measurement is None else float(self.measurement["p50_s"])

    def objectives(self) -> tuple[float, ...]:
        """(error, latency_s) of an evaluated candidate."""
        assert self.state is State.EVALUATED
        assert self.latency_s is not None
        return (self.metrics["error"], self.latency_s)


@dataclass(slots=True)
class Group:
    """One group of trainers of the job that runs now."""

    id: int
    members: tuple[int, ...]
    host: str
    device: str
    #: The one order that is outstanding, if any, and since when (seconds).
    order: ev.Ordered | None = None
    since: float = 0.0
    stopped: bool = False


@dataclass(slots=True)
class Occupation:
    """Trainer seconds used and there, over all jobs of the run: the trainers' utilisation."""

    busy_s: float = 0.0
    past_s: float = 0.0
    trainers: int = 0
    first_ready: float | None = None
    last_report: float = 0.0

    @property
    def utilisation(self) -> float | None:
        """Share of the trainers' time, from the first ready group to the last report, that was spent on orders."""
        available = self.past_s + self._span()
        return self.busy_s / available if available > 0 else None

    def _span(self) -> float:
        return 0.0 if self.first_ready is None else self.trainers * (self.last_report - self.first_ready)

    def new_job(self, trainers: int) -> None:
        """Close the account of the job before."""
        self.past_s += self._span()
        self.trainers, self.first_ready, self.last_report = trainers, None, 0.0


class Ledger:
    """The fold. `apply` every event once, in order."""

    def __init__(self, limits: dict[str, float] | None = None) -> None:
        self.limits = dict(limits or {})
        self.candidates: dict[int, Candidate] = {}
        self.groups: dict[int, Group] = {}
        #: Ids of the evaluated, within the limits, that no other dominates; in order of evaluation.
        self.front: list[int] = []
        self.device_lost: str | None = None
        self.finished: str | None = None
        self.stop_reason: str | None = None
        #: Task of the run, and whether its data are simulated.
        self.task = ""
        self.simulated = False
        self.occupation = Occupation()
        #: Ids of the candidates that stand in each state, those that came first in front.
        self.standing: dict[State, dict[int, None]] = {state: {} for state in State}
        #: How many groups the job that runs now has; those that have reported are in `groups`.
        self.groups_expected = 0

    def apply_all(self, history: Iterable[tuple[float, ev.Event]]) -> Ledger:
        """Apply (time, event) pairs in order."""
        for time, event in history:
            self.apply(event, time)
        return self

    def apply(self, event: ev.Event, time: float) -> None:  # noqa: PLR0912 - one case an event
        """Take one event in. `time` in seconds, never decreasing within a job."""
        match event:
            case ev.Begun():
                self._begin(event)
            case ev.Proposed(candidate, genome):
                if candidate != len(self.candidates):
                    raise ProtocolError(f"candidate {candidate} proposed, but {len(self.candidates)} is next")
                self.candidates[candidate] = Candidate(candidate, genome)
                self.standing[State.PROPOSED][candidate] = None
            case ev.Exported(candidate, size_bytes, parameters):
                self._step(candidate, State.MEASURING)
                it = self.candidates[candidate]
                it.size_bytes, it.parameters = size_bytes, parameters
            case ev.Measured(candidate, measurement):
                self._step(candidate, State.READY)
                self.candidates[candidate].measurement = measurement
            case ev.Rejected(candidate, reason):
                self._end(candidate, State.REJECTED, reason)
            case ev.ExportFailed(candidate, detail):
                self._end(candidate, State.FAILED, f"export: {detail}")
            case ev.MeasurementFailed(candidate, reason, detail):
                self._end(candidate, State.FAILED, f"measurement: {reason}: {detail}")
            case msg.Ready():
                self.groups[event.group] = Group(event.group, event.members, event.host, event.device)
                if self.occupation.first_ready is None:
                    self.occupation.first_ready = self.occupation.last_report = time
            case ev.Ordered():
                self._ordered(event, time)
            case msg.Progress():
                self._outstanding(event)
                self.candidates[event.candidate].epoch = event.epoch
            case msg.Evaluated():
                self._evaluated(event, time)
            case msg.EvaluationFailed():
                self._outstanding(event)
                self._end(event.candidate, State.FAILED, f"{event.reason}: {event.detail}")
                self._closed(event, time)
            case msg.Assessed() | msg.AssessmentFailed():
                self._assessed(event, time)
            case msg.Stopped(group):
                self.groups[group].stopped = True
                self.groups[group].order = None
            case ev.DeviceLost(detail):
                self.device_lost = detail
            case ev.DeviceBack():
                self.device_lost = None
            case ev.StopRequested(reason):
                self.stop_reason = reason
            case ev.Finished(reason):
                self.finished = reason

    def _begin(self, event: ev.Begun) -> None:
        """A new job: its groups are not there yet, and nothing is under way any more."""
        for candidate in list(self.standing[State.TRAINING]):
            self._step(candidate, State.READY)
        for candidate in list(self.standing[State.MEASURING]):
            self._step(candidate, State.PROPOSED)
        self.task, self.simulated = event.task, event.simulated
        self.groups.clear()
        self.groups_expected = len(event.groups)
        self.device_lost = self.stop_reason = self.finished = None
        self.occupation.new_job(sum(len(members) for members in event.groups))

    def _step(self, candidate: int, to: State) -> None:
        it = self.candidates[candidate]
        before = it.state
        step(candidate, it.history, to)
        del self.standing[before][candidate]
        self.standing[to][candidate] = None

    def _end(self, candidate: int, to: State, reason: str) -> None:
        self._step(candidate, to)
        self.candidates[candidate].reason = reason

    def _ordered(self, event: ev.Ordered, time: float) -> None:
        group, it = self.groups[event.group], self.candidates[event.candidate]
        if group.order is not None:
            raise ProtocolError(f"group {event.group} has {group.order} outstanding and was given {event}")
        if event.work == "evaluate":
            self._step(event.candidate, State.TRAINING)
            it.attempts, it.group, it.epoch = event.attempt, event.group, 0
        group.order, group.since = event, time

    def _outstanding(
        self,
        report: msg.Progress | msg.Evaluated | msg.EvaluationFailed | msg.Assessed | msg.AssessmentFailed,
    ) -> Group:
        """The group whose outstanding order `report` answers."""
        group = self.groups.get(report.group)
        order = group.order if group else None
        if group is None or order is None or (order.candidate, order.attempt) != (report.candidate, report.attempt):
            raise ProtocolError(f"stale report: {report}, but the outstanding order is {order}")
        return group

    def _closed(
        self, report: msg.Evaluated | msg.EvaluationFailed | msg.Assessed | msg.AssessmentFailed, time: float
    ) -> None:
        group = self._outstanding(report)
        self.occupation.busy_s += len(group.members) * (time - group.since)
        self.occupation.last_report = time
        group.order = None

    def _evaluated(self, report: msg.Evaluated, time: float) -> None:
        self._outstanding(report)
        self._step(report.candidate, State.EVALUATED)
        it = self.candidates[report.candidate]
        it.metrics, it.train_seconds, it.group = report.metrics, report.train_seconds, report.group
        self._closed(report, time)
        if self.broken_limit(it) is None:
            self._join_front(it)

    def _assessed(self, report: msg.Assessed | msg.AssessmentFailed, time: float) -> None:
        self._closed(report, time)
        it = self.candidates[report.candidate]
        it.assessed = True
        if isinstance(report, msg.Assessed):
            it.test_metrics, it.onnx_difference = report.metrics, report.onnx_difference
        else:
            it.reason = f"assessment: {report.reason}: {report.detail}"

    def _join_front(self, new: Candidate) -> None:
        mine = new.objectives()
        points = {id_: self.candidates[id_].objectives() for id_ in self.front}
        if any(_dominates(point, mine) for point in points.values()):
            return
        self.front = [id_ for id_, point in points.items() if not _dominates(mine, point)] + [new.id]

    def count(self, *states: State) -> int:
        """How many candidates stand in one of `states`."""
        return sum(len(self.standing[state]) for state in states)

    def broken_limit(self, candidate: Candidate) -> str | None:
        """The first limit that what is known of `candidate` breaks, in words; None if it breaks none."""
        known: dict[str, float] = {**(candidate.measurement or {}), **candidate.metrics}
        known |= {"size_bytes": candidate.size_bytes, "parameters": candidate.parameters}  # type: ignore[dict-item]
        known["latency_s"] = candidate.latency_s  # type: ignore[assignment]
        for name, limit in self.limits.items():
            value = known.get(name)
            if value is not None and value > limit:
                return f"{name} = {value:.4g} is above the limit {limit:.4g}"
        return None

    def finalists(self) -> list[int]:
        """Who is judged on the test file: the front and the baseline."""
        baseline = self.candidates.get(BASELINE)
        wanted = {*self.front, BASELINE} if baseline and baseline.state is State.EVALUATED else set(self.front)
        return sorted(wanted)


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Is `a` nowhere worse than `b`, and somewhere better?"""
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b
