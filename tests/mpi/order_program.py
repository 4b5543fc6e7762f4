"""Run by test_orders.py under mpirun: rank 0 plays the coordinator through the real channel, the others are trainers.

Prints what came of each scene as JSON. Scenes follow each other in one job; in the last one all are told to stop.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from mpi4py import MPI
from pause_scenes import alone, pause
from playing import BASELINE, RESTLESS, Player, gap, same_sizes

from mpinas import config
from mpinas.coordination import messages as msg
from mpinas.examples.digits import DigitsTask
from mpinas.history.run_folder import RunFolder
from mpinas.models import Networks
from mpinas.parallel.group import Grouping
from mpinas.parallel.trainer_loop import Crew, run_trainer
from mpinas.parallel.world import Post
from mpinas.tasks import Samples
from mpinas.training.candidate import Trainer
from mpinas.training.heritage import Heritage
from mpinas.training.loop import Callbacks, train
from mpinas.training.recipe import Epochs, Recipe, make_optimizer

REGROUPINGS = 200


class FickleTask(DigitsTask):
    """Fails in the middle of a training where the genome says that this rank does."""

    steps = 0
    genome: ClassVar[dict] = {}

    def loss(self, outputs, targets):
        self.steps += 1
        if self.steps > 3 and MPI.COMM_WORLD.Get_rank() == self.genome.get("traitor"):
            match self.genome["how"]:
                case "raise":
                    raise ValueError("treason")
                case "memory":
                    torch.empty(2**60)
                case "nan":
                    return super().loss(outputs, targets) * float("nan")
        return super().loss(outputs, targets)


class TestTrainer(Trainer):
    """Tells the task whose turn it is, and knows a genome "tiny": two steps, then everybody's parameters compared."""

    def evaluate(self, group, genome, seed, epochs, files, callbacks):
        self.task.steps, self.task.genome = 0, genome
        if "tiny" not in genome:
            return super().evaluate(group, genome, seed, epochs, files, callbacks)
        torch.manual_seed(MPI.COMM_WORLD.Get_rank())  # apart on purpose: the leader's must win
        model = self.networks.build(genome)
        recipe = Recipe(Epochs.whole(1), 16, 1e-3, 0.0, False, seed, self.device)
        optimizer = make_optimizer(model, recipe, group)
        few = tuple(Samples(part.inputs[:32], part.targets[:32]) for part in self.samples)
        _, metrics = train(model, optimizer, self.task, few, recipe, group, Callbacks())
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]).numpy()
        digests = torch.zeros(group.size, 32)
        digests[group.rank] = torch.tensor(list(hashlib.sha256(flat.tobytes()).digest()))
        same = float(len(group.sum(digests).unique(dim=0)))
        return {"error": metrics["error"], "different": same, "size": float(group.size)}, 0.1


def regroup(player):
    """Whoever is free is thrown together anew, again and again."""
    rng = np.random.default_rng(player.trainers[-1])
    free, at_work, sizes = set(player.trainers), {}, []
    sent, wrong = 0, []
    while sent < REGROUPINGS or at_work:
        # now and then all are waited for, or the groups would be small for ever
        if free and sent < REGROUPINGS and (sent % 5 or not at_work):
            size = int(rng.integers(1, len(free) + 1))
            members = tuple(int(rank) for rank in rng.permutation(sorted(free))[:size])
            at_work[player.evaluate(members, {**BASELINE, "tiny": 1})] = members
            free -= set(members)
            sent += 1
            continue
        report = player.answer()
        members = at_work.pop(report.candidate)
        free |= set(members)
        expected = {"different": 1.0, "size": float(len(members))}
        if not isinstance(report, msg.Evaluated) or not expected.items() <= report.metrics.items():
            wrong.append(repr(report))
        elif report.group != members[0]:
            wrong.append(f"{report} of {members}")
        sizes.append(len(members))
    return {"orders": len(sizes), "sizes": sorted(set(sizes)), "wrong": wrong}


def fail(player):
    """One of a group fails; another group goes on, and those that failed work with others next."""
    pair, others = player.trainers[:2], player.trainers[2:]
    found = []
    for how in ("raise", "memory", "nan"):
        bad = player.evaluate(pair, {**BASELINE, "traitor": pair[-1], "how": how}, until=2, full=2)
        good = player.evaluate(others) if others else None
        reports = {report.candidate: report for report in (player.answer() for _ in range(1 + bool(others)))}
        found.append([reports[bad].reason, reports[bad].detail, good is None or "error" in reports[good].metrics])
    mixed = [player.trainers[::2], player.trainers[1::2]]
    for members in filter(None, mixed):
        player.evaluate(members)
    return {"failed": found, "next": [type(player.answer()).__name__ for _ in filter(None, mixed)]}


