"""How a network is trained: its settings, its optimizer, its schedule, and what chance decides.

What is drawn at random in an epoch follows from the seed and the epoch's number alone, so that a training may be put
aside between any two epochs. Must not know the loop that goes through the epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mpinas.training.collectives import Collectives

#: Share of the steps in which the learning rate rises.
WARM_UP = 0.1
#: Share of the epochs in which an integer network is rounded: the last, with a small learning rate.
ROUNDED = 0.2


@dataclass(frozen=True, slots=True)
class Epochs:
    """Which part of a training: go on after the first `done`, until `until` are done, on a schedule over `full`."""

    done: int
    until: int
    full: int

    @classmethod
    def whole(cls, epochs: int) -> Epochs:
        """From scratch to the end."""
        return cls(0, epochs, epochs)


@dataclass(frozen=True, slots=True)
class Steps:
    """A learning rate that falls by the factor `gamma` after every `step_size` epochs, with no warm-up.

    As the published search around the video Swin transformer trains (arXiv 2505.19995).
    """

    step_size: int
    gamma: float


#: A teacher's outputs for some of the training samples, by index, mirrored as (2, n) says; None: none is.
Answers = Callable[[NDArray[np.int64], NDArray[np.bool_] | None], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Distillation:
    """Learn the outputs of a teacher, too: by their mean squared difference, which is this share of the loss.

    Serves regression and, on logits, classification (J. Ba and R. Caruana, Do Deep Nets Really Need to be Deep?, NIPS
    2014).
    """

    share: float
    answers: Answers


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. `batch_size` is that of the whole group."""

    epochs: Epochs
    batch_size: int
    learning_rate: float
    weight_decay: float
    #: Mirror every training sample at random in both directions of the picture.
    flips: bool
    seed: int
    device: torch.device
    distillation: Distillation | None = None
    #: The network will run in integers: it is trained to be rounded at the end of its full schedule.
    integer: bool = False
    #: Instead of warm-up and cosine.
    steps: Steps | None = None

    def rounded(self, epoch: int) -> bool:
        """Does the network compute in this epoch as its integer file will? Epochs count from 1."""
        return self.integer and epoch > self.epochs.full - math.ceil(ROUNDED * self.epochs.full)

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """What the learning rate is multiplied by in that step of all epochs; it follows from nothing else."""
        if self.steps is not None:
            epoch = step // steps_per_epoch
            return self.steps.gamma ** (epoch // self.steps.step_size)
        return learning_rate_factor(step, self.epochs.full * steps_per_epoch)


def make_optimizer(
    model: nn.Module, recipe: Recipe, group: Collectives, state: dict[int, Any] | None = None
) -> torch.optim.Optimizer:
    """AdamW over the group, its `state` as an earlier one left it. The model becomes the leader's."""
    adamw = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    optimizer = group.distribute(adamw, model)
    if state is not None:  # only now: the group's optimizer starts without the state of the one it was made from
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return optimizer


def batches(samples: int, batch_size: int, seed: tuple[int, int]) -> Iterator[NDArray[np.int64]]:
    """Indices of each batch of one epoch, the same on every rank. What does not fill a batch waits for the next epoch;
    fewer samples than one batch make a batch by themselves."""
    order = np.random.default_rng(seed).permutation(samples)
    size = min(batch_size, samples)
    for start in range(0, samples - size + 1, size):
        yield order[start : start + size]


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear rise over the first tenth of the steps, then half a cosine down to zero."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def draw_mirrored(samples: int, seed: int, epoch: int) -> NDArray[np.bool_]:
    """Which samples one epoch shows mirrored, (2, samples): with equal chance in each direction of the picture.

    The same on every rank, so that the batch does not depend on how many share it.
    """
    return np.random.default_rng((seed, epoch, 1)).random((2, samples)) < 0.5


def seed_of(*numbers: int) -> int:
    """One seed for torch from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
