"""What serves one job after the other, in virtual time: the exporter, and the devices of a profile.

Must not know what the jobs are.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any


class Timeline:
    """Virtual time, and what is to happen when."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s
        #: (time, number, what): those of one time in the order in which they were said.
        self.queue: list[tuple[float, int, Any]] = []
        self._number = 0

    def later(self, delay_s: float, what: Any) -> None:
        """Have `what` happen so much later."""
        self._number += 1
        heapq.heappush(self.queue, (self.now_s + delay_s, self._number, what))

    def due(self) -> bool:
        """Is there something to happen now?"""
        return bool(self.queue) and self.queue[0][0] <= self.now_s

    def pop(self) -> Any:
        """The next thing to happen."""
        return heapq.heappop(self.queue)[2]


@dataclass(slots=True)
class Usage:
    """How many of something are there and busy, integrated over time (seconds)."""

    there: int
    busy: int = 0
    there_s: float = 0.0
    busy_s: float = 0.0
    _since_s: float = 0.0

    def upto(self, now_s: float) -> Usage:
        """Bring the integrals up to date."""
        self.there_s += self.there * (now_s - self._since_s)
        self.busy_s += self.busy * (now_s - self._since_s)
        self._since_s = now_s
        return self

    @property
    def share(self) -> float:
        """Of the time that they were there: busy."""
        return self.busy_s / self.there_s if self.there_s else 0.0

    def change(self, now_s: float, *, busy: int = 0, there: int = 0) -> None:
        """So many more (or less) are busy, or there, from now on."""
        self.upto(now_s)
        self.busy += busy
        self.there += there


@dataclass(slots=True, eq=False)
class Job:
    """Takes a server for `seconds`; then `done` is called."""

    candidate: int
    seconds: float
    done: Callable[[], None]


@dataclass(slots=True)
class Station:
    """`servers` alike, one queue, first come, first served. While it is down it keeps what it was given."""

    timeline: Timeline
    servers: int
    usage: Usage = field(init=False)
    up: bool = True
    _queue: deque[Job] = field(default_factory=deque)
    #: How many of the jobs that wait are for each candidate; most candidates that are dropped have none.
    _queued: Counter[int] = field(default_factory=Counter)
    _running: dict[Job, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.usage = Usage(self.servers, _since_s=self.timeline.now_s)

    @property
    def waiting(self) -> int:
        """How many jobs wait for a server."""
        return len(self._queue)

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append(job)
        self._queued[job.candidate] += 1
        self._start()

    def drop(self, candidate: int) -> None:
        """Nobody wants to hear of this candidate any more; what runs for it is carried to its end."""
        if self._queued.pop(candidate, 0):
            self._queue = deque(job for job in self._queue if job.candidate != candidate)
        for job in self._running:
            if job.candidate == candidate:
                job.done = _nothing

    def stop(self) -> None:
        """All servers go; what they were at waits, first in the queue, and begins anew when they are back."""
        self.usage.change(self.timeline.now_s, busy=-len(self._running), there=-self.servers)
        self.up = False
        # Anew: the end that is already on the timeline must not be taken for that of the second try.
        for job in reversed(self._running):
            self._queue.appendleft(Job(job.candidate, job.seconds, job.done))
            self._queued[job.candidate] += 1
        self._running.clear()

    def resume(self) -> None:
        """All servers are back."""
        self.usage.change(self.timeline.now_s, there=self.servers)
        self.up = True
        self._start()

    def _start(self) -> None:
        while self.up and self._queue and len(self._running) < self.servers:
            job = self._queue.popleft()
            self._queued[job.candidate] -= 1
            if not self._queued[job.candidate]:
                del self._queued[job.candidate]
            self._running[job] = None
            self.usage.change(self.timeline.now_s, busy=1)
            self.timeline.later(job.seconds, partial(self._end, job))

    def _end(self, job: Job) -> None:
        if job not in self._running:
            return
        del self._running[job]
        self.usage.change(self.timeline.now_s, busy=-1)
        job.done()
        self._start()


def _nothing() -> None:
    """Whoever asked has gone."""
