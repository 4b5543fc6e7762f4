"""Video Swin transformers: the published one by its size, windows by who sees whom, the published schedule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mpinas import config
from mpinas.models import Networks, baseline_genome, make_space, swin3d
from mpinas.tasks import Samples, make_task
from mpinas.training.candidate import Files, Trainer
from mpinas.training.collectives import SerialCollectives
from mpinas.training.export import export_onnx, onnx_difference
from mpinas.training.heritage import Heritage
from mpinas.training.loop import Callbacks, train
from mpinas.training.recipe import Epochs, Recipe, Steps, make_optimizer

SHAPE, OUTPUTS = (16, 41, 41), 2


def test_the_baseline_is_the_published_network():
    """28.2 M parameters and 87.5 GFLOP at 1 x 16 x 224 x 224, as torch counts them."""
    with torch.device("meta"):
        network = Networks("swin3d", SHAPE, OUTPUTS).build(baseline_genome("lpbf-cnn", space="swin3d"))
        frames = torch.zeros((1, 16, 224, 224), dtype=torch.uint8)
    assert sum(p.numel() for p in network.parameters()) == 28_232_528
    with FlopCounterMode(display=False) as counter:
        assert network(frames).shape == (1, OUTPUTS)
    assert counter.get_total_flops() == pytest.approx(87.5e9, rel=1e-3)


def test_the_published_space():
    """Choices as published: 2^3 patches, 2 widths, 3^4 depths, 1 x 2 x 3 x 4 heads, 4 ratios."""
    space = make_space("swin3d", SHAPE)
    training = len(space) / (8 * 2 * 81 * 24 * 4)
    assert training == 9 * 3 * 5 * 4 * 2
    choices = {gene.name: gene.choices for gene in space.genes}
    assert choices.keys() >= {"patch_time", "embed", "depth4", "heads4", "mlp_ratio"}
    assert choices["step_size"] == (10, 20, 40)
    for name, ends in {"learning_rate": (1e-4, 1.0), "gamma": (0.1, 0.9)}.items():
        assert (choices[name][0], choices[name][-1]) == ends


@pytest.mark.parametrize("name", ["swin3d", "swin3d-free"])
def test_every_genome_has_a_shape_that_fits(name):
    space, rng = make_space(name, SHAPE), np.random.default_rng(0)
    for _ in range(40):
        genome = space.sample(rng)
        assert space.repair(genome) == genome
        with torch.device("meta"):
            networks = Networks(name, SHAPE, OUTPUTS)
            network = networks.build(genome)
            frames = torch.zeros((3, *networks.shape(genome)), dtype=torch.uint8)
        assert network(frames).shape == (3, OUTPUTS), genome


def test_every_weight_learns():
    space, rng = make_space("swin3d-free", SHAPE, {"side": [24], "frames": [4]}), np.random.default_rng(0)
    for _ in range(8):
        genome = space.sample(rng)
        network = Networks("swin3d-free", SHAPE, OUTPUTS).build(genome)
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
    network = Networks("swin3d-free", SHAPE, OUTPUTS).build(genome)
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


ALONE = SerialCollectives()


@pytest.fixture(scope="module")
def digits():
    """A trainer of small transformers for real digits, 64 to learn from: two steps an epoch."""
    task = make_task(config.Task(name="digits"), seed=0)
    samples = tuple(Samples(side.inputs[:64], side.targets[:64]) for side in task.load())
    networks, cpu = Networks("swin3d-free", task.input_shape, task.outputs), torch.device("cpu")
    heritage = Heritage(networks, cpu, Path("none.pt"), Path("none.pt"), baseline_genome("digits-cnn"))
    return Trainer(task, heritage, samples, None, cpu, batch_size=32)


def rates(digits, steps, *parts):
    """The learning rate after each epoch of a training in these parts, of 5 epochs in all."""
    model, seen = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), []
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    for done, until in parts:
        recipe = Recipe(Epochs(done, until, 5), 32, 0.5, 0.0, False, 7, digits.device, steps=steps)
        optimizer = make_optimizer(model, recipe, ALONE)
        callbacks = Callbacks(lambda epoch, error, at=optimizer: seen.append(at.param_groups[0]["lr"]))
        train(model, optimizer, digits.task, digits.samples, recipe, ALONE, callbacks)
    return seen


@pytest.mark.parametrize("parts", [[(0, 5)], [(0, 1), (1, 4), (4, 5)]], ids=["whole", "cut"])
def test_the_learning_rate_falls_in_steps_of_epochs(digits, parts):
    """After an epoch it is that of the next one."""
    expected = [0.5, 0.5 * 0.3, 0.5 * 0.3, 0.5 * 0.09, 0.5 * 0.09]
    assert rates(digits, Steps(2, 0.3), *parts) == pytest.approx(expected, rel=1e-12)
    recipe = Recipe(Epochs.whole(3), 32, 1.0, 0.0, False, 7, digits.device, steps=Steps(1, 0.5))
    assert [recipe.factor(step, 2) for step in range(6)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("parts", [[(0, 5)], [(0, 1), (1, 4), (4, 5)]], ids=["whole", "cut"])
def test_without_steps_it_rises_and_falls_to_zero(digits, parts):
    """One step of ten rises, nine are half a cosine."""
    expected = [0.25 * (1 + np.cos(np.pi * (2 * epoch - 1) / 9)) for epoch in range(1, 6)]
    assert rates(digits, None, *parts) == pytest.approx(expected, abs=1e-12)


def test_the_genes_of_a_genome_are_how_it_is_trained(digits, tmp_path):
    """In parts as unbroken, bit for bit; and with other genes of the schedule to another end."""
    choices = {f"depth{stage}": [1] for stage in range(1, 5)} | {"step_size": [10], "gamma": [0.1], "embed": [24]}
    space = make_space("swin3d-free", digits.networks.input_shape, choices | {"learning_rate": [1e-3]})
    genome = space.sample(np.random.default_rng(0))
    ends = {}
    for name, genes, parts in (
        ("whole", {}, [(0, 11)]),
        ("cut", {}, [(0, 10), (10, 11)]),
        ("slower", {"gamma": 0.9}, [(0, 11)]),
    ):
        files = Files(tmp_path / name / "weights.pt", tmp_path / name / "checkpoint.pt")
        for done, until in parts:
            digits.evaluate(ALONE, genome | genes, 5, Epochs(done, until, 11), files, Callbacks())
        weights = torch.load(files.weights, weights_only=True)
        ends[name] = torch.cat([weights[key].flatten() for key in sorted(weights)])
    assert torch.equal(ends["whole"], ends["cut"])
    assert not torch.equal(ends["whole"], ends["slower"])
