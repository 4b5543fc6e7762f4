"""Task `lpbf`: laser speed and power of each scan line from its melt pool frames."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from mpinas import config
from mpinas.errors import UserError
from mpinas.tasks.lpbf.recording import open_recording
from mpinas.tasks.lpbf.split import split_layers
from mpinas.tasks.lpbf.windows import CROP, TARGET_SCALE, extract
from mpinas.tasks.protocol import Samples


class LpbfTask:
    """Two targets, normalised; error = root of the mean squared error over both."""

    name = "lpbf"
    outputs = 2
    device_metric: Literal["rmse", "misclassified"] = "rmse"
    baseline = "lpbf-cnn"

    def __init__(self, settings: config.Task, seed: int) -> None:
        if not settings.train:
            raise UserError("task.train is missing: name the labelled recordings (`mpinas data simulate` makes some)")
        if settings.frames < 7:
            raise UserError(f"task.frames = {settings.frames}: the baseline's 5x5x5 convolution needs 7 or more")
        self._settings = settings
        self._seed = seed
        self.input_shape = (settings.frames, CROP, CROP)
        self.metadata = {
            "task": "lpbf",
            "input": f"uint8 (batch, frames, {CROP}, {CROP}): camera counts around the line's brightest pixel",
            "output": "speed / 900 mm/s, power / 215 W",
            "window_frames": str(settings.frames),
        }

    @property
    def simulated(self) -> bool:
        """Whether any of the recordings says that it is simulated. Raises UserError."""
        for paths in (self._settings.train, self._settings.test):  # apart: they may hold parts of one object
            if paths:
                with open_recording([Path(path) for path in paths]) as recording:
                    files = range(len(recording.files))
                    if any(recording.attributes(file).get("simulated") for file in files):
                        return True
        return False

    def load(self) -> tuple[Samples, Samples]:
        """Training and validation windows; validation is whole layers, one window in the middle of each line."""
        with open_recording([Path(path) for path in self._settings.train], need_labels=True) as recording:
            split = split_layers(recording.lines, self._settings.validation_fraction, self._seed)
            frames, per_line = self._settings.frames, self._settings.windows_per_line
            training = extract(recording, split.training, frames, per_line)
            validation = extract(recording, split.validation, frames)
        return Samples(training.frames, training.targets), Samples(validation.frames, validation.targets)

    def load_test(self) -> Samples | None:
        """One window of each line of the test files; targets are None where a line has no labels."""
        if not self._settings.test:
            return None
        with open_recording([Path(path) for path in self._settings.test]) as recording:
            windows = extract(recording, recording.lines, self._settings.frames)
        return Samples(windows.frames, windows.targets)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the normalised targets."""
        return F.mse_loss(outputs, targets)

    def sums(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """[count, summed squared error of speed, of power], both normalised."""
        squares = (outputs.double() - targets.double()).square().sum(0)  # (2,)
        return torch.cat([squares.new_tensor([len(targets)]), squares])

    def metrics(self, sums: torch.Tensor) -> dict[str, float]:
        """Error over both normalised targets, and the root mean square error of each in its unit."""
        count, speed, power = sums.tolist()
        return {
            "error": ((speed + power) / (2 * count)) ** 0.5,
            "rmse_speed_mm_s": TARGET_SCALE[0] * (speed / count) ** 0.5,
            "rmse_power_w": TARGET_SCALE[1] * (power / count) ** 0.5,
        }
