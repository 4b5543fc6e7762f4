"""How a job ends before its search does, in virtual time: by the clock of its scheduler, by signals, by broken GPUs."""

from dataclasses import replace

import pytest
from virtual_time import World

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.commands import Leave
from mpinas.coordination.failures import FAILURES_MAX, KILLED, NO_CHECKPOINT, NO_DEVICE, UNEXPECTED
from mpinas.coordination.farewell import EPOCH_S, GOING_S, PARTING_S, SLACK
from mpinas.coordination.ledger import BASELINE
from mpinas.coordination.lifecycle import State
from mpinas.report.live import line_of
from mpinas.report.results import notes
from mpinas.simulation.durations import Fixed


class Limited(World):
    """The scheduler ends the job so many seconds after its beginning; a training has 20 epochs."""

    def __init__(self, *, ends_s=None, **arguments):
        self._ends_s = ends_s
        super().__init__(**{"rungs": (20,), "progress": True, **arguments})

    def _set_up(self, task):
        super()._set_up(task)
        (begun,) = [entry for entry in self.timeline.queue if isinstance(entry[2], ev.Begun)]
        self.timeline.queue.remove(begun)
        ends_at = None if self._ends_s is None else self.time + self._ends_s
        self.timeline.later(0.0, ev.Begun("0", self.machine.trainers, task, True, ends_at))


class Epochs(Limited):
    """Every epoch takes `epoch_s`."""

    epoch_s = 2.0

    def train(self, group, order):
        seconds = self.epoch_s * (order.epochs - order.epochs_done)
        _, answer = super().train(group, order)
        return seconds, replace(answer, train_seconds=seconds)


def reasons(world):
    return [event.reason for _, event in world.journal if isinstance(event, ev.StopRequested)]


def moments(world, kind):
    return [time for time, event in world.journal if isinstance(event, kind)]


def test_before_its_time_is_over_a_job_puts_its_trainings_aside_and_the_next_goes_on_from_there():
    world = Epochs(groups=3, evaluations=12, ends_s=100.0).run()
    (reason,) = reasons(world)
    assert reason == "the job's time is over in 17 s"
    asked = moments(world, ev.StopRequested)[0]
    assert asked == pytest.approx(100.0 - SLACK * 2 - PARTING_S, abs=0.01)
    paused = {event.candidate: event.epochs_done for _, event in world.journal if isinstance(event, msg.Paused)}
    assert len(paused) == 3, "one of each group"
    assert all(0 < epochs < 20 for epochs in paused.values())
    assert max(moments(world, msg.Paused)) <= asked + 2.0
    assert world.time <= 100.0 - PARTING_S, "nobody is cut off"
    done = {event.candidate for _, event in world.journal if isinstance(event, msg.Evaluated)}
    resumed = Epochs(groups=3, evaluations=12, journal=world.journal).run()
    assert resumed.ledger.finished == "12 of 12 candidates evaluated"
    orders = [order for _, order in resumed.sent if isinstance(order, msg.Evaluate)]
    assert {order.candidate: order.epochs_done for order in orders if order.candidate in paused} == paused
    assert not done & {order.candidate for order in orders}


def test_nothing_is_ordered_in_the_last_seconds_though_trainers_are_idle():
    world = Epochs(groups=3, evaluations=40, ends_s=100.0).run()
    asked = moments(world, ev.StopRequested)[0]
    assert max(moments(world, ev.Ordered)) <= asked


def test_before_anything_is_known_of_epochs_one_is_taken_to_be_long_and_half_of_a_short_job_is_worked():
    short = Limited(groups=1, evaluations=4, ends_s=300.0)
    short.run(until=lambda w: w.ledger.groups)
    assert short.coordinator.farewell.warn_at() == 300.0 - SLACK * EPOCH_S - PARTING_S
    hasty = Limited(groups=1, evaluations=4, ends_s=20.0).run()
    assert moments(hasty, ev.StopRequested) == [pytest.approx(10.0, abs=0.01)]


