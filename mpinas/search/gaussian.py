"""Gaussian process regression with one length for each group of columns. It knows rows of numbers, no genomes.

Source: C. E. Rasmussen and C. K. I. Williams, Gaussian Processes for Machine Learning, 2006, chapters 2 and 5.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpinas.search.selection import Floats

#: Before examples speak, lengths are about this times the root of the number of groups, ...
_LENGTH = 0.7
#: ... give or take this much of their logarithm, and the noise is this share of the signal's variance.
_LENGTH_SPREAD, _NOISE, _NOISE_SPREAD = 1.0, 0.01, 1.5
#: How far a group's own length is from the common one, in the logarithm.
_OWN_SPREAD = 0.5
_NOISE_LOG_RANGE = (-7.0, 1.0)
_STEPS = 12
_STEP_FIRST, _STEP_MIN, _STEP_MAX = 0.3, 0.02, 1.0


@dataclass(frozen=True, slots=True)
class Parameters:
    """weights: one over the length, for each column; noise and signal: variances, noise per signal."""

    weights: Floats
    noise: float
    signal: float


def likeliest(x: Floats, y: Floats, groups: NDArray[np.int64]) -> Parameters:
    """What explains the examples best, after a prior that holds while they are few. `groups`: of each column.

    A fixed number of steps, so that the cost is known. Source of the steps: M. Blum and M. Riedmiller, Optimization of
    Gaussian process hyperparameters using Rprop, ESANN 2013.
    """
    n_groups = int(groups.max()) + 1
    distances = np.stack([_squared_distances(x[:, groups == at]) for at in range(n_groups)])  # (groups, rows, rows)
    start = np.log([1 / (_LENGTH * np.sqrt(n_groups)), _NOISE])
    common, _ = _climb(distances.sum(axis=0, keepdims=True), y, start, np.array([_LENGTH_SPREAD, _NOISE_SPREAD]))
    prior = np.append(np.full(n_groups, common[0]), common[1])
    at, signal = _climb(distances, y, prior, np.append(np.full(n_groups, _OWN_SPREAD), _NOISE_SPREAD))
    return Parameters(np.exp(at[:-1])[groups], float(np.exp(at[-1])), signal)


def _climb(distances: Floats, y: Floats, prior: Floats, spread: Floats) -> tuple[Floats, float]:
    """The likeliest log weights and log noise seen, and the signal's variance there."""
    at, step, last = prior, np.full(len(prior), _STEP_FIRST), np.zeros(len(prior))
    best, found = -np.inf, (at, 1.0)
    for _ in range(_STEPS):
        likelihood, slope, signal = _likelihood(distances, y, at)
        likelihood -= 0.5 * float((((at - prior) / spread) ** 2).sum())
        slope -= (at - prior) / spread**2
        if likelihood > best:
            best, found = likelihood, (at, signal)
        turned = slope * last
        step = np.clip(step * np.where(turned > 0, 1.3, np.where(turned < 0, 0.5, 1.0)), _STEP_MIN, _STEP_MAX)
        last = np.where(turned < 0, 0.0, slope)
        at = at + np.sign(last) * step
        at[-1] = np.clip(at[-1], *_NOISE_LOG_RANGE)
    return found


def _likelihood(distances: Floats, y: Floats, at: Floats) -> tuple[float, Floats, float]:
    """Log marginal likelihood with the signal's variance at its best, its slope in log weights and log noise."""
    from scipy import linalg  # type: ignore[import-untyped]  # comes with scikit-learn, and takes its time

    weights, noise = np.exp(2 * at[:-1]), float(np.exp(at[-1]))
    squared = np.tensordot(weights, distances, 1)
    kernel, slope_of_kernel = _matern(squared)
    kernel[np.diag_indices(len(y))] += noise
    root = linalg.cholesky(kernel, lower=True, check_finite=False)
    inverse = linalg.cho_solve((root, True), np.eye(len(y)), check_finite=False)
    pull = inverse @ y
    signal = max(float(y @ pull) / len(y), 1e-12)
    log_determinant = 2 * float(np.log(np.diag(root)).sum())
    rest = np.outer(pull, pull) / signal - inverse
    slope = weights * (distances.reshape(len(weights), -1) @ (rest * slope_of_kernel).ravel())
    slope_of_noise = 0.5 * noise * float(np.trace(rest))
    return -0.5 * (len(y) * np.log(signal) + log_determinant), np.append(slope, slope_of_noise), signal


def _matern(squared: Floats) -> tuple[Floats, Floats]:
    """Twice differentiable Matérn covariance (smoothness 5/2) of squared distances, and its slope in them."""
    root = np.sqrt(5.0 * squared)
    decay = np.exp(-root)
    return (1.0 + root + squared * (5.0 / 3.0)) * decay, (-5.0 / 6.0) * (1.0 + root) * decay


def _squared_distances(a: Floats, b: Floats | None = None) -> Floats:
    b = a if b is None else b
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.asarray(np.maximum(squared, 0.0))


class GaussianProcess:
    """Posterior for fixed parameters and centred targets."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._pending: tuple[Floats, Floats, Floats] | None = None

    def fit(self, x: Floats, y: Floats) -> GaussianProcess:
        """Condition on rows `x` with targets `y`."""
        from scipy import linalg

        self._x = x * self._parameters.weights
        covariance = _matern(_squared_distances(self._x))[0]
        covariance[np.diag_indices(len(y))] += self._parameters.noise
        self._root = linalg.cholesky(covariance, lower=True, check_finite=False)
        self._pull = linalg.cho_solve((self._root, True), y, check_finite=False)
        return self

    def fancying(self, x: Floats) -> GaussianProcess:
        """The same after rows `x` turned out as predicted: means stay, doubt near them goes."""
        from scipy import linalg

        out = copy(self)
        rows = x * self._parameters.weights
        whitened = self._whitened(rows)[1]
        left = _matern(_squared_distances(rows))[0] - whitened.T @ whitened
        left[np.diag_indices(len(rows))] += self._parameters.noise
        out._pending = (rows, whitened, linalg.cholesky(left, lower=True, check_finite=False))
        return out

    def predict(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        """Means, variances of what would be told, and which share of the doubt is left by the rows fancied.

        The noise counts, for what is told decides who is on the front.
        """
        from scipy import linalg

        rows = x * self._parameters.weights
        covariance, whitened = self._whitened(rows)  # (examples, rows)
        doubts = np.maximum(1.0 - (whitened**2).sum(axis=0), 1e-9)
        left = np.ones(len(x))
        if self._pending is not None:
            pending, pending_whitened, root = self._pending
            between = _matern(_squared_distances(pending, rows))[0] - pending_whitened.T @ whitened
            learnt = linalg.solve_triangular(root, between, lower=True, check_finite=False)
            left = np.clip(1.0 - (learnt**2).sum(axis=0) / doubts, 0.0, 1.0)
        return covariance.T @ self._pull, (doubts + self._parameters.noise) * self._parameters.signal, left

    def _whitened(self, rows: Floats) -> tuple[Floats, Floats]:
        from scipy import linalg

        covariance = _matern(_squared_distances(self._x, rows))[0]
        return covariance, linalg.solve_triangular(self._root, covariance, lower=True, check_finite=False)
