"""What waits for the exporter and the devices, and what of it goes next. Few are under way at a time, so that what has
become urgent does not stand behind hundreds that have not.

Pure: urgencies come as a function. Must not know why anything is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
#: (candidate, device, repetition)
Ask = tuple[int, str, int]
#: What goes first is smallest; None: not wanted any more.
Urgency = Callable[[int], tuple[float, ...] | None]

#: Exports under way: the exporter works at one, the next ones wait ready for it.
EXPORTS_MAX = 8
#: Measurements under way on one profile, which may have several devices, behind a slow network.
MEASUREMENTS_MAX = 32


class Pipeline:
    """Queues of one job: nothing of it outlives the job, which takes up what is open from the ledger."""

    def __init__(self) -> None:
        self._to_export: dict[int, None] = {}
        self._exporting: set[int] = set()
        self._to_measure: dict[str, dict[Ask, None]] = {}
        self._measuring: dict[str, set[Ask]] = {}

    @property
    def behind(self) -> bool:
        """Does anything wait that is not even under way?"""
        return bool(self._to_export) or any(self._to_measure.values())

    def want_export(self, candidate: int) -> None:
        """The artifact of a candidate is needed."""
        if candidate not in self._exporting:
            self._to_export[candidate] = None

    def want(self, ask: Ask) -> None:
        """A measurement is needed; said again, it changes nothing."""
        if ask not in self._measuring.get(ask[1], ()):
            self._to_measure.setdefault(ask[1], {})[ask] = None

    def exported(self, candidate: int) -> None:
        """The exporter has answered."""
        self._exporting.discard(candidate)

    def answered(self, ask: Ask) -> None:
        """A device has answered."""
        self._measuring.get(ask[1], set()).discard(ask)
        self._to_measure.get(ask[1], {}).pop(ask, None)

    def drop(self, candidate: int) -> None:
        """Nothing more is wanted of a candidate. An export under way still takes its place until it is answered."""
        self._to_export.pop(candidate, None)
        for device, waiting in self._to_measure.items():
            for ask in [ask for ask in waiting if ask[0] == candidate]:
                del waiting[ask]
            under_way = self._measuring.get(device, set())
            under_way -= {ask for ask in under_way if ask[0] == candidate}

    def exports_due(self, urgency: Urgency) -> list[int]:
        """Candidates to export now."""
        found = []
        while self._to_export and len(self._exporting) < EXPORTS_MAX:
            if (candidate := _first(self._to_export, urgency, lambda each: each)) is None:
                break
            del self._to_export[candidate]
            self._exporting.add(candidate)
            found.append(candidate)
        return found

    def measurements_due(self, urgency: Urgency) -> list[Ask]:
        """Measurements to ask for now."""
        found = []
        for device, waiting in self._to_measure.items():
            under_way = self._measuring.setdefault(device, set())
            while waiting and len(under_way) < MEASUREMENTS_MAX:
                if (ask := _first(waiting, urgency, lambda each: each[0])) is None:
                    break
                del waiting[ask]
                under_way.add(ask)
                found.append(ask)
        return found


def _first(waiting: dict[T, None], urgency: Urgency, candidate_of: Callable[[T], int]) -> T | None:
    """The most urgent, the longest waiting of equals; who is not wanted any more is taken out."""
    best, best_urgency = None, None
    unwanted = []
    for each in waiting:
        here = urgency(candidate_of(each))
        if here is None:
            unwanted.append(each)
        elif best_urgency is None or here < best_urgency:
            best, best_urgency = each, here
    for each in unwanted:
        del waiting[each]
    return best
