"""Recordings of other cameras and other labels: what is learned of them, what models say of it, what is refused."""

import json
import math
import os
import shutil

import msgspec
import numpy as np
import pytest
import torch
from data_files import BRIGHT, DARK, layer_arrays, write_layers

from mpinas import config
from mpinas.errors import UserError
from mpinas.models import Networks, baseline_genome
from mpinas.tasks.lpbf.inspect import describe, format_description
from mpinas.tasks.lpbf.predict import Prediction, predict_lines, write_csv
from mpinas.tasks.lpbf.targets import PUBLISHED, column_name, from_metadata, to_metadata
from mpinas.tasks.lpbf.task import LpbfTask
from mpinas.training.deployed import Deployed
from mpinas.training.export import export_onnx

#: A weld pool: columns are current, voltage, a mark that nobody learns, and depth.
TARGETS = [
    {"name": "depth", "scale": 0.5, "offset": 2.0, "unit": "mm", "column": 3},
    {"name": "current", "scale": 100.0, "unit": "A", "column": 0},
    {"name": "Mode index", "column": 1},
]
LABELS = np.array([[150.0, -1.0, np.nan, 2.5], [250.0, 0.0, 7.0, 1.0], [200.0, 3.0, np.nan, 2.0]])


def weld_layer(labels=LABELS):
    """Three lines of nine frames of 12 x 20 pixels, all under 100 counts; the pool at row 3, column 4 + line."""
    frames = np.full((27, 12, 20), 5, np.uint8)
    for line in range(3):
        frames[9 * line : 9 * (line + 1), 3, 4 + line] = 60 + np.arange(9)
    return {"frame": frames, "scan_line_index": np.repeat(np.arange(3), 9), "weld_params": labels}


@pytest.fixture
def weld(tmp_path):
    return write_layers(tmp_path / "weld.hdf5", {f"pass{n}": weld_layer() for n in (1, 2)})


def settings(path, **keys):
    section = {"name": "lpbf", "train": [str(path)], "frames": 7} | keys
    return msgspec.convert(section, config.Task)


def weld_settings(path, **keys):
    return settings(path, **{"labels": "weld_params", "targets": TARGETS, "crop": 9, "lit": 0} | keys)


def copy_of(recording):
    """The same, as another file: the task refuses to test on what it trains on."""
    return str(shutil.copy(recording, recording.with_name("test.hdf5")))


def test_a_weld_pool_is_learned_as_said(weld):
    task = LpbfTask(weld_settings(weld, test=[copy_of(weld)]), seed=0)
    assert (task.input_shape, task.outputs) == ((7, 9, 9), 3)
    training, validation = task.load()
    expected = [[1.0, 1.5, -1.0], [-2.0, 2.5, 0.0], [0.0, 2.0, 3.0]]
    for samples in (training, validation):
        assert samples.inputs.shape == (3, 7, 9, 9)
        assert samples.targets.dtype == np.float32
        assert samples.targets.tolist() == expected
        # the middle seven of nine frames, the pool in the middle, zeros above the frame's border
        assert samples.inputs[2, :, 4, 4].tolist() == list(range(61, 68))
        assert samples.inputs[2, 0, :, 0].tolist() == [0] + [5] * 8
    assert task.load_test().targets.tolist() == expected * 2


@pytest.mark.parametrize(("lit", "middle"), [(0, range(61, 68)), (64, [0, 64, 65, 66, 67, 68, 0]), (69, range(61, 68))])
def test_dark_is_what_the_experiment_says(weld, lit, middle):
    """With 64, five frames of nine are lit and the window is filled up; with 69 none is, so that all count."""
    training, validation = LpbfTask(weld_settings(weld, lit=lit), seed=0).load()
    assert training.inputs[0, :, 4, 4].tolist() == validation.inputs[0, :, 4, 4].tolist() == list(middle)


def test_metrics_are_in_the_units_of_the_targets(weld):
    task = LpbfTask(weld_settings(weld), seed=0)
    targets = torch.tensor([[1.0, 1.5, -1.0], [-2.0, 2.5, 0.0]])
    sums = task.sums(targets + torch.tensor([[0.2, 0.1, 2.0], [0.2, -0.1, 0.0]]), targets)
    metrics = task.metrics(sums)
    assert metrics == pytest.approx(
        {
            "error": math.sqrt((0.08 + 0.02 + 4.0) / 6),
            "rmse_depth_mm": 0.5 * 0.2,
            "rmse_current_a": 100 * 0.1,
            "rmse_mode_index": math.sqrt(2.0),
        },
        rel=1e-6,
    )


