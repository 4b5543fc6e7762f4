"""How a job ends before its search does: when, whom it waits for, and what may still be begun in the time left.

A scheduler ends a job at a known moment, a signal sooner. Trainings are put aside at the end of their epoch, with a
checkpoint; who is not there in time leaves what it does. Must not know commands or clocks: times come in, in seconds.
"""

from __future__ import annotations

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.candidate import Candidate
from mpinas.coordination.groups import PAUSABLE, Group
from mpinas.coordination.ledger import Ledger

#: How long groups may take to the end of their epoch, by the signal; whoever sends INT wants it now, and after TERM
#: launchers kill soon.
GRACE_S = {"SIGINT": 0.0, "SIGTERM": 5.0}
#: The same for any other reason, where it is not known when the job is ended.
GRACE_ELSE_S = 60.0
#: What it takes to leave: processes end, the journal is made durable.
PARTING_S = 15.0
#: Before anything is known of epochs, one is taken to last so long.
EPOCH_S = 15.0
#: The next may take so much longer than the longest so far.
SLACK = 1.25
#: What may fit into no job is tried in this first part of one, and has nearly all of it then.
YOUNG = 0.1
#: Told to go, trainers leave at once; one that does not is not waited for any longer than this.
GOING_S = 60.0
#: What is put aside at the end of an epoch, and what is soon done: worth waiting for.
_WAITED_FOR = (*PAUSABLE, "assess")


class Farewell:
    """Of one job."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._began: float | None = None
        #: When the scheduler ends the job, if that is known.
        self._ends_at: float | None = None
        #: By kind of work, how long the longest took; and the longest epoch.
        self._longest_s: dict[str, float] = {}
        self._epoch_s = 0.0
        #: When each group last came to the end of an epoch, by its leader.
        self._epoch_ended: dict[int, float] = {}
        #: Asked to end: until when groups are waited for.
        self._until: float | None = None
        #: When all were told to go.
        self.dismissed_at: float | None = None
        #: The most urgent work was not begun because it would not have come to its end.
        self.refused = False

    def watch(self, event: ev.Event, time: float, group: Group | None) -> None:
        """Learn from an event how long things take; `group`: that which an answer has ended."""
        match event:
            case ev.Begun(ends_at=ends_at):
                self._began, self._ends_at = time, ends_at
            case ev.Ordered(members=members):
                self._epoch_ended[members[0]] = time
            case msg.Progress(group=leader):
                self._epoch_s = max(self._epoch_s, time - self._epoch_ended.get(leader, time))
                self._epoch_ended[leader] = time
        if group is not None:
            kind, took_s = group.order.work, time - group.since
            self._longest_s[kind] = max(took_s, self._longest_s.get(kind, 0.0))

    def warn_at(self) -> float | None:
        """When to ask the groups to come to an end; None: nothing ends this job."""
        if self._ends_at is None or self._began is None:
            return None
        reserve_s = SLACK * (self._epoch_s or EPOCH_S) + PARTING_S
        return self._ends_at - min(reserve_s, (self._ends_at - self._began) / 2)

    def reason_to_end(self, time: float, *, nothing_else: bool) -> str | None:
        """Why the job should end now by itself, in words; None: it need not.

        `nothing_else`: what was refused is all that is left to do.
        """
        if self._ledger.trainers_expected and not self._ledger.trainers_able:
            return "no trainer is left whose GPU works"
        warn_at = self.warn_at()
        if warn_at is None or self._ends_at is None:
            return None
        left_s = self._ends_at - time
        if time >= warn_at:
            return f"the job's time is over in {max(0.0, left_s):.0f} s"
        if self.refused and nothing_else and not self._ledger.groups:
            return f"nothing that is left to do fits into the job's last {left_s:.0f} s"
        return None

    def fits(self, kind: str, it: Candidate, time: float) -> bool:
        """Can it come to its end, or to the end of an epoch and be put aside there?

        What may not fit into a whole job either is begun while the job is young.
        """
        if self._ends_at is None or self._began is None or kind in PAUSABLE:
            return True
        took_s = self._longest_s.get("assess", 0.0) if kind == "assess" else it.train_seconds or 0.0
        needed_s = SLACK * took_s + PARTING_S
        whole_s = self._ends_at - self._began
        fits = time + needed_s <= self._ends_at or (needed_s > whole_s and time <= self._began + YOUNG * whole_s)
        self.refused |= not fits
        return fits

    def begin(self, reason: str, time: float) -> None:
        """The job is to end; asked again, the sooner of the two."""
        if 0 in self._ledger.trainers:  # a world of one: nothing is under way when it can be asked
            self._until = time
            return
        known = None if self._ends_at is None else max(time, self._ends_at - PARTING_S)
        grace_s = GRACE_S.get(reason)
        until = time + GRACE_ELSE_S if known is None else known
        if grace_s is not None:
            until = min(until, time + grace_s)
        self._until = until if self._until is None else min(until, self._until)

    def to_dismiss(self, time: float) -> bool:
        """Is it time to tell everybody to go?"""
        if self._until is None or self.dismissed_at is not None:
            return False
        waited_for = any(group.order.work in _WAITED_FOR for group in self._ledger.groups.values())
        return time >= self._until or not waited_for

    def given_up(self, time: float) -> bool:
        """Has somebody been told to go and does not?"""
        return self.dismissed_at is not None and time >= self.dismissed_at + GOING_S

    def due(self) -> float | None:
        """When one of these answers changes though nothing happens."""
        if self.dismissed_at is not None:
            return self.dismissed_at + GOING_S
        return self.warn_at() if self._until is None else self._until
