"""The measurer with its real child: what models do to it, good and bad, and what it says of them."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bridge_models as models
import numpy as np
import pytest
from bridge_processes import LIMIT_S, children_of, is_alive, kill, until_true

from edge_bridge.errors import RuntimeMissingError
from edge_bridge.measuring.lines import FailureLine, JudgedLine, Line, MeasuredLine, PhaseLine
from edge_bridge.measuring.measurer import ChildLimits, Measurer
from edge_bridge.measuring.runtimes import InputSpec
from edge_bridge.wire.quantities import Profile, QualitySettings, Settings, Shard

pytestmark = pytest.mark.timeout(120)
FAKE = Path(__file__).parent / "fake_runtime"
LIMITS = ChildLimits(memory_bytes=4 << 30, load_s=10.0, stall_s=2.0)
QUICK = Settings(min_seconds=0.01, max_seconds=5.0, warmup_max_seconds=0.2, attempts=1)
#: As few runs as there can be.
BRIEF = Settings(min_seconds=0.0, max_seconds=5.0, warmup_max_seconds=0.0, warmup_min_runs=1, attempts=1)


class Measuring:
    """A measurer, and waiting for what it says."""

    def __init__(self, runtime: str, provider: str, limits: ChildLimits) -> None:
        versions = {"some": "version"}
        profile = Profile(name="dut", hardware="box", runtime=runtime, provider=provider, versions=versions)
        self.measurer = Measurer(profile, limits)

    def until(self, wanted: Callable[[Line], bool]) -> list[Line]:
        end_s = time.monotonic() + LIMIT_S
        lines: list[Line] = []
        while time.monotonic() < end_s:
            fresh = self.measurer.advance()
            lines += fresh
            if any(map(wanted, fresh)):
                return lines
            select.select(self.measurer.descriptors(), [], [], 0.2)
        raise AssertionError(f"not within {LIMIT_S} s; came: {lines}")

    def outcome(self, model: bytes, settings: Settings | QualitySettings = QUICK, shard: bytes = b"") -> Line:
        self.measurer.begin(model, settings, shard)
        line = self.until(lambda line: not isinstance(line, PhaseLine))[-1]
        assert not self.measurer.busy
        return line

    def server(self) -> int:
        """The child itself, the only child of this process."""
        (found,) = children_of(os.getpid())
        return found

    def model(self) -> int:
        (found,) = [each for each in children_of(self.server()) if _name(each) == "edge-model"]
        return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""  # it has just ended


@pytest.fixture
def measuring(monkeypatch) -> Iterator[Callable[..., Measuring]]:
    monkeypatch.setenv("PYTHONPATH", f"{FAKE}:{Path(__file__).parents[2]}")
    made: list[Measuring] = []

    def make(runtime: str = "onnxruntime", provider: str = "cpu", limits: ChildLimits = LIMITS) -> Measuring:
        made.append(Measuring(runtime, provider, limits))
        return made[-1]

    yield make
    for each in made:
        each.measurer.close()


def phases(lines: list[Line]) -> list[str]:
    return [line.phase for line in lines if isinstance(line, PhaseLine) and not line.elapsed_s]


def test_batches_are_measured_in_one_request(measuring):
    bench = measuring()
    bench.measurer.begin(models.linear(), Settings(min_seconds=0.01, batches=(4, 1, 16), attempts=1, percentile="p95"))
    lines = bench.until(lambda line: isinstance(line, MeasuredLine))
    assert phases(lines) == ["loading", *["loading", "warming", "measuring"] * 3]
    assert [line.batch for line in lines if isinstance(line, PhaseLine)] == [None, 4, 4, 4, 1, 1, 1, 16, 16, 16]
    found = lines[-1].measurement
    timings = [found, *found.other_batches]
    assert [(each.batch, each.input_shape) for each in timings] == [(4, [4, 16]), (1, [1, 16]), (16, [16, 16])]
    for each in timings:
        assert each.samples >= 130
        assert each.complete
        low_s, high_s = each.interval_s
        assert each.min_s <= low_s <= each.p95_s <= high_s
    assert (found.load_s > 0, found.precision, found.versions) == (True, "model", {"some": "version"})
    assert found.before.sensor == found.after.sensor


def test_each_model_has_a_process_of_its_own_that_ends(measuring):
    bench = measuring("fake")
    seen = []
    for _ in range(3):
        bench.measurer.begin(b"sleep 0.01", BRIEF)
        bench.until(lambda line: line.phase == "measuring")
        seen.append(bench.model())
        bench.until(lambda line: isinstance(line, MeasuredLine))
    assert len(set(seen)) == 3
    until_true(lambda: not any(map(is_alive, seen)))


BAD_MODELS = {
    "empty": (b"", "bad-model", "empty"),
    "not ONNX": (b"import os; os.abort()", "bad-model", ""),
    "truncated": (models.linear()[:200], "bad-model", ""),
    "truncated in its weights": (models.linear(64)[:-1000], "bad-model", ""),
    "zeros": (bytes(1 << 20), "bad-model", ""),
    "cyclic": (models.cyclic(), "bad-model", ""),
    "weight of 2**40 elements": (models.boastful(), "bad-model", ""),
    "input of 2**40 elements": (models.wide(), "too-large", "inputs of more than"),
    "wants 16 TB": (models.greedy(), "out-of-memory", ""),
    "free second dimension": (models.free_second_dimension(), "unsupported", "only the first dimension may be free"),
    "absolute file": (models.external("/etc/passwd"), "bad-model", "names files with its weights"),
    "relative file": (models.external("../../../etc/passwd"), "bad-model", "names files with its weights"),
    "open file": (models.external("0"), "bad-model", "names files with its weights"),
    "wrapped engine": (models.wrapped_engine(), "bad-model", "wraps an engine built elsewhere"),
    "the runtime's own format": (b"\x00\x00\x00\x18ORTM" + bytes(100), "bad-model", "not ONNX"),
    "never returns": (models.endless(), "time-out", "loading took more than 10 s"),
}


def test_bad_models_are_refused_with_a_reason_and_the_next_one_is_measured(measuring):
    bench = measuring()
    server = bench.server()
    for what, (model, reason, says) in BAD_MODELS.items():
        found = bench.outcome(model)
        assert isinstance(found, FailureLine), what
        assert found.reason == reason, (what, found)
        assert says in found.detail, (what, found)
        assert "\n" not in found.detail
    assert isinstance(bench.outcome(models.linear()), MeasuredLine)
    assert bench.server() == server


def test_a_name_that_only_looks_like_a_file_of_weights_is_no_matter(measuring):
    model = models.renamed("x_allocation")
    assert b"location" in model
    assert isinstance(measuring().outcome(model), MeasuredLine)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (b"abort", "the model's process was ended by SIGABRT"),
        (b"exit", "the model's process ended with exit code 3"),
    ],
)
def test_a_model_that_ends_its_process_costs_one_answer(measuring, model, says):
    bench = measuring("fake")
    server = bench.server()
    assert bench.outcome(model, BRIEF) == FailureLine("crashed", says)
    assert isinstance(bench.outcome(b"model", BRIEF), MeasuredLine)
    assert bench.server() == server


def test_a_killed_model_and_a_killed_child_cost_one_answer_each(measuring):
    bench = measuring("fake")
    for victim, says in ((bench.model, "was ended by SIGKILL (memory"), (bench.server, "child ended with code -9")):
        bench.measurer.begin(b"hang", BRIEF)
        bench.until(lambda line: line.phase == "warming")
        kill(victim())
        found = bench.until(lambda line: not isinstance(line, PhaseLine))[-1]
        assert (found.reason, says in found.detail) == ("crashed", True)
        assert isinstance(bench.outcome(b"model", BRIEF), MeasuredLine)


def test_a_model_that_hangs_is_given_up_and_only_its_process_is_ended(measuring):
    bench = measuring("fake", limits=ChildLimits(stall_s=0.3))
    server = bench.server()
    assert bench.outcome(b"hang", BRIEF) == FailureLine("time-out", "warming took more than 0.3 s")
    assert isinstance(bench.outcome(b"model", BRIEF), MeasuredLine)
    assert bench.server() == server


def test_a_frozen_child_is_started_anew(measuring, monkeypatch):
    monkeypatch.setattr("edge_bridge.measuring.measurer.END_S", 0.2)
    bench = measuring("fake", limits=ChildLimits(stall_s=0.3))
    bench.measurer.begin(b"hang", BRIEF)
    bench.until(lambda line: line.phase == "warming")
    frozen = bench.server()
    os.kill(frozen, signal.SIGSTOP)
    assert bench.until(lambda line: not isinstance(line, PhaseLine))[-1].reason == "time-out"
    assert isinstance(bench.outcome(b"model", BRIEF), MeasuredLine)
    assert bench.server() != frozen


def test_a_cancelled_model_is_gone_and_says_nothing_more(measuring):
    bench = measuring("fake")
    bench.measurer.begin(b"hang", BRIEF)
    bench.until(lambda line: line.phase == "warming")
    model, server = bench.model(), bench.server()
    bench.measurer.cancel()
    assert not bench.measurer.busy
    # At once: held back until the process before has gone.
    assert isinstance(bench.outcome(b"model", BRIEF), MeasuredLine)
    assert not is_alive(model)
    assert bench.server() == server


def test_work_is_cancelled_before_anybody_has_taken_it_and_while_it_is_held_back(measuring):
    bench = measuring("fake")
    bench.measurer.begin(b"abort", BRIEF)
    bench.measurer.cancel()
    bench.measurer.cancel()
    bench.measurer.begin(b"hang", BRIEF)
    bench.until(lambda line: line.phase == "warming")
    bench.measurer.cancel()
    bench.measurer.begin(b"abort", BRIEF)
    bench.measurer.cancel()
    assert isinstance(bench.outcome(b"model", BRIEF), MeasuredLine)


def test_a_long_load_is_told_every_two_seconds_and_limited(measuring):
    bench = measuring("fake", limits=ChildLimits(load_s=3.0))
    bench.measurer.begin(b"slow-load 60", BRIEF)
    lines = bench.until(lambda line: not isinstance(line, PhaseLine))
    assert phases(lines) == ["loading"]
    (beat,) = [line for line in lines if isinstance(line, PhaseLine) and line.elapsed_s]
    assert beat.phase == "loading"
    assert 2.0 <= beat.elapsed_s < 3.0
    assert lines[-1] == FailureLine("time-out", "loading took more than 3 s")


def test_an_unsteady_model_is_measured_again_and_marked(measuring):
    bench = measuring("fake")
    settings = Settings(min_seconds=0, warmup_max_seconds=0, warmup_min_runs=1, attempts=2, pause_seconds=0.01)
    bench.measurer.begin(b"drift", settings)
    lines = bench.until(lambda line: not isinstance(line, PhaseLine))
    assert phases(lines) == ["loading", "loading", "warming", "measuring", "cooling", "warming", "measuring"]
    found = lines[-1].measurement
    assert (found.attempts, found.unsteady, found.doubts()) == (2, True, ["unsteady"])


@pytest.mark.parametrize("model", [b"parrot", b"endless-line"])
def test_nonsense_on_the_pipe_is_an_answer_and_the_next_model_is_measured(measuring, model, monkeypatch):
    monkeypatch.setattr("edge_bridge.measuring.measurer.END_S", 2 * LIMIT_S)  # nobody is to be waited for
    bench = measuring("fake")
    found = bench.outcome(model, BRIEF)
    assert (found.reason, "said nonsense" in found.detail) == ("internal", True)
    assert isinstance(bench.outcome(b"model", BRIEF), MeasuredLine)


def test_a_model_that_is_killed_in_the_middle_of_a_line_has_crashed(measuring):
    bench = measuring("fake")
    server = bench.server()
    assert bench.outcome(b"half", BRIEF).reason == "crashed"
    assert isinstance(bench.outcome(b"model", BRIEF), MeasuredLine)
    assert bench.server() == server


def test_what_a_cancelled_model_still_says_is_not_taken_for_the_next_ones(measuring):
    bench = measuring("fake")
    bench.measurer.begin(b"sleep 0.002", BRIEF)
    bench.until(lambda line: line.phase == "warming")
    model, server = bench.model(), bench.server()
    os.kill(server, signal.SIGSTOP)  # it will not end the model, which goes on to its last line
    bench.measurer.cancel()
    bench.measurer.begin(b"model", BRIEF)
    until_true(lambda: not is_alive(model))
    assert bench.measurer.advance() == []
    os.kill(server, signal.SIGCONT)
    assert bench.until(lambda line: isinstance(line, MeasuredLine))[-1].measurement.p50_s < 0.002


def test_memory_is_watched_where_address_space_cannot_be_limited(measuring):
    bench = measuring("fake", "cuda", ChildLimits(memory_bytes=512 << 20))
    assert bench.outcome(b"hungry", Settings()) == FailureLine("out-of-memory", f"more than {512 << 20} bytes")


def test_precisions_that_a_runtime_does_not_have_are_refused(measuring):
    found = measuring().outcome(models.linear(), Settings(precision="fp16"))
    assert found == FailureLine("unsupported", "precision fp16: onnxruntime with cpu runs a model as model")
    assert measuring("fake").outcome(b"x", Settings(precision="fp16", min_seconds=0)).measurement.precision == "fp16"


@pytest.mark.parametrize(
    ("provider", "says"), [("cuda", "provider cuda is not in this onnxruntime"), ("x", "provider x is not")]
)
def test_a_provider_that_is_not_there_is_told(measuring, provider, says):
    found = measuring(provider=provider).outcome(models.linear())
    assert (found.reason, says in found.detail) == ("unsupported", True)


def test_a_runtime_that_is_not_there_is_told(measuring):
    found = measuring("unheard-of").outcome(models.linear())
    assert found.reason == "unsupported"
    assert "no runtime unheard-of on this machine; there are: fake, onnxruntime" in found.detail


def test_nothing_of_a_model_lies_on_a_disk_and_nothing_is_left(measuring):
    bench = measuring()
    open_before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert isinstance(bench.outcome(models.linear()), MeasuredLine)
    assert set(os.listdir("/proc/self/fd")) == open_before
    server = bench.server()
    bench.measurer.close()
    until_true(lambda: not is_alive(server))


def test_the_kernel_takes_the_models_process_first(measuring):
    bench = measuring("fake")
    bench.measurer.begin(b"hang", BRIEF)
    bench.until(lambda line: line.phase == "warming")
    assert Path(f"/proc/{bench.model()}/oom_score_adj").read_text() == "1000\n"
    assert Path(f"/proc/{bench.server()}/oom_score_adj").read_text() != "1000\n"


def judged(inputs: np.ndarray, targets: np.ndarray, **other: object) -> tuple[QualitySettings, bytes]:
    data = inputs.tobytes() + targets.astype("<f4").tobytes()
    shard = Shard(
        sha256=hashlib.sha256(data).hexdigest(),
        input_shape=inputs.shape,
        input_type=str(inputs.dtype),
        target_shape=targets.shape,
    )
    return QualitySettings(shard=shard, **other), data


@pytest.mark.parametrize("batch", [1, "n"])
def test_a_model_is_judged_on_a_shard(measuring, batch):
    """Seven samples in batches of three, or of the one that the model is fixed to: the error that numpy finds."""
    rng = np.random.default_rng(3)
    weight = rng.random((5, 2), dtype=np.float32)
    inputs = rng.random((7, 5), dtype=np.float32)
    off = rng.normal(size=(7, 2)).astype(np.float32)
    settings, shard = judged(inputs, inputs @ weight + off, batch=3)
    bench = measuring()
    bench.measurer.begin(models.affine(weight, batch), settings, shard)
    lines = bench.until(lambda line: not isinstance(line, PhaseLine))
    assert phases(lines) == ["loading", "loading", "judging"]
    assert isinstance(lines[-1], JudgedLine)
    found = lines[-1].quality
    assert (found.samples, found.metric, found.precision, found.device) == (7, "rmse", "model", "dut")
    assert found.error == pytest.approx(float(np.sqrt(np.square(off).mean())), rel=1e-4)
    assert found.per_output == pytest.approx(np.sqrt(np.square(off).mean(axis=0)).tolist(), rel=1e-4)


def test_classes_are_judged_too(measuring):
    inputs = np.eye(4, dtype=np.float32)
    settings, shard = judged(inputs, np.array([0, 1, 2, 0]), metric="misclassified", batch=4)
    assert measuring().outcome(models.affine(np.eye(4)), settings, shard).quality.error == 0.25


def test_what_cannot_be_judged_is_told(measuring):
    bench = measuring()
    inputs, targets = np.ones((3, 4), np.float32), np.ones((3, 4))
    settings, shard = judged(inputs, targets)
    assert bench.outcome(models.affine(np.eye(4)), settings, shard[:-1]).reason == "bad-digest"
    assert bench.outcome(models.affine(np.eye(4)), settings, shard[:-1] + b"!").reason == "bad-digest"
    assert bench.outcome(models.affine(np.eye(5)), settings, shard).reason == "unsupported"
    found = bench.outcome(models.affine(np.eye(4) * 3e38), *judged(inputs * 10, targets))
    assert found == FailureLine("run-failed", "outputs are not finite for 3 of 3 samples")
    assert bench.outcome(b"no model", settings, shard).reason == "bad-model"


def test_no_other_provider_takes_over_when_the_one_asked_for_does_not_start(tmp_path, monkeypatch):
    onnx_runtime = pytest.importorskip("edge_bridge.measuring.onnx_runtime")
    path = tmp_path / "model.onnx"
    path.write_bytes(models.linear())
    asked = []

    def broken(file, options, **other):
        asked.append(other)
        raise RuntimeError("CUDA failure 35:\n driver too old")

    monkeypatch.setattr(onnx_runtime.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnx_runtime.onnxruntime, "InferenceSession", broken)
    with pytest.raises(RuntimeMissingError) as caught:
        onnx_runtime.RUNTIME.load(path, "cuda", 1, "model")
    assert str(caught.value) == "provider cuda could not be started on this machine: CUDA failure 35: driver too old"
    assert asked == [{"providers": ["CUDAExecutionProvider"], "enable_fallback": 0}]


def test_inputs_and_outputs_bound_to_memory_give_what_a_plain_run_gives(tmp_path):
    """The way that CUDA takes, on the memory that every machine has."""
    onnx_runtime = pytest.importorskip("edge_bridge.measuring.onnx_runtime")
    path = tmp_path / "model.onnx"
    weight = np.random.default_rng(5).random((4, 4), dtype=np.float32)
    path.write_bytes(models.affine(weight))
    plain = onnx_runtime.RUNTIME.load(path, "cpu", 1, "model")
    assert plain._session._enable_fallback is False
    bound = onnx_runtime.OnnxModel(plain._session, "cpu")
    inputs = {"x": np.ones((2, 4), np.float32)}
    assert bound.inputs == [InputSpec("x", (None, 4), np.dtype(np.float32))]
    assert bound.bind(inputs)() is None
    np.testing.assert_allclose(bound.run(inputs)[0], np.ones((2, 4)) @ weight, rtol=1e-5)
