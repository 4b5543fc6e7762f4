"""Who is better, with several objectives. All objectives are minimised; arrays are (points, objectives)."""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def pareto_ranks(points: Floats) -> NDArray[np.int64]:
    """Rank of non-dominated sorting, 0 for the Pareto front. Equal points share a rank. Shape (points,)."""
    if len(points) == 0:
        return np.zeros(0, np.int64)
    unique, inverse = np.unique(points, axis=0, return_inverse=True)
    return np.asarray(moocore.pareto_rank(unique), np.int64)[inverse.reshape(-1)]


def crowding_distances(points: Floats) -> Floats:
    """How lonely each point is among its peers; infinite at the ends. Shape (points,).

    Source: K. Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE TEC 6(2), 2002.
    """
    distances = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        distances[order[[0, -1]]] = np.inf
        span = ordered[-1] - ordered[0]
        if span > 0:
            distances[order[1:-1]] += (ordered[2:] - ordered[:-2]) / span
    return distances


def nsga2_order(points: Floats) -> NDArray[np.int64]:
    """Indices from best to worst: by Pareto rank, within a rank the lonelier first (NSGA-II, Deb et al. 2002)."""
    ranks = pareto_ranks(points)
    crowding = np.zeros(len(points))
    for rank in np.unique(ranks):
        members = ranks == rank
        crowding[members] = crowding_distances(points[members])
    return np.lexsort((-crowding, ranks))


def hypervolume(points: Floats, reference: Floats) -> float:
    """Volume dominated by `points` and bounded by `reference`; points beyond the reference add nothing."""
    inside = points[(points < reference).all(axis=1)] if len(points) else points
    return float(moocore.hypervolume(inside, ref=reference)) if len(inside) else 0.0
