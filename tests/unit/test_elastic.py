"""Weight sharing: every subnet computes the same by itself, is what its genome says, and shares what it should."""

import itertools

import numpy as np
import pytest
import torch

from mpinas.models import cnn3d
from mpinas.models.elastic import Supernet, largest, settle, smallest
from mpinas.training.export import export_onnx, onnx_difference

SHAPE = (8, 24, 24)
#: Small enough for a test, and with every elastic dimension.
GENES = {"frames": [2, 4, 8], "stem_width": [8, 12], "kernel_time": [1, 3], "head_width": [16, 32], **{
    f"width{stage}": [8, 12, 16] for stage in (1, 2, 3)
}}  # fmt: skip
SPACE = cnn3d.space(SHAPE).narrowed(GENES)


@pytest.fixture
def supernet():
    torch.manual_seed(0)
    return Supernet(SPACE, SHAPE, 2)


def frames_for(genome, count=3, shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, genome["frames"], *shape[1:]), dtype=torch.uint8, generator=generator)


def moved(supernet, *genomes):
    """The supernet in evaluation mode, with statistics that are not those of the start."""
    for genome in genomes:
        supernet.train()(frames_for(genome, 8), genome)
    return supernet.eval()


@pytest.mark.parametrize("shape", [SHAPE, (16, 41, 41), (1, 8, 8), (5, 13, 17)])
def test_a_subnet_by_itself_computes_what_the_supernet_does(shape):
    space = cnn3d.space(shape)
    assert space.genes[0].name == "frames"
    few = {f"width{stage}": [8, 12] for stage in (1, 2, 3)} | {"stem_width": [8, 12], "kernel_time": [1, 3]}
    space = space.narrowed({**few, "frames": space.genes[0].choices[-2:]})
    supernet = Supernet(space, shape, 3)
    rng = np.random.default_rng(0)
    for _ in range(12):
        genome = space.sample(rng)
        frames = frames_for(genome, shape=shape)
        supernet.train()(frames, genome).square().sum().backward()
        network = supernet.eval().subnet(genome)
        assert type(network) is cnn3d.Network
        with torch.no_grad():
            ours, shared = network(frames), supernet(frames, genome)
        assert ours.shape == (3, 3)
        assert torch.allclose(ours, shared, atol=1e-6, rtol=0), genome
        assert settle(network) is network
        expected = cnn3d.Network(genome, shape, 3).state_dict()
        assert {name: (t.shape, t.dtype) for name, t in network.state_dict().items()} == {
            name: (t.shape, t.dtype) for name, t in expected.items()
        }
        with torch.no_grad():
            assert torch.allclose(network(frames), shared, atol=1e-4, rtol=1e-4), genome
        assert all(parameter.requires_grad for parameter in network.parameters())
        assert not any(module.training for module in network.modules())
    assert all(torch.isfinite(p.grad).all() for p in supernet.parameters() if p.grad is not None)


def test_a_subnet_keeps_nothing_of_the_supernet(supernet, tmp_path):
    genome = SPACE.sample(np.random.default_rng(4))
    frames = frames_for(genome)
    network = moved(supernet, genome).subnet(genome)
    assert not network.training
    before = network(frames).detach()
    with torch.no_grad():
        for tensor in supernet.state_dict().values():
            tensor.zero_()
    assert torch.equal(network(frames), before)
    settle(network)
    export_onnx(network, tuple(frames.shape[1:]), tmp_path / "model.onnx", {})
    assert onnx_difference(network, tmp_path / "model.onnx", frames.numpy()) < 1e-4


def test_a_subnet_draws_nothing_at_random(supernet):
    torch.manual_seed(3)
    first = torch.rand(1)
    torch.manual_seed(3)
    supernet.subnet(SPACE.sample(np.random.default_rng(0)))
    assert torch.equal(torch.rand(1), first)


def test_the_supernet_is_as_large_as_its_largest_networks_and_what_these_lack(supernet):
    one = cnn3d.space(SHAPE).narrowed({gene: [choices[-1]] for gene, choices in GENES.items()} | {
        "stages": [3], "stem": ["conv3d"], "block": ["plain"], "head": ["mean"],
    })  # fmt: skip
    alone = Supernet(one, SHAPE, 2)
    (genome,) = largest(one)
    expected = sum(p.numel() for p in cnn3d.Network(genome, SHAPE, 2).parameters())
    expected += genome["head_width"]  # scales of the head's normalisation, whose biases are the layer's
    assert sum(p.numel() for p in alone.parameters()) == expected
    assert set(supernet.stems) == {"fold", "conv3d"}
    kinds = ("plain", "separable", "inverted")
    assert set(supernet.stages) == {f"{stem}-{kind}" for stem in ("fold", "conv3d") for kind in kinds}
    assert len(supernet.heads) == 2 * 3 * 2 * 3


