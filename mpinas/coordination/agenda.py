"""What there is to do, and whether anything is left: questions to the ledger, answered by the plan. Changes nothing.

Must not know commands, time or how anything is carried out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from mpinas.coordination.budgets import Curves, promotable
from mpinas.coordination.candidate import Candidate
from mpinas.coordination.failures import FAILURES_MAX, KILLED, RETRAININGS_FAILED_MAX
from mpinas.coordination.front import dominates
from mpinas.coordination.groups import Group
from mpinas.coordination.ledger import BASELINE, ENDED, Ledger
from mpinas.coordination.lifecycle import State
from mpinas.coordination.limits import broken_limit, constraints
from mpinas.coordination.pipeline import Ask
from mpinas.coordination.plan import Plan

#: What so many jobs have died at is done beside nothing else that is suspected: the next death tells which it is.
SUSPICIOUS = 2
#: So many networks that all failed, and not one beside them that did not, say that the space is broken.
FIRST_FAILURES = 20
#: Where candidates stand that were promoted and are not there yet.
GOING_ON = (State.READY, State.TRAINING)


class Agenda:
    """Of one job: what is found out about the space and the candidates on the way is kept in its attributes."""

    def __init__(self, plan: Plan, ledger: Ledger, curves: Curves) -> None:
        self.plan = plan
        self.ledger = ledger
        self.curves = curves
        #: The space holds no genome that was not asked for.
        self.exhausted = False
        #: Predicted to break a limit: they wait to be measured, and for nothing else.
        self.set_aside: set[int] = set()
        #: Nobody waits for these any longer: the device that was to say so is not there.
        self.set_aside_lost = False
        #: The job's time is over: not even what is begun already is done better.
        self.time_over = False
        #: What the rungs were like when there was last nobody to promote.
        self._nobody_as_of: tuple[int, ...] = ()
        #: READY candidates, the most promising first; those that came later are not in it.
        self.ranked: list[int] = []

    def hopeless(self) -> str | None:
        """Why there is no point in going on, in words: what everything else rests on has failed."""
        if BASELINE in self.ledger.standing[State.FAILED]:
            return f"the baseline, to compare with, failed: {self.ledger.candidates[BASELINE].reason}"
        if self.ledger.supernet.reason:
            return f"the supernet could not be trained: {self.ledger.supernet.reason}"
        failed = self.ledger.standing[State.FAILED]
        others = len(self.ledger.candidates) - self.ledger.count(State.FAILED, State.PROPOSED)
        if len(failed) >= FIRST_FAILURES and others <= (BASELINE in self.ledger.candidates):
            last = next(reversed(failed))
            return f"all {len(failed)} networks so far failed, the last: {self.ledger.candidates[last].reason}"
        return None

    def supernet_missing(self) -> bool:
        """Are the weights that all subnets share still to be trained?"""
        return self.plan.supernet_epochs > 0 and not self.ledger.supernet.metrics

    def baseline_awaited(self) -> bool:
        """Does everybody else wait for the trained baseline?"""
        there = BASELINE in self.ledger.candidates and self.went_all_the_way(BASELINE)
        return self.plan.after_baseline and not there

    def went_all_the_way(self, candidate: int) -> bool:
        """Was it trained on the full budget?"""
        it = self.ledger.candidates[candidate]
        return it.state is State.EVALUATED and it.rung == self.ledger.terms.last_rung

    def _open(self) -> int:
        """Candidates on their way to a group for the first time."""
        return self.ledger.count(State.PROPOSED, State.MEASURING) + self._fresh() - len(self.set_aside)

    def _fresh(self) -> int:
        """READY candidates that were never trained."""
        return sum(not self.ledger.candidates[id_].begun for id_ in self.ledger.standing[State.READY])

    def _going_on(self) -> int:
        """READY candidates that were trained before."""
        return self.ledger.count(State.READY) - self._fresh()

    def to_begin(self) -> int:
        """How many evaluations are still to be begun, of new candidates and of those that go on."""
        going_on = self._going_on()
        if self.ledger.enough is not None:
            return going_on
        begun = self.ledger.count(State.EVALUATED, State.TRAINING) + going_on
        new = min(self.plan.evaluations - begun, self._open() + self._can_propose())
        return max(0, new) + going_on

    def _can_propose(self) -> int:
        if self.exhausted or self.ledger.enough is not None:
            return 0
        return max(0, self.plan.proposals_max - len(self.ledger.candidates))

    def wanted(self) -> int:
        """How many more candidates to propose now."""
        if self.hopeless():
            return 0
        groups = max(1, self.ledger.trainers_able // self.plan.group_size)
        waiting = len(self.ledger.idle) // self.plan.group_size
        open_, ready = self._open(), self.ledger.standing[State.READY]
        held_back = len(ready) - len(self.bearable(ready, "evaluate"))
        ahead = max(self.plan.ahead_min, min(groups, 4 + groups // 8), waiting) - (open_ - held_back)
        under_way = self.ledger.count(State.EVALUATED, State.TRAINING) + self._going_on() + open_
        return min(ahead, self.plan.evaluations - under_way, self._can_propose())

    def searched(self) -> bool:
        """Is there nothing left that could change the front?"""
        return (
            not self.ledger.count(State.TRAINING)
            and not self.to_begin()
            and not self.repeatable()
            and self.nobody_to_promote()
        )

    def _under_way(self, *works: str) -> list[int]:
        return [group.order.candidate for group in self.ledger.groups.values() if group.order.work in works]

    def fatal(self) -> list[tuple[int, str]]:
        """(candidate, work) at which too many jobs have died."""
        return [
            (it.id, work)
            for it in (self.ledger.supernet, *self.ledger.candidates.values())
            for (work, reason), count in it.failures.items()
            if reason == KILLED and count >= FAILURES_MAX[KILLED] and it.state not in ENDED
        ]

    def _suspicious(self, candidate: int, work: str) -> bool:
        return self.ledger.known(candidate).failures.get((work, KILLED), 0) >= SUSPICIOUS

    def bearable(self, candidates: Collection[int], work: str) -> list[int]:
        """Those of `candidates` to which the work may be done beside what is under way."""
        suspects = {id_ for id_ in candidates if self._suspicious(id_, work)}
        orders = (group.order for group in self.ledger.groups.values()) if suspects else ()  # thousands, at every order
        alone = any(self._suspicious(order.candidate, order.work) for order in orders)
        return [id_ for id_ in candidates if not (alone and id_ in suspects)]

    def next_ready(self) -> int | None:
        """The READY candidate to train next: the baseline, then those with the best rank, then the oldest."""
        standing = self.ledger.standing[State.READY]
        ready = dict.fromkeys(self.bearable(standing, "evaluate"))
        if BASELINE in ready:
            return BASELINE
        if self.baseline_awaited():
            return None
        self.ranked = [id_ for id_ in self.ranked if id_ in standing]
        begun = self.ledger.count(State.EVALUATED, State.TRAINING)
        full = begun >= self.plan.evaluations or self.ledger.enough is not None
        candidates = self.ledger.candidates
        first = (id_ for id_ in (*self.ranked, *ready) if id_ in ready)
        return next((id_ for id_ in first if not full or candidates[id_].begun), None)

    def left_s(self, group: Group, time: float) -> float | None:
        """Seconds that a group needs after the epoch it is at; None if that is unknown, or it evaluates nobody."""
        it = self.ledger.known(group.order.candidate)
        done = it.epoch - it.epochs_done
        if group.order.work != "evaluate" or done <= 0:
            return None
        return (time - group.since) / done * (self.ledger.terms.rungs[group.order.rung] - it.epoch - 1)

    def assessable(self) -> list[int]:
        """Finalists that nobody has assessed or is assessing."""
        under_way = self._under_way("assess", "repeat")
        candidates = self.ledger.candidates
        return [id_ for id_ in self.ledger.finalists() if not candidates[id_].assessed and id_ not in under_way]

    def repeatable(self) -> list[int]:
        """Who is on the front by fewer trainings than asked for."""
        if self.plan.repeats < 2 or self.time_over:
            return []
        under_way = self._under_way("repeat", "assess")
        found = []
        for id_ in self.ledger.hoped:
            it = self.ledger.candidates[id_]
            if id_ in under_way or it.state is not State.EVALUATED:
                continue
            if 1 + len(it.repeats) < self.plan.repeats and it.retrainings_failed <= RETRAININGS_FAILED_MAX:
                found.append(id_)
        return found

    def retrainings(self) -> list[int]:
        """Finalists to be trained again for the results, each as often as it is missing; once the search is over."""
        if not self.plan.finalists or self.time_over or not self.searched():
            return []
        if self.assessable() or self._under_way("assess"):
            return []
        under_way = self._under_way("retrain")
        found: list[int] = []
        for id_ in dict.fromkeys((BASELINE, *self.ledger.fronts.best(self.plan.finalists))):
            it = self.ledger.candidates[id_]
            if it.state is State.EVALUATED and it.retrainings_failed <= RETRAININGS_FAILED_MAX:
                done = len(it.retrainings) - len(it.repeats) + under_way.count(id_)
                found += [id_] * (self.plan.finalist_seeds - done)
        return found

    def urgency(self, candidate: int) -> tuple[float, ...] | None:
        """Who decides the front comes first, then who waits to be trained, then whose measurement teaches most."""
        it = self.ledger.candidates[candidate]
        if it.state in ENDED:
            return None
        if it.state is State.EVALUATED:
            return (0.0,) if self.ledger.is_kept(candidate) or it.rung < self.ledger.terms.last_rung else None
        if not it.predicted:
            return (2.0,) if candidate in self.set_aside else (1.0,)
        spread = max(
            reading.measurement["p50_std_s"] / max(reading.measurement["p50_s"], 1e-12)
            for reading in it.readings.values()
            if reading.predicted
        )
        return (3.0, -spread)

    def doubtful(self, candidates: Iterable[int]) -> list[Ask]:
        """(candidate, device, repetition) of the measurements to make (again): of what may still be trained or used."""
        found = []
        for candidate in candidates:
            it = self.ledger.candidates[candidate]
            if it.state not in (*ENDED, State.EVALUATED) or self.ledger.is_kept(candidate):
                found += [
                    (candidate, device, reading.repetition + 1)
                    for device, reading in it.readings.items()
                    if (candidate, device) in self.ledger.unsettled
                ]
        return found

    def unjudged(self) -> list[tuple[int, str]]:
        """(finalist, device) where the trained model waits to be judged by the device."""
        candidates = self.ledger.candidates
        return [
            (id_, device)
            for id_ in self.ledger.finalists()
            if candidates[id_].assessed and candidates[id_].expected is not None
            for device in self.ledger.terms.devices
            if device not in candidates[id_].verdicts
        ]

    def awaited(self) -> list[tuple[int, str, int | None]]:
        """Answers of devices without which the results are not complete; no repetition: of a trained model's error."""
        return [
            *self.doubtful(sorted(self.ledger.kept())),
            *((candidate, device, None) for candidate, device in self.unjudged()),
            *self._set_aside_awaited(),
        ]

    def _set_aside_awaited(self) -> list[Ask]:
        """Measurements of those that were set aside, where evaluations are missing and nobody else can be proposed."""
        if self.set_aside_lost or self.ledger.enough is not None or self._can_propose() > 0:
            return []
        if len(self.ledger.evaluated) >= self.plan.evaluations:
            return []
        candidates = self.ledger.candidates
        return [
            (id_, device, 0)
            for id_ in sorted(self.set_aside)
            for device in self.ledger.terms.devices
            if not candidates[id_].is_measured_on((device,))
        ]

    def keeps(self, it: Candidate, bounds: Mapping[str, float]) -> bool:
        """Is a measured and evaluated candidate within all `bounds`, by objective or device?"""
        values = {f"latency_s@{device}": latency_s for device, latency_s in it.latencies_s.items()}
        values |= {"error": it.error, "latency_s": max(it.latencies_s.values())}
        return all(values[name] <= bound for name, bound in bounds.items())

    def to_promote(self) -> int | None:
        """Whom to train on: the best share of a rung as it fills, and at the end whoever may still join the front.

        It takes time. That there is nobody is remembered as long as nothing has changed.
        """
        if self.nobody_to_promote():
            return None
        found = self._best_of_a_rung()
        if found is None and self.to_begin() == 0:
            candidates = self.ledger.candidates
            found = next((id_ for id_ in self.waiting_at_rungs() if self._would_join(candidates[id_])), None)
        if found is None:
            self._nobody_as_of = self._state_of_rungs()
        return found

    def nobody_to_promote(self) -> bool:
        """Is it known that nobody is to be trained on now? Quick; what is not known is no."""
        over = self.ledger.terms.last_rung == 0 or self.ledger.enough is not None
        return over or self._nobody_as_of == self._state_of_rungs()

    def _state_of_rungs(self) -> tuple[int, ...]:
        """Whatever promotion depends on, as numbers that change with it."""
        ledger = self.ledger
        return (
            *(len(ledger.arrived.get(rung, ())) for rung in range(ledger.terms.last_rung)),
            *(ledger.promoted.get(rung, 0) for rung in range(ledger.terms.last_rung)),
            ledger.count(*GOING_ON), len(ledger.evaluated), ledger.changes, self.to_begin(),
        )  # fmt: skip

    def _best_of_a_rung(self) -> int | None:
        rungs = self.ledger.terms.rungs
        for rung in reversed(range(len(rungs) - 1)):
            arrived, share = self.ledger.arrived.get(rung, {}), rungs[rung] / rungs[rung + 1]
            if int(len(arrived) * share) <= self.ledger.promoted.get(rung, 0):
                continue
            points = {id_: self._point(self.ledger.candidates[id_], rung) for id_ in arrived}
            gone_on = {id_ for id_ in arrived if not self._waits_at(id_, rung)}
            for id_ in promotable(points, gone_on, share):
                if self._may_join(self.ledger.candidates[id_]):
                    return id_
        return None

    def _waits_at(self, candidate: int, rung: int) -> bool:
        it = self.ledger.candidates[candidate]
        return it.state is State.EVALUATED and it.rung == rung

    def waiting_at_rungs(self) -> list[int]:
        """Evaluated, but not on the full budget; those with the smallest error first."""
        last = self.ledger.terms.last_rung
        waiting = {id_ for arrived in self.ledger.arrived.values() for id_ in arrived}
        candidates = [self.ledger.candidates[id_] for id_ in waiting]
        here = [it for it in candidates if it.state is State.EVALUATED and it.rung < last]
        return [it.id for it in sorted(here, key=lambda it: (it.error, it.id))]

    def _point(self, it: Candidate, rung: int) -> tuple[float, ...]:
        """Objectives as they were after a small budget."""
        return self.ledger.terms.values(it.rung_errors[rung], it.latencies_s)

    def _may_join(self, it: Candidate) -> bool:
        """Is there any reason to hope that it joins the front on the full budget? A fast one always has."""
        error = self.curves.hopeful(it.rung, it.error)
        return self._keeps_limits(it, error) and self.ledger.fronts.hoped.would_join(
            self.ledger.terms.values(error, it.latencies_s)
        )

    def _would_join(self, it: Candidate) -> bool:
        """Is it to be expected that it joins the front on the full budget, beside those that are on their way there?"""
        point = self._expected(it)
        if not self._keeps_limits(it, point[0]) or not self.ledger.fronts.hoped.would_join(point):
            return False
        candidates = self.ledger.candidates
        on_their_way = [candidates[id_] for state in GOING_ON for id_ in self.ledger.standing[state]]
        return not any(dominates(self._expected(other), point) for other in on_their_way if other.rung_errors)

    def _keeps_limits(self, it: Candidate, error: float) -> bool:
        """Would it keep all limits if this were its error?"""
        return broken_limit(it, self.ledger.terms) is None and error <= self.ledger.terms.limits.get("error", math.inf)

    def _expected(self, it: Candidate) -> tuple[float, ...]:
        """Objectives to expect on the full budget, after a smaller one."""
        error = self.curves.expected(max(it.rung_errors), it.error)
        return self.ledger.terms.values(error, it.latencies_s)

    def reason(self) -> str:
        """Why the run is over, in words."""
        evaluated = len(self.ledger.evaluated)
        done = f"{evaluated} of {self.plan.evaluations} candidates evaluated"
        if never := len(self.ledger.left_out):
            done += f"; {never} left out of the front because no device measured them"
        finalists = [self.ledger.candidates[id_] for id_ in self.ledger.finalists()]
        if without := sum(it.assessed and it.expected is None for it in finalists):
            done += f"; {without} finalists without a model to deploy (`mpinas results` says why)"
        verdicts = [it.verdicts.values() for it in finalists]
        if unasked := sum(any(verdict.accepted is None for verdict in each) for each in verdicts):
            done += f"; {unasked} finalists not checked on every device"
        if self.ledger.enough is not None:
            return f"{done}; {self.ledger.enough}"
        if evaluated >= self.plan.evaluations:
            return done
        if self.exhausted:
            return f"{done}; the search space holds no more"
        done += (
            f"; stopped after {len(self.ledger.candidates)} proposals ({self.ledger.count(State.REJECTED)} rejected, "
            f"{self.ledger.count(State.FAILED)} failed)"
        )
        return f"{done}: the limits may be too tight{self._nearest()}" if self.ledger.terms.limits else done

    def _nearest(self) -> str:
        """How near the rejected came to the limits, in words."""
        best: dict[str, float] = {}
        for id_ in self.ledger.standing[State.REJECTED]:
            for name, excess in constraints(self.ledger.candidates[id_], self.ledger.terms).items():
                best[name] = min(best.get(name, math.inf), excess)
        missed = [
            f"{name}: {math.exp(excess):.2g} times the limit at best" for name, excess in best.items() if excess > 0
        ]
        return f" ({'; '.join(missed)})" if missed else ""
