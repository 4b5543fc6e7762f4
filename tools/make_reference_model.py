"""Makes edge_bridge/device/reference.onnx, by which a device notices that it has become slower or faster.

Eight matrix products of one seeded weight: 34 MFLOP, well under a millisecond on one core of a PC, and in the cache of
any processor. Run as ``python tools/make_reference_model.py``; the same bytes come out each time. A changed model
makes each device learn anew what to expect, for the expected value is kept under the model's digest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

WIDTH = 128
LAYERS = 8
TARGET = Path(__file__).parents[1] / "edge_bridge/device/reference.onnx"


def reference_model() -> ModelProto:
    """Build the model: (1, WIDTH, WIDTH) float32 in and out."""
    rng = np.random.default_rng(20)
    # Scaled so that values keep their size through the layers: none becomes denormal, which would be slow.
    weight = rng.normal(0.0, np.sqrt(2.0 / WIDTH), (WIDTH, WIDTH)).astype(np.float32)
    nodes = []
    name = "x"
    for layer in range(LAYERS):
        nodes.append(helper.make_node("MatMul", [name, "weight"], [f"product{layer}"]))
        name = "y" if layer == LAYERS - 1 else f"value{layer}"
        nodes.append(helper.make_node("Relu", [f"product{layer}"], [name]))
    shape = [1, WIDTH, WIDTH]
    graph = helper.make_graph(
        nodes,
        "reference",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "weight")],
    )
    # Old numbers on purpose: runtimes of years ago load it.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7, producer_name="mpinas")


if __name__ == "__main__":
    model = reference_model()
    checker.check_model(model, full_check=True)
    TARGET.write_bytes(model.SerializeToString(deterministic=True))
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")
