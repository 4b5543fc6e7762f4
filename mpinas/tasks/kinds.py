"""The two usual kinds of task, to inherit from: numbers to be met, and classes to be told apart."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F


class Regression:
    """Several numbers a sample; error = root of the mean squared error over all of them."""

    device_metric: Literal["rmse", "misclassified"] = "rmse"

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean squared error of (batch, outputs)."""
        return F.mse_loss(outputs, targets)

    def sums(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """[count, summed squared error of each output]."""
        squares = (outputs.double() - targets.double()).square().sum(0)  # (outputs,)
        return torch.cat([squares.new_tensor([len(targets)]), squares])

    def metrics(self, sums: torch.Tensor) -> dict[str, float]:
        """The error."""
        return {"error": float((sums[1:].mean() / sums[0]).sqrt())}


class Classification:
    """Classes, numbered from 0 by integers of any size, told by the largest output; error = share of wrong answers."""

    device_metric: Literal["rmse", "misclassified"] = "misclassified"

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of (batch, classes) with (batch,)."""
        return F.cross_entropy(outputs, targets.long())

    def sums(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """[count, wrong, summed cross-entropy]."""
        wrong = (outputs.argmax(1) != targets).sum()
        entropy = F.cross_entropy(outputs, targets.long(), reduction="sum")
        return torch.stack([torch.tensor(float(len(targets))).to(outputs.device), wrong, entropy]).double()

    def metrics(self, sums: torch.Tensor) -> dict[str, float]:
        """Share of wrong answers, and mean cross-entropy."""
        count, wrong, entropy = sums.tolist()
        return {"error": wrong / count, "cross_entropy": entropy / count}
