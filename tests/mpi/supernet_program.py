"""Run by test_supernet_group.py under mpirun: every rank trains the same supernet; rank 0 writes its findings."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from mpi4py import MPI

from mpinas import config
from mpinas.models import cnn3d
from mpinas.models.elastic import Supernet, largest
from mpinas.parallel.horovod import HorovodCollectives
from mpinas.tasks import Samples, make_task
from mpinas.training.checkpoint import read_archive, unpack, write_checkpoint
from mpinas.training.collectives import SerialCollectives
from mpinas.training.loop import Callbacks
from mpinas.training.recipe import Epochs, Recipe, batches
from mpinas.training.supernet import (
    Sandwich,
    checkpoint_of,
    identity,
    make_supernet_optimizer,
    recalibrate,
    train_supernet,
)

SPACE = cnn3d.space((1, 8, 8)).narrowed(
    {"stages": [1, 2], "stem_width": [8], "width1": [8, 12], "width2": [8, 12], "kernel_space": [3], "head": ["grid"]}
)
CPU = torch.device("cpu")
comm = MPI.COMM_WORLD
task = make_task(config.Task(name="digits"), seed=0)
full = task.load()
# 33 a batch: shares of unequal size, and never of one sample, which BatchNorm cannot learn from
samples = (Samples(full[0].inputs[:99], full[0].targets[:99]), full[1])


def settings(done, until):
    return Sandwich(Recipe(Epochs(done, until, 2), 33, 2e-3, 0.01, True, 7, CPU))


def flat(model):
    return torch.cat([tensor.detach().double().reshape(-1) for tensor in model.state_dict().values()]).numpy()


def equal_everywhere(numbers):
    everyone = comm.allgather(numbers)
    return all(np.array_equal(everyone[0], other) for other in everyone)


def main(group, folder):
    torch.manual_seed(comm.Get_rank())  # ranks start apart on purpose: the leader's weights must win
    supernet = Supernet(SPACE, task.input_shape, task.outputs)
    found = {"ranks": group.size, "started_apart": not equal_everywhere(flat(supernet))}
    heard = []
    callbacks = Callbacks(on_epoch=lambda *it: heard.append(it))
    optimizer = make_supernet_optimizer(supernet, settings(0, 2), group)
    begun = flat(supernet)
    train_supernet(supernet, optimizer, task, samples, settings(0, 2), group, callbacks)
    found["learned"] = not np.array_equal(flat(supernet), begun)
    found["equal_on_all_ranks"] = equal_everywhere(flat(supernet))
    found["same_error_on_all_ranks"] = equal_everywhere(np.array(heard))

    network = supernet.subnet(largest(SPACE)[0])
    alike = []
    for few in (99, 20):  # a share of the batches for each rank, and fewer batches than ranks
        recalibrate(network, Samples(samples[0].inputs[:few], None), 16, group, CPU)
        anew = (network.get_buffer("features.0.1.running_mean") != 0).any() and network.training is False
        alike.append(equal_everywhere(flat(network)) and bool(anew))
    found["recalibrated_alike"] = all(alike)
    found["resumed_is_unbroken"] = np.array_equal(resumed(group, folder, heard), flat(supernet))
    found["gradient_is_the_mean"] = gradient_is_the_mean(group)
    return found


def resumed(group, folder, unbroken):
    """One epoch, a checkpoint, and in what might be another job the rest."""
    path, heard = folder / "supernet.pt", []
    torch.manual_seed(comm.Get_rank())
    supernet = Supernet(SPACE, task.input_shape, task.outputs)
    optimizer = make_supernet_optimizer(supernet, settings(0, 1), group)
    train_supernet(supernet, optimizer, task, samples, settings(0, 1), group, Callbacks(lambda *it: heard.append(it)))
    if group.rank == 0:
        write_checkpoint(checkpoint_of(supernet, optimizer, settings(0, 1), 1), path)
    archive = group.broadcast_bytes(read_archive(path) if group.rank == 0 else b"")
    again = Supernet(SPACE, task.input_shape, task.outputs)
    checkpoint = unpack(archive, identity(again, settings(1, 2)), 7)
    again.load_state_dict(checkpoint.model)
    optimizer = make_supernet_optimizer(again, settings(1, 2), group, checkpoint.optimizer)
    train_supernet(again, optimizer, task, samples, settings(1, 2), group, Callbacks(lambda *it: heard.append(it)))
    assert heard == unbroken
    return flat(again)


def moved_by_one_step(group, few):
    """How far plain gradient descent moves each parameter from the same start, where `few` are one batch."""
    torch.manual_seed(0)
    supernet = Supernet(SPACE, task.input_shape, task.outputs)
    start = [p.detach().clone() for p in supernet.parameters()]
    how = Sandwich(Recipe(Epochs.whole(1), len(few), 0.1, 0.0, False, 7, CPU))
    optimizer = torch.optim.SGD(supernet.parameters(), 0.1)
    train_supernet(supernet, optimizer, task, (few, full[1]), how, group, Callbacks())
    return torch.cat([(p.detach() - s).reshape(-1) for p, s in zip(supernet.parameters(), start, strict=True)]).numpy()


def gradient_is_the_mean(group):
    """Each rank alone with its share of the batch: the group moves by the mean, shares weighed by their size."""
    few = Samples(full[0].inputs[:33], full[0].targets[:33])
    together = moved_by_one_step(group, few)
    (batch,) = batches(33, 33, seed=(7, 1))
    mine = batch[group.rank :: group.size]
    alone = moved_by_one_step(SerialCollectives(), Samples(few.inputs[mine], few.targets[mine]))
    expected = comm.allreduce(alone * (len(mine) / 33))
    scale = np.abs(expected).max()
    return bool(scale > 1e-4 and np.abs(together - expected).max() < 1e-3 * scale)


if __name__ == "__main__":
    collectives = HorovodCollectives(comm)
    collectives.open()
    with tempfile.TemporaryDirectory() as folder:
        found = main(collectives, Path(folder))
    collectives.close()
    if comm.Get_rank() == 0:
        print("FOUND " + json.dumps(found))
