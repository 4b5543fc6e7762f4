"""Whether the device is still its usual self, judged by a small reference model: readings in, verdicts out.

The expected reading is the median of the first ones ever taken under this profile that agree with each other. Slower
than that, a device waits to cool down; faster, it was learned on a busy or throttled device and is learned anew. Pure:
the time comes in, and neither measuring nor waiting happens here. Must not know files, sockets or models.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DriftPlan:
    """When to take a reading, and what to make of it.

    Attributes
    ----------
    every_requests, every_s
        A reading is due after so many requests, or before the next request after so long.
    band
        A reading may differ from the expected one by this share.
    first_wait_s, most_wait_s
        Out of its band the device waits so long, then twice as long and so on; in all at most so long.
    learned_from, most_learning
        So many readings in a row, all but one within the band of their median, are learned: that median is expected
        from then on. Where they never agree, the last of so many readings are.
    """

    every_requests: int = 20
    every_s: float = 600.0
    band: float = 0.10
    first_wait_s: float = 5.0
    most_wait_s: float = 120.0
    learned_from: int = 5
    most_learning: int = 20


class Verdict(enum.Enum):
    """What follows from a reading."""

    #: More readings are wanted at once, to know what to expect.
    LEARNING = "learning"
    #: In band: what was measured since the last such reading stands.
    GOOD = "good"
    #: Out of band for the first time: read once more at once, for it may be the reading that was disturbed.
    AGAIN = "again"
    #: Too slow twice: wait (`Drift.wait_until_s`) and read again; what was measured since is doubtful.
    COOLING = "cooling"
    #: Too slow for as long as may be waited: go on, and say so with each measurement.
    OUT = "out"
    #: Too fast twice, which no waiting mends: what was measured since is doubtful, and the readings that follow are
    #: learned anew.
    FASTER = "faster"


class _State(enum.Enum):
    GOOD = "good"
    SUSPECTED = "suspected"
    COOLING = "cooling"
    OUT = "out"


@dataclass(slots=True)
class Drift:
    """The watch over one device.

    Parameters
    ----------
    plan
        When and how.
    learned
        The readings that an earlier run has learned from; [] where none has.
    """

    plan: DriftPlan
    learned: Sequence[float] = ()
    last_p50_s: float | None = None
    in_band: bool = True
    #: While cooling: no reading before this moment.
    wait_until_s: float = 0.0
    #: Median of the readings learned from; None while they are learned.
    expected_s: float | None = None
    _readings: list[float] = field(default_factory=list)
    _read_at_s: float = 0.0
    _requests: int = 0
    _state: _State = _State.GOOD
    _waits: int = 0
    _waited_s: float = 0.0

    def __post_init__(self) -> None:
        if len(self.learned) >= self.plan.learned_from:
            self._readings = list(self.learned)
            self.expected_s = statistics.median(self._recent())

    @property
    def cooling(self) -> bool:
        """Whether the device waits for its usual self to come back, or has just been found out of band."""
        return self._state in (_State.SUSPECTED, _State.COOLING)

    @property
    def learned_readings(self) -> tuple[float, ...]:
        """The readings that the expected one was made from; none while it is being learned."""
        return () if self.expected_s is None else self._recent()

    def measured(self) -> None:
        """Count a request that was measured."""
        self._requests += 1

    def due(self, now_s: float, waited_for: bool) -> bool:
        """Whether a reading is to be taken before anything else is measured.

        Parameters
        ----------
        waited_for
            Something waits to be measured. An idle device takes a reading only to settle what it has measured.
        """
        if self.last_p50_s is None or self.expected_s is None:
            return True
        if self.cooling:
            return now_s >= self.wait_until_s
        old = now_s - self._read_at_s >= self.plan.every_s
        return self._requests >= self.plan.every_requests or (old and (waited_for or self._requests > 0))

    def age_s(self, now_s: float) -> float:
        """Time since the last reading."""
        return max(0.0, now_s - self._read_at_s)

    def off_by(self) -> float:
        """Share by which the last reading differs from the expected one; positive is slower."""
        expected_s = self.expected_s
        return 0.0 if expected_s is None or self.last_p50_s is None else self.last_p50_s / expected_s - 1

    def read(self, p50_s: float, now_s: float) -> Verdict:
        """Take a reading."""
        self.last_p50_s, self._read_at_s, self._requests = p50_s, now_s, 0
        if self.expected_s is None:
            return self._learn(p50_s)
        self.in_band = abs(self.off_by()) <= self.plan.band
        if self.in_band:
            return self._settle(Verdict.GOOD)
        if self._state is _State.GOOD:
            self._state, self.wait_until_s = _State.SUSPECTED, now_s
            return Verdict.AGAIN
        if self.off_by() < 0:
            self.expected_s, self._readings = None, []
            return self._settle(Verdict.FASTER)
        wait_s = min(self.plan.first_wait_s * 2**self._waits, self.plan.most_wait_s - self._waited_s)
        if self._state is _State.OUT or wait_s <= 0:
            self._state, self._waits, self._waited_s = _State.OUT, 0, 0.0
            return Verdict.OUT
        self._state = _State.COOLING
        self._waits += 1
        self._waited_s += wait_s
        self.wait_until_s = now_s + wait_s
        return Verdict.COOLING

    def _learn(self, p50_s: float) -> Verdict:
        self._readings.append(p50_s)
        recent = self._recent()
        if len(recent) < self.plan.learned_from:
            return Verdict.LEARNING
        median_s = statistics.median(recent)
        agreeing = sum(abs(each / median_s - 1) <= self.plan.band for each in recent)
        if agreeing < len(recent) - 1 and len(self._readings) < self.plan.most_learning:
            return Verdict.LEARNING
        # The last of them alone says less than all of them.
        self.expected_s = self.last_p50_s = median_s
        self.in_band = True
        return self._settle(Verdict.GOOD)

    def _settle(self, verdict: Verdict) -> Verdict:
        self._state, self._waits, self._waited_s = _State.GOOD, 0, 0.0
        return verdict

    def _recent(self) -> tuple[float, ...]:
        return tuple(self._readings[-self.plan.learned_from :])
