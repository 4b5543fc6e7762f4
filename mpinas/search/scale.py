"""The scale on which a value is modelled: centred, of unit spread, by logarithm where it spans decades."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpinas.search.selection import Floats

#: Positive values are modelled by their logarithm if the greatest is so many times the smallest.
_LOG_RATIO = 10.0
#: Values beyond the quartiles by more than so many interquartile ranges are taken for so far and no farther.
_FENCE = 3.0
#: No doubt is smaller than this share of the spread of the examples.
_DOUBT_MIN = 1e-3


@dataclass(frozen=True, slots=True)
class Prediction:
    """Normal in `means` and `stds`; if `log`, the logarithm of the value is."""

    means: Floats
    stds: Floats
    log: bool

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
    """Raw values to the scale on which they are modelled, and predictions back. `log`: None lets the values decide."""

    def __init__(self, values: Floats, log: bool | None = None) -> None:
        self.log = spans_decades(values) if log is None else log
        on_scale = self._on_scale(values)
        low, middle, high = np.quantile(on_scale, (0.25, 0.5, 0.75))
        # where most values are equal the quartiles are too, and say nothing of what is wild
        reach = _FENCE * (high - low) if high > low else np.inf
        self._low, self._high = low - reach, high + reach
        self._centre = float(middle)
        self._unit = float(np.clip(on_scale, self._low, self._high).std()) or 1.0

    def forward(self, values: Floats) -> Floats:
        """Centred, of about unit spread, wild ones drawn in."""
        return np.asarray((np.clip(self._on_scale(values), self._low, self._high) - self._centre) / self._unit)

    def outward(self, scaled: Floats) -> Floats:
        """The values, or their logarithm, of scaled ones."""
        return scaled * self._unit + self._centre

    def inward(self, outward: Floats) -> Floats:
        """The inverse of `outward`."""
        return (outward - self._centre) / self._unit

    def back(self, means: Floats, variances: Floats) -> Prediction:
        """The prediction of values whose scaled ones have these moments."""
        stds = np.maximum(np.sqrt(variances), _DOUBT_MIN) * self._unit
        return Prediction(self.outward(means), stds, self.log)

    def _on_scale(self, values: Floats) -> Floats:
        return np.log(np.maximum(values, 1e-300)) if self.log else values


def spans_decades(values: Floats) -> bool:
    """Are all positive and the greatest many times the smallest?"""
    return bool(values.min() > 0 and values.max() > _LOG_RATIO * values.min())
