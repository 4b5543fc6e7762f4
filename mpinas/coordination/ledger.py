"""What is known of a run: a fold over its events. Reads the journal's past and the running job's present alike.

It decides nothing; `coordinator` does. An event that cannot follow what came before raises and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.candidate import Candidate, Reading, Verdict
from mpinas.coordination.groups import Group, Occupation
from mpinas.coordination.lifecycle import IllegalTransitionError, State, step
from mpinas.coordination.terms import Terms
from mpinas.errors import ProtocolError, UserError

BASELINE = 0
#: Reason of a failure: no device was there, which is nobody's fault and may be otherwise another time.
NO_ANSWER = "no-answer"
#: Reasons for which no device ever ran a trained model: it is neither accepted nor refused, and a later job asks again.
NOT_RUN = frozenset({NO_ANSWER, "device-lost", "files", "internal", "unsupported"})


class Ledger:
    """The fold. `apply` every event once, in order."""

    def __init__(self, terms: Terms | None = None) -> None:
        self.terms = terms or Terms()
        self.candidates: dict[int, Candidate] = {}
        self.groups: dict[int, Group] = {}
        #: Ids of the evaluated, within the limits, that no other dominates; in order of evaluation.
        self.front: list[int] = []
        #: (candidate, device) whose last measurement is doubtful and may be made again.
        self.unsettled: dict[tuple[int, str], None] = {}
        #: Name and hardware of the device that first answered for each profile.
        self.first_answered: dict[str, tuple[str, str]] = {}
        #: Profiles without a device, and what was said of it.
        self.devices_lost: dict[str, str] = {}
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
        """Apply (time, event) pairs in order.

        Raises
        ------
        UserError
            One cannot follow what came before: the journal they are from was changed by somebody.
        """
        for number, (time, event) in enumerate(history):
            with following(number, event):
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
            case ev.Rejected(candidate, reason):
                self._end(candidate, State.REJECTED, reason)
            case ev.ExportFailed(candidate, detail):
                self._end(candidate, State.FAILED, f"export: {detail}")
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
            case ev.StopRequested(reason):
                self.stop_reason = reason
            case ev.Finished(reason):
                self.finished = reason
            case _:
                self._from_device(event)

    def _from_device(self, event: ev.Event) -> None:
        """Take in what a device, or the bridge to it, has said."""
        match event:
            case ev.Measured():
                self._measured(event)
            case ev.MeasurementFailed():
                self._not_measured(event)
            case ev.Doubted(request_ids, detail):
                for candidate, device in self.measured_by(request_ids):
                    reading = self.candidates[candidate].readings[device]
                    doubts = tuple(dict.fromkeys((*reading.doubts, detail)))
                    self._read(candidate, device, replace(reading, doubts=doubts))
            case ev.Judged(candidate, device, error, expected, precision, by):
                accepted = self.terms.accepts(error, expected)
                self._judged(candidate, device, Verdict(accepted, expected, error, precision, device=by))
            case ev.JudgingFailed(candidate, device, reason, detail):
                refused = None if reason in NOT_RUN else False
                expected = self.candidates[candidate].expected or 0.0
                self._judged(candidate, device, Verdict(refused, expected, reason=reason, detail=detail))
            case ev.DeviceLost(detail, device):
                self.devices_lost[self._asked(device)] = detail
            case ev.DeviceBack(_, device):
                self.devices_lost.pop(self._asked(device), None)

    def _begin(self, event: ev.Begun) -> None:
        """A new job: its groups are not there yet, and nothing is under way any more."""
        for candidate in list(self.standing[State.TRAINING]):
            self._step(candidate, State.READY)
        for candidate in list(self.standing[State.MEASURING]):
            self._step(candidate, State.PROPOSED)
            self.candidates[candidate].readings.clear()
        for it in self.candidates.values():
            it.verdicts = {device: each for device, each in it.verdicts.items() if each.accepted is not None}
            it.readings = {device: replace(each, given_up=False) for device, each in it.readings.items()}
        self.unsettled = {
            (it.id, device): None
            for it in self.candidates.values()
            for device, reading in it.readings.items()
            if not reading.settled
        }
        self.task, self.simulated = event.task, event.simulated
        self.groups.clear()
        self.groups_expected = len(event.groups)
        self.devices_lost.clear()
        self.stop_reason = self.finished = None
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

    def _asked(self, device: str) -> str:
        """The profile that an event is about."""
        device = device or self.terms.devices[0]
        if device not in self.terms.devices:
            raise ProtocolError(f"device {device}: the devices of this run are {', '.join(self.terms.devices)}")
        return device

    def _measured(self, event: ev.Measured) -> None:
        device = self._asked(event.device)
        it = self.candidates[event.candidate]
        before = it.readings.get(device)
        if it.state is State.PROPOSED or (before is not None and event.repetition <= before.repetition):
            raise ProtocolError(f"candidate {it.id}, {it.state}, was not to be measured on {device}: {event}")
        self.first_answered.setdefault(device, answered_by(event))
        reading = Reading(event.measurement, event.doubts, event.repetition, event.request_id, event.factor)
        if before is not None:
            reading = replace(reading, times=before.times + 1)
            if not reading.settled:
                # It settles nothing: what is in use stays in use, or the front would follow what nobody believes.
                reading = replace(
                    before,
                    doubts=reading.doubts,
                    repetition=reading.repetition,
                    times=reading.times,
                    given_up=False,
                )
        self._read(event.candidate, device, reading)

    def _not_measured(self, event: ev.MeasurementFailed) -> None:
        """It fails for it, unless it had been measured before: then that stays, in doubt."""
        device = self._asked(event.device)
        it = self.candidates[event.candidate]
        if device in it.readings:
            reading = it.readings[device]
            if event.reason == NO_ANSWER:
                self._read(it.id, device, replace(reading, given_up=True))
            else:
                doubts = (*reading.doubts, f"not measured again ({event.reason})")
                self._read(it.id, device, replace(reading, doubts=doubts, repetition=event.repetition))
        elif it.state not in (State.REJECTED, State.FAILED):
            self._end(it.id, State.FAILED, f"measurement: {event.reason}: {event.detail}")

    def _judged(self, candidate: int, device: str, verdict: Verdict) -> None:
        it = self.candidates[candidate]
        if it.assessed:  # else it has left the front meanwhile
            it.verdicts[self._asked(device)] = verdict

    def _read(self, candidate: int, device: str, reading: Reading) -> None:
        """Keep a new or changed reading, and draw the conclusions."""
        it = self.candidates[candidate]
        it.readings[device] = reading
        self.unsettled.pop((candidate, device), None)
        if not reading.settled:
            self.unsettled[candidate, device] = None
        if it.state is State.EVALUATED:
            before, self.front = self.front, []
            for each in self.standing[State.EVALUATED]:
                self._join_front(self.candidates[each])
            self._left_front(before)
        elif it.state is State.MEASURING and all(
            each in it.readings and it.readings[each].settled for each in self.terms.devices
        ):
            self._step(candidate, State.READY)

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
        before = self.front
        self._join_front(it)
        self._left_front(before)

    def _assessed(self, report: msg.Assessed | msg.AssessmentFailed, time: float) -> None:
        self._closed(report, time)
        it = self.candidates[report.candidate]
        if it.id not in self.finalists():
            return  # it has left the front meanwhile
        it.assessed = True
        if isinstance(report, msg.Assessed):
            it.test_metrics, it.onnx_difference = report.metrics, report.onnx_difference
            it.expected = report.expected
        else:
            it.reason = f"assessment: {report.reason}: {report.detail}"

    def _join_front(self, new: Candidate) -> None:
        if self.broken_limit(new) is not None:
            return
        mine = self.objectives(new)
        points = {id_: self.objectives(self.candidates[id_]) for id_ in self.front}
        if any(_dominates(point, mine) for point in points.values()):
            return
        self.front = [id_ for id_, point in points.items() if not _dominates(mine, point)] + [new.id]

    def _left_front(self, before: Iterable[int]) -> None:
        """Who was on the front and is not any more: their files are removed, what was said of them counts no more."""
        for it in (self.candidates[id_] for id_ in {*before} - {*self.front, BASELINE}):
            it.assessed, it.onnx_difference, it.expected = False, None, None
            it.test_metrics, it.verdicts = {}, {}

    def count(self, *states: State) -> int:
        """How many candidates stand in one of `states`."""
        return sum(len(self.standing[state]) for state in states)

    @property
    def device_lost(self) -> str | None:
        """What is said of the devices that are not there, in one line; None if all are."""
        if len(self.terms.devices) == 1:
            return self.devices_lost.get(self.terms.devices[0])
        return "; ".join(f"{device}: {detail}" for device, detail in self.devices_lost.items()) or None

    def objectives(self, candidate: Candidate) -> tuple[float, ...]:
        """Objectives of an evaluated candidate, in the order of `terms.objectives`."""
        assert candidate.state is State.EVALUATED
        return self.terms.values(candidate.metrics["error"], candidate.latencies_s)

    def broken_limit(self, candidate: Candidate, *, settled_only: bool = False) -> str | None:
        """The first limit that what is known of `candidate` breaks, in words; None if it breaks none.

        With `settled_only`, measurements that are going to be made again do not count.
        """
        known: list[tuple[str, dict[str, float]]] = [("", dict(candidate.metrics))]
        for name in ("size_bytes", "parameters"):
            if (value := getattr(candidate, name)) is not None:
                known[0][1][name] = value
        for device, reading in candidate.readings.items():
            if reading.settled or not settled_only:
                known.append((f" on {device}" if len(self.terms.devices) > 1 else "", reading.quantities()))
        for name, limit in self.terms.limits.items():
            for where, values in known:
                if (value := values.get(name)) is not None and value > limit:
                    return f"{name}{where} = {value:.4g} is above the limit {limit:.4g}"
        return None

    def measured_by(self, request_ids: Iterable[str]) -> list[tuple[int, str]]:
        """(candidate, device) of the measurements in use that these requests brought."""
        wanted = set(request_ids)
        return [
            (it.id, device)
            for it in self.candidates.values()
            for device, reading in it.readings.items()
            if reading.request_id and reading.request_id in wanted
        ]

    def accepted(self, candidate: Candidate) -> bool | None:
        """Whether every device accepts the trained model; None where one has not said, and none refuses."""
        verdicts = [candidate.verdicts.get(device) for device in self.terms.devices]
        said = [None if verdict is None else verdict.accepted for verdict in verdicts]
        if False in said:
            return False
        return None if None in said else True

    def finalists(self) -> list[int]:
        """Who is judged on the test file: the front and the baseline."""
        baseline = self.candidates.get(BASELINE)
        wanted = {*self.front, BASELINE} if baseline and baseline.state is State.EVALUATED else set(self.front)
        return sorted(wanted)


def answered_by(event: ev.Measured) -> tuple[str, str]:
    """Name and hardware of the device that measured."""
    return str(event.measurement.get("device", "")), str(event.measurement.get("hardware", ""))


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Is `a` nowhere worse than `b`, and somewhere better?"""
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@contextmanager
def following(number: int, event: ev.Event) -> Iterator[None]:
    """What a journal's event does to the state before it; refused in words if it cannot follow.

    Raises
    ------
    UserError
        It cannot.
    """
    try:
        yield
    except (ProtocolError, IllegalTransitionError, LookupError, TypeError, ValueError, AssertionError) as error:
        what = str(error).partition("\n")[0][:200] or type(error).__name__
        raise UserError(
            f"the journal's event {number} ({type(event).__name__}) cannot follow those before it ({what}): "
            "restore the journal and experiment.toml from a copy"
        ) from None
