"""Search over discrete spaces, by ask and tell: surrogate-assisted, genetic, evolutionary or random.

It proposes genomes and is told objectives; it never evaluates, reads no file, knows no clock, no network and no MPI.
"""

from mpinas.search.algorithms import ALGORITHMS, DEFAULT_ALGORITHM, make_search
from mpinas.search.genetic import GeneticSearch
from mpinas.search.protocol import Search
from mpinas.search.regression import Surrogate
from mpinas.search.space import Gene, Genome, SearchSpace, SpaceExhaustedError, Value

__all__ = [
    "ALGORITHMS",
    "DEFAULT_ALGORITHM",
    "Gene",
    "GeneticSearch",
    "Genome",
    "Search",
    "SearchSpace",
    "SpaceExhaustedError",
    "Surrogate",
    "Value",
    "make_search",
]
