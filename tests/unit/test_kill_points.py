"""A run that is killed anywhere and goes on is the unbroken run, where results come in the same order: one group.

In virtual time, through journal files that end where the kill cut them, in the middle of a line too.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import World

from mpinas.coordination import events as ev
from mpinas.coordination.ledger import Ledger
from mpinas.history.journal import Journal, read

#: By name; each changes what may be under way when the job is killed.
RUNS = {
    "one budget": {},
    "three budgets": {"rungs": (1, 2, 4)},
    "a limit": {"limits": {"latency_s": 0.008}},
    "two devices": {"devices": ("a", "slow")},
    "finalists again": {"finalists": 2, "finalist_seeds": 2},
    "one exporter, one device": {"machine": {"exporters": 1, "devices": 1}},
    "surrogate": {"algorithm": "surrogate", "evaluations": 8},
}


class OneGroup(World):
    """With objectives of which some dominate others."""

    def __init__(self, **terms):
        super().__init__(**{"groups": 1, "evaluations": 10} | terms)
        self.objectives = lambda genome: (1.0 / genome["width"] + 0.05 * genome["depth"], 0.0)


def outcome(ledger):
    """All that the killed and the unbroken run must agree in."""
    evaluated = {
        id_: (it.genome, it.metrics, it.rung_errors, it.latencies_s, it.test_metrics, len(it.retrainings))
        for id_ in sorted(ledger.evaluated)
        for it in [ledger.candidates[id_]]
    }
    genomes = {id_: it.genome for id_, it in ledger.candidates.items()}
    return genomes, evaluated, sorted(ledger.front), ledger.finished


def write(path, events):
    book = Journal(path)
    for time, event in events[len(book.history) :]:
        book.append(time, event)
    book.close()
    return path.read_bytes()


def killed(path, world, cut):
    """The job has written its journal up to this share of its bytes; what the next job finds of it."""
    whole = write(path, world.journal)
    path.write_bytes(whole[: int(cut * len(whole))])
    book = Journal(path)
    book.close()
    return book.history


@pytest.fixture(scope="module")
def unbroken():
    """Of each kind the unbroken run, played once."""
    runs = {}

    def play(name, seed):
        if (name, seed) not in runs:
            runs[name, seed] = OneGroup(**RUNS[name], seed=seed).run()
        return runs[name, seed]

    return play


@pytest.mark.parametrize(("name", "seed"), [("one budget", 0), ("a limit", 1), ("two devices", 0)])
def test_killed_after_any_event_of_a_short_run(unbroken, name, seed):
    world = unbroken(name, seed)
    expected = outcome(world.ledger)
    _, evaluated, front, finished = expected
    assert (len(evaluated), finished) == (10, "10 of 10 candidates evaluated")
    assert 1 < len(front) < 10
    end = next(k for k, (_, event) in enumerate(world.journal) if isinstance(event, ev.Finished))
    for k in range(1, end + 1):
        again = OneGroup(**RUNS[name], seed=seed, journal=world.journal[:k]).run()
        assert outcome(again.ledger) == expected, (k, world.journal[k - 1])


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(list(RUNS)), seed=st.integers(0, 1), cuts=st.lists(st.floats(0, 0.999), min_size=1, max_size=3)
)
def test_killed_anywhere_up_to_three_times(unbroken, tmp_path_factory, name, seed, cuts):
    world = unbroken(name, seed)
    expected = outcome(world.ledger)
    path = tmp_path_factory.mktemp("run") / "journal.jsonl"
    for cut in cuts:
        history = killed(path, world, cut)
        if any(isinstance(event, ev.Finished) for _, event in history):
            return
        world = OneGroup(**RUNS[name], seed=seed, journal=history).run()
        assert outcome(world.ledger) == expected
    write(path, world.journal)
    assert outcome(Ledger(world.ledger.terms).apply_all(read(path))) == expected
