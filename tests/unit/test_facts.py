"""Cheap facts of networks, by value and beside the networks themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from mpinas.cli import cli
from mpinas.errors import UserError
from mpinas.models import Networks, baseline_genome, make_space
from mpinas.models.facts import described, facts_of

SHAPE, OUTPUTS = (16, 41, 41), 2


def test_facts_by_value():
    """The baseline of digits: 9 x 32, 9 x 32 x 64, then 9 x 64 x 128 on 4 x 4, and two matrices."""
    facts = facts_of(baseline_genome("digits-cnn"), Networks("cnn3d", (1, 8, 8), 10))
    weights = (9 * 32, 9 * 32 * 64, 9 * 64 * 128, 128 * 16 * 128, 128 * 10)
    assert facts.parameters == sum(weights) + 32 + 64 + 128 + 128 + 10
    assert facts.bytes == 4 * facts.parameters
    assert facts.flops == 2 * sum(weight * places for weight, places in zip(weights, (64, 64, 16, 1, 1), strict=True))
    assert facts.activation_bytes == 4 * (64 * 64 + 64 * 64), "64 channels of 8 x 8 go into a ReLU and come out"


def test_facts_of_inverted_residuals_by_value():
    """8 channels on 8 x 8 become 24, 24 on 4 x 4, 12; then 12 become 36, 36, 12; and two matrices."""
    genome = {
        "frames": 1, "field": 8, "scale": 1, "stem": "fold", "stem_width": 8, "stem_stride": 1, "stages": 1,
        "depth1": 2, "width1": 12, "kernel_time": 1, "kernel_space": 3, "block": "inverted", "expansion": 3,
        "head": "mean", "head_width": 16,
    }  # fmt: skip
    facts = facts_of(genome, Networks("cnn3d", (1, 8, 8), 10))
    weights = (9 * 8, 8 * 24, 9 * 24, 24 * 12, 12 * 36, 9 * 36, 36 * 12, 12 * 16, 16 * 10)
    places = (64, 64, 16, 16, 16, 16, 16, 1, 1)
    assert facts.parameters == sum(weights) + 2 * (8 + 24 + 24 + 12 + 36 + 36 + 12) + 16 + 10
    assert facts.flops == 2 * sum(weight * count for weight, count in zip(weights, places, strict=True))
    widest = 24 * 64 + 24 * 64 + 2 * 24
    assert facts.activation_bytes == 4 * widest, "24 channels of 8 x 8 are normalised, by as many means and deviations"


@pytest.mark.parametrize("name", ["cnn3d", "inverted", "swin3d", "swin3d-free"])
def test_facts_are_those_of_the_network_as_it_runs(name):
    choices = {"depth1": [1], "depth2": [1], "depth3": [1]}
    if name in ("cnn3d", "inverted"):
        choices, name = {"stem": ["conv3d"], "block": ["separable" if name == "cnn3d" else name]}, "cnn3d"
    else:
        choices["patch_height"] = [4]
    genome = make_space(name, SHAPE, choices).sample(np.random.default_rng(1))
    networks = Networks(name, SHAPE, OUTPUTS)
    network = networks.build(genome).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros((1, *networks.shape(genome)), dtype=torch.uint8))
    facts = facts_of(genome, networks)
    assert facts.flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert facts.parameters == sum(each.numel() for each in network.parameters())
    assert facts.bytes == sum(each.nbytes for each in (*network.parameters(), *network.buffers()))


def show(*arguments: str):
    return CliRunner().invoke(cli, ["space", "show", *arguments], standalone_mode=False)


def test_a_space_as_json():
    found = json.loads(show("swin3d", "--json").stdout)
    assert found["baseline"]["name"] == "lpbf-swin"
    assert found["baseline"]["parameters"] == 28_232_528
    assert found["baseline"]["flops"] == pytest.approx(87.5e9, rel=1e-3)
    assert found["genes"]["embed"] == [24, 48]
    assert found["size"] == len(make_space("swin3d", SHAPE))


def test_a_space_as_a_table():
    out = show("cnn3d", "--frames", "32").stdout
    assert "32 frames of 41 x 41" in out
    assert "kernel_time" in out
    assert "baseline lpbf-cnn: " in out


def test_samples_too_small_for_the_baseline_are_said_to_be():
    assert isinstance(error := show("cnn3d", "--side", "6").exception, UserError)
    assert str(error) == "baseline lpbf-cnn: its 5x5x5 convolution and pooling need at least (7, 7, 7)"


def test_an_unknown_space_is_named():
    assert isinstance(error := show("cnn4d").exception, UserError)
    assert "cnn4d" in str(error)
    assert "swin3d-free" in str(error)


def test_a_baseline_that_shapes_alone_do_not_run_is_said_in_one_line(tmp_path):
    (tmp_path / "own.py").write_text(
        "from torch import nn\nclass Own(nn.Module):\n"
        "    def __init__(self, shape, outputs): super().__init__()\n"
        "    def forward(self, frames): return frames.numpy()\n"
    )
    with pytest.raises(UserError, match=r"baseline .*own.py:Own: \w+Error: ") as caught:
        described("cnn3d", (8, 9, 9), 2, f"{tmp_path}/own.py:Own")
    assert "\n" not in str(caught.value)
