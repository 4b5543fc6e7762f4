"""What a task is: data, loss and metrics. A task knows nothing of search, groups or devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs (n, frames, height, width) uint8; targets, first axis n, or None where the file has no labels."""

    inputs: NDArray[np.uint8]
    targets: NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.inputs)

    def middle(self, frames: int) -> Samples:
        """The same samples with the `frames` in the middle of each window; a view, not a copy."""
        start = (self.inputs.shape[1] - frames) // 2
        return Samples(self.inputs[:, start : start + frames], self.targets)


class Task(Protocol):
    """One thing to learn. The class is named in the experiment file, and made from ([task] section, seed of the run).

    What a task needs of the section: `train`, `test`, `frames`, `validation_fraction` …, and of its own keys a table
    `options`: where it has an attribute `option_names`, others are refused. It raises UserError for what it cannot use.
    """

    name: str
    #: Frames, height, width of one sample.
    input_shape: tuple[int, int, int]
    #: How many numbers a network gives for one sample.
    outputs: int
    #: Which error a device computes of a trained model: "rmse" over all targets, or "misclassified".
    device_metric: Literal["rmse", "misclassified"]
    #: The human-designed network to beat: made from (input shape, outputs); the class, or an installed one's name.
    baseline: str | Callable[[tuple[int, int, int], int], nn.Module]
    #: What a user of the ONNX file has to know: key -> text, written into the file.
    metadata: dict[str, str]

    @property
    def simulated(self) -> bool:
        """Whether the data are simulated; said wherever results are shown. Raises UserError."""
        ...

    def load(self) -> tuple[Samples, Samples]:
        """Training and validation samples, the same on every call. Raises UserError where the data are not fit."""
        ...

    def load_test(self) -> Samples | None:
        """The test samples, or None where the experiment names none. Raises UserError."""
        ...

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean loss of a batch, a scalar. `outputs` (batch, outputs)."""
        ...

    def sums(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Statistics of a batch that may be added over batches and ranks: 1-d, float64, the count first."""
        ...

    def metrics(self, sums: torch.Tensor) -> dict[str, float]:
        """Metrics of the summed statistics; "error" is the objective, to be minimised."""
        ...
