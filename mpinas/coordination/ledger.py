"""What is known of a run: a fold over its events. Reads the journal's past and the running job's present alike.

It decides nothing; `coordinator` does. An event that cannot follow what came before raises and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.candidate import Candidate, Reading, Retraining, Verdict
from mpinas.coordination.failures import (
    NO_ANSWER,
    NO_CHECKPOINT,
    NO_DEVICE,
    NOT_RUN,
    RETRAININGS_FAILED_MAX,
    Ending,
    acquit,
    count_ending,
    may_be_tried_again,
)
from mpinas.coordination.front import Fronts
from mpinas.coordination.groups import Group, Occupation, Trainer
from mpinas.coordination.lifecycle import IllegalTransitionError, State, step
from mpinas.coordination.limits import broken_limit
from mpinas.coordination.terms import Terms
from mpinas.errors import ProtocolError, UserError

BASELINE = 0
#: States of candidates that will never be trained (again).
ENDED = (State.REJECTED, State.FAILED)


class Ledger:
    """The fold. `apply` every event once, in order."""

    def __init__(self, terms: Terms | None = None) -> None:
        self.terms = terms or Terms()
        self.candidates: dict[int, Candidate] = {}
        #: What is known of the weights that all subnets share; no candidate, and of no state.
        self.supernet = Candidate(msg.SUPERNET, {})
        #: The trainers of the job that runs now, those of them that have nothing to do, and the groups of the others
        #: by the rank of their leader.
        self.trainers: dict[int, Trainer] = {}
        self.idle: dict[int, Trainer] = {}
        self.groups: dict[int, Group] = {}
        #: Groups whose leaders were told to go, and left what they were at.
        self._left: list[Group] = []
        #: Of those trained on the full budget and within the limits: the measured, and with the predicted.
        self.fronts = Fronts()
        #: Who has a result, after whatever budget.
        self.evaluated: dict[int, None] = {}
        #: By rung below the full budget: who has come so far.
        self.arrived: dict[int, dict[int, None]] = {}
        #: By rung below the full budget: how many have gone on from it.
        self.promoted: dict[int, int] = {}
        #: How many readings and places on the fronts have changed.
        self.changes = 0
        #: How many have been trained on the full budget, and had been when the front last changed.
        self.full_evaluated = 0
        self.progress_at = 0
        #: (candidate, device) whose last measurement is doubtful and may be made again.
        self.unsettled: dict[tuple[int, str], None] = {}
        #: By request, as the bridge knows it: the (candidate, device) that it was last made for.
        self._requests: dict[str, tuple[int, str]] = {}
        #: What the last event did: candidates whose readings or place on a front changed, and those let go of.
        self.touched: set[int] = set()
        self.let_go: set[int] = set()
        #: How many have been measured on every device.
        self.measured = 0
        #: Name and hardware of the device that first answered for each profile.
        self.first_answered: dict[str, tuple[str, str]] = {}
        #: Profiles without a device, and what was said of it.
        self.devices_lost: dict[str, str] = {}
        #: Why nothing new is begun, if it is not.
        self.enough: str | None = None
        self.finished: str | None = None
        self.stop_reason: str | None = None
        #: Task of the run, and whether its data are simulated.
        self.task = ""
        self.simulated = False
        self.occupation = Occupation()
        #: Ids of the candidates that stand in each state, those that came first in front.
        self.standing: dict[State, dict[int, None]] = {state: {} for state in State}
        #: How many trainers the job that runs now has; those that have reported are in `trainers`.
        self.trainers_expected = 0
        #: How many of them have ended, and how many get no orders any more.
        self.stopped = 0
        self.withdrawn = 0
        #: When the job that runs now began, and was asked to end; when the scheduler ends it, if that is known.
        self.began_at = self.stopped_at = 0.0
        self.ends_at: float | None = None

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
        self.touched, self.let_go = set(), set()
        match event:
            case ev.Begun():
                self._begin(event, time)
            case ev.Proposed(candidate, genome):
                if candidate != len(self.candidates):
                    raise ProtocolError(f"candidate {candidate} proposed, but {len(self.candidates)} is next")
                self.candidates[candidate] = Candidate(candidate, genome)
                self.standing[State.PROPOSED][candidate] = None
            case ev.Exported(candidate, size_bytes, parameters):
                it = self.candidates[candidate]
                if it.state is State.PROPOSED:  # else it went on without, by predicted latencies
                    self._step(candidate, State.MEASURING)
                it.size_bytes, it.parameters = size_bytes, parameters
                self.touched.add(candidate)
                self._place(it)
            case ev.Rejected(candidate, reason):
                self._end(candidate, State.REJECTED, reason)
            case ev.GivenUp(candidate, work, reason):
                self._give_up(self.known(candidate), work, reason)
            case ev.ExportFailed(candidate, detail):
                self._not_exported(candidate, f"export: {detail}")
            case ev.Promoted(candidate, rung):
                self._step(candidate, State.READY)
                self.candidates[candidate].rung = rung
                self.promoted[rung - 1] = self.promoted.get(rung - 1, 0) + 1
            case ev.Ordered():
                self._ordered(event, time)
            case ev.Enough(reason):
                self.enough = reason
            case ev.StopRequested(reason):
                self.stop_reason, self.stopped_at = reason, time
            case ev.Finished(reason):
                self.finished = reason
            case _:
                self._from_trainers(event, time)

    def _from_trainers(self, event: ev.Event, time: float) -> None:  # noqa: PLR0912 - one case an event
        """Take in what the trainers report."""
        match event:
            case msg.Ready(rank, host, device):
                self.trainers[rank] = self.idle[rank] = Trainer(rank, host, device)
                if self.occupation.first_ready is None:
                    self.occupation.first_ready = self.occupation.last_report = time
            case msg.Progress():
                group, it = self._outstanding(event), self.known(event.candidate)
                it.epoch = group.epoch = event.epoch
                if event.epoch > it.furthest:
                    it.furthest = event.epoch
                    acquit(it, group.order.work)
            case msg.Evaluated():
                self._evaluated(event, time)
            case msg.Paused():
                self._paused(event, time)
            case msg.EvaluationFailed():
                self._failed(event, time)
            case msg.Assessed() | msg.AssessmentFailed():
                self._assessed(event, time)
            case msg.Retrained() | msg.RetrainingFailed():
                self._retrained(event, time)
            case msg.SupernetTrained(metrics=metrics, train_seconds=seconds):
                self._closed(event, time)
                self.supernet.metrics, self.supernet.train_seconds = metrics, seconds
            case msg.SupernetFailed(reason=reason, detail=detail):
                self._closed(event, time)
                if not may_be_tried_again(self.supernet, "supernet", reason):
                    self.supernet.reason = f"{reason}: {detail}"
            case msg.Withdrawn(rank, detail):
                self._withdrawn(rank, detail)
            case msg.Stopped(rank):
                self._gone(rank)
            case _:
                self._from_device(event)

    def _from_device(self, event: ev.Event) -> None:
        """Take in what a device, or the bridge to it, has said."""
        match event:
            case ev.Measured():
                self._measured(event)
            case ev.MeasurementFailed():
                self._not_measured(event)
            case ev.Predicted(candidate, latencies_s):
                self._predicted(candidate, latencies_s)
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

    def _begin(self, event: ev.Begun, time: float) -> None:
        """A new job: its trainers are not there yet, and nothing is under way any more."""
        died = self.stop_reason is None and self.finished is None
        ending = Ending(died, self.began_at, self.stopped_at, self.ends_at)
        count_ending(ending, [*self.groups.values(), *self._left], (self.supernet, *self.candidates.values()))
        self._take_back(State.TRAINING, State.READY)
        for candidate in self._take_back(State.MEASURING, State.PROPOSED):
            it = self.candidates[candidate]
            self.measured -= it.is_measured_on(self.terms.devices)
            it.readings.clear()
            it.size_bytes = None  # its file may be gone
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
        self.trainers.clear()
        self.idle.clear()
        self.groups.clear()
        self._left.clear()
        self.trainers_expected, self.stopped, self.withdrawn = event.trainers, 0, 0
        self.began_at, self.ends_at = time, event.ends_at
        self.devices_lost.clear()
        self.stop_reason = self.finished = self.enough = self.supernet.reason = None
        self.occupation.new_job(event.trainers)

    def _give_up(self, it: Candidate, work: str, reason: str) -> None:
        acquit(it, work)
        match work:
            case "evaluate":
                self._end(it.id, State.FAILED, reason)
            case "assess":
                it.assessed, it.reason = True, f"assessment: {reason}"
            case "supernet":
                it.reason = reason
            case _:
                it.retrainings_failed = RETRAININGS_FAILED_MAX + 1

    def _take_back(self, left_in: State, to: State) -> list[int]:
        """Candidates that a job has left in one state are in another again, before all there: they came first."""
        back = list(self.standing[left_in])
        for candidate in back:
            self._step(candidate, to)
        self.standing[to] = dict.fromkeys((*back, *self.standing[to]))
        return back

    def _step(self, candidate: int, to: State) -> None:
        it = self.candidates[candidate]
        before = it.state
        step(candidate, it.history, to)
        del self.standing[before][candidate]
        self.standing[to][candidate] = None

    def _end(self, candidate: int, to: State, reason: str) -> None:
        self._step(candidate, to)
        self.candidates[candidate].reason = reason
        self.evaluated.pop(candidate, None)

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
        if before is not None and not before.predicted:
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
        """It fails for it, unless a latency was in use: then that stays, in doubt, or is known to be worth nothing."""
        device = self._asked(event.device)
        it = self.candidates[event.candidate]
        reading = it.readings.get(device)
        why = f"measurement: {event.reason}: {event.detail}"
        if reading is not None and event.reason == NO_ANSWER:
            self._read(it.id, device, replace(reading, given_up=True))
        elif reading is not None and not reading.predicted:
            doubts = (*reading.doubts, f"not measured again ({event.reason})")
            self._read(it.id, device, replace(reading, doubts=doubts, repetition=event.repetition))
        elif reading is not None and it.state in (State.TRAINING, State.EVALUATED):
            self._read(it.id, device, replace(reading, refused=why))
        elif it.state not in (State.REJECTED, State.FAILED):
            self._end(it.id, State.FAILED, why)

    def _not_exported(self, candidate: int, why: str) -> None:
        """It fails for it, or, if it went on without, is known to be of no use on any device."""
        it = self.candidates[candidate]
        if it.state in (State.TRAINING, State.EVALUATED):
            for device, reading in it.readings.items():
                self._read(candidate, device, replace(reading, refused=why))
        elif it.state not in (State.REJECTED, State.FAILED):
            self._end(candidate, State.FAILED, why)

    def _predicted(self, candidate: int, latencies_s: dict[str, tuple[float, float]]) -> None:
        """Until it is measured it goes by these; what is measured already stays."""
        it = self.candidates[candidate]
        for device, (median_s, std_s) in latencies_s.items():
            if self._asked(device) not in it.readings:
                it.readings[device] = Reading({"p50_s": median_s, "p50_std_s": std_s}, repetition=-1, times=0)
                self.unsettled[candidate, device] = None
                self.touched.add(candidate)
                self.changes += 1
        if missing := [device for device in self.terms.devices if device not in it.readings]:
            raise ProtocolError(f"candidate {candidate} was predicted for {', '.join(latencies_s)}, not for {missing}")
        self._step(candidate, State.READY)

    def _judged(self, candidate: int, device: str, verdict: Verdict) -> None:
        it = self.candidates[candidate]
        if it.assessed:  # else it has left the front meanwhile
            it.verdicts[self._asked(device)] = verdict

    def _read(self, candidate: int, device: str, reading: Reading) -> None:
        """Keep a new or changed reading, and draw the conclusions."""
        it = self.candidates[candidate]
        measured_before = it.is_measured_on(self.terms.devices)
        it.readings[device] = reading
        self.measured += it.is_measured_on(self.terms.devices) and not measured_before
        self.changes += 1
        self.touched.add(candidate)
        if reading.request_id:
            self._requests[reading.request_id] = (candidate, device)
        self.unsettled.pop((candidate, device), None)
        if not reading.settled:
            self.unsettled[candidate, device] = None
        self._place(it)
        if it.state is State.MEASURING and all(
            each in it.readings and it.readings[each].settled for each in self.terms.devices
        ):
            self._step(candidate, State.READY)

    def _ordered(self, event: ev.Ordered, time: float) -> None:
        it = self.known(event.candidate)
        if busy := [rank for rank in event.members if rank not in self.idle]:
            raise ProtocolError(f"trainer {busy[0]} has an order outstanding, or is not there, and was given {event}")
        if event.work == "evaluate":
            self._step(event.candidate, State.TRAINING)
            it.rung, it.epoch = event.rung, it.epochs_done
        it.attempts, it.group = event.attempt, event.members[0]
        for rank in event.members:
            self.idle.pop(rank).group = event.members[0]
        self.groups[event.members[0]] = Group(event, time)

    def _outstanding(self, report: msg.Progress | msg.Answer) -> Group:
        """The group whose outstanding order `report` answers."""
        group = self.groups.get(report.group)
        if group is None or (group.order.candidate, group.order.attempt) != (report.candidate, report.attempt):
            raise ProtocolError(f"stale report: {report}, but the outstanding order is {group and group.order}")
        return group

    def _closed(self, report: msg.Answer, time: float) -> ev.Ordered:
        """Free the group; the order that it has answered."""
        group = self._outstanding(report)
        self.occupation.busy_s += len(group.members) * (time - group.since)
        self.occupation.last_report = time
        del self.groups[report.group]
        acquit(self.known(report.candidate), group.order.work)
        for rank in group.members:
            trainer = self.trainers[rank]
            trainer.group = None
            if not trainer.stopped and not trainer.withdrawn:
                self.idle[rank] = trainer
        return group.order

    def _withdrawn(self, rank: int, detail: str) -> None:
        trainer = self.trainers[rank]
        self.withdrawn += not trainer.withdrawn
        trainer.withdrawn = detail
        self.idle.pop(rank, None)

    @property
    def trainers_able(self) -> int:
        """How many trainers the job has that can be given orders, or will be when they are ready."""
        return self.trainers_expected - self.withdrawn

    def _gone(self, rank: int) -> None:
        """A trainer has ended; an order that it had, as well."""
        trainer = self.trainers[rank]
        self.stopped += not trainer.stopped
        trainer.stopped = True
        self.idle.pop(rank, None)
        # A member's last word may come before its leader's: only the leader's own ends the order.
        if rank in self.groups:
            group = self.groups.pop(rank)
            self._left.append(group)
            for member in group.members:
                self.trainers[member].group = None

    def _evaluated(self, report: msg.Evaluated, time: float) -> None:
        order = self._closed(report, time)
        self._step(report.candidate, State.EVALUATED)
        it = self.candidates[report.candidate]
        it.metrics, it.group = report.metrics, report.group
        it.train_seconds = (it.train_seconds or 0.0) + report.train_seconds
        it.rung_errors[order.rung] = report.metrics["error"]
        self.evaluated[it.id] = None
        it.epochs_done = self.terms.rungs[order.rung]
        if order.rung < self.terms.last_rung:
            self.arrived.setdefault(order.rung, {})[it.id] = None
        else:
            self.full_evaluated += 1
        self._place(it)

    def _paused(self, report: msg.Paused, time: float) -> None:
        self._closed(report, time)
        if report.candidate == msg.SUPERNET:
            self.supernet.epochs_done = report.epochs_done
            return
        self._step(report.candidate, State.READY)
        it = self.candidates[report.candidate]
        it.epochs_done = report.epochs_done
        it.train_seconds = (it.train_seconds or 0.0) + report.train_seconds

    def _failed(self, report: msg.EvaluationFailed, time: float) -> None:
        self._closed(report, time)
        it = self.candidates[report.candidate]
        if report.reason == NO_CHECKPOINT:
            self._step(it.id, State.READY)
            it.epochs_done = 0
        elif may_be_tried_again(it, "evaluate", report.reason):
            self._step(it.id, State.READY)
        else:
            self._end(it.id, State.FAILED, f"{report.reason}: {report.detail}")

    def _assessed(self, report: msg.Assessed | msg.AssessmentFailed, time: float) -> None:
        self._closed(report, time)
        it = self.candidates[report.candidate]
        if it.id not in self.finalists():
            return  # it has left the front meanwhile
        if isinstance(report, msg.AssessmentFailed) and may_be_tried_again(it, "assess", report.reason):
            return
        it.assessed = True
        if isinstance(report, msg.Assessed):
            it.test_metrics, it.onnx_difference = report.metrics, report.onnx_difference
            it.expected, it.onnx_sha256 = report.expected, report.onnx_sha256
        else:
            it.reason = f"assessment: {report.reason}: {report.detail}"

    def _retrained(self, report: msg.Retrained | msg.RetrainingFailed, time: float) -> None:
        order = self._closed(report, time)
        it = self.candidates[report.candidate]
        if isinstance(report, msg.RetrainingFailed):
            it.retrainings_failed += report.reason != NO_DEVICE
            return
        it.retrainings.append(Retraining(report.metrics, report.test_metrics, report.train_seconds))
        if order.work == "repeat":
            it.repeats.append(report.metrics["error"])
            self._place(it)

    def _place(self, it: Candidate) -> None:
        """Put a candidate where it belongs now: on the fronts, hidden behind them, or nowhere."""
        if it.state is not State.EVALUATED:
            return
        full = it.rung in it.rung_errors and it.rung == self.terms.last_rung
        refused = any(reading.refused for reading in it.readings.values())
        fits = full and not refused and broken_limit(it, self.terms) is None
        point = self.objectives(it) if fits else None
        moved, changed = self.fronts.place(it.id, point, predicted=it.predicted)
        if moved:
            self.progress_at = self.full_evaluated
        self.touched |= changed
        self.changes += len(changed)
        let_go = {id_ for id_ in changed if not self.is_kept(id_)}
        self.let_go |= let_go
        # Who is not kept any more: files are removed, what was said of them counts no more.
        for left in (self.candidates[id_] for id_ in let_go):
            left.assessed, left.onnx_difference, left.expected = False, None, None
            left.test_metrics, left.verdicts, left.onnx_sha256 = {}, {}, ""

    def known(self, candidate: int) -> Candidate:
        """What is known of a candidate, or of the supernet."""
        return self.supernet if candidate == msg.SUPERNET else self.candidates[candidate]

    def kept(self) -> set[int]:
        """Whose trained model is kept: the front, the baseline, and those that may join once they are measured."""
        return self.fronts.everybody() | {BASELINE} | (set(self.evaluated) if self.terms.keep_all else set())

    def is_kept(self, candidate: int) -> bool:
        """Is its trained model kept?"""
        return (
            candidate in self.fronts or candidate == BASELINE or (self.terms.keep_all and candidate in self.evaluated)
        )

    @property
    def front(self) -> list[int]:
        """Ids of the evaluated, measured and within the limits, that no other dominates; in order of joining."""
        return list(self.fronts.measured.members)

    @property
    def hoped(self) -> list[int]:
        """The front as it would be if all predicted latencies were right."""
        return list(self.fronts.hoped.members)

    @property
    def left_out(self) -> list[int]:
        """Who is hoped for and not on the front, because no device has measured it; by id."""
        return sorted({*self.fronts.hoped.members} - {*self.fronts.measured.members})

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
        return self.terms.values(candidate.error, candidate.latencies_s)

    def measured_by(self, request_ids: Iterable[str]) -> list[tuple[int, str]]:
        """(candidate, device) of the measurements in use that these requests brought."""
        found = {self._requests[id_]: id_ for id_ in request_ids if id_ in self._requests}
        return sorted(
            (candidate, device)
            for (candidate, device), id_ in found.items()
            if (reading := self.candidates[candidate].readings.get(device)) and reading.request_id == id_
        )

    def accepted(self, candidate: Candidate) -> bool | None:
        """Whether every device accepts the trained model; None where one has not said, and none refuses."""
        verdicts = [candidate.verdicts.get(device) for device in self.terms.devices]
        said = [None if verdict is None else verdict.accepted for verdict in verdicts]
        if False in said:
            return False
        return None if None in said else True

    def finalists(self) -> list[int]:
        """Who is judged on the test file: the front and the baseline, or all."""
        if self.terms.keep_all:
            return sorted(self.evaluated)
        baseline = self.candidates.get(BASELINE)
        found = sorted(self.fronts.measured.members)
        if baseline and baseline.state is State.EVALUATED and BASELINE not in self.fronts.measured:
            found.insert(0, BASELINE)
        return found


def answered_by(event: ev.Measured) -> tuple[str, str]:
    """Name and hardware of the device that measured."""
    return str(event.measurement.get("device", "")), str(event.measurement.get("hardware", ""))


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
