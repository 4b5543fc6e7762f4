"""Frames of a melt-pool recording, read ahead into memory as far as a bound allows.

Reads both layouts of docs/data.md with h5py, and only the stream test's own process imports it: what a broken file
does to the HDF5 library it does there. Must not know windows, models or time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from edge_bridge.errors import BridgeError

#: Layers that a recording may have.
MOST_LAYERS = 100_000


@dataclass(frozen=True, slots=True)
class Footage:
    """The first frames of a recording, layer after layer.

    Attributes
    ----------
    frames
        (frames, height, width), uint8.
    layer_frames
        Frames of each layer in it; their sum is the number of frames.
    complete
        All that was asked for is there; False where the memory bound cut it.
    simulated
        The file says that it was computed, not recorded.
    """

    frames: npt.NDArray[np.uint8]
    layer_frames: list[int]
    complete: bool
    simulated: bool


def read_footage(path: Path, layer: str, most_frames: int, most_bytes: int) -> Footage:
    """Read at most so many frames, and so many bytes, of a recording or of one of its layers.

    Raises
    ------
    BridgeError
        One line for whatever is wrong with the file.
    """
    if not path.exists():
        raise BridgeError(f"recording {path}: no such file; check the path")
    if not path.is_file():
        raise BridgeError(f"recording {path}: not a file; give one HDF5 file")
    try:
        handle = h5py.File(path, "r")
    except OSError as error:
        raise BridgeError(f"recording {path}: {_why_closed(error)}") from None
    with handle:
        try:
            return _read(handle, path, layer, most_frames, most_bytes)
        except MemoryError:
            raise BridgeError(f"recording {path}: its frames do not fit into memory; give fewer --frames") from None
        except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            # What HDF5 raises on damaged content.
            reason = " ".join(str(error).split())[:300]
            raise BridgeError(f"recording {path}: cannot be read ({reason}); copy the file again") from None


def _read(handle: h5py.File, path: Path, layer: str, most_frames: int, most_bytes: int) -> Footage:
    layers = _one_layer(handle, path, layer) if layer else _layers(handle, path)
    for each in layers:
        _check(each, path)
    sizes = {tuple(map(int, each.shape[1:])) for each in layers}
    if len(sizes) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sorted(sizes)[:4])
        raise BridgeError(f"recording {path}: layers with frames of {shown}; choose one with --layer")
    height, width = sizes.pop()
    asked = min(most_frames, sum(len(each) for each in layers))
    if not asked:
        raise BridgeError(f"recording {path}: no frames in it; give a recording with frames")
    count = min(asked, most_bytes // (height * width))
    if not count:
        raise BridgeError(
            f"recording {path}: one frame of {height} x {width} is more than {most_bytes / 1e6:.0f} MB;"
            " give a larger --preload-mb"
        )
    frames = np.empty((count, height, width), np.uint8)
    lengths: list[int] = []
    filled = 0
    for each in layers:
        wanted = min(len(each), count - filled)
        if not wanted:
            continue
        # Straight into place: no copy, and each chunk of a compressed file is unpacked once.
        each.read_direct(frames, np.s_[:wanted], np.s_[filled : filled + wanted])
        filled += wanted
        lengths.append(wanted)
    return Footage(frames, lengths, count == asked, bool(np.all(handle.attrs.get("simulated", False))))


def _why_closed(error: OSError) -> str:
    reason = " ".join(str(error).split())[:300]
    if "truncated" in reason:
        return "the file is truncated; copy it again"
    if "signature not found" in reason:
        return "not an HDF5 file; give a recording in a RAISE-LPBF-Laser layout"
    return f"cannot be opened ({reason}); check the file and its permissions"


def _layers(handle: h5py.File, path: Path) -> list[Any]:
    """Return the `frame` of each layer in the order of recording: objects by name, layers by number."""
    found = [*_inside(handle), *(frame for group in _groups(handle) for frame in _inside(group))]
    if not found:
        raise BridgeError(
            f"recording {path}: no group with frames (/LAYER/frame or /OBJECT/LAYER/frame); see docs/data.md"
        )
    if len(found) > MOST_LAYERS:
        raise BridgeError(f"recording {path}: more than {MOST_LAYERS} layers; choose one with --layer")
    return found


def _one_layer(handle: h5py.File, path: Path, layer: str) -> list[Any]:
    group = handle.get(layer)
    frame = group.get("frame") if isinstance(group, h5py.Group) else None
    if frame is None:
        names = [each.name.rsplit("/", 1)[0] for each in _layers(handle, path)]
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        raise BridgeError(f"recording {path}: no layer {layer}; it has {shown}")
    return [frame]


def _groups(parent: h5py.Group) -> Iterator[h5py.Group]:
    """Groups inside, by the number that ends their name; a link that leads nowhere would hide one."""
    for name in sorted(parent, key=_order):
        child = parent.get(name)
        if child is None:
            damaged = isinstance(parent.get(name, getlink=True), h5py.HardLink)
            trouble, mend = (
                ("is damaged", "copy the file again")
                if damaged
                else ("links to what is not there", "put the linked file beside it")
            )
            raise BridgeError(
                f"recording {parent.file.filename}: `{name}` in {parent.name} {trouble}; {mend} or choose a --layer"
            )
        if isinstance(child, h5py.Group):
            yield child


def _inside(parent: h5py.Group) -> Iterator[Any]:
    return (group["frame"] for group in _groups(parent) if "frame" in group)


def _order(name: str | bytes) -> tuple[int, str]:
    text = str(name)  # h5py gives bytes for what is no UTF-8
    number = re.search(r"(\d{1,18})\D*$", text)
    return (int(number[1]) if number else -1, text)


def _check(frame: Any, path: Path) -> None:
    if not isinstance(frame, h5py.Dataset) or frame.ndim != 3 or frame.dtype != np.uint8:
        what = (
            f"{frame.dtype} of shape {frame.shape}" if isinstance(frame, h5py.Dataset) else f"a {type(frame).__name__}"
        )
        raise BridgeError(f"recording {path}: {frame.name} is {what}; it must be uint8 (frames, height, width)")
    if 0 in frame.shape[1:]:
        raise BridgeError(f"recording {path}: {frame.name} has shape {frame.shape}, no pixels; write the file again")
