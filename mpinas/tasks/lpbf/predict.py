"""What a finished model says of every scan line of a recording, in the units of its targets."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpinas.errors import UserError
from mpinas.files import write_whole
from mpinas.tasks.lpbf.recording import open_recording
from mpinas.tasks.lpbf.targets import column_name, from_metadata, in_units
from mpinas.tasks.lpbf.windows import PUBLISHED, View, extract

#: Lines read at a time.
BATCH = 256
#: Frames of a window, and pixels of its side.
MOST = 1024

Model = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One scan line."""

    object: str
    layer: int
    line: int
    #: Name of a target with its unit -> value.
    values: dict[str, float]


def predict_lines(
    model: Model, input_shape: tuple[int, int, int], metadata: Mapping[str, str], recording: Path
) -> tuple[list[Prediction], bool]:
    """(predictions in the order of the recording's lines, from the same windows as in training; is it simulated?).

    `model` maps uint8 (n, *input_shape) to (n, targets) normalised; `metadata` is that of its ONNX file.

    Raises
    ------
    UserError
        The model is for another task, or the recording is unfit.
    """
    if metadata.get("task") != "lpbf":
        raise UserError(f"the model is for the task {metadata.get('task', 'unknown')!r}, not for recordings (lpbf)")
    window, view = _windows_of(metadata)
    frames = input_shape[0]
    if input_shape[1:] != (view.crop, view.crop) or frames > window:
        raise UserError(f"the model takes {input_shape} but was made for {window} frames of side {view.crop}; "
                        "export it again")  # fmt: skip
    targets = from_metadata(metadata)
    names = [column_name(target) for target in targets]
    start = (window - frames) // 2
    rows = []
    with open_recording(recording, labels=None) as opened:
        for first in range(0, len(opened.lines), BATCH):
            lines = opened.lines[first : first + BATCH]
            inputs = extract(opened, lines, window, view=view).frames[:, start : start + frames]
            outputs = model(inputs)
            if outputs.shape[1] != len(targets):
                raise UserError(f"the model gives {outputs.shape[1]} outputs, but its metadata name {len(targets)} "
                                "targets; export it again")  # fmt: skip
            for line, values in zip(lines, in_units(outputs, targets).tolist(), strict=True):
                found = dict(zip(names, values, strict=True))
                rows.append(Prediction(line.object, line.layer, line.number, found))
        return rows, opened.simulated


def write_csv(rows: Sequence[Prediction], path: Path) -> None:
    """Write one row a line; the file is complete or not there. Raises UserError.

    A link stays one, and so does a device or a pipe, into which it is written at once.
    """
    names = list(rows[0].values) if rows else []
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["object", "layer", "line", *names])
    for row in rows:
        # six digits are what 32-bit numbers hold
        table.writerow([row.object, row.layer, row.line, *[f"{row.values[name]:.6g}" for name in names]])
    content = text.getvalue().encode()
    try:
        if path.is_file() or not path.exists():
            write_whole(path.resolve(), content)
        else:
            path.write_bytes(content)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        why = error.strerror if isinstance(error, OSError) else "its links go in a circle"
        raise UserError(f"{path}: cannot be written: {why}") from None


def _windows_of(metadata: Mapping[str, str]) -> tuple[int, View]:
    """How windows are cut for a model: (frames, view); those published, where an older one does not say."""
    try:
        view = View(int(metadata.get("crop", PUBLISHED.crop)), int(metadata.get("lit", PUBLISHED.lit)))
        window = int(metadata["window_frames"])
        if not (1 <= window <= MOST and 1 <= view.crop <= MOST):
            raise ValueError
        return window, view
    except (KeyError, ValueError):
        raise UserError("the model's metadata do not say which windows it was made for; export it again") from None
