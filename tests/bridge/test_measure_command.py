"""`edge-bridge measure`: a runtime from somebody else, several batch sizes, and the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bridge_models as models
import msgspec
import pytest
from bridge_processes import LIMIT_S, ROOT

from edge_bridge.cli import main
from edge_bridge.cli.timing_table import timing_table
from edge_bridge.device.checks import check_runtime
from edge_bridge.wire.quantities import Measurement, Readings, Timing

FAKE = Path(__file__).parent / "fake_runtime"


def measure(folder: Path, model: bytes, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "model.onnx").write_bytes(model)
    return subprocess.run(
        [sys.executable, "-m", "edge_bridge", "measure", "model.onnx", *options],
        capture_output=True, text=True, timeout=LIMIT_S, cwd=folder, check=False,
        env={**os.environ, "PYTHONPATH": f"{FAKE}:{ROOT}"},
    )  # fmt: skip


def test_a_runtime_of_somebody_else_is_found_by_entry_point(tmp_path):
    done = measure(tmp_path, b"model", "--json", "--runtime", "fake", "--min-seconds", "0", "--precision", "fp16")
    found = json.loads(done.stdout)
    assert (found["runtime"], found["versions"]["fake-runtime"], found["samples"]) == ("fake", "1.0", 64)
    assert found["precision"] == "fp16"
    crowded = measure(tmp_path, b"model", "--runtime", "fake", "--threads", "1024")
    assert crowded.returncode == 2
    assert "1024 threads: a model may use" in crowded.stderr
    crashed = measure(tmp_path, b"abort", "--runtime", "fake")
    assert (crashed.returncode, crashed.stdout) == (2, "")
    assert crashed.stderr.splitlines()[-1] == (
        "edge-bridge: model model.onnx was not measured (crashed): the model's process was ended by SIGABRT"
    )


def test_several_batches_and_their_progress(tmp_path):
    done = measure(tmp_path, models.linear(), "--json", "--batch", "1", "--batch", "8", "--attempts", "1")
    found = msgspec.json.decode(done.stdout, type=Measurement)
    assert [each.batch for each in (found, *found.other_batches)] == [1, 8]
    phases = [line.partition("INFO ")[2] for line in done.stderr.splitlines()]
    assert phases == [
        "loading", "loading, first run, batch 1", "warming, batch 1", "measuring, batch 1",
        "loading, first run, batch 8", "warming, batch 8", "measuring, batch 8",
    ]  # fmt: skip


TIMING = {
    "p50_s": 0.001, "p90_s": 0.002, "p95_s": 0.003, "p99_s": 0.004, "mean_s": 0.00125, "min_s": 0.0005, "samples": 64,
    "coefficient_of_variation": 0.1, "complete": True, "unsteady": False, "warmup_runs": 15, "warmup_settled": True,
    "batch": 1, "input_shape": [1, 16], "interval_s": (0.0015, 0.0025), "attempts": 1,
}  # fmt: skip
OTHER = {"batch": 4, "mean_s": 0.002, "unsteady": True, "attempts": 3, "complete": False, "interval_s": None}
MEASUREMENT = Measurement(
    **TIMING, load_s=0.1, input_type="float32", threads=2, peak_memory_bytes=1_500_000, device="dut", hardware="box",
    runtime="onnxruntime", provider="cpu", versions={"onnxruntime": "1.31"},
)  # fmt: skip


def test_the_table_of_a_machine_that_tells_nothing():
    assert timing_table(MEASUREMENT).splitlines() == [
        "batch                                  1",
        "p50 ms                            1.0000",
        "p90 ms                            2.0000",
        "p95 ms                            3.0000",
        "p99 ms                            4.0000",
        "mean ms                           1.2500",
        "min ms                            0.5000",
        "99% interval of p90 ms  1.5000 to 2.5000",
        "runs/s                               800",
        "samples                               64",
        "variation                          10.0%",
        "attempts                               1",
        "warm-up runs                          15",
        "load ms                 100.0",
        "input                   float32 1x16",
        "peak memory MB          1.5",
        "runtime                 onnxruntime 1.31, cpu, 2 threads",
        "precision               as the model says",
        "hardware                box",
    ]


def test_the_table_of_a_machine_that_tells_all_with_its_doubts():
    whole = msgspec.structs.replace(
        MEASUREMENT,
        other_batches=[Timing(**(TIMING | OTHER))],
        before=Readings(temperatures_c={"cpu": 40.2, "gpu": 41}, clocks_hz={"cpu0": 2e9}),
        after=Readings(temperatures_c={"cpu": 45.8, "gpu": 41}, clocks_hz={"cpu0": 1.5e9}),
        power_w=12.345,
        joules_per_inference=0.0154,
        throttled=True,
    )
    rows = [line.split() for line in timing_table(whole).splitlines()]
    for row in (
        ["batch", "1", "4"],
        ["runs/s", "800", "500"],
        ["inferences/s", "800", "2,000"],
        ["samples", "64", "64", "(too", "few)"],
        ["attempts", "1", "3", "UNSTEADY"],
        ["99%", "interval", "of", "p90", "ms", "1.5000", "to", "2.5000", "-"],
        ["temperature", "C", "gpu", "41", ">", "41,", "cpu", "40", ">", "46"],
        ["clock", "GHz", "cpu0", "2.00", ">", "1.50"],
        ["power", "W", "12.35"],
        ["energy", "of", "a", "run", "mJ", "15.400"],
        ["throttled", "yes"],
    ):
        assert row in rows
    assert " ".join(rows[-1]) == "NOT TO BE RELIED ON unsteady, fewer samples than asked, throttled"


def test_a_batch_that_the_model_has_of_its_own_is_not_counted():
    """Eight samples in a run, of which nobody has said anything: the table speaks of runs."""
    table = timing_table(msgspec.structs.replace(MEASUREMENT, input_shape=[8, 16], joules_per_inference=0.02))
    assert "inferences/s" not in table
    assert ["energy", "of", "a", "run", "mJ", "20.000"] in [line.split() for line in table.splitlines()]


def test_the_energy_of_a_run_is_that_of_all_its_inferences():
    table = timing_table(msgspec.structs.replace(MEASUREMENT, batch=4, joules_per_inference=0.02))
    assert ["energy", "of", "a", "run", "mJ", "80.000"] in [line.split() for line in table.splitlines()]


def test_the_version_of_a_build_for_a_gpu_is_told_too():
    table = timing_table(msgspec.structs.replace(MEASUREMENT, versions={"onnxruntime-gpu": "1.20", "python": "3.10"}))
    assert "onnxruntime 1.20, cpu, 2 threads" in table


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["measure", "--load-seconds", "nan"], "--load-seconds must be above 0 and at most 86400, not nan"),
        (["measure", "--load-seconds", "inf"], "--load-seconds must be above 0 and at most 86400, not inf"),
        (["measure", "--min-seconds", "nan"], "settings: --min-seconds must be >= 0.0"),
        (["measure", "--max-seconds", "inf"], "settings: --max-seconds must be <= 3600.0"),
        (["measure", "--samples", "-3"], "settings: --samples must be >= 0"),
        (["measure", "--batch", "-1"], "settings: --batch must be >= 1"),
        (["measure", "--min-seconds", "40"], "settings: --min-seconds 40 is more than --max-seconds 30"),
        (["stream", "x", "--memory-limit-mb", "-5"], "--memory-limit-mb must be at least 0 and at most 16777216"),
        (["stream", "x", "--stall-seconds", "-1"], "--stall-seconds must be above 0 and at most 86400, not -1"),
        (["stream", "x", "--deadline-ms", "nan"], "--deadline-ms must be > 0.0"),
        (["stream", "x", "--preload-mb", "-1"], "--preload-mb must be >= 1"),
        (["device", "--memory-limit-mb", "-5"], "--memory-limit-mb must be at least 0"),
        (["device", "--load-seconds", "inf"], "--load-seconds must be above 0 and at most 86400, not inf"),
        (["device", "--stall-seconds", "-inf"], "--stall-seconds must be above 0 and at most 86400, not -inf"),
        (["device", "--reference-minutes", "nan"], "--reference-minutes must be above 0 and at most 86400, not nan"),
        (["device", "--reference-every", "0"], "--reference-every must be at least 1"),
        (["device", "--reference-band", "1"], "--reference-band must be above 0 and at most 0.99, not 1"),
        (["device", "--cooling-seconds", "-1"], "--cooling-seconds must be at least 0 and at most 86400, not -1"),
        (["status", "--timeout", "0"], "--timeout must be above 0 and at most 86400, not 0"),
    ],
)
def test_a_number_that_makes_no_sense_is_one_line(words, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["edge-bridge", words[0], __file__, *words[1:]])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"edge-bridge: {says}")


def test_a_provider_that_is_not_there_is_found_by_the_check():
    (found,) = check_runtime("onnxruntime", "cuda")
    assert (found.level, "provider cuda is not in this onnxruntime" in found.text) == ("FAIL", True)
    (found,) = check_runtime("onnxruntime", "cpu")
    assert (found.level, found.text) == ("OK", "onnxruntime has cpu; precisions: model")


@pytest.mark.parametrize("cores", [4, 5])
def test_a_machine_of_many_cores_does_not_fill_the_table(cores):
    clocks = {f"cpu{each}": (each + 1) * 1e9 for each in range(cores)}
    state = Readings(clocks_hz=clocks)
    table = timing_table(msgspec.structs.replace(MEASUREMENT, before=state, after=state))
    assert ("and 1 more" in table) is (cores == 5)
