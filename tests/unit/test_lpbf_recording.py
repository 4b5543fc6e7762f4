"""Both layouts, the oddities of real files, and one line of text for each kind of bad file."""

import os
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_files import layer_arrays, simple_file, write_layers

from mpinas.errors import UserError
from mpinas.tasks.lpbf.recording import open_recording

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    ("prefixes", "objects"), [(("",), ["file"]), (("C027/", "C030/"), ["C027", "C030"])], ids=["v1.1", "v1.0"]
)
def test_layouts(tmp_path, prefixes, objects):
    arrays = layer_arrays({0: [0, 1, 0], 1: [1, 1]})
    layers = {f"{prefix}layer{n:04d}": arrays for prefix in prefixes for n in (3, 7)}
    path = write_layers(tmp_path / "file.hdf5", layers, chunks=(2, 9, 11), compression="gzip")
    with open_recording(path, need_labels=True) as recording:
        assert [(line.object, line.layer, line.number) for line in recording.lines] == [
            (name, layer, number) for name in objects for layer in (3, 7) for number in (0, 1)
        ]
        assert recording.labelled
        assert recording.frame_sizes == ((9, 11),)
        last = recording.lines[-1]
        assert (last.labels, last.first_frame, last.last_frame) == ((101.0, 11.0), 3, 4)
        np.testing.assert_array_equal(recording.read_line(last), arrays["frame"][3:])


def test_folder_and_list_give_the_same_lines(tmp_path):
    files = [simple_file(tmp_path / name) for name in ("C002.hdf5", "C001.h5")]
    (tmp_path / "notes.txt").write_text("not a recording")
    with open_recording(tmp_path) as folder, open_recording(sorted(files)) as listed:
        assert folder.lines == listed.lines
        assert {line.object for line in folder.lines} == {"C001", "C002"}


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint32", "int64", "uint64", ">i4"])
def test_any_integer_type_of_the_index(tmp_path, kind):
    arrays = layer_arrays({0: [1, 1], 1: [1]})
    arrays["scan_line_index"] = arrays["scan_line_index"].astype(kind)
    with open_recording(write_layers(tmp_path / "a.hdf5", {"layer0": arrays})) as recording:
        assert [line.frames for line in recording.lines] == [2, 1]


