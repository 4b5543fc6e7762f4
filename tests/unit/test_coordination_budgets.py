"""Several budgets, repeated trainings, finalists and the end of a search, in virtual time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import World, error_of, latency_of

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.candidate import Candidate, Reading
from mpinas.coordination.commands import DropCheckpoint, Leave
from mpinas.coordination.ledger import BASELINE, Ledger
from mpinas.coordination.lifecycle import State

RUNGS = (2, 6, 18)


def luck(candidate):
    """A number between 0 and 1 that looks like chance."""
    return candidate * 7919 % 100 / 100


class Learning(World):
    """Errors fall with the epochs, by half from each budget to the next; every third candidate is good."""

    def train(self, group, order):
        seconds = 0.5 * (order.epochs - order.epochs_done)
        good = order.candidate % 3 == 0
        error = error_of(order.genome) * (1 if good else 2 + luck(order.candidate)) * 2 ** -RUNGS.index(order.epochs)
        return seconds, msg.Evaluated(group, order.candidate, order.attempt, {"error": error}, seconds)


def evaluations(world):
    return [order for _, order in world.sent if isinstance(order, msg.Evaluate)]


def orders_of(world, candidate):
    return [order for order in evaluations(world) if order.candidate == candidate]


def test_the_best_go_on_from_their_checkpoints_and_only_they():
    world = Learning(groups=4, evaluations=60, rungs=RUNGS).run()
    ledger = world.ledger
    assert ledger.finished == "60 of 60 candidates evaluated"
    (baseline,) = orders_of(world, BASELINE)
    assert (baseline.rung, baseline.epochs_done, baseline.epochs, baseline.epochs_full) == (2, 0, 18, 18)
    reached = {id_: max(it.rung_errors) for id_, it in ledger.candidates.items() if it.rung_errors}
    assert len(reached) == 60
    for id_, rung in reached.items():
        steps = [(order.rung, order.epochs_done, order.epochs) for order in orders_of(world, id_)]
        assert id_ == BASELINE or steps == [(0, 0, 2), (1, 2, 6), (2, 6, 18)][: rung + 1]
        assert {order.seed for order in orders_of(world, id_)} == {orders_of(world, id_)[0].seed}
    full = [id_ for id_, rung in reached.items() if rung == 2]
    assert set(ledger.front) <= set(full), "nobody is on the front by a small budget"
    assert len(full) < 30
    epochs = sum(order.epochs - order.epochs_done for order in evaluations(world))
    assert epochs < 0.6 * 60 * 18, "most of the full budget for all is saved"
    assert set(ledger.candidates) <= {*world.discarded, *ledger.front, BASELINE}, "no checkpoint is left behind"


def test_a_checkpoint_stays_until_the_result_on_the_full_budget_is_in_the_journal():
    dropped = []

    class Watched(Learning):
        def execute(self, command):
            if isinstance(command, DropCheckpoint):
                dropped.append(command.candidate)
                _, last = self.journal[-1]
                assert isinstance(last, msg.Evaluated)
                assert last.candidate == command.candidate
            super().execute(command)

    world = Watched(groups=2, evaluations=20, rungs=RUNGS).run()
    evaluated = world.ledger.standing[State.EVALUATED]
    full = [id_ for id_ in evaluated if world.ledger.candidates[id_].rung == world.ledger.terms.last_rung]
    assert 0 < len(full) < len(evaluated)
    assert sorted(dropped) == sorted(full)


def test_the_fastest_is_never_stopped_early_however_bad_it_looks():
    class Slow(Learning):
        def train(self, group, order):
            seconds, report = super().train(group, order)
            if order.candidate == 5:
                report.metrics["error"] += 100.0  # it learns late, or never
            return seconds, report

        def measure(self, candidate, device, repetition):
            answer = super().measure(candidate, device, repetition)
            if candidate == 5:
                answer.measurement["p50_s"] = 1e-9
            return answer

    world = Slow(groups=2, evaluations=40, rungs=RUNGS).run()
    assert [order.rung for order in orders_of(world, 5)] == [0, 1, 2]
    assert 5 in world.ledger.front


def test_who_cannot_join_the_front_any_more_is_not_trained_on_though_it_is_the_best_of_its_rung():
    world = Learning(groups=1, evaluations=40, rungs=RUNGS).run()
    best = min(world.ledger.candidates[id_].error for id_ in world.ledger.front)
    agenda = world.coordinator.agenda
    early = Candidate(99, {}, rung=0, rung_errors={0: best * 8.5}, metrics={"error": best * 8.5})
    early.readings["any"] = Reading({"p50_s": 9.0})
    assert not agenda._may_join(early), "no error has ever fallen by so much"
    early.readings["any"] = Reading({"p50_s": 1e-9})
    assert agenda._may_join(early), "but it is the fastest"


def test_a_lost_checkpoint_costs_the_epochs_and_nothing_else():
    class Forgetful(Learning):
        lost = 0

        def train(self, group, order):
            if order.epochs_done and self.lost < 3:
                self.lost += 1
                return 0.1, msg.EvaluationFailed(group, order.candidate, order.attempt, "checkpoint", "not there")
            return super().train(group, order)

    world = Forgetful(groups=2, evaluations=30, rungs=RUNGS).run()
    again = [order for order in evaluations(world) if order.rung and not order.epochs_done and order.candidate]
    assert len(again) == 3
    assert not world.ledger.standing[State.FAILED]
    assert all(len(world.ledger.candidates[order.candidate].rung_errors) >= 2 for order in again)


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(1, 600), groups=st.integers(1, 4))
def test_with_rungs_a_job_killed_anywhere_resumes_and_loses_nothing(cut, groups):
    arguments = {"evaluations": 20, "rungs": RUNGS, "finalists": 1, "repeats": 2}
    unbroken = Learning(groups=2, **arguments).run()
    journal = unbroken.journal[: min(cut, len(unbroken.journal) - 1)]
    if any(isinstance(e, ev.Finished) for _, e in journal):
        return
    done = [(e.candidate, e.attempt) for _, e in journal if isinstance(e, msg.Evaluated)]
    resumed = Learning(groups=groups, journal=journal, **arguments).run()
    assert len(resumed.ledger.standing[State.EVALUATED]) == 20
    folded = Ledger(resumed.ledger.terms).apply_all(resumed.journal)
    assert folded.candidates == resumed.ledger.candidates
    assert folded.front == resumed.ledger.front
    trained = [
        (e.candidate, e.rung) for _, e in journal if isinstance(e, ev.Ordered) and (e.candidate, e.attempt) in done
    ]
    assert not {(order.candidate, order.rung) for order in evaluations(resumed)} & {*trained}


def test_repeats_make_the_error_of_the_front_the_mean_of_several_trainings():
    class Unsure(World):
        def retrain(self, group, order):
            error = error_of(order.genome) + 0.3
            report = msg.Retrained(group, order.candidate, order.attempt, {"error": error}, {"error": 9.0}, 1.0)
            return 1.0, report

    world = Unsure(groups=2, evaluations=15, repeats=3).run()
    ledger = world.ledger
    for id_ in ledger.front:
        it = ledger.candidates[id_]
        assert len(it.repeats) == 2
        assert it.error == pytest.approx(error_of(it.genome) + 0.2)
        assert ledger.objectives(it)[0] == it.error
    seeds = [order.seed for _, order in world.sent if isinstance(order, (msg.Evaluate, msg.Retrain))]
    assert len(set(seeds)) == len(seeds)
    assert World(groups=2, evaluations=15).run().ledger.candidates[0].repeats == []


def test_finalists_are_trained_again_from_several_seeds_once_all_is_assessed():
    world = World(groups=4, evaluations=12, finalists=2, finalist_seeds=3).run()
    again = [order for _, order in world.sent if isinstance(order, msg.Retrain)]
    kinds = [type(order) for _, order in world.sent]
    best = {0, *world.ledger.fronts.best(2)}
    assert sorted(order.candidate for order in again) == sorted([*best] * 3)
    assert kinds[kinds.index(msg.Retrain) :] == [msg.Retrain] * len(again)
    assert len({order.seed for order in again}) == len(again)
    assert all(len(world.ledger.candidates[id_].retrainings) == 3 for id_ in best)
    assert all(error_of(world.genomes[id_]) == world.ledger.candidates[id_].error for id_ in best), "results only"


def test_a_finalist_that_cannot_be_trained_again_does_not_keep_the_job():
    class Failing(World):
        def retrain(self, group, order):
            return 1.0, msg.RetrainingFailed(group, order.candidate, order.attempt, "diverged", "nan")

    world = Failing(groups=1, evaluations=5, finalists=1).run()
    assert world.ledger.finished == "5 of 5 candidates evaluated"
    tried = [order.candidate for _, order in world.sent if isinstance(order, msg.Retrain)]
    assert max(tried.count(id_) for id_ in tried) == 3


def test_a_search_that_gains_nothing_any_more_ends():
    class Same(World):
        def train(self, group, order):
            seconds, report = super().train(group, order)
            report.metrics["error"] = 1.0 if order.candidate < 10 else 2.0
            return seconds, report

        def measure(self, candidate, device, repetition):
            answer = super().measure(candidate, device, repetition)
            answer.measurement["p50_s"] = 1.0 - candidate / 100 if candidate < 10 else 2.0
            return answer

    world = Same(groups=2, evaluations=200, patience=12).run()
    assert world.ledger.finished.endswith("; the last 12 evaluations brought nobody to the front")
    assert 22 <= len(world.ledger.standing[State.EVALUATED]) <= 24
    assert all(world.ledger.candidates[id_].assessed for id_ in world.ledger.finalists())


def test_a_search_that_has_met_its_target_ends():
    world = World(groups=2, evaluations=200, target={"error": 0.1, "latency_s": 0.02}).run()
    assert "meets the target (error 0.1, latency_s 0.02)" in world.ledger.finished
    met = [
        id_ for id_ in world.ledger.front
        if error_of(world.genomes[id_]) <= 0.1 and latency_of(world.genomes[id_]) <= 0.02
    ]  # fmt: skip
    assert met
    assert len(world.ledger.standing[State.EVALUATED]) < 200


def test_a_job_whose_time_is_over_begins_nothing_new_and_ends_well_and_another_goes_on():
    world = World(groups=2, evaluations=200, limit_s=50.0).run()
    assert world.ledger.finished.endswith("; the job's 50 s are over")
    assert max(e_time for e_time, e in world.journal if isinstance(e, ev.Ordered) and e.work == "evaluate") <= 50.0
    assert all(world.ledger.candidates[id_].assessed for id_ in world.ledger.finalists())
    more = World(groups=2, evaluations=30, journal=world.journal).run()
    assert more.ledger.finished == "30 of 30 candidates evaluated"


def test_a_search_may_begin_with_genomes_of_others():
    start = ({"width": 3, "depth": 2}, {"width": 1, "depth": 1}, {"width": 3, "depth": 2})
    world = World(groups=1, evaluations=6, start=start).run()
    assert [world.genomes[id_] for id_ in (1, 2)] == [start[0], start[1]]
    assert world.genomes[3] not in start
    cut = next(i for i, (_, e) in enumerate(world.journal) if isinstance(e, ev.Proposed) and e.candidate == 1)
    resumed = World(groups=1, evaluations=6, start=start, journal=world.journal[: cut + 1]).run()
    assert resumed.genomes == world.genomes


def test_where_there_is_less_work_than_trainers_the_work_has_them_all():
    many = [len(order.members) for order in evaluations(World(groups=8, evaluations=60).run())]
    assert set(many[:40]) == {1}
    few = {order.candidate: len(order.members) for order in evaluations(World(groups=8, evaluations=2).run())}
    assert few == {0: 4, 1: 4}
    at_most = World(groups=8, evaluations=2, group_size_max=3).run()
    assert {len(order.members) for order in evaluations(at_most)} == {3}
    finalists = World(groups=8, evaluations=8, finalists=1, finalist_seeds=1).run()
    assert [len(order.members) for _, order in finalists.sent if isinstance(order, msg.Retrain)] == [4, 4]


class Uneven(World):
    """One training takes ten times as long as the others; more trainers make it so much faster."""

    def train(self, group, order):
        seconds = (100.0 if order.candidate == 7 else 10.0) * (order.epochs - order.epochs_done) / order.epochs_full
        error = error_of(order.genome)
        report = msg.Evaluated(group, order.candidate, order.attempt, {"error": error}, seconds)
        return seconds / len(order.members), report


@pytest.mark.parametrize("progress", [True, False])
def test_the_last_long_training_goes_on_with_all_trainers(progress):
    world = Uneven(groups=4, evaluations=8, rungs=(20,), progress=progress).run()
    orders = orders_of(world, 7)
    began = [time for time, e in world.journal if isinstance(e, ev.Ordered) and e.candidate == 7]
    ended = next(time for time, e in world.journal if isinstance(e, msg.Evaluated) and e.candidate == 7)
    if not progress:  # nobody knows how far it is
        assert len(orders) == 1
        return
    assert len(orders[0].members) == 1
    assert len(orders[-1].members) == 4
    assert orders[-1].epochs_done > 0
    assert {order.seed for order in orders} == {orders[0].seed}
    assert ended - began[0] < 60.0, "alone it takes 100 s"
    assert world.ledger.candidates[7].history.count(State.TRAINING) == len(orders)
    assert world.ledger.finished == "8 of 8 candidates evaluated"
    folded = Ledger(world.ledger.terms).apply_all(world.journal)
    assert folded.candidates == world.ledger.candidates


def test_no_group_grows_beyond_what_its_batch_is_enough_for():
    world = Uneven(groups=4, evaluations=8, rungs=(20,), progress=True, group_size_max=2).run()
    assert [len(order.members) for order in orders_of(world, 7)] == [1, 2]


def test_a_paused_training_is_taken_up_by_the_next_job():
    world = Uneven(groups=4, evaluations=8, rungs=(20,), progress=True)
    world.run(until=lambda w: w.journal and isinstance(w.journal[-1][1], msg.Paused))
    cut = next(i for i, (_, e) in enumerate(world.journal) if isinstance(e, msg.Paused))
    resumed = Uneven(groups=4, evaluations=8, rungs=(20,), progress=True, journal=world.journal[: cut + 1]).run()
    assert orders_of(resumed, 7)[0].epochs_done == world.journal[cut][1].epochs_done
    assert resumed.ledger.finished == "8 of 8 candidates evaluated"


def test_trainers_that_are_left_over_form_a_smaller_group():
    odd = World(groups=5, evaluations=30, group_size=2).run()
    used = [order.members for order in evaluations(odd)]
    assert {rank for members in used for rank in members} == {1, 2, 3, 4, 5}
    assert {len(members) for members in used[:20]} == {1, 2}


def test_finalists_are_assessed_while_the_last_ones_are_still_trained():
    class Uneven(World):
        def train(self, group, order):
            seconds, report = super().train(group, order)
            return (200.0 if order.candidate == 19 else seconds), report

    world = Uneven(groups=4, evaluations=20).run()
    done = next(time for time, e in world.journal if isinstance(e, msg.Evaluated) and e.candidate == 19)
    assert any(isinstance(e, msg.Assessed) and time < done for time, e in world.journal)
    assert all(world.ledger.candidates[id_].assessed for id_ in world.ledger.finalists())


def test_a_member_may_say_its_last_word_before_its_leader():
    world = World(groups=2, evaluations=4, group_size=2).run(until=lambda w: w.ledger.groups)
    ((leader, group),) = world.ledger.groups.items()
    member = next(rank for rank in group.members if rank != leader)
    world.coordinator.handle(ev.StopRequested("SIGTERM"), world.time)
    world.coordinator.handle(msg.Stopped(member), world.time)
    order = group.order
    world.coordinator.handle(msg.Evaluated(leader, order.candidate, order.attempt, {"error": 0.5}, 1.0), world.time)
    assert world.ledger.candidates[order.candidate].state is State.EVALUATED
    assert world.coordinator.handle(msg.Stopped(leader), world.time)[-1] == Leave()


def test_what_is_paused_when_the_time_is_over_is_ended_well():
    world = Uneven(groups=4, evaluations=8, rungs=(20,), progress=True, limit_s=15.0).run()
    paused = {e.candidate for _, e in world.journal if isinstance(e, msg.Paused)}
    assert paused
    assert all(world.ledger.candidates[id_].state is State.EVALUATED for id_ in paused)


def test_when_the_time_is_over_nothing_is_trained_again_either():
    world = World(groups=2, evaluations=200, limit_s=50.0, repeats=3, finalists=2).run()
    orders = [(time, e) for time, e in world.journal if isinstance(e, ev.Ordered)]
    assert not [e for time, e in orders if e.work in ("repeat", "retrain") and time > 50]
    assert world.ledger.finished.endswith("; the job's 50 s are over")


def test_a_limit_on_the_error_is_one_on_that_of_the_full_budget():
    arguments = {"groups": 2, "evaluations": 30, "rungs": RUNGS, "limits": {"error": 0.2}}
    world = Learning(**arguments).run()
    assert world.ledger.front
    assert all(world.ledger.candidates[id_].error <= 0.2 for id_ in world.ledger.front)
    cut, early = next(
        (i, world.ledger.candidates[e.candidate].rung_errors[0])
        for i, (_, e) in enumerate(world.journal)
        if isinstance(e, ev.Promoted) and world.ledger.candidates[e.candidate].rung_errors[0] > 0.2
    )
    assert early > 0.2
    resumed = Learning(**arguments, journal=world.journal[: cut + 1]).run()
    assert not resumed.ledger.standing[State.REJECTED]


def test_patience_counts_those_that_could_have_joined_the_front():
    world = Learning(groups=2, evaluations=60, rungs=RUNGS, patience=12).run()
    assert len(world.ledger.evaluated) > 30


def test_a_rung_compares_what_all_had_after_its_budget():
    world = Learning(groups=2, evaluations=30, rungs=RUNGS).run()
    it = next(it for it in world.ledger.candidates.values() if len(it.rung_errors) == 3)
    assert world.coordinator.agenda._point(it, 0) == (it.rung_errors[0], it.latency_s)
    assert it.rung_errors[0] > it.error


def test_a_target_that_was_met_is_met_in_the_next_job_too():
    target = {"error": 0.1, "latency_s@any": 0.02}
    world = World(groups=2, evaluations=200, target=target).run()
    done = len(world.ledger.evaluated)
    resumed = World(groups=2, evaluations=200, target=target, journal=world.journal).run()
    assert len(resumed.ledger.evaluated) == done
    assert not [order for _, order in resumed.sent if isinstance(order, msg.Evaluate)]


def test_a_baseline_that_was_never_evaluated_is_no_finalist():
    class Nowhere(World):
        def ask_device(self, device, candidate, seconds, answer):
            """Nobody answers."""

    world = Nowhere(groups=2, evaluations=5, finalists=2)
    world.run(until=lambda w: w.ledger.trainers and len(w.ledger.standing[State.MEASURING]) > 1)
    world.coordinator.agenda.exhausted = True
    assert 0 not in world.coordinator.agenda.retrainings()