def continue_(player):
    """From a checkpoint on, with as many ranks (others, where there are enough) and with more or fewer."""
    ranks = player.trainers
    found = {"bitwise": [], "close": [], "epochs": [], "lost": []}
    for genome, (before, after) in itertools.product((BASELINE, RESTLESS), same_sizes(ranks)):
        unbroken = player.trained(genome, [(before, 0, 4)])
        parts = player.trained(genome, [(before, 0, 2), (after, 2, 4)], found["epochs"])
        equal = all(torch.equal(parts[name], unbroken[name]) for name in unbroken)
        found["bitwise"].append([len(before), genome["flips"], equal])
    unbroken = player.trained(BASELINE, [(ranks[:1], 0, 4)])
    for plan in ([(ranks[:1], 0, 2), (ranks, 2, 4)], [(ranks, 0, 2), (ranks[:1], 2, 4)]):
        parts = player.trained(BASELINE, plan)
        found["close"].append(gap(parts, unbroken))
    candidate = player.evaluate(ranks, until=1, full=2)
    player.answer()
    player.folder.checkpoint_file(candidate).unlink()
    player.evaluate(ranks, candidate=candidate, done=1, until=2, full=2)
    report = player.answer()
    found["lost"] = [type(report).__name__, getattr(report, "reason", ""), getattr(report, "detail", "")]
    return found


def retrain(player):
    """A finalist with all ranks; and its first training, to compare."""
    first = player.evaluate(player.trainers, until=3, full=3)
    evaluated = player.answer()
    found = []
    for attempt, seed in ((2, 5), (3, 6)):
        order = msg.Retrain(first, attempt, BASELINE, seed, player.trainers, 3)
        before = player.folder.weights_file(first).read_bytes()
        player.channel.send(order.members, order)
        report = player.answer()
        untouched = player.folder.weights_file(first).read_bytes() == before
        found.append([type(report).__name__, report.attempt, report.metrics, report.test_metrics, untouched])
    bad = msg.Retrain(first, 4, {**BASELINE, "learning_rate": 1e38}, 5, player.trainers, 3)
    player.channel.send(bad.members, bad)
    report = player.answer()
    return {"first": evaluated.metrics, "again": found, "bad": [type(report).__name__, report.reason]}


def stop(player):
    """All but one are in the middle of a training that would last for hours."""
    busy = player.trainers[:-1] or player.trainers
    player.evaluate(busy, until=100_000, full=100_000)
    player.next(msg.Progress)
    player.channel.send(player.trainers, msg.Pause(0, 1))  # of long ago
    player.channel.send(player.trainers, msg.Stop())
    reports = [player.next(msg.Stopped, *msg.Answer.__args__) for _ in player.trainers]
    return [[type(report).__name__, getattr(report, "rank", None)] for report in reports]


def main():
    world = MPI.COMM_WORLD
    folder = RunFolder(Path(sys.argv[1]))
    control = world.Dup()
    first_free = handle()
    torch.set_num_threads(1)
    task = FickleTask(config.Task(name="digits"), 0)
    training, validation = task.load()
    few = Samples(training.inputs[:320], training.targets[:320])  # ten steps an epoch
    networks = Networks("cnn3d", task.input_shape, task.outputs)
    trainer = TestTrainer(
        task, Heritage(networks, torch.device("cpu")), (few, validation), task.load_test(), torch.device("cpu"), 32
    )
    if world.Get_rank() > 0:
        run_trainer(Crew(world.Get_rank(), trainer, folder, Grouping(world), Post()), control)
        found = None
    else:
        player = Player(control, folder)
        found = {"ready": sorted(player.next(msg.Ready).rank for _ in player.trainers)}
        found["alone"] = alone(trainer, folder)
        for scene in (regroup, fail, continue_, pause, retrain, stop):
            began = time.perf_counter()
            found[scene.__name__.strip("_")] = scene(player)
            print(f"{scene.__name__}: {time.perf_counter() - began:.1f} s", flush=True)
    left = world.gather(handle() - first_free, root=0)
    if found is not None:
        print("FOUND " + json.dumps({**found, "communicators_left": left}))


def handle():
    """The lowest number that MPI gives a communicator now: it rises where communicators are not freed."""
    comm = MPI.COMM_SELF.Dup()
    number = comm.py2f()
    comm.Free()
    return number


if __name__ == "__main__":
    main()
