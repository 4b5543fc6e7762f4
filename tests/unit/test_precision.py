"""Exported models in other precisions: what becomes integer, what stays, and how far the outputs move."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from mpinas.examples.digits import DigitsCnn
from mpinas.models import cnn3d, swin3d
from mpinas.models.baselines import LpbfCnn
from mpinas.training.deployed import Deployed
from mpinas.training.export import export_onnx
from mpinas.training.precision import PRECISIONS, WEIGHT_LIMIT, Unconvertible, convert

GENOME = {
    "frames": 4, "field": 17, "scale": 1, "stem": "fold", "stem_width": 8, "stem_stride": 2, "stages": 2,
    "depth1": 2, "width1": 12, "depth2": 1, "width2": 16, "depth3": 1, "width3": 8, "kernel_time": 1,
    "kernel_space": 3, "block": "plain", "head": "grid", "head_width": 16,
}  # fmt: skip
SHAPE = (4, 17, 17)
SWIN = swin3d.Design(
    frames=4, side=16, patch=(2, 4, 4), embed=24, depths=(1, 1, 1, 1), heads=(3, 3, 3, 3), window=(2, 2, 2), mlp_ratio=1
)
#: Name -> (frames, height, width) and the network.
NETWORKS: dict[str, tuple[tuple[int, int, int], Callable[[], nn.Module]]] = {
    "fold": (SHAPE, lambda: cnn3d.Network(GENOME | {"field": 13}, SHAPE, 2)),
    "separable": (SHAPE, lambda: cnn3d.Network(GENOME | {"block": "separable", "head": "mean", "scale": 2}, SHAPE, 2)),
    "conv3d": (SHAPE, lambda: cnn3d.Network(GENOME | {"stem": "conv3d", "kernel_time": 3}, SHAPE, 2)),
    "lpbf-cnn": ((7, 10, 10), lambda: LpbfCnn((7, 10, 10), 2)),
    "digits-cnn": ((1, 8, 8), lambda: DigitsCnn((1, 8, 8), 10)),
    "swin": (SHAPE, lambda: swin3d.Network(SWIN, 2)),
}


def windows(count: int, shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Bright spots of several sizes on a dark ground, as a camera sees a melt pool; uint8."""
    rng = np.random.default_rng(seed)
    frames, height, width = shape
    y, x = np.mgrid[:height, :width] / max(height, width) - 0.5
    radius, light = rng.uniform(0.1, 0.4, (count, 1, 1, 1)), rng.uniform(60, 240, (count, 1, 1, 1))
    spots = light * np.exp(-(x**2 + y**2) / radius**2) * rng.uniform(0.8, 1.0, (count, frames, 1, 1))
    return (spots + rng.uniform(0, 15, spots.shape)).astype(np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Callable[[str], bytes]:
    """The fp32 file of a network, exported once."""
    folder = tmp_path_factory.mktemp("fp32")

    @functools.cache
    def export(name: str) -> bytes:
        shape, make = NETWORKS[name]
        torch.manual_seed(0)
        network = make().train()
        for seed in range(20):  # moves the BatchNorm statistics away from their start
            network(torch.from_numpy(windows(16, shape, seed)))
        export_onnx(network, shape, folder / "model.onnx", {"task": "melt pool", "note": "ä"})
        return (folder / "model.onnx").read_bytes()

    return export


def operators(path: Path) -> Counter[str]:
    """What ONNX Runtime computes with, once it has optimised the file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the result fits this processor alone: so it shall
    options.optimized_model_filepath = str(path.with_suffix(".optimised"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_file_is_the_same_to_its_users(tmp_path, exported, name, precision):
    shape, _ = NETWORKS[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(exported(name))
    inputs = windows(50, shape, seed=101)
    expected = Deployed(path).run(inputs)
    size = convert(path, precision, windows(64, shape, seed=100))
    assert size == path.stat().st_size < len(exported(name))
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"], "nothing is left beside it"
    deployed = Deployed(path)  # refuses another name or type of the input
    assert deployed.input_shape == shape
    assert deployed.metadata == {"task": "melt pool", "note": "ä", "precision": precision}
    outputs = deployed.run(inputs)
    assert outputs.dtype == np.float32
    assert outputs.shape == expected.shape
    np.testing.assert_allclose(deployed.run(inputs, batch=7), outputs, atol=1e-5)
    off = np.sqrt(np.square(outputs - expected).mean()) / np.ptp(expected, axis=0).mean()
    # twice what was seen at most; these networks are untrained, so their outputs hardly vary and rounding shows
    assert 0 < off < {"fp16": 1e-2, "int8": 1e-1}[precision]


def test_two_dimensions_are_integer_from_the_camera_to_the_last_layer(tmp_path, exported):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("fold"))
    convert(path, "int8", windows(32, SHAPE, seed=0))
    found = operators(path)
    assert found["QLinearConv"] == 4  # stem, and three blocks
    assert (found["QGemm"], found["Gemm"]) == (1, 1)
    assert not found.keys() & {"Conv", "FusedConv", "FusedGemm", "Cast", "Div", "QuantizeLinear", "ReduceMean"}


def test_the_levels_of_the_camera_are_kept_however_dark_the_calibration(tmp_path, exported):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("fold"))
    convert(path, "int8", windows(32, SHAPE, seed=0) // 4)
    graph = onnx.load(path).graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    stem = next(node for node in graph.node if node.op_type == "Conv")
    (levels,) = [node for node in graph.node if stem.input[0] in node.output]
    assert levels.op_type == "DequantizeLinear"
    assert constants[levels.input[1]] == np.float32(1 / 255)
    assert constants[levels.input[2]] == 0


def test_depthwise_convolutions_behind_a_mean_are_integer(tmp_path, exported):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("separable"))
    convert(path, "int8", windows(32, SHAPE, seed=0))
    found = operators(path)
    assert found["QLinearConv"] == 1 + 2 * 3
    assert not found.keys() & {"Conv", "FusedConv", "QLinearAveragePool"}


@pytest.mark.parametrize("name", ["conv3d", "lpbf-cnn"])
def test_three_dimensions_keep_their_faster_floating_point_convolutions(tmp_path, exported, name):
    shape, _ = NETWORKS[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(exported(name))
    convert(path, "int8", windows(32, shape, seed=0))
    found = operators(path)
    assert found["QLinearConv"] == 0
    assert found["QGemm"] == {"conv3d": 1, "lpbf-cnn": 2}[name]


def test_products_of_a_transformer_are_integer_those_of_attention_are_not(tmp_path, exported):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("swin"))
    convert(path, "int8", windows(32, SHAPE, seed=0))
    found = operators(path)
    # four blocks of four products with weights, three mergings; two products of attention a block
    assert found["MatMulIntegerToFloat"] == 4 * 4 + 3
    assert found["MatMul"] + found["FusedMatMul"] == 4 * 2
    assert found["QGemm"] == 2


def test_integers_that_no_processor_saturates(tmp_path, exported):
    """Two products of 255 and 64 fit 16 bits; each output channel uses its whole range."""
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("fold"))
    convert(path, "int8", windows(32, SHAPE, seed=0))
    tensors = [onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
    weights = [each for each in tensors if each.dtype == np.int8 and each.ndim > 1]
    assert len(weights) == 5
    assert 2 * 255 * WEIGHT_LIMIT < 2**15
    for each in weights:
        # (outputs, …), and (outputs, inputs) for products
        assert (np.abs(each).reshape(len(each), -1).max(1) == WEIGHT_LIMIT).all()
    levels = [each for each in tensors if each.dtype == np.uint8]
    assert levels
    assert all(each.ndim == 0 for each in levels), "one zero point for all of an activation"


def test_fp32_changes_nothing(tmp_path, exported):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("fold"))
    assert PRECISIONS[0] == "fp32"
    assert convert(path, "fp32", windows(2, SHAPE, seed=0)) == len(exported("fold"))
    assert path.read_bytes() == exported("fold")


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from mpinas.training.precision import convert
path = Path(sys.argv[1])
print(convert(path, "int8", np.random.default_rng(0).integers(0, 256, (32, 4, 17, 17), dtype=np.uint8)))
"""


def test_another_process_gets_the_same_bytes_and_is_quiet(tmp_path, exported):
    digests = set()
    for hash_seed in ("1", "2"):
        path = tmp_path / f"{hash_seed}.onnx"
        path.write_bytes(exported("fold"))
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "TMPDIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM, path], env=environment, capture_output=True, check=True
        )
        assert done.stdout.decode() == f"{path.stat().st_size}\n"
        assert not done.stderr
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1.onnx", "2.onnx"], "no temporary file is left"


