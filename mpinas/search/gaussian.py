"""Gaussian process regression with its few parameters found on a grid. It knows rows of numbers, no genomes.

Source: C. E. Rasmussen and C. K. I. Williams, Gaussian Processes for Machine Learning, 2006, chapters 2 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpinas.search.selection import Floats

_LENGTHS = (0.7, 1.0, 1.5, 2.2, 3.3, 5.0)
_NOISES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True, slots=True)
class Parameters:
    """length: over which the function varies, in columns' units; noise and signal: variances, noise per signal."""

    length: float
    noise: float
    signal: float


def likeliest(x: Floats, y: Floats) -> Parameters:
    """The grid point of the greatest marginal likelihood, the signal's variance in closed form.

    One eigendecomposition for each length serves all noises.
    """
    from sklearn.gaussian_process.kernels import RBF  # scikit-learn takes a second to import

    best, found = -np.inf, Parameters(1.0, 0.1, 1.0)
    for length in _LENGTHS:
        eigenvalues, vectors = np.linalg.eigh(RBF(length)(x))
        energies = (vectors.T @ y) ** 2
        for noise in _NOISES:
            spread = np.maximum(eigenvalues, 0.0) + noise
            signal = max(float((energies / spread).mean()), 1e-12)
            likelihood = -0.5 * (len(y) * np.log(signal) + np.log(spread).sum())
            if likelihood > best:
                best, found = likelihood, Parameters(length, noise, signal)
    return found


class GaussianProcess:
    """Posterior for fixed parameters and centred targets."""

    def __init__(self, parameters: Parameters) -> None:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF

        self._signal = parameters.signal
        self._noise = parameters.noise
        self._model = GaussianProcessRegressor(RBF(parameters.length), alpha=parameters.noise, optimizer=None)

    def fit(self, x: Floats, y: Floats) -> GaussianProcess:
        """Condition on rows `x` with targets `y`."""
        self._model.fit(x, y)
        return self

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Means and variances of what would be told: the noise counts, for what is told decides who is on the front."""
        means, stds = self._model.predict(x, return_std=True)
        return means, (stds**2 + self._noise) * self._signal
