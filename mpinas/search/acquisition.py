"""How much a genome is expected to gain, from what is predicted of its objectives and constraints.

It knows predictions and the front, no genomes and no models. All objectives are minimised.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpinas.search.scale import Prediction
from mpinas.search.selection import Floats

_SAMPLES = 256


def normal_cdf(z: Floats) -> Floats:
    """Of the standard normal; relative error below 2e-7, in the tails too.

    Source: the Chebyshev fit of erfc in W. H. Press et al., Numerical Recipes in C, 2nd edition, section 6.2.
    """
    x = np.abs(z) / np.sqrt(2.0)
    t = 1.0 / (1.0 + 0.5 * x)
    fit = np.zeros_like(x)
    for coefficient in (
        *(0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807),
        *(-0.18628806, 0.09678418, 0.37409196, 1.00002368),
    ):
        fit *= t  # in place: this is where an ask spends its time
        fit += coefficient
    tail = 0.5 * t * np.exp(-x * x - 1.26551223 + t * fit)
    return np.asarray(np.where(z > 0, 1.0 - tail, tail))


def expected_improvement(below: Floats, of: Prediction) -> Floats:
    """E[max(bound - value, 0)] for each prediction and each of the bounds `below`; shape (predictions, bounds).

    Closed form for the normal (D. R. Jones et al., J. Global Optimization 13, 1998) and for the log-normal, where it
    is the price of an option (F. Black and M. Scholes, J. Political Economy 81, 1973).
    """
    means, stds = of.means[:, None], of.stds[:, None]
    if of.log:
        z = (np.log(np.maximum(below, 1e-300)) - means) / stds
        gain = below * normal_cdf(z) - np.exp(means + stds**2 / 2) * normal_cdf(z - stds)
    else:
        z = (below - means) / stds
        gain = stds * (z * normal_cdf(z) + np.exp(-z * z / 2) / np.sqrt(2 * np.pi))
    return np.maximum(gain, 0.0)


def expected_hypervolume_gain(
    front: Floats, reference: Floats, predictions: Sequence[Prediction], rng: np.random.Generator
) -> Floats:
    """Expected hypervolume improvement over `front` within `reference`, for independent predictions of objectives.

    Exact for one and two objectives: the gain is a sum over strips between neighbours of the front, in each the
    product of two expected improvements (M. Emmerich et al., Computational Intelligence 2011). For more, the mean
    over points drawn between ideal and reference that are not dominated, of the probability to dominate the point.
    """
    inside = front[(front < reference).all(axis=1)]
    if len(predictions) == 1:
        bound = min([float(reference[0]), *inside[:, 0].tolist()])
        return expected_improvement(np.array([bound]), predictions[0])[:, 0]
    if len(predictions) == 2:
        inside = inside[np.argsort(inside[:, 0])]
        widths = expected_improvement(np.append(inside[:, 0], reference[0]), predictions[0])
        heights = expected_improvement(np.append(reference[1], inside[:, 1]), predictions[1])
        return np.asarray((np.diff(widths, axis=1, prepend=0.0) * heights).sum(axis=1))
    return _by_sampling(inside, reference, predictions, rng)


def _by_sampling(
    front: Floats, reference: Floats, predictions: Sequence[Prediction], rng: np.random.Generator
) -> Floats:
    best = np.array([np.quantile(p.median(), 0.01) for p in predictions])
    low = np.minimum(best, front.min(axis=0)) if len(front) else best
    low = np.minimum(low, reference)
    points = low + rng.random((4 * _SAMPLES, len(predictions))) * (reference - low)
    free = ~(front[None] <= points[:, None]).all(axis=2).any(axis=1) if len(front) else np.ones(len(points), bool)
    points = points[free][:_SAMPLES]
    chance = np.ones((len(predictions[0].means), len(points)))
    for column, prediction in enumerate(predictions):
        bound = points[:, column]
        on_scale = np.log(np.maximum(bound, 1e-300)) if prediction.log else bound
        chance *= normal_cdf((on_scale - prediction.means[:, None]) / prediction.stds[:, None])
    return np.asarray(chance.sum(axis=1)) / max(len(points), 1)
