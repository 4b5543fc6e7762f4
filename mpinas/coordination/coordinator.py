"""Decides what happens next: an event comes in, commands go out. Pure: no clock, no MPI, no socket, no file.

Measure first: a candidate is exported untrained and measured while the trainers are at work on others; only what
breaks no limit is trained. Trainers never wait for a device: where none answers in time a candidate goes by predicted
latencies until it is measured, and nobody is on the front by a prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.agenda import Agenda
from mpinas.coordination.budgets import Curves
from mpinas.coordination.candidate import Candidate
from mpinas.coordination.commands import (
    Command,
    Discard,
    DropCheckpoint,
    Export,
    Judge,
    Leave,
    Measure,
    Record,
    Release,
    Send,
)
from mpinas.coordination.failures import FAILURES_MAX, KILLED, NO_ANSWER
from mpinas.coordination.farewell import Farewell
from mpinas.coordination.forecast import Forecast
from mpinas.coordination.groups import PAUSABLE, choose, group_size, to_enlarge
from mpinas.coordination.ledger import BASELINE, ENDED, Ledger, answered_by, following
from mpinas.coordination.lifecycle import State
from mpinas.coordination.limits import broken_limit
from mpinas.coordination.pipeline import Pipeline
from mpinas.coordination.plan import Plan
from mpinas.coordination.teaching import Teaching
from mpinas.search import Genome, Search, SpaceExhaustedError

#: A device that is there is waited for at least so long after the last answer of any device.
SILENCE_S = 1800.0

Work = msg.Evaluate | msg.Assess | msg.Retrain | msg.TrainSupernet
#: What a job that ends does to its children, and would be held against candidates.
_BY_CHILDREN = (ev.ExportFailed, ev.MeasurementFailed, ev.JudgingFailed)
_FROM_DEVICE = (ev.Measured, ev.MeasurementFailed, ev.Doubted, ev.Judged, ev.JudgingFailed)


class Coordinator:
    """Policy over a ledger and a search. `handle` every event of the job; carry out the commands in their order.

    `handle` is quick. What takes thought (a proposal, an order of who is next) is done by `idle`, to be called whenever
    no event waits, a piece at a time.
    """

    def __init__(self, plan: Plan, search: Search, ledger: Ledger, baseline: Genome) -> None:
        self.plan = plan
        self.search = search
        self.ledger = ledger
        self.baseline = baseline
        curves = Curves()
        self.agenda = Agenda(plan, ledger, curves)
        self.pipeline = Pipeline(plan.exporters)
        self.forecast = Forecast(self.agenda, self.pipeline, search.space)
        self.farewell = Farewell(ledger)
        self._teaching = Teaching(search, ledger, curves)
        #: Genomes to start with that have not been proposed.
        self._start = list(plan.start)
        #: Models under judgement on a device, in this job.
        self._judging: set[tuple[int, str]] = set()
        #: When each device that is not there was lost, and when nothing but answers was left to wait for.
        self._lost_since: dict[str, float] = {}
        self._waiting_since: float | None = None
        self._began: float | None = None
        #: Leaders of groups that have been asked to make way for larger ones.
        self._pausing: set[int] = set()
        #: What there was to rank when it was done last.
        self._ranked_of: tuple[int, int] = (0, 0)

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
        if self._ends():
            self._end(event, time, commands)
            return commands
        match event:
            case ev.Begun():
                self._take_up(time, commands)
            case ev.Exported(candidate):
                if self._judge(candidate, time, commands):
                    self._measure(candidate)
                else:
                    commands.append(Release(candidate))
            case ev.Measured(candidate) | ev.MeasurementFailed(candidate):
                self._judge(candidate, time, commands)
                it = self.ledger.candidates[candidate]
                if it.state not in (State.MEASURING, *ENDED) and it.is_measured_on(self.ledger.terms.devices):
                    commands.append(Release(candidate))
                if not it.predicted:
                    self.agenda.set_aside.discard(candidate)
        if isinstance(event, (ev.Begun, msg.Evaluated, msg.Retrained, ev.Measured)):
            self._close_in(time, commands)
        if not isinstance(event, msg.Progress) and not self.agenda.hopeless():
            self._order(time, commands)
        self._conclude(time, commands)
        return commands

    def idle(self, time: float) -> list[Command]:
        """A piece of what can be done while no event waits; nothing if there is nothing to do."""
        commands: list[Command] = []
        if self._began is None:
            return commands
        if self._ends():
            self._dismiss_in_time(time, commands)
            return commands
        for step in (self._end_by_time, self._promote, self._propose, self._feed, self._judge_on_devices, self._rank,
                     self._predict, self._enlarge):  # fmt: skip
            step(time, commands)
            if commands:
                break
        if not self.agenda.hopeless():
            self._order(time, commands)
        self._conclude(time, commands)
        return commands

    def due(self, time: float) -> float | None:
        """When, after `time`, `idle` or `overdue` may have something to do though no event has come; None: never."""
        times = [] if (leave_s := self.farewell.due()) is None else [leave_s]
        if self._ends():
            return min((each for each in times if each > time), default=None)
        if (next_s := self.forecast.next_s()) is not None:
            times.append(next_s)
        if self._began is not None and self.plan.limit_s and self.ledger.enough is None:
            times.append(self._began + self.plan.limit_s)
        if self._waiting_since is not None:
            times += [until for _, until in self._limits()]
        return min((each for each in times if each > time), default=None)

    def time_over(self, time: float) -> list[ev.Event]:
        """That the job should end now, by itself; at most once."""
        if self._ends() or self._began is None:
            return []
        nothing_else = self.agenda.to_begin() == 0 if self.farewell.refused else False
        reason = self.farewell.reason_to_end(time, nothing_else=nothing_else)
        return [] if reason is None else [ev.StopRequested(reason)]

    def overdue(self, time: float) -> list[ev.Event]:
        """Answers that are not waited for any longer: all else is done, their device was away or silent too long."""
        if self._waiting_since is None or self._ends():
            return []
        given_up: list[ev.Event] = []
        for (candidate, device, repetition), until in self._limits():
            if time < until:
                continue
            if candidate in self.agenda.set_aside:
                self.agenda.set_aside_lost = True  # nothing is known against it: a later job may ask
                continue
            lost = device in self._lost_since
            detail = f"no {'device' if lost else 'answer'} for {self._answer_limit_s(device):g} s"
            if repetition is None:
                given_up.append(ev.JudgingFailed(candidate, device, NO_ANSWER, detail))
            else:
                given_up.append(ev.MeasurementFailed(candidate, NO_ANSWER, detail, device, repetition))
        return given_up

    # --- taking events in

    def _vetted(self, event: ev.Event) -> ev.Event | None:
        """The event as it concerns this run, or None if it does not."""
        if self.ledger.finished is not None and isinstance(event, _FROM_DEVICE):
            return None
        if self._ends() and isinstance(event, _BY_CHILDREN):
            return None  # the next job tries it again
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
        """Take an event in, write it down, and let go of what it has made useless."""
        before = self._state_of(event)
        ended = self.ledger.groups.get(event.group) if isinstance(event, msg.Answer) else None
        self._apply(event, time)
        self.farewell.watch(event, time, ended)
        commands.append(Record(event))
        after = self._state_of(event)
        about = _candidate_of(event)
        dropped = set(self.ledger.let_go)
        if isinstance(event, (msg.Evaluated, msg.Assessed)) and self.agenda.went_all_the_way(about):
            dropped.add(about)
            if isinstance(event, msg.Evaluated):
                commands.append(DropCheckpoint(about))
        if after in ENDED and after is not before:
            dropped.add(about)
            self.agenda.set_aside.discard(about)
        dropped = {candidate for candidate in dropped if not self.ledger.is_kept(candidate)}
        for candidate in sorted(dropped):
            commands.append(Discard(candidate))
            self.pipeline.drop(candidate)
            self._judging.difference_update([(candidate, device) for device in self.ledger.terms.devices])
        if isinstance(event, msg.Answer):
            self._pausing.discard(event.group)
        match event:
            case ev.Begun():
                self._began = time
            case ev.Exported(candidate) | ev.ExportFailed(candidate):
                self.pipeline.exported(candidate)
            case ev.Measured() | ev.MeasurementFailed():
                self.pipeline.answered((event.candidate, event.device, event.repetition))
            case ev.DeviceLost(device=device):
                self._lost_since[device] = time
            case ev.DeviceBack(device=device):
                self._lost_since.pop(device, None)
        self._want_again(sorted(self.ledger.touched))
        if self._waiting_since is not None and isinstance(event, (ev.Measured, ev.Judged)):
            self._waiting_since = time

    def _apply(self, event: ev.Event, time: float, *, replayed: bool = False) -> None:
        """Keep ledger and search in step."""
        before = self._state_of(event)
        self.ledger.apply(event, time)
        self._teaching.follow(event, before, replayed=replayed)
        if isinstance(event, ev.Proposed):
            self._start = [genome for genome in self._start if genome != event.genome]

    def _state_of(self, event: ev.Event) -> State | None:
        """Where the candidate stands that an event is about; None if it is about none."""
        it = self.ledger.candidates.get(_candidate_of(event))
        return None if it is None else it.state

    def _take_up(self, time: float, commands: list[Command]) -> None:
        """What an earlier job left open: export again (its files may be gone), and judge what it had measured."""
        for candidate in self.ledger.standing[State.PROPOSED]:
            self.pipeline.want_export(candidate)
        for candidate, work in self.agenda.fatal():
            reason = f"{FAILURES_MAX[KILLED]} jobs died at it or were too short for it"
            self._take(ev.GivenUp(candidate, work, reason), time, commands)
        for candidate in list(self.ledger.standing[State.READY]):
            self._judge(candidate, time, commands)
        self._want_again({candidate: None for candidate, _ in self.ledger.unsettled})

    def _judge(self, candidate: int, time: float, commands: list[Command]) -> bool:
        """Reject what breaks a limit as soon as that is known; True if it may go on. The baseline always may."""
        it = self.ledger.candidates[candidate]
        if it.state in (State.TRAINING, State.EVALUATED):
            return True  # went on by a prediction: what it has cost is spent
        if it.state not in (State.MEASURING, State.READY):
            return False
        broken = broken_limit(it, self.ledger.terms, settled_only=True)
        if broken is None or candidate == BASELINE:
            return True
        self._take(ev.Rejected(candidate, broken), time, commands)
        return False

    def _measure(self, candidate: int) -> None:
        readings = self.ledger.candidates[candidate].readings
        for device in self.ledger.terms.devices:
            if device not in readings or readings[device].predicted:
                self.pipeline.want((candidate, device, 0))

    def _want_again(self, candidates: Iterable[int]) -> None:
        """Have measured what is doubtful or predicted of these; first exported what is not."""
        for ask in self.agenda.doubtful(candidates):
            if self.ledger.candidates[ask[0]].size_bytes is None:
                self.pipeline.want_export(ask[0])
            else:
                self.pipeline.want(ask)

    # --- giving orders

    def _order(self, time: float, commands: list[Command]) -> None:
        """Give trainers that are idle what there is to do."""
        self.farewell.refused = False
        while self.ledger.idle:
            work = next(self._work(), None)
            if work is None:
                break
            candidate, kind, works = work
            size = self._size(kind, works)
            if size == 0:
                break
            it = self.ledger.known(candidate)
            if not self.farewell.fits(kind, it, time):
                break
            members = choose(self.ledger.idle.values(), size)
            rung = self.ledger.terms.last_rung if candidate == BASELINE else it.rung
            order = self._order_for(it, kind, rung, members)
            self._take(ev.Ordered(candidate, order.attempt, members, kind, rung), time, commands)
            commands.append(Send(members, order))
        self.forecast.watch(time)

    def _work(self) -> Iterator[tuple[int, str, int]]:
        """(candidate, kind of work, how many such pieces are still to be begun), the most urgent first."""
        if self.agenda.supernet_missing():
            yield msg.SUPERNET, "supernet", 1
            return
        ready = self.agenda.next_ready()
        if ready is not None:
            yield ready, "evaluate", 1 if self.agenda.baseline_awaited() else self.agenda.to_begin()
        if repeats := self.agenda.bearable(self.agenda.repeatable(), "repeat"):
            yield repeats[0], "repeat", len(repeats) + self.agenda.to_begin()
        if self.agenda.to_begin() == 0:
            # The last ones are still at work: who leaves the front meanwhile was judged for nothing, by ranks that had
            # nothing to do.
            if assessable := self.agenda.bearable(self.agenda.assessable(), "assess"):
                yield assessable[0], "assess", len(assessable)
            if retrainings := self.agenda.bearable(self.agenda.retrainings(), "retrain"):
                yield retrainings[0], "retrain", len(retrainings)

    def _size(self, kind: str, works: int) -> int:
        """How many trainers take the next piece; 0: it waits until more are idle."""
        trainers, idle = self.ledger.trainers_able, len(self.ledger.idle)
        coming = sum(len(self.ledger.groups[leader].members) for leader in self._pausing)
        if kind == "supernet":
            return min(idle, self.plan.group_size_max or idle) if idle == trainers else 0
        smallest = min(self.plan.group_size, trainers)
        if len(self.ledger.trainers) < self.ledger.trainers_expected and works * smallest < trainers:
            return 0  # the others are about to be ready, and there is not work for all of them by themselves
        if idle == trainers % smallest:  # those that are left over for ever
            smallest = idle
        # What is not training gains little from more ranks.
        largest = smallest if kind == "assess" else self.plan.group_size_max
        return min(idle, group_size(idle + coming, works + len(self._pausing), smallest, largest))

    def _order_for(self, it: Candidate, kind: str, rung: int, members: tuple[int, ...]) -> Work:
        attempt, rungs = it.attempts + 1, self.ledger.terms.rungs
        if kind == "supernet":
            return msg.TrainSupernet(attempt, self.plan.seed, members, self.plan.supernet_epochs)
        if kind == "evaluate":
            seed = self.plan.seed_of(it.id)
            return msg.Evaluate(
                it.id, attempt, it.genome, seed, members, rung, it.epochs_done, rungs[rung], rungs[-1]
            )  # fmt: skip
        if kind == "assess":
            return msg.Assess(it.id, attempt, it.genome, members)
        return msg.Retrain(it.id, attempt, it.genome, self.plan.seed_of(it.id, attempt), members, rungs[-1])

    # --- what is done while no event waits

    def _end_by_time(self, time: float, commands: list[Command]) -> None:
        """Begin nothing new once the time is over; the baseline is proposed all the same, for all else rests on it."""
        if self.ledger.enough is not None or not self.plan.limit_s or self._began is None:
            return
        if BASELINE not in self.ledger.candidates:
            return
        if time - self._began >= self.plan.limit_s:
            self.agenda.time_over = True
            self._take(ev.Enough(f"the job's {self.plan.limit_s:g} s are over"), time, commands)

    def _close_in(self, time: float, commands: list[Command]) -> None:
        """Has the search what it wanted?"""
        if self.ledger.enough is not None:
            return
        candidates, target = self.ledger.candidates, self.plan.target
        met = [id_ for id_ in self.ledger.front if self.agenda.keeps(candidates[id_], target)] if target else []
        fruitless = self.ledger.full_evaluated - self.ledger.progress_at
        if met:
            said = ", ".join(f"{name} {limit:g}" for name, limit in target.items())
            self._take(ev.Enough(f"candidate {met[0]} meets the target ({said})"), time, commands)
        elif self.plan.patience and fruitless >= self.plan.patience:
            self._take(ev.Enough(f"the last {fruitless} evaluations brought nobody to the front"), time, commands)

    def _promote(self, time: float, commands: list[Command]) -> None:
        """Let one candidate go on to its next budget, if one should."""
        if not self.ledger.idle:
            return
        candidate = self.agenda.to_promote()
        if candidate is not None:
            self._take(ev.Promoted(candidate, self.ledger.candidates[candidate].rung + 1), time, commands)

    def _propose(self, time: float, commands: list[Command]) -> None:
        """One candidate more, if more are wanted."""
        if self.agenda.wanted() <= 0:
            return
        next_ = len(self.ledger.candidates)
        try:
            genome = self.baseline if next_ == BASELINE else self._next_genome()
        except SpaceExhaustedError:
            self.agenda.exhausted = True
            return
        self._take(ev.Proposed(next_, genome), time, commands)
        self.pipeline.want_export(next_)
        self._feed(time, commands)

    def _next_genome(self) -> Genome:
        while self._start:
            try:
                return self.search.restore(self._start.pop(0))
            except ValueError:  # asked for already, or not of this space
                continue
        return self.search.ask()

    def _feed(self, time: float, commands: list[Command]) -> None:
        """Give exporters and devices what is most urgent."""
        for candidate in self.pipeline.exports_due(self.agenda.urgency):
            commands.append(Export(candidate, self.ledger.candidates[candidate].genome))
        for candidate, device, repetition in self.pipeline.measurements_due(self.agenda.urgency):
            commands.append(Measure(candidate, self.ledger.candidates[candidate].genome, device, repetition))

    def _judge_on_devices(self, time: float, commands: list[Command]) -> None:
        """Every trained finalist on every device, in the precision that it will run in."""
        for each in self.agenda.unjudged():
            if each not in self._judging:
                self._judging.add(each)
                commands.append(Judge(*each))

    def _rank(self, time: float, commands: list[Command]) -> None:
        """Order those that are ready by what their training promises; no command follows."""
        ready = [id_ for id_ in self.ledger.standing[State.READY] if id_ != BASELINE]
        of = (self.ledger.count(State.EVALUATED), ready[-1] if ready else 0)
        if len(ready) < 2 or of == self._ranked_of:
            return
        # Who goes on from a checkpoint, or was being trained when a job ended, was chosen for it: first.
        candidates = self.ledger.candidates
        chosen = {id_: candidates[id_].begun or candidates[id_].attempts > 0 for id_ in ready}
        going_on = [id_ for id_ in ready if chosen[id_]]
        new = [id_ for id_ in ready if not chosen[id_]]
        order = self.search.rank([candidates[id_].genome for id_ in new])
        self.agenda.ranked, self._ranked_of = [*going_on, *(new[index] for index in order)], of

    def _predict(self, time: float, commands: list[Command]) -> None:
        """Let candidates go by predicted latencies where trainers would have nothing to do."""
        for predicted in self.forecast.due(time):
            self._take(predicted, time, commands)

    def _enlarge(self, time: float, commands: list[Command]) -> None:
        """Let small groups make way for larger ones when nothing else is left for the idle trainers."""
        idle, trainers = len(self.ledger.idle), self.ledger.trainers_able
        if 2 * idle < trainers or self._pausing or self.agenda.to_begin() or not self.agenda.nobody_to_promote():
            return
        running = [
            (leader, len(group.members), left_s)
            for leader, group in self.ledger.groups.items()
            if (left_s := self.agenda.left_s(group, time)) is not None
        ]
        for leader in to_enlarge(idle, running, self.plan.group_size_max):
            order = self.ledger.groups[leader].order
            self._pausing.add(leader)
            commands.append(Send((leader,), msg.Pause(order.candidate, order.attempt)))

    # --- the end

    def _finish(self, reason: str, time: float, commands: list[Command]) -> None:
        self._take(ev.Finished(reason), time, commands)
        commands += [Discard(candidate) for candidate in self.agenda.waiting_at_rungs()]
        self._dismiss(time, commands)

    def _conclude(self, time: float, commands: list[Command]) -> None:
        """Finish when nothing is open, nothing more can be proposed and every finalist is assessed and judged."""
        if not self.ledger.trainers or self.ledger.groups or BASELINE not in self.ledger.candidates:
            self._waiting_since = None
        elif hopeless := self.agenda.hopeless():
            self._finish(hopeless, time, commands)
        elif self.agenda.searched() and not self.agenda.assessable() and not self.agenda.retrainings():
            if self.agenda.awaited():
                self._waiting_since = time if self._waiting_since is None else self._waiting_since
                return
            self._finish(self.agenda.reason(), time, commands)

    def _ends(self) -> bool:
        """Is the job about to end, with the search or before?"""
        return self.ledger.stop_reason is not None or self.ledger.finished is not None

    def _end(self, event: ev.Event, time: float, commands: list[Command]) -> None:
        """What an event means for a job that ends: trainings are put aside, all are sent home, at last it leaves."""
        if isinstance(event, ev.StopRequested) and self.ledger.finished is None:
            self.farewell.begin(event.reason, time)
            for leader, group in self.ledger.groups.items():
                if group.order.work in PAUSABLE and leader not in self._pausing:
                    self._pausing.add(leader)
                    commands.append(Send((leader,), msg.Pause(group.order.candidate, group.order.attempt)))
        if isinstance(event, msg.Ready) and self.farewell.dismissed_at is not None:  # came late
            commands.append(Send((event.rank,), msg.Stop()))
        self._dismiss_in_time(time, commands)
        if isinstance(event, msg.Stopped):
            all_gone = len(self.ledger.trainers) == self.ledger.trainers_expected == self.ledger.stopped
            commands += [Leave()] if all_gone else []

    def _dismiss_in_time(self, time: float, commands: list[Command]) -> None:
        if self.farewell.to_dismiss(time):
            self._dismiss(time, commands)
        elif self.farewell.given_up(time):
            commands.append(Leave())

    def _dismiss(self, time: float, commands: list[Command]) -> None:
        """Tell every trainer to go."""
        self.farewell.dismissed_at = time
        commands += [Send((rank,), msg.Stop()) for rank in self.ledger.trainers]

    # --- small questions

    def _limits(self) -> list[tuple[tuple[int, str, int | None], float]]:
        """Until when each of the awaited answers is waited for."""
        since = self._waiting_since or 0.0
        return [
            (each, max(since, self._lost_since.get(each[1], 0.0)) + self._answer_limit_s(each[1]))
            for each in self.agenda.awaited()
        ]

    def _answer_limit_s(self, device: str) -> float:
        return self.plan.answer_s if device in self._lost_since else max(SILENCE_S, self.plan.answer_s)


def _candidate_of(event: ev.Event) -> int:
    """Whom an event is about; -1 if it is about no candidate."""
    found: int = getattr(event, "candidate", -1)
    return found
