"""Cut windows out of scan lines: a fixed number of frames, a square of pixels around the melt pool.

Pure arrays: knows a recording only by `read_line` and the labels of its lines, and knows nothing of training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mpinas.config import Task
from mpinas.errors import UserError

if TYPE_CHECKING:
    from mpinas.tasks.lpbf.layer import ScanLine
    from mpinas.tasks.lpbf.recording import Recording

Frames = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class View:
    """What of a camera's frames is looked at."""

    #: Side of the square that is cut out, in pixels.
    crop: int
    #: A frame whose brightest pixel is below this was taken with the laser off; 0: none was.
    lit: int


#: As for RAISE-LPBF-Laser.
PUBLISHED = View(Task(name="lpbf").crop, Task(name="lpbf").lit)


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of several lines, in the order of the lines asked for."""

    frames: Frames  # [windows, frames, crop, crop]
    #: [windows, targets], in their units; None where a line has no labels.
    labels: npt.NDArray[np.float64] | None
    #: [windows]: position in the lines asked for.
    line_index: npt.NDArray[np.int64]


def brightest_pixel(frames: Frames) -> tuple[int, int]:
    """Return (row, column) of the brightest pixel of the mean frame; of equals, the first as one reads."""
    total = frames.sum(axis=0, dtype=np.int64)  # [height, width]; orders pixels as the mean does, exactly
    row, column = np.unravel_index(int(np.argmax(total)), total.shape)
    return int(row), int(column)


def crop(frames: Frames, centre: tuple[int, int], size: int) -> Frames:
    """Return `size` x `size` pixels with `centre` in the middle; what lies outside the frames is 0."""
    half = size // 2
    count, height, width = frames.shape
    out = np.zeros((count, size, size), np.uint8)
    top, left = centre[0] - half, centre[1] - half
    rows = slice(max(top, 0), min(top + size, height))
    columns = slice(max(left, 0), min(left + size, width))
    inside = out[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    inside[...] = frames[:, rows, columns]
    return out


def lit_part(frames: Frames, wanted: int, threshold: int = PUBLISHED.lit) -> npt.NDArray[np.int64]:
    """Return the positions of the frames from which windows of `wanted` frames are cut.

    The longest stretch with the laser on where it holds a window; otherwise all lit frames in order, so that
    dark frames that split a line are left out; all frames of a line that has no lit one.
    """
    lit = frames.max(axis=(1, 2), initial=0) >= threshold
    positions = np.flatnonzero(lit)
    if len(positions) == 0:
        return np.arange(len(frames))
    stretches = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
    longest = max(stretches, key=len)  # the first of equals
    return longest if len(longest) >= wanted else positions


def window_starts(available: int, frames: int, per_line: int) -> npt.NDArray[np.int64]:
    """Return where `per_line` windows begin: one in the middle, several spread evenly from first to last."""
    spare = max(available - frames, 0)
    if per_line == 1:
        return np.array([spare // 2])
    return np.round(np.linspace(0, spare, per_line)).astype(np.int64)


def line_windows(frames: Frames, length: int, per_line: int = 1, view: View = PUBLISHED) -> Frames:
    """Return the windows of one line, [per_line, length, crop, crop]; a short line gets zero frames around it."""
    cropped = crop(frames[lit_part(frames, length, view.lit)], brightest_pixel(frames), view.crop)
    missing = max(length - len(cropped), 0)
    before = missing // 2
    padded = np.pad(cropped, ((before, missing - before), (0, 0), (0, 0)))
    starts = window_starts(len(padded), length, per_line)
    return np.stack([padded[start : start + length] for start in starts])


def extract(
    recording: "Recording",
    lines: "Sequence[ScanLine]",
    frames: int,
    per_line: int = 1,
    view: View = PUBLISHED,
    progress: Progress | None = None,
) -> Windows:
    """Read lines one after the other and cut their windows; `progress` is told lines done and all."""
    if frames < 1 or per_line < 1:
        raise UserError(f"windows of {frames} frames, {per_line} a line: both must be 1 or more")
    out = np.empty((len(lines), per_line, frames, view.crop, view.crop), np.uint8)
    for i, line in enumerate(lines):
        out[i] = line_windows(recording.read_line(line), frames, per_line, view)
        if progress:
            progress(i + 1, len(lines))
    return Windows(
        out.reshape(-1, frames, view.crop, view.crop),  # [lines * per_line, frames, crop, crop]
        _labels(lines, per_line),
        np.repeat(np.arange(len(lines)), per_line),
    )


def _labels(lines: "Sequence[ScanLine]", per_line: int) -> npt.NDArray[np.float64] | None:
    """Return the labels of each window, [lines * per_line, targets], or None if a line has none."""
    labels = [line.labels for line in lines if line.labels is not None]
    if len(labels) < len(lines) or not labels:
        return None
    return np.repeat(np.array(labels, float), per_line, axis=0)
