"""What the models believe of genomes: each objective, each constraint, whether it fails; and what that is worth.

A function of the table's contents: models are fitted when first asked for and kept until the next news.
It knows nothing of how genomes come about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import moocore
import numpy as np

from mpinas.search.acquisition import expected_hypervolume_gain, normal_cdf
from mpinas.search.encoding import Encoder
from mpinas.search.forest import Forest, milestone, worth_learning
from mpinas.search.gaussian import Parameters
from mpinas.search.regression import PARAMETER_ROWS, Regression, parameters_for
from mpinas.search.scale import Prediction, spans_decades
from mpinas.search.selection import Floats, nsga2_order
from mpinas.search.space import Genome, SearchSpace
from mpinas.search.table import Rows, Table

#: Examples for all models together; each has its share, but not less than the second.
_EXAMPLES = 560
_EXAMPLES_MIN = 96
#: A model needs so many examples.
_FEWEST = 4
#: The Gaussian process' parameters are sought again when there are so many times more examples.
_GROWTH = 1.2
#: The reference point bounds what counts as gain. It comes from the first told, which were drawn blindly, so that it
#: does not close in with the search: so many of them are better in each objective, ...
_REFERENCE_QUANTILE = 0.9
#: ... and the front's own span is exceeded by so much, for the ends of the front to count.
_REFERENCE_MARGIN = 0.1
#: Where the first draws were rejected the told are few and alike, and a front of few points does not show where its
#: ends are: it is exceeded by so many times what the told span, shared among its points.
_REFERENCE_REACH = 4.0
_REFERENCE_FROM = 24
#: Rows of the table are kept encoded up to so many.
_ENCODED_MAX = 8192
#: Of a longer front the gain is reckoned from so many points, the loneliest: its cost grows with them.
_FRONT_MAX = 80
#: Genomes under way that are less likely feasible take no place in the front.
_LIKELY = 0.5
#: Curiosity stops at genomes that are so many times less likely feasible than the likeliest.
_CONCEIVABLE = 0.1


@dataclass(frozen=True)
class Beliefs:
    """Fitted models, and the front to beat with what is fancied of genomes under way."""

    encode: Encoder
    table: Table
    #: One for each objective; empty while one of them cannot be fitted.
    objectives: list[Regression]
    #: Column of the table -> model of the squeezed constraint, or of failing.
    constraints: dict[int, Regression]
    #: (points, objectives), feasible and not dominated.
    front: Floats
    reference: Floats
    #: Share of the first draws that were never told of.
    unseen: float

    def fancying(self, genomes: Sequence[Genome], rows: Sequence[int | None]) -> Beliefs:
        """The same with `genomes`, under way, taken to turn out as predicted (the Kriging believer).

        Source: D. Ginsbourger et al., Kriging is well-suited to parallelize optimization, 2010.
        """
        if not genomes:
            return self
        x = self.encode(genomes)
        front = self.front
        if self.objectives:
            points = np.column_stack([p.median() for p in self._predicted(x, rows)])
            front = np.concatenate([front, points[self._feasibility(x, rows) > np.log(_LIKELY)]])
        return replace(
            self,
            front=front[moocore.is_nondominated(front)] if len(front) else front,
            objectives=[model.fancying(x) for model in self.objectives],
            constraints={column: model.fancying(x) for column, model in self.constraints.items()},
        )

    def scores(self, genomes: Sequence[Genome], rows: Sequence[int | None], rng: np.random.Generator) -> Floats:
        """Log of expected gain times probability of being feasible; `rows` of the table where anything is known."""
        x = self.encode(genomes)
        scores = self._feasibility(x, rows)
        if self.objectives:
            gain = expected_hypervolume_gain(self.front, self.reference, self._predicted(x, rows), rng)
            scores = scores + np.log(gain / (gain.max() or 1.0) + 1e-9)
        return scores

    def doubts(self, genomes: Sequence[Genome]) -> Floats:
        """How little is known of the objectives of each; nothing where others are far likelier feasible."""
        x = self.encode(genomes)
        log_chance = self._feasibility(x, [None] * len(x))
        doubts = np.column_stack([model.predict(x).stds for model in self.objectives])
        conceivable = log_chance > log_chance.max() + np.log(_CONCEIVABLE)
        return np.asarray((doubts / doubts.max(axis=0)).sum(axis=1) * conceivable)

    def _predicted(self, x: Floats, rows: Sequence[int | None]) -> list[Prediction]:
        predictions = []
        for column, model in enumerate(self.objectives):
            prediction = model.predict(x)
            known = self._known(rows, column)
            sure = ~np.isnan(known)
            if sure.any():
                scaled = np.log(np.maximum(known, 1e-300)) if prediction.log else known
                prediction = Prediction(
                    np.where(sure, scaled, prediction.means),
                    np.where(sure, 1e-3 * prediction.stds, prediction.stds),
                    prediction.log,
                )
            predictions.append(prediction)
        return predictions

    def _feasibility(self, x: Floats, rows: Sequence[int | None]) -> Floats:
        """Log probability that all constraints hold."""
        log_chance = np.zeros(len(x))
        for column, model in self.constraints.items():
            prediction = model.predict(x)
            chance = normal_cdf(-prediction.means / prediction.stds)
            known = self._known(rows, column)
            chance = np.where(np.isnan(known), chance, known <= 0)
            log_chance += np.log(np.maximum(chance, 1e-30))
        return log_chance

    def _known(self, rows: Sequence[int | None], column: int) -> Floats:
        at = np.array([-1 if row is None else row for row in rows], np.int64)
        return np.where(at < 0, np.nan, self.table.values(np.maximum(at, 0), column))


class Believer:
    """Fits beliefs to a table that grows."""

    def __init__(self, space: SearchSpace, table: Table, genomes: Sequence[Genome], seed: int) -> None:
        self._encode = Encoder(space)
        self._table = table
        #: Of each row.
        self._genomes = genomes
        self._seed = seed
        self._parameters: dict[int, tuple[tuple[int, int], Parameters]] = {}
        self._forests: dict[int, Forest] = {}
        self._columns: dict[int, Floats] = {}
        self._kept: tuple[int, Beliefs | None] = (-1, None)

    def beliefs(self) -> Beliefs | None:
        """What is believed now; None while there is too little to believe anything."""
        if self._kept[0] != self._table.version:
            self._kept = (self._table.version, self._fit())
        return self._kept[1]

    def _fit(self) -> Beliefs | None:
        table = self._table
        if not len(table):
            return None
        conditions = [table.outcome] if table.failures else []
        conditions += table.columns.values()
        n_models = table.n_objectives + len(conditions)
        rows = table.useful(max(_EXAMPLES_MIN, _EXAMPLES // n_models))
        x = self._encoded(rows)
        points = table.objectives(rows)
        told = points[~np.isnan(points).any(axis=1)]
        good = points[~np.isnan(points).any(axis=1) & (table.violations(rows) <= 0)]
        front = good[moocore.is_nondominated(good)] if len(good) else good
        if len(front) > _FRONT_MAX:
            front = front[nsga2_order(front)[:_FRONT_MAX]]
        objectives: list[Regression] = []
        reference = np.full(table.n_objectives, np.inf)
        unseen = 1 - table.share_told(_REFERENCE_FROM)
        if len(told) >= _FEWEST:
            reference = _reference(table.objectives(table.first_told(_REFERENCE_FROM)), told, front, unseen)
            # what is far beyond the reference is as good as far: no need to model how far
            ceiling = 2 * reference - told.min(axis=0)
            models = [self._model(c, rows, x, ceiling[c]) for c in range(table.n_objectives)]
            objectives = [model for model in models if model is not None]
        constraints = {c: m for c in conditions if (m := self._model(c, rows, x)) is not None}
        if not objectives and not constraints:
            return None
        return Beliefs(self._encode, table, objectives, constraints, front, reference, unseen)

    def _model(self, column: int, rows: Rows, x: Floats, ceiling: float = np.inf) -> Regression | None:
        known = ~np.isnan(self._table.values(rows, column))
        if known.sum() < _FEWEST:
            return None
        values = self._values(rows[known], column)
        # a constraint has its zero to reach, which a logarithm never does
        log = column < self._table.n_objectives and spans_decades(values)
        arrived, edition = self._table.arrived[column], self._table.revised[column]
        forest = self._forests.setdefault(column, Forest(self._seed + 1000 * column))
        trees = forest.trees(arrived, edition, log, lambda rows: self._examples(rows, column))
        return Regression(x[known], np.minimum(values, ceiling), self._parameters_of(column), trees, log)

    def _parameters_of(self, column: int) -> Parameters:
        arrived = self._table.arrived[column]
        # not all columns at the same news: an ask would take long that finds all anew
        count = milestone(len(arrived), _FEWEST, _GROWTH, phase=0.4 * column % 1)
        at = (count, self._table.revised[column])
        if column not in self._parameters or self._parameters[column][0] != at:
            rows = np.array([arrived[number] for number in worth_learning(count, PARAMETER_ROWS)], np.int64)
            x, values = self._examples(rows, column)
            self._parameters[column] = (at, parameters_for(x, values, self._encode.groups(x)))
        return self._parameters[column][1]

    def _examples(self, rows: Rows, column: int) -> tuple[Floats, Floats]:
        return self._encoded(rows), self._values(rows, column)

    def _encoded(self, rows: Rows) -> Floats:
        """Columns of rows of the table, kept: most are wanted again at the next news."""
        wanted = rows.tolist()
        if len(self._columns) > _ENCODED_MAX:
            self._columns.clear()
        if new := [row for row in wanted if row not in self._columns]:
            self._columns.update(zip(new, self._encode([self._genomes[row] for row in new]), strict=True))
        return np.array([self._columns[row] for row in wanted])

    def _values(self, rows: Rows, column: int) -> Floats:
        values = self._table.values(rows, column)
        return values if column < self._table.n_objectives else np.arcsinh(values / self._size(column))

    def _size(self, column: int) -> float:
        """Usual size of a constraint: near 0 it is modelled as it is, decades away by steps.

        From its first values alone: what was fitted earlier and is kept must be what a resumed search fits now.
        """
        first = np.array(self._table.arrived[column][:_FEWEST], np.int64)
        return float(np.median(np.abs(self._table.values(first, column)))) or 1.0


def _reference(first: Floats, told: Floats, front: Floats, unseen: float) -> Floats:
    """`unseen`: share of the first draws that were never told of, for which the told stand badly."""
    reference = np.quantile(first, _REFERENCE_QUANTILE, axis=0)
    if len(front):
        nadir = front.max(axis=0)
        span = np.quantile(told, _REFERENCE_QUANTILE, axis=0) - told.min(axis=0)
        margin = _REFERENCE_MARGIN * (nadir - front.min(axis=0))
        reach = unseen * _REFERENCE_REACH / len(front) * span
        reference = np.maximum(reference, nadir + np.maximum(margin, reach))
    # a column in which all are equal still needs room below the reference
    return np.asarray(reference + 1e-9 * np.maximum(np.abs(reference), 1e-9))
