"""A main thread that hangs while its process lives on, as in a call to a driver that never returns.

Signs of life say nothing of it, and where a rank trains alone no collective fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

#: Between two looks no more than this counts: who did not look was itself stopped, and the main thread with it.
LOOK_S = 10.0


@dataclass(slots=True)
class Post:
    """What a rank is at, for whoever has to say what it was at, and how it gets on."""

    #: Of the run, once it is known.
    folder: str = ""
    #: "candidate 7", as far as there is one.
    work: str = ""
    #: Grows while there is work and the main thread gets on with it.
    steps: int = 0

    def __str__(self) -> str:
        return f", at work on {self.work}" if self.work else ""

    def step(self) -> None:
        """The main thread has got on."""
        self.steps += 1


class Standstill:
    """Watches a post from another thread; `look` often."""

    def __init__(self, post: Post, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._post = post
        self._limit_s = limit_s
        self._clock = clock
        self._seen = ("", 0)
        self._looked_s = clock()
        self._still_s = 0.0

    def look(self) -> bool:
        """Whether the work stands still for longer than the limit."""
        now_s, seen = self._clock(), (self._post.work, self._post.steps)
        passed_s, self._looked_s = now_s - self._looked_s, now_s
        if seen != self._seen or not self._post.work:
            self._seen, self._still_s = seen, 0.0
        else:
            self._still_s += min(passed_s, LOOK_S)
        return self._still_s > self._limit_s
