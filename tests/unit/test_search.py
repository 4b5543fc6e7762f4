"""The genetic search by value: no MPI, no files, no clock."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpinas.search import GeneticSearch, SearchSpace, SpaceExhaustedError
from mpinas.search.selection import crowding_distances, hypervolume, nsga2_order, pareto_ranks
from mpinas.search.space import genome_key
from mpinas.search.variation import mutate, uniform_crossover

SPACE = SearchSpace({f"x{i}": list(range(8)) for i in range(6)} | {"kind": ["plain", "fancy"]})


def two_valleys(genome):
    """Two objectives in conflict; the front is where x0 trades one against the other and the rest is 0."""
    rest = sum(genome[f"x{i}"] for i in range(1, 6)) + (genome["kind"] == "fancy")
    return (genome["x0"] + rest, 7 - genome["x0"] + rest)


def run(search, evaluations):
    genomes = []
    for _ in range(evaluations):
        genome = search.ask()
        search.tell(genome, two_valleys(genome))
        genomes.append(genome)
    return genomes


def test_the_public_example_of_the_readme():
    space = SearchSpace({"a": [1, 2], "b": ["x", "y"]})
    search = GeneticSearch(space, n_objectives=2, seed=0)
    genome = search.ask()
    assert genome["a"] in (1, 2)
    assert genome["b"] in ("x", "y")
    search.tell(genome, (0.1, 2.0))
    other = search.ask()
    assert other != genome
    search.tell_failed(other)


def test_search_beats_random_draws_on_hypervolume():
    reference = np.array([45.0, 45.0])
    shares = []
    for seed in range(5):
        found = np.array([two_valleys(g) for g in run(GeneticSearch(SPACE, 2, seed), 200)], float)
        rng = np.random.default_rng(seed)
        drawn = np.array([two_valleys(SPACE.sample(rng)) for _ in range(200)], float)
        shares.append((hypervolume(found, reference), hypervolume(drawn, reference)))
    assert all(ours > random for ours, random in shares), shares


def test_no_genome_is_asked_for_twice_and_a_small_space_is_used_up():
    space = SearchSpace({"a": [1, 2, 3], "b": ["x", "y"], "c": [True, False]})
    search = GeneticSearch(space, n_objectives=1, seed=3, population_size=4)
    keys = {genome_key(search.ask()) for _ in range(12)}
    assert len(keys) == 12
    with pytest.raises(SpaceExhaustedError, match="12"):
        search.ask()


def test_many_asks_before_a_tell_and_failures_do_not_stop_it():
    search = GeneticSearch(SPACE, 2, seed=1, population_size=4)
    running = [search.ask() for _ in range(40)]
    for genome in running[::2]:
        search.tell_failed(genome)
    for genome in running[1::2]:
        search.tell(genome, two_valleys(genome))
    assert genome_key(search.ask()) not in {genome_key(g) for g in running}


def test_same_seed_same_search_and_a_restored_search_asks_the_same_next():
    first, second = GeneticSearch(SPACE, 2, seed=7), GeneticSearch(SPACE, 2, seed=7)
    genomes = run(first, 60)
    assert run(second, 60) == genomes
    assert run(GeneticSearch(SPACE, 2, seed=8), 60) != genomes
    restored = GeneticSearch(SPACE, 2, seed=7)
    for genome in genomes:
        restored.tell(restored.restore(genome), two_valleys(genome))
    assert [restored.ask() for _ in range(5)] == [first.ask() for _ in range(5)]


@pytest.mark.parametrize(
    ("objectives", "message"),
    [((1.0,), "2 finite"), ((1.0, float("nan")), "2 finite"), ((1.0, float("inf")), "2 finite")],
)
def test_objectives_are_checked(objectives, message):
    search = GeneticSearch(SPACE, 2, seed=0)
    genome = search.ask()
    with pytest.raises(ValueError, match=message):
        search.tell(genome, objectives)


def test_telling_twice_or_of_a_stranger_is_refused():
    search = GeneticSearch(SPACE, 2, seed=0)
    genome = search.ask()
    search.tell(genome, (1, 1))
    with pytest.raises(ValueError, match="already"):
        search.tell_failed(genome)
    with pytest.raises(ValueError, match="never"):
        search.tell(SPACE.sample(np.random.default_rng(99)), (1, 1))


def test_pareto_ranks_and_order_by_value():
    points = np.array([[1, 4], [2, 2], [4, 1], [3, 3], [5, 5], [2, 2]], float)
    assert pareto_ranks(points).tolist() == [0, 0, 0, 1, 2, 0]
    assert crowding_distances(np.array([[0, 4], [1, 2], [4, 0]], float)).tolist() == [np.inf, 2.0, np.inf]
    assert nsga2_order(points)[-2:].tolist() == [3, 4]


def test_hypervolume_by_value():
    assert hypervolume(np.array([[1.0, 1.0]]), np.array([3.0, 2.0])) == 2.0
    assert hypervolume(np.array([[1.0, 1.0], [5.0, 0.0]]), np.array([3.0, 2.0])) == 2.0
    assert hypervolume(np.zeros((0, 2)), np.array([3.0, 2.0])) == 0.0


@given(st.integers(0, 2**32 - 1))
def test_variation_stays_in_the_space_and_mutation_changes_something(seed):
    rng = np.random.default_rng(seed)
    a, b = SPACE.sample(rng), SPACE.sample(rng)
    child = uniform_crossover(a, b, rng)
    assert all(child[name] in (a[name], b[name]) for name in child)
    mutant = mutate(SPACE, child, rng)
    assert mutant != child
    assert SPACE.repair(mutant) == mutant


def test_repair_folds_equal_networks_and_bad_genomes_are_named():
    def repair(genome):
        return {**genome, "b": 0} if genome["a"] == "off" else genome

    space = SearchSpace({"a": ["off", "on"], "b": [0, 1, 2]}, repair)
    assert len(list(space.every())) == 4
    with pytest.raises(ValueError, match=r"'b' = 9 is none of \[0, 1, 2\]"):
        space.repair({"a": "on", "b": 9})
    with pytest.raises(ValueError, match="genes"):
        space.repair({"a": "on"})


def test_a_narrowed_space_draws_only_what_is_left_but_knows_what_repair_sets():
    def repair(genome):
        return {**genome, "b": 0} if genome["a"] == "off" else genome

    full = SearchSpace({"a": ["off", "on"], "b": [0, 1, 2]}, repair)
    narrow = full.narrowed({"b": [1, 2]})
    assert len(narrow) == 4
    found = [tuple(g.values()) for g in narrow.every()]
    assert sorted(found) == [("off", 0), ("on", 1), ("on", 2)]
    rng = np.random.default_rng(0)
    assert {tuple(narrow.repair(mutate(narrow, {"a": "off", "b": 0}, rng)).values()) for _ in range(50)} <= set(found)
    with pytest.raises(ValueError, match="no gene 'c'; there are a, b"):
        full.narrowed({"c": [1]})
    with pytest.raises(ValueError, match="'b' cannot be 7"):
        full.narrowed({"b": [1, 7]})


def test_better_known_objectives_replace_the_old_and_breed_as_if_told_at_first():
    first, second = (GeneticSearch(SPACE, 2, seed=1, population_size=2) for _ in range(2))
    for number in range(4):
        genome = first.ask()
        assert second.ask() == genome
        first.tell(genome, (1.0, float(number)))
        second.tell(genome, (1.0, 9.0 - number))
        second.revise(genome, (1.0, float(number)))
    assert [first.ask() for _ in range(5)] == [second.ask() for _ in range(5)]
    with pytest.raises(ValueError, match="never told of"):
        first.revise(first.ask(), (1.0, 1.0))
    with pytest.raises(ValueError, match="finite"):
        second.revise(genome, (1.0, float("nan")))