def test_a_search_that_ends_in_time_is_finished():
    world = Epochs(groups=3, evaluations=5, ends_s=3000.0).run()
    assert world.ledger.finished
    assert reasons(world) == []


def test_what_cannot_be_put_aside_is_not_begun_when_it_would_not_come_to_its_end():
    """Finalists: trained again from scratch, 40 s each."""
    retrain_s = 40.0

    class Finals(Epochs):
        def retrain(self, group, order):
            _seconds, answer = super().retrain(group, order)
            return retrain_s, answer

    plan = {"groups": 1, "evaluations": 3, "finalists": 1, "finalist_seeds": 2}
    searched = Finals(**plan).run(until=lambda w: any(isinstance(o, msg.Retrain) for _, o in w.sent)).time
    cut = Finals(**plan, ends_s=searched + 45.0).run()
    assert not [order for _, order in cut.sent if isinstance(order, msg.Retrain)]
    (reason,) = reasons(cut)
    assert reason.startswith("nothing that is left to do fits into the job's last 4")
    rest = Finals(**plan, journal=cut.journal, ends_s=500.0).run()
    assert rest.ledger.finished
    assert len([order for _, order in rest.sent if isinstance(order, msg.Retrain)]) == 2, "of the baseline, the best"


def test_what_would_fit_into_no_job_of_this_length_is_begun_all_the_same():
    plan = {"groups": 1, "evaluations": 2, "finalists": 1, "finalist_seeds": 1}
    first = Epochs(**plan).run(until=lambda w: any(isinstance(o, msg.Retrain) for _, o in w.sent))
    journal = [
        entry for entry in first.journal if not (isinstance(entry[1], ev.Ordered) and entry[1].work == "retrain")
    ]
    again = Epochs(**plan, journal=journal, ends_s=50.0)  # trained for 40 s: with the slack longer than the whole job
    again.run(until=lambda w: w.sent or w.left)
    assert [order for _, order in again.sent if isinstance(order, msg.Retrain)]


def given_up(world):
    return [(event.candidate, event.work) for _, event in world.journal if isinstance(event, ev.GivenUp)]


def test_a_finalist_that_no_job_is_long_enough_for_is_given_up():
    class Finals(Epochs):
        def retrain(self, group, order):
            _seconds, answer = super().retrain(group, order)
            return 100.0, answer

    plan = {"groups": 1, "evaluations": 3, "finalists": 1, "finalist_seeds": 2}
    searched = Finals(**plan).run(until=lambda w: any(isinstance(o, msg.Retrain) for _, o in w.sent)).time
    world = Finals(**plan, ends_s=searched + 45.0).run()
    for _ in range(FAILURES_MAX[KILLED]):
        assert given_up(world) == []
        world = Finals(**plan, ends_s=60.0, journal=world.journal).run()
    world = Finals(**plan, ends_s=60.0, journal=world.journal).run()
    assert given_up(world) == [(BASELINE, "retrain")], "once for both seeds of the baseline, the best"
    assert world.ledger.finished == "3 of 3 candidates evaluated"


@pytest.mark.parametrize("supernet_epochs", [0, 3])
def test_what_has_epochs_longer_than_a_job_is_given_up(supernet_epochs):
    class Slow(Epochs):
        epoch_s = 100.0

        def train_supernet(self, group, order):
            _seconds, answer = super().train_supernet(group, order)
            return self.epoch_s * order.epochs, answer

    plan = {"groups": 1, "evaluations": 3, "supernet_epochs": supernet_epochs, "ends_s": 60.0}
    world = Slow(**plan).run()
    for _ in range(FAILURES_MAX[KILLED]):
        assert given_up(world) == []
        world = Slow(**plan, journal=world.journal).run()
    assert given_up(world) == [(msg.SUPERNET, "supernet") if supernet_epochs else (BASELINE, "evaluate")]
    assert world.ledger.finished.endswith("3 jobs died at it or were too short for it")


