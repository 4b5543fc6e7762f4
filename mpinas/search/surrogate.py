"""Surrogate-assisted genetic search: many offspring, now and then few, of which the one with the best expected gain
is asked for.

It decides what to ask; what is known it has from its base, what that suggests from `beliefs`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpinas.search.base import SearchBase
from mpinas.search.beliefs import Beliefs, Believer
from mpinas.search.space import Genome, SearchSpace
from mpinas.search.variation import child_of, mutate

#: Genomes that compete for one ask: children of the best, unrelated ones, and mutants of the most promising of these.
_CHILDREN = 160
_STRANGERS = 64
_NEIGHBOURS = 64
_PROMISING = 6
#: How often a stranger is asked for whatever the models say, so that no belief lasts for ever.
_EXPLORATION = 0.02
#: How often the models choose among so few children only: evolution still finds what the models are wrong about, and
#: the longer the search, the more of what is left is that.
_EVOLUTION, _BROOD = 1 / 3, 4
#: Where most genomes are rejected and the front is a single point, so often what is least known of is asked for: no
#: other end was seen yet. Less often the more points there are.
_CURIOSITY = 0.25
#: So many of the genomes that are still being evaluated are taken into account, the last.
_PENDING_MAX = 64


class SurrogateSearch(SearchBase):
    """Expected hypervolume improvement times the probability of being feasible, over offspring by variation.

    Source of the scheme: J. Knowles, ParEGO, IEEE TEC 10(1), 2006, and M. Emmerich et al., Single- and multiobjective
    evolutionary optimization assisted by Gaussian random field metamodels, IEEE TEC 10(4), 2006.
    """

    def __init__(self, space: SearchSpace, n_objectives: int, seed: int, population_size: int = 16) -> None:
        super().__init__(space, n_objectives, seed, population_size)
        self._believer = Believer(space, self._table, self._genomes, seed)

    def rank(self, genomes: Sequence[Genome]) -> list[int]:
        """By expected gain given what is known of each; the order given where nothing can be believed yet."""
        numbers = [self._open(genome) for genome in genomes]
        beliefs = self._believer.beliefs()
        if not numbers or beliefs is None:
            return list(range(len(numbers)))
        rows = [self._row.get(number) for number in numbers]
        scores = beliefs.scores(genomes, rows, np.random.default_rng([self.seed]))
        return [int(index) for index in np.argsort(-scores, kind="stable")]

    def _propose(self, rng: np.random.Generator) -> Genome | None:
        beliefs = None
        if len(self._asked) >= self.population_size:
            beliefs = self._believer.beliefs()
        strangers = self._fresh([self.space.sample(rng) for _ in range(_STRANGERS)])
        if strangers and (beliefs is None or rng.random() < _EXPLORATION):
            return strangers[0]
        if beliefs is None:
            return None
        return self._most_promising(strangers, beliefs, rng)

    def _most_promising(self, strangers: list[Genome], beliefs: Beliefs, rng: np.random.Generator) -> Genome | None:
        parents = [self._genomes[row] for row in self._table.best(2 * self.population_size)]
        children = [child_of(self.space, parents, rng) for _ in range(_CHILDREN)] if parents else []
        pool = self._fresh([*children, *strangers])
        if not pool:
            return None
        pending = list(self._pending.items())[-_PENDING_MAX:] if self._pending else []
        rows = [self._row.get(number) for number, _ in pending]
        beliefs = beliefs.fancying([genome for _, genome in pending], rows)
        curiosity = _CURIOSITY * beliefs.unseen / max(len(np.unique(beliefs.front, axis=0)), 1)
        if beliefs.objectives and self.n_objectives > 1 and rng.random() < curiosity:
            return pool[int(beliefs.doubts(pool).argmax())]
        brood = self._fresh(children[:_BROOD])
        if brood and rng.random() < _EVOLUTION:
            return brood[int(beliefs.scores(brood, [None] * len(brood), rng).argmax())]
        scores = beliefs.scores(pool, [None] * len(pool), rng)
        promising = [pool[int(index)] for index in np.argsort(-scores, kind="stable")[:_PROMISING]]
        near = [mutate(self.space, promising[at % len(promising)], rng) for at in range(_NEIGHBOURS)]
        fresh = self._fresh([self.space.repair(genome) for genome in near])
        finalists = [promising[0], *fresh]
        return finalists[int(beliefs.scores(finalists, [None] * len(finalists), rng).argmax())]
