"""What a group does with a candidate: evaluate it, assess it on the test file, train it once more. Outcomes are values.

Must not know orders and reports, nor how the ranks of a group reach each other.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import torch
from torch import nn

from mpinas import config
from mpinas.models import Networks
from mpinas.search import Genome
from mpinas.tasks import Samples, Task
from mpinas.training.artifact import calibration_of, precision_of, write_artifact
from mpinas.training.checkpoint import Checkpoint, Unusable, write_checkpoint
from mpinas.training.collectives import Collectives
from mpinas.training.deployed import Deployed
from mpinas.training.export import onnx_difference
from mpinas.training.heritage import Heritage
from mpinas.training.loop import Callbacks, Diverged, judge, metrics_of, take, train
from mpinas.training.outcome import Paused
from mpinas.training.pretraining import pretrain, sandwich_of
from mpinas.training.recipe import Distillation, Epochs, Recipe, Steps, make_optimizer
from mpinas.training.resumption import find_checkpoint
from mpinas.training.shard import make_shard
from mpinas.training.weights import load_weights, save_weights

#: Writes a checkpoint: (epochs done, the network, its optimizer).
Keep = Callable[[int, nn.Module, torch.optim.Optimizer], None]
#: Largest difference of an output between ONNX Runtime and torch, in full precision; of the largest output, where that
#: is more than one: 32-bit numbers have seven digits.
ONNX_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Files:
    """Where a candidate's trained weights go, and its checkpoint between two budgets."""

    weights: Path
    checkpoint: Path


