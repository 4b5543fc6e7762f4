"""What waits for exporters and devices, and what of it goes next. Few are under way at a time, so that what has
become urgent does not stand behind hundreds that have not.

Pure: urgencies come as a function. Must not know why anything is wanted.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

from mpinas.coordination import terms

T = TypeVar("T")
#: (candidate, device, repetition)
Ask = tuple[int, str, int]
#: What goes first is smallest; None: not wanted any more.
Urgency = Callable[[int], tuple[float, ...] | None]

#: Exports under way for each exporter: it works at one, the next one waits ready for it.
EXPORTS_EACH = 2
#: Measurements under way on one profile, which may have several devices, behind a slow network.
MEASUREMENTS_MAX = 32


class Line(Generic[T]):
    """What waits for a place, the most urgent first, the longest waiting of equals.

    A heap of urgencies as they were when they were last looked at; what comes to its top is looked at again. So what
    becomes less urgent is moved back in time; what becomes more urgent has to be put once more.
    """

    def __init__(self, candidate_of: Callable[[T], int]) -> None:
        self._candidate_of = candidate_of
        #: With a number that says how long it has waited.
        self._waiting: dict[T, int] = {}
        self._heap: list[tuple[tuple[float, ...], int, T]] = []
        #: Put and not looked at.
        self._new: list[T] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, each: T) -> None:
        """Have it wait, or look at it again."""
        if each not in self._waiting:
            self._number += 1
            self._waiting[each] = self._number
        self._new.append(each)

    def drop(self, each: T) -> None:
        """It waits no more, if it did."""
        self._waiting.pop(each, None)

    def take(self, urgency: Urgency) -> T | None:
        """The most urgent, which waits no more; what is not wanted any more is dropped."""
        for each in self._new:
            self._look(each, urgency)
        self._new.clear()
        while self._heap:
            then, number, each = heapq.heappop(self._heap)
            if self._waiting.get(each) != number:
                continue
            now = urgency(self._candidate_of(each))
            if now is None or now <= then:
                del self._waiting[each]
                if now is not None:
                    return each
            else:
                heapq.heappush(self._heap, (now, number, each))
        return None

    def _look(self, each: T, urgency: Urgency) -> None:
        if (number := self._waiting.get(each)) is None:
            return
        now = urgency(self._candidate_of(each))
        if now is None:
            del self._waiting[each]
        else:
            heapq.heappush(self._heap, (now, number, each))


class Pipeline:
    """Queues of one job: nothing of it outlives the job, which takes up what is open from the ledger."""

    def __init__(self, exporters: int) -> None:
        self._exports_max = EXPORTS_EACH * exporters
        self._to_export: Line[int] = Line(lambda candidate: candidate)
        self._exporting: set[int] = set()
        self._to_measure: dict[str, Line[Ask]] = {}
        self._measuring: dict[str, set[Ask]] = {}

    @property
    def behind(self) -> bool:
        """Does anything wait that is not even under way?"""
        return bool(self._to_export) or any(self._to_measure.values())

    def want_export(self, candidate: int) -> None:
        """The artifact of a candidate is needed."""
        if candidate not in self._exporting:
            self._to_export.put(candidate)

    def want(self, ask: Ask) -> None:
        """A measurement is needed. Said again, it is only looked at again: it may have become more urgent."""
        device = ask[1]
        if ask not in self._measuring.get(device, ()):
            if device not in self._to_measure:
                self._to_measure[device] = Line(lambda each: each[0])
            self._to_measure[device].put(ask)

    def exported(self, candidate: int) -> None:
        """An exporter has answered."""
        self._exporting.discard(candidate)

    def answered(self, ask: Ask) -> None:
        """A device has answered."""
        self._measuring.get(ask[1], set()).discard(ask)
        if ask[1] in self._to_measure:
            self._to_measure[ask[1]].drop(ask)

    def drop(self, candidate: int) -> None:
        """Nothing more is wanted of a candidate. An export under way still takes its place until it is answered."""
        self._to_export.drop(candidate)
        for device, line in self._to_measure.items():
            under_way = self._measuring.get(device, set())
            for repetition in range(terms.MEASUREMENTS_MAX):
                line.drop((candidate, device, repetition))
                under_way.discard((candidate, device, repetition))

    def exports_due(self, urgency: Urgency) -> list[int]:
        """Candidates to export now."""
        found = []
        while self._to_export and len(self._exporting) < self._exports_max:
            if (candidate := self._to_export.take(urgency)) is None:
                break
            self._exporting.add(candidate)
            found.append(candidate)
        return found

    def measurements_due(self, urgency: Urgency) -> list[Ask]:
        """Measurements to ask for now."""
        found = []
        for device, line in self._to_measure.items():
            under_way = self._measuring.setdefault(device, set())
            while line and len(under_way) < MEASUREMENTS_MAX:
                if (ask := line.take(urgency)) is None:
                    break
                under_way.add(ask)
                found.append(ask)
        return found
