"""What is counted against candidates: failures by reason, and jobs that died at them or were too short for them.

Rules over records that the ledger keeps. Pure; must not know states or what follows from a failure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from mpinas.coordination.candidate import Candidate
from mpinas.coordination.groups import PAUSABLE, Group

#: Reason of a failure: no device was there, which is nobody's fault and may be otherwise another time.
NO_ANSWER = "no-answer"
#: Reasons of a failure: the checkpoint that an evaluation was to go on from is not there any more; a GPU failed; an
#: exception that nobody expected; the job died at it, as far as is known.
NO_CHECKPOINT, NO_DEVICE, UNEXPECTED, KILLED = "checkpoint", "device", "error", "killed"
#: How many failures end the attempts, by reason; one of any other reason does.
FAILURES_MAX = {UNEXPECTED: 2, NO_DEVICE: 4, KILLED: 3}
#: A job is asked to end when so much of its time is over, at the soonest; who had so much of that had nearly all.
HALF, NEARLY = 0.49, 0.75
#: A finalist is trained again so many times at most where that fails.
RETRAININGS_FAILED_MAX = 2
#: Reasons for which no device ever ran a trained model: it is neither accepted nor refused, and a later job asks again.
NOT_RUN = frozenset({NO_ANSWER, "device-lost", "files", "internal", "refused", "unsupported"})


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job came to its end.

    Attributes
    ----------
    died
        It neither finished nor was asked to end.
    began_at, stopped_at
        When it began, and was asked to end (seconds); `stopped_at` says nothing where it was not.
    ends_at
        When the scheduler was to end it, if that is known.
    """

    died: bool
    began_at: float
    stopped_at: float
    ends_at: float | None

    def counts_against(self, group: Group) -> bool:
        """May what a group had to do have been the end of it, or have been too long for any job of the kind?"""
        return self.died or self._too_short_for(group)

    def _too_short_for(self, group: Group) -> bool:
        """Had it nearly all of a job that came to its time, and has not got to where it could be put aside?"""
        put_aside = group.order.work in PAUSABLE and group.epoch > 0
        if self.ends_at is None or put_aside:
            return False
        had_s, whole_s = self.stopped_at - self.began_at, self.ends_at - self.began_at
        return had_s >= HALF * whole_s and self.stopped_at - group.since >= NEARLY * had_s


def count_ending(ending: Ending, under_way: Collection[Group], everybody: Iterable[Candidate]) -> None:
    """A job that has died may have died of anything that was under way. One that ended in peace has died of nothing,
    but may have been too short for what had it to itself."""
    blamed: dict[int, set[str]] = {}
    for group in under_way:
        if ending.counts_against(group):
            blamed.setdefault(group.order.candidate, set()).add(group.order.work)
    for it in everybody:
        works = blamed.get(it.id, set())
        if not ending.died:
            it.failures = {of: count for of, count in it.failures.items() if of[1] != KILLED or of[0] in works}
        for work in works:
            it.failures[work, KILLED] = it.failures.get((work, KILLED), 0) + 1


def acquit(it: Candidate, work: str) -> None:
    """It has got on, so no job has died of it."""
    it.failures.pop((work, KILLED), None)


def may_be_tried_again(it: Candidate, work: str, reason: str) -> bool:
    """Count a failure; False where it is the network's own, or has been tried often enough."""
    it.failures[work, reason] = it.failures.get((work, reason), 0) + 1
    return it.failures[work, reason] < FAILURES_MAX.get(reason, 1)
