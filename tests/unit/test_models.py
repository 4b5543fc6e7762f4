"""Networks: every genome builds, learns, exports, and computes the same in ONNX Runtime."""

import numpy as np
import pytest
import torch

from mpinas.errors import UserError
from mpinas.models import Networks, baseline_genome, make_space
from mpinas.training.deployed import Deployed
from mpinas.training.export import export_onnx, onnx_difference

SHAPES = {"lpbf": ((16, 41, 41), 2), "digits": ((1, 8, 8), 10), "odd": ((5, 13, 17), 3)}


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
