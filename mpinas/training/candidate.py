"""What a group does with a candidate: evaluate it, or assess it on the test file. Outcomes are values."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mpinas.models import build, input_frames
from mpinas.search import Genome
from mpinas.tasks import Samples, Task
from mpinas.training.collectives import Collectives
from mpinas.training.export import export_onnx, onnx_difference
from mpinas.training.loop import Abandoned, Diverged, Recipe, judge, train
from mpinas.training.shard import make_shard


class Dropped(Exception):  # noqa: N818 - an outcome, not an error of the program
    """The trained model is not there any more."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a candidate has no result. `reason`: diverged, memory, abandoned, dropped or error."""

    reason: str
    detail: str
    traceback: str = ""


#: Largest difference of an output between ONNX Runtime and torch.
ONNX_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Trainer:
    """One rank's means to train: the task, its data, the ranks it trains with and the device it trains on."""

    task: Task
    #: Training and validation samples.
    samples: tuple[Samples, Samples]
    test: Samples | None
    group: Collectives
    device: torch.device
    #: Of the whole group.
    batch_size: int

    def evaluate(
        self,
        genome: Genome,
        epochs: int,
        seed: int,
        weights_file: Path,
        on_epoch: Callable[[int, float], None],
        should_stop: Callable[[], bool],
    ) -> tuple[dict[str, float], float]:
        """Train from scratch and keep the weights (the leader writes them); (validation metrics, seconds).

        Raises Diverged, Abandoned, and whatever torch raises (see `explain`).
        """
        began = time.perf_counter()
        recipe = self._recipe(genome, epochs, seed)
        torch.manual_seed(seed)
        model = build(genome, self.task.input_shape, self.task.outputs).to(self.device)
        frames = input_frames(genome, self.task.input_shape)
        views = (self.samples[0].middle(frames), self.samples[1].middle(frames))
        metrics = train(model, self.task, views, recipe, self.group, on_epoch=on_epoch, should_stop=should_stop)
        if self.group.rank == 0:
            save_weights(model, weights_file)
        return metrics, time.perf_counter() - began

    def assess(
        self, genome: Genome, weights_file: Path, onnx_file: Path, shard_file: Path, metadata: dict[str, str]
    ) -> tuple[dict[str, float], float, float]:
        """Judge a trained candidate on the test samples; write its ONNX file and a few labelled samples for devices.

        Returns
        -------
        (test metrics, ONNX difference, error on the samples written)
            Metrics are empty where there are no test labels. The difference between ONNX Runtime and torch is taken by
            the leader, on up to 64 samples; so is the error, on test samples, or validation samples where the test
            samples have no labels. Other ranks give zeros.
        """
        model = load_weights(build(genome, self.task.input_shape, self.task.outputs), weights_file).to(self.device)
        frames = input_frames(genome, self.task.input_shape)
        labelled = self.samples[1] if self.test is None or self.test.targets is None else self.test
        metrics = {}
        if labelled is self.test:
            recipe = self._recipe(genome, epochs=0, seed=0)
            metrics = judge(model, self.task, labelled.middle(frames), self.group, recipe)
        if self.group.rank != 0:
            return metrics, 0.0, 0.0
        export_onnx(model, (frames, *self.task.input_shape[1:]), onnx_file, {**self.task.metadata, **metadata})
        difference = onnx_difference(model, onnx_file, (self.test or labelled).middle(frames).inputs[:64])
        if not difference < ONNX_TOLERANCE:
            onnx_file.unlink()
            raise ValueError(f"the ONNX file's outputs differ from the model's by {difference:.2g}")
        return metrics, difference, make_shard(model, labelled.middle(frames), self.task.device_metric, shard_file)

    def _recipe(self, genome: Genome, epochs: int, seed: int) -> Recipe:
        return Recipe(
            epochs=epochs,
            batch_size=self.batch_size,
            learning_rate=float(genome["learning_rate"]),
            weight_decay=float(genome["weight_decay"]),
            flips=bool(genome["flips"]),
            seed=seed,
            device=self.device,
        )


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict; the file is complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, beside)
    beside.replace(path)


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Read what `save_weights` wrote; runs no code from the file.

    Raises
    ------
    Dropped
        It is not there any more.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        why = "its trained model was removed when it left the front; a later measurement brought it back"
        raise Dropped(why) from None
    model.load_state_dict(state)
    return model


def explain(error: Exception) -> Failure:
    """The outcome that an exception stands for."""
    match error:
        case Diverged():
            return Failure("diverged", str(error))
        case Abandoned():
            return Failure("abandoned", str(error))
        case Dropped():
            return Failure("dropped", str(error))
        case _ if _is_out_of_memory(error):
            return Failure("memory", str(error).strip().splitlines()[0] if str(error) else "out of memory")
        case _:
            lines = str(error).strip().splitlines() or ["no message"]
            return Failure("error", f"{type(error).__name__}: {lines[0]}", traceback.format_exc())


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # the CPU allocator raises a plain RuntimeError
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))