def test_without_a_word_it_is_laser_speed_and_power(tmp_path):
    arrays = layer_arrays({0: [1] * 9, 1: [1] * 9})
    path = write_layers(tmp_path / "a.hdf5", {"layer0": arrays, "layer1": arrays})
    task = LpbfTask(settings(path), seed=0)
    assert (task.input_shape, task.outputs) == ((7, 41, 41), 2)
    np.testing.assert_allclose(task.load()[0].targets, [[100 / 900, 10 / 215], [101 / 900, 11 / 215]], rtol=1e-7)
    assert list(task.metrics(torch.tensor([1.0, 4.0, 9.0]))) == ["error", "rmse_speed_mm_s", "rmse_power_w"]
    assert task.metrics(torch.tensor([1.0, 4.0, 9.0]))["rmse_power_w"] == 3 * 215
    assert task.metadata["output"] == "speed / 900 mm/s, power / 215 W"
    assert json.loads(task.metadata["targets"]) == [
        {"name": "speed", "unit": "mm/s", "scale": 900.0, "offset": 0.0},
        {"name": "power", "unit": "W", "scale": 215.0, "offset": 0.0},
    ]


def test_a_file_says_how_to_get_the_units_back(weld):
    task = LpbfTask(weld_settings(weld), seed=0)
    assert task.metadata["output"] == "(depth - 2 mm) / 0.5 mm, current / 100 A, Mode index / 1"
    found = from_metadata(task.metadata)
    assert [(each.name, each.unit, each.scale, each.offset) for each in found] == [
        ("depth", "mm", 0.5, 2.0),
        ("current", "A", 100.0, 0.0),
        ("Mode index", "", 1.0, 0.0),
    ]
    assert from_metadata({}) == PUBLISHED.targets, "files from before there were other targets"
    for bad in ("depth", '[{"scale": 2}]', "{}"):
        with pytest.raises(UserError, match="do not say what it predicts"):
            from_metadata({"targets": bad})


@pytest.mark.parametrize(
    ("name", "unit", "expected"),
    [
        ("speed", "mm/s", "speed_mm_s"),
        ("Laser power", "W", "laser_power_w"),
        ("porosity", "%", "porosity"),
        ("spot", "µm", "spot_µm"),
        ("mode", "", "mode"),
        ("T_max", "°C", "t_max_c"),
    ],
)
def test_names_for_tables(name, unit, expected):
    assert column_name(config.Target(name=name, unit=unit)) == expected


def test_an_exported_model_predicts_in_units_from_the_windows_it_was_trained_on(weld, tmp_path):
    """A baseline, exported with the task's metadata: as its own outputs on the task's test windows, in units."""
    task = LpbfTask(weld_settings(weld, frames=8, lit=63, test=[copy_of(weld)]), seed=0)
    torch.manual_seed(0)
    network = Networks("cnn3d", task.input_shape, task.outputs).build(baseline_genome("lpbf-cnn"))
    export_onnx(network, task.input_shape, tmp_path / "m.onnx", task.metadata)
    deployed = Deployed(tmp_path / "m.onnx")
    rows, _ = predict_lines(deployed.run, deployed.input_shape, deployed.metadata, weld)
    assert [(row.object, row.layer, row.line) for row in rows] == [
        ("weld", n, line) for n in (1, 2) for line in (0, 1, 2)
    ]
    outputs = deployed.run(task.load_test().inputs)
    for row, (depth, current, mode) in zip(rows, outputs.tolist(), strict=True):
        expected = {"depth_mm": depth * 0.5 + 2.0, "current_a": current * 100.0, "mode_index": mode}
        assert row.values == pytest.approx(expected, rel=1e-5)
        assert list(row.values) == list(expected)


