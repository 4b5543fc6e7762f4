"""The stream test: queue, windows and files by value, in virtual time; and the command as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from onnx import TensorProto, helper

from edge_bridge.cli.stream import table, verdict
from edge_bridge.errors import BridgeError
from edge_bridge.measuring.footage import read_footage
from edge_bridge.measuring.replay import Outcome, Plan, cut_windows, judge, replay
from edge_bridge.measuring.runtimes import InputSpec
from edge_bridge.measuring.stream import warm_up_work
from edge_bridge.measuring.stream_lines import StreamOrder, StreamReport
from edge_bridge.measuring.stream_work import ModelWork, WindowSpec, window_spec
from edge_bridge.measuring.streamer import _read_more, phase_limit_s

MS = 1_000_000


class Virtual:
    """Time that only waiting and work move; `cost_ns` says how long a run takes, cutting takes `cut_ns`."""

    def __init__(self, cost_ns: Callable[[int, int], int], cut_ns: int = 0) -> None:
        self.now_ns = 0
        self.taken: list[tuple[int, int]] = []
        self._cost_ns = cost_ns
        self._cut_ns = cut_ns

    def clock_ns(self) -> int:
        return self.now_ns

    def wait_until(self, due_ns: int) -> None:
        self.now_ns = max(self.now_ns, due_ns)

    def cut(self, first: int, count: int) -> tuple[int, int]:
        self.now_ns += self._cut_ns
        return first, count

    def run(self, item: tuple[int, int]) -> None:
        self.taken.append(item)
        self.now_ns += self._cost_ns(*item)


def played(plan: Plan, cost_ns: Callable[[int, int], int], cut_ns: int = 0) -> tuple[Outcome, Virtual]:
    virtual = Virtual(cost_ns, cut_ns)
    return judge(plan, replay(plan, virtual, virtual.clock_ns, virtual.wait_until)), virtual


def every(period_ms: int, windows: int) -> list[int]:
    return [k * period_ms * MS for k in range(1, windows + 1)]


def counts(found: Outcome) -> tuple[int, int, int]:
    return found.kept, found.late, found.dropped


def test_a_fast_model_keeps_up():
    found, _ = played(Plan(every(10, 100), 10 * MS), lambda *_: 3 * MS, cut_ns=MS)
    assert counts(found) == (100, 0, 0)
    assert (found.response_p50_s, found.response_max_s, found.service_p99_s) == (0.004, 0.004, 0.004)
    assert (found.model_p50_s, found.cut_p50_s, found.wake_p99_s, found.mean_batch) == (0.003, 0.001, 0.0, 1.0)
    assert (found.queue_max, found.queue_mean, found.share_kept) == (1, 0.0, 1.0)
    assert found.busy_share == pytest.approx(400 / 1004)


@pytest.mark.parametrize(("cost_ns", "expected"), [(10 * MS, (50, 0, 0)), (10 * MS + 1, (0, 50, 0))])
def test_a_result_at_the_deadline_is_in_time_and_one_after_it_is_late(cost_ns, expected):
    # With the second, each window starts 1 ns later than the one before it.
    found, _ = played(Plan(every(10, 50), 10 * MS), lambda *_: cost_ns)
    assert counts(found) == expected


def test_a_slow_model_falls_behind_until_the_last_deadline_is_over():
    # Runs begin at 10, 30, 50, 70, 90 and 110 ms; at 130 ms the last deadline (110 ms) is over: four are left.
    found, virtual = played(Plan(every(10, 10), 10 * MS), lambda *_: 20 * MS)
    assert [first for first, _ in virtual.taken] == [0, 1, 2, 3, 4, 5]
    assert counts(found) == (0, 6, 4)
    assert (found.response_p50_s, found.response_max_s) == (0.04, 0.07)
    assert found.queue_max == 5
    # Waited: 0, 10, 20, 30, 40, 50 ms, and from their arrival to 130 ms the last four (60, 50, 40, 30), in 130 ms.
    assert found.queue_mean == pytest.approx(330 / 130)
    assert found.busy_share == pytest.approx(120 / 130)


def test_one_run_that_stalls_makes_a_burst_late_and_the_queue_works_it_off():
    # Window 5 (complete at 60 ms) takes 50 ms; those of 70 to 110 ms wait, then 2 ms each: 112, 114, 116, 118, 120 ms.
    found, virtual = played(Plan(every(10, 20), 10 * MS), lambda first, _: 50 * MS if first == 5 else 2 * MS)
    assert [first for first, _ in virtual.taken] == list(range(20))
    # Late: 5, then 6 (42 ms after it was complete), 7 (34), 8 (26), 9 (18); window 10 is exactly 10 ms old.
    assert counts(found) == (15, 5, 0)
    assert (found.response_max_s, found.queue_max) == (0.05, 5)


def test_a_full_queue_drops_the_oldest():
    # While window 0 runs (10 to 95 ms), windows 1 to 8 arrive; three may wait, so 6, 7 and 8 stay.
    found, virtual = played(Plan(every(10, 12), 10 * MS, queue=3), lambda first, _: 85 * MS if first == 0 else 1 * MS)
    assert [first for first, _ in virtual.taken] == [0, 6, 7, 8, 9, 10, 11]
    assert counts(found) == (4, 3, 5)
    assert found.queue_max == 3
    # A dropped window waits until the third one behind it comes: 5 x 30 ms. Then 6, 7, 8: 25, 16 and 7 ms.
    assert found.queue_mean == pytest.approx((5 * 30 + 25 + 16 + 7) / 121)


def test_a_run_may_take_all_that_waits_up_to_the_batch():
    found, virtual = played(
        Plan(every(10, 8), 25 * MS, batch=3), lambda first, count: 45 * MS if first == 0 else count * 4 * MS
    )
    # Window 0 runs until 55 ms; four wait, three go. Until 67 ms another has come: two go, until 75 ms.
    assert virtual.taken == [(0, 1), (1, 3), (4, 2), (6, 1), (7, 1)]
    # Late: 0 (45 ms), 1 (47), 2 (37), 3 (27); window 4 is out 25 ms after it was complete: in time.
    assert counts(found) == (4, 4, 0)
    assert found.mean_batch == 1.6
    assert found.service_p50_s == 0.004


def test_the_first_window_is_run_however_late_the_clock_starts():
    virtual = Virtual(lambda *_: 1)
    virtual.now_ns = 3600 * 10**9
    plan = Plan(every(10, 5), 10 * MS)
    found = judge(plan, replay(plan, virtual, virtual.clock_ns, virtual.wait_until))
    assert counts(found) == (0, 1, 4)


def test_what_waits_behind_a_last_long_run_counts_for_the_depth():
    found, _ = played(Plan(every(10, 10), 10 * MS), lambda *_: 500 * MS)
    assert counts(found) == (0, 1, 9)
    assert found.queue_max == 9


def test_waiting_that_ends_late_is_told():
    class Sleepy(Virtual):
        def wait_until(self, due_ns: int) -> None:
            self.now_ns = due_ns + 2 * MS

    virtual = Sleepy(lambda *_: MS)
    plan = Plan(every(10, 10), 10 * MS)
    found = judge(plan, replay(plan, virtual, virtual.clock_ns, virtual.wait_until))
    assert (found.wake_p99_s, found.response_p50_s, found.service_p50_s) == (0.002, 0.003, 0.001)


def warmed(run_s: float, batch: int, windows: int) -> tuple[list[int], int, bool]:
    virtual = Virtual(lambda *_: round(run_s * 1e9))
    runs, cut = warm_up_work(virtual, batch, windows, lambda: virtual.now_ns / 1e9)
    return [count for _, count in virtual.taken], runs, cut


def test_every_batch_size_is_warmed_up():
    # Ten runs and half a second in all; the single window, of which most runs are, before the others.
    assert warmed(0.1, 4, 100) == ([1, 4, 3, 2, 1, 1, 1, 1, 1, 1], 10, False)
    assert warmed(0.1, 4, 2) == ([1, 2, 1, 1, 1, 1, 1, 1, 1, 1], 10, False)


@pytest.mark.parametrize(("run_s", "sizes", "cut"), [(20.0, [1], True), (5.0, [1, 4], True), (4.0, [1, 4, 3], True)])
def test_a_warm_up_without_time_for_every_batch_size_says_so(run_s, sizes, cut):
    assert warmed(run_s, 4, 100) == (sizes, len(sizes), cut)


def test_a_single_window_is_warmed_up_and_never_cut():
    assert warmed(20.0, 1, 100) == ([1], 1, False)


def test_the_first_run_of_a_batch_size_may_take_as_long_as_loading():
    order = StreamOrder(model_path="m", recording_path="r", rate_hz=1.0)
    assert [phase_limit_s("warming", order, *limits) for limits in ((120.0, 30.0), (20.0, 30.0))] == [130.0, 40.0]


def test_a_limit_of_ages_is_no_error():
    """The system takes no wait of more than some centuries."""
    reader, writer = os.pipe()
    os.write(writer, b"line")
    assert _read_more(reader, SimpleNamespace(descriptors=list), 1e300, "") == b"line"
    os.close(reader)
    os.close(writer)


def test_windows_stay_inside_their_layer_and_leftovers_take_their_time():
    found = cut_windows([7, 3, 9], length=4, stride=2, most_frames=19)
    assert found.starts.tolist() == [0, 2, 10, 12, 14]
    assert found.complete_after.tolist() == [4, 6, 14, 16, 18]


def test_a_repeated_recording_goes_on_where_it_ended():
    found = cut_windows([5], length=4, stride=4, most_frames=13)
    assert (found.starts.tolist(), found.complete_after.tolist()) == ([0, 0], [4, 9])
    assert len(cut_windows([3, 3], length=4, stride=4, most_frames=60).starts) == 0


class Still:
    """A loaded model that gives its input back."""

    inputs = (InputSpec("x", (None, 2, 3, 3), np.dtype(np.uint8)),)

    def bind(self, inputs):
        return lambda: inputs

    def run(self, inputs):
        return list(inputs.values())


def test_the_crop_has_the_brightest_pixel_in_the_middle_and_zeros_outside():
    frames = np.arange(2 * 5 * 6, dtype=np.uint8).reshape(2, 5, 6)
    frames[:, 2, 3] = 255
    frames = np.concatenate([frames, np.roll(frames, (-2, 2), axis=(1, 2))])  # brightest at (2, 3), then at (0, 5)
    work = ModelWork(Still(), WindowSpec("x", 2, 3, 3), frames, [0, 2], 2)
    assert work.cropped
    both = work.run(work.cut(0, 2))[0]
    assert both[0].tolist() == frames[:2, 1:4, 2:5].tolist()
    assert both[1][:, 0].tolist() == [[0, 0, 0]] * 2
    assert both[1][:, :, 2].tolist() == [[0, 0, 0]] * 2
    assert both[1][:, 1:, :2].tolist() == frames[2:, :2, 4:].tolist()
    # Nothing of the window before stays where this one is 0.
    alone = ModelWork(Still(), WindowSpec("x", 2, 3, 3), frames, [0, 2], 1)
    alone.cut(0, 1)
    assert alone.cut(1, 1)[0].tolist() == both[1].tolist()


def test_a_frame_smaller_than_the_window_is_padded_and_equals_take_the_first():
    frames = np.full((1, 2, 2), 7, np.uint8)
    out = ModelWork(Still(), WindowSpec("x", 1, 5, 5), frames, [0], 1).cut(0, 1)
    assert out[0, 0].tolist() == [[0] * 5, [0] * 5, [0, 0, 7, 7, 0], [0, 0, 7, 7, 0], [0] * 5]


def test_sums_of_a_long_bright_window_do_not_overflow():
    frames = np.full((300, 3, 3), 0, np.uint8)
    frames[:, 1, 1] = 255  # 76,500 in all; modulo 65,536 it is 10,964
    frames[:50, 0, 0] = 230  # 11,500
    out = ModelWork(Still(), WindowSpec("x", 300, 1, 1), frames, [0], 1).cut(0, 1)
    assert out.min() == 255


def test_frames_of_the_models_size_are_taken_as_they_are():
    frames = np.arange(4 * 9, dtype=np.uint8).reshape(4, 3, 3)
    work = ModelWork(Still(), WindowSpec("x", 2, 3, 3), frames, [1, 2], 2)
    assert not work.cropped
    assert work.cut(0, 1).tolist() == [frames[1:3].tolist()]
    assert work.cut(0, 2).tolist() == [frames[1:3].tolist(), frames[2:4].tolist()]


@pytest.mark.parametrize(
    ("shape", "kind", "batch", "said"),
    [
        ((1, 16, 41, 41), np.float32, 1, "float32 (1, 16, 41, 41); the stream test wants one input, uint8"),
        ((1, 1, 16, 41, 41), np.uint8, 1, "wants one input, uint8 (1, frames, height, width)"),
        ((1, None, 41, 41), np.uint8, 1, "(1, free, 41, 41); the stream test wants"),
        ((4, 16, 41, 41), np.uint8, 1, "(4, 16, 41, 41); the stream test wants"),
        ((1, 16, 41, 41), np.uint8, 2, "one window in a run"),
        ((1, 0, 41, 41), np.uint8, 1, "an empty window"),
        ((None, 2**20, 41, 41), np.uint8, 1, "give a smaller --batch"),
    ],
)
def test_a_model_that_takes_no_windows_is_refused(shape, kind, batch, said):
    with pytest.raises(BridgeError, match=r"^it takes ") as caught:
        window_spec([InputSpec("x", shape, np.dtype(kind))], batch)
    assert said in str(caught.value)


def write(path: Path, layers: dict[str, np.ndarray], **attributes: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, frames in layers.items():
            file.create_dataset(f"{name}/frame", data=frames)
        file.attrs.update(attributes)
    return path


def grey(count: int, value: int = 1, size: tuple[int, int] = (8, 9)) -> np.ndarray:
    return np.full((count, *size), value, np.uint8)


def test_layers_are_read_in_the_order_of_their_numbers_up_to_the_bounds(tmp_path):
    layers = {"layer10": grey(3, 3), "layer9": grey(2, 2), "other/layer1": grey(4, 4)}
    path = write(tmp_path / "a.h5", layers, simulated=True)
    all_of_it = read_footage(path, "", 100, 10**6)
    assert all_of_it.frames[:, 0, 0].tolist() == [2, 2, 3, 3, 3, 4, 4, 4, 4]
    assert (all_of_it.layer_frames, all_of_it.complete, all_of_it.simulated) == ([2, 3, 4], True, True)
    few = read_footage(path, "", 4, 10**6)
    assert (few.layer_frames, few.complete) == ([2, 2], True)
    small = read_footage(path, "", 4, 3 * 72)
    assert (small.layer_frames, small.complete) == ([2, 1], False)
    assert read_footage(path, "/other/layer1", 100, 10**6).layer_frames == [4]


def test_a_recording_that_does_not_say_so_is_not_simulated(tmp_path):
    assert not read_footage(write(tmp_path / "a.h5", {"l": grey(1)}), "", 9, 999).simulated


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({}, "no group with frames"),
        ({"layer1": grey(0)}, "no frames in it"),
        ({"layer1": grey(4).astype(np.float32)}, "/layer1/frame is float32 of shape (4, 8, 9); it must be uint8"),
        ({"layer1": grey(4), "layer2": grey(4, size=(9, 9))}, "frames of 8 x 9, 9 x 9; choose one with --layer"),
        ({"layer1": grey(4, size=(0, 9))}, "no pixels"),
        ({"layer1": grey(4, size=(200, 200))}, "give a larger --preload-mb"),
    ],
)
def test_a_recording_that_cannot_be_replayed_is_one_line(tmp_path, layers, said):
    path = write(tmp_path / "bad.h5", layers)
    with pytest.raises(BridgeError) as caught:
        read_footage(path, "", 100, 10_000)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"recording {path}: ")


def test_files_that_are_no_recordings_are_one_line(tmp_path):
    sound = write(tmp_path / "sound.h5", {"layer1": grey(400)}).read_bytes()
    (tmp_path / "cut.h5").write_bytes(sound[: len(sound) // 2])
    (tmp_path / "text.h5").write_text("frames")
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["layer1"] = h5py.SoftLink("/nowhere")
    with h5py.File(tmp_path / "circle.h5", "w") as file:
        file["a"] = file["/"]
    (tmp_path / "damaged.h5").write_bytes(sound)
    with h5py.File(tmp_path / "damaged.h5") as file:
        at = h5py.h5o.get_info(file["layer1"].id).addr
    with open(tmp_path / "damaged.h5", "r+b") as raw:
        raw.seek(at)
        raw.write(b"\xff" * 16)
    expected = {
        "cut.h5": "truncated", "text.h5": "not an HDF5 file", "none.h5": "no such file", "link.h5": "links to what is",
        "circle.h5": "no group with frames", ".": "not a file", "damaged.h5": "`layer1` in / is damaged; copy the file",
    }  # fmt: skip
    for name, said in expected.items():
        with pytest.raises(BridgeError, match=said):
            read_footage(tmp_path / name, "", 100, 10**6)
    with pytest.raises(BridgeError, match=r"no layer nope; it has /layer1"):
        read_footage(tmp_path / "sound.h5", "nope", 100, 10**6)


def mean_model(frames: int = 4, size: int = 9) -> bytes:
    """Mean of a window, with a free batch."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["f"], ["y"], axes=[1, 2, 3], keepdims=0),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", frames, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return model.SerializeToString()


