"""The bookkeeping that all searches share: what was asked for, what is known of it. It decides nothing."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from mpinas.search.space import Genome, SearchSpace, SpaceExhaustedError, Value
from mpinas.search.table import Table

#: Values of a genome's genes, in the order of the space.
Key = tuple[Value | None, ...]


class SearchBase(ABC):
    """A `Search` but for the choice of the next genome (`_propose`).

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

    #: Draws that are all known already, before the search turns to enumerating what is left.
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
        self._names = [gene.name for gene in space.genes]
        #: What was asked for, numbered in that order: a long search keeps one key of each genome.
        self._asked: dict[Key, int] = {}
        #: Asked for, neither told of nor failed; in the order asked.
        self._pending: dict[int, Genome] = {}
        #: Told of, in that order.
        self._told: dict[int, None] = {}
        self._table = Table(n_objectives, kept=max(384, 2 * population_size))
        #: Row of the table of each genome of which anything is known, and that row's genome.
        self._row: dict[int, int] = {}
        self._genomes: list[Genome] = []

    @property
    def asked(self) -> int:
        """How many genomes have been asked for."""
        return len(self._asked)

    def ask(self) -> Genome:
        """A genome that was never asked for before. Raises SpaceExhaustedError when there is none left."""
        rng = np.random.default_rng([self.seed, len(self._asked)])
        genome = self._propose(rng)
        return self.restore(self._any_left(rng) if genome is None else genome)

    def restore(self, genome: Genome) -> Genome:
        """Count `genome` as asked for: what an earlier run was given by `ask`, or what the user starts from."""
        genome = self.space.repair(genome)
        number = len(self._asked)
        if self._asked.setdefault(self._key(genome), number) != number:
            raise ValueError(f"this genome was asked for already: {genome}")
        self._pending[number] = genome
        return dict(genome)

    def tell(self, genome: Genome, objectives: Sequence[float]) -> None:
        """Give the objectives of a genome that was asked for, once; all finite, all to be minimised."""
        number, values = self._open(genome), self._checked(objectives)
        self._put(number, genome, values)
        self._pending.pop(number)
        self._told[number] = None
        self._table.put(self._row[number], self._table.outcome, -1.0)

    def revise(self, genome: Genome, objectives: Sequence[float]) -> None:
        """Give better-known objectives of a genome that was told of already."""
        number = self._number(genome)
        if number not in self._told:
            raise ValueError(f"this genome was never told of: {genome}")
        self._put(number, genome, self._checked(objectives))

    def tell_failed(self, genome: Genome) -> None:
        """Say that a genome that was asked for has no objectives and never will: it breeds nothing."""
        number = self._open(genome)
        row = self._row_of(number, genome)
        self._pending.pop(number)
        if not self._table.violations(np.array([row]))[0]:  # else that is why, and nothing is learnt of failing
            self._table.put(row, self._table.outcome, 1.0)

    def tell_partial(self, genome: Genome, objectives: Sequence[float | None]) -> None:
        """Give the objectives known before the evaluation, None for the others."""
        number = self._open(genome)
        if len(objectives) != self.n_objectives or not all(o is None or math.isfinite(o) for o in objectives):
            raise ValueError(f"objectives {tuple(objectives)}: {self.n_objectives} are needed, each finite or None")
        self._put(number, genome, objectives)

    def tell_constraints(self, genome: Genome, values: Mapping[str, float]) -> None:
        """Give constraints by name, 0 or less where feasible. Values that are not finite say nothing."""
        number = self._number(genome)
        if number is None:
            raise ValueError(f"this genome was never asked for: {genome}")
        for name, value in values.items():
            if math.isfinite(value):
                self._table.put(self._row_of(number, genome), self._table.constraint(name), float(value))

    def rank(self, genomes: Sequence[Genome]) -> list[int]:
        """The order given: without a model none is known to be more promising."""
        for genome in genomes:
            self._open(genome)
        return list(range(len(genomes)))

    @abstractmethod
    def _propose(self, rng: np.random.Generator) -> Genome | None:
        """A genome not asked for before, or None if a fair number of draws found none."""

    def _fresh(self, draw: Sequence[Genome]) -> list[Genome]:
        """Those never asked for, each once, in the order given."""
        new = {key: genome for genome in draw if (key := self._key(genome)) not in self._asked}
        return list(new.values())

    def _put(self, number: int, genome: Genome, values: Sequence[float | None]) -> None:
        row = self._row_of(number, genome)
        for column, value in enumerate(values):
            if value is not None:
                self._table.put(row, column, float(value))

    def _row_of(self, number: int, genome: Genome) -> int:
        if number not in self._row:
            self._row[number] = self._table.add()
            self._genomes.append(self._pending.get(number, genome))
        return self._row[number]

    def _checked(self, objectives: Sequence[float]) -> tuple[float, ...]:
        values = tuple(float(value) for value in objectives)
        if len(values) != self.n_objectives or not all(map(math.isfinite, values)):
            raise ValueError(f"objectives {values}: {self.n_objectives} finite numbers are needed")
        return values

    def _key(self, genome: Genome) -> Key:
        return tuple(map(genome.get, self._names))

    def _number(self, genome: Genome) -> int | None:
        """When it was asked for; None if it never was."""
        return self._asked.get(self._key(genome))

    def _open(self, genome: Genome) -> int:
        number = self._number(genome)
        if number is None:
            raise ValueError(f"this genome was never asked for: {genome}")
        if number not in self._pending:
            raise ValueError(f"this genome was told of already: {genome}")
        return number

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
            if self._key(genome) not in self._asked:
                return genome
        raise SpaceExhaustedError(f"all genomes of the space have been asked for ({len(self._asked)})")
