"""Steady-state multi-objective genetic search, asynchronous by construction: any number of `ask` before a `tell`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from mpinas.search.selection import nsga2_order
from mpinas.search.space import Genome, SearchSpace, SpaceExhaustedError, genome_key
from mpinas.search.variation import mutate, uniform_crossover

Key = tuple[tuple[str, object], ...]


class GeneticSearch:
    """NSGA-II's selection in a steady-state scheme: every told genome competes at once, no generations.

    Its state is a fold over the calls made: the k-th `ask` draws from a generator seeded by (seed, k), so a search
    to which the same genomes were given back with `restore` and `tell` in the same order asks what the first would
    have asked next.

    Parameters
    ----------
    space
        What may be asked for. No genome is asked for twice.
    n_objectives
        How many values each `tell` brings. All are minimised.
    seed
        Same seed and same order of calls, same genomes.
    population_size
        How many of the best told genomes are parents; as many random genomes are asked for first.
    """

    #: Draws of offspring that are all known already, before the search turns to enumerating what is left.
    _PATIENCE = 200

    def __init__(self, space: SearchSpace, n_objectives: int, seed: int, population_size: int = 16) -> None:
        if n_objectives < 1:
            raise ValueError(f"n_objectives = {n_objectives}: at least one objective is needed")
        if population_size < 2:
            raise ValueError(f"population_size = {population_size}: at least two parents are needed")
        self.space = space
        self.n_objectives = n_objectives
        self.seed = seed
        self.population_size = population_size
        self._asked: dict[Key, Genome] = {}
        #: Keys told of, each once; a subset of `_asked`.
        self._told: dict[Key, tuple[float, ...]] = {}
        self._failed: set[Key] = set()

    @property
    def asked(self) -> int:
        """How many genomes have been asked for."""
        return len(self._asked)

    def ask(self) -> Genome:
        """A genome that was never asked for before.

        Raises
        ------
        SpaceExhaustedError
            There is none left.
        """
        rng = np.random.default_rng([self.seed, len(self._asked)])
        propose = self._random if len(self._asked) < self.population_size else self._offspring
        for _ in range(self._PATIENCE):
            genome = propose(rng)
            if genome_key(genome) not in self._asked:
                return self.restore(genome)
        return self.restore(self._any_left(rng))

    def restore(self, genome: Genome) -> Genome:
        """Count `genome` as asked for: what an earlier run was given by `ask`, or what the user starts from."""
        genome = self.space.repair(genome)
        if self._asked.setdefault(genome_key(genome), genome) is not genome:
            raise ValueError(f"this genome was asked for already: {genome}")
        return dict(genome)

    def tell(self, genome: Genome, objectives: Sequence[float]) -> None:
        """Give the objectives of a genome that was asked for, once; all finite, all to be minimised."""
        key = self._open_key(genome)
        self._told[key] = self._checked(objectives)

    def revise(self, genome: Genome, objectives: Sequence[float]) -> None:
        """Give better-known objectives of a genome that was told of already."""
        key = genome_key(genome)
        if key not in self._told:
            raise ValueError(f"this genome was never told of: {genome}")
        self._told[key] = self._checked(objectives)

    def tell_failed(self, genome: Genome) -> None:
        """Say that a genome that was asked for has no objectives and never will: it breeds nothing."""
        self._failed.add(self._open_key(genome))

    def _checked(self, objectives: Sequence[float]) -> tuple[float, ...]:
        values = tuple(float(value) for value in objectives)
        if len(values) != self.n_objectives or not np.isfinite(values).all():
            raise ValueError(f"objectives {values}: {self.n_objectives} finite numbers are needed")
        return values

    def _open_key(self, genome: Genome) -> Key:
        key = genome_key(genome)
        if key not in self._asked:
            raise ValueError(f"this genome was never asked for: {genome}")
        if key in self._told or key in self._failed:
            raise ValueError(f"this genome was told of already: {genome}")
        return key

    def _parents(self) -> list[Genome]:
        """The best told genomes, best first, at most `population_size`."""
        keys = list(self._told)
        order = nsga2_order(np.array([self._told[key] for key in keys], float).reshape(-1, self.n_objectives))
        return [self._asked[keys[index]] for index in order[: self.population_size]]

    def _random(self, rng: np.random.Generator) -> Genome:
        return self.space.sample(rng)

    def _offspring(self, rng: np.random.Generator) -> Genome:
        parents = self._parents()
        if len(parents) < 2:  # nearly nothing came back yet
            return self.space.sample(rng)

        def tournament() -> Genome:
            # parents stand best first, so the smaller index wins
            return parents[int(rng.integers(len(parents), size=2).min())]

        child = uniform_crossover(tournament(), tournament(), rng) if rng.random() < 0.9 else tournament()
        return self.space.repair(mutate(self.space, child, rng))

    def _any_left(self, rng: np.random.Generator) -> Genome:
        """A genome not yet asked for, by walking from a random one; for spaces nearly used up."""
        sizes = [len(gene.choices) for gene in self.space.genes]
        start = [int(rng.integers(size)) for size in sizes]
        for offsets in itertools.product(*(range(size) for size in sizes)):
            genome = self.space.repair(
                {
                    gene.name: gene.choices[(at + offset) % len(gene.choices)]
                    for gene, at, offset in zip(self.space.genes, start, offsets, strict=True)
                }
            )
            if genome_key(genome) not in self._asked:
                return genome
        raise SpaceExhaustedError(f"all genomes of the space have been asked for ({len(self._asked)})")