def test_largest_and_smallest_of_each_family_bound_all_others():
    top, bottom = largest(SPACE), smallest(SPACE)
    families = [(g["stem"], g["block"], g["head"]) for g in top]
    assert families == [(g["stem"], g["block"], g["head"]) for g in bottom]
    kinds = ("plain", "separable", "inverted")
    assert sorted(families) == sorted(itertools.product(("fold", "conv3d"), kinds, ("mean", "grid")))
    assert all(SPACE.repair(genome) == genome for genome in top + bottom)
    at = families.index(("conv3d", "plain", "grid"))
    big = {"frames": 8, "field": 24, "scale": 1, "stem_stride": 1, "stages": 3, "kernel_time": 3, "kernel_space": 5,
           "stem_width": 12, "depth3": 3, "width3": 16, "head_width": 32}  # fmt: skip
    assert top[at].items() >= big.items()
    small = {"frames": 2, "field": 12, "scale": 3, "stem_stride": 2, "stages": 1, "kernel_time": 1, "depth1": 1}
    assert bottom[at].items() >= small.items()
    for family, most, least in zip(families, top, bottom, strict=True):
        assert (most["expansion"], least["expansion"]) == ((4, 2) if family[1] == "inverted" else (2, 2))


def test_one_frame_has_no_time_axis_so_the_smallest_with_one_takes_more():
    space = cnn3d.space(SHAPE).narrowed({"frames": [1, 2]})
    assert {(g["stem"], g["frames"]) for g in smallest(space)} == {("fold", 1), ("conv3d", 2)}
    folded = cnn3d.space(SHAPE).narrowed({"frames": [1], "stem": ["conv3d"]})
    assert {(g["stem"], g["frames"]) for g in largest(folded)} == {("fold", 1)}
    supernet = Supernet(folded, SHAPE, 2)
    genome = folded.sample(np.random.default_rng(0))
    assert supernet(frames_for(genome), genome).shape == (3, 2)


def test_genomes_of_other_spaces_are_refused(supernet):
    genome = {**SPACE.sample(np.random.default_rng(0)), "frames": 1}
    with pytest.raises(ValueError, match="not of the supernet's space"):
        supernet.subnet(genome)
    with pytest.raises(ValueError, match="genes"):
        supernet.subnet({"baseline": "lpbf-cnn"})


BASE = {
    "frames": 8, "field": 24, "scale": 1, "stem": "fold", "stem_width": 12, "stem_stride": 1, "stages": 2,
    "depth1": 2, "depth2": 1, "depth3": 1, "width1": 16, "width2": 12, "width3": 8, "kernel_time": 1, "kernel_space": 5,
    "block": "plain", "expansion": 2, "head": "mean", "head_width": 32,
    "learning_rate": 1e-3, "weight_decay": 0.0, "flips": False,
}  # fmt: skip


def weights_of(supernet, **changed):
    genome = {**BASE, **changed}
    assert SPACE.repair(genome) == genome
    return supernet.subnet(genome).state_dict()


def test_channels_are_the_first_kernels_the_centre_blocks_the_first(supernet):
    whole = weights_of(supernet)
    narrow = weights_of(supernet, width1=8, kernel_space=3)
    assert torch.equal(narrow["features.0.0.weight"], whole["features.0.0.weight"][:, :, 1:4, 1:4])
    assert torch.equal(narrow["features.2.body.0.weight"], whole["features.2.body.0.weight"][:8, :, 1:4, 1:4])
    assert torch.equal(narrow["features.3.body.0.weight"], whole["features.3.body.0.weight"][:8, :8, 1:4, 1:4])
    assert torch.equal(narrow["features.3.body.1.bias"], whole["features.3.body.1.bias"][:8])
    shallow = weights_of(supernet, depth1=1)
    assert torch.equal(shallow["features.3.body.0.weight"], whole["features.4.body.0.weight"]), "the second stage"
    assert torch.equal(weights_of(supernet, head_width=16)["head.1.0.weight"], whole["head.1.0.weight"][:16])
    assert torch.equal(weights_of(supernet, head_width=16)["head.3.weight"], whole["head.3.weight"][:, :16])


