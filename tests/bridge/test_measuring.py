"""Measuring by value: inputs, effort, quality, repeated attempts, limits; no processes and no clock but ours."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from test_benchmark import MS, Clock

from edge_bridge.measuring.effort import Effort, counted_power_w, effort_of, mean_power_w
from edge_bridge.measuring.inputs import UnmeasurableError, make_inputs
from edge_bridge.measuring.lines import FailureLine, MeasureOrder, PhaseLine
from edge_bridge.measuring.quality import batch_for, error_of, outputs_over, read_shard
from edge_bridge.measuring.rehearsal import rehearse
from edge_bridge.measuring.runtimes import InputSpec
from edge_bridge.measuring.watch import ChildLimits, Watch, phase_limit_s, work_limit_s
from edge_bridge.measuring.work import Surroundings, measure, take
from edge_bridge.wire.quantities import Measurement, Profile, QualitySettings, Readings, Settings, Shard

FLOAT = np.dtype(np.float32)


def test_inputs_are_made_by_type():
    specs = [
        InputSpec("f", (None, 3), np.dtype(np.float16)),
        InputSpec("u", (2, 1000), np.dtype(np.uint8)),
        InputSpec("i", (2,), np.dtype(np.int64)),
    ]
    inputs = make_inputs(specs, batch=2)
    assert [(name, each.shape, str(each.dtype)) for name, each in inputs.items()] == [
        ("f", (2, 3), "float16"),
        ("u", (2, 1000), "uint8"),
        ("i", (2,), "int64"),
    ]
    assert inputs["u"].max() > 200
    assert set(inputs["i"]) <= {0, 1}
    np.testing.assert_array_equal(inputs["f"], make_inputs(specs, batch=2)["f"])


@pytest.mark.parametrize(
    ("shape", "reason"), [((1, None), "unsupported"), ((4, 3), "unsupported"), ((None, 2**40), "too-large")]
)
def test_inputs_that_cannot_be_made_have_a_reason(shape, reason):
    with pytest.raises(UnmeasurableError) as caught:
        make_inputs([InputSpec("x", shape, FLOAT)], batch=2)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("before", "after", "power_w", "effort"),
    [
        # A run of 2 ms at 6 W takes 12 mJ, and has four samples in it.
        (Readings(), Readings(), 6.0, Effort(6.0, 0.003, None)),
        # What was told when nothing ran is not the power.
        (Readings(power_w=4.0), Readings(power_w=6.0), None, Effort(None, None, None)),
        (Readings(throttle_events=3), Readings(throttle_events=3), None, Effort(None, None, False)),
        (Readings(throttle_events=3), Readings(throttle_events=4), None, Effort(None, None, True)),
        (Readings(throttle_events=3), Readings(), None, Effort(None, None, None)),
    ],
)
def test_effort(before, after, power_w, effort):
    assert effort_of(before, after, power_w, run_s=0.002, batch=4) == effort


@pytest.mark.parametrize(
    ("before_j", "after_j", "power_w"),
    # A counter that stands still, or goes back, tells nothing.
    [(10.0, 13.0, 6.0), (10.0, 10.0, None), (10.0, 9.0, None), (None, 13.0, None), (10.0, None, None)],
)
def test_power_by_a_counter_of_energy(before_j, after_j, power_w):
    assert counted_power_w(before_j, after_j, 0.5) == power_w


def test_power_by_readings():
    assert mean_power_w([4.0, None, 6.0]) == 5.0
    assert mean_power_w([None]) is None


class Bench:
    """A model with given durations, sensors that say what is given, and a note of all that happened.

    Of the sensors it is noted after how many runs they were read.
    """

    def __init__(self, durations_ns, readings=(), joules=(), watts=()) -> None:
        self.clock = Clock(durations_ns)
        self.told: list[object] = []
        self._readings = iter(readings)
        self._joules = iter(joules)
        self._watts = iter(watts)
        self.around = Surroundings(self.told.append, self._read, self._energy_j, self._power_w, self.clock, self._sleep)

    def _read(self) -> Readings:
        self.told.append(("read", self.clock.runs))
        return next(self._readings, Readings())

    def _energy_j(self) -> float | None:
        self.told.append(("energy", self.clock.runs))
        return next(self._joules, None)

    def _power_w(self) -> float | None:
        self.told.append(("power", self.clock.runs))
        return next(self._watts, None)

    def _sleep(self, seconds: float) -> None:
        self.told.append(seconds)
        self.clock.now_ns += round(seconds * 1e9)


#: Warm after one run, and 64 samples of it.
BRIEF = Settings(min_seconds=0.0, warmup_max_seconds=1e-9, warmup_min_runs=1, pause_seconds=2.0)


def test_a_steady_model_is_measured_once_between_two_readings():
    bench = Bench(itertools.repeat(MS), joules=[1.0, 1.64])
    taken = take(bench.clock.run, 8, BRIEF, bench.around)
    # Behind the first reading a block of 10 ms, which does not count, and then the 64 runs that do.
    assert bench.told == [
        PhaseLine("warming", batch=8), PhaseLine("measuring", batch=8), ("read", 1), ("energy", 11), ("energy", 75),
        ("power", 75), ("read", 75),
    ]  # fmt: skip
    assert (taken.attempts, taken.found.samples, taken.found.unsteady) == (1, 64, False)
    # 0.64 J in 64 ms, and each run 1 ms for eight samples.
    assert (taken.effort.power_w, taken.effort.joules_per_inference) == pytest.approx((10.0, 0.010 / 8))
    assert bench.clock.runs == 75


def test_without_a_counter_power_is_read_between_runs_that_are_not_timed():
    bench = Bench(itertools.repeat(MS), watts=[3.0, *itertools.repeat(20.0, 150), *itertools.repeat(30.0, 150)])
    taken = take(bench.clock.run, 4, BRIEF, bench.around)
    assert taken.found.samples == 64
    # 0.3 s of runs, and not what was read when the timed runs were over.
    assert (taken.effort.power_w, taken.effort.joules_per_inference) == pytest.approx((25.0, 0.025 / 4))
    powers = [each for each in bench.told if isinstance(each, tuple) and each[0] == "power"]
    assert powers == [("power", runs) for runs in range(75, 376)]


def test_a_long_run_is_not_repeated_for_the_clocks_or_the_power():
    bench = Bench(itertools.repeat(200 * MS), watts=[12.0, 1.0])
    taken = take(bench.clock.run, 1, BRIEF, bench.around)
    assert bench.clock.runs == 1 + 64
    assert (taken.effort.power_w, taken.effort.joules_per_inference) == pytest.approx((12.0, 2.4))


def test_a_model_that_becomes_steady_is_told_by_its_last_attempt():
    # A run to warm up, a block of ten, 64 samples.
    unsteady = [MS] * 43 + [2 * MS] * 32
    bench = Bench(itertools.chain(unsteady, unsteady, itertools.repeat(3 * MS)))
    taken = take(bench.clock.run, 1, BRIEF, bench.around)
    assert (taken.attempts, taken.found.p50_s, taken.found.unsteady) == (3, 0.003, False)
    assert [each for each in bench.told if isinstance(each, float)] == [2.0, 4.0]
    phases = [(each.phase, each.attempt) for each in bench.told if isinstance(each, PhaseLine)]
    assert phases == [
        ("warming", 1), ("measuring", 1), ("cooling", 1), ("warming", 2), ("measuring", 2), ("cooling", 2),
        ("warming", 3), ("measuring", 3),
    ]  # fmt: skip


def test_a_model_that_stays_unsteady_says_so():
    bench = Bench(itertools.count(MS, MS // 10))
    taken = take(bench.clock.run, 1, BRIEF, bench.around)
    assert (taken.attempts, taken.found.unsteady) == (3, True)


def test_a_throttled_model_is_measured_again():
    events = [Readings(throttle_events=each) for each in (0, 1, 1, 1)]
    bench = Bench(itertools.repeat(MS), events)
    taken = take(bench.clock.run, 1, BRIEF, bench.around)
    assert (taken.attempts, taken.effort.throttled) == (2, False)


class Slow:
    """A runtime with one model, whose runs move the clock of a bench."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.inputs = (InputSpec("x", (None, 2), FLOAT),)

    def precisions(self, provider):
        return ("model",)

    def load(self, model, provider, threads, precision):
        return self

    def bind(self, inputs):
        return self._bench.clock.run


