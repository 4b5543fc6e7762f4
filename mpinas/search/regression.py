"""One number of a genome, predicted with its doubt from few, crude and sometimes wild examples.

A Gaussian process (smooth, knows what it does not know) and extremely randomised trees (steps, interactions, outliers)
are averaged, the trees less the smoother the values are; where they disagree the doubt is greater. It knows rows of
numbers and, in `Surrogate`, genomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
from numpy.typing import NDArray

from mpinas.search.encoding import Encoder
from mpinas.search.forest import EXAMPLES_MAX, TREES, Tree, grown, worth_learning
from mpinas.search.gaussian import GaussianProcess, Parameters, likeliest
from mpinas.search.scale import Prediction, Scale
from mpinas.search.selection import Floats
from mpinas.search.space import Genome, SearchSpace

#: The Gaussian process' parameters come from so many examples at most.
PARAMETER_ROWS = 80


#: From this noise per signal on the trees count as much as the process; the less, the smoother the process says the
#: function is, and steps only blur it.
_ROUGH = 0.02


def parameters_for(x: Floats, values: Floats, groups: NDArray[np.int64]) -> Parameters:
    """Of the Gaussian process. Costs more than a fit and changes slowly: worth keeping for a while."""
    return likeliest(x, Scale(values).forward(values), groups)


class Regression:
    """A process fitted to rows and values, and trees grown of them; all on one scale."""

    def __init__(self, x: Floats, values: Floats, parameters: Parameters, trees: Sequence[Tree], log: bool) -> None:
        self._scale = Scale(values, log)
        self._x = x
        self._trees = trees
        #: Of the trees in what is predicted.
        self._share = 0.5 * min(1.0, parameters.noise / _ROUGH)
        if len(np.unique(values)) == 2:  # yes or no: all steps, though they may look free of noise
            self._share = 0.5
        self._process = GaussianProcess(parameters).fit(x, self._scale.forward(values))

    def fancying(self, x: Floats) -> Regression:
        """The same after seeing rows `x` turn out as it predicts them: doubt is smaller near them."""
        out = copy(self)
        out._process = self._process.fancying(x)
        return out

    def predict(self, x: Floats) -> Prediction:
        """Of rows. What is fancied leaves less of all doubt, the trees' too: else those under way would not spread."""
        means, variances, left = self._process.predict(x)
        single = x.astype(np.float32)
        votes = self._scale.inward(np.stack([tree.predict(single) for tree in self._trees]))
        apart, share = votes.mean(axis=0) - means, self._share
        variances = (1 - share) * variances + share * votes.var(axis=0) / 2 + share * (1 - share) * apart**2
        return self._scale.back(means + share * apart, variances * left)


class Surrogate:
    """Predicts a number from a genome: `fit` on examples, `predict` with doubt, in the unit of the values."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._encode = Encoder(space)
        self._seed = seed
        self._model: Regression | None = None

    def fit(self, genomes: Sequence[Genome], values: Sequence[float]) -> Surrogate:
        """Learn from examples, at least two; each fit forgets the one before.

        Of more than 384 examples it learns from 384: the last 288, which are most like those to come, and 96 spread
        evenly over the others. So a fit costs as much after 100,000 as after 400.
        """
        every = np.array(values, float)
        if len(genomes) != len(every) or len(every) < 2 or not np.isfinite(every).all():
            found = f"{len(genomes)} genomes, {len(every)} values"
            raise ValueError(f"{found}: as many finite values, two or more, are needed")
        chosen = worth_learning(len(every), EXAMPLES_MAX)
        x, y = self._encode([genomes[at] for at in chosen]), every[chosen]
        trees = [grown(x, y, None, self._seed + number) for number in range(TREES)]
        some = worth_learning(len(y), PARAMETER_ROWS)
        parameters = parameters_for(x[some], y[some], self._encode.groups(x))
        self._model = Regression(x, y, parameters, trees, Scale(y).log)
        return self

    def predict(self, genomes: Sequence[Genome]) -> tuple[list[float], list[float]]:
        """Means and standard deviations."""
        if self._model is None:
            raise ValueError("fit comes before predict")
        if not genomes:
            return [], []
        prediction = self._model.predict(self._encode(genomes))
        return prediction.expected().tolist(), prediction.spread().tolist()
