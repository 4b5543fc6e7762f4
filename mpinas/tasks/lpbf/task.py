"""Task `lpbf`: numbers that belong to each scan line, such as laser speed and power, from its melt pool frames."""

from __future__ import annotations

from pathlib import Path

import torch

from mpinas import config
from mpinas.errors import UserError
from mpinas.tasks.kinds import Regression
from mpinas.tasks.lpbf.recording import open_recording, recording_files
from mpinas.tasks.lpbf.split import split_layers
from mpinas.tasks.lpbf.targets import column_name, formula, labels_of, normalised, to_metadata
from mpinas.tasks.lpbf.windows import View, Windows, extract
from mpinas.tasks.protocol import Samples


class LpbfTask(Regression):
    """One output a target, normalised; error = root of the mean squared error over all of them."""

    name = "lpbf"
    baseline = "lpbf-cnn"
    option_names: tuple[str, ...] = ()

    def __init__(self, settings: config.Task, seed: int) -> None:
        if not settings.train:
            raise UserError("task.train is missing: name the labelled recordings (`mpinas data simulate` makes some)")
        _refuse_to_test_on(settings.train, settings.test)
        self._settings = settings
        self._seed = seed
        self._labels = labels_of(settings)
        self._view = View(settings.crop, settings.lit)
        side, targets = settings.crop, self._labels.targets
        self.input_shape = (settings.frames, side, side)
        self.outputs = len(targets)
        self.metadata = {
            "task": "lpbf",
            "input": f"uint8 (batch, frames, {side}, {side}): camera counts around the line's brightest pixel",
            "output": formula(targets),
            "targets": to_metadata(targets),
            "window_frames": str(settings.frames),
            "crop": str(side),
            "lit": str(settings.lit),
        }

    @property
    def simulated(self) -> bool:
        """Whether any of the recordings says that it is simulated. Raises UserError."""
        for paths in (self._settings.train, self._settings.test):  # apart: they may hold parts of one object
            if paths:
                with open_recording([Path(path) for path in paths], labels=None) as recording:
                    if recording.simulated:
                        return True
        return False

    def load(self) -> tuple[Samples, Samples]:
        """Training and validation windows; validation is whole layers, one window in the middle of each line."""
        train = [Path(path) for path in self._settings.train]
        with open_recording(train, self._labels, need_labels=True) as recording:
            split = split_layers(recording.lines, self._settings.validation_fraction, self._seed)
            frames, per_line = self._settings.frames, self._settings.windows_per_line
            training = extract(recording, split.training, frames, per_line, self._view)
            validation = extract(recording, split.validation, frames, view=self._view)
        return self._samples(training), self._samples(validation)

    def load_test(self) -> Samples | None:
        """One window of each line of the test files; targets are None where a line has no labels."""
        if not self._settings.test:
            return None
        with open_recording([Path(path) for path in self._settings.test], self._labels) as recording:
            return self._samples(extract(recording, recording.lines, self._settings.frames, view=self._view))

    def _samples(self, windows: Windows) -> Samples:
        targets = None if windows.labels is None else normalised(windows.labels, self._labels.targets)
        return Samples(windows.frames, targets)

    def metrics(self, sums: torch.Tensor) -> dict[str, float]:
        """Error over all normalised targets, and the root mean square error of each in its unit."""
        count, *squares = sums.tolist()
        return super().metrics(sums) | {
            f"rmse_{column_name(target)}": target.scale * (square / count) ** 0.5
            for target, square in zip(self._labels.targets, squares, strict=True)
        }


def _refuse_to_test_on(train: tuple[str, ...], test: tuple[str, ...]) -> None:
    """Raise UserError where a file is to be trained on and tested on: the test error would be worth nothing."""
    if not test:
        return
    known = {file.resolve() for file in recording_files(train)}
    for file in recording_files(test):
        if file.resolve() in known:
            raise UserError(f"{file}: in task.train and in task.test; a network is not tested on what it has seen")
