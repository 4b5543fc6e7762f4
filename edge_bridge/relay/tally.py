"""What the relay counts for whoever asks how it is: answers in the last minute, the last error.

Pure: the time comes in. Must not decide anything.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

SPAN_S = 60


@dataclass(slots=True)
class Tally:
    """Counts of one relay."""

    #: (second, answers in it), oldest first, at most SPAN_S of them.
    _seconds: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=SPAN_S))
    last_error: str = ""
    last_error_s: float | None = None

    def answered(self, now_s: float) -> None:
        """One request has been answered."""
        second = int(now_s)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1] + 1)
        else:
            self._seconds.append((second, 1))

    def per_minute(self, now_s: float) -> int:
        """Answers in the last minute."""
        return sum(count for second, count in self._seconds if now_s - second <= SPAN_S)

    def error(self, text: str, now_s: float) -> None:
        """Something has failed."""
        self.last_error, self.last_error_s = text[:500], now_s
