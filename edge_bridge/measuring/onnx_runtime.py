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
from edge_bridge.measuring.onnx_file import refuse_foreign_files
from edge_bridge.measuring.runtimes import Array, BadModelError, InputSpec

_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_PROVIDERS = {"cpu": _CPU, "cuda": _CUDA, "tensorrt": _TENSORRT}
#: Where a provider keeps its tensors, in ONNX Runtime's words; a provider that is not here takes the host's.
_MEMORY = {"cuda": "cuda", "tensorrt": "cuda"}
_PRECISIONS = {"tensorrt": ("model", "fp16")}
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


class OnnxModel:
    """A session of ONNX Runtime.

    `memory` names the device that inputs are brought to before a run is timed; None leaves them with the host.
    """

    def __init__(self, session: Any, memory: str | None) -> None:
        self._session = session
        self._memory = memory
        self._outputs = [each.name for each in session.get_outputs()]
        self.inputs: Sequence[InputSpec] = [_spec(each) for each in session.get_inputs()]

    def bind(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """See `edge_bridge.measuring.runtimes.LoadedModel.bind`."""
        if self._memory is None:
            run, outputs, feeds = self._session.run, self._outputs, dict(inputs)
            return lambda: run(outputs, feeds)
        return self._bound(inputs, self._memory)

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """See `edge_bridge.measuring.runtimes.LoadedModel.run`."""
        found: list[Array] = self._session.run(self._outputs, dict(inputs))
        return found

    def _bound(self, inputs: Mapping[str, Array], memory: str) -> Callable[[], object]:
        """Inputs lie on the device before, outputs stay there, and each run waits until it is done."""
        session, binding = self._session, self._session.io_binding()
        for name, values in inputs.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(values, memory, 0))
        for name in self._outputs:
            binding.bind_output(name, memory, 0)
        binding.synchronize_inputs()

        def run_and_wait() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run_and_wait


class OnnxRuntime:
    """Loads ONNX files with one of ONNX Runtime's providers: cpu, cuda, tensorrt."""

    def precisions(self, provider: str) -> tuple[str, ...]:
        """See `edge_bridge.measuring.runtimes.Runtime.precisions`."""
        _named(provider)
        return _PRECISIONS.get(provider, ("model",))

    def load(self, model: Path, provider: str, threads: int, precision: str) -> OnnxModel:
        """Build a session; see `edge_bridge.measuring.runtimes.Runtime.load`."""
        wanted = _named(provider)
        refuse_foreign_files(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Whatever its first bytes or its name say, a file is read as ONNX.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        try:
            # Without its fallback, in which another provider takes over when the one asked for fails, now or in a run.
            session = onnxruntime.InferenceSession(
                os.fspath(model), options, providers=_chain(wanted, precision), enable_fallback=0
            )
        except Exception as error:
            if wanted != _CPU and isinstance(error, RuntimeError | ValueError):
                # A provider that does not start, for which the fallback was made.
                why = " ".join(str(error).split())[:1000]
                raise RuntimeMissingError(f"provider {provider} could not be started on this machine: {why}") from None
            # The runtime raises a class of its own for each status; all mean that this file is not runnable
            # here.
            raise BadModelError(str(error)) from None
        # This says only that the provider has started: single nodes may run on the CPU all the same.
        if wanted not in session.get_providers():
            raise RuntimeMissingError(
                f"provider {provider} could not be started on this machine: libraries of other versions than this"
                " onnxruntime wants? its own words are on standard error"
            )
        return OnnxModel(session, _MEMORY.get(provider))


def _named(provider: str) -> str:
    """Provider in ONNX Runtime's words; RuntimeMissingError where it is not there."""
    wanted, present = _PROVIDERS.get(provider), onnxruntime.get_available_providers()
    if wanted is None or wanted not in present:
        raise RuntimeMissingError(f"provider {provider} is not in this onnxruntime; it has: {', '.join(present)}")
    return wanted


def _chain(wanted: str, precision: str) -> list[Any]:
    """Provider asked for, and for what TensorRT leaves over CUDA before the CPU."""
    if wanted != _TENSORRT:
        return [wanted]
    engine = (_TENSORRT, {"trt_fp16_enable": precision == "fp16"})
    return [engine, _CUDA] if _CUDA in onnxruntime.get_available_providers() else [engine]


def _spec(argument: Any) -> InputSpec:
    kind = _DTYPES.get(argument.type)
    if kind is None:
        raise BadModelError(f"input {argument.name} has type {argument.type}, which is not measured")
    shape = tuple(size if isinstance(size, int) else None for size in argument.shape)
    return InputSpec(argument.name, shape, np.dtype(kind))


RUNTIME = OnnxRuntime()