def measured(bench: Bench, provider: str = "cpu", **other: object) -> Measurement:
    profile = Profile(name="dut", hardware="", runtime="slow", provider=provider, versions={})
    settings = Settings(min_seconds=0.0, attempts=1, **other)
    order = MeasureOrder(settings=settings, profile=profile, memory_limit_bytes=0)
    return measure(order, Path("/dev/null"), Slow(bench), bench.around)


def test_the_first_run_at_each_batch_size_is_loading_and_not_warming():
    # Engines that take 40 s and 20 s; the warm-up would be given up after 3 s. Then 30 + 10 + 64 runs for each.
    one = [MS] * 104
    bench = Bench([40_000 * MS, *one, 20_000 * MS, *one])
    found = measured(bench, batches=(1, 8))
    phases = [(each.phase, each.batch) for each in bench.told if isinstance(each, PhaseLine)]
    assert phases == [
        ("loading", None), ("loading", 1), ("warming", 1), ("measuring", 1),
        ("loading", 8), ("warming", 8), ("measuring", 8),
    ]  # fmt: skip
    assert 60.0 <= found.load_s < 61.0
    assert [each.warmup_settled for each in (found, *found.other_batches)] == [True, True]
    assert found.p99_s == 0.001


@pytest.mark.parametrize(("provider", "power_w"), [("cpu", 10.0), ("cuda", None)])
def test_the_energy_of_the_cpu_says_nothing_of_another_processor(provider, power_w):
    found = measured(Bench(itertools.repeat(MS), joules=[1.0, 1.64]), provider)
    assert found.power_w == (power_w and pytest.approx(power_w))
    assert found.joules_per_inference == (power_w and pytest.approx(power_w * 0.001))


