"""Networks: every genome builds, learns, exports, and computes the same in ONNX Runtime."""

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from mpinas.errors import UserError
from mpinas.models import Networks, baseline_genome, cnn3d, make_space
from mpinas.training.deployed import Deployed
from mpinas.training.export import export_onnx, onnx_difference
from mpinas.training.precision import convert

SHAPES = {"lpbf": ((16, 41, 41), 2), "digits": ((1, 8, 8), 10), "odd": ((5, 13, 17), 3)}
INVERTED = {
    "frames": 4, "field": 17, "scale": 1, "stem": "fold", "stem_width": 8, "stem_stride": 1, "stages": 2,
    "depth1": 2, "width1": 12, "depth2": 1, "width2": 16, "depth3": 1, "width3": 8, "kernel_time": 1,
    "kernel_space": 5, "block": "inverted", "expansion": 3, "head": "mean", "head_width": 16,
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_the_space_is_large_and_every_genome_builds_and_learns(name):
    shape, outputs = SHAPES[name]
    space = make_space("cnn3d", shape)
    assert len(space) > 1e6
    rng = np.random.default_rng(0)
    for _ in range(40):
        genome = space.sample(rng)
        assert space.repair(genome) == genome
        networks = Networks("cnn3d", shape, outputs)
        network = networks.build(genome)
        frames = torch.randint(0, 256, (3, *networks.shape(genome)), dtype=torch.uint8)
        out = network(frames)
        assert out.shape == (3, outputs)
        out.square().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters()), genome


@pytest.mark.parametrize("seed", range(6))
def test_exported_networks_compute_the_same(tmp_path, seed):
    shape, outputs = SHAPES["lpbf"]
    rng = np.random.default_rng(seed)
    genome = make_space("cnn3d", shape).sample(rng)
    torch.manual_seed(seed)
    networks = Networks("cnn3d", shape, outputs)
    network = networks.build(genome)
    inputs = rng.integers(0, 256, (5, *networks.shape(genome)), dtype=np.uint8)
    network(torch.from_numpy(inputs))  # moves the BatchNorm statistics away from their start
    path = tmp_path / "model.onnx"
    size = export_onnx(network, inputs.shape[1:], path, {"task": "lpbf", "note": "ä"})
    assert size == path.stat().st_size
    assert onnx_difference(network, path, inputs) < 1e-4
    deployed = Deployed(path)
    assert deployed.input_shape == inputs.shape[1:]
    assert deployed.metadata["task"] == "lpbf"
    assert deployed.run(inputs[:1]).shape == (1, outputs)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"], "nothing half-written is left"


@pytest.mark.parametrize(
    ("taken", "given", "said"),
    [
        (["n", "frames", 8, 8], ["n", 2], r"its input is \['n', 'frames', 8, 8\], not batch, frames, height and width"),
        (["n", 8, 8], ["n", 2], "its input is"),
        (["n", 1, 8, 8], ["n"], r"its output is not one 'output' of \(batch, outputs\)"),
    ],
)
def test_a_model_of_another_shape_is_refused_in_words(tmp_path, taken, given, said):
    """Such a file, as `mpinas predict` or a teacher, is the user's to mend, and no fault of the program."""
    frames = onnx.helper.make_tensor_value_info("frames", onnx.TensorProto.UINT8, taken)
    output = onnx.helper.make_tensor_value_info("output", onnx.TensorProto.UINT8, given)
    constant = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [len(given)], [-1, 2][: len(given)])
    nodes = [
        onnx.helper.make_node("Constant", [], ["shape"], value=constant),
        onnx.helper.make_node("Reshape", ["frames", "shape"], ["output"]),
    ]
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "other", [frames], [output]), opset_imports=opset)
    model.ir_version = 8
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match=said):
        Deployed(tmp_path / "other.onnx")


