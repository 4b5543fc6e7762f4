"""Compressed baselines: what is cut, what is kept of a trained network, and that files of weights fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mpinas.errors import UserError
from mpinas.examples.digits import DigitsCnn
from mpinas.models import cnn3d, swin3d
from mpinas.models.baselines import LpbfCnn, LpbfSwin
from mpinas.models.compressed import KEEPS, build, inherit, space
from mpinas.training.export import export_onnx, onnx_difference

#: Shifted windows, padding, two kinds of heads; every width can be halved twice.
SMALL = swin3d.Design(
    frames=4, side=20, patch=(2, 4, 4), embed=24, depths=(2, 1), heads=(3, 6), window=(2, 2, 2), mlp_ratio=2
)  # fmt: skip
INVERTED = {
    "frames": 4, "field": 9, "scale": 1, "stem": "conv3d", "stem_width": 8, "stem_stride": 1, "stages": 1,
    "depth1": 2, "width1": 16, "kernel_time": 3, "kernel_space": 3, "block": "inverted", "expansion": 4,
    "head": "grid", "head_width": 16,
}  # fmt: skip
BASELINES = {
    "lpbf-cnn": (lambda: LpbfCnn((16, 41, 41), 2), (16, 41, 41)),
    "digits-cnn": (lambda: DigitsCnn((1, 8, 8), 10), (1, 8, 8)),
    "swin": (lambda: swin3d.Network(SMALL, 2), (4, 20, 20)),
    "inverted": (lambda: cnn3d.Network(INVERTED, (4, 9, 9), 2), (4, 9, 9)),
}


def genome(method, keep):
    return {"method": method, "keep": keep}


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def frames(shape, count=3):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8))


def test_the_space_has_each_method_with_each_share_that_means_something():
    found = {(each["method"], each["keep"]) for each in space().every()}
    assert found == {(method, keep) for method in ("prune", "distill") for keep in KEEPS} | {("quantise", 1.0)}
    assert space().repair(genome("prune", 1.0)) == genome("prune", 0.75)
    assert space().repair(genome("quantise", 0.25)) == genome("quantise", 1.0)


def test_every_layer_but_the_input_and_the_output_is_cut():
    lpbf = build(genome("prune", 0.25), LpbfCnn((16, 41, 41), 2), (16, 41, 41))
    weights = {name: shape for name, shape in shapes(lpbf).items() if name.endswith("weight")}
    assert weights == {
        "features.0.weight": (16, 1, 5, 5, 5),
        "head.0.weight": (64, 16 * 4 * 12 * 12),
        "head.2.weight": (32, 64),
        "head.4.weight": (2, 32),
    }
    digits = build(genome("prune", 0.125), DigitsCnn((1, 8, 8), 10), (1, 8, 8))
    assert [tuple(layer.weight.shape) for layer in digits.head if isinstance(layer, nn.Linear)] == [(16, 256), (10, 16)]


def test_a_compressed_swin_is_the_swin_of_that_width():
    """With its heads and windows, and fully connected layers of half their width."""
    with torch.device("meta"):
        narrow = build(genome("prune", 0.5), LpbfSwin((16, 41, 41), 2), (16, 41, 41))
        base = swin3d.BASELINE
        expected = swin3d.Network(
            swin3d.Design(
                frames=16, side=base.side, patch=base.patch, embed=48, depths=base.depths, heads=base.heads,
                window=base.window, mlp_ratio=4,
            ),
            2,
        )  # fmt: skip
    found, known = shapes(narrow), shapes(expected)
    assert found.keys() == known.keys()
    assert {name: found[name] for name in known if not name.startswith("head.")} == {
        name: shape for name, shape in known.items() if not name.startswith("head.")
    }
    assert [found[f"head.{at}.weight"] for at in (0, 2, 4)] == [(200, 384), (100, 200), (2, 100)]


def test_of_an_inverted_residual_both_the_narrow_and_the_wide_channels_are_cut():
    make, shape = BASELINES["inverted"]
    found = shapes(build(genome("prune", 0.5), make(), shape))
    assert [found[f"features.3.body.{at}.0.weight"][:2] for at in (0, 2, 4)] == [(32, 8), (32, 1), (8, 32)]


def test_one_channel_is_always_left():
    network = build(genome("prune", 0.125), Sequential(nn.Linear(9, 3), nn.ReLU(), nn.Linear(3, 2)), (1, 3, 3))
    assert network.layers[0].weight.shape == (1, 9)
    assert network(frames((1, 3, 3))).shape == (3, 2)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("method", ["prune", "distill", "quantise"])
def test_trained_weights_fit_what_is_built(name, method):
    make, shape = BASELINES[name]
    each = space().repair(genome(method, 0.5))
    trained, network = inherit(each, make(), make(), shape).eval(), build(each, make(), shape).eval()
    assert shapes(network) == shapes(trained)
    network.load_state_dict(trained.state_dict())
    with torch.no_grad():
        assert torch.equal(network(frames(shape)), trained(frames(shape)))


@pytest.mark.parametrize("name", BASELINES)
def test_the_file_computes_the_same(tmp_path, name):
    make, shape = BASELINES[name]
    network = build(genome("prune", 0.25), make(), shape)
    network.load_state_dict(inherit(genome("prune", 0.25), make(), make(), shape).state_dict())
    export_onnx(network, shape, tmp_path / "model.onnx", {})
    assert onnx_difference(network, tmp_path / "model.onnx", frames(shape).numpy()) < 1e-4


@pytest.mark.parametrize("name", ["lpbf-cnn", "digits-cnn"])
def test_channels_that_matter_are_kept(name):
    """A network half of whose channels give nothing computes the same without them."""
    make, shape = BASELINES[name]
    network, rng = make(), np.random.default_rng(1)
    layers = [layer for layer in network.modules() if hasattr(layer, "weight")]
    with torch.no_grad():
        for layer in layers[:-1]:
            dead = torch.from_numpy(rng.permutation(len(layer.weight))[: len(layer.weight) // 2])
            layer.weight[dead], layer.bias[dead] = 0.0, 0.0
        narrow = inherit(genome("prune", 0.5), network, make(), shape)
        assert narrow(frames(shape)).numpy() == pytest.approx(network(frames(shape)).numpy(), abs=1e-6)
    assert sum(p.numel() for p in narrow.parameters()) < 0.3 * sum(p.numel() for p in network.parameters())


def test_of_a_transformer_too_the_weights_that_matter_are_kept():
    """All of a narrow network is found in a wide one that has it in every other place, and zeros elsewhere."""
    make, shape = BASELINES["swin"]
    narrow, wide = build(genome("prune", 0.5), make(), shape), make()
    with torch.no_grad():
        for mine, place in zip(narrow.parameters(), wide.parameters(), strict=True):
            every = tuple(slice(None, None, b // a) for a, b in zip(mine.shape, place.shape, strict=True))
            place.zero_()[every] = mine
    found = inherit(genome("prune", 0.5), wide, make(), shape)
    for name, tensor in narrow.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_what_is_trained_stays_as_it_is_and_is_the_start_of_what_the_method_says():
    make, shape = BASELINES["digits-cnn"]
    trained = make()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    torch.manual_seed(3)
    quantised, fresh = inherit(genome("quantise", 1.0), trained, make(), shape), make()
    distilled = inherit(genome("distill", 0.5), trained, fresh, shape)
    with torch.no_grad():
        for network in (quantised, distilled, inherit(genome("prune", 0.5), trained, make(), shape)):
            inherited = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            if network is quantised:
                assert all(torch.equal(inherited[name], tensor) for name, tensor in before.items())
            if network is distilled:
                expected = build(genome("distill", 0.5), fresh, shape).state_dict()
                assert all(torch.equal(inherited[name], tensor) for name, tensor in expected.items())
            for parameter in network.parameters():
                parameter.zero_()
    assert all(torch.equal(trained.state_dict()[name], tensor) for name, tensor in before.items())


def test_fresh_weights_are_those_of_a_layer_of_that_size():
    """torch draws them from between plus and minus one over the root of the inputs."""
    network = build(genome("distill", 0.25), LpbfCnn((16, 41, 41), 2), (16, 41, 41))
    for layer in (network.features[0], network.head[0], network.head[2]):
        largest = float(layer.weight.detach().abs().max())
        assert largest == pytest.approx(layer.weight[0].numel() ** -0.5, rel=0.02)


class Sequential(nn.Module):
    """Layers on the flat picture."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x.float().flatten(1) / 255)


