"""Train and validate one network on the ranks of a group.

The gradient of a step is that of the whole batch's mean loss, whatever the number of ranks: rank r of n takes every
n-th sample of the batch and weighs its mean by its share. Must not know files, nor what becomes of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from mpinas.tasks.protocol import Samples, Task
from mpinas.training.collectives import Collectives
from mpinas.training.fake_quantisation import attach, detach
from mpinas.training.recipe import Recipe, batches, draw_mirrored, seed_of


class Diverged(Exception):  # noqa: N818 - an outcome, not an error of the program
    """The loss is no finite number any more."""


class Abandoned(Exception):  # noqa: N818 - an outcome, not an error of the program
    """The leader was told to stop."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What a training calls and asks.

    `on_epoch(epoch, validation error)`, epochs counted in all, is called after each epoch on every rank.
    `on_check` is called every few steps, on every rank: the training gets on.
    `should_stop` and `should_pause` are asked on the leader only, the latter between two epochs; it is None, on all
    ranks alike, where there is no pausing.
    """

    on_epoch: Callable[[int, float], None] = lambda epoch, error: None
    should_stop: Callable[[], bool] = lambda: False
    should_pause: Callable[[], bool] | None = None
    on_check: Callable[[], None] = lambda: None


#: Steps between two looks at whether to stop; every look costs a small allreduce.
CHECK_STEPS = 8


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    samples: tuple[Samples, Samples],
    recipe: Recipe,
    group: Collectives,
    callbacks: Callbacks,
) -> tuple[int, dict[str, float]]:
    """Train `model` in place on samples[0]; (epochs done in all, metrics on samples[1] after the last of them).

    Where all epochs are done already it is judged only.
    Fewer epochs than asked for, where the leader was told to pause: on all ranks alike.
    Linear warm-up and cosine decay to zero (I. Loshchilov and F. Hutter, SGDR, ICLR 2017, one cycle), or steps.

    Raises
    ------
    Diverged, Abandoned
        On all ranks alike.
    """
    training, validation = samples
    steps_per_epoch = max(1, len(training) // recipe.batch_size)
    step = first = recipe.epochs.done * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda since: recipe.factor(first + since, steps_per_epoch))
    epoch, metrics = recipe.epochs.done, dict[str, float]()
    for epoch in range(recipe.epochs.done + 1, recipe.epochs.until + 1):
        model.train()
        if recipe.rounded(epoch):
            attach(model)  # anew in each epoch: a training may be cut between any two
        torch.manual_seed(seed_of(recipe.seed, epoch, group.rank))  # what networks draw, as for dropout
        mirrored = draw_mirrored(len(training), recipe.seed, epoch) if recipe.flips else None
        for batch in batches(len(training), recipe.batch_size, seed=(recipe.seed, epoch)):
            mine = batch[group.rank :: group.size]
            shown = None if mirrored is None else mirrored[:, mine]
            inputs, targets = take(training, mine, recipe.device, shown)
            optimizer.zero_grad()
            share = len(inputs) * group.size / len(batch)
            outputs = model(inputs)
            loss = task.loss(outputs, targets)
            if recipe.distillation is not None:
                apart = F.mse_loss(outputs, recipe.distillation.answers(mine, shown))
                loss = torch.lerp(loss, apart, recipe.distillation.share)
            loss = loss * share
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            step += 1
            if step % CHECK_STEPS == 1 or step % steps_per_epoch == 0:
                check(loss, group, callbacks)
        group.average_buffers(model)
        metrics = judge(model, task, validation, group, recipe)
        detach(model)
        callbacks.on_epoch(epoch, metrics["error"])
        if epoch < recipe.epochs.until and callbacks.should_pause and leader_says(callbacks.should_pause, group):
            break
    return epoch, metrics or judge(model, task, validation, group, recipe)


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
            inputs, targets = take(samples, indices, recipe.device)
            sums = task.sums(model(inputs), targets)
            total = sums if total is None else total + sums
    assert total is not None
    metrics = metrics_of(task, group.sum(total.cpu()))
    if not all(math.isfinite(value) for value in metrics.values()):
        raise Diverged(f"the error is {metrics['error']}")
    return metrics


def metrics_of(task: Task, sums: torch.Tensor) -> dict[str, float]:
    """What the task makes of its sums, as numbers of Python: a task's own code may give those of NumPy or torch."""
    return {name: float(value) for name, value in task.metrics(sums).items()}


def flip(inputs: torch.Tensor, mirrored: NDArray[np.bool_]) -> torch.Tensor:
    """Mirror the chosen samples, all their frames alike, from top to bottom, from left to right, or both.

    (n, frames, height, width) and (2, n) -> the shape of `inputs`.
    """
    for axis, chosen in zip((2, 3), torch.from_numpy(mirrored).to(inputs.device), strict=True):
        inputs = torch.where(chosen[:, None, None, None], inputs.flip(axis), inputs)
    return inputs


def take(
    samples: Samples, indices: NDArray[np.int64], device: torch.device, mirrored: NDArray[np.bool_] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of these samples, mirrored as (2, n) says."""
    assert samples.targets is not None
    inputs = torch.from_numpy(samples.inputs[indices]).to(device)
    if mirrored is not None:
        inputs = flip(inputs, mirrored)
    return inputs, torch.from_numpy(samples.targets[indices]).to(device)


def check(loss: torch.Tensor, group: Collectives, callbacks: Callbacks) -> None:
    """Leave on all ranks alike, when one rank's loss has blown up or the leader was told to stop."""
    callbacks.on_check()
    stop = group.rank == 0 and callbacks.should_stop()
    flags = group.sum(torch.tensor([float(not torch.isfinite(loss)), float(stop)]))
    if flags[1] > 0:
        raise Abandoned("told to stop")
    if flags[0] > 0:
        raise Diverged("the training loss is no finite number")


def leader_says(should_pause: Callable[[], bool], group: Collectives) -> bool:
    """What the leader answers, on all ranks: only it can tell, and they must act alike."""
    return bool(group.sum(torch.tensor([float(group.rank == 0 and should_pause())])) > 0)