def test_older_files_predict_speed_and_power(tmp_path):
    """No targets, crop or lit in the metadata: as published. The model takes the middle two of four frames."""
    arrays = layer_arrays({0: [0, 0, 1, 1, 1, 1, 0], 1: [1] * 4})
    arrays["frame"][-4:, 4, 5] = [150, 160, 170, 180]
    path = write_layers(tmp_path / "a.hdf5", {"layer3": arrays})

    def model(inputs):
        assert inputs.shape[1:] == (2, 41, 41)
        assert set(np.unique(inputs)) == {0, DARK, 160, 170, BRIGHT}
        return np.stack([np.arange(len(inputs)), inputs[:, 0, 20, 20] / 200], axis=1).astype(np.float32)

    rows, _ = predict_lines(model, (2, 41, 41), {"task": "lpbf", "window_frames": "4"}, path)
    assert [row.values for row in rows] == [
        {"speed_mm_s": 0.0, "power_w": 215.0},
        {"speed_mm_s": 900.0, "power_w": pytest.approx(172.0)},
    ]
    write_csv(rows, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == ("object,layer,line,speed_mm_s,power_w\na,3,0,0,215\na,3,1,900,172\n")


@pytest.mark.parametrize(
    ("metadata", "shape", "message"),
    [
        ({}, (4, 41, 41), "for the task 'unknown', not for recordings"),
        ({"task": "digits", "window_frames": "4"}, (4, 41, 41), "for the task 'digits'"),
        ({"task": "lpbf"}, (4, 41, 41), "do not say which windows"),
        ({"task": "lpbf", "window_frames": "4", "crop": "x"}, (4, 41, 41), "do not say which windows"),
        ({"task": "lpbf", "window_frames": "4"}, (4, 32, 32), "was made for 4 frames of side 41"),
        ({"task": "lpbf", "window_frames": "4", "crop": "9"}, (6, 9, 9), "was made for 4 frames of side 9"),
    ],
)
def test_models_that_are_not_for_recordings(weld, metadata, shape, message):
    with pytest.raises(UserError, match=message):
        predict_lines(lambda inputs: inputs, shape, metadata, weld)


def test_a_table_of_predictions_has_six_digits(tmp_path):
    write_csv([Prediction("C1", 2, 3, {"depth_mm": 0.00123456789, "mode": -1234567.0})], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "object,layer,line,depth_mm,mode\nC1,2,3,0.00123457,-1.23457e+06\n"
    with pytest.raises(UserError, match="cannot be written"):
        write_csv([], tmp_path / "none" / "a.csv")


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path):
    kept, link, pipe = tmp_path / "kept.csv", tmp_path / "link.csv", tmp_path / "pipe"
    kept.write_text("old")
    link.symlink_to(kept)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for path in (link, pipe):
            write_csv([Prediction("C1", 2, 3, {"depth_mm": 1.0})], path)
        assert os.read(reader, 1000).decode() == kept.read_text() == "object,layer,line,depth_mm\nC1,2,3,1\n"
    finally:
        os.close(reader)
    assert link.is_symlink()
    assert pipe.is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"kept.csv", "link.csv", "pipe"}


