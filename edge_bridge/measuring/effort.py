"""What the timed runs cost the machine: power, energy of one inference, and whether it slowed itself down.

Pure: readings of the sensors in, numbers out. Must not know where readings come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_bridge.wire.quantities import Readings


@dataclass(frozen=True, slots=True)
class Effort:
    """See the fields of the same names of `edge_bridge.wire.quantities.Measurement`."""

    power_w: float | None
    joules_per_inference: float | None
    throttled: bool | None


def effort_of(before: Readings, after: Readings, power_w: float | None, run_s: float, batch: int) -> Effort:
    """Effort of runs of `batch` inferences and `run_s` each, at this power, between two readings."""
    joules = None if power_w is None else power_w * run_s / batch
    return Effort(power_w, joules, throttled_between(before, after))


def throttled_between(before: Readings, after: Readings) -> bool | None:
    """Whether the machine slowed itself down; None where it does not tell."""
    if before.throttle_events is None or after.throttle_events is None:
        return None
    return after.throttle_events > before.throttle_events


def counted_power_w(before_j: float | None, after_j: float | None, elapsed_s: float) -> float | None:
    """Mean power by a counter of energy; one that has not moved, or went back, tells nothing."""
    if before_j is None or after_j is None or elapsed_s <= 0 or after_j <= before_j:
        return None
    return (after_j - before_j) / elapsed_s


def mean_power_w(told_w: Sequence[float | None]) -> float | None:
    """Mean of the readings that told anything."""
    known = [each for each in told_w if each is not None]
    return sum(known) / len(known) if known else None