def test_jobs_that_are_stopped_long_before_their_time_were_not_too_short():
    class Slow(Epochs):
        epoch_s = 100.0

    journal = []
    for _ in range(5):
        world = Slow(groups=1, evaluations=3, ends_s=3600.0, journal=journal)
        world.run(until=orders)
        world.later(5.0, ev.StopRequested("SIGINT"))
        journal = world.run().journal
    assert given_up(world) == []
    assert not any(it.failures for it in world.ledger.candidates.values())


@pytest.mark.parametrize(
    ("signal", "waits_s"), [("SIGUSR2", 60.0), ("SIGTERM", 5.0), ("SIGINT", 0.0)], ids=["usr2", "term", "int"]
)
def test_a_signal_gives_groups_time_to_the_end_of_their_epoch_or_less(signal, waits_s):
    class Slow(Epochs):
        epoch_s = 200.0

    world = Slow(groups=2, evaluations=6)
    world.run(until=lambda w: len(w.ledger.groups) == 2)
    asked = world.time + 1.0
    world.later(1.0, ev.StopRequested(signal))
    world.run()
    gone = moments(world, msg.Stopped)[0]
    assert gone - asked == pytest.approx(waits_s + 0.1, abs=0.2)
    assert not moments(world, msg.Paused), "no epoch ended in that time"


def test_what_breaks_while_a_job_ends_is_held_against_no_candidate():
    """Signals reach the job's children, too."""
    slow = {"machine": {"export": Fixed(20.0), "measure": Fixed(20.0)}}
    world = Epochs(groups=2, evaluations=4, **slow)
    world.run(until=lambda w: w.ledger.count(State.MEASURING) and w.ledger.count(State.PROPOSED))
    exporting, measuring = (next(iter(world.ledger.standing[state])) for state in (State.PROPOSED, State.MEASURING))
    world.coordinator.handle(ev.StopRequested("SIGTERM"), world.time)
    for event in (
        ev.ExportFailed(exporting, "the exporter was killed"),
        ev.MeasurementFailed(measuring, "crashed", "signal 15", "any"),
        ev.JudgingFailed(BASELINE, "any", "crashed", "signal 15"),
    ):
        assert world.coordinator.handle(event, world.time) == [], "the next job tries it again"
    resumed = Epochs(groups=2, evaluations=4, journal=world.journal).run()
    assert not resumed.ledger.standing[State.FAILED]
    assert resumed.ledger.finished == "4 of 4 candidates evaluated"


def test_a_second_signal_may_shorten_the_wait_and_never_lengthens_it():
    class Slow(Epochs):
        epoch_s = 200.0

    world = Slow(groups=1, evaluations=6)
    world.run(until=lambda w: w.ledger.groups)
    asked = world.time
    for delay_s, signal in ((0.0, "SIGUSR2"), (10.0, "SIGTERM"), (12.0, "SIGUSR2")):
        world.later(delay_s, ev.StopRequested(signal))
    world.run()
    assert moments(world, msg.Stopped)[0] - asked == pytest.approx(15.1, abs=0.2)


def test_a_warning_from_the_launcher_leaves_the_groups_until_just_before_the_end():
    class Slow(Epochs):
        epoch_s = 40.0

    world = Slow(groups=1, evaluations=6, ends_s=300.0)
    world.run(until=lambda w: w.ledger.groups)
    began = moments(world, ev.Ordered)[0]
    world.later(began + 161.0 - world.time, ev.StopRequested("SIGUSR2"))
    world.run()
    (paused,) = [event for _, event in world.journal if isinstance(event, msg.Paused)]
    assert paused.epochs_done == 5
    assert world.time == pytest.approx(began + 200.1, abs=0.2), "as soon as the epoch is over, and no later"


