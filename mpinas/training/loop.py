"""Train and validate one network on the ranks of a group.

The gradient of a step is that of the whole batch's mean loss, whatever the number of ranks: rank r of n takes every
n-th sample of the batch and weighs its mean by its share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mpinas.tasks.protocol import Samples, Task
from mpinas.training.collectives import Collectives


class Diverged(Exception):  # noqa: N818 - an outcome, not an error of the program
    """The loss is no finite number any more."""


class Abandoned(Exception):  # noqa: N818 - an outcome, not an error of the program
    """The leader was told to stop."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. `batch_size` is that of the whole group."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    #: Mirror every training sample at random in both directions of the picture.
    flips: bool
    seed: int
    device: torch.device


#: Steps between two looks at whether to stop; every look costs a small allreduce.
CHECK_STEPS = 8
#: Share of the steps in which the learning rate rises.
WARM_UP = 0.1


def train(
    model: nn.Module,
    task: Task,
    samples: tuple[Samples, Samples],
    recipe: Recipe,
    group: Collectives,
    *,
    on_epoch: Callable[[int, float], None] = lambda epoch, error: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Train `model` in place on samples[0]; metrics on samples[1] after the last epoch.

    AdamW with linear warm-up and cosine decay to zero (I. Loshchilov and F. Hutter, SGDR, ICLR 2017, one cycle).
    `on_epoch(epoch, validation error)` after each epoch on every rank; `should_stop` is asked on the leader only.

    Raises
    ------
    Diverged, Abandoned
        On all ranks alike.
    """
    training, validation = samples
    steps_per_epoch = max(1, len(training) // recipe.batch_size)
    adamw = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    optimizer = group.distribute(adamw, model)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, recipe.epochs * steps_per_epoch)
    )
    metrics: dict[str, float] = {}
    step = 0
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        for batch in batches(len(training), recipe.batch_size, seed=(recipe.seed, epoch)):
            inputs, targets = _take(training, batch[group.rank :: group.size], recipe.device)
            if recipe.flips:
                inputs = flip(inputs)
            optimizer.zero_grad()
            share = len(inputs) * group.size / len(batch)
            loss = task.loss(model(inputs), targets) * share
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            step += 1
            if step % CHECK_STEPS == 1 or step % steps_per_epoch == 0:
                _check(loss, group, should_stop)
        group.average_buffers(model)
        metrics = judge(model, task, validation, group, recipe)
        on_epoch(epoch, metrics["error"])
    return metrics


def judge(model: nn.Module, task: Task, samples: Samples, group: Collectives, recipe: Recipe) -> dict[str, float]:
    """Metrics of `model` on all of `samples`, each rank taking its share. The same on all ranks.

    Raises
    ------
    Diverged
        The error is not finite.
    """
    model.eval()
    mine = np.arange(group.rank, len(samples), group.size)
    total: torch.Tensor | None = None
    with torch.no_grad():
        # a rank without samples still takes part, with sums of zero
        for indices in np.array_split(mine, max(1, math.ceil(len(mine) / recipe.batch_size))):
            inputs, targets = _take(samples, indices, recipe.device)
            sums = task.sums(model(inputs), targets)
            total = sums if total is None else total + sums
    assert total is not None
    metrics = task.metrics(group.sum(total.cpu()))
    if not all(math.isfinite(value) for value in metrics.values()):
        raise Diverged(f"the error is {metrics['error']}")
    return metrics


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


def flip(inputs: torch.Tensor) -> torch.Tensor:
    """Mirror each sample, all its frames alike, with equal chance in each of the two directions of the picture.

    (n, frames, height, width) -> the same shape; draws from torch's generator.
    """
    for axis in (2, 3):
        chosen = torch.rand(len(inputs)) < 0.5
        inputs = torch.where(chosen.to(inputs.device)[:, None, None, None], inputs.flip(axis), inputs)
    return inputs


def _take(samples: Samples, indices: NDArray[np.int64], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    assert samples.targets is not None
    inputs = torch.from_numpy(samples.inputs[indices]).to(device)
    return inputs, torch.from_numpy(samples.targets[indices]).to(device)


def _check(loss: torch.Tensor, group: Collectives, should_stop: Callable[[], bool]) -> None:
    """Leave on all ranks alike, when one rank's loss has blown up or the leader was told to stop."""
    stop = group.rank == 0 and should_stop()
    flags = group.sum(torch.tensor([float(not torch.isfinite(loss)), float(stop)]))
    if flags[1] > 0:
        raise Abandoned("told to stop")
    if flags[0] > 0:
        raise Diverged("the training loss is no finite number")
