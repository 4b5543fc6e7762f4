"""One number of a genome, predicted with its doubt from few, crude and sometimes wild examples.

A Gaussian process (smooth, knows what it does not know) and extremely randomised trees (steps, interactions, outliers)
are averaged; where they disagree the doubt is greater. It knows rows of numbers and, in `Surrogate`, genomes.
Source of the trees: P. Geurts et al., Extremely randomized trees, Machine Learning 63, 2006.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

from mpinas.search.encoding import Encoder
from mpinas.search.gaussian import GaussianProcess, Parameters, likeliest
from mpinas.search.selection import Floats
from mpinas.search.space import Genome, SearchSpace

_TREES = 32
#: Positive values are modelled by their logarithm if the greatest is so many times the smallest.
_LOG_RATIO = 10.0
#: Values beyond the quartiles by more than so many interquartile ranges are taken for so far and no farther.
_FENCE = 3.0
#: The Gaussian process' parameters come from so many examples at most, the last.
_PARAMETER_ROWS = 128
#: No doubt is smaller than this share of the spread of the examples.
_DOUBT_MIN = 1e-3


@dataclass(frozen=True, slots=True)
class Prediction:
    """Normal in `means` and `stds`; if `log`, the logarithm of the value is."""

    means: Floats
    stds: Floats
    log: bool

    def __getitem__(self, which: slice | np.ndarray) -> Prediction:
        return Prediction(self.means[which], self.stds[which], self.log)

    def expected(self) -> Floats:
        """In the unit of the values."""
        return np.exp(self.means + self.stds**2 / 2) if self.log else self.means

    def median(self) -> Floats:
        """In the unit of the values."""
        return np.exp(self.means) if self.log else self.means

    def spread(self) -> Floats:
        """Standard deviation in the unit of the values."""
        return self.expected() * np.sqrt(np.expm1(self.stds**2)) if self.log else self.stds


class Scale:
    """Raw values to the scale on which they are modelled, and predictions back."""

    def __init__(self, values: Floats) -> None:
        positive = values.min() > 0
        self.log = bool(positive and values.max() > _LOG_RATIO * values.min())
        on_scale = np.log(values) if self.log else values
        low, middle, high = np.quantile(on_scale, (0.25, 0.5, 0.75))
        # where most values are equal the quartiles are too, and say nothing of what is wild
        reach = _FENCE * (high - low) if high > low else np.inf
        self._low, self._high = low - reach, high + reach
        inside = np.clip(on_scale, self._low, self._high)
        self._centre = float(middle)
        self._unit = float(inside.std()) or 1.0

    def forward(self, values: Floats) -> Floats:
        """Centred, of about unit spread, wild ones drawn in."""
        on_scale = np.log(np.maximum(values, 1e-300)) if self.log else values
        return np.asarray((np.clip(on_scale, self._low, self._high) - self._centre) / self._unit)

    def back(self, means: Floats, variances: Floats) -> Prediction:
        """The prediction of values whose scaled ones have these moments."""
        stds = np.maximum(np.sqrt(variances), _DOUBT_MIN) * self._unit
        return Prediction(means * self._unit + self._centre, stds, self.log)


def parameters_for(x: Floats, values: Floats) -> Parameters:
    """Of the Gaussian process. Costs more than a fit and changes slowly: worth keeping for a while."""
    last = slice(-_PARAMETER_ROWS, None)
    return likeliest(x[last], Scale(values[last]).forward(values[last]))


class Regression:
    """Both models fitted to rows and values; can imagine further rows that agree with what it predicts for them."""

    def __init__(self, x: Floats, values: Floats, parameters: Parameters, seed: int, trees: int = _TREES) -> None:
        self._scale = Scale(values)
        self._x, self._y = x, self._scale.forward(values)
        self._parameters = parameters
        self._process = GaussianProcess(parameters).fit(self._x, self._y)
        self._forest = ExtraTreesRegressor(trees, max_features=0.5, random_state=seed).fit(self._x, self._y)

    def predict(self, x: Floats, fancied: Floats | None = None) -> Prediction:
        """`fancied`: rows taken as seen with the values predicted for them, so that doubt is smaller near them."""
        means, variances = self._process.predict(x)
        if fancied is not None and len(fancied):
            y = self._process.predict(fancied)[0]
            process = GaussianProcess(self._parameters)
            process.fit(np.concatenate([self._x, fancied]), np.concatenate([self._y, y]))
            means, variances = process.predict(x)
        single = x.astype(np.float32)  # what the trees compare
        votes = np.stack([tree.tree_.predict(single)[:, 0] for tree in self._forest.estimators_])
        both = (means + votes.mean(axis=0)) / 2
        disagreement = (means - both) ** 2
        return self._scale.back(both, (variances + votes.var(axis=0) / 2) / 2 + disagreement)


class Surrogate:
    """Predicts a number from a genome: `fit` on examples, `predict` with doubt, in the unit of the values."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._encode = Encoder(space)
        self._seed = seed
        self._model: Regression | None = None

    def fit(self, genomes: Sequence[Genome], values: Sequence[float]) -> Surrogate:
        """Learn from examples, at least two; each fit forgets the one before."""
        y = np.array(values, float)
        if len(genomes) != len(y) or len(y) < 2 or not np.isfinite(y).all():
            raise ValueError(f"{len(genomes)} genomes, {len(y)} values: as many finite values, two or more, are needed")
        x = self._encode(genomes)
        self._model = Regression(x, y, parameters_for(x, y), self._seed)
        return self

    def predict(self, genomes: Sequence[Genome]) -> tuple[list[float], list[float]]:
        """Means and standard deviations."""
        if self._model is None:
            raise ValueError("fit comes before predict")
        if not genomes:
            return [], []
        prediction = self._model.predict(self._encode(genomes))
        return prediction.expected().tolist(), prediction.spread().tolist()
