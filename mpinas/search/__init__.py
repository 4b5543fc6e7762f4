"""Genetic search over discrete spaces, by ask and tell.

It proposes genomes and is told objectives; it never evaluates, reads no file, knows no clock, no network and no MPI.
"""

from mpinas.search.genetic import GeneticSearch
from mpinas.search.space import Gene, Genome, SearchSpace, SpaceExhaustedError, Value

__all__ = ["Gene", "GeneticSearch", "Genome", "SearchSpace", "SpaceExhaustedError", "Value"]
