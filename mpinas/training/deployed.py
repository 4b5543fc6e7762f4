"""A finished model as its users have it: an ONNX file, run by ONNX Runtime. Knows no torch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpinas.errors import UserError

#: Names of the one input and the one output of every file that mpinas writes.
INPUT, OUTPUT = "frames", "output"


class Deployed:
    """Input uint8 (n, *input_shape), output float32 (n, outputs). `threads`: 0, as many as ONNX Runtime likes.

    Raises
    ------
    UserError
        The file is missing, is no ONNX model, or was not written by mpinas.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        # its Linux wheels report file and graph names to their maker unless told not to
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime

        if not path.is_file():
            raise UserError(f"{path}: no such model file")
        try:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has its own classes for each way to be broken
            raise UserError(f"{path}: not a model that ONNX Runtime can load: {str(error).splitlines()[0]}") from None
        inputs = self._session.get_inputs()
        if [i.name for i in inputs] != [INPUT] or inputs[0].type != "tensor(uint8)":
            raise UserError(f"{path}: not a model of mpinas: its input is not {INPUT!r} of uint8")
        taken, outputs = inputs[0].shape, self._session.get_outputs()
        if len(taken) != 4 or not all(isinstance(side, int) and side > 0 for side in taken[1:]):
            raise UserError(f"{path}: not a model of mpinas: its input is {taken}, not batch, frames, height and width")
        if [each.name for each in outputs] != [OUTPUT] or len(outputs[0].shape) != 2:
            raise UserError(f"{path}: not a model of mpinas: its output is not one {OUTPUT!r} of (batch, outputs)")
        #: Frames, height, width.
        self.input_shape: tuple[int, int, int] = tuple(inputs[0].shape[1:])
        #: What the file says of itself.
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, inputs: NDArray[np.uint8], batch: int = 64) -> NDArray[np.float32]:
        """Outputs for all of `inputs`, `batch` at a time."""
        parts = [
            self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(inputs[start : start + batch])})[0]
            for start in range(0, len(inputs), batch)
        ]
        return np.concatenate(parts)
