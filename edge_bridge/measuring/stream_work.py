"""The timed work of the stream test: cut windows out of frames in memory, run the model on them.

Must not know files, clocks or when a window comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_bridge.errors import BridgeError
from edge_bridge.measuring.runtimes import Array, InputSpec, LoadedModel

Frames = npt.NDArray[np.uint8]
#: Most bytes of the windows of one run.
MOST_BATCH_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """What the model takes: uint8 windows of so many frames of this height and width."""

    name: str
    frames: int
    height: int
    width: int

    @property
    def size_bytes(self) -> int:
        """Bytes of one window."""
        return self.frames * self.height * self.width


def window_spec(inputs: Sequence[InputSpec], batch: int) -> WindowSpec:
    """Read the window's shape from the model's inputs.

    Raises
    ------
    BridgeError
        Where the model does not take uint8 (1, frames, height, width), or cannot take `batch` windows in a run.
    """
    shown = ", ".join(f"{each.name}: {each.dtype} {_shown(each.shape)}" for each in inputs[:4]) or "no input"
    fits = len(inputs) == 1 and inputs[0].dtype == np.uint8 and len(inputs[0].shape) == 4
    sizes = inputs[0].shape if fits else ()
    if not fits or None in sizes[1:] or sizes[0] not in (1, None):
        raise BridgeError(f"it takes {shown}; the stream test wants one input, uint8 (1, frames, height, width)")
    if batch > 1 and sizes[0] is not None:
        raise BridgeError(f"it takes one window in a run ({shown}), asked was --batch {batch}: export a free batch")
    frames, height, width = (int(size or 0) for size in sizes[1:])
    if min(frames, height, width) < 1:
        raise BridgeError(f"it takes {shown}: an empty window")
    spec = WindowSpec(inputs[0].name, frames, height, width)
    if spec.size_bytes * batch > MOST_BATCH_BYTES:
        raise BridgeError(f"it takes {shown}: more than {MOST_BATCH_BYTES} bytes in a run; give a smaller --batch")
    return spec


def _shown(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("free" if size is None else str(size) for size in shape) + ")"


class ModelWork:
    """Cut windows, and run a model on them; a `replay.Work`.

    Frames of the model's own height and width are taken as they are. Others are cut out around the brightest pixel of
    the window's mean frame (of equals, the first as one reads); what lies outside the frame is 0.

    Parameters
    ----------
    starts
        First frame of each window.
    batch
        Most windows of one run.
    """

    def __init__(self, model: LoadedModel, spec: WindowSpec, frames: Frames, starts: Sequence[int], batch: int) -> None:
        self._model = model
        self._spec = spec
        self._frames = frames
        self._starts = starts
        self._buffer = np.zeros((batch, spec.frames, spec.height, spec.width), np.uint8)
        # Sums must not overflow, and the narrowest type is the fastest.
        self._sum_type = np.uint16 if spec.frames * 255 < 1 << 16 else np.uint64
        #: Whether frames differ in size from what the model takes.
        self.cropped = frames.shape[1:] != (spec.height, spec.width)

    def cut(self, first: int, count: int) -> Frames:
        """Windows `first` to `first + count - 1`, (count, frames, height, width)."""
        out = self._buffer[:count]
        for position in range(count):
            start = self._starts[first + position]
            window = self._frames[start : start + self._spec.frames]  # (frames, frame height, frame width)
            if self.cropped:
                self._crop(window, out[position])
            elif count == 1:
                return window[None]  # (1, frames, height, width), without a copy
            else:
                out[position] = window
        return out

    def run(self, item: Frames) -> list[Array]:
        """Return the outputs, on the host."""
        return self._model.run({self._spec.name: item})

    def _crop(self, window: Frames, out: Frames) -> None:
        height, width = out.shape[1:]
        brightest = int(window.sum(axis=0, dtype=self._sum_type).argmax())
        row, column = divmod(brightest, window.shape[2])
        top, left = row - height // 2, column - width // 2
        bottom, right = top + height, left + width
        if top >= 0 and left >= 0 and bottom <= window.shape[1] and right <= window.shape[2]:
            out[...] = window[:, top:bottom, left:right]
            return
        out[...] = 0
        inside = window[:, max(top, 0) : bottom, max(left, 0) : right]
        above, before = max(-top, 0), max(-left, 0)
        out[:, above : above + inside.shape[1], before : before + inside.shape[2]] = inside
