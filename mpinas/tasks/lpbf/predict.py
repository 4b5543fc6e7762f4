"""Speed and power of every scan line of a recording, by a finished model."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpinas.errors import UserError
from mpinas.tasks.lpbf.recording import open_recording
from mpinas.tasks.lpbf.windows import CROP, TARGET_SCALE, extract

#: Lines read at a time.
BATCH = 256

Model = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One scan line."""

    object: str
    layer: int
    line: int
    speed_mm_s: float
    power_w: float


def predict_lines(
    model: Model, input_shape: tuple[int, int, int], metadata: Mapping[str, str], recording: Path
) -> list[Prediction]:
    """Predictions in the order of the recording's lines, from the same windows as in training.

    `model` maps uint8 (n, *input_shape) to (n, 2) normalised; `metadata` is that of its ONNX file.

    Raises
    ------
    UserError
        The model is for another task, or the recording is unfit.
    """
    if metadata.get("task") != "lpbf" or "window_frames" not in metadata or input_shape[1:] != (CROP, CROP):
        raise UserError(f"the model is for the task {metadata.get('task', 'unknown')!r}, not for recordings (lpbf)")
    window, frames = int(metadata["window_frames"]), input_shape[0]
    start = (window - frames) // 2
    rows = []
    with open_recording(recording) as opened:
        for first in range(0, len(opened.lines), BATCH):
            lines = opened.lines[first : first + BATCH]
            inputs = extract(opened, lines, window).frames[:, start : start + frames]
            for line, (speed, power) in zip(lines, model(inputs) * np.array(TARGET_SCALE), strict=True):
                rows.append(Prediction(line.object, line.layer, line.number, float(speed), float(power)))
    return rows


def write_csv(rows: Sequence[Prediction], path: Path) -> None:
    """Write one row a line; the file is complete or not there. Raises UserError."""
    beside = path.with_name(path.name + ".part")
    try:
        with open(beside, "w", newline="") as file:
            table = csv.DictWriter(file, ["object", "layer", "line", "speed_mm_s", "power_w"], lineterminator="\n")
            table.writeheader()
            for row in rows:
                table.writerow(asdict(row) | {"speed_mm_s": f"{row.speed_mm_s:.2f}", "power_w": f"{row.power_w:.3f}"})
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
