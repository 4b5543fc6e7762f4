"""What the coordinator and the group leaders say to each other: orders one way, reports the other.

The kind of a message is its class, its identity its fields: frozen, slotted, plain values. No tensors.
A report that changes what is known of a candidate is also an event of the journal, as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpinas.search import Genome

# --- orders: coordinator -> leader


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Train this candidate on the training lines and judge it on the validation lines."""

    candidate: int
    attempt: int
    genome: Genome
    epochs: int
    seed: int


@dataclass(frozen=True, slots=True)
class Assess:
    """Judge a trained candidate on the test file and write its ONNX file."""

    candidate: int
    attempt: int
    genome: Genome


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave whatever is under way and end."""


Order = Evaluate | Assess | Stop

# --- reports: leader -> coordinator


@dataclass(frozen=True, slots=True)
class Ready:
    """This group is there and idle. `members` are world ranks, the leader first."""

    group: int
    members: tuple[int, ...]
    host: str
    device: str


@dataclass(frozen=True, slots=True)
class Progress:
    """One epoch is done."""

    group: int
    candidate: int
    attempt: int
    epoch: int
    epochs: int
    error: float


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Trained and validated. `metrics` has at least "error"; the weights are in the run folder."""

    group: int
    candidate: int
    attempt: int
    metrics: dict[str, float]
    train_seconds: float


@dataclass(frozen=True, slots=True)
class EvaluationFailed:
    """This candidate has no error and never will; the group goes on. `reason` is one of a few words."""

    group: int
    candidate: int
    attempt: int
    reason: str
    detail: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Assessed:
    """`metrics` is empty where the test file has no labels. `onnx_difference`: largest |ONNX Runtime - torch|.

    `expected`: the trained network's error on the samples written beside its ONNX file, for devices to repeat; None
    where an earlier version wrote none.
    """

    group: int
    candidate: int
    attempt: int
    metrics: dict[str, float]
    onnx_difference: float
    expected: float | None = None


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
class Stopped:
    """This group has ended, as ordered."""

    group: int


Report = Ready | Progress | Evaluated | EvaluationFailed | Assessed | AssessmentFailed | Stopped
