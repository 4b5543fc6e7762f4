"""Run by test_group.py under mpirun: every rank is a member of one group; rank 0 writes what it found as JSON."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np
import torch
from mpi4py import MPI

from mpinas import config
from mpinas.coordination import messages as msg
from mpinas.history.run_folder import RunFolder
from mpinas.models import Networks, baseline_genome, make_space
from mpinas.parallel.group import Grouping
from mpinas.parallel.horovod import HorovodCollectives
from mpinas.parallel.trainer_loop import Crew
from mpinas.parallel.world import Post, Stalled, end_job
from mpinas.tasks import Samples, make_task
from mpinas.training.candidate import Trainer
from mpinas.training.heritage import Heritage
from mpinas.training.loop import Callbacks, judge, train
from mpinas.training.recipe import Epochs, Recipe, make_optimizer

task = make_task(config.Task(name="digits"), seed=0)
networks = Networks("cnn3d", task.input_shape, task.outputs)
samples = task.load()


def parameters_after(comm, batch_size, epochs=1):
    """The baseline (it has no BatchNorm, so that whole batches and shards must agree) after a few steps."""
    collectives = HorovodCollectives(comm)
    collectives.open()
    torch.manual_seed(comm.Get_rank())  # ranks start apart on purpose: the leader's weights must win
    model = networks.build(baseline_genome("digits-cnn"))
    few = Samples(samples[0].inputs[:96], samples[0].targets[:96])
    recipe = Recipe(Epochs.whole(epochs), batch_size, 1e-3, 0.0, True, 7, torch.device("cpu"))
    optimizer = make_optimizer(model, recipe, collectives)
    _, metrics = train(model, optimizer, task, (few, samples[1]), recipe, collectives, Callbacks())
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    collectives.close()
    return flat, metrics


def gradient(comm):
    world = comm.Get_size()
    # 33: not divisible by 2 or 5, so the shards are unequal
    flat, metrics = parameters_after(comm, batch_size=33)
    everyone = comm.gather(flat.numpy(), root=0)
    alone, alone_metrics = parameters_after(MPI.COMM_SELF, batch_size=33) if comm.Get_rank() == 0 else (None, None)
    if comm.Get_rank() == 0:
        return {
            "ranks": world,
            "equal_on_all_ranks": all(np.array_equal(everyone[0], other) for other in everyone),
            "difference_to_one_process": float(np.abs(everyone[0] - alone.numpy()).max()),
            "moved": float(alone.std()),
            "errors": [metrics["error"], alone_metrics["error"]],
            "entropies": [metrics["cross_entropy"], alone_metrics["cross_entropy"]],
        }
    return None


def buffers(comm):
    """A network with BatchNorm: its statistics are made equal, and the shared judgement is that of one process."""
    collectives = HorovodCollectives(comm)
    collectives.open()
    genome = make_space("cnn3d", task.input_shape).sample(np.random.default_rng(3))
    model = networks.build(genome)
    recipe = Recipe(Epochs.whole(2), 32, 2e-3, 0.0, False, 7, torch.device("cpu"))
    optimizer = make_optimizer(model, recipe, collectives)
    _, metrics = train(model, optimizer, task, samples, recipe, collectives, Callbacks())
    flat = torch.cat([b.reshape(-1).float() for b in model.buffers()]).numpy()
    everyone = comm.gather(flat, root=0)
    collectives.close()
    alone = None
    if comm.Get_rank() == 0:
        solo = HorovodCollectives(MPI.COMM_SELF)
        solo.open()
        alone = judge(model, task, samples[1], solo, recipe)
        solo.close()
    if comm.Get_rank() == 0:
        return {
            "equal_on_all_ranks": all(np.array_equal(everyone[0], other) for other in everyone),
            "errors": [metrics["error"], alone["error"]],
            "entropies": [metrics["cross_entropy"], alone["cross_entropy"]],
        }
    return None


class Lost(Trainer):
    """The last of the group has lost its device: there is none by that name that computes."""

    def evaluate(self, group, genome, seed, epochs, files, callbacks):
        if group.rank == group.size - 1:
            torch.ones(1, device=self.device).item()
        return {"error": group.sum(torch.ones(1)).item()}, 0.0


def lose(comm):
    """What each rank says."""
    members = tuple(range(comm.Get_size()))
    device = torch.device("meta" if comm.Get_rank() == members[-1] else "cpu")
    trainer = Lost(task, Heritage(networks, device), samples, None, device, 32)
    said = []
    order = msg.Evaluate(3, 1, baseline_genome("digits-cnn"), 5, members, 0, 0, 1, 1)
    Crew(comm.Get_rank(), trainer, RunFolder(Path("run")), Grouping(comm), Post()).execute(
        order, said.append, lambda: False
    )
    return comm.gather([[type(each).__name__, getattr(each, "rank", None)] for each in said], root=0)


def hang(comm):
    """The last rank never comes to the collective; then it must not be waited for for ever."""

    def act(collectives):
        if comm.Get_rank() == comm.Get_size() - 1:
            threading.Event().wait()
        return collectives.sum(torch.ones(1)).item()

    try:
        Grouping(comm, patience_s=2.0).together(tuple(range(comm.Get_size())), act)
    except Stalled as error:
        end_job(comm, str(error))


if __name__ == "__main__":
    found = {"gradient": gradient, "buffers": buffers, "lose": lose, "hang": hang}[sys.argv[1]](MPI.COMM_WORLD)
    if found is not None:
        print("FOUND " + json.dumps(found))
