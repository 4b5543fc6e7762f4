"""What a group does with a candidate: evaluate it, assess it on the test file, train it once more. Outcomes are values.

Must not know orders and reports, nor how the ranks of a group reach each other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mpinas.models import build, input_frames
from mpinas.search import Genome
from mpinas.tasks import Samples, Task
from mpinas.training.checkpoint import Checkpoint, Unusable, read_archive, unpack, write_checkpoint
from mpinas.training.collectives import Collectives
from mpinas.training.export import export_onnx, onnx_difference
from mpinas.training.loop import Watch, judge, train
from mpinas.training.recipe import Epochs, Recipe, make_optimizer
from mpinas.training.shard import make_shard
from mpinas.training.weights import load_weights, save_weights

#: Largest difference of an output between ONNX Runtime and torch.
ONNX_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Files:
    """Where a candidate's trained weights go, and its checkpoint between two budgets."""

    weights: Path
    checkpoint: Path


@dataclass(frozen=True, slots=True)
class Paused:
    """A training that was left between two epochs, as its leader was told, with a checkpoint of all that is done."""

    epochs_done: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Trainer:
    """One rank's means to train: the task, its data and the device. With whom it trains is another matter each time."""

    task: Task
    #: Training and validation samples.
    samples: tuple[Samples, Samples]
    test: Samples | None
    device: torch.device
    #: Of the whole group.
    batch_size: int

    def evaluate(
        self, group: Collectives, genome: Genome, seed: int, epochs: Epochs, files: Files, watch: Watch
    ) -> tuple[dict[str, float], float] | Paused:
        """Train from scratch, or from the checkpoint on where epochs are done; (validation metrics, seconds).

        The leader writes the weights, and a checkpoint as long as the schedule is not at its end. One that is paused
        leaves the weights as they were: those that an earlier result was found with.

        Raises Diverged, Abandoned, Unusable, and whatever torch raises (see `outcome.explain`).
        """
        began = time.perf_counter()
        recipe = self._recipe(genome, epochs, seed)
        checkpoint = None
        if epochs.done:
            archive = group.broadcast_bytes(read_archive(files.checkpoint) if group.rank == 0 else b"")
            checkpoint = unpack(archive, genome, seed, epochs.done)
        model, optimizer, done, metrics = self._train(group, genome, recipe, checkpoint, watch)
        if group.rank == 0:
            if done == epochs.until:
                save_weights(model, files.weights)
            if done < epochs.full:
                state = optimizer.state_dict()["state"]
                write_checkpoint(Checkpoint(genome, seed, done, model.state_dict(), state), files.checkpoint)
            else:
                files.checkpoint.unlink(missing_ok=True)
        seconds = time.perf_counter() - began
        return (metrics, seconds) if done == epochs.until else Paused(done, seconds)

    def retrain(
        self, group: Collectives, genome: Genome, seed: int, epochs: int, watch: Watch
    ) -> tuple[dict[str, float], dict[str, float], float]:
        """Train from scratch and write nothing; (validation metrics, test metrics, seconds).

        Test metrics are empty where there are no test labels. It cannot be paused. Raises as `evaluate`.
        """
        began = time.perf_counter()
        recipe = self._recipe(genome, Epochs.whole(epochs), seed)
        model, _, _, metrics = self._train(group, genome, recipe, None, watch)
        return metrics, self._test(model, group, recipe, genome), time.perf_counter() - began

    def _train(
        self, group: Collectives, genome: Genome, recipe: Recipe, checkpoint: Checkpoint | None, watch: Watch
    ) -> tuple[nn.Module, torch.optim.Optimizer, int, dict[str, float]]:
        """(the network, its optimizer, epochs done in all, validation metrics)."""
        torch.manual_seed(recipe.seed)
        model = build(genome, self.task.input_shape, self.task.outputs).to(self.device)
        if checkpoint is not None:
            try:
                model.load_state_dict(checkpoint.model)
            except RuntimeError as error:  # the network has changed since
                raise Unusable(f"the checkpoint does not fit the network: {str(error).splitlines()[0]}") from None
        optimizer = make_optimizer(model, recipe, group, checkpoint.optimizer if checkpoint else None)
        frames = input_frames(genome, self.task.input_shape)
        views = (self.samples[0].middle(frames), self.samples[1].middle(frames))
        return model, optimizer, *train(model, optimizer, self.task, views, recipe, group, watch)

    def _test(self, model: nn.Module, group: Collectives, recipe: Recipe, genome: Genome) -> dict[str, float]:
        """Metrics on the test samples; {} where there are no labels."""
        if self.test is None or self.test.targets is None:
            return {}
        return judge(model, self.task, self.test.middle(input_frames(genome, self.task.input_shape)), group, recipe)

    def assess(
        self,
        group: Collectives,
        genome: Genome,
        weights_file: Path,
        onnx_file: Path,
        shard_file: Path,
        metadata: dict[str, str],
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
        metrics = self._test(model, group, self._recipe(genome, Epochs.whole(0), seed=0), genome)
        if group.rank != 0:
            return metrics, 0.0, 0.0
        frames = input_frames(genome, self.task.input_shape)
        labelled = self.samples[1] if self.test is None or self.test.targets is None else self.test
        export_onnx(model, (frames, *self.task.input_shape[1:]), onnx_file, {**self.task.metadata, **metadata})
        difference = onnx_difference(model, onnx_file, (self.test or labelled).middle(frames).inputs[:64])
        if not difference < ONNX_TOLERANCE:
            onnx_file.unlink()
            raise ValueError(f"the ONNX file's outputs differ from the model's by {difference:.2g}")
        return metrics, difference, make_shard(model, labelled.middle(frames), self.task.device_metric, shard_file)

    def _recipe(self, genome: Genome, epochs: Epochs, seed: int) -> Recipe:
        return Recipe(
            epochs=epochs,
            batch_size=self.batch_size,
            learning_rate=float(genome["learning_rate"]),
            weight_decay=float(genome["weight_decay"]),
            flips=bool(genome["flips"]),
            seed=seed,
            device=self.device,
        )
