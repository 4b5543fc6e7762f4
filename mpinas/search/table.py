"""What is known of each genome, as rows of numbers, and which few rows of a long history are worth a look.

It knows no genome and no model, only row numbers, objectives (minimised) and constraints (0 or less is feasible).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mpinas.search.selection import Floats, constrained_order

Rows = NDArray[np.int64]
Order = Callable[[Floats, Floats], Rows]


class Table:
    """Rows in the order of first news; columns: the objectives, the outcome, then each constraint as it is named.

    A long history is a binary tree of blocks: each node keeps the most useful rows of its two halves. So what
    `useful` returns depends on the rows alone, not on when it was called, and costs as much at 100,000 rows as at a
    thousand.
    """

    #: Rows of a leaf of the tree; what a node keeps is never less than this.
    _BLOCK = 256

    def __init__(self, n_objectives: int, kept: int = 384) -> None:
        self.n_objectives = n_objectives
        #: Column of -1 for what was evaluated and 1 for what failed though no constraint was known to be violated.
        self.outcome = n_objectives
        #: How many failed so.
        self.failures = 0
        self.columns: dict[str, int] = {}
        #: Grows with every change. Equal versions of one table mean equal contents.
        self.version = 0
        #: Rows of each column in the order in which their first value came.
        self.arrived: list[list[int]] = [[] for _ in range(n_objectives + 1)]
        #: How often a value of the column was replaced by another.
        self.revised: list[int] = [0] * (n_objectives + 1)
        self._kept = max(kept, self._BLOCK)
        self._count = 0
        self._values = np.full((64, n_objectives + 1), np.nan)
        self._nodes: dict[tuple[int, int], Rows] = {}

    def __len__(self) -> int:
        return self._count

    def add(self) -> int:
        """A new row, all unknown."""
        if self._count == len(self._values):
            self._values = np.concatenate([self._values, np.full_like(self._values, np.nan)])
        self._count += 1
        self.version += 1
        return self._count - 1

    def constraint(self, name: str) -> int:
        """The column of a constraint, made when it is first named."""
        if name not in self.columns:
            self.columns[name] = self._values.shape[1]
            self._values = np.column_stack([self._values, np.full(len(self._values), np.nan)])
            self.arrived.append([])
            self.revised.append(0)
        return self.columns[name]

    def put(self, row: int, column: int, value: float) -> None:
        """Set or replace one value."""
        old = self._values[row, column]
        if old == value:
            return
        if np.isnan(old):
            self.arrived[column].append(row)
        else:
            self.revised[column] += 1
        self._values[row, column] = value
        self.failures += column == self.outcome and value > 0
        self.version += 1
        block = row // self._BLOCK
        level = 0
        while self._nodes and (1 << level) * self._BLOCK <= self._count:
            self._nodes.pop((level, block >> level), None)
            level += 1

    def values(self, rows: Rows, column: int) -> Floats:
        """Of some rows; NaN where unknown."""
        return np.asarray(self._values[rows, column])

    def objectives(self, rows: Rows) -> Floats:
        """Shape (rows, objectives); NaN where unknown."""
        return np.asarray(self._values[rows, : self.n_objectives])

    def first_told(self, count: int) -> Rows:
        """The rows evaluated first."""
        told = (row for row in self.arrived[self.outcome] if self._values[row, self.outcome] < 0)
        return np.array(list(itertools.islice(told, count)), np.int64)

    def share_told(self, count: int) -> float:
        """Of the first `count` rows, how many were evaluated."""
        return float((self._values[: min(count, self._count), self.outcome] < 0).mean())

    def violations(self, rows: Rows) -> Floats:
        """How far each row is from feasible, 0 if it is as far as is known: the sum of its violations.

        Each constraint is measured by its usual violation, so that bytes do not drown seconds.
        """
        total = np.zeros(len(rows))
        for column in self.columns.values():
            beyond = np.clip(np.nan_to_num(self.values(rows, column)), 0, None)
            if (beyond > 0).any():
                total += beyond / np.median(beyond[beyond > 0])
        return total

    def useful(self, limit: int | None = None) -> Rows:
        """The rows to learn from: all of a short history, of a long one the best and some of the others, ascending.

        At most `limit`; without it a few thousand.
        """
        full, chosen = self._count // self._BLOCK, []
        start = 0
        for level in reversed(range(full.bit_length())):
            if full >> level & 1:
                chosen.append(self._node(level, start >> level))
                start += 1 << level
        chosen.append(np.arange(full * self._BLOCK, self._count))
        rows = np.sort(np.concatenate(chosen))
        return rows if limit is None else self._thinned(rows, limit)

    def best(self, count: int, order: Order = constrained_order) -> Rows:
        """The best told rows, best first; where they are too few, those nearest to feasible after them."""
        rows = self.useful(self._kept)
        objectives, violations = self.objectives(rows), self.violations(rows)
        candidates = ~np.isnan(objectives).any(axis=1) | (violations > 0)
        rows = rows[candidates]
        return rows[order(objectives[candidates], violations[candidates])[:count]]

    def _node(self, level: int, index: int) -> Rows:
        if level == 0:
            return np.arange(index * self._BLOCK, (index + 1) * self._BLOCK)
        if (level, index) not in self._nodes:
            rows = np.concatenate([self._node(level - 1, 2 * index), self._node(level - 1, 2 * index + 1)])
            self._nodes[level, index] = self._thinned(rows, self._kept)
        return self._nodes[level, index]

    def _thinned(self, rows: Rows, limit: int) -> Rows:
        """Three quarters of what may be kept are the best, the rest is spread over all others: models need both."""
        if len(rows) <= limit:
            return rows
        order = constrained_order(self.objectives(rows), self.violations(rows))
        best = limit * 3 // 4
        others = order[best:][np.linspace(0, len(order) - best - 1, limit - best).astype(np.int64)]
        return np.sort(rows[np.concatenate([order[:best], others])])