def edge_bridge(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_bridge", "--log-level", "warning", "stream", *map(str, words)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "mean.onnx"
    path.write_bytes(mean_model())
    return path


def test_the_command_reports_every_window_once(tmp_path, model):
    recording = write(tmp_path / "s.h5", {"layer1": grey(41), "layer2": grey(10)}, simulated=True)
    done = edge_bridge(model, recording, "--rate", "100", "--repeat", "--frames", "60", "--batch", "2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    # Layer 1 holds ten windows, layer 2 two; nine frames of the second round hold two more.
    assert report["windows"] == 14 == report["kept"] + report["late"] + report["dropped"]
    assert (report["frames"], report["recording_frames"], report["camera_s"]) == (60, 51, 0.6)
    assert (report["window_shape"], report["frame_shape"], report["stride"]) == ([4, 9, 9], [8, 9], 4)
    assert (report["cropped"], report["simulated"], report["repeated"]) == (True, True, True)
    assert (report["deadline_s"], report["layers"], report["preload_cut"]) == (0.04, 2, False)
    assert report["warmup_cut"] is False
    assert report["hardware"]
    assert 0 < report["model_p50_s"] <= report["service_p99_s"] <= report["response_max_s"]


def test_the_table_ends_with_the_answer(tmp_path, model):
    recording = write(tmp_path / "s.h5", {"layer1": grey(40)}, simulated=True)
    # Every window may be missed, so that the answer does not depend on this machine.
    done = edge_bridge(model, recording, "--rate", "1000", "--allowed-misses", "1")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["recording", "SIMULATED,", "not", "measured", "on", "a", "machine"]
    assert lines[-1].startswith("keeps up with 1000 frames/s: yes")
    assert lines[-1].endswith("(simulated recording)")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rate", "0"], "--rate must be > 0.0"),
        (["--seconds", "nan"], "--seconds must be > 0.0"),
        (["--queue", "0"], "--queue must be >= 1"),
        (["--frames", "3"], "no window of 4 frames in it: the longest layer has 3"),
        (["--layer", "nope"], "no layer nope; it has /layer1"),
        (["--provider", "abacus"], "provider abacus is not in this onnxruntime"),
        (["--memory-limit-mb", "100"], "it needs more memory than the 100 MB that it may take"),
        (["--memory-limit-mb", "-5"], "--memory-limit-mb must be at least 0"),
        (["--stall-seconds", "nan"], "--stall-seconds must be above 0"),
        (["--load-seconds", "0.001"], "starting took more than 0.001 s; see --load-seconds"),
        (["--rate", "1e8", "--repeat"], "give fewer --seconds"),
        (["--rate", "1e8", "--repeat", "--stride", "1000000"], "25000000 windows, at most 2000000 are replayed"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(tmp_path, model, options, said):
    done = edge_bridge(model, write(tmp_path / "s.h5", {"layer1": grey(40)}), *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_broken_model_is_one_line(tmp_path):
    recording = write(tmp_path / "s.h5", {"layer1": grey(40)})
    (tmp_path / "text.onnx").write_text("no model")
    os.mkfifo(tmp_path / "pipe.onnx")
    saids = {
        "none.onnx": "no such file", "text.onnx": "cannot be loaded (it is not an ONNX model)",
        "pipe.onnx": "not a plain file",
    }  # fmt: skip
    for name, said in saids.items():
        done = edge_bridge(tmp_path / name, recording)
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def report_of(**changes: object) -> StreamReport:
    values: dict[str, object] = dict.fromkeys(StreamReport.__struct_fields__, 0)
    return StreamReport(**{**values, "rate_hz": 20000.0, "windows": 1000, "keeps_up": False, **changes})


def test_a_warm_up_that_was_cut_is_told_in_the_table():
    shapes = {"frame_shape": [8, 9], "window_shape": [4, 9, 9]}
    assert "(cut short: not every batch size)" in table(report_of(warmup_cut=True, **shapes))
    assert "cut short" not in table(report_of(**shapes))


def test_the_highest_rate_is_a_plain_number():
    shapes = {"frame_shape": [8, 9], "window_shape": [4, 9, 9]}
    assert "about 42,800 frames/s" in table(report_of(highest_rate_hz=42_812.3, **shapes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"keeps_up": True}, "keeps up with 20000 frames/s: yes"),
        ({"keeps_up": True, "windows": 3}, "keeps up with 20000 frames/s: yes, but only 3 windows"),
        ({"late": 310}, "keeps up with 20000 frames/s: no: the machine stalled, 31% of the windows late"),
        ({"late": 1}, "keeps up with 20000 frames/s: no: the machine stalled, 0.1% of the windows late"),
        (
            {"late": 999, "service_p50_s": 0.002, "deadline_s": 0.01, "stride": 16},
            "keeps up with 20000 frames/s: no: the model is too slow, 99.9% of the windows late",
        ),
        (
            {"late": 999, "service_p50_s": 0.0007, "deadline_s": 0.0005, "stride": 16},
            "keeps up with 20000 frames/s: no: the model is too slow, 99.9% of the windows late",
        ),
        (
            {"late": 960, "dropped": 40},
            "keeps up with 20000 frames/s: no: the machine stalled, 96% of the windows late, 4% of the windows dropped",
        ),
        ({"late": 1, "keeps_up": True, "simulated": True},
         "keeps up with 20000 frames/s: yes: 0.1% of the windows late (simulated recording)"),
    ],
)  # fmt: skip
def test_the_answer_is_one_line(changes, said):
    assert verdict(report_of(**changes)) == said
