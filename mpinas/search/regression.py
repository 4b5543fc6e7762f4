"""One number of a genome, predicted with its doubt from few, crude and sometimes wild examples.

A Gaussian process (smooth, knows what it does not know) and extremely randomised trees (steps, interactions, outliers)
are averaged; where they disagree the doubt is greater. It knows rows of numbers and, in `Surrogate`, genomes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpinas.search.encoding import Encoder
from mpinas.search.forest import TREES, Tree, grown
from mpinas.search.gaussian import GaussianProcess, Parameters, likeliest
from mpinas.search.scale import Prediction, Scale
from mpinas.search.selection import Floats
from mpinas.search.space import Genome, SearchSpace

#: The Gaussian process' parameters come from so many examples at most, the last.
PARAMETER_ROWS = 128


def parameters_for(x: Floats, values: Floats) -> Parameters:
    """Of the Gaussian process. Costs more than a fit and changes slowly: worth keeping for a while."""
    last = slice(-PARAMETER_ROWS, None)
    return likeliest(x[last], Scale(values[last]).forward(values[last]))


class Regression:
    """A process fitted to rows and values, and trees grown of them; all on one scale."""

    def __init__(self, x: Floats, values: Floats, parameters: Parameters, trees: Sequence[Tree], log: bool) -> None:
        self._scale = Scale(values, log)
        self._x, self._y = x, self._scale.forward(values)
        self._parameters = parameters
        self._trees = trees
        self._process = GaussianProcess(parameters).fit(self._x, self._y)

    def fancying(self, x: Floats) -> Regression:
        """The same after seeing rows `x` turn out as it predicts them: doubt is smaller near them."""
        out = Regression.__new__(Regression)
        out._scale, out._parameters, out._trees = self._scale, self._parameters, self._trees
        out._x, out._y = np.concatenate([self._x, x]), np.concatenate([self._y, self._process.predict(x)[0]])
        out._process = GaussianProcess(self._parameters).fit(out._x, out._y)
        return out

    def predict(self, x: Floats) -> Prediction:
        """Of rows."""
        means, variances = self._process.predict(x)
        single = x.astype(np.float32)
        votes = self._scale.inward(np.stack([tree.predict(single) for tree in self._trees]))
        both = (means + votes.mean(axis=0)) / 2
        return self._scale.back(both, (variances + votes.var(axis=0) / 2) / 2 + (means - both) ** 2)


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
        trees = [grown(x, y, None, self._seed + number) for number in range(TREES)]
        self._model = Regression(x, y, parameters_for(x, y), trees, Scale(y).log)
        return self

    def predict(self, genomes: Sequence[Genome]) -> tuple[list[float], list[float]]:
        """Means and standard deviations."""
        if self._model is None:
            raise ValueError("fit comes before predict")
        if not genomes:
            return [], []
        prediction = self._model.predict(self._encode(genomes))
        return prediction.expected().tolist(), prediction.spread().tolist()