def test_time_kernels_are_the_centre_and_depthwise_channels_the_first(supernet):
    plain = {"stem": "conv3d", "kernel_time": 3}
    whole, short = weights_of(supernet, **plain), weights_of(supernet, **{**plain, "kernel_time": 1})
    assert torch.equal(short["features.3.body.0.weight"], whole["features.3.body.0.weight"][:, :, 1:2])
    thin = {**plain, "block": "separable"}
    whole, narrow = weights_of(supernet, **thin), weights_of(supernet, **thin, width1=8)
    assert torch.equal(narrow["features.3.body.0.0.weight"], whole["features.3.body.0.0.weight"][:8])
    assert torch.equal(narrow["features.3.body.2.0.weight"], whole["features.3.body.2.0.weight"][:8, :8])


def test_a_smaller_expansion_is_the_first_channels_of_the_expanded_layers(supernet):
    """Channels inside: expansion times those that go in. The first stage takes in 12, here and at most."""
    inverted = {"block": "inverted", "expansion": 4}
    whole, small = weights_of(supernet, **inverted), weights_of(supernet, **{**inverted, "expansion": 2})
    body = "features.2.body"
    assert whole[f"{body}.0.0.weight"].shape == (48, 12, 1, 1)
    assert torch.equal(small[f"{body}.0.0.weight"], whole[f"{body}.0.0.weight"][:24])
    assert torch.equal(small[f"{body}.2.0.weight"], whole[f"{body}.2.0.weight"][:24])
    assert torch.equal(small[f"{body}.2.1.running_var"], whole[f"{body}.2.1.running_var"][:24])
    assert torch.equal(small[f"{body}.4.0.weight"], whole[f"{body}.4.0.weight"][:, :24])
    thin = weights_of(supernet, **inverted, stem_width=8, width1=8, kernel_space=3)
    assert torch.equal(thin[f"{body}.0.0.weight"], whole[f"{body}.0.0.weight"][:32, :8])
    assert torch.equal(thin[f"{body}.2.0.weight"], whole[f"{body}.2.0.weight"][:32, :, 1:4, 1:4])
    assert torch.equal(thin[f"{body}.4.0.weight"], whole[f"{body}.4.0.weight"][:8, :32])


@pytest.mark.parametrize("stem", ["fold", "conv3d"])
def test_subnets_of_every_expansion_are_plain_networks_equal_to_the_last_bit(supernet, stem):
    rng = np.random.default_rng(7)
    for expansion in (2, 3, 4):
        genome = {**SPACE.sample(rng), "frames": 8, "stem": stem, "block": "inverted", "expansion": expansion}
        genome = SPACE.repair(genome)
        frames = frames_for(genome)
        network = moved(supernet, genome).subnet(genome)
        assert type(network) is cnn3d.Network
        with torch.no_grad():
            assert torch.equal(network(frames), supernet(frames, genome))
            settled = settle(network)(frames)
        plain = cnn3d.Network(genome, SHAPE, 2).eval()
        plain.load_state_dict(network.state_dict())
        with torch.no_grad():
            assert torch.equal(plain(frames), settled)


def test_training_a_smaller_expansion_leaves_the_other_channels_alone(supernet):
    genome = {**BASE, "block": "inverted"}
    supernet.train()(frames_for(genome), genome).sum().backward()
    block = supernet.stages["fold-inverted"][0][0]
    for at in (0, 2):
        norm, grad = block.body[at][1], block.body[at][0].weight.grad
        assert norm.running_var[:24].min() < 1
        assert torch.equal(norm.running_var[24:], torch.ones(24))
        assert grad[:24].abs().sum() > 0
        assert torch.equal(grad[24:], torch.zeros_like(grad[24:]))


@pytest.mark.parametrize(("window", "choices"), [(8, [2, 4, 8]), (5, [1, 2, 4, 5]), (5, [1, 2, 4]), (6, [1, 4])])
def test_a_camera_frame_meets_the_same_weights_however_many_are_folded(window, choices):
    shape = (window, 12, 12)
    supernet = Supernet(cnn3d.space(shape).narrowed({"frames": choices, "stem": ["fold"]}), shape, 2)
    stem = supernet.get_parameter("stems.fold.0.weight")
    most = (window - max(choices)) // 2  # the first frame of the window that any network sees
    for count in choices:
        genome = {**BASE, "frames": count, "field": 12}
        first = (window - count) // 2  # of those in the middle
        cut = supernet.subnet(genome).state_dict()["features.0.0.weight"]
        assert torch.equal(cut, stem[:12, first - most : first - most + count])


