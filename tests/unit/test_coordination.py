"""The coordinator in virtual time: real decisions, real search, no MPI, no device, no clock."""

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.coordinator import Coordinator, Discard, Export, Leave, Measure, Plan, Record, Send
from mpinas.coordination.ledger import Ledger
from mpinas.coordination.lifecycle import TRANSITIONS, IllegalTransitionError, State, step
from mpinas.errors import ProtocolError
from mpinas.search import GeneticSearch, SearchSpace

SPACE = SearchSpace({"width": list(range(1, 31)), "depth": list(range(1, 11))})


def error_of(genome):
    return 1.0 / (genome["width"] * genome["depth"]) ** 0.5


def latency_of(genome):
    return 1e-4 * genome["width"] * genome["depth"]


class World:
    """What the coordinator talks to, in virtual time: groups, an exporter and a device with fixed durations."""

    def __init__(self, *, groups=3, evaluations=20, limits=None, seed=0, journal=(), space=SPACE, proposals_max=500):
        self.ledger = Ledger(limits)
        plan = Plan(evaluations=evaluations, epochs=2, seed=seed, proposals_max=proposals_max)
        search = GeneticSearch(space, n_objectives=2, seed=seed, population_size=6)
        self.coordinator = Coordinator(plan, search, self.ledger, {"width": 20, "depth": 5})
        self.journal = list(journal)
        self.coordinator.replay(journal)
        self.time = self.journal[-1][0] if self.journal else 0.0
        self.queue, self.sequence = [], 0
        self.sent, self.discarded = [], []
        self.left = False
        self.device_up = True
        self.waiting_for_device = []
        self.genomes = {i: c.genome for i, c in self.ledger.candidates.items()}
        self.later(0.0, ev.Begun("0", groups + 1, tuple((g + 1,) for g in range(groups)), "toy", False))
        for group in range(groups):
            self.later(1.0 + group / 10, msg.Ready(group, (group + 1,), "here", "cpu"))

    def later(self, delay, event):
        self.sequence += 1
        heapq.heappush(self.queue, (self.time + delay, self.sequence, event))

    def execute(self, command):
        match command:
            case Record(event):
                self.journal.append((self.time, event))
                if isinstance(event, ev.Proposed):
                    self.genomes[event.candidate] = event.genome
            case Export(candidate, genome):
                self.later(0.1, ev.Exported(candidate, 1000 * genome["width"], genome["width"]))
            case Measure(candidate):
                answer = ev.Measured(candidate, {"p50_s": latency_of(self.genomes[candidate]), "samples": 64})
                if self.device_up:
                    self.later(0.5, answer)
                else:
                    self.waiting_for_device.append(answer)
            case Send(group, msg.Evaluate() as order):
                self.sent.append((group, order))
                self.later(*self.train(group, order))
            case Send(group, msg.Assess() as order):
                self.sent.append((group, order))
                answer = msg.Assessed(group, order.candidate, order.attempt, {"error": 0.5}, 1e-6)
                self.later(1.0, answer)
            case Send(group, msg.Stop()):
                self.later(0.1, msg.Stopped(group))
            case Discard(candidate):
                self.discarded.append(candidate)
            case Leave():
                self.left = True

    def train(self, group, order):
        seconds = 5.0 + order.genome["width"] / 10
        report = msg.Evaluated(group, order.candidate, order.attempt, {"error": error_of(order.genome)}, seconds)
        return seconds, report

    def run(self, until=lambda world: world.left, events_max=100_000):
        for _ in range(events_max):
            if until(self):
                return self
            assert self.queue, "the job hangs: nothing is under way and nothing was finished"
            self.time, _, event = heapq.heappop(self.queue)
            for command in self.coordinator.handle(event, self.time):
                self.execute(command)
        raise AssertionError("the job does not end")


def evaluated(world):
    return sorted(world.ledger.standing[State.EVALUATED])


@pytest.mark.parametrize("groups", [1, 2, 4, 40])
def test_a_whole_search(groups):
    world = World(groups=groups).run()
    ledger = world.ledger
    assert len(evaluated(world)) == 20
    assert ledger.candidates[0].genome == {"width": 20, "depth": 5}
    orders = [order for _, order in world.sent if isinstance(order, msg.Evaluate)]
    assert len({order.candidate for order in orders}) == len(orders) == 20, "no candidate is evaluated twice"
    assert {id_ for id_, c in ledger.candidates.items() if c.assessed} == {*ledger.front, 0}
    assert set(world.discarded) & set(evaluated(world)) == set(evaluated(world)) - {*ledger.front, 0}
    for a in ledger.front:
        for b in evaluated(world):
            mine, other = ledger.candidates[a].objectives(), ledger.candidates[b].objectives()
            assert not (other[0] <= mine[0] and other[1] <= mine[1] and other != mine)
    assert ledger.finished == "20 of 20 candidates evaluated"


def test_groups_never_wait_once_measurements_run_ahead():
    world = World(groups=3, evaluations=40).run()
    starts = {}
    for time, event in world.journal:
        if isinstance(event, ev.Ordered) and event.work == "evaluate":
            starts.setdefault(event.group, []).append(time)
    ends = {}
    for time, event in world.journal:
        if isinstance(event, msg.Evaluated):
            ends.setdefault(event.group, []).append(time)
    for group in range(3):
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


def test_a_baseline_that_fails_ends_the_run_with_words():
    class Broken(World):
        def train(self, group, order):
            if order.candidate == 0:
                return 1.0, msg.EvaluationFailed(group, 0, order.attempt, "memory", "too large")
            return super().train(group, order)

    world = Broken().run()
    assert world.ledger.finished == "the baseline, to compare with, failed: memory: too large"


def test_resumed_with_fewer_evaluations_nothing_more_is_trained_than_asked_for():
    stopped = World(groups=1).run(until=lambda w: len(evaluated(w)) == 1)
    resumed = World(groups=1, evaluations=2, journal=stopped.journal).run()
    assert len(evaluated(resumed)) == 2


def test_a_candidate_in_whose_training_jobs_keep_dying_is_given_up():
    def training_it(world):
        return any(isinstance(o, msg.Evaluate) and o.candidate == 1 for _, o in world.sent)

    journal = []
    for _ in range(4):
        journal = World(groups=1, evaluations=5, journal=journal).run(until=training_it).journal
    world = World(groups=1, evaluations=5, journal=journal).run()
    assert "4 jobs ended" in world.ledger.candidates[1].reason
    assert len(evaluated(world)) == 5


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
    folded = Ledger().apply_all(world.journal)
    assert folded.candidates == world.ledger.candidates
    assert folded.front == world.ledger.front
    assert folded.occupation == world.ledger.occupation


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