def test_indices_with_gaps_frames_in_pieces_and_frames_of_no_line(tmp_path):
    frames = np.arange(7, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    arrays = {
        "frame": frames,
        "scan_line_index": np.array([5, 5, 2, -1, 5, 2, -1]),
        "laser_params": np.ones((6, 2)),
    }
    with open_recording(write_layers(tmp_path / "a.hdf5", {"layer0": arrays})) as recording:
        two, five = recording.lines
        assert (two.number, two.runs) == (2, ((2, 3), (5, 6)))
        assert (five.number, five.runs) == (5, ((0, 2), (4, 5)))
        assert recording.read_line(five)[:, 0, 0].tolist() == [0, 1, 4]


def test_test_files_have_no_labels(tmp_path):
    arrays = layer_arrays({0: [1, 1]}) | {"laser_params": None}
    path = write_layers(tmp_path / "a.hdf5", {"layer0": arrays})
    with open_recording(path) as recording:
        assert not recording.labelled
        assert recording.lines[0].labels is None
    with pytest.raises(UserError, match="no `laser_params`"):
        open_recording(path, need_labels=True)


def test_unusable_labels_count_as_none_where_none_are_needed(tmp_path):
    arrays = layer_arrays({0: [1, 1], 1: [1]})
    arrays["laser_params"][1, 0] = np.nan
    with open_recording(write_layers(tmp_path / "a.hdf5", {"layer0": arrays})) as recording:
        assert [line.labels for line in recording.lines] == [(100.0, 10.0), None]
        assert not recording.labelled


@pytest.mark.skipif(not SHARED.is_dir(), reason="the small published-layout files are not beside the checkout")
@pytest.mark.parametrize(("name", "lines"), [("raise_v1.0", 36), ("C028", 24), ("C029_test", 5)])
def test_line_counts_of_files_somebody_else_made(name, lines):
    with open_recording(SHARED / f"{name}.hdf5") as recording:
        assert len(recording.lines) == lines
        assert all(len(recording.read_line(line)) == line.frames > 0 for line in recording.lines)


def changed(**changes):
    """A builder of a file whose only layer has other datasets than it should."""

    def build(folder):
        arrays = layer_arrays({0: [1, 1], 1: [1, 1]})
        return write_layers(folder / "a.hdf5", {"layer0": arrays | changes})

    return build


def truncated(folder):
    path = simple_file(folder / "a.hdf5")
    path.write_bytes(path.read_bytes()[:-500])
    return path


def damaged_chunk(folder):
    path = simple_file(folder / "a.hdf5", chunks=(7, 9, 11), compression="gzip")
    with h5py.File(path) as file:
        offset = file["layer0000/frame"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = b"\0" * 20
    path.write_bytes(content)
    return path


def text(folder):
    path = folder / "a.hdf5"
    path.write_text("speed,power\n")
    return path


def foreign(folder):
    path = folder / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["results/values"] = np.arange(5)
    return path


def empty_file(folder):
    (folder / "a.hdf5").touch()
    return folder / "a.hdf5"


def mixed(folder):
    arrays = layer_arrays({0: [1]})
    return write_layers(folder / "a.hdf5", {"layer0": arrays, "C001/layer0": arrays})


def same_number(folder):
    arrays = layer_arrays({0: [1]})
    return write_layers(folder / "a.hdf5", {"layer1": arrays, "layer01": arrays})


def same_object(folder):
    (folder / "more").mkdir()
    return [simple_file(folder / "a.hdf5"), simple_file(folder / "more" / "a.hdf5")]


def same_file_twice(folder):
    return [simple_file(folder / "a.hdf5")] * 2


def dangling_link(folder):
    path = simple_file(folder / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["layer0009"] = h5py.ExternalLink("gone.hdf5", "/layer0009")
    return path


def damaged_group(folder):
    path = simple_file(folder / "a.hdf5")
    with h5py.File(path) as file:
        (name, *_) = file
        at = h5py.h5o.get_info(file[name].id).addr
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 16)
    return path


BAD = {
    "missing": (lambda folder: folder / "gone.hdf5", r"gone\.hdf5: no such file"),
    "empty folder": (lambda folder: folder, "no .hdf5 or .h5 file in this folder"),
    "no path": (lambda folder: [], "no recording given"),
    "empty file": (empty_file, "a.hdf5: "),
    "truncated": (truncated, "the file is truncated; copy it again"),
    "text": (text, "not an HDF5 file"),
    "foreign HDF5": (foreign, "no group with `frame` and `scan_line_index`"),
    "both layouts": (mixed, "keep to one layout"),
    "dangling link": (dangling_link, "`layer0009` links to what is not there"),
    "damaged group": (damaged_group, "`layer0000` is damaged; copy the file again"),
    "no index": (changed(scan_line_index=None), r"/layer0: no dataset `scan_line_index`"),
    "no frames": (changed(frame=None), r"/layer0: no dataset `frame`"),
    "flat frames": (changed(frame=np.zeros((4, 9), np.uint8)), r"`frame` is uint8 of shape \(4, 9\)"),
    "16 bit frames": (changed(frame=np.zeros((4, 9, 9), np.uint16)), "`frame` is uint16"),
    "no pixels": (changed(frame=np.zeros((4, 0, 9), np.uint8)), "no pixels"),
    "index of floats": (changed(scan_line_index=np.zeros(4)), "`scan_line_index` is float64"),
    "index of two axes": (changed(scan_line_index=np.zeros((4, 1), int)), r"shape \(4, 1\)"),
    "index too short": (changed(scan_line_index=np.zeros(3, int)), "4 frames but 3 entries"),
    "index below -1": (changed(scan_line_index=np.array([0, 0, -2, 1])), "holds -2"),
    "index above labels": (
        changed(scan_line_index=np.array([0, 0, 1, 9])),
        "goes up to 9 but .* has 2 lines",
    ),
    "no line at all": (
        changed(frame=np.zeros((0, 9, 9), np.uint8), scan_line_index=np.zeros(0, int)),
        "no scan lines",
    ),
    "labels missing": (changed(laser_params=None), "no `laser_params`; a training file needs them"),
    "labels NaN": (changed(laser_params=np.array([[1.0, 2.0], [np.nan, 2.0]])), "line 1 has speed nan mm/s"),
    "labels infinite": (changed(laser_params=np.array([[1.0, np.inf], [1.0, 2.0]])), "line 0 .* power inf W"),
    "labels negative": (changed(laser_params=np.array([[-1.0, 2.0], [1.0, 2.0]])), "speed -1.0 mm/s"),
    "labels of three columns": (
        changed(laser_params=np.ones((2, 3))),
        r"`laser_params` is float64 of shape \(2, 3\)",
    ),
    "labels of text": (changed(laser_params=np.array([[b"a", b"b"]] * 2)), "must be numbers"),
    "same layer number": (same_number, "have the same layer number"),
    "same object": (same_object, "object a is also in"),
    "same file twice": (same_file_twice, "object a is also in"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_that_says_where(tmp_path, case):
    build, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        open_recording(build(tmp_path), need_labels=True)
    assert "\n" not in str(caught.value)
    assert case == "no path" or str(tmp_path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_may_not_be_read_gets_one_line():
    with tempfile.TemporaryDirectory() as folder:  # others may not enter the folders of pytest
        simple_file(Path(folder) / "a.hdf5")
        Path(folder).chmod(0o711)
        os.seteuid(65534)
        try:
            with pytest.raises(UserError, match="cannot be read: Permission denied; check its permissions"):
                open_recording(folder)
        finally:
            os.seteuid(0)


def test_damaged_frames_are_reported_when_they_are_read(tmp_path):
    with open_recording(damaged_chunk(tmp_path)) as recording:
        with pytest.raises(UserError, match=r"a.hdf5, /layer0000, line 0: cannot be read") as caught:
            recording.read_line(recording.lines[0])
        assert "\n" not in str(caught.value)
        assert recording.read_line(recording.lines[1]).shape == (7, 9, 11)
