"""The folder of a run: the one owner of every file name in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from mpinas.config import Experiment, read_experiment, write_experiment
from mpinas.coordination.plan import Plan
from mpinas.coordination.terms import Terms
from mpinas.errors import UserError
from mpinas.search import Genome


def terms_of(experiment: Experiment) -> Terms:
    """What the candidates of this experiment are compared by."""
    inherited = (0,) if experiment.search.strategy == "supernet" else ()
    edge, rungs = experiment.edge, (*inherited, *experiment.search.rungs, experiment.training.epochs)
    return Terms(
        dict(experiment.search.limits), edge.devices, edge.combine == "worst", rungs, edge.quality_tolerance,
        keep_all=experiment.search.space == "compressed",
    )  # fmt: skip


def plan_of(experiment: Experiment, start: Sequence[Genome] = ()) -> Plan:
    """How much to search. `start`: genomes to begin with, as `warm_start` reads them."""
    search, training, edge = experiment.search, experiment.training, experiment.edge
    return Plan(
        evaluations=search.evaluations,
        seed=search.seed,
        proposals_max=search.proposals_max or 10 * search.evaluations,
        group_size=training.group_size,
        # BatchNorm wants two samples on every rank
        group_size_max=training.group_size_max or training.batch_size // 2,
        answer_s=edge.answer_seconds,
        starved_s=edge.patience_seconds,
        start=tuple(start),
        repeats=search.repeats,
        finalists=search.finalists,
        finalist_seeds=search.finalist_seeds,
        patience=search.patience,
        target=dict(search.target),
        supernet_epochs=experiment.supernet.epochs if experiment.needs_supernet else 0,
        after_baseline=training.teacher == "baseline",
        limit_s=3600 * search.max_hours,
    )


class RunFolder:
    """Names of the files of a run, and the few acts on them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.experiment_file = path / "experiment.toml"
        self.journal_file = path / "journal.jsonl"
        #: Who is at work on this folder, as long as somebody is.
        self.lock_file = path / "running.json"
        self.models = path / "models"
        #: Untrained artifacts on their way to devices; empty between jobs.
        self.exports = path / "exports"
        self.logs = path / "logs"

    @classmethod
    def create(cls, path: Path, experiment: Experiment) -> RunFolder:
        """Make a new folder with the complete experiment file in it; it is complete or not there.

        Raises
        ------
        UserError
            It exists already, or cannot be made.
        """
        cls.check_new(path)
        beside = cls(path.with_name(f".{path.name}.part-{os.getpid()}"))
        shutil.rmtree(beside.path, ignore_errors=True)  # of a process that was killed and had the same number
        try:
            beside.path.mkdir(parents=True)
            write_experiment(experiment, beside.experiment_file)
            beside.prepare()
            beside.path.rename(path)  # not over a folder that has something in it
        except OSError as error:
            shutil.rmtree(beside.path, ignore_errors=True)
            cls.check_new(path)  # somebody else was quicker
            raise UserError(f"{path}: cannot be made: {error.strerror}") from None
        return cls(path)

    @classmethod
    def check_new(cls, path: Path) -> None:
        """Raise UserError if there is something at `path` already."""
        if cls(path).experiment_file.exists():
            raise UserError(f"{path}: exists already; add --resume to go on with it, or name another --run folder")
        if path.exists():
            raise UserError(f"{path}: exists already and is no run folder: name another, which the job will make")

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """The folder of an earlier run.

        Raises
        ------
        UserError
            There is none, or it is not a run folder.
        """
        folder = cls(path)
        if not path.is_dir():
            raise UserError(f"{path}: {'not a run folder, but a file' if path.exists() else 'no such run folder'}")
        if not folder.experiment_file.is_file():
            raise UserError(f"{path}: not a run folder: it has no {folder.experiment_file.name}")
        return folder

    def prepare(self) -> None:
        """Make the folders that a job writes to; drop what an earlier job left half done."""
        self.clear_exports()
        for folder in (self.models, self.exports, self.logs):
            folder.mkdir(exist_ok=True)

    def clear_exports(self) -> None:
        """Remove the untrained artifacts: no job is under way."""
        shutil.rmtree(self.exports, ignore_errors=True)

    def experiment(self) -> Experiment:
        """The experiment of this run, complete."""
        return read_experiment(self.experiment_file)

    def export_file(self, candidate: int) -> Path:
        """The untrained artifact of a candidate."""
        return self.exports / f"{candidate:05d}.onnx"

    def discard_export(self, candidate: int) -> None:
        """Remove the untrained artifact of a candidate, complete or not."""
        with suppress(FileNotFoundError):
            for file in self.exports.iterdir():  # few; a pattern of each candidate's own would be kept by `fnmatch`
                if file.name.startswith(f"{candidate:05d}."):
                    file.unlink(missing_ok=True)

    def weights_file(self, candidate: int) -> Path:
        """Trained weights (a torch state dict)."""
        return self.models / f"{candidate:05d}" / "weights.pt"

    def checkpoint_file(self, candidate: int) -> Path:
        """What its training can go on from, between two budgets."""
        return self.models / f"{candidate:05d}" / "checkpoint.pt"

    def onnx_file(self, candidate: int) -> Path:
        """The trained candidate, deployable."""
        return self.models / f"{candidate:05d}" / "model.onnx"

    def shard_file(self, candidate: int) -> Path:
        """Labelled samples that go to devices with the trained candidate; what they are stands beside, as JSON."""
        return self.models / f"{candidate:05d}" / "shard.bin"

    @property
    def supernet_file(self) -> Path:
        """Weights that all subnets share, once they are trained."""
        return self.models / "supernet" / "weights.pt"

    @property
    def supernet_checkpoint_file(self) -> Path:
        """What their training can go on from."""
        return self.models / "supernet" / "checkpoint.pt"

    @property
    def calibration_file(self) -> Path:
        """Training samples by which integer networks find their ranges (a NumPy file)."""
        return self.path / "calibration.npy"

    def check_journal(self, *, begun: bool) -> None:
        """Raise UserError where trained models are there of which the journal knows nothing: it is not `begun`."""
        if not begun and any(path.name.isdigit() for path in self.models.glob("*")):
            raise UserError(
                f"{self.journal_file}: is not there or empty, but {self.models.name}/ holds what candidates have come "
                "to; restore it from a copy, or begin a new run in another folder"
            )

    def keep_only(self, models: Collection[int], checkpoints: Collection[int]) -> None:
        """Remove trained models and checkpoints but those of these candidates: a job that was killed may leave some."""
        for path in self.models.iterdir():
            if not path.name.isdigit():
                continue
            candidate = int(path.name)
            if candidate not in models and candidate not in checkpoints:
                shutil.rmtree(path, ignore_errors=True)
            elif candidate not in checkpoints:
                self.checkpoint_file(candidate).unlink(missing_ok=True)

    def discard(self, candidate: int) -> None:
        """Remove the trained model and the checkpoint of a candidate, if there are any."""
        shutil.rmtree(self.models / f"{candidate:05d}", ignore_errors=True)
