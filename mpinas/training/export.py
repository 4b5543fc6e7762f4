"""A network as an ONNX file, and the proof that the file computes the same."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from mpinas.files import part_of, put_in_place
from mpinas.models.baselines import LpbfCnn
from mpinas.training.deployed import INPUT, OUTPUT, Deployed


def export_onnx(model: nn.Module, frames_shape: tuple[int, int, int], path: Path, metadata: Mapping[str, str]) -> int:
    """Write `model` for uint8 input (batch, frames, height, width), batch free; size of the file in bytes.

    The file is complete or not there. Raises whatever torch's exporter raises.
    """
    program = _program(model, frames_shape)
    program.model.metadata_props.update(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = part_of(path)
    program.save(str(beside))
    put_in_place(beside, path)
    return path.stat().st_size


def check_outputs(path: Path, outputs: int) -> None:
    """Raise ValueError, and remove the file, where its network does not give so many numbers for each sample."""
    (result,) = onnx.load(path, load_external_data=False).graph.output
    given = [size.dim_value for size in result.type.tensor_type.shape.dim[1:]]
    if given != [outputs]:
        path.unlink()
        numbers = " x ".join(map(str, given)) or "no"
        raise ValueError(f"the network gives {numbers} numbers for each sample, and the task has {outputs}")


def _program(model: nn.Module, frames_shape: tuple[int, int, int]) -> torch.onnx.ONNXProgram:
    model = model.to("cpu").eval()
    example = torch.zeros((2, *frames_shape), dtype=torch.uint8)  # 2: a batch of 1 would be taken for a constant
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations inside its exporter
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        _parse_operators_once()
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    assert program is not None
    return program


def get_ready() -> None:
    """Do now what the first export of a process would do: it takes seconds that nobody is waiting for yet."""
    smallest = (7, 7, 7)
    _program(LpbfCnn(smallest, 1), smallest)


@functools.cache
def _parse_operators_once() -> None:
    """torch's exporter parses the sources of 500 operators anew for each file: a fifth to a third of its time.

    Where another version keeps them elsewhere nothing is lost but that time.
    """
    with contextlib.suppress(ImportError, AttributeError):
        library = importlib.import_module("torch.onnx._internal.exporter._registration").onnxscript_apis
        library.get_torchlib_ops = functools.cache(library.get_torchlib_ops)


def onnx_difference(model: nn.Module, path: Path, inputs: NDArray[np.uint8]) -> float:
    """Largest absolute difference between the file's outputs in ONNX Runtime and the model's, on `inputs`."""
    model = model.to("cpu").eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(np.ascontiguousarray(inputs))).numpy()
    with np.errstate(invalid="ignore"):  # infinite outputs: the difference is no number
        return float(np.abs(Deployed(path).run(inputs) - expected).max())
