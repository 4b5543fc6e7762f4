"""One candidate as the ledger knows it: plain records, changed by the ledger only.

Must not know events or what follows from anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mpinas.coordination.lifecycle import State
from mpinas.coordination.terms import LATENCIES, MEASUREMENTS_MAX
from mpinas.search import Genome


@dataclass(frozen=True, slots=True)
class Reading:
    """What a candidate's latency on one device is taken to be: the last measurement that settled something, or a
    prediction as long as there is none.

    Attributes
    ----------
    measurement
        As the device sent it; predicted, it has "p50_s" and its standard deviation "p50_std_s", in seconds.
    doubts
        Why it should not be relied on, in words; empty where it may be.
    repetition
        Of the last try: 0 for the first measurement, 1 for the first that was made again because of doubts …;
        -1 for a prediction.
    request_id
        By which the bridge knows it.
    factor
        What its latencies are multiplied by: 1, unless the search asks for normalised ones.
    times
        How often the device has measured it.
    given_up
        No device was there to measure it (again); a later job may ask.
    refused
        Predicted, and then the device could not run it: in words.
    """

    measurement: Mapping[str, Any]
    doubts: tuple[str, ...] = ()
    repetition: int = 0
    request_id: str = ""
    factor: float = 1.0
    times: int = 1
    given_up: bool = False
    refused: str = ""

    @property
    def predicted(self) -> bool:
        """Whether no device has measured it yet."""
        return self.repetition < 0

    @property
    def latency_s(self) -> float:
        """Median latency, in seconds."""
        return float(self.measurement["p50_s"]) * self.factor

    @property
    def settled(self) -> bool:
        """Whether it is not going to be made again: it is good, or has been tried often enough."""
        if self.predicted:
            return self.given_up or bool(self.refused)
        return not self.doubts or self.given_up or self.repetition + 1 >= MEASUREMENTS_MAX

    def quantities(self) -> dict[str, float]:
        """What limits may be set on, by name."""
        known = {name: value for name, value in self.measurement.items() if isinstance(value, (int, float))}
        known |= {name: known[name] * self.factor for name in LATENCIES if name in known}
        return known | {"latency_s": self.latency_s}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a device found of a trained model on the labelled samples sent with it.

    Attributes
    ----------
    accepted
        The device's error is what was expected; None where no device ever ran it.
    expected
        The trained network's own error on the same samples.
    error
        The device's; None where it gave none, and then `reason` and `detail` say why.
    device
        Name of the device that answered.
    """

    accepted: bool | None
    expected: float
    error: float | None = None
    precision: str = ""
    reason: str = ""
    detail: str = ""
    device: str = ""


@dataclass(frozen=True, slots=True)
class Retraining:
    """A finalist trained once more, from another seed; `test_metrics` is empty where the test file has no labels."""

    metrics: Mapping[str, float]
    test_metrics: Mapping[str, float]
    train_seconds: float


@dataclass(slots=True)
class Candidate:
    """One network and all that is known of it."""

    id: int
    genome: Genome
    #: States so far, oldest first; never empty.
    history: list[State] = field(default_factory=lambda: [State.PROPOSED])
    #: How many orders were given for it.
    attempts: int = 0
    #: The last epoch that any training of it has come to.
    furthest: int = 0
    #: Orders that came to nothing, by their work and the reason; jobs that died count until it comes further than ever.
    failures: dict[tuple[str, str], int] = field(default_factory=dict)
    #: The budget that it is or was last trained up to, and the epochs that its checkpoint has.
    rung: int = 0
    epochs_done: int = 0
    size_bytes: int | None = None
    parameters: int | None = None
    #: By device.
    readings: dict[str, Reading] = field(default_factory=dict)
    #: After the largest budget so far, and the error after each.
    metrics: dict[str, float] = field(default_factory=dict)
    rung_errors: dict[int, float] = field(default_factory=dict)
    #: Errors of the trainings that were repeated from other seeds.
    repeats: list[float] = field(default_factory=list)
    retrainings: list[Retraining] = field(default_factory=list)
    #: Orders to train it once more that came to nothing, as a repeat or as a finalist: too many, and there are no more.
    retrainings_failed: int = 0
    #: Over all its orders.
    train_seconds: float | None = None
    group: int | None = None
    #: Why it was rejected or failed.
    reason: str | None = None
    assessed: bool = False
    #: Empty where the test file has no labels or the assessment failed (then `reason` says why).
    test_metrics: dict[str, float] = field(default_factory=dict)
    onnx_difference: float | None = None
    #: The trained network's error on the samples that go to the devices with it; None where there are none.
    expected: float | None = None
    #: Of its ONNX file; empty where there is none, or a version wrote it that kept no digest.
    onnx_sha256: str = ""
    #: By device.
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    epoch: int = 0

    @property
    def state(self) -> State:
        """Where it stands now."""
        return self.history[-1]

    @property
    def error(self) -> float:
        """Validation error: of the mean training where there are several."""
        return (self.metrics["error"] + sum(self.repeats)) / (1 + len(self.repeats))

    @property
    def begun(self) -> bool:
        """Whether it has been trained for some epochs."""
        return bool(self.rung_errors) or self.epochs_done > 0

    @property
    def predicted(self) -> bool:
        """Whether some of its latencies are no measurements."""
        return any(reading.predicted for reading in self.readings.values())

    def is_measured_on(self, devices: Iterable[str]) -> bool:
        """Has each of them measured it?"""
        return all(device in self.readings and not self.readings[device].predicted for device in devices)

    @property
    def latencies_s(self) -> dict[str, float]:
        """Median latency by device, in seconds."""
        return {device: reading.latency_s for device, reading in self.readings.items()}

    @property
    def latency_s(self) -> float | None:
        """Median latency on the slowest of its devices, in seconds; None before it was measured."""
        return max(self.latencies_s.values(), default=None)

    @property
    def doubts(self) -> dict[str, tuple[str, ...]]:
        """Why its measurements should not be relied on, by device; empty where all may be."""
        return {
            device: (*reading.doubts, *(("no device was there to measure it again",) if reading.given_up else ()))
            for device, reading in self.readings.items()
            if reading.doubts
        }
