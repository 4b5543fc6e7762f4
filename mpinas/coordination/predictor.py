"""Latencies of networks that no device has measured yet, learned from those that have been.

A stand-in while a device is slow or gone; never a result. Must not know the state of a search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mpinas.search import Genome, SearchSpace, Surrogate

#: So many measured candidates are needed before one is predicted.
MEASURED_MIN = 8
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
        for device, model in self._models.items():
            model.fit(genomes, [math.log(each) for each in latencies_s[device]])
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
