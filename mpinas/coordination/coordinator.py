"""Decides what happens next: an event comes in, commands go out. Pure: no clock, no MPI, no socket, no file.

Measure first: a candidate is exported untrained and measured while the groups train others; only what breaks no
limit goes to a group. Enough candidates are kept measured ahead that a group that asks always finds one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.commands import Command, Discard, Export, Judge, Leave, Measure, Record, Release, Send
from mpinas.coordination.ledger import BASELINE, NO_ANSWER, Ledger, answered_by, following
from mpinas.coordination.lifecycle import State
from mpinas.search import GeneticSearch, Genome, SpaceExhaustedError

#: A candidate in whose training so many jobs ended is not tried again.
ATTEMPTS_MAX = 4
#: A device that is there is waited for at least so long after the last answer of any device.
SILENCE_S = 1800.0

_ENDED = (State.REJECTED, State.FAILED)
_FROM_DEVICE = (ev.Measured, ev.MeasurementFailed, ev.Doubted, ev.Judged, ev.JudgingFailed)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to search.

    evaluations: how many candidates to evaluate, the baseline among them; the rejected and the failed are replaced,
    until `proposals_max` have been proposed.
    """

    evaluations: int
    epochs: int
    seed: int
    proposals_max: int
    #: How many candidates to keep measured or on their way there, beyond what the groups train.
    ahead_min: int = 2
    #: How long a job that has searched and trained all it should waits for a device that is not there.
    answer_s: float = 600.0