def test_what_cannot_be_written_leaves_other_files_alone_and_no_half(tmp_path, files_up_to):
    rows = [Prediction("C1", 2, 3, {"depth_mm": 1.0})]
    (tmp_path / "out.csv.part").write_text("of the user")
    (tmp_path / "out.csv").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"out\.csv: cannot be written: No space left"):
        write_csv(rows, tmp_path / "out.csv")
    assert (tmp_path / "out.csv.part").read_text() == "of the user"
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(UserError, match="circle: cannot be written: its links go in a circle"):
        write_csv(rows, tmp_path / "circle")
    with files_up_to(10), pytest.raises(UserError, match="cannot be written: File too large"):
        write_csv(rows, tmp_path / "full.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"out.csv", "out.csv.part", "circle"}


def changed(row, column, value):
    labels = LABELS.copy()
    labels[row, column] = value
    return labels


BAD = {
    "NaN": (changed(1, 3, np.nan), {}, r"line 1 has depth nan mm and current 250.0 A and Mode index 0.0 in `weld_par"),
    "infinite": (changed(0, 0, -np.inf), {}, r"current -inf A .* a training file needs finite numbers$"),
    "too few columns": (LABELS[:, :3], {}, r"`weld_params` is float64 of shape \(3, 3\); .*\(lines, 4 or more\)"),
    "a column too many": (LABELS[:, :2], {"targets": [{"name": "a"}]}, r"numbers \(lines, 1\), for a"),
    "one axis": (LABELS[:, 0], {}, r"of shape \(3,\)"),
    "text": (np.full((3, 4), b"x"), {}, r"is \|S1 of shape"),
    "complex": (LABELS.astype(complex), {}, "is complex128"),
    "too few rows": (LABELS[:2], {}, "goes up to 2 but `weld_params` has 2 lines"),
    "another name": (LABELS, {"labels": "welds"}, "no `welds`; a training file needs them"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_unfit_labels_get_one_line_that_says_where(tmp_path, case):
    labels, keys, message = BAD[case]
    path = write_layers(tmp_path / "a.hdf5", {"pass1": weld_layer(), "pass2": weld_layer(labels)})
    with pytest.raises(UserError, match=message) as caught:
        LpbfTask(weld_settings(path, **keys), seed=0).load()
    assert "\n" not in str(caught.value)
    assert f"{path}, /pass" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"labels": "frame"}, "'frame': that dataset holds no labels"),
        ({"targets": [{"name": "a", "scale": math.inf}]}, "a has scale inf and offset 0.0; both must be finite"),
        ({"targets": [{"name": "a", "offset": math.nan}]}, "offset nan"),
        ({"targets": [{"name": "%"}]}, "'%' cannot name a column"),
        ({"targets": [{"name": "Line"}]}, "'Line' cannot name a column"),
        ({"targets": [{"name": "a b"}, {"name": "A", "unit": "B"}]}, "two targets are called a_b"),
        ({"targets": [{"name": "a", "column": 1}, {"name": "b"}]}, "two targets are of column 1"),
    ],
)
def test_targets_that_cannot_be(weld, keys, message):
    with pytest.raises(UserError, match=message) as caught:
        LpbfTask(weld_settings(weld, **keys), seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{name = "a", colum = 1}]', r"task.targets\[0\]: object contains unknown field `colum`"),
        ('[{name = "a", scale = 0.0}]', r"task.targets\[0\].scale"),
        ('[{name = "a", column = -1}]', r"task.targets\[0\].column"),
        ("[{scale = 2.0}]", r"task.targets\[0\]: object missing required field `name`"),
        ("[]", "task.targets: expected `array` of length >= 1"),
    ],
)
def test_targets_that_no_file_may_say(tmp_path, text, message):
    path = tmp_path / "e.toml"
    path.write_text(f'[task]\nname = "lpbf"\ntargets = {text}\n')
    with pytest.raises(UserError, match=message):
        config.read_experiment(path)


def test_targets_are_written_out_and_read_back(tmp_path):
    (tmp_path / "e.toml").write_text(
        '[task]\nname = "lpbf"\nlabels = "weld_params"\ncrop = 9\nlit = 0\n'
        'targets = [{name = "depth", scale = 0.5, column = 3}, {name = "current", unit = "A", column = 0}]\n'
    )
    experiment = config.read_experiment(tmp_path / "e.toml", ["task.lit=7"])
    assert [target.column for target in experiment.task.targets] == [3, 0]
    assert (experiment.task.crop, experiment.task.lit) == (9, 7)
    config.write_experiment(experiment, tmp_path / "out.toml")
    assert config.read_experiment(tmp_path / "out.toml") == experiment
    assert from_metadata({"targets": to_metadata(PUBLISHED.targets)}) == PUBLISHED.targets


def test_describe_says_what_any_labels_hold(weld):
    found = describe(weld)
    assert list(found["labels"]) == ["weld_params"]
    table = found["labels"]["weld_params"]
    assert table["lines"] == 2, "the third column is known of line 1 only, in two layers"
    assert table["columns"][1] == {"lines": 6, "mean": pytest.approx(2 / 3), "std": pytest.approx(1.6996731711975948),
                                   "min": -1.0, "max": 3.0}  # fmt: skip
    assert table["columns"][2]["lines"] == 2
    text = format_description(found)
    assert "`weld_params`, complete for 2 of 6 lines" in text
    assert "  column 0   mean 200, deviation 40.8248, 150 to 250\n" in text
    json.dumps(found)


def test_describe_layers_with_other_columns_and_with_none(tmp_path):
    layers = {
        "p1": weld_layer(LABELS[:, :2]),
        "p2": weld_layer(LABELS[:2]),
        "p3": weld_layer(None) | {"pixel_pitch": np.ones((27, 2))},
    }
    found = describe(write_layers(tmp_path / "a.hdf5", layers))
    assert [column["lines"] for column in found["labels"]["weld_params"]["columns"]] == [5, 5, 1, 2]
    assert list(found["labels"]) == ["weld_params"], "a row for each frame says nothing of lines"
    empty = describe(write_layers(tmp_path / "b.hdf5", {"p1": weld_layer(np.full((3, 1), np.nan))}))
    assert empty["labels"]["weld_params"]["columns"] == [
        {"lines": 0, "mean": None, "std": None, "min": None, "max": None}
    ]
    assert "no finite number" in format_description(empty)
