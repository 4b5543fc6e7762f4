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
