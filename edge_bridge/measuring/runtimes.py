"""What a runtime is to the bridge, and the registry of runtimes by name.

A runtime loads a model file and gives back something that runs it on given inputs. Must not import any
runtime by itself: the one asked for is imported when it is asked for, in the child process that measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from edge_bridge.errors import RuntimeMissingError

ENTRY_POINTS = "edge_bridge.runtimes"
_BUILT_IN = {"onnxruntime": "edge_bridge.measuring.onnx_runtime"}
#: Distributions whose version is told with a built-in runtime, found without importing it.
_DISTRIBUTIONS = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model; a dimension is None where the model leaves it free."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


class LoadedModel(Protocol):
    """A model ready to run."""

    @property
    def inputs(self) -> Sequence[InputSpec]:
        """The inputs it wants."""

    def bind(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return a callable that runs the model once on these inputs, brought to the device now, and that returns
        when the device has finished."""

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run the model on these inputs and return its outputs."""


class Runtime(Protocol):
    """A way to run models; one module-level object of this kind is what an entry point names."""

    def precisions(self, provider: str) -> tuple[str, ...]:
        """Return the precisions that `load` takes with this provider; always with "model", as the file says.

        Raises
        ------
        RuntimeMissingError
            When the provider is not there; `load` says it in any case.
        """

    def load(self, model: Path, provider: str, threads: int, precision: str) -> LoadedModel:
        """Load a model file.

        Parameters
        ----------
        model
            The file; it may be one without a name, which `Path` reaches only in this process.
        provider
            Which part of the runtime is to run it, in words of the runtime's own.
        threads
            Threads inside one operator.
        precision
            One of `precisions(provider)`.

        Raises
        ------
        BadModelError
            When the file is not a model that this runtime can run.
        RuntimeMissingError
            When the provider is not there.
        """


class BadModelError(Exception):
    """The model cannot be loaded or run; the text says why."""


def get_runtime(name: str) -> Runtime:
    """Import and return the runtime of this name.

    Raises
    ------
    RuntimeMissingError
        When there is none, or it cannot be imported.
    """
    try:
        if name in _BUILT_IN:
            return cast(Runtime, import_module(_BUILT_IN[name]).RUNTIME)
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            return cast(Runtime, entry.load())
    except ImportError as error:
        raise RuntimeMissingError(f"runtime {name} cannot be imported ({error}): install it on this machine") from None
    known = sorted({*_BUILT_IN, *(entry.name for entry in entry_points(group=ENTRY_POINTS))})
    raise RuntimeMissingError(f"no runtime {name} on this machine; there are: {', '.join(known)}")


def runtime_versions(name: str) -> dict[str, str]:
    """Versions to be told with a runtime's measurements, without importing it."""
    versions = {}
    for distribution in _DISTRIBUTIONS.get(name, ()):
        try:
            versions[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    if name not in _BUILT_IN:
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            if entry.dist is not None:
                versions[entry.dist.name] = entry.dist.version
    return versions


def in_short(detail: str) -> str:
    """What ONNX Runtime says of a model; of bytes that are no ONNX at all in plain words."""
    return "it is not an ONNX model" if "INVALID_PROTOBUF" in detail else detail
