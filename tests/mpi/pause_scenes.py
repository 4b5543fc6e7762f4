"""Scenes of order_program.py about pausing: by themselves, where it is known when each order arrives; and in groups."""

from __future__ import annotations

import itertools

import torch
from mpi4py import MPI
from playing import BASELINE, RESTLESS, gap, same_sizes

from mpinas.coordination import messages as msg
from mpinas.parallel.channel import MpiChannel, TrainerEnd
from mpinas.parallel.group import Grouping
from mpinas.parallel.trainer_loop import Crew
from mpinas.parallel.world import Post

#: So many epochs that a Pause is sure to come before they are done.
LONG = 1000


class Alone:
    """One process as both ends of the channel, so that each order arrives at a moment that the scene chooses."""

    def __init__(self, trainer, folder):
        self.control = MPI.COMM_SELF.Dup()
        self.channel, self.end = MpiChannel(self.control), TrainerEnd(self.control)
        self.crew = Crew(0, trainer, folder, Grouping(), Post())

    def send(self, *orders):
        for order in orders:
            self.channel.send((0,), order)

    def play(self, *orders, after=None):
        """What is reported of the next order. All of `orders` have come before, `after[n]` as epoch n ends."""
        self.send(*orders)

        def say(report):
            if isinstance(report, msg.Progress):
                self.send(*(after or {}).get(report.epoch, ()))
            self.end.report(report)

        self.crew.execute(self.end.wait_for_order(), say, self.end.order_waits, self.end.pause_asked)
        self.end.flush()
        return [told(report) for report in self.channel.receive()]


def told(report):
    match report:
        case msg.Progress():
            return report.epoch
        case msg.Paused():
            return f"Paused {report.candidate}.{report.attempt} after {report.epochs_done}"
        case msg.Stopped():
            return "Stopped"
        case _:
            return f"{type(report).__name__} {report.candidate}.{report.attempt}"


def alone(trainer, folder):
    """What a trainer makes of orders to pause and to stop, each come at a moment of its own."""
    one = Alone(trainer, folder)
    first, other, third = 1001, 1002, 1004

    def evaluate(candidate, attempt, done, until):
        return msg.Evaluate(candidate, attempt, BASELINE, 5, (0,), 0, done, until, 5)

    found = {
        "paused": one.play(evaluate(first, 1, 0, 5), after={2: [msg.Pause(first, 1)]}),
        "stale when idle and at work": one.play(
            msg.Pause(first, 1),
            evaluate(first, 2, 2, 5),
            msg.Pause(first, 1),
            msg.Pause(other, 2),
            msg.Pause(first, 3),
            after={4: [msg.Pause(first, 1)], 5: [msg.Pause(first, 2)]},
        ),
        "crossed the answer": one.play(evaluate(other, 1, 0, 2)),
        "in the last epoch": one.play(evaluate(other, 2, 2, 3), msg.Pause(other, 2)),
        "after that": one.play(evaluate(other, 3, 3, 5)),
        "before work begins": one.play(evaluate(third, 4, 0, 5), msg.Pause(third, 4)),
        "named after others": one.play(
            evaluate(third, 5, 1, 5), msg.Pause(third, 4), msg.Pause(third, 5), msg.Pause(first, 2)
        ),
        "retrained": one.play(msg.Retrain(first, 3, BASELINE, 5, (0,), 2), msg.Pause(first, 3)),
        "stopped at work": [
            one.play(evaluate(third, 6, 0, 5), msg.Pause(third, 6), msg.Stop()),
            one.play(msg.Pause(third, 6)),
        ],
        "stopped once paused": [
            one.play(evaluate(1003, 7, 0, 5), after={1: [msg.Pause(1003, 7), msg.Stop()]}),
            one.play(),
        ],
        "stopped when idle": one.play(msg.Pause(other, 7), msg.Stop()),
    }
    # in a world of one it is carried out as it is sent
    one.crew.execute(msg.Pause(first, 1), one.end.report, lambda: False)
    found["in a world of one"] = [told(report) for report in one.channel.receive()]
    one.control.Free()
    return found


def pause(player):
    """A group is paused, and others go on from there."""
    ranks = player.trainers
    found = {"bitwise": [], "larger": [], "stale": []}
    for genome, (before, after) in itertools.product((BASELINE, RESTLESS), same_sizes(ranks)):
        broken, unbroken, epochs = paused_and_unbroken(player, genome, before, after)
        equal = all(torch.equal(broken[name], unbroken[name]) for name in unbroken)
        found["bitwise"].append([len(before), genome["flips"], equal, epochs])
    # who led the first lends a hand to the second, with a Pause that it has not heard
    broken, unbroken, epochs = paused_and_unbroken(player, BASELINE, ranks[:1], ranks[::-1])
    found["larger"] = [gap(broken, unbroken), epochs]

    candidate = player.evaluate(ranks, until=LONG, full=LONG)
    player.next(msg.Progress)
    for stale in (msg.Pause(candidate - 1, 1), msg.Pause(candidate, 2)):
        player.channel.send(ranks[:1], stale)
    more = [type(player.next(msg.Progress, *msg.Answer.__args__)).__name__ for _ in range(5)]
    player.channel.send(ranks[:1], msg.Pause(candidate, 1))
    found["stale"] = [*more, type(player.answer()).__name__]
    return found


def paused_and_unbroken(player, genome, before, after):
    """Of a training that `before` is told to pause, and `after` goes on with for two epochs: its weights, those that
    `before` finds by itself, and which epochs the second group tells of, counted from the pause."""
    candidate = player.evaluate(before, genome, until=LONG, full=LONG)
    player.next(msg.Progress)
    player.channel.send(before[:1], msg.Pause(candidate, 1))
    paused = player.answer()
    assert isinstance(paused, msg.Paused), paused
    assert (paused.group, paused.candidate, paused.attempt) == (before[0], candidate, 1)
    assert paused.train_seconds > 0
    assert not player.folder.weights_file(candidate).exists()
    player.channel.send(before[:1], msg.Pause(candidate, 1))
    done = paused.epochs_done
    player.evaluate(after, genome, candidate, done, done + 2, LONG, attempt=2)
    reports = [player.next(msg.Progress, *msg.Answer.__args__) for _ in range(3)]
    assert isinstance(reports[-1], msg.Evaluated), reports
    whole = player.evaluate(before, genome, until=done + 2, full=LONG)
    player.answer()
    epochs = [report.epoch - done for report in reports[:-1]]
    return player.weights(candidate), player.weights(whole), epochs