class Users(nn.Module):
    """What a user's network may be made of: ways around, normalisation, depthwise convolution, cat, tokens."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.each = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mix = nn.Conv2d(8, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.AvgPool2d(2)
        self.apart = nn.Conv2d(8, 12, 1)
        self.tokens = nn.Parameter(torch.randn(1, 1, 12))
        self.queries = nn.Linear(12, 36)
        self.after = nn.Linear(12, 10)
        self.out = nn.Linear(10, 3)
        self.refined = nn.Linear(3, 3)

    def forward(self, x):
        x = self.stem(x.float() / 255)
        x = self.pool(torch.relu(x + self.norm(self.mix(self.each(x)))))
        x = self.apart(torch.cat([x[:, :, ::2], x[:, :, 1::2]], 2)).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(len(x), -1, -1), x], 1)
        heads, width = 2, x.shape[-1] // 2
        q, k, v = (each.unflatten(-1, (heads, width)).transpose(1, 2) for each in self.queries(x).chunk(3, -1))
        x = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = self.out(torch.tanh(self.after(x)).mean(1))
        return x + self.refined(x)


def test_a_users_network_is_cut_where_it_can_be():
    torch.manual_seed(0)
    trained = Users()
    network = inherit(genome("prune", 0.5), trained, Users(), (2, 8, 8))
    found = shapes(network)
    assert found["stem.0.weight"] == (4, 2, 3, 3)
    assert found["stem.1.running_mean"] == (4,)
    assert found["each.weight"] == (4, 1, 3, 3)
    assert found["mix.weight"] == (4, 4, 1, 1)
    assert found["tokens"] == (1, 1, 6)
    assert found["queries.weight"] == (18, 6)
    assert found["after.weight"] == (5, 6)
    assert found["out.weight"] == (3, 5)
    assert found["refined.weight"] == (3, 3)
    assert (network.each.groups, network.norm.num_features, network.queries.out_features) == (4, 4, 18)
    other = build(genome("prune", 0.5), Users(), (2, 8, 8))
    other.load_state_dict(network.state_dict())
    network.train()(frames((2, 8, 8))).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


class Shared(nn.Module):
    """One layer twice, and one whose weights another has too."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Linear(16, 8), nn.Linear(8, 8)
        self.same, self.out = nn.Linear(8, 8), nn.Linear(8, 2)
        self.same.weight = self.twice.weight

    def forward(self, x):
        x = torch.relu(self.first(x.float().flatten(1) / 255))
        return self.out(self.same(self.twice(torch.relu(self.twice(x)))))


