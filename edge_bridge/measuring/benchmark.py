"""The measurement protocol: warm up until steady, take enough samples, say how far to trust them, and whether
to take them again.

Pure about time: the clock comes in, and what is timed is a callable. Must not know runtimes, files or
sockets. Each run is timed alone, so that a model of a few microseconds is measured like one of seconds; the
input is made beforehand and its making never counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edge_bridge.wire.quantities import Percentile, Settings

#: Most samples kept of one model, unless more are asked for: a few seconds of a very fast model.
MOST_SAMPLES = 100_000
#: Runs, and seconds, that make up one block of the warm-up at least.
BLOCK_RUNS = 5
BLOCK_S = 0.01
#: The warm-up is over when the medians of the last blocks differ by less than this share.
STEADY_BLOCKS = 3
STEADY_SPREAD = 0.03
#: A run that takes longer is not repeated only to bring the clocks up or to see the power: it does so by itself.
LONG_RUN_S = 0.1
#: Runs, and seconds, over which the power is looked at, at least.
LOADED_RUNS = 3
LOADED_S = 0.3
#: A measurement is unsteady when the medians of its halves differ by more than this share.
UNSTEADY_SPREAD = 0.05
#: Of the interval that is told with the percentile asked for.
CONFIDENCE = 0.99
#: No pause between two attempts is longer.
MOST_PAUSE_S = 600.0
_SHARES: dict[Percentile, float] = {"p90": 0.90, "p95": 0.95, "p99": 0.99}

Clock = Callable[[], int]
Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How the warm-up went."""

    runs: int
    settled: bool
    #: How long the last run took.
    last_s: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the samples say; see `edge_bridge.wire.quantities.Timing` for the definitions."""

    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    mean_s: float
    min_s: float
    samples: int
    coefficient_of_variation: float
    unsteady: bool
    interval_s: tuple[float, float] | None


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
                return WarmUp(runs, settled=False, last_s=block[-1] / 1e9)
            if len(block) >= BLOCK_RUNS and now_ns - block_start_ns >= BLOCK_S * 1e9:
                break
        medians_ns.append(statistics.median(block))
        recent_ns = medians_ns[-STEADY_BLOCKS:]
        if (
            runs >= settings.warmup_min_runs
            and len(recent_ns) == STEADY_BLOCKS
            and max(recent_ns) <= min(recent_ns) * (1 + STEADY_SPREAD)
        ):
            return WarmUp(runs, settled=True, last_s=block[-1] / 1e9)


def run_on(run: Run, least_runs: int, least_s: float, clock_ns: Clock) -> Iterator[None]:
    """Run untimed, at least so often and so long; yields after each run."""
    end_ns = clock_ns() + round(least_s * 1e9)
    runs = 0
    while runs < least_runs or clock_ns() < end_ns:
        run()
        runs += 1
        yield


def sample(run: Run, settings: Settings, clock_ns: Clock) -> list[int]:
    """Time single runs, in nanoseconds.

    Goes on until there are enough samples and `min_seconds` are over; stops in any case, after at least one
    run, when `max_seconds` are over. Where they become too many to keep, every second one is dropped, and from then on
    half as many are kept: those that are returned lie evenly over the whole time.
    """
    enough = settings.enough_samples()
    # Half of them are still enough.
    most = max(MOST_SAMPLES, 2 * enough)
    start_ns = clock_ns()
    least_ns = start_ns + round(settings.min_seconds * 1e9)
    most_ns = start_ns + round(settings.max_seconds * 1e9)
    samples_ns: list[int] = []
    runs, stride = 0, 1
    while True:
        took_ns = _time_once(run, clock_ns)
        if runs % stride == 0:
            samples_ns.append(took_ns)
        runs += 1
        now_ns = clock_ns()
        if now_ns >= most_ns or (len(samples_ns) >= enough and now_ns >= least_ns):
            return samples_ns
        if len(samples_ns) >= most:
            del samples_ns[1::2]
            stride *= 2


def summarise(samples_ns: Sequence[int], wanted: Percentile = "p90") -> Statistics:
    """Statistics of samples in the order they were taken; `interval_s` is that of the percentile `wanted`."""
    ordered = sorted(samples_ns)
    values_s = np.asarray(ordered, dtype=np.float64) / 1e9
    mean_s = float(values_s.mean())
    half = len(samples_ns) // 2
    unsteady = False
    if half:
        first, second = statistics.median(samples_ns[:half]), statistics.median(samples_ns[half:])
        unsteady = max(first, second) > min(first, second) * (1 + UNSTEADY_SPREAD)
    ranks = interval_ranks(len(ordered), _SHARES[wanted])
    return Statistics(
        p50_s=percentile(ordered, 0.50) / 1e9,
        p90_s=percentile(ordered, 0.90) / 1e9,
        p95_s=percentile(ordered, 0.95) / 1e9,
        p99_s=percentile(ordered, 0.99) / 1e9,
        mean_s=mean_s,
        min_s=ordered[0] / 1e9,
        samples=len(ordered),
        coefficient_of_variation=float(values_s.std()) / mean_s if mean_s else 0.0,
        unsteady=unsteady,
        interval_s=None if ranks is None else (ordered[ranks[0] - 1] / 1e9, ordered[ranks[1] - 1] / 1e9),
    )


def percentile(ordered: Sequence[int], share: float) -> int:
    """Nearest-rank percentile: smallest value that at least `share` of the values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def interval_ranks(samples: int, share: float, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """Ranks (from 1) of the two ordered samples between which a quantile lies with this confidence.

    Nothing is assumed of the distribution, only that the samples are independent: the number of samples below the
    quantile is binomial with probability `share`. Samples of one machine are correlated (clocks, heat, other programs),
    and the interval is then too narrow. Each side is given half of the risk. None where the samples are too few for one
    of the sides.

    Source: H. A. David, H. N. Nagaraja, Order Statistics, 3rd edition, Wiley 2003, section 7.1.
    """
    risk = (1 - confidence) / 2
    below = np.arange(samples)
    # log P(B = k), from P(B = 0) on by the ratio of neighbours: no factorial overflows.
    log_first = samples * math.log1p(-share)
    log_ratios = np.log((samples - below) / (below + 1)) + math.log(share) - math.log1p(-share)
    log_probabilities = log_first + np.concatenate(([0.0], np.cumsum(log_ratios)))
    at_most = np.cumsum(np.exp(log_probabilities))  # P(B <= k), k = 0 ... samples
    lower = int(np.searchsorted(at_most, risk, side="right"))
    # Smallest rank u with P(B >= u) <= risk.
    upper = int(np.searchsorted(at_most, 1 - risk, side="left")) + 1
    return (lower, upper) if lower >= 1 and upper <= samples else None


def pause_before_next_s(attempts: int, doubtful: bool, settings: Settings) -> float | None:
    """Pause before a model is measured once more, after so many attempts; None when the last one is to stand."""
    if not doubtful or attempts >= settings.attempts:
        return None
    return min(settings.pause_seconds * 2.0 ** (attempts - 1), MOST_PAUSE_S)


def _time_once(run: Run, clock_ns: Clock) -> int:
    start_ns = clock_ns()
    run()
    return clock_ns() - start_ns
