"""Who is better, with several objectives. All objectives are minimised; arrays are (points, objectives)."""

from __future__ import annotations

from itertools import combinations

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


def das_dennis(n_objectives: int, count: int) -> Floats:
    """At most `count` evenly spread directions, as many as fit, at least one for each objective; rows add up to 1.

    Source: I. Das and J. E. Dennis, Normal-boundary intersection, SIAM J. Optimization 8(3), 1998.
    """
    if n_objectives == 1:
        return np.ones((1, 1))
    best = np.eye(n_objectives)
    for divisions in range(2, count):
        # stars and bars: where the bars stand among the stars
        bars = np.array(list(combinations(range(divisions + n_objectives - 1), n_objectives - 1)))
        if len(bars) > count:
            break
        edges = np.column_stack([np.full(len(bars), -1), bars, np.full(len(bars), divisions + n_objectives - 1)])
        best = (np.diff(edges, axis=1) - 1) / divisions
    return best


def nsga3_order(points: Floats, directions: Floats) -> NDArray[np.int64]:
    """Indices from best to worst: by Pareto rank, within a rank who serves the direction served least so far.

    The scale is from the ideal to the nadir of the front; the intercepts of the paper are often degenerate for the
    few points of a costly search.
    Source: K. Deb and H. Jain, An evolutionary many-objective optimization algorithm using reference-point-based
    nondominated sorting, IEEE TEC 18(4), 2014.
    """
    if len(points) == 0:
        return np.zeros(0, np.int64)
    ranks = pareto_ranks(points)
    ideal = points.min(axis=0)
    span = points[ranks == 0].max(axis=0) - ideal
    scaled = (points - ideal) / np.where(span > 0, span, 1.0)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    along = scaled @ unit.T
    distances = np.sqrt(np.maximum((scaled**2).sum(axis=1)[:, None] - along**2, 0.0))
    nearest = distances.argmin(axis=1)
    served = np.zeros(len(directions), np.int64)
    order: list[int] = []
    for rank in np.unique(ranks):
        waiting: dict[int, list[int]] = {}
        members = np.flatnonzero(ranks == rank)
        for member in members[np.argsort(distances[members, nearest[members]], kind="stable")]:
            waiting.setdefault(int(nearest[member]), []).append(int(member))
        while waiting:
            niche = min(waiting, key=lambda at: (served[at], at))
            order.append(waiting[niche].pop(0))
            served[niche] += 1
            if not waiting[niche]:
                del waiting[niche]
    return np.array(order, np.int64)


def constrained_order(points: Floats, violations: Floats) -> NDArray[np.int64]:
    """Indices from best to worst: the feasible by NSGA-II, those not evaluated yet, then the nearest to feasible.

    Source: constrained domination, K. Deb et al., NSGA-II, 2002, section VI.
    """
    known = ~np.isnan(points).any(axis=1)
    good = np.flatnonzero((violations <= 0) & known)
    open_ = np.flatnonzero((violations <= 0) & ~known)
    bad = np.flatnonzero(violations > 0)
    return np.concatenate([good[nsga2_order(points[good])], open_, bad[np.argsort(violations[bad], kind="stable")]])


def hypervolume(points: Floats, reference: Floats) -> float:
    """Volume dominated by `points` and bounded by `reference`; points beyond the reference add nothing."""
    inside = points[(points < reference).all(axis=1)] if len(points) else points
    return float(moocore.hypervolume(inside, ref=reference)) if len(inside) else 0.0
