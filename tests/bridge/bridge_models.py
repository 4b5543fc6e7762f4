"""Small ONNX models for the tests of the bridge: well-behaved ones, and ones that are not."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper


def _model(nodes, inputs, outputs, initializers=()) -> bytes:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return model.SerializeToString()


def linear(width: int = 16, seed: int = 0, element: int = TensorProto.FLOAT) -> bytes:
    """One matrix product with a free batch; another seed is another model."""
    weight = numpy_helper.from_array(np.random.default_rng(seed).random((width, width), dtype=np.float32), "weight")
    return _model(
        [
            helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["f", "weight"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", element, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        [weight],
    )


def endless() -> bytes:
    """A model whose run does not return within anybody's patience."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Add", ["v_in", "v_in"], ["v_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_in", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", TensorProto.FLOAT, [1]),
        ],
    )
    return _model(
        [helper.make_node("Loop", ["most", "go", "x"], ["y"], body=body)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [
            numpy_helper.from_array(np.array(2**62, dtype=np.int64), "most"),
            numpy_helper.from_array(np.array(True), "go"),
        ],
    )


def greedy() -> bytes:
    """A model that wants 16 TB when it runs."""
    return _model(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["big"]),
            helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "sum"], ["y"]),
        ],
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array([2**21, 2**21], dtype=np.int64), "shape")],
    )


def free_second_dimension() -> bytes:
    """A model whose input this bridge does not know how to make."""
    return _model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "t"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "t"])],
    )


def affine(weight: np.ndarray, batch: int | str = "n", element: int = TensorProto.FLOAT) -> bytes:
    """The matrix product with a weight (inputs, outputs) that is given; its batch may be fixed."""
    inputs, outputs = weight.shape
    return _model(
        [
            helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["f", "weight"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", element, [batch, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, outputs])],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )


def cyclic() -> bytes:
    """Two nodes that each want what the other makes."""
    return _model(
        [
            helper.make_node("Add", ["x", "b"], ["a"]),
            helper.make_node("Add", ["x", "a"], ["b"]),
            helper.make_node("Identity", ["b"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )


def boastful() -> bytes:
    """A weight that says it has 2**40 elements, and has none."""
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[2**20, 2**20])
    return _model(
        [helper.make_node("Add", ["x", "weight"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2**20, 2**20])],
        [weight],
    )


def wide() -> bytes:
    """An input of 2**40 elements."""
    return _model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2**20, 2**20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2**20, 2**20])],
    )


def external(location: str, size_bytes: int = 16) -> bytes:
    """A model whose weight is in another file: its output would show that file's bytes."""
    weight = TensorProto(name="weight", data_type=TensorProto.UINT8, dims=[size_bytes])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size_bytes))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    return _model(
        [
            helper.make_node("Cast", ["weight"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["x", "f"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size_bytes])],
        [weight],
    )


def wrapped_engine() -> bytes:
    """A node that has a runtime load an engine from a file."""
    node = helper.make_node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/etc/passwd", embed_mode=0
    )
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def renamed(name: str) -> bytes:
    """The identity of an input of this name."""
    return _model(
        [helper.make_node("Identity", [name], ["y"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )


def convolutions(size: int) -> bytes:
    """A stack of 3 x 3 convolutions on an image; sizes 0 to 4 take about 0.1, 1, 5, 20 and 100 ms on one core."""
    channels, pixels, layers = ((16, 40, 2), (32, 48, 3), (64, 48, 4), (64, 64, 7), (64, 96, 15))[size]
    rng = np.random.default_rng(size)
    nodes, initializers, name = [], [], "x"
    for layer in range(layers):
        width = 3 if layer == 0 else channels
        weight = rng.normal(0, (width * 9) ** -0.5, (channels, width, 3, 3)).astype(np.float32)
        initializers.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes += [
            helper.make_node("Conv", [name, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]
        name = f"r{layer}"
    return _model(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, pixels, pixels])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, pixels, pixels])],
        initializers,
    )
