"""What a trainer rank has to train with: the task, its data, a device, and what the experiment says of training."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mpinas.config import Experiment
from mpinas.coordination.coordinator import Coordinator
from mpinas.coordination.ledger import BASELINE, Ledger
from mpinas.coordination.plan import Plan
from mpinas.errors import UserError
from mpinas.files import write_whole
from mpinas.history.run_folder import RunFolder, terms_of
from mpinas.models import Networks, baseline_genome, make_space, make_supernet
from mpinas.plugins import in_one_line
from mpinas.search import Genome, SearchSpace, make_search
from mpinas.tasks import Samples, Task
from mpinas.tasks.kinds import Classification, Regression
from mpinas.training.artifact import calibration_of
from mpinas.training.candidate import Trainer
from mpinas.training.deployed import Deployed
from mpinas.training.devices import local_device
from mpinas.training.heritage import Heritage


@dataclass(frozen=True, slots=True)
class Means:
    """Of one trainer rank."""

    task: Task
    space: SearchSpace
    samples: tuple[Samples, Samples]
    test: Samples | None
    device: torch.device


def gather_means(
    task: Task, space: SearchSpace, experiment: Experiment, position: tuple[int, int], largest_group: int
) -> Means:
    """Read the data and take a device. `position`: this trainer's place on its node, and how many share its cores.

    Raises
    ------
    UserError
        The data are not fit, or too few for a group of `largest_group`.
    """
    if experiment.training.teacher.endswith(".onnx"):
        _check_teacher(Path(experiment.training.teacher), task)
    device = local_device(experiment.training.device, experiment.training.threads, *position)
    samples, test = _read(task, experiment)
    if len(samples[0]) < 2 * largest_group:  # of one sample BatchNorm takes no statistics
        raise UserError(f"task.train: {len(samples[0])} training samples are too few for groups of "
                        f"{largest_group}, two for each rank; set training.group_size_max")  # fmt: skip
    return Means(task, space, samples, test, device)


def _read(task: Task, experiment: Experiment) -> tuple[tuple[Samples, Samples], Samples | None]:
    """Training and validation samples, and those of the test. Raises UserError where the task's own code fails."""
    settings = experiment.task
    where = f"task.name = {settings.name!r}"
    try:
        training, validation = task.load()
        test = task.load_test()
    except (UserError, MemoryError):
        raise
    except Exception as error:
        files = ", ".join((*settings.train, *settings.test))
        raise UserError(
            f"{where}: its data cannot be loaded{files and f' ({files})'}: {in_one_line(error)}; look whether they are "
            "whole, and at the task's own code"
        ) from error
    for name, part in (("training", training), ("validation", validation), ("test", test)):
        if part is not None and (why := _unfit(part, task, labelled=name != "test")):
            raise UserError(f"{where}: {name} samples: {why}")
    return (training, validation), test


def _unfit(samples: Samples, task: Task, *, labelled: bool) -> str:  # noqa: PLR0911 - one return a fault
    """What is wrong with samples that a task's own code has read; "" where nothing is. `labelled`: they must be."""
    inputs, targets = samples.inputs, samples.targets
    if not len(inputs):
        return "there are none"
    if inputs.dtype != np.uint8 or inputs.shape[1:] != tuple(task.input_shape):
        asked = ", ".join(map(str, task.input_shape))
        return (
            f"inputs are {inputs.dtype} {inputs.shape} and must be uint8 (n, {asked}), as the task's input_shape says"
        )
    if targets is None:
        return "there are no targets" if labelled else ""
    if len(targets) != len(inputs):
        return f"{len(targets)} targets for {len(inputs)} inputs"
    if np.issubdtype(targets.dtype, np.inexact) and not np.isfinite(targets).all():
        return "some targets are no finite numbers"
    if isinstance(task, Classification):
        if targets.shape != (len(inputs),) or not np.issubdtype(targets.dtype, np.integer):
            return f"targets are {targets.dtype} {targets.shape} and must be class numbers, integers ({len(inputs)},)"
        if not 0 <= targets.min() <= targets.max() < task.outputs:  # on a GPU a wrong one would break more than itself
            return f"class numbers are {targets.min()} to {targets.max()} and must be 0 to {task.outputs - 1}"
    expected = (len(inputs), task.outputs)
    if isinstance(task, Regression) and targets.shape != expected:  # torch would compare each with each, and warn
        return f"targets are {targets.shape} and must be {expected}"
    return ""


def _check_teacher(file: Path, task: Task) -> None:
    """Raise UserError where it is no model of this task."""
    try:
        teacher = Deployed(file)
    except UserError as error:
        raise UserError(f"training.teacher = {error}") from None
    frames, *picture = teacher.input_shape
    outputs = teacher.run(np.zeros((1, *teacher.input_shape), np.uint8)).shape[1]
    if frames > task.input_shape[0] or tuple(picture) != task.input_shape[1:] or outputs != task.outputs:
        raise UserError(
            f"training.teacher = {file}: takes {teacher.input_shape} and gives {outputs} outputs, but samples are "
            f"{task.input_shape} and there are {task.outputs} outputs: name a model of this task"
        )


def networks_of(task: Task, experiment: Experiment) -> Networks:
    """What the genomes of this experiment describe."""
    baseline = str(baseline_of(task, experiment)["baseline"])
    return Networks(experiment.search.space, task.input_shape, task.outputs, baseline)


def baseline_of(task: Task, experiment: Experiment) -> Genome:
    """Genome of the human-designed network of this experiment."""
    return baseline_genome(task.baseline, experiment.search.space, experiment.task.baseline)


def space_of(task: Task, experiment: Experiment) -> SearchSpace:
    """What this experiment searches. Raises UserError."""
    search = experiment.search
    return make_space(search.space, task.input_shape, search.genes, experiment.added_genes())


def coordinator_of(task: Task, experiment: Experiment, plan: Plan, space: SearchSpace) -> Coordinator:
    """A coordinator that has heard of nothing yet."""
    search, terms = experiment.search, terms_of(experiment)
    proposer = make_search(search.algorithm, space, len(terms.objectives), search.seed, search.population)
    return Coordinator(plan, proposer, Ledger(terms), baseline_of(task, experiment))


def trainer_of(means: Means, experiment: Experiment, folder: RunFolder) -> Trainer:
    """One rank's trainer."""
    task, search, networks = means.task, experiment.search, networks_of(means.task, experiment)
    heritage = Heritage(
        networks,
        means.device,
        folder.supernet_file,
        folder.weights_file(BASELINE),
        baseline_of(task, experiment),
        inherits=search.strategy != "scratch",
        teacher_name=experiment.training.teacher,
        make_supernet=(lambda: make_supernet(networks, means.space)) if experiment.needs_supernet else None,
    )
    training = experiment.training
    return Trainer(
        task, heritage, means.samples, means.test, means.device, training.batch_size, experiment.supernet,
        training.checkpoint_seconds,
    )  # fmt: skip


def save_calibration(means: Means, experiment: Experiment, folder: RunFolder) -> None:
    """Leave a few training samples in the run folder, for exporters that write integer networks."""
    if set(experiment.search.precision) != {"fp32"} and not folder.calibration_file.exists():
        content = io.BytesIO()
        np.save(content, calibration_of(means.samples[0]), allow_pickle=False)
        write_whole(folder.calibration_file, content.getbuffer())
