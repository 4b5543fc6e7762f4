"""Made-up objectives over a search space: smooth in the genes, with a trade-off of error against latency.

They stand in for trained networks when a search is planned. What matters for planning is that the search has
something to do, not what it finds. Must not know who asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mpinas.search import Genome, SearchSpace

#: Genomes that are drawn to find out how latencies are distributed.
SAMPLE = 1000


class Landscape:
    """Error and latency of any genome of `space`; the same for the same seed.

    Each choice of a gene makes the network larger or smaller (latency grows by decades, error falls with diminishing
    returns) and has a best value of its own, away from which the error rises.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        rng = np.random.default_rng((seed, 77))
        self._places: dict[str, dict[object, float]] = {}
        self._weights: dict[str, tuple[float, float, float]] = {}
        for gene in space.genes:
            ranks = np.arange(len(gene.choices)) if gene.ordered else rng.permutation(len(gene.choices))
            most = max(1, len(gene.choices) - 1)
            self._places[gene.name] = {c: float(r) / most for c, r in zip(gene.choices, ranks, strict=True)}
            size, tuning = rng.exponential(size=2)
            self._weights[gene.name] = (float(size), float(tuning), float(rng.random()))
        self._sizes = sum(size for size, _, _ in self._weights.values())
        self._tunings = sum(tuning for _, tuning, _ in self._weights.values())

    def __call__(self, genome: Genome) -> tuple[float, float]:
        """(error, latency in seconds). What the space does not know, a human-designed baseline, is of medium size."""
        size = tuning = 0.0
        for name, (large, sensitive, best) in self._weights.items():
            place = self._places[name].get(genome.get(name), 0.5)
            size += large * place / self._sizes
            tuning += sensitive * (place - best) ** 2 / self._tunings
        return 0.02 + 0.3 * math.exp(-3 * size) + 0.5 * tuning, 1e-4 * 10 ** (2 * size)


def limit_for(objectives: Callable[[Genome], tuple[float, float]], space: SearchSpace, share: float) -> float:
    """The latency (seconds) that this share of the genomes of a space exceeds."""
    rng = np.random.default_rng(0)
    latencies_s = [objectives(space.sample(rng))[1] for _ in range(SAMPLE)]
    return float(np.quantile(latencies_s, 1 - share))
