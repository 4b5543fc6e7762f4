"""Steady-state genetic search, asynchronous by construction: any number of `ask` before a `tell`."""

from __future__ import annotations

import itertools

import numpy as np

from mpinas.search.base import SearchBase
from mpinas.search.selection import Floats, constrained_order, das_dennis, nsga3_order
from mpinas.search.space import Genome
from mpinas.search.table import Rows
from mpinas.search.variation import child_of


class GeneticSearch(SearchBase):
    """NSGA-II's selection in a steady-state scheme: every told genome competes at once, no generations.

    Source: K. Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE TEC 6(2), 2002.
    """

    def _propose(self, rng: np.random.Generator) -> Genome | None:
        parents = [] if len(self._asked) < self.population_size else self._parents()
        for _ in range(self._PATIENCE):
            # too few parents: nearly nothing came back yet
            genome = self.space.sample(rng) if len(parents) < 2 else child_of(self.space, parents, rng)
            if fresh := self._fresh([genome]):
                return fresh[0]
        return None

    def _parents(self) -> list[Genome]:
        """The best genomes, best first, at most `population_size`."""
        return [self._genomes[row] for row in self._table.best(self.population_size, self._order)]

    def _order(self, points: Floats, violations: Floats) -> Rows:
        return constrained_order(points, violations)


class Nsga3Search(GeneticSearch):
    """The same scheme with NSGA-III's selection: parents spread over directions instead of by crowding.

    For three objectives and more. Source: see `nsga3_order` and `das_dennis`.
    """

    def _order(self, points: Floats, violations: Floats) -> Rows:
        order = constrained_order(points, violations)
        good = order[(violations[order] <= 0) & ~np.isnan(points[order]).any(axis=1)]
        directions = das_dennis(self.n_objectives, self.population_size)
        return np.concatenate([good[nsga3_order(points[good], directions)], order[len(good) :]])


class RegularizedEvolution(SearchBase):
    """The best of a few drawn from the youngest is mutated; who is old leaves, however good.

    For several objectives the best is by non-dominated rank, then crowding. The young are the last told.
    Source: E. Real et al., Regularized evolution for image classifier architecture search, AAAI 2019.
    """

    def _propose(self, rng: np.random.Generator) -> Genome | None:
        rows = np.array([self._row[number] for number in self._young()], np.int64)
        waiting = len(self._asked) < self.population_size or len(rows) < 2
        for _ in range(self._PATIENCE):
            genome = self.space.sample(rng) if waiting else self._mutant(rows, rng)
            if fresh := self._fresh([genome]):
                return fresh[0]
        return None

    def _mutant(self, rows: Rows, rng: np.random.Generator) -> Genome:
        drawn = rng.choice(rows, size=min(len(rows), max(2, self.population_size // 4)), replace=False)
        best = constrained_order(self._table.objectives(drawn), self._table.violations(drawn))[0]
        return child_of(self.space, [self._genomes[drawn[best]]], rng)

    def _young(self) -> list[int]:
        """Numbers of those last told of, the oldest first."""
        return list(itertools.islice(reversed(self._told), self.population_size))[::-1]


class RandomSearch(SearchBase):
    """Genomes drawn uniformly: what every other search has to beat."""

    def _propose(self, rng: np.random.Generator) -> Genome | None:
        for _ in range(self._PATIENCE):
            if fresh := self._fresh([self.space.sample(rng)]):
                return fresh[0]
        return None
