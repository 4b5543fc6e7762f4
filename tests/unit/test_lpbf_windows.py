"""Crops and windows by value; the split into training and validation."""

import random

import numpy as np
import pytest
from data_files import layer_arrays, line_frames, write_layers
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mpinas.errors import UserError
from mpinas.tasks.lpbf.recording import open_recording
from mpinas.tasks.lpbf.split import split_layers
from mpinas.tasks.lpbf.windows import brightest_pixel, crop, extract, line_windows, lit_part, window_starts


def test_brightest_pixel_is_of_the_mean_frame():
    frames = np.zeros((3, 4, 5), np.uint8)
    frames[0, 0, 0] = 255  # the brightest of all, but once
    frames[:, 2, 3] = 100
    assert brightest_pixel(frames) == (2, 3)
    assert brightest_pixel(np.full((2, 3, 3), 7, np.uint8)) == (0, 0)


def test_crop_pads_with_zeros_at_the_border():
    frames = np.arange(1, 13, dtype=np.uint8).reshape(1, 3, 4)
    assert crop(frames, (0, 0), 3).tolist() == [[[0, 0, 0], [0, 1, 2], [0, 5, 6]]]
    assert crop(frames, (2, 3), 3).tolist() == [[[7, 8, 0], [11, 12, 0], [0, 0, 0]]]
    assert crop(frames, (1, 1), 3).tolist() == [[[1, 2, 3], [5, 6, 7], [9, 10, 11]]]


def test_frames_smaller_than_the_crop_stand_in_zeros():
    frames = np.full((2, 5, 7), 9, np.uint8)
    frames[:, 1, 2] = 200
    (window,) = line_windows(frames, 2)
    assert window.shape == (2, 41, 41)
    assert window[0, 20, 20] == 200
    # Row 1, column 2 of the frame is the middle: 5 x 7 pixels from row 19, column 18.
    assert window[0, 19:24, 18:25].all()
    assert (window[0] > 0).sum() == 35


@pytest.mark.parametrize(
    ("lit", "wanted", "expected"),
    [
        ([0, 1, 1, 1, 0], 2, [1, 2, 3]),  # dark ends are left out
        ([1, 1, 0, 1, 1, 1], 3, [3, 4, 5]),  # a stretch that holds the window
        ([1, 1, 0, 1, 1, 1], 4, [0, 1, 3, 4, 5]),  # none does: lit frames without the split
        ([1, 1, 0, 1, 1], 2, [0, 1]),  # the first of equals
        ([0, 0, 0], 2, [0, 1, 2]),  # no bright frame: what there is
    ],
)
def test_lit_part(lit, wanted, expected):
    assert lit_part(line_frames(lit), wanted).tolist() == expected


@pytest.mark.parametrize(
    ("available", "frames", "per_line", "expected"),
    [
        (10, 4, 1, [3]),
        (9, 4, 1, [2]),
        (4, 4, 1, [0]),
        (10, 4, 3, [0, 3, 6]),
        (4, 4, 2, [0, 0]),
        (5, 4, 3, [0, 0, 1]),
    ],
)
def test_windows_are_centred_or_spread_evenly(available, frames, per_line, expected):
    assert window_starts(available, frames, per_line).tolist() == expected


def test_short_line_stands_between_zero_frames():
    (window,) = line_windows(line_frames([0, 1, 1, 1, 0]), 6)
    assert (window.max(axis=(1, 2)) > 0).tolist() == [False, True, True, True, False, False]


@given(
    frames=hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 60), st.integers(1, 60))),
    length=st.integers(1, 16),
    per_line=st.integers(1, 3),
)
def test_any_line_gives_whole_windows_around_its_brightest_pixel(frames, length, per_line):
    windows = line_windows(frames, length, per_line)
    assert windows.shape == (per_line, length, 41, 41)
    assert windows.dtype == np.uint8
    everything = crop(frames, brightest_pixel(frames), 41).sum(axis=0, dtype=int)
    assert everything[20, 20] == everything.max() == frames.sum(axis=0, dtype=int).max()


@pytest.fixture
def recording(tmp_path):
    arrays = layer_arrays({0: [0, 1, 1, 1, 1, 0], 1: [0, 0], 2: [1]})
    layers = {f"{name}/layer{n}": arrays for name in ("C1", "C2") for n in range(5)}
    with open_recording(write_layers(tmp_path / "a.hdf5", layers)) as opened:
        yield opened


def test_extract(recording):
    calls = []
    found = extract(recording, recording.lines[:3], 4, per_line=2, progress=lambda *at: calls.append(at))
    assert found.frames.shape == (6, 4, 41, 41)
    assert found.line_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.labels is not None
    assert found.labels[::2].tolist() == [[100.0, 10.0], [101.0, 11.0], [102.0, 12.0]]
    np.testing.assert_array_equal(found.labels[::2], found.labels[1::2])
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert found.frames[0, :, 20, 20].tolist() == [200] * 4
    assert found.frames[4, :, 20, 20].tolist() == [0, 200, 0, 0]
    assert found.frames[2, :, 20, 20].tolist() == [0, 20, 20, 0]


def test_extract_of_no_lines_and_of_impossible_windows(recording):
    assert extract(recording, (), 4).frames.shape == (0, 4, 41, 41)
    with pytest.raises(UserError, match="both must be 1 or more"):
        extract(recording, recording.lines, 0)


def layers_of(lines):
    return {(line.object, line.layer) for line in lines}


def test_split_takes_whole_layers(recording):
    split = split_layers(recording.lines, 0.2, seed=3)
    assert len(layers_of(split.validation)) == 2
    assert not layers_of(split.training) & layers_of(split.validation)
    assert sorted(split.training + split.validation, key=str) == sorted(recording.lines, key=str)


def test_split_depends_on_the_seed_and_not_on_the_order(recording):
    shuffled = random.Random(0).sample(recording.lines, len(recording.lines))
    assert split_layers(shuffled, 0.2, 3) == split_layers(recording.lines, 0.2, 3)
    assert len({split_layers(recording.lines, 0.2, seed).validation for seed in range(10)}) > 3


@pytest.mark.parametrize(("fraction", "layers"), [(0.001, 1), (0.3, 3), (0.999, 9)])
def test_each_side_has_a_layer(recording, fraction, layers):
    assert len(layers_of(split_layers(recording.lines, fraction, 0).validation)) == layers


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_impossible_fractions(recording, fraction):
    with pytest.raises(UserError, match="must lie between 0 and 1"):
        split_layers(recording.lines, fraction, 0)


def test_one_layer_cannot_be_split(recording):
    with pytest.raises(UserError, match=r"lines of 1 layer\(s\); validation takes whole layers"):
        split_layers(recording.lines[:3], 0.2, 0)
