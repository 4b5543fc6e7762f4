"""Decides what happens next: an event comes in, commands go out. Pure: no clock, no MPI, no socket, no file.

Measure first: a candidate is exported untrained and measured while the groups train others; only what breaks no
limit goes to a group. Enough candidates are kept measured ahead that a group that asks always finds one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.ledger import BASELINE, Ledger
from mpinas.coordination.lifecycle import State
from mpinas.search import GeneticSearch, Genome, SpaceExhaustedError

#: A candidate in whose training so many jobs ended is not tried again.
ATTEMPTS_MAX = 4

# --- commands: what the shell has to do


@dataclass(frozen=True, slots=True)
class Record:
    """Append this event to the journal, before anything that follows from it."""

    event: ev.Event


@dataclass(frozen=True, slots=True)
class Export:
    """Write this candidate, untrained, as an artifact; answer with Exported or ExportFailed."""

    candidate: int
    genome: Genome


@dataclass(frozen=True, slots=True)
class Measure:
    """Have the device measure the artifact; answer with Measured or MeasurementFailed."""

    candidate: int


@dataclass(frozen=True, slots=True)
class Send:
    """Give a group an order."""

    group: int
    order: msg.Order


@dataclass(frozen=True, slots=True)
class Discard:
    """This candidate's files are of no more use."""

    candidate: int


@dataclass(frozen=True, slots=True)
class Leave:
    """All groups have ended; the loop can, too."""


Command = Record | Export | Measure | Send | Discard | Leave


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


class Coordinator:
    """Policy over a ledger and a search. `handle` every event of the job; carry out the commands in their order."""

    def __init__(self, plan: Plan, search: GeneticSearch, ledger: Ledger, baseline: Genome) -> None:
        self.plan = plan
        self.search = search
        self.ledger = ledger
        self.baseline = baseline
        self._exhausted = False

    def replay(self, history: Iterable[tuple[float, ev.Event]]) -> None:
        """Take in the journal of earlier jobs; afterwards the search asks what the unbroken run would have asked."""
        for time, event in history:
            self._apply(event, time, replayed=True)

    def handle(self, event: ev.Event, time: float) -> list[Command]:
        """What follows from `event`, in order. `time` in seconds, the journal's clock."""
        commands: list[Command] = []
        self._take(event, time, commands)
        if self.ledger.stop_reason is not None or self.ledger.finished is not None:
            return commands + self._stop(event)
        if isinstance(event, ev.Begun):
            self._take_up(time, commands)
        elif isinstance(event, (ev.Exported, ev.Measured)):
            within = self._judge(event.candidate, time, commands)
            if within and isinstance(event, ev.Exported):
                commands.append(Measure(event.candidate))
        if not self.ledger.standing[State.FAILED].keys() & {BASELINE}:
            self._order(time, commands)
            self._propose(time, commands)
        self._conclude(time, commands)
        return commands

    # --- one step each; every one appends to `commands`

    def _take(self, event: ev.Event, time: float, commands: list[Command]) -> None:
        front_before = self.ledger.front
        self._apply(event, time)
        commands.append(Record(event))
        if isinstance(event, (ev.Rejected, ev.ExportFailed)):
            commands.append(Discard(event.candidate))
        elif isinstance(event, msg.Evaluated):
            dropped = {*front_before, event.candidate} - {*self.ledger.front, BASELINE}
            commands += [Discard(candidate) for candidate in sorted(dropped)]

    def _apply(self, event: ev.Event, time: float, replayed: bool = False) -> None:
        """Keep ledger and search in step."""
        self.ledger.apply(event, time)
        match event:
            case ev.Proposed(candidate, genome) if replayed and candidate != BASELINE:
                self.search.restore(genome)
            case msg.Evaluated(candidate=candidate) if candidate != BASELINE:
                it = self.ledger.candidates[candidate]
                self.search.tell(it.genome, it.objectives())
            case (
                ev.Rejected(candidate=candidate)
                | ev.ExportFailed(candidate=candidate)
                | ev.MeasurementFailed(candidate=candidate)
                | msg.EvaluationFailed(candidate=candidate)
            ) if candidate != BASELINE:
                self.search.tell_failed(self.ledger.candidates[candidate].genome)

    def _take_up(self, time: float, commands: list[Command]) -> None:
        """What an earlier job left open: export again (its files may be gone), and judge by the limits of today."""
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
        broken = self.ledger.broken_limit(self.ledger.candidates[candidate])
        if broken is None or candidate == BASELINE:
            return True
        self._take(ev.Rejected(candidate, broken), time, commands)
        return False

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
        """Finish when nothing is open, nothing more can be proposed and every finalist is assessed."""
        idle = not any(group.order for group in self.ledger.groups.values())
        baseline = self.ledger.candidates[BASELINE]
        if baseline.state is State.FAILED and self.ledger.groups and idle:
            self._take(ev.Finished(f"the baseline, to compare with, failed: {baseline.reason}"), time, commands)
            commands += self._stop(None)
        elif self.ledger.groups and idle and self._searched() and not self._assessable():
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

    def _reason(self) -> str:
        evaluated = self.ledger.count(State.EVALUATED)
        done = f"{evaluated} of {self.plan.evaluations} candidates evaluated"
        if evaluated >= self.plan.evaluations:
            return done
        if self._exhausted:
            return f"{done}; the search space holds no more"
        return (
            f"{done}; stopped after {len(self.ledger.candidates)} proposals ({self.ledger.count(State.REJECTED)} "
            f"rejected, {self.ledger.count(State.FAILED)} failed): the limits may be too tight"
        )
