"""The coordinator in virtual time: real decisions, real search, no MPI, no device, no clock."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import BASELINE, SPACE, World, error_of, latency_of

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.commands import Record
from mpinas.coordination.ledger import Ledger
from mpinas.coordination.lifecycle import TRANSITIONS, IllegalTransitionError, State, step
from mpinas.coordination.terms import Terms
from mpinas.errors import ProtocolError, UserError
from mpinas.search import GeneticSearch, SearchSpace


def ordered_at(world, candidate):
    """When its training began."""
    orders = [(t, e) for t, e in world.journal if isinstance(e, ev.Ordered) and e.candidate == candidate]
    (time,) = [time for time, order in orders if order.work == "evaluate"]
    return time


def evaluated(world):
    return sorted(world.ledger.standing[State.EVALUATED])


@pytest.mark.parametrize("groups", [1, 2, 4, 40])
def test_a_whole_search(groups):
    world = World(groups=groups).run()
    ledger = world.ledger
    assert len(evaluated(world)) == 20
    assert ledger.candidates[0].genome == BASELINE
    orders = [order for _, order in world.sent if isinstance(order, msg.Evaluate)]
    assert len({order.candidate for order in orders}) == len(orders) == 20, "no candidate is evaluated twice"
    assert {id_ for id_, c in ledger.candidates.items() if c.assessed} == {*ledger.front, 0}
    assert set(world.discarded) & set(evaluated(world)) == set(evaluated(world)) - {*ledger.front, 0}
    for a in ledger.front:
        for b in evaluated(world):
            mine, other = (ledger.objectives(ledger.candidates[id_]) for id_ in (a, b))
            assert not (other[0] <= mine[0] and other[1] <= mine[1] and other != mine)
    assert ledger.finished == "20 of 20 candidates evaluated"
    assert world.artifacts == set()


def test_groups_never_wait_once_measurements_run_ahead():
    world = World(groups=3, evaluations=40).run()
    starts = {}
    for time, event in world.journal:
        if isinstance(event, ev.Ordered) and event.work == "evaluate":
            starts.setdefault(event.members[0], []).append(time)
    ends = {}
    for time, event in world.journal:
        if isinstance(event, msg.Evaluated):
            ends.setdefault(event.group, []).append(time)
    for group in (1, 2, 3):
        gaps = [begin - end for end, begin in zip(ends[group], starts[group][1:], strict=False)]
        assert max(gaps) == 0.0, f"group {group} waited {max(gaps)} s"
    assert world.ledger.occupation.utilisation > 0.9


def test_limits_reject_before_training_and_never_the_baseline():
    world = World(limits={"latency_s": 0.005, "size_bytes": 25_000}).run()
    orders = [order for _, order in world.sent if isinstance(order, msg.Evaluate)]
    for order in orders:
        if order.candidate != 0:
            assert latency_of(order.genome) <= 0.005
            assert order.genome["width"] <= 25
    rejected = world.ledger.standing[State.REJECTED]
    assert rejected
    reasons = {world.ledger.candidates[id_].reason.split(" = ")[0] for id_ in rejected}
    assert reasons <= {"latency_s", "size_bytes"}
    assert len(evaluated(world)) == 20
    assert 0 in evaluated(world)
    assert 0 not in world.ledger.front, "the baseline breaks the limit, so it is no member of the front"


def test_impossible_limits_end_with_words():
    world = World(limits={"latency_s": 1e-9}, proposals_max=60).run()
    assert evaluated(world) == [0]
    assert "limits may be too tight" in world.ledger.finished


@pytest.mark.parametrize("limit_s", [1e-6, 0.5])
def test_time_that_is_over_before_anything_has_begun_ends_the_run(limit_s):
    world = World(limit_s=limit_s).run()
    assert evaluated(world) == []
    assert world.ledger.finished.startswith("0 of 20 candidates evaluated; the job's ")


def test_a_baseline_that_fails_ends_the_run_with_words():
    class Broken(World):
        def train(self, group, order):
            if order.candidate == 0:
                return 1.0, msg.EvaluationFailed(group, 0, order.attempt, "memory", "too large")
            return super().train(group, order)

    world = Broken().run()
    assert world.ledger.finished == "the baseline, to compare with, failed: memory: too large"


@pytest.mark.parametrize("sound", [None, 17])
def test_a_space_whose_networks_all_fail_ends_the_run_with_words_and_one_that_does_not_goes_on(sound):
    class Broken(World):
        def export(self, candidate, genome):
            if candidate in (0, sound):
                return super().export(candidate, genome)
            return ev.ExportFailed(candidate, "no such layer")

    world = Broken(proposals_max=100).run()
    failed = len(world.ledger.standing[State.FAILED])
    if sound is None:
        assert 20 <= failed <= 30
        assert world.ledger.finished == f"all {failed} networks so far failed, the last: export: no such layer"
        again = Broken(journal=world.journal[:-3]).run()
        assert again.ledger.finished.startswith(f"all {failed} networks so far failed")
    else:
        assert failed == 98
        assert world.ledger.finished.startswith("2 of 20 candidates evaluated; stopped after 100 proposals")


def test_resumed_with_fewer_evaluations_nothing_more_is_trained_than_asked_for():
    stopped = World(groups=1).run(until=lambda w: len(evaluated(w)) == 1)
    resumed = World(groups=1, evaluations=2, journal=stopped.journal).run()
    assert len(evaluated(resumed)) == 2


def test_utilisation_survives_a_job_that_ended_before_its_first_report():
    short = World(groups=1).run(until=lambda w: w.sent)
    resumed = World(groups=1, journal=short.journal).run()
    assert 0.5 < resumed.ledger.occupation.utilisation <= 1


def test_a_space_with_too_few_genomes_ends_with_words():
    world = World(space=SearchSpace({"width": [1, 2], "depth": [1, 2]})).run()
    assert len(evaluated(world)) == 5
    assert "holds no more" in world.ledger.finished


def test_failures_are_rows_and_are_replaced():
    class Unlucky(World):
        def train(self, group, order):
            if order.candidate % 3 == 1:
                return 1.0, msg.EvaluationFailed(group, order.candidate, order.attempt, "diverged", "loss is nan")
            return super().train(group, order)

    world = Unlucky().run()
    assert len(evaluated(world)) == 20
    failed = world.ledger.standing[State.FAILED]
    assert failed
    assert all(world.ledger.candidates[id_].reason == "diverged: loss is nan" for id_ in failed)


def test_device_outage_does_not_end_the_search():
    world = World(groups=1, evaluations=10)
    world.run(until=lambda w: len(evaluated(w)) == 3)
    world.device_up = False
    world.later(0.0, ev.DeviceLost("no device"))
    world.run(until=lambda w: not w.queue)
    assert world.ledger.device_lost == "no device"
    assert 3 < len(evaluated(world)) < 10, "what was measured is still trained"
    world.device_up = True
    world.later(60.0, ev.DeviceBack("agx"))
    for answer in world.waiting_for_device:
        world.later(61.0, answer)
    world.run()
    assert len(evaluated(world)) == 10


def test_stop_request_sends_everyone_home_and_nothing_new_is_ordered():
    world = World(groups=3).run(until=lambda w: len(evaluated(w)) == 5)
    before = len(world.sent)
    world.later(0.0, ev.StopRequested("SIGTERM"))
    world.run()
    assert len(world.sent) == before
    assert world.ledger.finished is None


def test_a_stop_requested_after_the_end_is_not_told_twice():
    world = World(groups=2, evaluations=4).run(until=lambda w: w.ledger.finished)
    commands = world.coordinator.handle(ev.StopRequested("SIGTERM"), world.time)
    assert commands == [Record(ev.StopRequested("SIGTERM"))]
    assert world.run().left


def test_stop_before_any_group_is_ready():
    world = World(groups=3)
    world.later(0.5, ev.StopRequested("SIGINT"))
    world.run()
    assert world.sent == []


def test_stale_reports_and_double_orders_are_protocol_errors():
    world = World(groups=1).run(until=lambda w: len(evaluated(w)) == 2)
    with pytest.raises(ProtocolError, match="stale"):
        world.coordinator.handle(msg.Evaluated(0, 0, 1, {"error": 1.0}, 1.0), world.time)
    (order,) = [group.order for group in world.ledger.groups.values()]
    with pytest.raises(ProtocolError, match="outstanding"):
        world.ledger.apply(order, world.time)


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 400), groups=st.integers(1, 4))
def test_a_job_killed_anywhere_resumes_and_loses_nothing(cut, groups):
    unbroken = World(groups=2, evaluations=15).run()
    journal = unbroken.journal[: min(cut, len(unbroken.journal) - 1)]
    done = {e.candidate for _, e in journal if isinstance(e, msg.Evaluated)}
    if any(isinstance(e, ev.Finished) for _, e in journal):
        return
    resumed = World(groups=groups, evaluations=15, journal=journal).run()
    assert done <= set(evaluated(resumed))
    assert len(evaluated(resumed)) == 15
    retrained = {order.candidate for _, order in resumed.sent if isinstance(order, msg.Evaluate)}
    assert not retrained & done, "nothing evaluated is done again"


def test_a_resumed_run_asks_what_the_unbroken_run_asked():
    unbroken = World(groups=1, evaluations=15).run()
    cut = next(i for i, (_, e) in enumerate(unbroken.journal) if isinstance(e, msg.Evaluated) and e.candidate == 9)
    resumed = World(groups=1, evaluations=15, journal=unbroken.journal[: cut + 1]).run()
    assert resumed.genomes == unbroken.genomes
    assert sorted(resumed.ledger.front) == sorted(unbroken.ledger.front)


def test_same_events_same_journal():
    assert World(seed=3).run().journal == World(seed=3).run().journal


def test_folding_the_journal_gives_the_ledger():
    world = World().run()
    folded = Ledger(world.ledger.terms).apply_all(world.journal)
    assert folded.candidates == world.ledger.candidates
    assert folded.front == world.ledger.front
    assert folded.occupation == world.ledger.occupation


@pytest.mark.parametrize(
    ("worst", "objectives"),
    [(False, ("error", "latency_s@any-fast", "latency_s@slow")), (True, ("error", "latency_s"))],
)
def test_several_devices_each_candidate_is_measured_on_all_before_it_is_ready(worst, objectives):
    world = World(devices=("any-fast", "slow"), worst=worst).run()
    ledger = world.ledger
    assert ledger.terms.objectives == objectives
    for id_ in evaluated(world):
        it = ledger.candidates[id_]
        fast = latency_of(it.genome)
        assert it.latencies_s == pytest.approx({"any-fast": fast, "slow": 3 * fast})
        assert ledger.objectives(it)[1:] == pytest.approx((3 * fast,) if worst else (fast, 3 * fast))
        measured = [time for time, e in world.journal if isinstance(e, ev.Measured) and e.candidate == id_]
        assert max(measured) <= ordered_at(world, id_)
    assert sorted(world.judged) == sorted((id_, d) for id_ in ledger.finalists() for d in ("any-fast", "slow"))
    assert ledger.finished == "20 of 20 candidates evaluated"


def test_the_front_of_three_objectives_keeps_what_is_best_on_one_device_only():
    world = World(groups=1, evaluations=2, devices=("a", "slow"))
    a, b = {"a": 1.0, "slow": 3.0}, {"a": 2.0, "slow": 2.0}
    values = world.ledger.terms.values
    assert values(0.5, a) == (0.5, 1.0, 3.0)
    assert values(0.5, b) == (0.5, 2.0, 2.0)

    class Opposite(World):
        def measure(self, candidate, device, repetition):
            answer = super().measure(candidate, device, repetition)
            seconds = latency_of(self.genomes[candidate])
            answer.measurement["p50_s"] = seconds if device == "a" else 1 / seconds
            return answer

        def train(self, group, order):
            return 1.0, msg.Evaluated(group, order.candidate, order.attempt, {"error": 0.5}, 1.0)

    world = Opposite(devices=("a", "b")).run()
    assert sorted(world.ledger.front) == evaluated(world), "each is faster than any other on one of the two"
    worst = Opposite(devices=("a", "b"), worst=True).run()
    assert len(worst.ledger.front) < len(evaluated(worst))


def test_limits_hold_on_every_device():
    world = World(devices=("a", "slow"), limits={"latency_s": 0.015}).run()
    for id_ in evaluated(world):
        assert id_ == 0 or 3 * latency_of(world.genomes[id_]) <= 0.015
    reasons = {world.ledger.candidates[id_].reason.split(" = ")[0] for id_ in world.ledger.standing[State.REJECTED]}
    assert "latency_s on slow" in reasons
    answers = [e for _, e in world.journal if isinstance(e, ev.Measured)]
    assert any(world.ledger.candidates[e.candidate].state is State.REJECTED for e in answers)


class Doubtful(World):
    """Candidate 2 is unsteady `bad` times, candidate 3 for ever."""

    bad = 1

    def measure(self, candidate, device, repetition, **more):
        unsteady = (candidate == 2 and repetition < self.bad) or candidate == 3
        return super().measure(candidate, device, repetition, doubts=("unsteady",) if unsteady else (), **more)


def test_doubtful_measurements_are_made_again_before_training_and_then_marked():
    world = Doubtful().run()
    assert [asked for asked in world.measured if asked[0] == 2] == [(2, "any", 0), (2, "any", 1)]
    assert [asked for asked in world.measured if asked[0] == 3] == [(3, "any", 0), (3, "any", 1), (3, "any", 2)]
    candidates = world.ledger.candidates
    assert candidates[2].doubts == {}
    assert candidates[3].doubts == {"any": ("unsteady",)}
    assert candidates[3].history[:3] == [State.PROPOSED, State.MEASURING, State.READY]
    for id_ in (2, 3):
        last = max(time for time, e in world.journal if isinstance(e, ev.Measured) and e.candidate == id_)
        (ordered,) = [
            t for t, e in world.journal if isinstance(e, ev.Ordered) and e.candidate == id_ and e.work == "evaluate"
        ]
        assert last <= ordered
    assert all(asked[2] == 0 for asked in world.measured if asked[0] not in (2, 3))


def test_a_doubtful_measurement_rejects_nobody():
    class Slow(World):
        def measure(self, candidate, device, repetition):
            answer = super().measure(candidate, device, repetition, doubts=() if repetition else ("throttled",))
            if not repetition:
                answer.measurement["p50_s"] = 1.0
            return answer

    world = Slow(limits={"latency_s": 0.9}).run()
    assert not world.ledger.standing[State.REJECTED]
    assert len(evaluated(world)) == 20


def test_a_measurement_that_cannot_be_made_again_stays_and_stays_in_doubt():
    class Crashing(Doubtful):
        def measure(self, candidate, device, repetition):
            if candidate == 3 and repetition:
                return ev.MeasurementFailed(3, "crashed", "signal 11", device, repetition)
            return super().measure(candidate, device, repetition)

    world = Crashing().run()
    it = world.ledger.candidates[3]
    assert it.state is State.EVALUATED
    assert it.doubts["any"] == ("unsteady", "not measured again (crashed)", "not measured again (crashed)")


def test_drift_found_later_measures_again_what_is_wanted_and_the_front_follows():
    class Drifting(World):
        def measure(self, candidate, device, repetition):
            answer = super().measure(candidate, device, repetition)
            if repetition:
                answer.measurement["p50_s"] *= 100  # it was only so fast by mistake
            return answer

        def train(self, group, order):
            seconds, report = super().train(group, order)
            report.metrics["error"] += order.candidate % 3 == 1  # so that some leave the front at once
            return seconds, report

    world = Drifting(groups=1).run(until=lambda w: len(evaluated(w)) == 10)
    front = sorted((id_ for id_ in world.ledger.front if id_ != 0), key=lambda id_: -error_of(world.genomes[id_]))
    dropped = [id_ for id_ in evaluated(world) if id_ not in (*front, 0)]
    assert front
    assert dropped
    before = len(world.measured)
    victim = front[0]
    ids = (f"{victim}-any-0", f"{dropped[0]}-any-0", "somebody else's")
    commands = world.coordinator.handle(ev.Doubted(ids, "the reference model is 12% slow"), world.time)
    recorded = [command.event for command in commands if isinstance(command, Record)]
    assert recorded == [ev.Doubted(tuple(sorted(ids[:2])), "the reference model is 12% slow")]
    for command in [*commands, *world.coordinator.idle(world.time)]:
        world.execute(command)
    assert world.measured[before:] == [(victim, "any", 1)], "not what left the front long ago"
    assert world.ledger.candidates[victim].doubts == {"any": ("the reference model is 12% slow",)}
    world.run(until=lambda w: w.ledger.candidates[victim].readings["any"].repetition == 1)
    assert world.ledger.candidates[victim].doubts == {}
    assert world.ledger.candidates[victim].latency_s == pytest.approx(100 * latency_of(world.genomes[victim]))
    assert victim not in world.ledger.front
    assert victim in world.discarded
    world.run()
    assert world.artifacts == set()
    told_so_at_first = GeneticSearch(SPACE, 2, seed=0, population_size=6)
    for id_ in range(1, len(world.genomes)):
        told_so_at_first.restore(world.genomes[id_])
    for id_ in world.ledger.standing[State.EVALUATED]:
        if id_ != 0:
            told_so_at_first.tell(world.genomes[id_], world.ledger.objectives(world.ledger.candidates[id_]))
    assert [told_so_at_first.ask() for _ in range(5)] == [world.coordinator.search.ask() for _ in range(5)]
    folded = Ledger(world.ledger.terms).apply_all(world.journal)
    assert folded.candidates == world.ledger.candidates
    assert folded.front == world.ledger.front
    assert world.coordinator.handle(ev.Doubted(("unknown",), "x"), world.time) == []


class SlowerAgain(World):
    """What is measured again is 100 times slower at first, and nobody believes it."""

    unbelieved = 1

    def measure(self, candidate, device, repetition):
        doubtful = 0 < repetition <= self.unbelieved
        answer = super().measure(candidate, device, repetition, doubts=("unsteady",) if doubtful else ())
        if repetition:
            answer.measurement["p50_s"] *= 100 if doubtful else 1.01
        return answer


def doubt_a_front_member(world):
    """Have the fastest of the front doubted; return it."""
    victim = min((id_ for id_ in world.ledger.front if id_ != 0), key=lambda id_: latency_of(world.genomes[id_]))
    for command in world.coordinator.handle(ev.Doubted((f"{victim}-any-0",), "drift"), world.time):
        world.execute(command)
    return victim


def test_a_doubtful_measurement_takes_nobody_off_the_front():
    world = SlowerAgain(groups=1).run(until=lambda w: len(evaluated(w)) == 10)
    victim = doubt_a_front_member(world)
    world.run(until=lambda w: w.ledger.candidates[victim].readings["any"].repetition == 1)
    assert victim in world.ledger.front
    assert world.ledger.candidates[victim].latency_s == latency_of(world.genomes[victim])
    world.run()
    assert [asked for asked in world.measured if asked[0] == victim] == [(victim, "any", n) for n in range(3)]
    reading = world.ledger.candidates[victim].readings["any"]
    assert (reading.doubts, reading.times) == ((), 3)
    assert reading.latency_s == pytest.approx(1.01 * latency_of(world.genomes[victim]))
    assert victim in world.ledger.front
    assert victim not in world.discarded


def test_what_stays_in_doubt_counts_as_it_was_measured_last():
    class Always(SlowerAgain):
        unbelieved = 2

    world = Always(groups=1).run(until=lambda w: len(evaluated(w)) == 10)
    victim = doubt_a_front_member(world)
    world.run()
    reading = world.ledger.candidates[victim].readings["any"]
    assert (reading.doubts, reading.times) == (("unsteady",), 3)
    assert reading.latency_s == pytest.approx(100 * latency_of(world.genomes[victim]))
    assert victim not in world.ledger.front


def test_who_comes_back_to_the_front_without_files_is_assessed_again_and_says_so():
    class Wrong(World):
        """Candidate 4, when measured again, seems to be the fastest of all, and the next time is not."""

        def measure(self, candidate, device, repetition):
            answer = super().measure(candidate, device, repetition)
            if repetition == 1:
                answer.measurement["p50_s"] = 1e-9
            return answer

        def train(self, group, order):
            seconds, report = super().train(group, order)
            report.metrics["error"] = 0.01 if order.candidate == 4 else report.metrics["error"]
            return seconds, report

    world = Wrong(groups=1, evaluations=8).run(until=lambda w: w.judged and not w.coordinator.agenda.assessable())
    before = [id_ for id_ in world.ledger.front if id_ not in (0, 4)]
    assert before
    assert 4 in world.ledger.front
    answers = [ev.Doubted(("4-any-0",), "drift"), world.measure(4, "any", 1), ev.Doubted(("4-any-1",), "drift")]
    for event in answers:
        for command in world.coordinator.handle(event, world.time):
            world.execute(command)
    assert world.ledger.front == [4]
    gone = world.ledger.candidates[before[0]]
    assert before[0] in world.discarded
    assert (gone.assessed, gone.onnx_difference, gone.verdicts, gone.test_metrics) == (False, None, {}, {})
    world.run()
    assert {*before} <= {*world.ledger.front}
    ordered = [e.candidate for _, e in world.journal if isinstance(e, ev.Ordered) and e.work == "assess"]
    assert ordered.count(before[0]) == 2


def test_a_measurement_given_up_may_come_late_or_in_the_next_job():
    class Lost(World):
        def measure(self, candidate, device, repetition):
            return ev.DeviceLost("gone", device) if repetition else super().measure(candidate, device, repetition)

    world = Lost(groups=1, evaluations=5).run(until=lambda w: len(evaluated(w)) == 4)
    victim = doubt_a_front_member(world)
    world.run(until=lambda w: not w.queue)
    given_up = world.coordinator.overdue(world.time + 600)
    assert ev.MeasurementFailed(victim, "no-answer", "no device for 600 s", "any", 1) in given_up
    for event in given_up:
        for command in world.coordinator.handle(event, world.time + 600):
            world.execute(command)
    reading = world.ledger.candidates[victim].readings["any"]
    assert (reading.settled, reading.times) == (True, 1)
    assert world.ledger.candidates[victim].doubts == {"any": ("drift", "no device was there to measure it again")}
    late = World.measure(world, victim, "any", 1)
    journal = list(world.journal)
    assert world.coordinator.handle(late, world.time + 601) == [], "the results are out"
    again = World(groups=1, evaluations=5, journal=journal).run()
    assert (victim, "any", 1) in again.measured
    assert again.ledger.candidates[victim].doubts == {}


def test_any_device_means_the_same_device_throughout():
    class Mixed(World):
        def measure(self, candidate, device, repetition):
            name = "nano" if candidate == 3 and repetition == 0 else "agx"
            return super().measure(candidate, device, repetition, name=name)

    world = Mixed().run()
    answers = [e for _, e in world.journal if isinstance(e, ev.Measured) and e.candidate == 3]
    assert [e.doubts for e in answers] == [("another device: not agx (orin)",), ()]


def test_normalised_latencies_are_the_objectives_and_the_raw_ones_are_in_the_journal():
    class Warm(World):
        def measure(self, candidate, device, repetition):
            return super().measure(candidate, device, repetition, factor=0.5)

    world = Warm(limits={"p50_s": 0.006}).run()
    for id_ in evaluated(world):
        it = world.ledger.candidates[id_]
        raw = latency_of(it.genome)
        assert it.readings["any"].measurement["p50_s"] == raw
        assert world.ledger.objectives(it)[1] == it.latency_s == pytest.approx(raw / 2)
        assert id_ == 0 or raw / 2 <= 0.006


@pytest.mark.parametrize(
    ("error", "accepted"), [(0.4, True), (0.408, True), (0.392, True), (0.409, False), (0.39, False), (0.0, False)]
)
def test_a_trained_model_is_accepted_where_its_error_on_the_device_is_the_network_s(error, accepted):
    class Judging(World):
        def judge(self, candidate, device):
            return ev.Judged(candidate, device, error, 0.4, "fp16")

    world = Judging(groups=2, evaluations=6).run()
    finalists = world.ledger.finalists()
    assert sorted(world.judged) == [(id_, "any") for id_ in finalists]
    assert {world.ledger.accepted(world.ledger.candidates[id_]) for id_ in finalists} == {accepted}
    assert world.ledger.finished == "6 of 6 candidates evaluated"


def test_a_device_that_cannot_run_the_trained_model_is_an_outcome():
    class Failing(World):
        def judge(self, candidate, device):
            return ev.JudgingFailed(candidate, device, "crashed", "signal 11")

    world = Failing(evaluations=4).run()
    assert {world.ledger.accepted(world.ledger.candidates[id_]) for id_ in world.ledger.finalists()} == {False}


def test_accepted_is_said_when_every_device_has_said_so():
    class Half(World):
        def judge(self, candidate, device):
            if device == "slow":
                return ev.DeviceLost("gone", "slow")  # instead of an answer
            return super().judge(candidate, device)

    world = Half(groups=1, evaluations=4, devices=("a", "slow"))
    world.run(until=lambda w: w.judged and not w.queue)
    ledger = world.ledger
    assert {tuple(ledger.candidates[id_].verdicts) for id_ in ledger.finalists()} == {("a",)}
    assert {ledger.accepted(ledger.candidates[id_]) for id_ in ledger.finalists()} == {None}


@pytest.mark.parametrize("reason", ["device-lost", "files", "unsupported"])
def test_a_model_that_no_device_ever_ran_is_not_checked_and_a_later_job_asks_again(reason):
    class NotRun(World):
        def judge(self, candidate, device):
            return ev.JudgingFailed(candidate, device, reason, "for whatever cause")

    world = NotRun(groups=1, evaluations=4, devices=("a", "slow")).run()
    ledger = world.ledger
    assert ledger.finished.endswith(f"; {len(ledger.finalists())} finalists not checked on every device")
    assert {ledger.accepted(ledger.candidates[id_]) for id_ in ledger.finalists()} == {None}
    again = World(groups=1, evaluations=4, devices=("a", "slow"), journal=world.journal).run()
    assert {again.ledger.accepted(again.ledger.candidates[id_]) for id_ in again.ledger.finalists()} == {True}


def test_a_finalist_that_cannot_be_assessed_is_told_at_the_end():
    class Damaged(World):
        def assess(self, group, order):
            return 1.0, msg.AssessmentFailed(group, order.candidate, order.attempt, "error", "its weights are damaged")

    world = Damaged(groups=1, evaluations=4).run()
    without = len(world.ledger.finalists())
    assert world.ledger.finished == (
        f"4 of 4 candidates evaluated; {without} finalists without a model to deploy (`mpinas results` says why)"
    )


def test_without_a_device_at_the_end_the_job_waits_its_time_and_says_so_and_a_later_job_asks_again():
    world = World(groups=1, evaluations=5).run(
        until=lambda w: len(evaluated(w)) == 4 and not w.ledger.count(State.READY)
    )
    world.run(until=lambda w: len(evaluated(w)) == 5)
    world.device_up = False
    lost = world.time
    world.later(0.0, ev.DeviceLost("gone", "any"))
    world.run(until=lambda w: not w.queue)
    assert world.judged
    assert world.ledger.finished is None
    assert world.coordinator.overdue(lost + 599) == []
    waited = world.coordinator.overdue(world.time + 600)
    assert {type(event) for event in waited} == {ev.JudgingFailed}
    for event in waited:
        world.later(600.0, event)
    world.run()
    finalists = world.ledger.finalists()
    assert world.ledger.finished == (
        f"5 of 5 candidates evaluated; {len(finalists)} finalists not checked on every device"
    )
    assert {world.ledger.accepted(world.ledger.candidates[id_]) for id_ in finalists} == {None}
    again = World(groups=1, evaluations=5, journal=world.journal).run()
    assert {again.ledger.accepted(again.ledger.candidates[id_]) for id_ in finalists} == {True}
    assert again.ledger.finished == "5 of 5 candidates evaluated"


def test_what_was_doubted_in_an_earlier_job_is_measured_again_in_the_next():
    world = World(groups=1).run(until=lambda w: len(evaluated(w)) == 10)
    victim = next(id_ for id_ in world.ledger.front if id_ != 0)
    for command in world.coordinator.handle(ev.Doubted((f"{victim}-any-0",), "drift"), world.time):
        world.execute(command)
    resumed = World(groups=1, journal=world.journal).run()
    assert (victim, "any", 1) in resumed.measured
    assert resumed.ledger.candidates[victim].doubts == {}


def test_journals_from_before_there_were_several_devices_are_read():
    world = World(groups=1, evaluations=5, devices=("agx",)).run()

    def old(event):
        if isinstance(event, ev.Measured):
            return ev.Measured(event.candidate, event.measurement)
        if isinstance(event, msg.Assessed):
            return msg.Assessed(event.group, event.candidate, event.attempt, event.metrics, event.onnx_difference)
        return event

    journal = [(time, old(event)) for time, event in world.journal if not isinstance(event, ev.Judged)]
    folded = Ledger(Terms(devices=("agx",), rungs=(2,))).apply_all(journal)
    assert folded.front == world.ledger.front
    assert folded.candidates[0].latencies_s == world.ledger.candidates[0].latencies_s
    assert folded.finished


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (ev.Proposed(7, {"width": 1, "depth": 1}), r"event 1 \(Proposed\) cannot follow .*7 proposed, but 0"),
        (ev.Measured(0, {"p50_s": 1.0}), r"event 1 \(Measured\) cannot follow"),
        (msg.Evaluated(0, 0, 1, {"error": 1.0}, 1.0), r"event 1 \(Evaluated\) .*stale report"),
    ],
)
def test_a_journal_that_contradicts_itself_is_refused_in_one_line(event, says):
    begun = ev.Begun("0", 1, "toy", False)
    for take in (Ledger().apply_all, World().coordinator.replay):
        with pytest.raises(UserError, match=says) as caught:
            take([(0.0, begun), (1.0, event)])
        assert "\n" not in str(caught.value)


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 500), seed=st.integers(0, 3), bad=st.integers(0, 4))
def test_with_doubts_and_devices_a_job_killed_anywhere_resumes_and_folds_the_same(cut, seed, bad):
    class Bad(Doubtful):
        pass

    Bad.bad = bad
    terms = {"groups": 2, "evaluations": 8, "seed": seed, "devices": ("a", "slow")}
    unbroken = Bad(**terms).run()
    journal = unbroken.journal[: min(cut, len(unbroken.journal) - 1)]
    if any(isinstance(e, ev.Finished) for _, e in journal):
        return
    resumed = Bad(**terms, journal=journal).run()
    assert len(evaluated(resumed)) == 8
    folded = Ledger(resumed.ledger.terms).apply_all(resumed.journal)
    assert folded.candidates == resumed.ledger.candidates
    assert folded.front == resumed.ledger.front
    replayed = World(**terms, journal=resumed.journal)
    assert replayed.coordinator.search.ask() == resumed.coordinator.search.ask()


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("to", list(State))
def test_the_table_of_transitions(state, to):
    history = [state]
    if to in TRANSITIONS[state]:
        step(7, history, to)
        assert history == [state, to]
    else:
        with pytest.raises(IllegalTransitionError, match=f"candidate 7 cannot become {to}: so far it was {state}"):
            step(7, history, to)
        assert history == [state]
