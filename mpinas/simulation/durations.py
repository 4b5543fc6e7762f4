"""How long things take: distributions to draw seconds from. A draw depends on its key alone, not on those before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Duration(Protocol):
    """Seconds that something takes, different each time."""

    def draw(self, key: Sequence[int]) -> float:
        """Seconds; the same for the same key, whatever else was drawn."""
        ...

    @property
    def mean_s(self) -> float:
        """Mean of the distribution."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same."""

    seconds: float

    def draw(self, key: Sequence[int]) -> float:
        """That."""
        return self.seconds

    @property
    def mean_s(self) -> float:
        """That."""
        return self.seconds


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Mean in seconds; `spread`: standard deviation of the logarithm (0.5: two of three within a factor of 1.65)."""

    mean_s: float
    spread: float

    def draw(self, key: Sequence[int]) -> float:
        """One draw."""
        z = np.random.default_rng(key).standard_normal()
        return self.mean_s * math.exp(self.spread * z - self.spread**2 / 2)


@dataclass(frozen=True, slots=True)
class Empirical:
    """One of the seconds that were seen, each as likely as the other."""

    seen_s: tuple[float, ...]

    def draw(self, key: Sequence[int]) -> float:
        """One of them."""
        return self.seen_s[int(np.random.default_rng(key).integers(len(self.seen_s)))]

    @property
    def mean_s(self) -> float:
        """Their mean."""
        return sum(self.seen_s) / len(self.seen_s)


def around(mean_s: float, spread: float) -> Duration:
    """Log-normal around a mean, or fixed where there is no spread."""
    return LogNormal(mean_s, spread) if spread else Fixed(mean_s)
