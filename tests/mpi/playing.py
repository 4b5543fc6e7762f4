"""Rank 0 as the scenes of order_program.py play it: the coordinator's end of the real channel, and nothing decided."""

from __future__ import annotations

import itertools
import time

import numpy as np
import torch

from mpinas.coordination import messages as msg
from mpinas.models import baseline_genome, make_space
from mpinas.parallel.channel import Backoff, MpiChannel

BASELINE = baseline_genome("digits-cnn")
#: BatchNorm and mirrored samples: all that chance and buffers can spoil.
RESTLESS = {**make_space("cnn3d", (1, 8, 8)).sample(np.random.default_rng(1)), "flips": True, "learning_rate": 1e-3}


class Player:
    """Rank 0: gives orders, waits for reports."""

    def __init__(self, control, folder):
        self.channel = MpiChannel(control)
        self.folder = folder
        self.trainers = tuple(range(1, control.Get_size()))
        self.waiting = []
        self.candidates = itertools.count()

    def next(self, *kinds):
        """The next report of one of these kinds; others are dropped."""
        backoff = Backoff()
        while True:
            while not self.waiting:
                time.sleep(backoff.next_s())
                self.waiting = self.channel.receive()
            if isinstance(report := self.waiting.pop(0), kinds):
                return report

    def evaluate(self, members, genome=BASELINE, candidate=None, done=0, until=1, full=1, attempt=1):
        """Send, without waiting; the candidate's number."""
        candidate = next(self.candidates) if candidate is None else candidate
        order = msg.Evaluate(candidate, attempt, genome, 5, tuple(members), 0, done, until, full)
        self.channel.send(order.members, order)
        return candidate

    def answer(self):
        return self.next(*msg.Answer.__args__)

    def weights(self, candidate):
        return torch.load(self.folder.weights_file(candidate), weights_only=True)

    def trained(self, genome, parts, epochs=None):
        """The weights after these parts of a training over 4 epochs: (members, epochs done, until)."""
        candidate = next(self.candidates)
        for members, done, until in parts:
            self.evaluate(members, genome, candidate, done, until, 4)
            while isinstance(report := self.next(msg.Progress, *msg.Answer.__args__), msg.Progress):
                if epochs is not None:
                    epochs.append(report.epoch)
            assert isinstance(report, msg.Evaluated), report
        return self.weights(candidate)


def gap(one, other):
    """The largest difference between two sets of weights."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def same_sizes(ranks):
    """Pairs of groups of one size, of other ranks where there are enough."""
    pairs = [(ranks[:1], ranks[-1:])]
    if len(ranks) >= 2:
        pairs.append((ranks[:2], ranks[-2:][::-1]))
    if len(ranks) >= 4:
        pairs.append((ranks[:3], ranks[-3:]))
    return pairs
