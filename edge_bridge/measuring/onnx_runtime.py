"""ONNX Runtime as a `Runtime`: the only module that imports onnxruntime, and only the measuring child
imports it.

Must not know measurement settings or the protocol.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# From 1.29 on the Linux builds report models to their maker over the network unless told not to before the
# import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime

from edge_bridge.errors import RuntimeMissingError
from edge_bridge.measuring.runtimes import Array, BadModelError, InputSpec

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(uint16)": np.uint16,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class _Session:
    def __init__(self, session: Any) -> None:
        self._session = session
        self._outputs = [each.name for each in session.get_outputs()]
        self.inputs: Sequence[InputSpec] = [_spec(each) for each in session.get_inputs()]

    def bind(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Run with the outputs brought back to the host, which waits for the device."""
        run, outputs, feeds = self._session.run, self._outputs, dict(inputs)
        return lambda: run(outputs, feeds)


class OnnxRuntime:
    """Loads ONNX files with one of ONNX Runtime's providers: cpu, cuda, tensorrt."""

    def load(self, model: Path, provider: str, threads: int) -> _Session:
        """Build a session; see `edge_bridge.measuring.runtimes.Runtime.load`."""
        wanted = _PROVIDERS.get(provider)
        present = onnxruntime.get_available_providers()
        if wanted is None or wanted not in present:
            raise RuntimeMissingError(f"provider {provider} is not in this onnxruntime; it has: {', '.join(present)}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(os.fspath(model), options, providers=[wanted])
        except Exception as error:
            # The runtime raises a class of its own for each status; all mean that this file is not runnable
            # here.
            raise BadModelError(str(error)) from None
        if wanted not in session.get_providers():
            raise RuntimeMissingError(f"provider {provider} could not be started on this machine")
        return _Session(session)


def _spec(argument: Any) -> InputSpec:
    kind = _DTYPES.get(argument.type)
    if kind is None:
        raise BadModelError(f"input {argument.name} has type {argument.type}, which is not measured")
    shape = tuple(size if isinstance(size, int) else None for size in argument.shape)
    return InputSpec(argument.name, shape, np.dtype(kind))


RUNTIME = OnnxRuntime()
