"""Task `digits`: scikit-learn's 1,797 real handwritten digits of 8 x 8 pixels as one-frame input."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mpinas import config
from mpinas.errors import UserError
from mpinas.tasks import Samples
from mpinas.tasks.kinds import Classification


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


class DigitsTask(Classification):
    """Ten classes; error = 1 - accuracy. A fixed stratified third is the test set, whatever the seed."""

    name = "digits"
    input_shape = (1, 8, 8)
    outputs = 10
    baseline = "digits-cnn"
    simulated = False
    option_names: tuple[str, ...] = ()

    def __init__(self, settings: config.Task, seed: int) -> None:
        if settings.train or settings.test:
            raise UserError("task.train and task.test: the task digits ships its data; remove these keys")
        self._seed = seed
        self._validation_fraction = settings.validation_fraction
        self.metadata = {
            "task": "digits",
            "input": "uint8 (batch, 1, 8, 8), grey values 0 to 255",
            "output": "ten class scores",
        }

    def load(self) -> tuple[Samples, Samples]:
        """Training and validation samples; the validation share is drawn class by class, by seed."""
        from sklearn.model_selection import train_test_split

        inputs, targets = self._rest()
        try:
            train, validation = train_test_split(
                np.arange(len(targets)),
                test_size=self._validation_fraction,
                stratify=targets,
                random_state=self._seed,
            )
        except ValueError:  # fewer samples on one side than classes
            raise UserError(
                f"task.validation_fraction = {self._validation_fraction}: leaves training or validation without some "
                "digit; use a value between 0.02 and 0.98"
            ) from None
        return Samples(inputs[train], targets[train]), Samples(inputs[validation], targets[validation])

    def load_test(self) -> Samples:
        """The fixed third."""
        inputs, targets = _digits()
        test = _fixed_split(targets)[1]
        return Samples(inputs[test], targets[test])

    def _rest(self) -> tuple[np.ndarray, np.ndarray]:
        inputs, targets = _digits()
        rest = _fixed_split(targets)[0]
        return inputs[rest], targets[rest]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 1, 8, 8) uint8 scaled from 0..16 to 0..255, and (1797,) int64."""
    from sklearn.datasets import load_digits

    data = load_digits()
    inputs = np.round(data.images * (255 / 16)).astype(np.uint8)[:, None]  # (n, 8, 8) -> (n, 1, 8, 8)
    return inputs, data.target.astype(np.int64)


def _fixed_split(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(np.arange(len(targets)), test_size=1 / 3, stratify=targets, random_state=0)
    return rest, test
