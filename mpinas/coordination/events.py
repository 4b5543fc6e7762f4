"""Everything that can happen in a run, besides the leaders' reports. The journal is a list of these.

Some come from outside (a measurement arrived), some are the coordinator's own decisions (a candidate was proposed):
both are facts once written, and the state of a run is a fold over them (`ledger`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpinas.coordination.messages import (
    Assessed,
    AssessmentFailed,
    Evaluated,
    EvaluationFailed,
    Paused,
    Progress,
    Ready,
    Report,
    Retrained,
    RetrainingFailed,
    Stopped,
    SupernetFailed,
    SupernetTrained,
    Withdrawn,
)
from mpinas.search import Genome


@dataclass(frozen=True, slots=True)
class Begun:
    """A job starts on this run folder, the first or a resumed one. What an earlier job left under way is open again."""

    version: str
    #: How many trainer ranks it has.
    trainers: int
    #: What the results are of: the task, and whether its data are simulated.
    task: str
    simulated: bool
    #: When the scheduler ends the job (seconds, the journal's clock); None: nobody does, or it is not known.
    ends_at: float | None = None


@dataclass(frozen=True, slots=True)
class Proposed:
    """A new candidate. Candidate 0 is the task's human-designed baseline."""

    candidate: int
    genome: Genome


@dataclass(frozen=True, slots=True)
class Exported:
    """The untrained candidate was written as an artifact (ONNX), which took so long."""

    candidate: int
    size_bytes: int
    parameters: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ExportFailed:
    """The candidate cannot be deployed."""

    candidate: int
    detail: str


@dataclass(frozen=True, slots=True)
class Measured:
    """A device answered.

    Attributes
    ----------
    measurement
        As the device sent it: at least "p50_s"; latencies in seconds, never normalised.
    device
        The profile asked for; "" in journals from before there could be several: the one device of the run.
    repetition
        How often the candidate had been measured on this device before, for reasons of doubt.
    doubts
        Why the measurement should not be relied on, in words.
    factor
        What latencies are to be multiplied by, where the search asks for normalised ones.
    request_id
        By which the device may later call it doubtful.
    """

    candidate: int
    measurement: dict[str, Any]
    device: str = ""
    repetition: int = 0
    doubts: tuple[str, ...] = ()
    factor: float = 1.0
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class MeasurementFailed:
    """The device refused the candidate or could not run it; fields as in Measured."""

    candidate: int
    reason: str
    detail: str
    device: str = ""
    repetition: int = 0


@dataclass(frozen=True, slots=True)
class Predicted:
    """No device has answered in time: until one does, the candidate goes by these latencies, which are predicted.

    `latencies_s`: by device, median and standard deviation of what the predictor expects, in seconds.
    """

    candidate: int
    latencies_s: dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Doubted:
    """A device has found itself out of its usual band: these measurements of it are doubtful."""

    request_ids: tuple[str, ...]
    detail: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A device ran the trained model on labelled samples.

    `expected` is the trained network's error on the same; `by` the name of the device that answered, which for the
    profile "any" may be another than the one that measured.
    """

    candidate: int
    device: str
    error: float
    expected: float
    precision: str
    by: str = ""


@dataclass(frozen=True, slots=True)
class JudgingFailed:
    """A device gave no error for the trained model. Reason "no-answer": there was no device."""

    candidate: int
    device: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The candidate breaks a limit; it is not trained."""

    candidate: int
    reason: str


@dataclass(frozen=True, slots=True)
class GivenUp:
    """No such work is ordered any more for the candidate: jobs died at it, or were too short for it.

    Neither "repeat" nor "retrain", where it is one of them.
    """

    candidate: int
    work: str
    reason: str


@dataclass(frozen=True, slots=True)
class Promoted:
    """An evaluated candidate is to be trained on, up to the next budget."""

    candidate: int
    rung: int


@dataclass(frozen=True, slots=True)
class Ordered:
    """Trainers were given this candidate.

    `work`: "evaluate" (up to `rung`), "assess", "repeat" (once more, for a better known error) or "retrain" (once
    more, for the results); "supernet" is about no candidate, but what all share.

    `members`: their world ranks, the leader first.
    """

    candidate: int
    attempt: int
    members: tuple[int, ...]
    work: str
    rung: int = 0


@dataclass(frozen=True, slots=True)
class DeviceLost:
    """No device of this profile answers; measurements wait, trainers go on with what is measured."""

    detail: str
    device: str = ""


@dataclass(frozen=True, slots=True)
class DeviceBack:
    """Measurements go on."""

    detail: str
    device: str = ""


@dataclass(frozen=True, slots=True)
class Enough:
    """The search has what it wanted, or its time is over: nothing new is begun, what is under way is ended well."""

    reason: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The job is to end now: a signal, or its time is over. Trainings are put aside; a later job goes on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The search is complete; nothing is left to do on this run folder."""

    reason: str


Event = (
    Begun
    | Proposed
    | Exported
    | ExportFailed
    | Measured
    | MeasurementFailed
    | Predicted
    | Doubted
    | Judged
    | JudgingFailed
    | Rejected
    | GivenUp
    | Promoted
    | Ordered
    | DeviceLost
    | DeviceBack
    | Enough
    | StopRequested
    | Finished
    | Report
)

#: Every class that may stand in a journal, by the name it has there.
EVENT_CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        Begun,
        Proposed,
        Exported,
        ExportFailed,
        Measured,
        MeasurementFailed,
        Predicted,
        Doubted,
        Judged,
        JudgingFailed,
        Rejected,
        GivenUp,
        Promoted,
        Ordered,
        DeviceLost,
        DeviceBack,
        Enough,
        StopRequested,
        Finished,
        Ready,
        Progress,
        Evaluated,
        EvaluationFailed,
        Paused,
        Assessed,
        AssessmentFailed,
        Retrained,
        RetrainingFailed,
        SupernetTrained,
        SupernetFailed,
        Stopped,
        Withdrawn,
    )
}
