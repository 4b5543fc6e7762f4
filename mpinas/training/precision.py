"""An exported model in another precision: half-precision floats, or 8-bit integers calibrated on training windows.

Works on the ONNX file alone. Must not know torch, networks or tasks, nor what a candidate's precision is good for.

What is made integer, and how, was measured on x86 without 8-bit dot products (VNNI), with small convolutional networks:

- Weights have seven bits, activations eight. With eight and eight such processors saturate: the error rose by a tenth,
  and would differ from processor to processor, so that no trainer could tell a device's error.
- Two-dimensional convolutions and products with constant weights are integer. Convolutions in three dimensions stay
  as they are: ONNX Runtime's integer ones take two to five times as long as its floating-point ones.
- The last product stays as it is: it is small, and its rounding made up to four fifths of what the outputs change.
- The camera's bytes are integers already and go into the first convolution as they are: a sixth of the time saved.
- Ranges are the least and the greatest value seen: percentiles took up to twice as long and were no better.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from mpinas.files import write_whole
from mpinas.training.deployed import INPUT, OUTPUT

#: What a model may be converted to; the first is what `export_onnx` writes.
PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "int8")
#: Weights of integer operations lie between minus and plus this, activations between 0 and 255.
WEIGHT_LIMIT = 64
#: Windows at once while ranges are looked for; bounds the memory that it takes.
_BATCH = 16
#: Windows on which the result is tried.
_TRIED = 2
#: Operators that hand on integers as they are or pick among them, so that none is made a float in between.
_PASSING = ("Relu", "MaxPool", "AveragePool", "Reshape")


class Unconvertible(Exception):  # noqa: N818 - an outcome, not an error of the program
    """The model cannot be had in this precision, or does not work in it."""


def convert(path: Path, precision: str, calibration: NDArray[np.uint8]) -> int:
    """Rewrite the file that `export_onnx` wrote, in place, in this precision; its size in bytes.

    Input, output, their types and the metadata stay as they are; the metadata get `precision`. "fp32" changes nothing.
    The same file and windows give the same bytes.

    Parameters
    ----------
    calibration
        Training windows, (n, frames, height, width): between their values "int8" divides the range of each tensor.

    Raises
    ------
    Unconvertible
        It cannot be done, or the result gives numbers that are not finite. The file is as it was.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; known are {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return path.stat().st_size
    # its Linux wheels report file and graph names to their maker unless told not to
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    try:
        with _quiet():
            converted = _to_fp16(model) if precision == "fp16" else _to_int8(model, calibration)
            onnx.helper.set_model_props(converted, metadata | {"precision": precision})
            content = converted.SerializeToString(deterministic=True)
            outputs = _run(content, calibration[:_TRIED])
    except Unconvertible:
        raise
    except Exception as error:  # onnx and ONNX Runtime have their own classes for each way to fail
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise Unconvertible(f"no conversion to {precision}: {why}") from error
    if not np.isfinite(outputs).all():
        raise Unconvertible(f"in {precision} the outputs are no finite numbers")
    write_whole(path, content)
    return len(content)


def _to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    return converted


def _to_int8(model: onnx.ModelProto, calibration: NDArray[np.uint8]) -> onnx.ModelProto:
    """Static quantisation after training, by pairs of quantise and dequantise nodes (format QDQ).

    Source: B. Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference, CVPR 2018; a scale for each output channel as in R. Krishnamoorthi, arXiv 1806.08342.
    """
    from onnxruntime.quantization import QuantType, quantize_static

    nodes = _to_quantise(model.graph)
    if not nodes:
        raise Unconvertible("no conversion to int8: it has no operation that could use integers")
    _take_bytes(model.graph, nodes)
    # the exporter has folded batch normalisation and constants: there is nothing left to prepare
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory(prefix="mpinas-") as folder:
        source, result = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_static(
            source,
            result,
            _Windows(calibration),
            op_types_to_quantize=sorted({node.op_type for node in nodes}),
            nodes_to_quantize=[node.name for node in nodes],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # rounded only where it is taken in again; a Gemm would be merged with its ReLU then, and not be integer
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        return onnx.load(result)


def _take_bytes(graph: onnx.GraphProto, integer: list[onnx.NodeProto]) -> None:
    """Where an integer convolution sees the camera's bytes divided by a constant, say so: they are integers already.

    Not where something comes in between, as a mean over pixels does: ONNX Runtime's integer one took longer than all
    that it saves. Nor for a convolution in three dimensions: between integers on both sides ONNX Runtime makes it an
    integer one by itself.
    """
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    cast = next((node for node in graph.node if node.op_type == "Cast"), None)
    division = None if cast is None else _only_user(graph, cast)
    if cast is None or division is None or division.op_type != "Div" or _only_user(graph, division) not in integer:
        return
    divisor = constants.get(division.input[1])
    if divisor is None or divisor.size != 1:
        return
    levels: dict[str, NDArray[Any]] = {
        f"{INPUT}_scale": np.array(1 / divisor.item(), np.float32),
        f"{INPUT}_zero": np.array(0, np.uint8),
    }
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in levels.items())
    inputs, outputs = [cast.input[0], *levels], list(division.output)
    cast.CopyFrom(onnx.helper.make_node("DequantizeLinear", inputs, outputs, name=f"{INPUT}_dequantised"))
    graph.node.remove(division)
    used = {name for node in graph.node for name in node.input}
    for unused in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(unused)


def _only_user(graph: onnx.GraphProto, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """What takes the node's output, if that is one node alone."""
    users = [each for each in graph.node if node.output[0] in each.input]
    return users[0] if len(users) == 1 else None


def _to_quantise(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that shall compute with integers."""
    ranks = {each.name: len(each.dims) for each in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("Gemm", "MatMul") and node.input[1] in ranks]
    chosen = products[:-1]
    chosen += [node for node in graph.node if node.op_type == "Conv" and ranks.get(node.input[1]) == 4]
    integer = {node.output[0] for node in chosen}
    for node in graph.node:  # in the order in which they are computed
        if node.op_type in _PASSING and node.input[0] in integer:
            chosen.append(node)
            integer.add(node.output[0])
    return chosen


class _Windows:
    """Calibration windows, as ONNX Runtime asks for them."""

    def __init__(self, windows: NDArray[np.uint8]) -> None:
        self._parts = iter([windows[start : start + _BATCH] for start in range(0, len(windows), _BATCH)])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next input, or None at the end."""
        part = next(self._parts, None)
        return None if part is None else {INPUT: np.ascontiguousarray(part)}


def _run(content: bytes, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    outputs: NDArray[np.float32] = session.run([OUTPUT], {INPUT: np.ascontiguousarray(inputs)})[0]
    return outputs


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The converters give advice through the root logger, and set it up for the whole process where nobody has."""
    root, silent, before = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(silent)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(silent)
