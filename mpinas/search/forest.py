"""Extremely randomised trees that follow growing data: only a few are grown anew for each piece of news.

It knows rows of numbers, no genomes. Source: P. Geurts et al., Extremely randomized trees, Machine Learning 63, 2006.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpinas.search.scale import Scale
from mpinas.search.selection import Floats
from mpinas.search.table import Rows

TREES = 48
#: Every tree is grown anew once while the examples grow by this factor, one after the other.
_GROWTH = 1.12
_FIRST = 4
#: A tree learns from so many examples at most, the last and a spread of the others.
EXAMPLES_MAX = 384


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree, and the scale on which it was grown."""

    tree: Any
    scale: Scale

    def predict(self, single: np.ndarray) -> Floats:
        """Rows in single precision, which the trees compare, to values (their logarithm where the scale has it)."""
        return np.asarray(self.scale.outward(self.tree.predict(single)[:, 0]))


def grown(x: Floats, values: Floats, log: bool | None, seed: int) -> Tree:
    """A tree of these examples."""
    import sklearn  # takes a second
    from sklearn.tree import ExtraTreeRegressor

    scale = Scale(values, log)
    model = ExtraTreeRegressor(max_features=0.5, min_samples_leaf=2, random_state=seed)
    with sklearn.config_context(skip_parameter_validation=True, assume_finite=True):
        model.fit(x.astype(np.float32), scale.forward(values), check_input=False)
    return Tree(model.tree_, scale)


class Forest:
    """Trees over a list of examples that only gets longer. Which examples a tree knows follows from their number."""

    def __init__(self, seed: int, count: int = TREES) -> None:
        self._seed = seed
        self._kept: list[tuple[object, Tree] | None] = [None] * count

    def trees(
        self, arrived: Sequence[int], edition: object, log: bool, examples: Callable[[Rows], tuple[Floats, Floats]]
    ) -> list[Tree]:
        """The trees for the rows `arrived`; `examples` gives columns and values of rows.

        `edition` changes when one of the values does.
        """
        out = []
        for number in range(len(self._kept)):
            count = milestone(len(arrived), _FIRST, _GROWTH, number / len(self._kept))
            state = (count, edition, log)
            kept = self._kept[number]
            if kept is None or kept[0] != state:
                x, values = examples(np.array([arrived[at] for at in worth_learning(count, EXAMPLES_MAX)], np.int64))
                kept = (state, grown(x, values, log, self._seed + number))
                self._kept[number] = kept
            out.append(kept[1])
        return out


def milestone(count: int, first: int, growth: float, phase: float = 0.0) -> int:
    """The greatest number not above `count` of a geometric series from `first`, shifted by `phase` of a step."""
    step = math.floor(math.log(count / first, growth) - phase) + 2
    while step > 0 and (value := math.floor(first * growth ** (step + phase))) > count:
        step -= 1
    return value if step > 0 else min(count, first)


def worth_learning(count: int, limit: int) -> Rows:
    """Which of `count` examples in the order they came: all, or the last, and a spread of the others. Ascending."""
    if count <= limit:
        return np.arange(count)
    last = limit * 3 // 4
    spread = np.linspace(0, count - last - 1, limit - last).astype(np.int64)
    return np.concatenate([spread, np.arange(count - last, count)])
