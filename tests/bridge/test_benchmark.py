"""The measurement protocol, by value: a clock that only the runs move, and simulated samples for the interval."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest

from edge_bridge.measuring.benchmark import (
    MOST_PAUSE_S,
    MOST_SAMPLES,
    interval_ranks,
    pause_before_next_s,
    percentile,
    run_on,
    sample,
    summarise,
    warm_up,
)
from edge_bridge.wire.quantities import Settings

MS = 1_000_000


class Clock:
    """Time in nanoseconds; each run of the model takes the next of the given durations."""

    def __init__(self, durations_ns: Iterable[int]) -> None:
        self.now_ns = 0
        self.runs = 0
        self._durations = iter(durations_ns)

    def __call__(self) -> int:
        return self.now_ns

    def run(self) -> None:
        self.runs += 1
        self.now_ns += next(self._durations)


def test_percentiles_are_nearest_rank():
    ordered = list(range(1, 101))
    assert [percentile(ordered, share) for share in (0.5, 0.9, 0.95, 0.99)] == [50, 90, 95, 99]
    assert percentile([7], 0.99) == 7
    assert percentile(list(range(1, 65)), 0.90) == 58


def test_statistics_by_value():
    found = summarise([3 * MS, 1 * MS, 1 * MS, 3 * MS])
    assert (found.p50_s, found.p90_s, found.mean_s, found.min_s) == (0.001, 0.003, 0.002, 0.001)
    assert (found.samples, found.coefficient_of_variation, found.unsteady) == (4, 0.5, False)


@pytest.mark.parametrize(("later_ns", "unsteady"), [(104_000, False), (106_000, True), (96_000, False), (94_000, True)])
def test_halves_that_disagree_are_unsteady(later_ns, unsteady):
    assert summarise([100_000] * 32 + [later_ns] * 32).unsteady is unsteady


def test_a_steady_model_is_warm_after_three_blocks():
    clock = Clock(itertools.repeat(4 * MS))
    assert warm_up(clock.run, Settings(), clock) == warm_up(clock.run, Settings(), clock)
    assert clock.runs == 30


def test_the_warm_up_waits_until_runs_are_steady():
    # Blocks of five runs: 10, 8, 6, 4, 4, 4 ms.
    slow = itertools.chain.from_iterable([each * MS] * 5 for each in (10, 8, 6))
    clock = Clock(itertools.chain(slow, itertools.repeat(4 * MS)))
    warm = warm_up(clock.run, Settings(), clock)
    assert (warm.runs, warm.settled, warm.last_s) == (30, True, 0.004)


def test_blocks_of_a_fast_model_last_ten_milliseconds():
    clock = Clock(itertools.repeat(MS // 10))
    assert warm_up(clock.run, Settings(), clock).runs == 300


def test_the_least_number_of_warm_up_runs_is_kept():
    clock = Clock(itertools.repeat(4 * MS))
    assert warm_up(clock.run, Settings(warmup_min_runs=17), clock).runs == 20


def test_a_warm_up_that_never_settles_ends_with_its_time():
    clock = Clock(itertools.count(MS, MS))
    warm = warm_up(clock.run, Settings(warmup_max_seconds=1.0), clock)
    # 1 + 2 + … + 45 ms is the first sum over one second.
    assert (warm.runs, warm.settled, warm.last_s) == (45, False, 0.045)


def test_a_very_slow_model_is_run_once_to_warm_up():
    clock = Clock(itertools.repeat(5000 * MS))
    assert warm_up(clock.run, Settings(), clock).runs == 1


def test_samples_are_enough_and_long_enough():
    settings = Settings(percentile="p90", min_seconds=0.2)
    clock = Clock(itertools.repeat(10 * MS))
    assert sample(clock.run, settings, clock) == [10 * MS] * 64
    clock = Clock(itertools.repeat(MS))
    assert len(sample(clock.run, settings, clock)) == 200
    assert len(sample(clock.run, Settings(percentile="p99"), clock)) == 662


def test_sampling_ends_with_its_time():
    clock = Clock(itertools.repeat(100 * MS))
    assert len(sample(clock.run, Settings(max_seconds=1.0), clock)) == 10
    assert len(sample(clock.run, Settings(max_seconds=0.05), clock)) == 1


def test_a_very_fast_model_is_measured_to_the_end_and_what_is_kept_lies_evenly():
    # 15 ms of the first, 15 ms of the second: 225,000 runs. At 100,000 kept, and again, every second is dropped.
    clock = Clock(itertools.chain(itertools.repeat(100, 150_000), itertools.repeat(200)))
    kept = sample(clock.run, Settings(min_seconds=0.03), clock)
    assert clock.runs == 225_000
    assert kept == [100] * 37_500 + [200] * 18_750


def test_as_many_samples_as_were_asked_for_are_kept():
    clock = Clock(itertools.repeat(100))
    assert len(sample(clock.run, Settings(samples=100_000, min_seconds=0.03), clock)) == 150_000


@pytest.mark.parametrize(("run_ns", "runs"), [(4 * MS, 5), (MS, 10)])
def test_running_on_goes_by_runs_and_by_time(run_ns, runs):
    clock = Clock(itertools.repeat(run_ns))
    assert len(list(run_on(clock.run, 5, 0.01, clock))) == clock.runs == runs


@pytest.mark.parametrize(
    ("samples", "share", "ranks"),
    [
        # Computed once in exact fractions. The fewest samples that a percentile needs (MLPerf's rule) are enough
        # for both sides.
        (64, 0.90, (51, 64)),
        (130, 0.95, (116, 130)),
        (662, 0.99, (648, 662)),
        # Half of the risk on each side: 0.9 ** 51 is below 0.005, 0.9 ** 50 is above.
        (51, 0.90, (40, 51)),
        (50, 0.90, None),
        (1, 0.90, None),
        # Symmetric about the median.
        (16, 0.50, (3, 14)),
    ],
)
def test_ranks_of_the_interval(samples, share, ranks):
    assert interval_ranks(samples, share) == ranks


def test_ranks_of_very_many_samples_are_about_a_normal_width_apart():
    lower, upper = interval_ranks(MOST_SAMPLES, 0.99)
    # 2.576 standard deviations of a binomial with 100,000 trials and 0.99: 81.
    assert (lower, upper) == (98_918, 99_081)


@pytest.mark.parametrize(("samples", "share"), [(64, 0.90), (200, 0.90), (130, 0.95), (662, 0.99), (1000, 0.99)])
def test_the_interval_covers_as_it_says(samples, share):
    """Of 20,000 measurements of a skewed model, 99 % or a little more have the true percentile in the interval."""
    rng = np.random.default_rng(7)
    truth = -np.log(1 - share)
    lower, upper = interval_ranks(samples, share)
    covered = 0
    for _ in range(10):
        drawn = np.sort(rng.exponential(size=(2000, samples)), axis=1)  # (measurements, samples)
        covered += np.count_nonzero((drawn[:, lower - 1] <= truth) & (truth <= drawn[:, upper - 1]))
    # At least 0.99 but for chance (4 standard deviations); not above what whole ranks force.
    assert 0.99 - 4 * (0.99 * 0.01 / 20_000) ** 0.5 <= covered / 20_000 <= 0.9985


def test_the_interval_is_told_of_the_percentile_asked_for():
    samples_ns = [each * MS for each in range(1, 201)]
    assert summarise(samples_ns, "p90").interval_s == (0.168, 0.191)
    assert summarise(samples_ns, "p95").interval_s == (0.181, 0.198)
    assert summarise(samples_ns, "p99").interval_s is None


def test_an_unsteady_model_is_measured_again_after_pauses_that_double():
    settings = Settings(attempts=4, pause_seconds=1.5)
    assert [pause_before_next_s(done, True, settings) for done in (1, 2, 3, 4)] == [1.5, 3.0, 6.0, None]
    assert pause_before_next_s(1, False, settings) is None
    assert pause_before_next_s(1, True, Settings(attempts=1)) is None
    assert pause_before_next_s(9, True, Settings(attempts=10, pause_seconds=600)) == MOST_PAUSE_S
