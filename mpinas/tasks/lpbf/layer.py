"""One layer of a recording: what makes it sound, and the scan lines it holds.

Reads line indices and labels, never frames. Whatever is wrong becomes one line for the user.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from mpinas.errors import UserError
from mpinas.tasks.lpbf.targets import Labels

#: What a frame gets that belongs to no line; any other negative number is refused.
NO_LINE = -1


@dataclass(frozen=True, slots=True)
class ScanLine:
    """One scan line: where its frames are, and its labels if the file has them."""

    file: int  # position in `Recording.files`
    object: str
    layer: int
    number: int  # in the layer, as `scan_line_index` counts
    group: str  # the layer's path in the file
    #: Half-open ranges of frames in the layer; more than one where the line's frames are not in one piece.
    runs: tuple[tuple[int, int], ...]
    #: In the order of the targets and in their units; None where they are not asked for, not there or not usable.
    labels: tuple[float, ...] | None = None

    @property
    def first_frame(self) -> int:
        """Position of the line's first frame in the layer."""
        return self.runs[0][0]

    @property
    def last_frame(self) -> int:
        """Position of the line's last frame in the layer."""
        return self.runs[-1][1] - 1

    @property
    def frames(self) -> int:
        """Number of frames, dark ones included."""
        return sum(stop - start for start, stop in self.runs)


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """Where a layer group was found."""

    path: Path
    file: int
    object: str
    number: int
    layout: str  # "v1.0" or "v1.1"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer group that was found sound."""

    place: LayerPlace
    group: str
    shape: tuple[int, int, int]  # frames, height, width
    storage: str  # of the frames: "gzip", "contiguous", ...


def check_layer(
    group: h5py.Group, place: LayerPlace, labels: Labels | None, need_labels: bool
) -> tuple[Layer, list[ScanLine]]:
    """Return the layer and its lines; raise UserError where the group does not follow the layout.

    Without `labels` none are read.
    """
    where = f"{place.path}, {group.name}"
    frame, numbers = _frames_and_lines(group, where)
    runs = _runs(numbers)
    values = _values(group, where, labels, need_labels, sorted(runs)) if labels else {}
    lines = [
        ScanLine(place.file, place.object, place.number, number, group.name, runs[number], values.get(number))
        for number in sorted(runs)
    ]
    storage = frame.compression or ("contiguous" if frame.chunks is None else "chunked")
    return Layer(place, group.name, frame.shape, storage), lines


def label_tables(group: h5py.Group) -> dict[str, npt.NDArray[np.float64]]:
    """Return whatever may be the labels of a layer, by the dataset's name: numbers, [rows, columns].

    A dataset with as many rows as there are frames says something of frames, not of lines.
    """
    return {
        name: np.asarray(found[:], float)
        for name, found in group.items()
        if isinstance(found, h5py.Dataset)
        and found.ndim == 2
        and found.dtype.kind in "fiu"
        and len(found) != len(group["frame"])
    }


def _frames_and_lines(group: h5py.Group, where: str) -> tuple[h5py.Dataset, npt.NDArray[np.integer]]:
    """Return the frames, unread, and the number of the line that each belongs to."""
    frame = _dataset(group, "frame", where)
    if frame.ndim != 3 or frame.dtype != np.uint8:
        raise UserError(
            f"{where}: `frame` is {frame.dtype} of shape {frame.shape}; it must be uint8 (frames, height, width)"
        )
    if 0 in frame.shape[1:]:
        raise UserError(f"{where}: `frame` has shape {frame.shape}, no pixels; write the file again")
    index = _dataset(group, "scan_line_index", where)
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise UserError(
            f"{where}: `scan_line_index` is {index.dtype} of shape {index.shape}; it must be integers (frames,)"
        )
    if len(index) != len(frame):
        raise UserError(
            f"{where}: {len(frame)} frames but {len(index)} entries of `scan_line_index`; the lengths must agree"
        )
    numbers = np.asarray(index[:])
    if numbers.size and numbers.min() < NO_LINE:
        raise UserError(f"{where}: `scan_line_index` holds {numbers.min()}; lines are numbered from 0")
    return frame, numbers


def _dataset(group: h5py.Group, name: str, where: str) -> h5py.Dataset:
    """Return a dataset that must be there."""
    found = group.get(name)
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{where}: no dataset `{name}`; a layer needs `frame` and `scan_line_index`")
    return found


def _values(
    group: h5py.Group, where: str, labels: Labels, needed: bool, lines: Sequence[int]
) -> dict[int, tuple[float, ...]]:
    """Return the labels of each line that has usable ones; refuse unusable ones where they are needed."""
    if labels.dataset not in group:
        if needed:
            raise UserError(f"{where}: no `{labels.dataset}`; a training file needs them, a test file does not")
        return {}
    found = _dataset(group, labels.dataset, where)
    columns = max(labels.columns) + 1
    fits = found.ndim == 2 and (found.shape[1] == columns if labels.all_columns else found.shape[1] >= columns)
    if not fits or found.dtype.kind not in "fiu":
        raise UserError(
            f"{where}: `{labels.dataset}` is {found.dtype} of shape {found.shape}; it must be numbers (lines, "
            f"{columns}{'' if labels.all_columns else ' or more'}), for {labels.named}"
        )
    table = np.asarray(found[:], float)
    if lines and lines[-1] >= len(table):
        raise UserError(
            f"{where}: `scan_line_index` goes up to {lines[-1]} but `{labels.dataset}` has {len(table)} lines;"
            " add their labels or remove their frames"
        )
    values = {number: tuple(map(float, table[number, list(labels.columns)])) for number in lines}
    usable = {number: found for number, found in values.items() if labels.usable(found)}
    if needed and len(usable) < len(values):
        bad = next(number for number in lines if number not in usable)
        raise UserError(
            f"{where}: line {bad} has {labels.said(values[bad])} in `{labels.dataset}`;"
            f" a training file needs finite numbers{'' if labels.lowest < 0 else ', not below 0'}"
        )
    return usable


def _runs(numbers: npt.NDArray[np.integer]) -> dict[int, tuple[tuple[int, int], ...]]:
    """Return for each line the half-open ranges of its frames, in the order of recording."""
    if not len(numbers):
        return {}
    starts = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1])
    stops = np.concatenate([starts[1:], [len(numbers)]])
    runs: dict[int, list[tuple[int, int]]] = {}
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        runs.setdefault(int(numbers[start]), []).append((start, stop))
    return {number: tuple(found) for number, found in runs.items() if number != NO_LINE}
