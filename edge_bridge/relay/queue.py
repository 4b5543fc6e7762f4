"""Requests that wait for a device: higher priority first, then fair among jobs, then first come, first served.

Pure; must not know messages, clocks or sockets. `take` costs a step for each job and each kind of request it has
waiting, not for each request: ten thousand may wait.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from edge_bridge.wire.quantities import ANY_PROFILE


@dataclass(frozen=True, slots=True)
class Place:
    """What decides when a request is taken, and by which device."""

    #: Whose turn it takes; requests of one job are taken in the order they came.
    job: bytes
    profile: str
    #: Minor version of the protocol that the device must speak.
    needs: int
    priority: int

    def fits(self, profile: str, minor: int) -> bool:
        """Whether a device of this profile and minor version may have it."""
        return self.profile in (ANY_PROFILE, profile) and self.needs <= minor


#: Ids of waiting requests of one kind, with the number of their arrival.
_Line = OrderedDict[str, int]


class Queue:
    """The waiting requests."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}
        #: For each priority the jobs, those whose turn is next in front; for each job its lines.
        self._turns: dict[int, OrderedDict[bytes, dict[Place, _Line]]] = {}
        self._first = self._last = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._places

    def put(self, request_id: str, place: Place, in_front: bool = False) -> None:
        """Let a request wait; `in_front` of all of its kind where it had been taken before."""
        self.remove(request_id)
        self._places[request_id] = place
        line = self._turns.setdefault(place.priority, OrderedDict()).setdefault(place.job, {}).setdefault(
            place, OrderedDict()
        )  # fmt: skip
        if in_front:
            self._first -= 1
            line[request_id] = self._first
            line.move_to_end(request_id, last=False)
        else:
            self._last += 1
            line[request_id] = self._last

    def take(self, profile: str, minor: int) -> str | None:
        """Remove and return the request that a device of this profile is to have next."""
        for priority in sorted(self._turns, reverse=True):
            for job, lines in self._turns[priority].items():
                fitting = [line for place, line in lines.items() if place.fits(profile, minor)]
                if not fitting:
                    continue
                request_id = min(((number, id_) for line in fitting for id_, number in _head(line)))[1]
                self._turns[priority].move_to_end(job)
                self.remove(request_id)
                return request_id
        return None

    def remove(self, request_id: str) -> None:
        """Take a request out, if it waits."""
        place = self._places.pop(request_id, None)
        if place is None:
            return
        jobs = self._turns[place.priority]
        lines = jobs[place.job]
        del lines[place][request_id]
        if not lines[place]:
            del lines[place]
        if not lines:
            del jobs[place.job]
        if not jobs:
            del self._turns[place.priority]

    def kinds(self) -> set[tuple[str, int]]:
        """(profile, minor version needed) of all that waits."""
        return {
            (place.profile, place.needs) for jobs in self._turns.values() for lines in jobs.values() for place in lines
        }

    def of_kind(self, profile: str, needs: int) -> list[str]:
        """Ids of the requests for this profile that need this minor version."""
        return [id_ for id_, place in self._places.items() if (place.profile, place.needs) == (profile, needs)]

    def newest_of(self, job: bytes) -> str | None:
        """The request of this job that would be taken last: of its lowest priority, the newest."""
        for priority in sorted(self._turns):
            lines = self._turns[priority].get(job)
            if lines:
                return max((number, id_) for line in lines.values() for id_, number in _tail(line))[1]
        return None


def _head(line: _Line) -> list[tuple[str, int]]:
    return [next(iter(line.items()))]


def _tail(line: _Line) -> list[tuple[str, int]]:
    return [next(reversed(line.items()))]
