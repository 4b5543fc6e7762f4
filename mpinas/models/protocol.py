"""What a search space has to be for mpinas to search it: genes, and the network of each genome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import nn

from mpinas.search import Genome, SearchSpace

#: Frames, height, width of a sample.
Shape = tuple[int, int, int]
#: What a network is trained with whose genome does not say; the schedule and the budget are those of every candidate.
TRAINING_GENES: Genome = {"learning_rate": 1e-3, "weight_decay": 0.0, "flips": False}
#: A human-designed network: from the shape of its input and the number of its outputs. An attribute `training_genes`
#: says what it is trained with, where that is not TRAINING_GENES.
MakeNetwork = Callable[[Shape, int], nn.Module]


class NetworkSpace(Protocol):
    """A search space and its networks. The class is named in the experiment file, and made without arguments.

    A gene called `frames` says how many of a sample's frames a network takes, those in the middle; without it, all.
    Genes called `learning_rate`, `weight_decay`, `flips`, and `step_size` with `gamma`, say how it is trained
    (docs/running.md); each may be left out. Not to be used: `baseline`, `precision`, `distillation`, `method`, `keep`.
    Spaces from outside share no weights: only `cnn3d` has a supernet.
    """

    #: The human-designed network that the space was made around, a name of a network or a class; None: the task's.
    baseline: str | MakeNetwork | None

    def search_space(self, input_shape: Shape) -> SearchSpace:
        """The genes, for samples of (frames, height, width)."""
        ...

    def build(self, genome: Genome, input_shape: Shape, outputs: int) -> nn.Module:
        """The network of a genome, with fresh weights from torch's generator.

        It takes uint8 (batch, frames, height, width) and gives (batch, outputs). ValueError: the input is too small.
        """
        ...
