"""Devices that are slow or gone: predicted latencies keep trainers busy, and stand for nothing in the end."""

from dataclasses import replace

import numpy as np
import pytest
from virtual_time import World, deserted, error_of, latency_of

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.ledger import Ledger
from mpinas.coordination.lifecycle import State
from mpinas.search import SearchSpace
from mpinas.search.selection import hypervolume
from mpinas.simulation.durations import Fixed


class Outage(World):
    """The device is away between two moments; what it was asked meanwhile it answers afterwards."""

    def __init__(self, away_s, back_s, **arguments):
        super().__init__(**arguments)
        self.times = (away_s, back_s)
        self.later(away_s, ev.DeviceLost("gone"))
        self.later(back_s, ev.DeviceBack("agx"))

    def train(self, group, order):
        # Not all on the front: chance, the same for everyone who asks.
        seconds, report = super().train(group, order)
        report.metrics["error"] += 0.3 * (order.candidate * 7919 % 100) / 100
        return seconds, report

    @property
    def device_up(self):
        return not self.times[0] <= self.time < self.times[1]

    @device_up.setter
    def device_up(self, up):
        """It follows the clock."""

    def run(self, until=lambda world: world.left, events_max=100_000):
        if self.times[1] > self.time:
            super().run(lambda world: world.time >= self.times[1] or until(world), events_max)
            for answer in self.waiting_for_device:
                self.later(0.6, answer)
            self.waiting_for_device = []
        return super().run(until, events_max)


def predicted(world):
    return [e.candidate for _, e in world.journal if isinstance(e, ev.Predicted)]


def test_an_outage_costs_the_trainers_nothing_and_the_front_is_measured():
    away = Outage(35.0, 75.0, groups=4, evaluations=60).run()
    there = Outage(1e9, 1e9 + 1, groups=4, evaluations=60)
    World.run(there)
    assert predicted(there) == []
    assert len(predicted(away)) > 5
    ledger = away.ledger
    assert ledger.finished == "60 of 60 candidates evaluated"
    assert ledger.occupation.utilisation > 0.95
    assert not any(ledger.candidates[id_].predicted for id_ in ledger.front)
    assert sorted(ledger.hoped) == sorted(ledger.front)
    with_outage, without = (
        hypervolume(
            np.array([w.ledger.objectives(w.ledger.candidates[id_]) for id_ in w.ledger.front]), np.array([1.0, 0.03])
        )
        for w in (away, there)
    )
    assert with_outage > 0.95 * without
    measured_later = [id_ for id_ in predicted(away) if not ledger.candidates[id_].predicted]
    for id_ in measured_later:
        assert ledger.candidates[id_].latencies_s["any"] == latency_of(away.genomes[id_])
    folded = Ledger(ledger.terms).apply_all(away.journal)
    assert folded.candidates == ledger.candidates
    assert folded.front == ledger.front