def test_who_is_told_to_go_and_does_not_is_not_waited_for_for_ever():
    world = World(groups=2, evaluations=6)
    world.run(until=lambda w: len(w.ledger.groups) == 2)
    for command in world.coordinator.handle(ev.StopRequested("SIGINT"), world.time):
        assert not isinstance(command, Leave)
    told = world.time
    world.coordinator.handle(msg.Stopped(1), told + 0.1)
    assert world.coordinator.due(told + 1.0) == told + GOING_S
    assert world.coordinator.idle(told + GOING_S - 1) == []
    assert world.coordinator.idle(told + GOING_S) == [Leave()]


# --- failures that are not the candidate's, or may not be


class Breaking(World):
    """Orders to evaluate these candidates fail, as often and for the reason that `breaks` says."""

    def __init__(self, breaks, **arguments):
        self.breaks = {candidate: list(reasons) for candidate, reasons in breaks.items()}
        super().__init__(**arguments)

    def train(self, group, order):
        if self.breaks.get(order.candidate):
            reason = self.breaks[order.candidate].pop(0)
            return 1.0, msg.EvaluationFailed(group, order.candidate, order.attempt, reason, "it broke", "traceback")
        return super().train(group, order)


def attempts(world, candidate):
    return len([order for _, order in world.sent if order.candidate == candidate and isinstance(order, msg.Evaluate)])


def test_what_nobody_expected_costs_an_attempt_and_twice_the_candidate():
    world = Breaking({2: [UNEXPECTED], 3: [UNEXPECTED] * 2, 4: ["diverged"]}, groups=2, evaluations=10).run()
    candidates = world.ledger.candidates
    assert (candidates[2].state, attempts(world, 2)) == (State.EVALUATED, 2)
    assert (candidates[3].state, attempts(world, 3)) == (State.FAILED, FAILURES_MAX[UNEXPECTED])
    assert candidates[3].reason == "error: it broke"
    assert (candidates[4].state, attempts(world, 4)) == (State.FAILED, 1), "the network's own"
    assert world.ledger.finished == "10 of 10 candidates evaluated"


def test_a_failure_is_told_as_one_only_if_it_is_the_last():
    told = []

    class Shown(Breaking):
        def record(self, event):
            super().record(event)
            if isinstance(event, msg.EvaluationFailed):
                told.append(line_of(event, self.ledger))

    Shown({2: [UNEXPECTED, NO_DEVICE, UNEXPECTED], 3: [NO_CHECKPOINT]}, groups=1, evaluations=4).run()
    assert sorted(told) == [
        "candidate 2 failed: error: it broke",
        "candidate 2 will be tried again: device: it broke",
        "candidate 2 will be tried again: error: it broke",
        "candidate 3 begins anew: checkpoint: it broke",
    ]


def test_failures_are_counted_over_jobs():
    world = Breaking({2: [UNEXPECTED]}, groups=1, evaluations=10)
    world.run(until=lambda w: w.ledger.candidates[2].failures if 2 in w.ledger.candidates else False)
    again = Breaking({2: [UNEXPECTED]}, groups=1, evaluations=10, journal=world.journal).run()
    assert again.ledger.candidates[2].state is State.FAILED


def test_each_kind_of_failure_has_its_own_count():
    world = Breaking({2: [NO_DEVICE, UNEXPECTED]}, groups=2, evaluations=10).run()
    assert (world.ledger.candidates[2].state, attempts(world, 2)) == (State.EVALUATED, 3)


def test_jobs_that_end_while_it_comes_further_each_time_do_not_count_against_a_candidate():
    journal, ended = [], 0
    for _ in range(8):
        world = Epochs(groups=1, evaluations=2, journal=journal)
        world.run(until=lambda w, before=ended: any(g.order.candidate == 0 for g in w.ledger.groups.values())
                  and w.ledger.candidates[0].epoch > before)  # fmt: skip
        ended, journal = world.ledger.candidates[0].epoch, world.journal
        if ended == 8:
            break
    assert ended == 8
    assert not world.ledger.candidates[0].failures


