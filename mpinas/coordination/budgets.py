"""Which candidates are worth a larger budget, and what an error after a small one says of that after the full one.

Pure: values in, values out. Must not know events or who trains.

Sources: successive halving without waiting for a rung to fill (L. Li et al., A system for massively parallel
hyperparameter tuning, MLSys 2020), here by non-dominated rank and hypervolume contribution instead of one score.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping

from mpinas.search.promotion import promotion_order

Point = tuple[float, ...]
#: So many candidates must have gone the whole way before anything is concluded from how errors fall.
PAIRS_MIN = 5


class Curves:
    """How errors fell from each rung to the full budget, as far as candidates have gone the whole way."""

    def __init__(self) -> None:
        #: By rung: full error / error after the rung.
        self._falls: dict[int, list[float]] = {}

    def add(self, early: Mapping[int, float], full: float) -> None:
        """A candidate with errors `early` by rung has come to `full`."""
        for rung, error in early.items():
            if error > 0:
                self._falls.setdefault(rung, []).append(full / error)

    def expected(self, rung: int, error: float) -> float:
        """The full budget's error to expect: as errors fell in the median, and unchanged while little is known."""
        falls = self._falls.get(rung, [])
        return error * statistics.median(falls) if len(falls) >= PAIRS_MIN else error

    def hopeful(self, rung: int, error: float) -> float:
        """The best full error that has reason: as errors fell in the best case; zero while little is known."""
        falls = self._falls.get(rung, [])
        return error * min(falls) if len(falls) >= PAIRS_MIN else 0.0


def promotable(points: Mapping[int, Point], gone_on: Collection[int], share: float) -> list[int]:
    """Who of a rung is to be trained on now, the best first.

    Parameters
    ----------
    points
        Objectives after this rung, by candidate.
    gone_on
        Who has been promoted from it already.
    share
        Part of a rung that goes on to the next.
    """
    quota = int(len(points) * share)
    if quota <= 0:
        return []
    ids = list(points)
    best = [ids[index] for index in promotion_order([points[id_] for id_ in ids])[:quota]]
    return [id_ for id_ in best if id_ not in gone_on]
