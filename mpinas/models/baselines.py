"""The networks that people designed for laser speed and power: what every search has to beat."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from mpinas.models import swin3d
from mpinas.search import Genome


class LpbfCnn(nn.Module):
    """One 5x5x5 convolution with 64 channels, max-pool 3, fully connected 256, 128, 2.

    Source: the 3D CNN published with the RAISE-LPBF-Laser benchmark.
    """

    def __init__(self, input_shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        pooled = [(size - 4) // 3 for size in input_shape]
        if min(pooled) < 1:
            raise ValueError("its 5x5x5 convolution and pooling need at least (7, 7, 7)")
        self.features = nn.Sequential(nn.Conv3d(1, 64, 5), nn.ReLU(), nn.MaxPool3d(3))
        self.head = nn.Sequential(
            nn.Linear(64 * pooled[0] * pooled[1] * pooled[2], 256),
            nn.ReLU(),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Linear(128, outputs),
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, frames, height, width) uint8 -> (batch, outputs)."""
        x = frames.float().unsqueeze(1) / 255  # (b, t, h, w) -> (b, 1, t, h, w)
        out: torch.Tensor = self.head(self.features(x).flatten(1))
        return out


class LpbfSwin(swin3d.Network):
    """The video Swin transformer published with RAISE-LPBF-Laser, for all frames of the window."""

    #: With ten times that it learned nothing in ten epochs.
    training_genes: ClassVar[Genome] = {"learning_rate": 1e-4}

    def __init__(self, input_shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__(replace(swin3d.BASELINE, frames=input_shape[0]), outputs)
