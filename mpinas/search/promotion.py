"""The order in which evaluated genomes are worth more effort. Must not know what the effort is."""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np

from mpinas.search.selection import pareto_ranks


def promotion_order(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices from best to worst: by Pareto rank, within a rank by the share of hypervolume that only it dominates.

    All objectives are minimised. The reference point is the worst value of each, a tenth of the range beyond.
    Source of the order: the selection of SMS-EMOA (N. Beume, B. Naujoks and M. Emmerich, EJOR 181(3), 2007).
    """
    values = np.array(points, float)  # (points, objectives)
    if len(values) == 0:
        return []
    low, high = values.min(axis=0), values.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    scaled = (values - low) / span
    ranks = pareto_ranks(scaled)
    contribution = np.zeros(len(scaled))
    for rank in np.unique(ranks):
        members = np.flatnonzero(ranks == rank)
        # equal points would each take the other's share away
        unique, inverse = np.unique(scaled[members], axis=0, return_inverse=True)
        shares = moocore.hv_contributions(unique, ref=np.full(unique.shape[1], 1.1))
        contribution[members] = shares[inverse.reshape(-1)]
    return [int(index) for index in np.lexsort((-contribution, ranks))]
