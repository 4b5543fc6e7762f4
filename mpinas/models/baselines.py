"""The networks that people designed for our tasks: what every search has to beat."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from mpinas.models import swin3d
from mpinas.search import Genome

#: What the baselines are trained with; the schedule and the budget are those of every candidate.
TRAINING_GENES: Genome = {"learning_rate": 1e-3, "weight_decay": 0.0, "flips": False}


class LpbfCnn(nn.Module):
    """One 5x5x5 convolution with 64 channels, max-pool 3, fully connected 256, 128, 2.

    Source: the 3D CNN published with the RAISE-LPBF-Laser benchmark.
    """

    def __init__(self, input_shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        pooled = [(size - 4) // 3 for size in input_shape]
        if min(pooled) < 1:
            raise ValueError(f"input {input_shape} is too small: the baseline lpbf-cnn needs at least (7, 7, 7)")
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


class DigitsCnn(nn.Module):
    """Three 3x3 convolutions of 32, 64 and 128 channels, 2x2 max-pool after the second, fully connected 128."""

    def __init__(self, input_shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        frames, height, width = input_shape
        self.features = nn.Sequential(
            nn.Conv2d(frames, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Sequential(
            nn.Linear(128 * (height // 2) * (width // 2), 128), nn.ReLU(), nn.Linear(128, outputs)
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, frames, height, width) uint8 -> (batch, outputs)."""
        out: torch.Tensor = self.head(self.features(frames.float() / 255).flatten(1))
        return out


def build(name: str, input_shape: tuple[int, int, int], outputs: int) -> nn.Module:
    """The baseline of that name: "lpbf-cnn", "lpbf-swin" or "digits-cnn"."""
    return {"lpbf-cnn": LpbfCnn, "lpbf-swin": lpbf_swin, "digits-cnn": DigitsCnn}[name](input_shape, outputs)


def lpbf_swin(input_shape: tuple[int, int, int], outputs: int) -> nn.Module:
    """The video Swin transformer published with RAISE-LPBF-Laser, for all frames of the window."""
    return swin3d.Network(replace(swin3d.BASELINE, frames=input_shape[0]), outputs)