class Coordinator:
    """Policy over a ledger and a search. `handle` every event of the job; carry out the commands in their order."""

    def __init__(self, plan: Plan, search: GeneticSearch, ledger: Ledger, baseline: Genome) -> None:
        self.plan = plan
        self.search = search
        self.ledger = ledger
        self.baseline = baseline
        self._exhausted = False
        #: What this job has asked of devices: (candidate, device, repetition), None for the trained model's error.
        self._asked: set[tuple[int, str, int | None]] = set()
        #: When each device that is not there was lost, and when nothing but answers was left to wait for.
        self._lost_since: dict[str, float] = {}
        self._waiting_since: float | None = None

    def replay(self, history: Iterable[tuple[float, ev.Event]]) -> None:
        """Take in the journal of earlier jobs; afterwards the search asks what the unbroken run would have asked.

        Raises UserError where an event cannot follow those before it.
        """
        for number, (time, event) in enumerate(history):
            with following(number, event):
                self._apply(event, time, replayed=True)

    def handle(self, event: ev.Event, time: float) -> list[Command]:
        """What follows from `event`, in order. `time` in seconds, the journal's clock."""
        commands: list[Command] = []
        known = self._vetted(event)
        if known is None:
            return commands
        event = known
        self._take(event, time, commands)
        if self.ledger.stop_reason is not None or self.ledger.finished is not None:
            return commands + self._stop(event)
        if isinstance(event, ev.Begun):
            self._take_up(time, commands)
        elif isinstance(event, ev.Exported):
            if self._judge(event.candidate, time, commands):
                self._measure_everywhere(event.candidate, commands)
        elif isinstance(event, (ev.Measured, ev.MeasurementFailed)):
            self._judge(event.candidate, time, commands)
            if self.ledger.candidates[event.candidate].state not in (State.MEASURING, *_ENDED):
                commands.append(Release(event.candidate))
        self._measure_again(commands)
        if not self.ledger.standing[State.FAILED].keys() & {BASELINE}:
            self._order(time, commands)
            self._propose(time, commands)
            self._judge_on_devices(commands)
        self._conclude(time, commands)
        return commands

    def overdue(self, time: float) -> list[ev.Event]:
        """Answers that are not waited for any longer: all else is done, their device was away or silent too long."""
        if self._waiting_since is None or self.ledger.finished is not None or self.ledger.stop_reason is not None:
            return []
        given_up: list[ev.Event] = []
        for candidate, device, repetition in self._awaited():
            lost_s = self._lost_since.get(device)
            limit_s = max(SILENCE_S, self.plan.answer_s) if lost_s is None else self.plan.answer_s
            if time - max(self._waiting_since, lost_s or 0.0) < limit_s:
                continue
            detail = f"no {'answer' if lost_s is None else 'device'} for {limit_s:g} s"
            if repetition is None:
                given_up.append(ev.JudgingFailed(candidate, device, NO_ANSWER, detail))
            else:
                given_up.append(ev.MeasurementFailed(candidate, NO_ANSWER, detail, device, repetition))
        return given_up

    # --- one step each; every one appends to `commands`

    def _vetted(self, event: ev.Event) -> ev.Event | None:
        """The event as it concerns this run, or None if it does not."""
        if self.ledger.finished is not None and isinstance(event, _FROM_DEVICE):
            return None
        match event:
            case ev.Doubted(request_ids, detail):
                candidates = self.ledger.candidates
                ours = [
                    candidates[id_].readings[device].request_id for id_, device in self.ledger.measured_by(request_ids)
                ]
                return ev.Doubted(tuple(dict.fromkeys(ours)), detail) if ours else None
            case ev.Measured(device=device):
                here = answered_by(event)
                first = self.ledger.first_answered.get(device, here)
                if here != first:
                    return replace(event, doubts=(*event.doubts, f"another device: not {first[0]} ({first[1]})"))
        return event

    def _take(self, event: ev.Event, time: float, commands: list[Command]) -> None:
        front_before = self.ledger.front
        before = self._state_of(event)
        self._apply(event, time)
        commands.append(Record(event))
        after = self._state_of(event)
        dropped = {*front_before} - {*self.ledger.front, BASELINE}
        about = _candidate_of(event)
        if isinstance(event, (msg.Evaluated, msg.Assessed)) or (after in _ENDED and after is not before):
            dropped |= {about} - {*self.ledger.front, BASELINE}
        for candidate in sorted(dropped):
            commands.append(Discard(candidate))
            self._asked = {asked for asked in self._asked if asked[0] != candidate}
        match event:
            case ev.DeviceLost(device=device):
                self._lost_since[device] = time
            case ev.DeviceBack(device=device):
                self._lost_since.pop(device, None)
            case ev.Measured() | ev.Judged() if self._waiting_since is not None:
                self._waiting_since = time

    def _apply(self, event: ev.Event, time: float, replayed: bool = False) -> None:
        """Keep ledger and search in step."""
        before = self._state_of(event)
        self.ledger.apply(event, time)
        after = self._state_of(event)
        candidate = _candidate_of(event)
        if after is None or candidate == BASELINE:
            return
        it = self.ledger.candidates[candidate]
        if isinstance(event, ev.Proposed):
            if replayed:
                self.search.restore(it.genome)
        elif after is State.EVALUATED and after is not before:
            self.search.tell(it.genome, self.ledger.objectives(it))
        elif after is State.EVALUATED and isinstance(event, ev.Measured):
            self.search.revise(it.genome, self.ledger.objectives(it))
        elif after in _ENDED and after is not before:
            self.search.tell_failed(it.genome)

    def _state_of(self, event: ev.Event) -> State | None:
        """Where the candidate stands that an event is about; None if it is about none."""
        it = self.ledger.candidates.get(_candidate_of(event))
        return None if it is None else it.state

    def _take_up(self, time: float, commands: list[Command]) -> None:
        """What an earlier job left open: export again (its files may be gone), and judge what it had measured."""
        for candidate in self.ledger.standing[State.PROPOSED]:
            commands.append(Export(candidate, self.ledger.candidates[candidate].genome))
        for candidate in list(self.ledger.standing[State.READY]):
            if self.ledger.candidates[candidate].attempts >= ATTEMPTS_MAX and candidate != BASELINE:
                reason = f"{ATTEMPTS_MAX} jobs ended while it was trained: it may exhaust the memory"
                self._take(ev.Rejected(candidate, reason), time, commands)
            else:
                self._judge(candidate, time, commands)

    def _judge(self, candidate: int, time: float, commands: list[Command]) -> bool:
        """Reject what breaks a limit as soon as that is known; True if it may go on. The baseline always may."""
        it = self.ledger.candidates[candidate]
        if it.state not in (State.MEASURING, State.READY):
            return False
        broken = self.ledger.broken_limit(it, settled_only=True)
        if broken is None or candidate == BASELINE:
            return True
        self._take(ev.Rejected(candidate, broken), time, commands)
        return False

    def _measure_everywhere(self, candidate: int, commands: list[Command]) -> None:
        genome = self.ledger.candidates[candidate].genome
        for device in self.ledger.terms.devices:
            commands.append(Measure(candidate, genome, device))

    def _measure_again(self, commands: list[Command]) -> None:
        """What is doubtful, where it still matters."""
        for candidate, device, repetition in self._doubtful():
            asked = (candidate, device, repetition)
            if asked not in self._asked:
                self._asked.add(asked)
                commands.append(Measure(candidate, self.ledger.candidates[candidate].genome, device, repetition))

    def _judge_on_devices(self, commands: list[Command]) -> None:
        """Every trained finalist on every device, in the precision that it will run in."""
        for candidate, device in self._unjudged():
            if (candidate, device, None) not in self._asked:
                self._asked.add((candidate, device, None))
                commands.append(Judge(candidate, device))

    def _order(self, time: float, commands: list[Command]) -> None:
        """Give every idle group the oldest measured candidate, or once all are trained a finalist to assess."""
        ready = list(self.ledger.standing[State.READY])
        assessable = self._assessable()
        for group in self.ledger.groups.values():
            if group.order is not None or group.stopped:
                continue
            if ready and self.ledger.count(State.EVALUATED, State.TRAINING) < self.plan.evaluations:
                it = self.ledger.candidates[ready.pop(0)]
                attempt = it.attempts + 1
                order: msg.Order = msg.Evaluate(it.id, attempt, it.genome, self.plan.epochs, self._seed(it.id))
                work = "evaluate"
            elif assessable:
                it = self.ledger.candidates[assessable.pop(0)]
                attempt, work = it.attempts, "assess"
                order = msg.Assess(it.id, attempt, it.genome)
            else:
                continue
            self._take(ev.Ordered(it.id, attempt, group.id, work), time, commands)
            commands.append(Send(group.id, order))

    def _propose(self, time: float, commands: list[Command]) -> None:
        while self._wanted() > 0:
            next_ = len(self.ledger.candidates)
            if next_ == BASELINE:
                genome = self.baseline
            else:
                try:
                    genome = self.search.ask()
                except SpaceExhaustedError:
                    self._exhausted = True
                    return
            self._take(ev.Proposed(next_, genome), time, commands)
            commands.append(Export(next_, genome))

    def _conclude(self, time: float, commands: list[Command]) -> None:
        """Finish when nothing is open, nothing more can be proposed and every finalist is assessed and judged."""
        idle = not any(group.order for group in self.ledger.groups.values())
        baseline = self.ledger.candidates[BASELINE]
        if not self.ledger.groups or not idle:
            self._waiting_since = None
        elif baseline.state is State.FAILED:
            self._take(ev.Finished(f"the baseline, to compare with, failed: {baseline.reason}"), time, commands)
            commands += self._stop(None)
        elif self._searched() and not self._assessable():
            if self._awaited():
                self._waiting_since = time if self._waiting_since is None else self._waiting_since
                return
            self._take(ev.Finished(self._reason()), time, commands)
            commands += self._stop(None)

    def _stop(self, event: ev.Event | None) -> list[Command]:
        """Send every group home, once, and leave when all have gone."""
        groups = self.ledger.groups.values()
        all_gone = sum(group.stopped for group in groups) == self.ledger.groups_expected
        if event is None or isinstance(event, ev.StopRequested):
            return [Send(group.id, msg.Stop()) for group in groups]
        if isinstance(event, msg.Ready):  # came late
            return [Send(event.group, msg.Stop())]
        return [Leave()] if isinstance(event, msg.Stopped) and all_gone else []

    # --- small questions

    def _seed(self, candidate: int) -> int:
        """Of a candidate's weights and batches: its own, and the same on every attempt."""
        return (self.plan.seed * 1_000_003 + candidate) % 2**31

    def _open(self) -> int:
        """Candidates on their way to a group."""
        return self.ledger.count(State.PROPOSED, State.MEASURING, State.READY)

    def _wanted(self) -> int:
        """How many more candidates to propose now."""
        if self._exhausted:
            return 0
        ahead = max(self.plan.ahead_min, len(self.ledger.groups)) - self._open()
        under_way = self.ledger.count(State.EVALUATED, State.TRAINING) + self._open()
        left = self.plan.proposals_max - len(self.ledger.candidates)
        return min(ahead, self.plan.evaluations - under_way, left)

    def _searched(self) -> bool:
        """Is there nothing left that could change the front?"""
        enough = self.ledger.count(State.EVALUATED) >= self.plan.evaluations
        return not self.ledger.count(State.TRAINING) and (enough or (not self._open() and self._wanted() <= 0))

    def _assessable(self) -> list[int]:
        """Finalists that no group has assessed or is assessing, once the search is over."""
        if not self._searched():
            return []
        under_way = {group.order.candidate for group in self.ledger.groups.values() if group.order}
        candidates = self.ledger.candidates
        return [id_ for id_ in self.ledger.finalists() if not candidates[id_].assessed and id_ not in under_way]

    def _doubtful(self) -> list[tuple[int, str, int]]:
        """(candidate, device, repetition) of the measurements to make again: of what may still be trained or used."""
        found = []
        for candidate, device in self.ledger.unsettled:
            it = self.ledger.candidates[candidate]
            if it.state not in (*_ENDED, State.EVALUATED) or candidate in self.ledger.finalists():
                found.append((candidate, device, it.readings[device].repetition + 1))
        return found

    def _unjudged(self) -> list[tuple[int, str]]:
        """(finalist, device) where the trained model waits to be judged by the device."""
        candidates = self.ledger.candidates
        return [
            (id_, device)
            for id_ in self.ledger.finalists()
            if candidates[id_].assessed and candidates[id_].expected is not None
            for device in self.ledger.terms.devices
            if device not in candidates[id_].verdicts
        ]

    def _awaited(self) -> list[tuple[int, str, int | None]]:
        """Answers of devices without which the results are not complete, as in `_asked`."""
        finalists = self.ledger.finalists()
        again = [asked for asked in self._doubtful() if asked[0] in finalists]
        return [*again, *((candidate, device, None) for candidate, device in self._unjudged())]

    def _reason(self) -> str:
        evaluated = self.ledger.count(State.EVALUATED)
        done = f"{evaluated} of {self.plan.evaluations} candidates evaluated"
        verdicts = [self.ledger.candidates[id_].verdicts.values() for id_ in self.ledger.finalists()]
        if unasked := sum(any(verdict.accepted is None for verdict in each) for each in verdicts):
            done += f"; {unasked} finalists not checked on every device"
        if evaluated >= self.plan.evaluations:
            return done
        if self._exhausted:
            return f"{done}; the search space holds no more"
        return (
            f"{done}; stopped after {len(self.ledger.candidates)} proposals ({self.ledger.count(State.REJECTED)} "
            f"rejected, {self.ledger.count(State.FAILED)} failed): the limits may be too tight"
        )


def _candidate_of(event: ev.Event) -> int:
    """Whom an event is about; -1 if it is about no candidate."""
    found: int = getattr(event, "candidate", -1)
    return found
