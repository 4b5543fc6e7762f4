"""Latencies of networks that no device has measured yet, learned from those that have been.

A stand-in while a device is slow or gone; never a result. Must not know the state of a search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mpinas.search import Genome, SearchSpace, Surrogate

#: So many measured candidates are needed before one is predicted.
MEASURED_MIN = 8
#: And so many are learned from at most: the cost of a fit grows with their cube, and it is done between events.
EXAMPLES_MAX = 400
#: Learned anew when there are so many times more measured ones than before.
GROWTH = 1.2


class LatencyPredictor:
    """One regressor of log latency for each device."""

    def __init__(self, space: SearchSpace, devices: Sequence[str], seed: int) -> None:
        self._models = {device: Surrogate(space, seed) for device in devices}
        self._learned_from = 0

    def wants(self, measured: int) -> bool:
        """Would it learn from so many?"""
        return measured >= max(MEASURED_MIN, GROWTH * self._learned_from)

    def learn(self, genomes: Sequence[Genome], latencies_s: Mapping[str, Sequence[float]]) -> None:
        """Take in what was measured, if it is enough more than what was known.

        Parameters
        ----------
        genomes
            The measured ones.
        latencies_s
            By device, in the order of `genomes`; all above zero.
        """
        if not self.wants(len(genomes)):
            return
        chosen = _chosen(len(genomes))
        for device, model in self._models.items():
            model.fit([genomes[at] for at in chosen], [math.log(latencies_s[device][at]) for at in chosen])
        self._learned_from = len(genomes)

    @property
    def ready(self) -> bool:
        """Has enough been measured?"""
        return self._learned_from > 0

    def predict(self, genomes: Sequence[Genome]) -> list[dict[str, tuple[float, float]]]:
        """For each genome, by device: median and standard deviation, in seconds."""
        out: list[dict[str, tuple[float, float]]] = [{} for _ in genomes]
        for device, model in self._models.items():
            for found, log_s, log_std in zip(out, *model.predict(genomes), strict=True):
                # the deviation of a log-normal quantity, for small deviations of its logarithm
                found[device] = (math.exp(log_s), math.exp(log_s) * log_std)
        return out


def _chosen(count: int) -> list[int]:
    """Whom to learn from: the last ones, which are most like those to come, and as many from all over the others."""
    if count <= EXAMPLES_MAX:
        return list(range(count))
    half = EXAMPLES_MAX // 2
    earlier = count - half
    return [*(at * earlier // half for at in range(half)), *range(earlier, count)]