def test_logging_is_left_as_it_was(tmp_path, exported):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("fold"))
    before = list(logging.getLogger().handlers), logging.root.manager.disable
    convert(path, "int8", windows(8, SHAPE, seed=0))
    assert (logging.getLogger().handlers, logging.root.manager.disable) == before


class Broken(nn.Module):
    """A training that went wrong left no number in a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(1), nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2))
        nn.init.constant_(self.layers[-1].bias, torch.nan)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.layers(frames.float() / 255)


class Straight(nn.Module):
    """One product: the last, which stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 2)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.layer(frames.float().flatten(1) / 255)


@pytest.mark.parametrize(
    ("network", "precision", "calibration", "message"),
    [
        (Broken(), "fp16", 8, "in fp16 the outputs are no finite numbers"),
        (Straight(), "int8", 8, "no operation that could use integers"),
        (Broken(), "int8", 0, "no conversion to int8"),
    ],
)
def test_what_cannot_be_converted_stays_as_it_was(tmp_path, network, precision, calibration, message):
    path = tmp_path / "model.onnx"
    export_onnx(network, (1, 3, 3), path, {})
    before = path.read_bytes()
    with pytest.raises(Unconvertible, match=message) as caught:
        convert(path, precision, windows(calibration, (1, 3, 3), seed=0))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_an_unknown_precision_is_named(tmp_path):
    with pytest.raises(ValueError, match="'int4' is unknown; known are fp32, fp16, int8"):
        convert(tmp_path / "model.onnx", "int4", windows(1, SHAPE, seed=0))
