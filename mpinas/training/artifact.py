"""A network as the file that the device runs: exported, in the precision that its genome asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mpinas.search import Genome
from mpinas.tasks import Samples
from mpinas.training.export import export_onnx
from mpinas.training.precision import convert

#: Training windows that show an integer network the ranges of its numbers.
CALIBRATION_SAMPLES = 64


def precision_of(genome: Genome) -> str:
    """In what precision the network of a genome runs."""
    return str(genome.get("precision", "fp32"))


def calibration_of(training: Samples) -> NDArray[np.uint8]:
    """Inputs of a few training samples, spread evenly over all: (n, frames, height, width)."""
    chosen = np.linspace(0, len(training) - 1, min(CALIBRATION_SAMPLES, len(training))).astype(int)
    inputs: NDArray[np.uint8] = training.inputs[chosen]
    return inputs


def write_artifact(
    model: nn.Module,
    frames_shape: tuple[int, int, int],
    path: Path,
    metadata: Mapping[str, str],
    precision: str,
    calibration: NDArray[np.uint8] | None,
) -> int:
    """Write the ONNX file; its size in bytes.

    `calibration`: whole samples, of which the network's frames in the middle are used; None where precision is "fp32".
    The file is complete, in its precision, or not there. Raises what `export_onnx` and `convert` raise.
    """
    if precision == "fp32":
        return export_onnx(model, frames_shape, path, metadata)
    assert calibration is not None
    full = path.with_suffix(".full")
    try:
        export_onnx(model, frames_shape, full, metadata)
        size = convert(full, precision, Samples(calibration, None).middle(frames_shape[0]).inputs)
        full.replace(path)
    finally:
        full.unlink(missing_ok=True)
    return size
