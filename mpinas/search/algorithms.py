"""The searches by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mpinas.search.genetic import GeneticSearch, Nsga3Search, RandomSearch, RegularizedEvolution
from mpinas.search.protocol import Search
from mpinas.search.space import SearchSpace
from mpinas.search.surrogate import SurrogateSearch

#: Name -> what makes the search.
ALGORITHMS: Mapping[str, Callable[[SearchSpace, int, int, int], Search]] = {
    "surrogate": SurrogateSearch,
    "nsga2": GeneticSearch,
    "nsga3": Nsga3Search,
    "regularized-evolution": RegularizedEvolution,
    "random": RandomSearch,
}
DEFAULT_ALGORITHM = "surrogate"


def make_search(algorithm: str, space: SearchSpace, n_objectives: int, seed: int, population_size: int = 16) -> Search:
    """The search named `algorithm`, one of `ALGORITHMS`. Raises ValueError for any other name."""
    if algorithm not in ALGORITHMS:
        raise ValueError(f"there is no algorithm {algorithm!r}; there are {', '.join(ALGORITHMS)}")
    return ALGORITHMS[algorithm](space, n_objectives, seed, population_size)
