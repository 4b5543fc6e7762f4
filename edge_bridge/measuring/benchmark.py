"""The measurement protocol: warm up until steady, take enough samples, say how far to trust them.

Pure about time: the clock comes in, and what is timed is a callable. Must not know runtimes, files or
sockets. Each run is timed alone, so that a model of a few microseconds is measured like one of seconds; the
input is made beforehand and its making never counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_bridge.wire.quantities import Settings

#: Most samples kept of one model (1 MB of memory at 8 bytes each, and a few seconds of a very fast model).
MOST_SAMPLES = 100_000
#: Runs, and seconds, that make up one block of the warm-up at least.
BLOCK_RUNS = 5
BLOCK_S = 0.01
#: The warm-up is over when the medians of the last blocks differ by less than this share.
STEADY_BLOCKS = 3
STEADY_SPREAD = 0.03
#: A measurement is unsteady when the medians of its halves differ by more than this share.
UNSTEADY_SPREAD = 0.05

Clock = Callable[[], int]
Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How the warm-up went."""

    runs: int
    settled: bool


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the samples say; see `edge_bridge.wire.quantities.Measurement` for the definitions."""

    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    mean_s: float
    min_s: float
    samples: int
    coefficient_of_variation: float
    unsteady: bool


def warm_up(run: Run, settings: Settings, clock_ns: Clock) -> WarmUp:
    """Run untimed until blocks of runs agree, within the bounds of the settings.

    At least `warmup_min_runs` runs, and three blocks; stops in any case, after at least one run, when
    `warmup_max_seconds` are over.
    """
    end_ns = clock_ns() + round(settings.warmup_max_seconds * 1e9)
    medians_ns: list[float] = []
    runs = 0
    while True:
        block: list[int] = []
        block_start_ns = clock_ns()
        while True:
            block.append(_time_once(run, clock_ns))
            runs += 1
            now_ns = clock_ns()
            if now_ns >= end_ns:
                return WarmUp(runs, settled=False)
            if len(block) >= BLOCK_RUNS and now_ns - block_start_ns >= BLOCK_S * 1e9:
                break
        medians_ns.append(statistics.median(block))
        recent_ns = medians_ns[-STEADY_BLOCKS:]
        if (
            runs >= settings.warmup_min_runs
            and len(recent_ns) == STEADY_BLOCKS
            and max(recent_ns) <= min(recent_ns) * (1 + STEADY_SPREAD)
        ):
            return WarmUp(runs, settled=True)


def sample(run: Run, settings: Settings, clock_ns: Clock) -> list[int]:
    """Time single runs, in nanoseconds.

    Goes on until there are enough samples and `min_seconds` are over; stops in any case, after at least one
    run, when `max_seconds` are over.
    """
    enough = settings.enough_samples()
    start_ns = clock_ns()
    least_ns = start_ns + round(settings.min_seconds * 1e9)
    most_ns = start_ns + round(settings.max_seconds * 1e9)
    samples_ns: list[int] = []
    while True:
        samples_ns.append(_time_once(run, clock_ns))
        now_ns = clock_ns()
        if now_ns >= most_ns or len(samples_ns) >= MOST_SAMPLES:
            return samples_ns
        if len(samples_ns) >= enough and now_ns >= least_ns:
            return samples_ns


def summarise(samples_ns: Sequence[int]) -> Statistics:
    """Statistics of samples in the order they were taken."""
    ordered = sorted(samples_ns)
    mean_ns = statistics.fmean(ordered)
    half = len(samples_ns) // 2
    unsteady = False
    if half:
        first, second = statistics.median(samples_ns[:half]), statistics.median(samples_ns[half:])
        unsteady = max(first, second) > min(first, second) * (1 + UNSTEADY_SPREAD)
    return Statistics(
        p50_s=percentile(ordered, 0.50) / 1e9,
        p90_s=percentile(ordered, 0.90) / 1e9,
        p95_s=percentile(ordered, 0.95) / 1e9,
        p99_s=percentile(ordered, 0.99) / 1e9,
        mean_s=mean_ns / 1e9,
        min_s=ordered[0] / 1e9,
        samples=len(ordered),
        coefficient_of_variation=statistics.pstdev(ordered) / mean_ns if mean_ns else 0.0,
        unsteady=unsteady,
    )


def percentile(ordered: Sequence[int], share: float) -> int:
    """Nearest-rank percentile: smallest value that at least `share` of the values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def _time_once(run: Run, clock_ns: Clock) -> int:
    start_ns = clock_ns()
    run()
    return clock_ns() - start_ns