def orders(world):
    """What is under way in this job; none of what an earlier one has left."""
    return [group.order for group in world.ledger.groups.values()] if world.sent else []


def jobs_that_die(dies_at, **arguments):
    """Jobs one after the other, each dead as soon as `dies_at(order)` is true of one under way; the last one."""
    journal = []
    for _ in range(12):
        world = Epochs(**arguments, journal=journal)
        journal = world.run(until=lambda w: w.left or any(map(dies_at, orders(w)))).journal
        if world.left:
            return world
    raise AssertionError("it goes on for ever")


def begun(world):
    return len(moments(world, ev.Begun))


def test_a_candidate_that_kills_every_job_is_given_up_and_no_other_is():
    killer = 4
    world = jobs_that_die(lambda order: order.candidate == killer, groups=6, evaluations=12)
    assert begun(world) == 1 + FAILURES_MAX[KILLED]
    failed = {it.id: it.reason for it in world.ledger.candidates.values() if it.state is State.FAILED}
    assert failed == {killer: "3 jobs died at it or were too short for it"}
    assert world.ledger.finished == "12 of 12 candidates evaluated"


def test_those_at_which_two_jobs_have_died_are_tried_one_at_a_time():
    plan = {"groups": 4, "evaluations": 12}
    journal = []
    for _ in range(2):
        world = Epochs(**plan, journal=journal)
        journal = world.run(until=lambda w: len(orders(w)) == 4).journal
    suspects = {order.candidate for order in orders(world)}
    together = set()

    def look(world):
        here = {order.candidate for order in orders(world)} & suspects
        # who has come to the end of an epoch is no suspect any more
        together.add(sum(world.ledger.candidates[each].epoch == 0 for each in here))
        return world.left

    world = Epochs(**plan, journal=journal)
    world.run(until=look)
    assert together == {0, 1}
    assert world.ledger.finished == "12 of 12 candidates evaluated"


def test_a_job_that_ends_in_peace_clears_whom_the_dead_ones_had_made_suspicious():
    journal = []
    for _ in range(2):
        world = Epochs(groups=2, evaluations=8, journal=journal)
        journal = world.run(until=lambda w: len(orders(w)) == 2).journal
    asked = Epochs(groups=2, evaluations=8, journal=journal)
    asked.run(until=orders)
    asked.later(0.0, ev.StopRequested("SIGINT"))
    asked.run()
    after = Epochs(groups=2, evaluations=8, journal=asked.journal)
    after.run(until=orders)
    assert not any(it.failures for it in after.ledger.candidates.values())


@pytest.mark.parametrize(
    ("work", "what"), [("assess", "test_metrics"), ("retrain", "retrainings"), ("repeat", "repeats")]
)
def test_what_kills_every_job_after_the_search_is_given_up_too(work, what):
    # several groups train one finalist: a death counts once
    plan = {"groups": 3, "evaluations": 4, "finalists": 1, "finalist_seeds": 3, "repeats": 1 + (work == "repeat")}
    victims = set()

    def dies_at(order):
        if order.work == work:
            victims.add(order.candidate)
        return order.work == work and order.candidate == min(victims)

    world = jobs_that_die(dies_at, **plan)
    assert world.ledger.finished
    assert not getattr(world.ledger.candidates[min(victims)], what)
    assert given_up(world) == [(min(victims), work)]
    assert begun(world) == 1 + FAILURES_MAX[KILLED]


def test_a_baseline_that_kills_every_job_ends_the_search():
    world = jobs_that_die(lambda order: order.candidate == BASELINE, groups=2, evaluations=4)
    assert begun(world) == 1 + FAILURES_MAX[KILLED]
    assert world.ledger.finished.startswith("the baseline, to compare with, failed: 3 jobs died at it or")


