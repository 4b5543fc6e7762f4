"""Every search by the promises that all of them make: the same seed, a break anywhere, constraints, small spaces."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpinas.search import ALGORITHMS, DEFAULT_ALGORITHM, SearchSpace, SpaceExhaustedError, make_search
from mpinas.search.selection import constrained_order, das_dennis, nsga3_order
from mpinas.search.space import genome_key
from mpinas.search.table import Table

SPACE = SearchSpace({f"x{i}": list(range(8)) for i in range(4)} | {"kind": ["plain", "fancy", "none"]})
NAMES = sorted(ALGORITHMS)


def objectives(genome, count=2):
    rest = sum(genome[f"x{i}"] for i in range(1, 4)) + (genome["kind"] == "fancy")
    return (genome["x0"] + rest, 7.0 - genome["x0"] + rest, genome["x1"] + 0.5, 10.0 ** genome["x2"])[:count]


def test_the_surrogate_is_the_default_and_an_unknown_name_is_named():
    assert DEFAULT_ALGORITHM == "surrogate"
    with pytest.raises(ValueError, match="no algorithm 'nsga9'; there are surrogate, nsga2, nsga3"):
        make_search("nsga9", SPACE, 2, 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_objectives", [1, 2, 3, 4])
def test_every_search_asks_what_is_new_with_any_number_of_objectives(name, n_objectives):
    search = make_search(name, SPACE, n_objectives, seed=3, population_size=6)
    keys = set()
    for number in range(30):
        genome = search.ask()
        assert SPACE.repair(genome) == genome
        keys.add(genome_key(genome))
        if number % 7 == 3:
            search.tell_failed(genome)
        elif number % 5:  # some are still under way
            search.tell(genome, objectives(genome, n_objectives))
    assert len(keys) == 30 == search.asked


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 999), st.integers(8, 40), st.integers(0, 5))
def test_a_search_that_was_broken_off_anywhere_goes_on_as_if_it_had_not(name, seed, length, batch):
    """Also in the middle of a batch of asks, with failed, partial, constrained and revised genomes among them."""
    whole = make_search(name, SPACE, 2, seed, population_size=6)
    calls = []

    def call(method, *arguments):
        calls.append((method, arguments))
        return getattr(whole, method)(*arguments)

    rng = np.random.default_rng(seed)
    for _ in range(length):
        genome = whole.ask()
        calls.append(("restore", (genome,)))
        call("tell_partial", genome, (None, float(objectives(genome)[1])))
        call("tell_constraints", genome, {"x1": (genome["x1"] - 5.0) * 10.0 ** genome["x2"]})
        fate = rng.random()
        if fate < 0.7:
            call("tell", genome, objectives(genome))
            if fate < 0.2:
                call("revise", genome, (objectives(genome)[0] + 0.5, objectives(genome)[1]))
        elif fate < 0.85:
            call("tell_failed", genome)
    for _ in range(batch):
        calls.append(("restore", (whole.ask(),)))
    restored = make_search(name, SPACE, 2, seed, population_size=6)
    for method, arguments in calls:
        getattr(restored, method)(*arguments)
    assert [restored.ask() for _ in range(4)] == [whole.ask() for _ in range(4)]


@pytest.mark.parametrize("name", NAMES)
def test_a_small_space_is_used_up_and_then_said_to_be(name):
    space = SearchSpace({"a": [1, 2, 3], "b": ["x", "y"], "c": [True, False]})
    search = make_search(name, space, 2, seed=1, population_size=4)
    for number in range(12):
        search.tell(search.ask(), (float(number), -float(number)))
    with pytest.raises(SpaceExhaustedError, match="12"):
        search.ask()


@pytest.mark.parametrize("name", NAMES)
def test_plain_or_not_ranks_are_a_permutation_and_strangers_are_refused(name):
    search = make_search(name, SPACE, 2, seed=1, population_size=4)
    genomes = [search.ask() for _ in range(5)]
    assert sorted(search.rank(genomes)) == [0, 1, 2, 3, 4]
    assert search.rank([]) == []
    search.tell(genomes[0], (1, 1))
    with pytest.raises(ValueError, match="already"):
        search.rank(genomes)
    with pytest.raises(ValueError, match="never"):
        search.rank([{**genomes[1], "x0": (genomes[1]["x0"] + 1) % 8, "x1": 7, "x2": 7}])


@pytest.mark.parametrize("name", NAMES)
def test_constraints_and_partial_objectives_are_checked(name):
    search = make_search(name, SPACE, 2, seed=1)
    genome = search.ask()
    with pytest.raises(ValueError, match="finite or None"):
        search.tell_partial(genome, (float("nan"), None))
    with pytest.raises(ValueError, match="finite or None"):
        search.tell_partial(genome, (1.0,))
    search.tell_constraints(genome, {"bytes": float("inf")})
    search.tell_partial(genome, (None, 2.0))
    search.tell(genome, (1.0, 2.0))
    search.tell_constraints(genome, {"bytes": -1.0})
    with pytest.raises(ValueError, match="already"):
        search.tell_partial(genome, (1.0, None))


def test_the_feasible_come_first_then_the_nearest_to_it():
    points = np.array([[1, 1], [5, 5], [0, 0], [np.nan, 1], [0, 0], [4, 6]], float)
    violations = np.array([0, 0, 3, 0, 2, 0], float)
    assert constrained_order(points, violations).tolist() == [0, 1, 5, 3, 4, 2]


def test_genetic_search_breeds_from_the_feasible_only_while_there_are_some():
    search = make_search("nsga2", SPACE, 1, seed=0, population_size=2)
    best, *others = (search.ask() for _ in range(6))
    search.tell_constraints(best, {"g": 1.0})
    search.tell(best, (-100.0,))
    for at, genome in enumerate(others):
        search.tell(genome, (float(at),))
    assert search._parents() == others[:2]


def test_directions_by_value():
    assert das_dennis(1, 5).tolist() == [[1.0]]
    assert das_dennis(2, 3).tolist() == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    assert len(das_dennis(3, 16)) == 15
    assert len(das_dennis(4, 3)) == 4
    np.testing.assert_allclose(das_dennis(4, 40).sum(axis=1), 1)


def test_nsga3_serves_every_direction_before_one_twice():
    crowd = [[0.0, 1.0], [0.01, 0.98], [0.02, 0.97]]
    points = np.array([*crowd, [0.5, 0.5], [1.0, 0.0], [2.0, 2.0]])
    order = nsga3_order(points, das_dennis(2, 3)).tolist()
    assert sorted(order[:3]) == [0, 3, 4]
    assert order[-1] == 5
    assert nsga3_order(np.zeros((0, 2)), das_dennis(2, 3)).tolist() == []


def test_aging_evolution_forgets_the_old_however_good():
    search = make_search("regularized-evolution", SPACE, 1, seed=0, population_size=4)
    genomes = [search.ask() for _ in range(12)]
    for at, genome in enumerate(genomes):
        search.tell(genome, (float(at),))
    assert search._young() == [8, 9, 10, 11]
    rows = np.array([search._row[number] for number in search._young()])
    rng = np.random.default_rng(0)
    for _ in range(50):  # each differs from one of the young by few genes
        mutant = search._mutant(rows, rng)
        assert min(sum(mutant[gene] != genome[gene] for gene in mutant) for genome in genomes[-4:]) <= 4


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 99))
def test_what_is_useful_of_a_history_does_not_depend_on_when_it_was_asked(count, seed):
    rng = np.random.default_rng(seed)
    points = rng.random((count, 2))
    looked, at_once = Table(2), Table(2)
    for number, point in enumerate(points):
        for table in (looked, at_once):
            row = table.add()
            for column, value in enumerate(point):
                table.put(row, column, value)
        if number % 700 == 0:
            looked.useful()
    changed = int(rng.integers(count))
    for table in (looked, at_once):
        table.put(changed, 0, -1.0)
    assert looked.useful().tolist() == at_once.useful().tolist()
    assert changed in looked.best(4)
    front = {i for i, p in enumerate(looked.objectives(np.arange(count))) if p[0] <= -1.0}
    assert front <= {*looked.useful().tolist()}


def test_the_first_told_are_told_of_what_did_not_fail():
    table = Table(2)
    for outcome in (1.0, 1.0, -1.0, 1.0, -1.0, -1.0):
        table.put(table.add(), table.outcome, outcome)
    assert table.first_told(2).tolist() == [2, 4]
    assert table.failures == 3


def test_useful_rows_stay_few_and_hold_the_best():
    table = Table(1)
    for number in range(20_000):
        table.put(table.add(), 0, float((number * 7919) % 20_000))
    assert len(table.useful()) < 4000
    assert len(table.useful(100)) == 100
    assert table.objectives(table.best(5)).ravel().tolist() == [0, 1, 2, 3, 4]
    for row, column in itertools.product(range(3), [table.constraint("g")]):
        table.put(row, column, 5.0)
    assert table.violations(np.arange(4)).tolist() == [1, 1, 1, 0]
