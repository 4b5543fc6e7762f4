"""The weights that all subnets of a space share: trained by a group, from their checkpoint to their file.

Must not know orders and reports, nor what becomes of the weights.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from mpinas import config
from mpinas.models.elastic import Supernet
from mpinas.tasks import Samples, Task
from mpinas.training.checkpoint import write_checkpoint
from mpinas.training.collectives import Collectives
from mpinas.training.loop import Callbacks
from mpinas.training.outcome import Paused
from mpinas.training.recipe import Epochs, Recipe
from mpinas.training.resumption import find_checkpoint
from mpinas.training.supernet import (
    Sandwich,
    begin_with_constant,
    checkpoint_of,
    identity,
    judge_families,
    make_supernet_optimizer,
    train_supernet,
)
from mpinas.training.weights import save_weights


def pretrain(
    supernet: Supernet,
    task: Task,
    samples: tuple[Samples, Samples],
    settings: Sandwich,
    files: tuple[Path, Path],
    group: Collectives,
    callbacks: Callbacks,
) -> tuple[dict[str, float], float] | Paused:
    """Train `supernet` in place, on from its checkpoint if there is one; (validation metrics of its best, seconds).

    Seconds are those of all jobs that trained it, as far as its checkpoint knows. `files`: of the weights, which the
    leader writes at the end, and of the checkpoint, which it writes after every epoch; the last one stays. A checkpoint
    that cannot be used counts as none. Raises Diverged, Abandoned, and whatever torch raises.
    """
    began = time.perf_counter()
    weights_file, checkpoint_file = files
    own = identity(supernet, settings)
    checkpoint = find_checkpoint(checkpoint_file, own, settings.recipe.seed, group)
    if checkpoint is None:
        assert samples[0].targets is not None
        begin_with_constant(supernet, task, torch.from_numpy(samples[0].targets))
    else:
        began -= checkpoint.seconds
        supernet.load_state_dict(checkpoint.model)
        epochs = replace(settings.recipe.epochs, done=checkpoint.epochs_done)
        settings = replace(settings, recipe=replace(settings.recipe, epochs=epochs))
    optimizer = make_supernet_optimizer(supernet, settings, group, checkpoint.optimizer if checkpoint else None)

    def on_epoch(epoch: int, error: float) -> None:
        if group.rank == 0:
            seconds = time.perf_counter() - began
            write_checkpoint(checkpoint_of(supernet, optimizer, settings, epoch, seconds), checkpoint_file)
        callbacks.on_epoch(epoch, error)

    done = train_supernet(supernet, optimizer, task, samples, settings, group, replace(callbacks, on_epoch=on_epoch))
    if done < settings.recipe.epochs.until:
        return Paused(done, time.perf_counter() - began)
    judged = dict(judge_families(supernet, task, samples, group, settings.recipe))
    strongest = min(judged, key=lambda number: judged[number]["error"])
    supernet.get_buffer("strongest").fill_(strongest)
    if group.rank == 0:
        save_weights(supernet, weights_file)
    return judged[strongest], time.perf_counter() - began


def sandwich_of(
    settings: config.Supernet, epochs: int, batch_size: int, seed: int, device: torch.device
) -> Sandwich:  # fmt: skip
    """How the experiment's [supernet] says that it is trained."""
    recipe = Recipe(Epochs.whole(epochs), batch_size, settings.learning_rate, settings.weight_decay, settings.flips,
                    seed, device)  # fmt: skip
    return Sandwich(recipe, settings.subnets)