@dataclass(frozen=True, slots=True)
class Trainer:
    """One rank's means to train: the task, its data and the device. With whom it trains is another matter each time."""

    task: Task
    heritage: Heritage
    #: Training and validation samples.
    samples: tuple[Samples, Samples]
    test: Samples | None
    device: torch.device
    #: Of the whole group.
    batch_size: int
    #: How the weights are trained that all subnets share, where there are any.
    supernet: config.Supernet = field(default_factory=config.Supernet)
    #: A training's checkpoint is written at the end of an epoch, when the last is so old (seconds).
    checkpoint_s: float = 30.0

    @property
    def networks(self) -> Networks:
        """What genomes describe."""
        return self.heritage.networks

    def evaluate(
        self, group: Collectives, genome: Genome, seed: int, epochs: Epochs, files: Files, callbacks: Callbacks
    ) -> tuple[dict[str, float], float] | Paused:
        """Train from what it inherits, or on from its checkpoint where there is one; (validation metrics, seconds).

        Seconds are those since `epochs.done`, with those of jobs that died meanwhile, as far as a checkpoint knows.
        Where epochs are done there has to be one; it may be of a later epoch, the last one too, left by a job that
        ended. Metrics are those of the network in the precision that it will run in. The leader writes the weights, and
        a checkpoint now and then, and at the end as long as that of the schedule is not reached; there the last one
        stays until the result is in the journal. One that is paused leaves the weights as they were: those that an
        earlier result was found with. Without any epochs it is judged by what it inherits, and nothing is written.

        Raises Diverged, Abandoned, Unusable, and whatever torch raises (see `outcome.explain`).
        """
        began = time.perf_counter()
        if epochs.until == 0:
            return self._judge_inherited(group, genome, self._recipe(genome, epochs, seed)), time.perf_counter() - began
        checkpoint = find_checkpoint(files.checkpoint, genome, seed, group, (epochs.done, epochs.until))
        if checkpoint is not None:
            if checkpoint.epochs_done > epochs.done:  # a job died before it could tell of them
                began -= checkpoint.seconds
            epochs = replace(epochs, done=checkpoint.epochs_done)

        def keep(done: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            state, seconds = optimizer.state_dict()["state"], time.perf_counter() - began
            write_checkpoint(Checkpoint(genome, seed, done, model.state_dict(), state, seconds), files.checkpoint)

        recipe = self._recipe(genome, epochs, seed)
        try:
            model, optimizer, done, metrics = self._train(group, genome, recipe, checkpoint, callbacks, keep)
        except Unusable:
            files.checkpoint.unlink(missing_ok=True)  # the next attempt is from scratch
            raise
        if group.rank == 0:
            if done == epochs.until:
                save_weights(model, files.weights)
            if done < epochs.full:
                keep(done, model, optimizer)
        seconds = time.perf_counter() - began
        return (metrics, seconds) if done == epochs.until else Paused(done, seconds)

    def retrain(
        self, group: Collectives, genome: Genome, seed: int, epochs: int, callbacks: Callbacks
    ) -> tuple[dict[str, float], dict[str, float], float]:
        """Train from what it inherits and write nothing; (validation metrics, test metrics, seconds).

        Test metrics are empty where there are no test labels. It cannot be paused. Raises as `evaluate`.
        """
        began = time.perf_counter()
        recipe = self._recipe(genome, Epochs.whole(epochs), seed)
        model, _, _, metrics = self._train(group, genome, recipe, None, callbacks)
        return metrics, self._test(model, group, recipe, genome), time.perf_counter() - began

    def _train(
        self,
        group: Collectives,
        genome: Genome,
        recipe: Recipe,
        checkpoint: Checkpoint | None,
        callbacks: Callbacks,
        keep: Keep | None = None,
    ) -> tuple[nn.Module, torch.optim.Optimizer, int, dict[str, float]]:
        """(the network, its optimizer, epochs done in all, validation metrics). The leader calls `keep` when due."""
        torch.manual_seed(recipe.seed)
        model = self.heritage.network(genome, self.task, self.samples[0], self.batch_size)
        if checkpoint is not None:
            try:
                model.load_state_dict(checkpoint.model)
            except RuntimeError as error:  # the network has changed since
                raise Unusable(f"the checkpoint does not fit the network: {str(error).splitlines()[0]}") from None
        optimizer = make_optimizer(model, recipe, group, checkpoint.optimizer if checkpoint else None)
        frames, *_ = self.networks.shape(genome)
        views = (self.samples[0].middle(frames), self.samples[1].middle(frames))
        recipe = replace(recipe, distillation=self._distillation(genome))
        kept_s = time.monotonic()

        def on_epoch(epoch: int, error: float) -> None:
            nonlocal kept_s
            due = epoch < recipe.epochs.until and time.monotonic() - kept_s >= self.checkpoint_s
            if keep is not None and group.rank == 0 and due:
                keep(epoch, model, optimizer)
                kept_s = time.monotonic()
            callbacks.on_epoch(epoch, error)

        done, metrics = train(
            model, optimizer, self.task, views, recipe, group, replace(callbacks, on_epoch=on_epoch)
        )  # fmt: skip
        if precision_of(genome) != "fp32" and done == recipe.epochs.until:
            metrics = self._judge_deployed(model, group, genome, views[1])
        return model, optimizer, done, metrics

    def _distillation(self, genome: Genome) -> Distillation | None:
        """The teacher sees its own frames of each training sample."""
        teacher = self.heritage.teacher(genome, self.task, self.samples[0], self.batch_size)
        if teacher is None:
            return None
        training = self.samples[0].middle(teacher.frames)
        return Distillation(
            float(genome["distillation"]),
            lambda indices, mirrored: teacher.answer(take(training, indices, self.device, mirrored)[0]),
        )

    def _judge_inherited(self, group: Collectives, genome: Genome, recipe: Recipe) -> dict[str, float]:
        """Validation metrics of a subnet with the weights that it has of the supernet."""
        frames, *_ = self.networks.shape(genome)
        model = self.heritage.network(genome, self.task, self.samples[0], recipe.batch_size)
        return self._judge(model, group, genome, self.samples[1].middle(frames), recipe)

    def _judge(
        self, model: nn.Module, group: Collectives, genome: Genome, samples: Samples, recipe: Recipe
    ) -> dict[str, float]:
        """Metrics in the precision that the network will run in."""
        if precision_of(genome) != "fp32":
            return self._judge_deployed(model, group, genome, samples)
        return judge(model, self.task, samples, group, recipe)

    def _judge_deployed(
        self, model: nn.Module, group: Collectives, genome: Genome, samples: Samples
    ) -> dict[str, float]:  # fmt: skip
        """Metrics of the file that the network becomes, in the precision that it will run in; by the leader."""
        found = b""
        if group.rank == 0:
            with TemporaryDirectory() as folder:
                file = Path(folder) / "model.onnx"
                self._write(model, genome, file, {})
                outputs = torch.from_numpy(Deployed(file, torch.get_num_threads()).run(samples.inputs, self.batch_size))
            metrics = metrics_of(self.task, self.task.sums(outputs, torch.from_numpy(samples.targets)))
            found = msgspec.msgpack.encode(metrics)  # which knows numbers that are not finite
        metrics = msgspec.msgpack.decode(group.broadcast_bytes(found), type=dict[str, float])
        if not all(math.isfinite(value) for value in metrics.values()):
            raise Diverged(f"the error is {metrics['error']} in {precision_of(genome)}")
        return metrics

    def _write(self, model: nn.Module, genome: Genome, path: Path, metadata: dict[str, str]) -> None:
        """Write the file that the device runs."""
        calibration = calibration_of(self.samples[0])
        write_artifact(model, self.networks.shape(genome), path, metadata, precision_of(genome), calibration)

    def _test(self, model: nn.Module, group: Collectives, recipe: Recipe, genome: Genome) -> dict[str, float]:
        """Metrics on the test samples; {} where there are no labels."""
        if self.test is None or self.test.targets is None:
            return {}
        return self._judge(model, group, genome, self.test.middle(self.networks.shape(genome)[0]), recipe)

    def assess(
        self,
        group: Collectives,
        genome: Genome,
        weights_file: Path,
        onnx_file: Path,
        shard_file: Path,
        metadata: dict[str, str],
    ) -> tuple[dict[str, float], float, float, str]:
        """Judge a trained candidate on the test samples; write its ONNX file and a few labelled samples for devices.

        Returns
        -------
        (test metrics, ONNX difference, error on the samples written, SHA-256 of the ONNX file)
            Metrics are empty where there are no test labels. The difference between ONNX Runtime and torch is taken by
            the leader, on up to 64 samples; so is the error, on test samples, or validation samples where the test
            samples have no labels. Other ranks give zeros and no digest.
        """
        model = load_weights(self.networks.build(genome), weights_file).to(self.device)
        metrics = self._test(model, group, self._recipe(genome, Epochs.whole(0), seed=0), genome)
        if group.rank != 0:
            return metrics, 0.0, 0.0, ""
        frames, *_ = self.networks.shape(genome)
        labelled = self.samples[1] if self.test is None or self.test.targets is None else self.test
        self._write(model, genome, onnx_file, {**self.task.metadata, **metadata})
        digest = hashlib.sha256(onnx_file.read_bytes()).hexdigest()
        inputs, run = (self.test or labelled).middle(frames).inputs[:64], Deployed(onnx_file).run
        difference, largest = onnx_difference(model, onnx_file, inputs), float(np.abs(run(inputs)).max())
        precision = precision_of(genome)
        limit = ONNX_TOLERANCE * max(1.0, largest) if precision == "fp32" else math.inf
        try:
            if not difference < limit:  # in every precision for what is no number, or beyond all
                raise ValueError(f"the ONNX file's outputs ({precision}) differ from the model's by {difference:.2g}")
            expected = make_shard(run, labelled.middle(frames), self.task.device_metric, shard_file)
        except ValueError:
            onnx_file.unlink()
            raise
        return metrics, difference, expected, digest

    def train_supernet(
        self, group: Collectives, seed: int, epochs: int, files: Files, callbacks: Callbacks
    ) -> tuple[dict[str, float], float] | Paused:
        """Train what all subnets share; (validation metrics of the best large subnet, seconds). See `pretraining`."""
        torch.manual_seed(seed)
        supernet = self.heritage.new_supernet().to(self.device)
        settings = sandwich_of(self.supernet, epochs, self.batch_size, seed, self.device)
        return pretrain(
            supernet, self.task, self.samples, settings, (files.weights, files.checkpoint), group, callbacks
        )  # fmt: skip

    def _recipe(self, genome: Genome, epochs: Epochs, seed: int) -> Recipe:
        genes = {**self.heritage.training_genes, **genome}
        return Recipe(
            epochs=epochs,
            batch_size=self.batch_size,
            learning_rate=float(genes["learning_rate"]),
            weight_decay=float(genes["weight_decay"]),
            flips=bool(genes["flips"]),
            seed=seed,
            device=self.device,
            integer=precision_of(genome) == "int8",
            steps=Steps(int(genes["step_size"]), float(genes["gamma"])) if "step_size" in genes else None,
        )
