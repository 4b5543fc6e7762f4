"""What the coordinator and the trainers say to each other: orders one way, reports the other.

The kind of a message is its class, its identity its fields: frozen, slotted, plain values. No tensors.
A report that changes what is known of a candidate is also an event of the journal, as it stands.
A group is made for one order and is gone with its answer; it goes by the world rank of its leader, who alone reports.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpinas.search import Genome

#: Stands where messages name a candidate, for what all subnets share: the supernet.
SUPERNET = -1

# --- orders: coordinator -> every member of a group


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Train this candidate on the training lines and judge it on the validation lines.

    Attributes
    ----------
    attempt
        Number of the order among those given for this candidate, from 1 on: what tells stale reports.
    members
        World ranks that carry it out together, the leader first.
    rung
        Place of `epochs` among the budgets of the run, from 0 on.
    epochs_done
        Epochs in the candidate's checkpoint, to go on from; 0: from scratch.
    epochs
        Train until so many are done.
    epochs_full
        Length of the learning rate's schedule: the largest budget of the run.
    """

    candidate: int
    attempt: int
    genome: Genome
    seed: int
    members: tuple[int, ...]
    rung: int
    epochs_done: int
    epochs: int
    epochs_full: int


@dataclass(frozen=True, slots=True)
class Assess:
    """Judge a trained candidate on the test file and write its ONNX file."""

    candidate: int
    attempt: int
    genome: Genome
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Retrain:
    """Train a finalist once more, from another seed (what it inherits is the same), and judge it on the test file.

    Nothing of it is kept but its metrics.
    """

    candidate: int
    attempt: int
    genome: Genome
    seed: int
    members: tuple[int, ...]
    epochs: int


@dataclass(frozen=True, slots=True)
class TrainSupernet:
    """Train the weights that all subnets of the space share, from its checkpoint on where there is one.

    `epochs`: until so many are done, those of the checkpoint among them.
    """

    attempt: int
    seed: int
    members: tuple[int, ...]
    epochs: int
    candidate: int = SUPERNET


@dataclass(frozen=True, slots=True)
class Pause:
    """To a group's leader: leave this evaluation at the end of its epoch, with a checkpoint; a larger group goes on.

    It may come when the order it names has been answered, and then means nothing.
    """

    candidate: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave whatever is under way and end. Every trainer gets it by itself."""


Order = Evaluate | Assess | Retrain | TrainSupernet | Pause | Stop

# --- reports: leader -> coordinator. `group` is the leader's world rank.


@dataclass(frozen=True, slots=True)
class Ready:
    """This trainer is there and idle. The first report of every trainer rank."""

    rank: int
    host: str
    device: str


@dataclass(frozen=True, slots=True)
class Progress:
    """One epoch is done, `epoch` in all."""

    group: int
    candidate: int
    attempt: int
    epoch: int
    epochs: int
    error: float


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Trained and validated. `metrics` has at least "error"; weights and checkpoint are in the run folder.

    `train_seconds`: since the result or the pause before, with those of jobs that died meanwhile.
    """

    group: int
    candidate: int
    attempt: int
    metrics: dict[str, float]
    train_seconds: float


@dataclass(frozen=True, slots=True)
class Paused:
    """As asked by Pause: the checkpoint has `epochs_done` epochs.

    `train_seconds`: since the result or the pause before; of the supernet, in all.
    """

    group: int
    candidate: int
    attempt: int
    epochs_done: int
    train_seconds: float


@dataclass(frozen=True, slots=True)
class EvaluationFailed:
    """This attempt came to nothing; the group is free. `reason` is one of a few words.

    Reason "checkpoint": what it was to go on from is not there any more; it can be trained from scratch. "error":
    something that nobody expected; it is tried once more. "device": a GPU failed, which is not its fault.
    """

    group: int
    candidate: int
    attempt: int
    reason: str
    detail: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Assessed:
    """`metrics` is empty where the test file has no labels. `onnx_difference`: largest |ONNX Runtime - torch|.

    `expected`: the trained network's error on the samples written beside its ONNX file, for devices to repeat.
    `onnx_sha256`: of the ONNX file; empty in journals of earlier versions.
    """

    group: int
    candidate: int
    attempt: int
    metrics: dict[str, float]
    onnx_difference: float
    expected: float | None = None
    onnx_sha256: str = ""


@dataclass(frozen=True, slots=True)
class AssessmentFailed:
    """The candidate keeps its validation error; it has no test error or no ONNX file."""

    group: int
    candidate: int
    attempt: int
    reason: str
    detail: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Retrained:
    """A finalist, trained once more. `test_metrics` is empty where there is no labelled test file."""

    group: int
    candidate: int
    attempt: int
    metrics: dict[str, float]
    test_metrics: dict[str, float]
    train_seconds: float


@dataclass(frozen=True, slots=True)
class RetrainingFailed:
    """This one of a finalist's trainings gave nothing."""

    group: int
    candidate: int
    attempt: int
    reason: str
    detail: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class SupernetTrained:
    """The shared weights are in the run folder. `metrics`: of the best of the largest subnets, on validation lines."""

    group: int
    candidate: int
    attempt: int
    metrics: dict[str, float]
    train_seconds: float


@dataclass(frozen=True, slots=True)
class SupernetFailed:
    """There are no shared weights, and no search by them."""

    group: int
    candidate: int
    attempt: int
    reason: str
    detail: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """This trainer's GPU does not work any more: it is given no orders, and waits for the end."""

    rank: int
    detail: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """This trainer has ended, as ordered. The last report of every trainer rank."""

    rank: int


#: Answers to an order, after which its group's ranks are free.
Answer = (
    Evaluated
    | Paused
    | EvaluationFailed
    | Assessed
    | AssessmentFailed
    | Retrained
    | RetrainingFailed
    | SupernetTrained
    | SupernetFailed
)
Report = Ready | Progress | Answer | Withdrawn | Stopped