def test_power_of_the_board_holds_for_every_processor():
    assert measured(Bench(itertools.repeat(MS), watts=itertools.repeat(15.0)), "cuda").power_w == pytest.approx(15.0)


def test_a_rehearsal_is_a_whole_measurement():
    measurement = rehearse(lambda: Readings(sensor="test")).measurement
    assert (measurement.samples, measurement.before) == (64, Readings(sensor="test"))


LIMITS = ChildLimits(load_s=100.0, stall_s=10.0)


def test_each_phase_has_its_limit():
    settings = Settings(max_seconds=30, warmup_max_seconds=3, attempts=3, pause_seconds=5, batches=(1, 2))
    limits = {
        each: phase_limit_s(each, settings, LIMITS) for each in ("queued", "loading", "warming", "measuring", "cooling")
    }
    assert limits == {"queued": 100, "loading": 100, "warming": 13, "measuring": 40, "cooling": 30}
    # Queued, loading, and the first run at two batch sizes.
    assert work_limit_s(settings, LIMITS) == 400 + 2 * 3 * (13 + 40 + 30)


def told_until(watch: Watch, since_s: float, until_s: float) -> list[PhaseLine | FailureLine]:
    """What is told by whoever looks once a second."""
    return [line for now_s in np.arange(since_s, until_s, 1.0) if (line := watch.due(now_s)) is not None]


def test_a_phase_that_goes_on_is_told_every_two_seconds_and_given_up_at_its_limit():
    watch = Watch(Settings(), LIMITS, 0.0)
    watch.enter(PhaseLine("loading"), 10.0)
    assert watch.due(11.9) is None
    assert watch.due(12.0) == PhaseLine("loading", 2.0)
    assert watch.due(13.9) is None
    assert watch.due(14.5) == PhaseLine("loading", 4.5)
    # The first run has the limit of loading to itself.
    watch.enter(PhaseLine("loading", batch=4), 20.0)
    assert told_until(watch, 20.0, 120.0) == [PhaseLine("loading", float(since_s), 4) for since_s in range(2, 100, 2)]
    assert watch.due(120.1) == FailureLine("time-out", "loading took more than 100 s")
    watch = Watch(Settings(), LIMITS, 0.0)
    watch.enter(PhaseLine("warming", batch=4, attempt=2), 0.0)
    assert watch.due(3.0) == PhaseLine("warming", 3.0, 4, 2)
    told_until(watch, 4.0, 13.0)
    assert watch.due(13.1) == FailureLine("time-out", "warming took more than 13 s")


