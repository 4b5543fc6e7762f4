"""Video Swin transformers: the published one by its size, windows by who sees whom."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mpinas.models import baseline_genome, build, input_frames, make_space, swin3d
from mpinas.training.export import export_onnx, onnx_difference

SHAPE, OUTPUTS = (16, 41, 41), 2


def test_the_baseline_is_the_published_network():
    """28.2 M parameters and 87.5 GFLOP at 1 x 16 x 224 x 224, as torch counts them."""
    with torch.device("meta"):
        network = build(baseline_genome("lpbf-cnn", space="swin3d"), SHAPE, OUTPUTS)
        frames = torch.zeros((1, 16, 224, 224), dtype=torch.uint8)
    assert sum(p.numel() for p in network.parameters()) == 28_232_528
    with FlopCounterMode(display=False) as counter:
        assert network(frames).shape == (1, OUTPUTS)
    assert counter.get_total_flops() == pytest.approx(87.5e9, rel=1e-3)


def test_the_published_space():
    """Choices as published: 2^3 patches, 2 widths, 3^4 depths, 1 x 2 x 3 x 4 heads, 4 ratios."""
    space = make_space("swin3d", SHAPE)
    training = len(space) / (8 * 2 * 81 * 24 * 4)
    assert training == 7 * 4 * 2
    assert {gene.name for gene in space.genes} >= {"patch_time", "embed", "depth4", "heads4", "mlp_ratio"}


@pytest.mark.parametrize("name", ["swin3d", "swin3d-free"])
def test_every_genome_has_a_shape_that_fits(name):
    space, rng = make_space(name, SHAPE), np.random.default_rng(0)
    for _ in range(40):
        genome = space.sample(rng)
        assert space.repair(genome) == genome
        with torch.device("meta"):
            network = build(genome, SHAPE, OUTPUTS)
            frames = torch.zeros((3, input_frames(genome, SHAPE), 41, 41), dtype=torch.uint8)
        assert network(frames).shape == (3, OUTPUTS), genome


def test_every_weight_learns():
    space, rng = make_space("swin3d-free", SHAPE, {"side": [24], "frames": [4]}), np.random.default_rng(0)
    for _ in range(8):
        genome = space.sample(rng)
        network = build(genome, SHAPE, OUTPUTS)
        out = network(torch.randint(0, 256, (2, 4, 41, 41), dtype=torch.uint8))
        out.square().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters()), genome


def test_an_exported_network_computes_the_same(tmp_path):
    """With shifted windows, padding at every stage, and more than one batch size."""
    choices = {"frames": [4], "side": [40], "window_space": [4], "patch_time": [2], "patch_height": [2]}
    choices |= {"patch_width": [4], "embed": [24], "mlp_ratio": [1], "depth1": [2]}
    choices |= {f"depth{stage}": [1] for stage in (2, 3, 4)}
    rng = np.random.default_rng(0)
    genome = make_space("swin3d-free", SHAPE, choices).sample(rng)
    network = build(genome, SHAPE, OUTPUTS)
    export_onnx(network, (4, 41, 41), tmp_path / "model.onnx", {})
    for batch in (1, 3):
        inputs = rng.integers(0, 256, (batch, 4, 41, 41), dtype=np.uint8)
        assert onnx_difference(network, tmp_path / "model.onnx", inputs) < 1e-4


@pytest.mark.parametrize(
    ("size", "window", "shifted", "seen"),
    [
        # (time, height, width) of what sees place (0, 0, 0), and of what sees place (1, 3, 5)
        ((2, 8, 8), (2, 4, 4), False, [((0, 2), (0, 4), (0, 4)), ((0, 2), (0, 4), (4, 8))]),
        ((2, 8, 8), (2, 4, 4), True, [((0, 2), (0, 2), (0, 2)), ((0, 2), (2, 6), (2, 6))]),
        ((4, 4, 8), (2, 4, 4), True, [((0, 1), (0, 4), (0, 2)), ((1, 3), (0, 4), (2, 6))]),
        ((2, 5, 6), (2, 4, 4), True, [((0, 2), (0, 2), (0, 2)), ((0, 2), (2, 5), (2, 6))]),
        ((2, 4, 6), (8, 7, 7), True, [((0, 2), (0, 4), (0, 6)), ((0, 2), (0, 4), (0, 6))]),
    ],
)
def test_a_place_sees_its_window_and_nothing_else(size, window, shifted, seen):
    torch.manual_seed(0)
    attention = swin3d._WindowAttention(size, 6, 3, window, shifted=shifted)
    x = torch.randn((1, *size, 6), requires_grad=True)
    out = attention(x)
    for place, spans in zip(((0, 0, 0), (1, 3, 5)), seen, strict=True):
        (slope,) = torch.autograd.grad(out[(0, *place)].sum(), x, retain_graph=True)
        expected = torch.zeros(size, dtype=torch.bool)
        expected[tuple(slice(*span) for span in spans)] = True
        assert torch.equal(slope[0].abs().sum(-1) > 1e-9, expected)


def test_relative_positions_by_value():
    rows = swin3d._relative_positions((1, 1, 2), (1, 1, 2))
    assert rows.tolist() == [[1, 0], [2, 1]]
    # a window that had to be smaller takes the middle of the table that a full one has
    assert swin3d._relative_positions((1, 1, 2), (2, 2, 4)).tolist() == [[1 * 21 + 1 * 7 + 3, 30], [32, 31]]
