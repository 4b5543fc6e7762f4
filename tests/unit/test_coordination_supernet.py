"""Strategies in virtual time: shared weights first, the front trained on; and waiting for the baseline."""

from __future__ import annotations

import pytest
from virtual_time import World

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.ledger import BASELINE
from mpinas.coordination.lifecycle import State

SUPERNET = {"groups": 3, "evaluations": 20, "rungs": (0, 10), "supernet_epochs": 30, "ahead_min": 4}


def trained(world):
    """(candidate, rung) in the order of their orders."""
    return [(order.candidate, order.rung) for _, order in world.sent if isinstance(order, msg.Evaluate)]


def test_all_trainers_train_the_supernet_first_while_candidates_are_measured():
    world = World(**SUPERNET)
    world.run(until=lambda w: w.ledger.measured >= 4 and w.sent)
    assert [order for _, order in world.sent] == [msg.TrainSupernet(1, 0, (1, 2, 3), 30)]
    assert not world.ledger.supernet.metrics, "measured before anything can be trained"
    world.run()
    assert world.ledger.finished.startswith("20 of 20")
    assert len([order for _, order in world.sent if isinstance(order, msg.TrainSupernet)]) == 1


class Shallow(World):
    """Depth costs time and brings nothing: most candidates are dominated."""

    def error(self, order, epochs):
        return super().error(order, epochs) * order.genome["depth"] ** 0.5


def test_candidates_are_judged_by_what_they_inherit_and_the_front_is_trained():
    world = Shallow(**SUPERNET)
    world.run()
    ledger, orders = world.ledger, trained(world)
    assert (BASELINE, 1) in orders
    assert (BASELINE, 0) not in orders, "the baseline inherits nothing"
    judged = [candidate for candidate, rung in orders if rung == 0]
    assert sorted(judged) == list(range(1, 20))
    full = [candidate for candidate, rung in orders if rung == 1]
    assert len(full) < 14, "who cannot join the front is not trained"
    assert all(ledger.candidates[id_].rung == 1 for id_ in ledger.front), "nobody is on the front by what it inherited"
    assert len(ledger.front) >= 3
    first_full = orders.index(next(each for each in orders if each[1] == 1 and each[0] != BASELINE))
    assert first_full > len(judged) - 1, "first all are judged"
    by_inheritance = [order for _, order in world.sent if isinstance(order, msg.Evaluate) and order.rung == 0]
    assert all((order.epochs, order.epochs_done, order.epochs_full) == (0, 0, 10) for order in by_inheritance)


def test_a_supernet_that_fails_ends_the_run_in_words():
    class Hopeless(World):
        def train_supernet(self, group, order):
            return 5.0, msg.SupernetFailed(group, order.candidate, order.attempt, "diverged", "the loss is nan")

    world = Hopeless(**SUPERNET)
    world.run()
    assert world.ledger.finished == "the supernet could not be trained: diverged: the loss is nan"
    assert not trained(world)


def test_a_job_that_ends_while_the_supernet_is_trained_is_taken_up():
    world = World(**SUPERNET)
    world.run(until=lambda w: w.ledger.groups)
    world.later(1.0, ev.StopRequested("TERM"))
    world.run()
    assert not world.ledger.supernet.metrics
    resumed = World(**SUPERNET, journal=world.journal)
    resumed.run()
    assert resumed.sent[0][1] == msg.TrainSupernet(2, 0, (1, 2, 3), 30)
    assert resumed.ledger.finished.startswith("20 of 20")
    again = World(**{**SUPERNET, "evaluations": 24}, journal=resumed.journal)
    again.run()
    assert not [order for _, order in again.sent if isinstance(order, msg.TrainSupernet)], "it is trained once"
    assert again.ledger.count(State.EVALUATED) == 24


def test_a_supernet_is_put_aside_at_the_end_of_its_epoch():
    world = World(**SUPERNET)
    world.run(until=lambda w: w.ledger.groups)
    began_s, took_s = world._began[1]
    world.later(1.0, ev.StopRequested("USR2"))
    world.run()
    ((paused_s, paused),) = [(time, event) for time, event in world.journal if isinstance(event, msg.Paused)]
    epoch_s = took_s / 30
    epochs = 1.0 // epoch_s + 1
    assert (paused.candidate, paused.epochs_done) == (msg.SUPERNET, epochs)
    assert paused_s == pytest.approx(began_s + epochs * epoch_s)
    assert world.ledger.stopped == 3
    assert not world.ledger.supernet.failures
    resumed = World(**SUPERNET, journal=world.journal)
    resumed.run()
    assert resumed.sent[0][1] == msg.TrainSupernet(2, 0, (1, 2, 3), 30)
    assert resumed.ledger.finished.startswith("20 of 20")


def test_a_later_job_tries_a_failed_supernet_again():
    class Hopeless(World):
        def train_supernet(self, group, order):
            return 5.0, msg.SupernetFailed(group, order.candidate, order.attempt, "memory", "no more of it")

    failed = Hopeless(**SUPERNET).run()
    assert failed.ledger.finished
    assert World(**SUPERNET, journal=failed.journal).run().ledger.finished.startswith("20 of 20")


def test_a_supernet_is_trained_by_no_more_than_the_batch_is_enough_for():
    world = World(**{**SUPERNET, "groups": 9}, group_size_max=4).run()
    assert world.sent[0][1].members == (1, 2, 3, 4)
    assert world.ledger.finished.startswith("20 of 20")


class AtOnce(World):
    """Trainers that are ready before anything else has happened."""

    def ready(self, rank, host):
        return 0.0, msg.Ready(rank, host, "cpu")


def test_trainers_may_be_there_before_there_is_a_baseline():
    assert AtOnce(groups=2, evaluations=4, after_baseline=True).run().ledger.finished.startswith("4 of 4")


@pytest.mark.parametrize("groups", [1, 4])
def test_who_learns_from_the_baseline_waits_for_it(groups):
    world = World(groups=groups, evaluations=8, after_baseline=True)
    world.run()
    orders = [(leader, order) for leader, order in world.sent if isinstance(order, msg.Evaluate)]
    assert orders[0][1].candidate == BASELINE
    assert len(orders[0][1].members) == groups, "everybody waits for it: all train it"
    events = [event for _, event in world.journal]
    ended = next(i for i, e in enumerate(events) if isinstance(e, msg.Evaluated) and e.candidate == BASELINE)
    assert all(e.candidate == BASELINE for e in events[:ended] if isinstance(e, ev.Ordered))
    assert world.ledger.count(State.EVALUATED) == 8