def test_a_supernet_that_kills_every_job_ends_the_search_until_it_is_resumed():
    plan = {"groups": 2, "evaluations": 4, "supernet_epochs": 3}
    world = jobs_that_die(lambda order: order.work == "supernet", **plan)
    assert begun(world) == 1 + FAILURES_MAX[KILLED]
    assert world.ledger.finished.startswith("the supernet could not be trained: 3 jobs died at it or")
    again = Epochs(**plan, journal=world.journal)
    again.run(until=orders)
    assert [order.work for order in orders(again)] == ["supernet"]


def test_the_baseline_is_tried_twice_as_well():
    world = Breaking({BASELINE: [UNEXPECTED]}, groups=1, evaluations=4).run()
    assert world.ledger.finished == "4 of 4 candidates evaluated"
    hopeless = Breaking({BASELINE: [UNEXPECTED] * 2}, groups=1, evaluations=4).run()
    assert hopeless.ledger.finished == "the baseline, to compare with, failed: error: it broke"


def test_a_group_whose_gpu_is_lost_leaves_and_the_others_go_on_with_its_candidate():
    world = Breaking({2: [NO_DEVICE]}, groups=3, evaluations=12)
    world.run(until=lambda w: w.ledger.candidates[2].failures if 2 in w.ledger.candidates else False)
    (lost,) = [leader for leader, order in world.sent if order.candidate == 2]
    orders_before = len([1 for leader, _ in world.sent if leader == lost])
    world.later(0.0, msg.Withdrawn(lost, "node7, cuda:0: CUDA error"))
    under_way = lost in world.ledger.groups  # it may have been given another order meanwhile
    world.run()
    told = f"trainer {lost} gets no more orders: its GPU failed (node7, cuda:0: CUDA error)"
    assert told in [line_of(event, world.ledger) for _, event in world.journal]
    assert told in notes(world.ledger)
    assert len([1 for leader, _ in world.sent if leader == lost]) <= orders_before + under_way
    assert world.ledger.candidates[2].state is State.EVALUATED
    assert world.ledger.finished == "12 of 12 candidates evaluated"
    assert world.ledger.stopped == 3, "it is there until the end"


def test_when_no_gpu_is_left_the_job_ends_and_another_can_go_on():
    world = World(groups=2, evaluations=12).run(until=lambda w: w.ledger.count(State.EVALUATED) == 3)
    for rank in (1, 2):
        world.later(0.0, msg.Withdrawn(rank, "CUDA error"))
    world.run()
    assert reasons(world) == ["no trainer is left whose GPU works"]
    assert world.ledger.finished is None
    assert World(groups=2, evaluations=12, journal=world.journal).run().ledger.finished


def test_an_assessment_that_fails_for_no_fault_of_its_own_is_made_again():
    class Once(World):
        failed = False

        def assess(self, group, order):
            if not self.failed and order.candidate == BASELINE:
                self.failed = True
                return 1.0, msg.AssessmentFailed(group, order.candidate, order.attempt, NO_DEVICE, "CUDA error")
            return super().assess(group, order)

    world = Once(groups=2, evaluations=4).run()
    assert world.ledger.candidates[BASELINE].test_metrics == {"error": 0.5}


def test_a_journal_with_a_rejected_suspect_of_an_older_version_goes_on():
    """It rejected a candidate after four interrupted jobs, and died."""
    journal = []
    for _ in range(4):
        world = Epochs(groups=1, evaluations=6, journal=journal)
        world.run(until=lambda w: any(order.candidate == 1 for order in orders(w)))
        journal = [entry for entry in world.journal if not isinstance(entry[1], ev.GivenUp)]
    time, begun_again = journal[-1][0], next(event for _, event in journal if isinstance(event, ev.Begun))
    journal += [(time + 1.0, begun_again), (time + 1.0, ev.Rejected(1, "4 jobs ended while it was trained"))]
    world = Epochs(groups=1, evaluations=6, journal=journal).run()
    assert world.ledger.candidates[1].state is State.REJECTED
    assert world.ledger.finished == "6 of 6 candidates evaluated"
