"""What the timed runs cost the machine: power, energy of one run, and whether it slowed itself down.

Pure: two readings of the sensors in, numbers out. Must not know where readings come from.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_bridge.wire.quantities import Readings


@dataclass(frozen=True, slots=True)
class Effort:
    """See the fields of the same names of `edge_bridge.wire.quantities.Measurement`."""

    power_w: float | None
    joules_per_inference: float | None
    throttled: bool | None


def effort_of(before: Readings, after: Readings, elapsed_s: float, mean_s: float) -> Effort:
    """Effort of runs of `mean_s` each, back to back between two readings that are `elapsed_s` apart.

    A counter of energy is believed before the power at the two moments; one that has not moved tells nothing.
    """
    power_w = _power_w(before, after, elapsed_s)
    throttled = None
    if before.throttle_events is not None and after.throttle_events is not None:
        throttled = after.throttle_events > before.throttle_events
    return Effort(power_w, None if power_w is None else power_w * mean_s, throttled)


def _power_w(before: Readings, after: Readings, elapsed_s: float) -> float | None:
    if before.energy_j is not None and after.energy_j is not None and elapsed_s > 0:
        used_j = after.energy_j - before.energy_j
        if used_j > 0:
            return used_j / elapsed_s
    told_w = [each.power_w for each in (before, after) if each.power_w is not None]
    return sum(told_w) / len(told_w) if told_w else None