@pytest.mark.parametrize(("field", "cells", "pixels"), [(24, 4, 6), (18, 4, 4), (12, 6, 2)])
def test_a_spot_of_the_camera_meets_the_same_weights_through_every_grid(supernet, field, cells, pixels):
    genome = {**BASE, "stages": 1, "width2": 8, "head": "grid", "field": field}
    assert cnn3d.grid(genome) == (pixels // 2, cells)
    finest = supernet.get_parameter("heads.fold-plain-grid-1.hidden.0.weight").view(32, 16, 6, 6)
    each_pixel = finest.repeat_interleave(4, 2).repeat_interleave(4, 3) / 16  # 24 x 24: a place is 4 pixels wide
    margin = (24 - field) // 2
    seen = each_pixel[:, :, margin : margin + cells * pixels, margin : margin + cells * pixels]
    expected = seen.reshape(32, 16, cells, pixels, cells, pixels).sum((3, 5))
    found = supernet.subnet(genome).state_dict()["head.1.0.weight"].view(32, 16, cells, cells)
    assert torch.allclose(found, expected, atol=1e-6)


def test_training_mode_moves_the_statistics_of_the_channels_used_only(supernet):
    genome = {**BASE, "stem_width": 8}
    supernet.train()(frames_for(genome), genome)
    mean = supernet.get_buffer("stems.fold.1.running_mean")
    assert mean[:8].abs().min() > 0
    assert torch.equal(mean[8:], torch.zeros(4))
    assert torch.equal(supernet.get_buffer("stems.conv3d.1.running_mean"), torch.zeros(12))
    before = mean.clone()
    supernet.eval()(frames_for(genome), genome)
    assert torch.equal(mean, before)


def test_the_heads_normalisation_is_that_of_the_neurons_used_and_settles_once(supernet):
    genome = {**BASE, "head_width": 16}
    supernet.train()(frames_for(genome, 8), genome)
    mean = supernet.get_buffer("heads.fold-plain-mean-2.hidden.1.running_mean")
    assert mean[:16].abs().min() > 0
    assert torch.equal(mean[16:], torch.zeros(16))
    network = settle(supernet.eval().subnet(genome))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in settle(network).state_dict().items())


def test_what_a_smaller_field_leaves_out_does_not_move_the_sums(supernet):
    """Of a smaller picture's cells, or fewer channels, the head makes numbers of the same order."""
    for changed in ({"field": 12}, {"field": 24}, {"width2": 8}, {"stem_width": 8}):
        genome = {**BASE, "head": "grid", **changed}
        frames = frames_for(genome, 32)
        network = supernet.train().subnet(genome)
        sums = network.head[1](network.head[0](network._pool(network.features(in_the_middle(network, frames)))))
        assert sums.mean(0).abs().max() < 1e-4
        assert (sums.std(0) - 1).abs().max() < 0.1


def in_the_middle(network, frames):
    """What the network's first layer sees, in a network that folds frames and does not scale."""
    side = network._field
    return frames[:, :, network._top : network._top + side, network._left : network._left + side].float() / 255


def test_every_subnet_answers_the_constant_it_is_told_to_begin_with(supernet):
    supernet.answer(torch.tensor([0.25, -3.0]))
    rng = np.random.default_rng(2)
    for genome in (SPACE.sample(rng) for _ in range(5)):
        with torch.no_grad():
            assert torch.allclose(supernet.eval()(frames_for(genome), genome), torch.tensor([[0.25, -3.0]] * 3))


def test_gradients_reach_the_weights_used_and_no_others(supernet):
    genome = {**BASE, "stem_width": 8, "head": "grid"}
    supernet(frames_for(genome), genome).sum().backward()
    stem = supernet.get_parameter("stems.fold.0.weight").grad
    assert stem[:8].abs().sum() > 0
    assert torch.equal(stem[8:], torch.zeros_like(stem[8:]))
    assert supernet.get_parameter("heads.fold-plain-grid-2.hidden.0.weight").grad.abs().sum() > 0
    used = {name for name, p in supernet.named_parameters() if p.grad is not None}
    assert {name.split(".")[1] for name in used} == {"fold", "fold-plain", "fold-plain-grid-2"}