def test_what_is_shared_stays_shared():
    network = build(genome("prune", 0.5), Shared(), (1, 4, 4))
    assert [tuple(layer.weight.shape) for layer in network.children()] == [(4, 16), (4, 4), (4, 4), (2, 4)]
    assert network.same.weight is network.twice.weight


class Stubborn(nn.Module):
    """Reckons with a number that no tensor has, and with an operation that nothing is known of."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 8), nn.Linear(4, 8)
        self.third, self.fourth = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = torch.relu(self.first(x.float().flatten(1))).reshape(-1, 4)
        x = torch.relu(self.second(x))
        x = x.reshape(-1, 2, x.shape[-1]).sum(1)
        x = self.third(x)
        return self.fourth(x) + torch.cumsum(x, 1)[:, :2]


def test_layers_that_cannot_be_cut_stay_whole():
    network = build(genome("prune", 0.5), Stubborn(), (1, 4, 4))
    assert [tuple(layer.weight.shape) for layer in network.children()] == [(8, 16), (4, 4), (8, 4), (2, 8)]


class Folds(nn.Module):
    """Attention with heads of a width written down: half of it still runs, and mixes samples."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(16, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.first(x.float().flatten(1)).reshape(-1, 2, 4)
        x = (x @ x.transpose(1, 2)).softmax(-1) @ x
        return self.out(torch.relu(self.second(x.reshape(-1, self.second.in_features))))


def test_a_network_that_runs_but_does_something_else_is_no_compressed_network():
    network = build(genome("prune", 0.5), Folds(), (1, 4, 4))
    assert [tuple(layer.weight.shape) for layer in network.children()] == [(8, 16), (3, 8), (2, 3)]


def test_a_network_that_cannot_be_cut_at_all_is_named():
    with pytest.raises(UserError, match="none of its layers can be made narrower"):
        build(genome("prune", 0.5), Sequential(nn.Linear(9, 2)), (1, 3, 3))

    class Looks(Sequential):
        def forward(self, x):
            return self.layers(x.float().flatten(1)) * x.max().item()

    with pytest.raises(UserError, match="does not run on torch's device meta") as caught:
        build(genome("prune", 0.5), Looks(nn.Linear(9, 9), nn.Linear(9, 2)), (1, 3, 3))
    assert "\n" not in str(caught.value)
