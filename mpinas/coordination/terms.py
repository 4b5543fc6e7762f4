"""What the candidates of a run are compared by: devices, objectives, limits. Fixed as long as the run lives.

Must not know candidates, events or how anything is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: A doubtful measurement is made again, up to so many times in all; then the last one is used, and marked.
MEASUREMENTS_MAX = 3
#: An error on the device may always differ by so much from what was expected.
QUALITY_SLACK = 1e-4
#: What of a measurement is a time of one run, and may be normalised.
LATENCIES = ("p50_s", "p90_s", "p95_s", "p99_s", "mean_s")


@dataclass(frozen=True, slots=True)
class Terms:
    """The part of the experiment that a journal is read with.

    Attributes
    ----------
    limits
        Hard upper limits by quantity; what is measured must keep them on every device.
    devices
        Names of the device profiles that every candidate is measured on; never empty.
    worst
        The slowest device's latency is the one latency objective; else there is one for each device.
    rungs
        Budgets in epochs, ascending, the full one last; a candidate is compared with others after that. A first
        budget of 0: judged as inherited from the supernet.
    keep_all
        Everybody is a result, not only the front.
    quality_tolerance
        A trained model is accepted on a device if its error there differs by no more than this share.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    devices: tuple[str, ...] = ("any",)
    worst: bool = False
    rungs: tuple[int, ...] = (1,)
    quality_tolerance: float = 0.02
    keep_all: bool = False

    @property
    def last_rung(self) -> int:
        """The rung of the full budget."""
        return len(self.rungs) - 1

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, all minimised, in the order the search is told them."""
        if self.worst or len(self.devices) == 1:
            return ("error", "latency_s")
        return ("error", *(f"latency_s@{device}" for device in self.devices))

    def values(self, error: float, latencies_s: Mapping[str, float]) -> tuple[float, ...]:
        """Objectives of a candidate, from its error and its latency on each device."""
        latencies = [latencies_s[device] for device in self.devices]
        if self.worst or len(self.devices) == 1:
            return (error, max(latencies))
        return (error, *latencies)

    def accepts(self, error: float, expected: float) -> bool:
        """Is a model's error on a device close enough to that of the trained network on the same samples?"""
        return abs(error - expected) <= self.quality_tolerance * expected + QUALITY_SLACK
