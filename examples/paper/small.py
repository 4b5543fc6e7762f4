"""The published search space around the published video Swin transformer, on pictures that a CPU can train with.

An eighth of the published side in each direction: all that divides 224 into patches and windows divides 28 as well.
"""

from dataclasses import replace

from mpinas.models.baselines import LpbfSwin
from mpinas.models.swin3d import BASELINE, Network, Swin3d

SIDE = 28


class Baseline(Network):
    """The published network, with its 28.2 million parameters, on pictures of that side."""

    training_genes = LpbfSwin.training_genes

    def __init__(self, input_shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__(replace(BASELINE, frames=input_shape[0], side=SIDE), outputs)


class Small(Swin3d):
    """The published genes, on pictures of that side."""

    baseline = Baseline
    side = SIDE
