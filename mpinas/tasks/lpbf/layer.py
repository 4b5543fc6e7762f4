"""One layer of a recording: what makes it sound, and the scan lines it holds.

Reads line indices and labels, never frames. Whatever is wrong becomes one line for the user.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from mpinas.errors import UserError

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
    speed_mm_s: float | None = None
    power_w: float | None = None

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
    labelled: bool


def check_layer(group: h5py.Group, place: LayerPlace, need_labels: bool) -> tuple[Layer, list[ScanLine]]:
    """Return the layer and its lines; raise UserError where the group does not follow the layout."""
    where = f"{place.path}, {group.name}"
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
    labels = _labels(group, where, need_labels)
    runs = _runs(numbers)
    if labels is not None and runs and max(runs) >= len(labels):
        raise UserError(
            f"{where}: `scan_line_index` goes up to {max(runs)} but `laser_params` has {len(labels)} lines;"
            " add their labels or remove their frames"
        )
    lines = []
    for number in sorted(runs):
        speed, power = (None, None) if labels is None else map(float, labels[number])
        if speed is None or power is None or not (0 <= speed < np.inf and 0 <= power < np.inf):
            if need_labels:
                raise UserError(
                    f"{where}: line {number} has speed {speed} mm/s and power {power} W in `laser_params`;"
                    " a training file needs finite numbers, not below 0"
                )
            speed = power = None
        lines.append(ScanLine(place.file, place.object, place.number, number, group.name, runs[number], speed, power))
    storage = frame.compression or ("contiguous" if frame.chunks is None else "chunked")
    return Layer(place, group.name, frame.shape, storage, labels is not None), lines


def _dataset(group: h5py.Group, name: str, where: str) -> h5py.Dataset:
    """Return a dataset that must be there."""
    found = group.get(name)
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{where}: no dataset `{name}`; a layer needs `frame` and `scan_line_index`")
    return found


def _labels(group: h5py.Group, where: str, needed: bool) -> npt.NDArray[np.float64] | None:
    """Return `laser_params` as numbers, or None where the file has none and none are needed."""
    if "laser_params" not in group:
        if needed:
            raise UserError(f"{where}: no `laser_params`; a training file needs them, a test file does not")
        return None
    found = _dataset(group, "laser_params", where)
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "fiu":
        raise UserError(
            f"{where}: `laser_params` is {found.dtype} of shape {found.shape};"
            " it must be numbers (lines, 2): speed in mm/s, power in W"
        )
    values: npt.NDArray[np.float64] = np.asarray(found[:], float)
    return values


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