def test_timed_runs_are_left_in_peace():
    watch = Watch(Settings(), LIMITS, 0.0)
    watch.enter(PhaseLine("measuring"), 0.0)
    assert told_until(watch, 0.0, 40.0) == []
    assert watch.due(40.1) == FailureLine("time-out", "measuring took more than 40 s")


def test_time_in_which_nobody_looked_is_held_against_no_model():
    """Who was stopped, as by a scheduler that suspends a job, has its model's process stopped as well."""
    watch = Watch(Settings(attempts=1), LIMITS, 0.0)
    watch.enter(PhaseLine("measuring"), 5.0)
    assert told_until(watch, 5.0, 25.0) == []
    assert watch.due(100_000.0) is None
    assert told_until(watch, 100_001.0, 100_021.0) == []
    assert watch.due(100_021.1) == FailureLine("time-out", "measuring took more than 40 s")


def test_a_process_that_goes_from_phase_to_phase_for_ever_is_given_up():
    settings = Settings(attempts=1)
    watch = Watch(settings, LIMITS, 0.0)
    whole_s = work_limit_s(settings, LIMITS)
    for now_s in np.arange(1.0, whole_s, 1.0):
        watch.enter(PhaseLine("warming"), now_s)
        assert watch.due(now_s) is None
    watch.enter(PhaseLine("warming"), whole_s + 1)
    assert watch.due(whole_s + 1) == FailureLine("time-out", f"the work took more than {whole_s:g} s in all")


def shard_of(inputs: np.ndarray, targets: np.ndarray, **other: object) -> tuple[bytes, Shard]:
    data = inputs.tobytes() + targets.astype("<f4").tobytes()
    said = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "input_shape": inputs.shape,
        "input_type": str(inputs.dtype),
        "target_shape": targets.shape,
    }
    return data, Shard(**(said | other))


def test_a_shard_is_read_as_written():
    inputs = np.arange(12, dtype=np.uint8).reshape(3, 4)
    targets = np.array([[1.5], [2.5], [3.5]])
    samples = read_shard(*shard_of(inputs, targets))
    np.testing.assert_array_equal(samples.inputs, inputs)
    np.testing.assert_array_equal(samples.targets, targets)


@pytest.mark.parametrize(
    ("other", "reason", "says"),
    [
        ({"sha256": "0" * 64}, "bad-digest", "do not match their SHA-256"),
        ({"input_shape": (3, 5)}, "bad-digest", "shard of 24 bytes, its shapes say 27"),
        ({"input_shape": (1 << 24,) * 8}, "bad-digest", "shard of 24 bytes, its shapes say"),
        ({"input_shape": (6, 2)}, "unsupported", "shard of 6 inputs and 3 targets"),
    ],
)
def test_a_shard_that_is_not_what_was_said_is_refused(other, reason, says):
    data, shard = shard_of(np.zeros((3, 4), np.uint8), np.zeros((3, 1)), **other)
    with pytest.raises(UnmeasurableError, match=says) as caught:
        read_shard(data, shard)
    assert caught.value.reason == reason


def test_the_batch_is_the_one_wanted_or_the_models_own():
    samples = np.zeros((5, 3), np.float32)
    assert batch_for([InputSpec("x", (None, 3), FLOAT)], samples, 4) == 4
    assert batch_for([InputSpec("x", (1, 3), FLOAT)], samples, 4) == 1


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ([], "the model has 0 inputs"),
        ([InputSpec("x", (None, 3), np.dtype(np.uint8))], r"input x takes uint8 \?x3, the shard is float32"),
        ([InputSpec("x", (None, 4), FLOAT)], r"input x takes float32 \?x4, one sample of the shard is 3"),
        ([InputSpec("x", (None, 3, 1), FLOAT)], "one sample of the shard is 3"),
        ([InputSpec("x", (0, 3), FLOAT)], "one sample of the shard is 3"),
    ],
)
def test_samples_that_a_model_does_not_take_are_refused(specs, says):
    with pytest.raises(UnmeasurableError, match=says):
        batch_for(specs, np.zeros((5, 3), np.float32), 1)