def test_an_inverted_residual_widens_looks_in_each_channel_and_gives_back_linearly():
    network = cnn3d.Network(INVERTED, (4, 17, 17), 2).eval()
    strided, residual = network.features[2:4]
    weights = [[each for each in block.parameters() if each.dim() > 1] for block in (strided, residual)]
    assert [[tuple(each.shape) for each in block] for block in weights] == [
        [(24, 8, 1, 1), (24, 1, 5, 5), (12, 24, 1, 1)],
        [(36, 12, 1, 1), (36, 1, 5, 5), (12, 36, 1, 1)],
    ]
    unit = (1 + 1e-5) ** -0.5  # what fresh normalisation multiplies by
    x = torch.randn(2, 8, 9, 9)
    wide, each, narrow = weights[0]
    inside = F.conv2d((F.conv2d(x, wide) * unit).relu(), each, padding=2, stride=2, groups=24)
    expected = F.conv2d((inside * unit).relu(), narrow) * unit
    assert expected.min() < 0, "no ReLU at the end"
    assert torch.allclose(strided(x), expected, atol=1e-5)
    x = torch.randn(2, 12, 5, 5)
    wide, each, narrow = weights[1]
    inside = F.conv2d((F.conv2d(x, wide) * unit).relu(), each, padding=2, groups=36)
    assert torch.allclose(residual(x), x + F.conv2d((inside * unit).relu(), narrow) * unit, atol=1e-5)


@pytest.mark.parametrize(("stem", "integer"), [("fold", 1 + 3 * 3), ("conv3d", 0)])
def test_inverted_residuals_run_elsewhere_in_floats_and_in_integers(tmp_path, stem, integer):
    torch.manual_seed(0)
    network = cnn3d.Network({**INVERTED, "stem": stem, "kernel_time": 1 if stem == "fold" else 3}, (4, 17, 17), 2)
    rng = np.random.default_rng(0)
    inputs = (rng.random((64, 4, 17, 17)) * rng.uniform(20, 256, (64, 1, 1, 1))).astype(np.uint8)
    for _ in range(20):  # moves the BatchNorm statistics away from their start
        network(torch.from_numpy(inputs))
    path = tmp_path / "model.onnx"
    export_onnx(network, (4, 17, 17), path, {})
    assert onnx_difference(network, path, inputs) < 1e-4
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path).graph.node}
    expected = Deployed(path).run(inputs)
    convert(path, "int8", inputs)
    graph = onnx.load(path).graph
    rounded = {each.output[0] for each in graph.node if each.op_type == "DequantizeLinear"}
    assert sum(node.op_type == "Conv" and {*node.input[:2]} <= rounded for node in graph.node) == integer
    off = np.sqrt(np.square(Deployed(path).run(inputs) - expected).mean()) / np.ptp(expected, axis=0).mean()
    assert 0 < off < 0.1


def test_baselines_are_the_published_networks():
    lpbf = Networks("cnn3d", (32, 41, 41), 2).build(baseline_genome("lpbf-cnn"))
    assert lpbf(torch.zeros((2, 32, 41, 41), dtype=torch.uint8)).shape == (2, 2)
    # 5x5x5 x 64 + 64; pooled to 9 x 12 x 12
    expected = (125 * 64 + 64) + (64 * 9 * 12 * 12 * 256 + 256) + (256 * 128 + 128) + (128 * 2 + 2)
    assert sum(p.numel() for p in lpbf.parameters()) == expected
    digits = Networks("cnn3d", (1, 8, 8), 10).build(baseline_genome("digits-cnn"))
    expected = (9 * 32 + 32) + (9 * 32 * 64 + 64) + (9 * 64 * 128 + 128) + (128 * 16 * 128 + 128) + (128 * 10 + 10)
    assert sum(p.numel() for p in digits.parameters()) == expected


def test_inactive_genes_have_one_value():
    space = make_space("cnn3d", (16, 41, 41))
    genome = {gene.name: gene.choices[-1] for gene in space.genes}
    short = space.repair({**genome, "stages": 1, "frames": 1})
    assert (short["width3"], short["depth3"], short["stem"], short["kernel_time"]) == (8, 1, "fold", 1)
    assert space.repair({**genome, "stages": 1, "frames": 1, "width3": 12}) == short


@pytest.mark.parametrize("block", ["plain", "separable", "inverted"])
def test_only_inverted_residuals_expand(block):
    space = make_space("cnn3d", (16, 41, 41), {"expansion": [3, 4]})
    genome = {**space.sample(np.random.default_rng(0)), "block": block}
    found = {space.repair({**genome, "expansion": factor})["expansion"] for factor in (3, 4)}
    assert found == ({3, 4} if block == "inverted" else {2})


def test_unknown_space_is_named():
    with pytest.raises(UserError, match="known are cnn3d"):
        make_space("cnn4d", (16, 41, 41))


def test_files_that_are_no_models_get_one_line(tmp_path):
    with pytest.raises(UserError, match="no such model"):
        Deployed(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"hello")
    with pytest.raises(UserError, match="not a model") as caught:
        Deployed(tmp_path / "bad.onnx")
    assert "\n" not in str(caught.value)
