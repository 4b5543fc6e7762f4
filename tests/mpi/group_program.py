"""Run by test_group.py under mpirun: every rank is a member of one group; rank 0 writes what it found as JSON."""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from mpi4py import MPI

from mpinas import config
from mpinas.coordination import messages as msg
from mpinas.history.run_folder import RunFolder
from mpinas.models import baseline_genome, make_space
from mpinas.parallel.horovod import HorovodCollectives
from mpinas.parallel.trainer_loop import MpiCrew
from mpinas.tasks import Samples, make_task
from mpinas.training.candidate import Trainer
from mpinas.training.loop import Recipe, judge, train

task = make_task(config.Task(name="digits"), seed=0)
samples = task.load()


def parameters_after(comm, batch_size, epochs=1):
    """The baseline (it has no BatchNorm, so that whole batches and shards must agree) after a few steps."""
    collectives = HorovodCollectives(comm)
    collectives.open()
    torch.manual_seed(comm.Get_rank())  # ranks start apart on purpose: the leader's weights must win
    from mpinas.models import build

    model = build(baseline_genome("digits-cnn"), task.input_shape, task.outputs)
    few = Samples(samples[0].inputs[:96], samples[0].targets[:96])
    recipe = Recipe(epochs, batch_size, 1e-3, 0.0, False, 7, torch.device("cpu"))
    metrics = train(model, task, (few, samples[1]), recipe, collectives)
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
    from mpinas.models import build

    model = build(genome, task.input_shape, task.outputs)
    recipe = Recipe(2, 32, 2e-3, 0.0, False, 7, torch.device("cpu"))
    metrics = train(model, task, samples, recipe, collectives)
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


def failures(comm):
    """One rank fails in the middle of a candidate: the group reports it and evaluates the next one."""

    class Treacherous(type(task)):
        calls = 0
        how = None

        def loss(self, outputs, targets):
            Treacherous.calls += 1
            if Treacherous.calls > 3 and comm.Get_rank() == comm.Get_size() - 1:
                if Treacherous.how == "raise":
                    raise ValueError("treason")
                if Treacherous.how == "memory":
                    torch.empty(2**60)
                if Treacherous.how == "nan":
                    return super().loss(outputs, targets) * float("nan")
            return super().loss(outputs, targets)

    collectives = HorovodCollectives(comm)
    trainer = Trainer(Treacherous(config.Task(name="digits"), 0), samples, None, collectives, torch.device("cpu"), 32)
    folder = RunFolder.existing(__import__("pathlib").Path(sys.argv[2]))
    crew = MpiCrew(0, tuple(range(comm.Get_size())), trainer, folder, comm, collectives)
    reports = []
    for number, how in enumerate(["raise", "memory", "nan", None]):
        Treacherous.calls, Treacherous.how = 0, how
        order = msg.Evaluate(number, 1, baseline_genome("digits-cnn"), 2, 0)
        crew.execute(order, reports.append, lambda: False)
    if comm.Get_rank() == 0:
        final = [r for r in reports if not isinstance(r, msg.Progress)]
        return [[type(r).__name__, r.candidate, getattr(r, "reason", ""), getattr(r, "detail", "")] for r in final]
    return None


if __name__ == "__main__":
    found = {"gradient": gradient, "buffers": buffers, "failures": failures}[sys.argv[1]](MPI.COMM_WORLD)
    if found is not None:
        print("FOUND " + json.dumps(found))