def test_the_last_batch_is_filled_up_and_what_fills_it_is_dropped():
    seen = []

    def run(inputs):
        seen.append(inputs[:, 0].tolist())
        return inputs * 10

    inputs = np.arange(5, dtype=np.float32)[:, None]
    assert outputs_over(run, inputs, 2, lambda: True).tolist() == [[0], [10], [20], [30], [40]]
    assert seen == [[0, 1], [2, 3], [4, 4]]


def test_judging_ends_with_its_time():
    turns = iter([True, True, False])
    with pytest.raises(UnmeasurableError, match="2 of 5 samples were judged in time") as caught:
        outputs_over(lambda inputs: inputs, np.zeros((5, 1)), 1, lambda: next(turns))
    assert caught.value.reason == "time-out"


def test_outputs_that_are_not_one_for_each_sample_are_refused():
    with pytest.raises(UnmeasurableError, match="output 3 for a batch of 2 samples"):
        outputs_over(lambda inputs: np.zeros(3), np.zeros((4, 1)), 2, lambda: True)


@pytest.mark.parametrize(
    ("metric", "error", "per_output"),
    [
        # Distances 3, 4 and 0, 0: root of 25 / 4, and root of 9 / 2 and 16 / 2 for each output.
        ("rmse", 2.5, [4.5**0.5, 8**0.5]),
        ("mae", 1.75, [1.5, 2.0]),
    ],
)
def test_errors_by_value(metric, error, per_output):
    found = error_of(np.array([[3.0, -4.0], [1.0, 1.0]]), np.array([[0.0, 0.0], [1.0, 1.0]]), metric)
    assert found.error == pytest.approx(error)
    assert found.per_output == pytest.approx(per_output)


def test_misclassified_by_value():
    outputs = np.array([[0.1, 0.9], [0.9, 0.1], [0.4, 0.6], [0.5, 0.5]])
    found = error_of(outputs, np.array([1, 1, 1, 0], np.float32), "misclassified")
    assert (found.error, found.per_output) == (0.25, [0.25])


@pytest.mark.parametrize(
    ("outputs", "targets", "metric", "reason", "says"),
    [
        ([[np.nan], [1]], [[1], [1]], "rmse", "run-failed", "not finite for 1 of 2 samples"),
        ([[np.inf], [1]], [1, 1], "misclassified", "run-failed", "not finite"),
        ([[1, 2], [1, 2]], [[1], [1]], "mae", "unsupported", "2 outputs for each sample, the shard has 1 targets"),
        ([[1], [1]], [[np.inf], [1]], "mae", "unsupported", "targets that are not finite"),
        ([[1, 2], [1, 2]], [0, 2], "misclassified", "unsupported", "classes that are not 0 to 1"),
        ([[1, 2], [1, 2]], [0, 0.5], "misclassified", "unsupported", "classes that are not 0 to 1"),
        ([[1, 2], [1, 2]], [0, np.nan], "misclassified", "unsupported", "classes that are not 0 to 1"),
        ([[1, 2], [1, 2]], [[0, 1], [0, 1]], "misclassified", "unsupported", "4 classes for 2 samples"),
    ],
)
def test_what_cannot_be_judged_has_a_reason(outputs, targets, metric, reason, says):
    with pytest.raises(UnmeasurableError, match=says) as caught:
        error_of(np.array(outputs, np.float32), np.array(targets, np.float32), metric)
    assert caught.value.reason == reason


def test_quality_has_limits_of_its_own():
    _, shard = shard_of(np.zeros((3, 4), np.uint8), np.zeros((3, 1)))
    settings = QualitySettings(shard=shard, max_seconds=60)
    assert phase_limit_s("judging", settings, LIMITS) == 70
    assert work_limit_s(settings, LIMITS) == 370
