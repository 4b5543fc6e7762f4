"""The simulated world and the planner: values that can be reckoned by hand, and what a journal of it is worth."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import SPACE, World, objectives_of

from mpinas.cli import cli
from mpinas.config import read_experiment
from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.ledger import Ledger
from mpinas.coordination.lifecycle import State
from mpinas.errors import UserError
from mpinas.history.journal import Journal
from mpinas.history.run_folder import RunFolder
from mpinas.simulation import planner
from mpinas.simulation.ask import Question, machine_for, notes
from mpinas.simulation.durations import Empirical, Fixed, LogNormal, around
from mpinas.simulation.figures import Figures, diagnose
from mpinas.simulation.landscape import Landscape, limit_for
from mpinas.simulation.machine import speed_up
from mpinas.simulation.past_run import Seen, seen_in
from mpinas.simulation.show import duration, rows
from mpinas.simulation.stations import Job, Station, Timeline

DIGITS = Path(__file__).parents[2] / "examples" / "digits.toml"


# --- durations


def test_a_draw_depends_on_its_key_alone():
    train = LogNormal(300.0, 0.5)
    assert train.draw((1, 2)) == train.draw((1, 2)) != train.draw((1, 3))
    seconds = [train.draw((0, each)) for each in range(4000)]
    assert sum(seconds) / 4000 == pytest.approx(300, rel=0.03)
    assert sorted(seconds)[2000] == pytest.approx(300 * 2.718281828 ** (-(0.5**2) / 2), rel=0.05)
    assert around(7.0, 0.0) == Fixed(7.0)
    assert {Empirical((1.0, 4.0)).draw((each,)) for each in range(20)} == {1.0, 4.0}
    assert Empirical((1.0, 4.0)).mean_s == 2.5


def test_a_group_speeds_up_as_amdahl_says():
    assert [speed_up(0.1, size) for size in (1, 9, 10**9)] == pytest.approx([1.0, 5.0, 10.0])


# --- stations


def run_out(timeline):
    while timeline.queue:
        timeline.now_s = timeline.queue[0][0]
        timeline.pop()()


def test_two_servers_and_three_jobs():
    timeline, done = Timeline(), []
    station = Station(timeline, 2)
    for candidate in range(3):
        station.submit(Job(candidate, 2.0, lambda candidate=candidate: done.append((candidate, timeline.now_s))))
    assert station.waiting == 1
    run_out(timeline)
    assert done == [(0, 2.0), (1, 2.0), (2, 4.0)]
    assert station.usage.upto(4.0).share == 6.0 / 8.0


def test_what_an_outage_interrupts_begins_anew_and_before_what_waited():
    timeline, done = Timeline(), []
    station = Station(timeline, 1)
    for candidate in range(2):
        station.submit(Job(candidate, 3.0, lambda candidate=candidate: done.append((candidate, timeline.now_s))))
    timeline.later(1.0, station.stop)
    timeline.later(5.0, station.resume)
    run_out(timeline)
    assert done == [(0, 8.0), (1, 11.0)]
    usage = station.usage.upto(11.0)
    assert (usage.busy_s, usage.there_s) == (7.0, 7.0)


def test_nothing_is_heard_of_a_candidate_that_was_dropped():
    timeline, done = Timeline(), []
    station = Station(timeline, 1)
    for candidate in (1, 2, 1, 3):
        station.submit(Job(candidate, 1.0, lambda candidate=candidate: done.append((candidate, timeline.now_s))))
    station.drop(1)
    station.drop(99)
    run_out(timeline)
    assert done == [(2, 2.0), (3, 3.0)]


# --- the world


def test_a_search_small_enough_to_reckon_by_hand():
    """One trainer; export 1 s, measuring 2 s one after the other; training 10 s; assessing 1 s; judging 0.7 s."""

    class Tiny(World):
        def train(self, group, order):
            return 10.0, msg.Evaluated(group, order.candidate, order.attempt, {"error": order.candidate + 1.0}, 10.0)

        def ready(self, rank, host):
            return 0.0, msg.Ready(rank, host, "cpu")

    world = Tiny(
        groups=1, evaluations=3, machine={"exporters": 1, "devices": 1, "export": Fixed(1.0), "measure": Fixed(2.0)}
    )
    world.run(lambda w: w.ledger.count(State.EVALUATED) == 3)
    exported = [t for t, e in world.journal if isinstance(e, ev.Exported)]
    measured = [t for t, e in world.journal if isinstance(e, ev.Measured)]
    assert exported == [1.0, 2.0, 4.0], "two are kept ahead: the third is proposed when the first is trained"
    assert measured == [3.0, 5.0, 7.0]
    assert [t for t, e in world.journal if isinstance(e, ev.Ordered)][:3] == [3.0, 13.0, 23.0]
    assert world.time == 33.0
    at_the_end = world.usages()
    assert at_the_end.trainers == pytest.approx(30 / 33)
    assert at_the_end.devices == pytest.approx(6 / 33)
    assert at_the_end.exporters == pytest.approx(3 / 33)
    assert world.last_training.time == 23.0
    assert world.last_training.trainers == pytest.approx(20 / 23)
    world.run()
    assert world.ledger.occupation.utilisation == pytest.approx(
        (30 + len(world.ledger.finalists())) / (33 + len(world.ledger.finalists()))
    )


def test_the_link_keeps_a_device_for_its_round_trip():
    slow = World(groups=1, evaluations=3, machine={"devices": 1, "measure": Fixed(2.0), "round_trip_s": 0.5})
    slow.run()
    assert [t for t, e in slow.journal if isinstance(e, ev.Measured)] == pytest.approx([2.6, 5.1, 7.6])


def test_trainers_report_every_epoch_and_the_error_falls():
    world = World(groups=2, evaluations=4, rungs=(5,), progress=True).run()
    told = [e for _, e in world.journal if isinstance(e, msg.Progress) and e.candidate == 1]
    assert [(e.epoch, e.epochs) for e in told] == [(1, 5), (2, 5), (3, 5), (4, 5)]
    errors = [e.error for e in told] + [world.ledger.candidates[1].metrics["error"]]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == objectives_of(world.genomes[1])[0]


def test_an_outage_is_told_and_trainers_go_on_with_predictions():
    machine = {"devices": 1, "outages": ((60.0, 120.0),)}
    world = World(groups=3, evaluations=60, machine=machine, proposals_max=200).run()
    lost, back = ([t for t, e in world.journal if isinstance(e, kind)] for kind in (ev.DeviceLost, ev.DeviceBack))
    assert (lost, back) == ([60.0], [120.0])
    assert not [t for t, e in world.journal if isinstance(e, ev.Measured) and 60.0 < t < 120.0]
    assert [t for t, e in world.journal if isinstance(e, ev.Measured) and t > 120.0]
    ordered = [t for t, e in world.journal if isinstance(e, ev.Ordered) and e.work == "evaluate" and 70.0 < t < 110.0]
    assert len(ordered) >= 15, "trainings of at most 8 s on three trainers, for 40 s"
    assert world.trained_predicted > 0
    assert not any(world.ledger.candidates[id_].predicted for id_ in world.ledger.front)


def test_a_trainer_at_work_is_given_no_order():
    world = World(groups=2, evaluations=5).run(lambda w: w.under_way)
    (order,) = world.under_way.values()
    with pytest.raises(Exception, match="are at work"):
        world._begin(order.members, order)


def test_told_to_stop_a_trainer_reports_nothing_of_its_work():
    world = World(groups=2, evaluations=9).run(lambda w: len(w.sent) == 6)
    done = world.ledger.count(State.EVALUATED)
    assert len(world.under_way) == 2
    ends = min(time for time, _, what in world.queue if getattr(what, "func", None) == world._end)
    world.later(ends - world.time - 0.05, ev.StopRequested("SIGINT"))  # stopping takes longer than what is left
    world.run()
    assert world.time > ends
    assert world.left
    assert world.ledger.count(State.EVALUATED) == done


# --- what a journal of it is worth


@settings(max_examples=15, deadline=None)
@given(
    groups=st.integers(1, 5),
    seed=st.integers(0, 5),
    rungs=st.sampled_from([(4,), (1, 4), (1, 2, 4)]),
    cut=st.floats(0, 1),
    algorithm=st.sampled_from(["nsga2", "random"]),
)
def test_a_replayed_journal_gives_an_equal_ledger_and_asks_what_was_asked_next(groups, seed, rungs, cut, algorithm):
    terms = {"groups": groups, "evaluations": 14, "seed": seed, "rungs": rungs, "algorithm": algorithm}
    world = World(**terms, progress=True).run()
    folded = Ledger(world.ledger.terms).apply_all(world.journal)
    for name in ("candidates", "front", "occupation", "standing", "trainers", "groups", "finished"):
        assert getattr(folded, name) == getattr(world.ledger, name), name
    proposals = [i for i, (_, e) in enumerate(world.journal) if isinstance(e, ev.Proposed) and e.candidate > 0]
    killed_at = proposals[int(cut * (len(proposals) - 1))]
    resumed = World(**terms, journal=world.journal[:killed_at])
    assert resumed.coordinator.search.ask() == world.journal[killed_at][1].genome
    whole = World(**terms, journal=world.journal[:killed_at]).run()
    assert whole.ledger.count(State.EVALUATED) >= 14
    assert whole.left


def test_the_same_seed_is_the_same_run():
    machine = {"train": LogNormal(10.0, 0.5), "measure": LogNormal(1.0, 0.2), "devices": 1}
    one, same = (World(groups=4, evaluations=12, machine=machine, seed=3).run().journal for _ in range(2))
    assert one == same


# --- figures


FIGURES = Figures(
    ranks=9, trainers=8, nodes=3, devices=1, exporters=1, seconds_to_finish=7200.0, node_hours=6.0, evaluated=100,
    rejected=0, failed=0, proposed=100, predicted=0, front=5, trainings=100, evaluations_per_hour=50.0,
    trainer_utilisation=0.97, trainer_utilisation_search=0.99, device_utilisation=0.5, exporter_utilisation=0.5,
    coordinator_utilisation=0.01, events=1000, handle_p99_ms=1.0, handle_mean_ms=0.1, proposal_mean_ms=1.0, finished="",
)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "bottleneck"),
    [
        ({}, "trainers"),
        ({"device_utilisation": 1.0}, "trainers"),
        ({"trainer_utilisation_search": 0.6, "device_utilisation": 0.99}, "device"),
        ({"trainer_utilisation_search": 0.6, "exporter_utilisation": 0.99}, "exporter"),
        ({"trainer_utilisation_search": 0.6, "device_utilisation": 0.9, "exporter_utilisation": 0.99}, "exporter"),
        ({"trainer_utilisation_search": 0.6, "coordinator_utilisation": 1.7}, "coordinator"),
        ({"trainer_utilisation_search": 0.6, "trainings": 20}, "evaluations"),
        ({"trainer_utilisation": 0.6, "trainings": 20}, "evaluations"),
        ({"trainer_utilisation_search": 0.6}, "dependencies"),
    ],
)
def test_what_holds_a_search_back_is_named(changed, bottleneck):
    named, advice = diagnose(replace(FIGURES, **changed))
    assert named == bottleneck
    assert advice


def test_it_is_said_where_most_was_trained_unmeasured():
    assert "predicted" not in diagnose(FIGURES)[1]
    assert "most candidates were trained by predicted latencies" in diagnose(replace(FIGURES, predicted=51))[1]


def test_the_table_says_durations_as_people_do():
    assert [duration(59.6), duration(3661), duration(2 * 86_400 + 1)] == ["00:01:00", "01:01:01", "2 d 00:00:01"]
    assert dict(rows(FIGURES))["time to finish"] == "02:00:00"


# --- the planner


@pytest.fixture(scope="module")
def experiment():
    return read_experiment(DIGITS, ["search.evaluations=40", "search.rungs=[]"])


def planned(experiment, **question):
    asked = Question(**({"ranks": 9, "round_trip_s": 0.0, "algorithm": "nsga2"} | question))
    return planner.simulate(experiment, SPACE, {"baseline": "x"}, asked, lambda: 0.0)


def test_a_plan_by_value(experiment):
    """8 trainers of 100 s share 40 trainings: five rounds, begun when the first measurement is there."""
    found = planned(experiment, train_s=100.0, train_spread=0.0, export_s=0.01, measure_s=0.01, assess_s=0.001)
    assert found.evaluated == 40
    assert (found.trainers, found.nodes) == (8, 3)
    assert found.seconds_to_finish == pytest.approx(500, rel=0.02)
    assert found.node_hours == pytest.approx(3 * 500 / 3600, rel=0.02)
    assert found.evaluations_per_hour == pytest.approx(40 * 3600 / 500, rel=0.02)
    assert found.trainer_utilisation > 0.98
    assert diagnose(found)[0] == "trainers"


def test_more_exporters_help_where_the_exporter_is_the_bottleneck(experiment):
    slow = {"train_s": 10.0, "train_spread": 0.0, "export_s": 20.0, "measure_s": 0.01, "ranks": 5}
    one, eight = planned(experiment, **slow), planned(experiment, **slow, exporters=8)
    assert diagnose(one)[0] == "exporter"
    assert one.exporter_utilisation > 0.9
    assert eight.seconds_to_finish < one.seconds_to_finish


def test_shares_of_rejected_and_failed(experiment):
    found = planned(experiment, rejected_share=0.5, failed_share=0.25, measure_s=0.1, export_s=0.1)
    assert found.evaluated == 40
    assert found.rejected > 5
    assert found.failed > 3


def test_a_share_of_the_space_breaks_the_limit():
    landscape = Landscape(SPACE, 5)
    limit_s = limit_for(landscape, SPACE, 0.3)
    latencies_s = [landscape(genome)[1] for genome in SPACE.every()]
    assert sum(each > limit_s for each in latencies_s) / len(latencies_s) == pytest.approx(0.3, abs=0.05)
    assert landscape({"baseline": "x"})[1] == pytest.approx(1e-3), "of medium size"


# --- a run of the past

JOURNAL = [
    (0.0, ev.Begun("0", 2, "toy", False)),
    (0.0, ev.Proposed(0, {})),
    (0.0, ev.Proposed(1, {})),
    (0.5, msg.Ready(1, "a", "cpu")),
    (0.5, msg.Ready(2, "a", "cpu")),
    (2.0, ev.Exported(0, 1, 1, 2.0)),
    (3.0, ev.Exported(1, 1, 1, 1.0)),
    (7.0, ev.Measured(0, {"p50_s": 1.0, "device": "d"})),  # 5 s
    (7.0, ev.Ordered(0, 1, (1, 2), "evaluate", 0)),
    (10.0, ev.Measured(1, {"p50_s": 1.0, "device": "d"})),  # 3 s
    (11.0, ev.Proposed(2, {})),
    (17.0, msg.Evaluated(1, 0, 1, {"error": 1.0}, 9.0)),  # 10 s for 2 epochs by two
    (17.0, ev.Ordered(1, 1, (1,), "evaluate", 0)),
    (23.0, ev.Exported(2, 1, 1)),  # as journals of version 0.1.0 had it: it says nothing
    (27.0, msg.EvaluationFailed(1, 1, 1, "diverged", "")),
    (28.0, ev.Rejected(2, "limit")),
    (30.0, ev.Promoted(0, 1)),
    (30.0, ev.Ordered(0, 2, (2,), "evaluate", 1)),
    (54.0, msg.Evaluated(2, 0, 2, {"error": 1.0}, 24.0)),  # 24 s for 6 epochs more by one
    (54.0, ev.Ordered(0, 3, (2,), "assess")),
    (58.0, msg.Assessed(2, 0, 3, {}, 0.0)),  # 4 s
]  # fmt: skip


def test_durations_of_a_past_run():
    seen = seen_in(JOURNAL, rungs=(2, 8), serial_share=0.0)
    assert seen.export_s == [2.0, 1.0]
    assert seen.measure_s == [5.0, 3.0]
    assert seen.epoch_s == [10.0 * 2 / 2, 24.0 / 6]
    assert seen.assess_s == [4.0]
    assert (seen.trained, seen.failed, seen.rejected) == (1, 1, 1)
    assert (seen.failed_share, seen.rejected_share) == (0.5, pytest.approx(1 / 3))
    machine = machine_for(Question(ranks=3, seen=seen, measure_s=9.0), epochs=8)
    assert machine.train == Empirical((80.0, 32.0))
    assert (machine.measure, machine.export) == (Fixed(9.0), Empirical((2.0, 1.0)))
    assert machine.failed_share == 0.5


def test_a_training_that_was_paused_is_two_spans_of_one():
    history = [
        (0.0, ev.Begun("0", 2, "toy", False)),
        (0.0, ev.Ordered(0, 1, (1,), "evaluate", 0)),
        (9.0, msg.Paused(1, 0, 1, 3, 9.0)),  # 3 s an epoch by one
        (9.0, ev.Ordered(0, 2, (1, 2), "evaluate", 0)),
        (19.0, msg.Evaluated(1, 0, 2, {"error": 1.0}, 10.0)),  # 2 s an epoch by two: 4 s by one
    ]
    seen = seen_in(history, rungs=(8,), serial_share=0.0)
    assert seen.epoch_s == [3.0, 4.0]
    assert seen.trained == 1


def test_a_run_in_which_nothing_was_trained_teaches_nothing():
    with pytest.raises(UserError, match="no candidate was trained"):
        seen_in(JOURNAL[:9], (8,), 0.0)


def test_what_is_assumed_is_said(experiment):
    assert notes(experiment, Question(ranks=3)) == ()
    assert notes(experiment, Question(ranks=3, exporters=2)) == (
        "for 2 exporters write edge.exporters = 2 into the experiment",
    )
    (said,) = notes(experiment, Question(ranks=3, seen=Seen()))
    assert "does not say how long exports took" in said
    assert notes(experiment, Question(ranks=3, seen=Seen(), export_s=1.0)) == ()


# --- the command


def simulate(*arguments):
    return CliRunner().invoke(cli, ["simulate", *map(str, arguments)], standalone_mode=False)


SMALL = ("--ranks", 5, "--set", "search.evaluations=12", "--set", "search.rungs=[]", "--algorithm", "nsga2")


def test_the_command_as_json():
    result = simulate(DIGITS, *SMALL, "--train-seconds", 60, "--outage", "100:150", "--json")
    found = json.loads(result.stdout)
    utilisations = {f"{what}_utilisation" for what in ("trainer", "device", "exporter", "coordinator")}
    assert utilisations | {"evaluations_per_hour", "seconds_to_finish", "node_hours", "bottleneck"} <= found.keys()
    assert found["simulated"] is True
    assert found["evaluated"] == 12
    assert all(isinstance(value, (int, float, str, bool)) for value in found.values()), "flat"


def test_the_table_says_that_it_is_simulated():
    result = simulate(DIGITS, *SMALL)
    assert result.stdout.count("SIMULATED") == 2
    assert "bottleneck: " in result.stdout


def test_a_past_run_is_read_from_its_folder(tmp_path, experiment):
    folder = RunFolder.create(tmp_path / "run", experiment)
    journal = Journal(folder.journal_file)
    for time, event in World(groups=2, evaluations=6, rungs=(experiment.training.epochs,)).run().journal:
        journal.append(time, event)
    journal.close()
    found = json.loads(simulate(DIGITS, *SMALL, "--from", tmp_path / "run", "--json").stdout)
    # virtual_time: 5 to 8 s a training, on one trainer
    assert 12 * 5 / 4 < found["seconds_to_finish"] < 12 * 8 / 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ranks", "0"], "--ranks 0: give a number from 1 to 1,000,000"),
        (["--ranks", "99999999"], "--ranks 99999999"),
        (["--devices", "0"], "--devices 0"),
        (["--exporters", "0"], "--exporters 0: give a number from 1 to 256"),
        (["--exporters", "257"], "--exporters 257"),
        (["--train-seconds", "-3"], "--train-seconds -3: give seconds above 0"),
        (["--train-seconds", "nan"], "--train-seconds nan"),
        (["--measure-seconds", "0"], "--measure-seconds 0"),
        (["--train-spread", "7"], "--train-spread 7"),
        (["--round-trip-ms", "-1"], "--round-trip-ms -1"),
        (["--rejected", "1"], "--rejected 1: give a share from 0 to 0.99"),
        (["--outage", "5"], "--outage 5: write FROM:TO"),
        (["--outage", "9:5"], "FROM before TO"),
        (["--outage", "1:5", "--outage", "4:6"], "one outage after the other"),
        (["--algorithm", "nsga9"], "--algorithm nsga9: known are surrogate"),
        (["--from", "/nowhere"], "/nowhere: no such run folder"),
    ],
)
def test_what_makes_no_sense_is_one_line(arguments, says):
    result = simulate(DIGITS, *arguments)
    assert isinstance(result.exception, UserError)
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)
