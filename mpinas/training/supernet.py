"""Train the shared weights of a supernet on the ranks of a group, and make a subnet of it fit to be judged.

Each step trains a few subnets on the same batch before one update: the largest and the smallest of a family, and others
drawn at random (the sandwich rule); the largest learns from the targets, the others from its outputs too (in-place
distillation; J. Yu et al., BigNAS, ECCV 2020). Must not know files, nor what subnets are searched for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mpinas.models import cnn3d
from mpinas.models.elastic import Supernet, largest, readout, settle, smallest
from mpinas.search import Genome
from mpinas.tasks.protocol import Samples, Task
from mpinas.training.checkpoint import Checkpoint
from mpinas.training.collectives import Collectives
from mpinas.training.loop import CHECK_STEPS, Callbacks, Diverged, check, judge, leader_says, take
from mpinas.training.recipe import Recipe, batches, draw_mirrored

#: What is enough for the statistics of a subnet.
RECALIBRATION_BATCHES = 32
#: Of a last layer that moves, its inputs normalised, by 1: what that costs beside the loss. See ADR 15.
READOUT_COST = 0.01


@dataclass(frozen=True, slots=True)
class Sandwich:
    """How a supernet is trained.

    Attributes
    ----------
    recipe
        As for one network; its `epochs.full` is what the schedule runs over.
    subnets
        How many a step trains, two at least: the largest, the smallest, and others drawn from the space.
    distillation
        Weight of the largest's outputs in what the others learn; the rest is that of the targets.
    """

    recipe: Recipe
    subnets: int = 4
    distillation: float = 0.25


def make_supernet_optimizer(
    supernet: Supernet, settings: Sandwich, group: Collectives, state: dict[int, Any] | None = None
) -> torch.optim.Optimizer:
    """AdamW with its `state` as an earlier one left it; the supernet becomes the leader's. `train_supernet` adds up
    the ranks' gradients itself: a step goes through several networks, none of which uses all parameters."""
    recipe = settings.recipe
    group.broadcast(supernet)
    optimizer = torch.optim.AdamW(
        supernet.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    if state is not None:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return optimizer


def begin_with_constant(supernet: Supernet, task: Task, targets: torch.Tensor) -> None:
    """Let every subnet answer what costs least where one answer serves all `targets`, whatever its input.

    Answers that begin far off are mended first by steps that differ from subnet to subnet, and what these leave in the
    shared weights takes longer to undo than a network by itself takes to learn.
    """
    answer = torch.zeros(supernet.outputs, requires_grad=True)
    optimizer = torch.optim.LBFGS([answer], max_iter=100, line_search_fn="strong_wolfe")

    def cost() -> torch.Tensor:
        optimizer.zero_grad()
        loss = task.loss(answer.expand(len(targets), -1), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(cost)  # type: ignore[no-untyped-call]
    supernet.answer(answer.detach())


def train_supernet(
    supernet: Supernet,
    optimizer: torch.optim.Optimizer,
    task: Task,
    samples: tuple[Samples, Samples],
    settings: Sandwich,
    group: Collectives,
    callbacks: Callbacks,
) -> int:
    """Train in place on samples[0]; epochs done in all. `callbacks.on_epoch` hears the error on samples[1] of the
    largest subnet, adapted, of the first family that has one.

    Fewer epochs than asked for where the leader was told to pause. What is drawn follows from the seed and the number
    of the epoch or step, so a training goes on from a checkpoint as if it had never stopped.

    Raises
    ------
    Diverged, Abandoned
        On all ranks alike.
    """
    training, _ = samples
    recipe, epochs = settings.recipe, settings.recipe.epochs
    steps_per_epoch = max(1, len(training) // recipe.batch_size)
    step = first = epochs.done * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda since: recipe.factor(first + since, steps_per_epoch))
    epoch = epochs.done
    for epoch in range(epochs.done + 1, epochs.until + 1):
        supernet.train()
        mirrored = draw_mirrored(len(training), recipe.seed, epoch) if recipe.flips else None
        for batch in batches(len(training), recipe.batch_size, seed=(recipe.seed, epoch)):
            mine = batch[group.rank :: group.size]
            seen = take(training, mine, recipe.device, None if mirrored is None else mirrored[:, mine])
            optimizer.zero_grad()
            loss = _backward(supernet, task, seen, settings, step, len(mine) * group.size / len(batch))
            _average_gradients(supernet, group)
            optimizer.step()
            schedule.step()
            step += 1
            if step % CHECK_STEPS == 1 or step % steps_per_epoch == 0:
                check(loss, group, callbacks)
        group.average_buffers(supernet)
        _, metrics = next(judge_families(supernet, task, samples, group, recipe))
        callbacks.on_epoch(epoch, metrics["error"])
        if epoch < epochs.until and callbacks.should_pause and leader_says(callbacks.should_pause, group):
            break
    return epoch


def draw_subnets(supernet: Supernet, settings: Sandwich, step: int) -> list[Genome]:
    """The genomes that a step trains, the largest first, the same on every rank. Families take turns."""
    space = supernet.space
    families = list(zip(largest(space), smallest(space), strict=True))
    rng = np.random.default_rng((settings.recipe.seed, step, 2))
    return [*families[step % len(families)], *(space.sample(rng) for _ in range(settings.subnets - 2))]


def _backward(
    supernet: Supernet,
    task: Task,
    batch: tuple[torch.Tensor, torch.Tensor],
    settings: Sandwich,
    step: int,
    share: float,
) -> torch.Tensor:
    """Gradients of one step, of this rank's part of the batch; the sum of the subnets' losses, times `share`."""
    inputs, targets = batch
    teacher: torch.Tensor | None = None
    total = torch.zeros((), device=inputs.device)
    for genome in draw_subnets(supernet, settings, step):
        outputs = supernet(_middle(inputs, int(genome["frames"])), genome)
        loss = task.loss(outputs, targets)
        if teacher is None:
            teacher = outputs.detach()
        else:
            loss = torch.lerp(loss, _distance(task, outputs, teacher), settings.distillation)
        loss = loss * share
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def _distance(task: Task, outputs: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """What is to be small where `outputs` are to be those of a teacher that learns at the same time.

    Classes: cross entropy with the teacher's probabilities (G. Hinton et al., Distilling the Knowledge in a Neural
    Network, 2015). The squared difference of logits, good with a teacher that has learned, has no bound: it drowned the
    targets, and the shared weights learned next to nothing. Numbers: the mean squared difference.
    """
    if task.device_metric == "misclassified":
        return F.cross_entropy(outputs, teacher.softmax(1))
    return F.mse_loss(outputs, teacher)


def _middle(inputs: torch.Tensor, frames: int) -> torch.Tensor:
    """(n, frames of the window, h, w) -> (n, frames, h, w): what `Samples.middle` gives."""
    start = (inputs.shape[1] - frames) // 2
    return inputs[:, start : start + frames]


def _average_gradients(supernet: Supernet, group: Collectives) -> None:
    """Make every gradient the mean over the ranks, in one message of one size.

    Ranks train the same subnets, so they lack the same gradients: those stay away, and the optimizer leaves alone
    what no subnet used.
    """
    if group.size == 1:
        return
    parameters = list(supernet.parameters())
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    mean = group.sum(torch.cat([grad.reshape(-1) for grad in grads])) / group.size
    for parameter, part in zip(parameters, torch.split(mean, [p.numel() for p in parameters]), strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(part.view_as(parameter))


def judge_families(
    supernet: Supernet, task: Task, samples: tuple[Samples, Samples], group: Collectives, recipe: Recipe
) -> Iterator[tuple[int, dict[str, float]]]:
    """(number of the family, what `judge_subnet` says of its largest subnet); families without a finite error left out.

    Raises
    ------
    Diverged
        No family has one.
    """
    found = False
    for number, genome in enumerate(largest(supernet.space)):
        try:
            metrics = judge_subnet(supernet, genome, task, samples, group, recipe)
        except Diverged:  # the others may be of use
            continue
        found = True
        yield number, metrics
    if not found:
        raise Diverged("no subnet's error is finite")


def judge_subnet(
    supernet: Supernet,
    genome: Genome,
    task: Task,
    samples: tuple[Samples, Samples],
    group: Collectives,
    recipe: Recipe,
) -> dict[str, float]:
    """Metrics on samples[1] of a subnet with inherited weights, adapted to samples[0]. The same on all ranks.

    Raises
    ------
    Diverged
        The error is not finite.
    """
    training, validation = (each.middle(int(genome["frames"])) for each in samples)
    network = adapt(supernet.subnet(genome), task, training, recipe.batch_size, group, recipe.device)
    return judge(network, task, validation, group, recipe)


def adapt(
    network: cnn3d.Network, task: Task, samples: Samples, batch_size: int, group: Collectives, device: torch.device
) -> cnn3d.Network:
    """Make a subnet with inherited weights a network of its own, in place, the same on all ranks: its BatchNorm
    statistics are taken from `samples`, its head is settled, its last layer fitted to what the others find.
    """
    recalibrate(network, samples, batch_size, group, device)
    settle(network)
    fit_readout(network, task, samples, batch_size, device)
    group.broadcast(network)  # unlike processors round differently
    return network


def fit_readout(
    network: cnn3d.Network, task: Task, samples: Samples, batch_size: int, device: torch.device
) -> None:  # fmt: skip
    """Move the last layer, in place, to the least loss on `samples`; the further it moves, the more it costs.

    What the layers before it find is of use where the shared last layer, which serves every width, field and scale, is
    not. Takes as many samples as `recalibrate`, but for rounding.
    """
    last, found = readout(network), []
    apart = -(-len(samples) // (batch_size * RECALIBRATION_BATCHES))
    indices = np.arange(0, len(samples), apart)
    hook = last.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    targets = []
    with torch.no_grad():
        for part in np.array_split(indices, -(-len(indices) // batch_size)):
            inputs, wanted = take(samples, part, device)
            network(inputs)
            targets.append(wanted)
    hook.remove()
    features, wanted = torch.cat(found), torch.cat(targets)  # (n, neurons), (n, ...)
    if not torch.isfinite(features).all():
        return  # who judges the network says what is wrong
    mean, spread = features.mean(0), features.std(0).clamp(min=1e-6)
    features = (features - mean) / spread
    own = last.weight.detach() * spread  # (outputs, neurons)
    weight = own.clone().requires_grad_()
    bias = (last.bias.detach() + last.weight.detach() @ mean).requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def cost() -> torch.Tensor:
        optimizer.zero_grad()
        loss = task.loss(features @ weight.T + bias, wanted) + READOUT_COST * (weight - own).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(cost)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        last.weight.copy_(weight / spread)
        last.bias.copy_(bias - last.weight @ mean)


def recalibrate(model: nn.Module, samples: Samples, batch_size: int, group: Collectives, device: torch.device) -> None:
    """Take BatchNorm statistics anew, as their mean over batches of `samples`, the same on all ranks.

    Up to RECALIBRATION_BATCHES whole ones, each spread over all samples, as neighbours are alike; ranks take turns, and
    as many batches each. A model without BatchNorm is left as it is. Afterwards the model is in evaluation mode.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms:
        size = min(batch_size, len(samples))
        apart = len(samples) // size
        count = min(apart, RECALIBRATION_BATCHES)
        turns = count // group.size
        mine = range(group.rank, turns * group.size, group.size) if turns else range(count)
        with _statistics_only(model, norms), torch.no_grad():
            for first in mine:
                inputs = np.ascontiguousarray(samples.inputs[first::apart][:size])
                model(torch.from_numpy(inputs).to(device))
        group.average_buffers(model)
    model.eval()


@contextmanager
def _statistics_only(model: nn.Module, norms: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Within, BatchNorm alone is in training mode, and its statistics are those of all batches since."""
    before = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    yield
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def checkpoint_of(
    supernet: Supernet, optimizer: torch.optim.Optimizer, settings: Sandwich, epochs_done: int, seconds: float = 0.0
) -> Checkpoint:
    """All that it takes to go on after `epochs_done`, on one rank of those that train."""
    state = optimizer.state_dict()["state"]
    own, seed = identity(supernet, settings), settings.recipe.seed
    return Checkpoint(own, seed, epochs_done, supernet.state_dict(), state, seconds)


def identity(supernet: Supernet, settings: Sandwich) -> Genome:
    """What a checkpoint of this training says it is, in place of a genome."""
    recipe = settings.recipe
    shapes = [(name, [*tensor.shape]) for name, tensor in supernet.state_dict().items()]
    return {
        **{gene.name: repr(gene.choices) for gene in supernet.space.genes},
        "weights": hashlib.sha256(repr(shapes).encode()).hexdigest(),
        "subnets": settings.subnets,
        "distillation": settings.distillation,
        "epochs": recipe.epochs.full,
        "batch_size": recipe.batch_size,
        "training": repr((recipe.learning_rate, recipe.weight_decay, recipe.flips)),
    }