def test_predictions_are_near_and_say_how_sure_they_are():
    world = Outage(35.0, 75.0, groups=4, evaluations=60).run()
    ratios = []
    for _, event in world.journal:
        if isinstance(event, ev.Predicted):
            ((median_s, std_s),) = event.latencies_s.values()
            assert std_s >= 0
            ratios.append(median_s / latency_of(world.genomes[event.candidate]))
    assert 0.5 < sorted(ratios)[len(ratios) // 2] < 2


def test_nobody_is_on_the_front_by_a_prediction_when_the_device_never_comes_back():
    world = deserted()
    ledger = world.ledger
    assert len(ledger.standing[State.EVALUATED]) == 30
    left_out = {*ledger.hoped} - {*ledger.front}
    assert left_out
    assert not any(ledger.candidates[id_].predicted for id_ in ledger.front)
    assert f"{len(left_out)} left out of the front because no device measured them" in ledger.finished
    assert not left_out & {*world.discarded}, "a later job may measure them"
    again = World(groups=2, evaluations=30, journal=world.journal).run()
    assert sorted(again.ledger.hoped) == sorted(again.ledger.front)
    assert {(id_, "any", 0) for id_ in left_out} <= {*again.measured}
    assert again.ledger.finished == "30 of 30 candidates evaluated"
    assert not [order for _, order in again.sent if isinstance(order, msg.Evaluate)]


def test_what_a_prediction_says_breaks_a_limit_waits_for_the_device():
    world = Outage(35.0, 75.0, groups=4, evaluations=60, limits={"latency_s": 0.012}).run()
    assert predicted(world)
    trained = {order.candidate for _, order in world.sent if isinstance(order, msg.Evaluate)}
    too_slow = [id_ for id_ in trained if id_ and latency_of(world.genomes[id_]) > 0.012]
    assert len(too_slow) <= 0.2 * len(predicted(world)), "a prediction may err, not often"
    assert not {*too_slow} & {*world.ledger.front}
    assert len(world.ledger.standing[State.EVALUATED]) == 60


@pytest.mark.parametrize(("patience_s", "predicts"), [(0.5, True), (1e9, False)])
def test_a_device_that_is_only_slow_is_waited_for_as_long_as_was_said(patience_s, predicts):
    class Slow(World):
        asked = 0

        def ask_device(self, device, candidate, seconds, answer):
            self.asked += 1
            super().ask_device(device, candidate, 3.0 * self.asked - self.time, answer)

    world = Slow(groups=4, evaluations=30, starved_s=patience_s).run()
    assert bool(predicted(world)) == predicts
    assert not any(world.ledger.candidates[id_].predicted for id_ in world.ledger.front)


def test_what_the_device_refuses_after_all_is_not_on_the_front():
    refused = set()

    class Refusing(Outage):
        def ask_device(self, device, candidate, seconds, answer):
            if not self.device_up and isinstance(answer, ev.Measured):
                refused.add(candidate)
                answer = ev.MeasurementFailed(candidate, "unsupported", "no such operator", device)
            super().ask_device(device, candidate, seconds, answer)

    world = Refusing(35.0, 75.0, groups=4, evaluations=60).run()
    ledger = world.ledger
    assert State.EVALUATED in {ledger.candidates[id_].state for id_ in refused}
    assert not refused & {*ledger.front}
    assert sorted(ledger.hoped) == sorted(ledger.front)
    assert ledger.finished == "60 of 60 candidates evaluated"


def test_before_enough_is_measured_nothing_is_predicted():
    world = World(groups=4, evaluations=20)
    world.device_up = False
    world.later(0.1, ev.DeviceLost("no device has registered with the relay yet"))
    world.run(until=lambda w: not w.queue)
    assert predicted(world) == []
    assert world.sent == []
    world.device_up = True
    for answer in world.waiting_for_device:
        world.later(1.0, answer)
    world.later(0.9, ev.DeviceBack("agx"))
    assert world.run().ledger.finished == "20 of 20 candidates evaluated"


@pytest.mark.parametrize("std", [0.0, 0.5])
def test_who_is_least_known_is_measured_first(std):
    world = World(groups=4, evaluations=5)
    world.run(until=lambda w: len(w.ledger.standing[State.PROPOSED]) >= 3)
    urgency = world.coordinator.agenda.urgency
    assert urgency(1) == (1.0,)
    world.ledger.apply(ev.Predicted(1, {"any": (0.01, 0.01 * std)}), world.time)
    assert urgency(1) == (3.0, -std)
    assert urgency(1) > urgency(2)


def test_errors_and_latencies_of_the_toy():
    """What the tests above rely on: the trade-off is real."""
    assert error_of({"width": 4, "depth": 1}) == 0.5
    assert latency_of({"width": 4, "depth": 1}) == pytest.approx(4e-4)


def test_what_cannot_be_exported_after_all_is_not_on_the_front():
    class Unexportable(World):
        """Exports of what went by predictions fail, late."""

        def export(self, candidate, genome):
            if candidate % 2 and candidate > 20:
                return ev.ExportFailed(candidate, "no such operator")
            return super().export(candidate, genome)

    world = Unexportable(groups=4, evaluations=40, starved_s=0.5, machine={"exporters": 1, "export": Fixed(4.0)}).run()
    ledger = world.ledger
    late = [id_ for id_ in predicted(world) if ledger.candidates[id_].size_bytes is None]
    assert State.EVALUATED in {ledger.candidates[id_].state for id_ in late}
    assert not {*late} & {*ledger.front}
    assert sorted(ledger.hoped) == sorted(ledger.front)
    assert len(ledger.standing[State.EVALUATED]) == 40


def test_a_target_is_seen_when_the_measurement_comes():
    """The one that meets it is trained by a prediction, and the device answers when all is over."""
    world = World(groups=1, evaluations=12)
    world.run(until=lambda w: len(w.ledger.standing[State.EVALUATED]) == 10)
    fastest = min(latency_of(world.genomes[id_]) for id_ in world.ledger.front)
    agenda = world.coordinator.agenda
    it = world.ledger.candidates[world.ledger.front[-1]]
    assert agenda.keeps(it, {"error": it.error, "latency_s": it.latency_s, "latency_s@any": it.latency_s})
    assert not agenda.keeps(it, {"latency_s": fastest / 2})
    away = Outage(35.0, 75.0, groups=4, evaluations=60)
    target = {"error": 0.5, "latency_s": 0.0006}
    away.coordinator.plan = away.coordinator.agenda.plan = replace(away.coordinator.plan, target=target)
    away.run()
    met = [id_ for id_ in away.ledger.front if agenda.keeps(away.ledger.candidates[id_], target)]
    assert bool(met) == ("meets the target" in away.ledger.finished)


def test_those_set_aside_are_waited_for_where_nobody_else_can_be_proposed():
    small = SearchSpace({"width": list(range(1, 31)), "depth": [1, 2]})
    world = Outage(20.0, 200.0, groups=4, evaluations=200, limits={"latency_s": 0.004}, space=small).run()
    assert len(world.ledger.candidates) == 61
    assert not world.ledger.standing[State.MEASURING]
    assert not world.coordinator.agenda.set_aside
    assert not world.ledger.standing[State.READY]
    keep = [id_ for id_, genome in world.genomes.items() if latency_of(genome) <= 0.004]
    assert {*keep} <= {*world.ledger.standing[State.EVALUATED]}


class Late(Outage):
    """What a device was asked it answers, dropped or not: the answer was under way when it was told to drop it."""

    def ask_device(self, device, candidate, seconds, answer):
        if self.device_up:
            self.later(seconds, answer)
        else:
            self.waiting_for_device.append(answer)


def late_answers(world):
    """Measurements that came after their candidate had been given up."""
    given_up, late = set(), 0
    ledger = Ledger(world.ledger.terms)
    for time, event in world.journal:
        late += isinstance(event, ev.Measured) and event.candidate in given_up
        ledger.apply(event, time)
        given_up = {*ledger.standing[State.REJECTED], *ledger.standing[State.FAILED]}
    return late


@pytest.mark.parametrize("algorithm", ["nsga2", "surrogate"])
def test_a_second_device_answers_after_the_first_has_ruled_a_candidate_out(algorithm):
    both = {"devices": ("any", "slow"), "limits": {"latency_s": 0.012}}
    world = Late(1e9, 1e9 + 1, groups=2, evaluations=20, algorithm=algorithm, **both)
    World.run(world)
    assert late_answers(world)
    assert world.ledger.finished == "20 of 20 candidates evaluated"
    again = World(groups=2, evaluations=20, algorithm=algorithm, journal=world.journal, **both)
    assert again.ledger.candidates == world.ledger.candidates


def test_a_device_answers_after_a_training_without_it_has_failed():
    class Diverging(Late):
        def train(self, group, order):
            if order.candidate % 3 == 1:
                return 1.0, msg.EvaluationFailed(group, order.candidate, order.attempt, "diverged", "nan")
            return super().train(group, order)

    world = Diverging(35.0, 75.0, groups=4, evaluations=60).run()
    assert late_answers(world)
    assert len(world.ledger.standing[State.EVALUATED]) == 60
