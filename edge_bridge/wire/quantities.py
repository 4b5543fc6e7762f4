"""What is asked of a device and what it answers: settings, measurement, profile, and the identity of a
request.

Plain values only, checked when decoded. Must not know frames, sockets, clocks or runtimes.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Literal

import msgspec

Percentile = Literal["p90", "p95", "p99"]
#: Samples so that the percentile is known at 99 % confidence (MLPerf's rule).
SAMPLES_FOR: dict[Percentile, int] = {"p90": 64, "p95": 130, "p99": 662}

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=120)]
Text = Annotated[str, msgspec.Meta(max_length=2000)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Words = Annotated[dict[Name, Text], msgspec.Meta(max_length=64)]

Batch = Annotated[int, msgspec.Meta(ge=1, le=65_536)]
Shape = Annotated[tuple[Annotated[int, msgspec.Meta(ge=1, le=1 << 24)], ...], msgspec.Meta(min_length=1, max_length=8)]
Precision = Literal["model", "fp16"]

ANY_PROFILE = "any"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is to be measured.

    Attributes
    ----------
    percentile
        The statistic that the asker relies on; sets the least number of samples (`enough_samples`).
    samples
        Least number of timed runs; 0 takes the number that `percentile` needs.
    min_seconds, max_seconds
        Timed runs go on for at least, and stop after, this long.
    warmup_min_runs, warmup_max_seconds
        Untimed runs before: at least so many, until steady, at most so long.
    threads
        Threads inside one operator.
    precision
        "model": as the file says; "fp16": the runtime may compute in half precision (TensorRT).
    batches
        Sizes of a dynamic first dimension, each measured by itself, in this order.
    attempts, pause_seconds
        An unsteady measurement is taken again after a pause that doubles, at most so often in all.
    repetition
        0, or a number that makes a deliberate repeat a request of its own.
    """

    percentile: Percentile = "p90"
    samples: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0
    min_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.2
    max_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0
    warmup_min_runs: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 10
    warmup_max_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 3.0
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    precision: Precision = "model"
    batches: Annotated[tuple[Batch, ...], msgspec.Meta(min_length=1, max_length=16)] = (1,)
    attempts: Annotated[int, msgspec.Meta(ge=1, le=10)] = 3
    pause_seconds: Annotated[float, msgspec.Meta(ge=0, le=600)] = 1.0
    repetition: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0

    def enough_samples(self) -> int:
        """Number of timed runs that the percentile, and the asker, need."""
        return max(self.samples, SAMPLES_FOR[self.percentile])


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """A few labelled samples that travel behind a model: inputs, then targets, both C-contiguous, little-endian.

    Attributes
    ----------
    sha256
        Of the two arrays' bytes, one after the other.
    input_shape, target_shape
        Samples first; targets are float32, or the class (n,) for the metric "misclassified".
    """

    sha256: Digest
    input_shape: Shape
    input_type: Literal["uint8", "float32", "float16"]
    target_shape: Shape

    def sizes_bytes(self) -> tuple[int, int]:
        """Bytes of the inputs and of the targets."""
        width = {"uint8": 1, "float16": 2, "float32": 4}[self.input_type]
        return math.prod(self.input_shape) * width, math.prod(self.target_shape) * 4


class QualitySettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a trained model's outputs are to be judged, on the device and in the precision it will run in.

    `metric` is "rmse" (root of the mean square over samples, for each output and over all of them), "mae", or
    "misclassified" (share of samples whose largest output is not the class).
    """

    shard: Shard
    metric: Literal["rmse", "mae", "misclassified"] = "rmse"
    batch: Batch = 1
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    precision: Precision = "model"
    max_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """A model's error on a labelled shard, computed by the device that will run it."""

    error: Annotated[float, msgspec.Meta(ge=0)]
    metric: Name
    #: The same, output by output; one entry for "misclassified".
    per_output: Annotated[list[float], msgspec.Meta(max_length=4096)]
    samples: Count
    precision: Name
    load_s: Seconds
    device: Name
    runtime: Name
    provider: Name
    versions: Words


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What a device says of itself when it registers."""

    name: Name
    hardware: Text
    runtime: Name
    provider: Name
    versions: Words
    #: Cores that a model may use.
    threads: Count = 0
    #: As the machine names it, for instance "MAXN" (nvpmodel) or the CPU governor; "" where it does not tell.
    power_mode: Text = ""
    #: Precisions that a request may ask for.
    precisions: Annotated[tuple[Name, ...], msgspec.Meta(max_length=16)] = ("model",)

    def digest(self) -> str:
        """Hash over everything that changes a latency; results are kept under it."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine says of its own state at one moment; empty or None where it does not tell.

    Attributes
    ----------
    power_w
        Power drawn now.
    energy_j
        A counter of energy since some moment; only differences mean something.
    throttle_events
        A counter of times the machine slowed itself down; likewise.
    """

    sensor: Name = "none"
    temperatures_c: Annotated[dict[Name, float], msgspec.Meta(max_length=64)] = {}
    clocks_hz: Annotated[dict[Name, float], msgspec.Meta(max_length=1024)] = {}
    power_w: float | None = None
    energy_j: float | None = None
    throttle_events: int | None = None


#: No model is faster. What is multiplied and divided by readings stays a number, whatever a device says.
SHORTEST_S = 1e-9


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """The last reading of the shipped reference model before a measurement.

    `expected_s` is what this device gave at first; `in_band` says whether the reading is close enough to it.
    """

    p50_s: Annotated[float, msgspec.Meta(ge=SHORTEST_S, le=3600)]
    expected_s: Annotated[float, msgspec.Meta(ge=SHORTEST_S, le=3600)]
    age_s: Seconds
    in_band: bool


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """The latency of one model at one batch size; all times from a monotonic clock, for a whole batch.

    Attributes
    ----------
    p50_s, p90_s, p95_s, p99_s
        Nearest-rank percentiles: the smallest sample that at least this share of the samples does not exceed.
    samples
        Those that the statistics are of: of very many fast runs, every second, fourth, … is kept.
    interval_s
        99 % confidence interval of the percentile asked for; None where there are too few samples for one. It is that
        of independent samples: too narrow where they are correlated.
    coefficient_of_variation
        Standard deviation over mean of the samples.
    complete
        The samples asked for were taken before `max_seconds` was over.
    unsteady
        The medians of the first and the second half of the samples disagree, at every attempt.
    attempts
        How often it was measured; these are the samples of the last.
    warmup_settled
        The warm-up ended because runs had become steady, not because its time was over.
    """

    p50_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)]
    p90_s: Seconds
    p95_s: Seconds
    p99_s: Seconds
    mean_s: Seconds
    min_s: Seconds
    samples: Count
    coefficient_of_variation: Annotated[float, msgspec.Meta(ge=0)]
    complete: bool
    unsteady: bool
    warmup_runs: Count
    warmup_settled: bool
    batch: Count
    input_shape: Annotated[list[Count], msgspec.Meta(max_length=32)]
    percentile: Percentile = "p90"
    interval_s: tuple[Seconds, Seconds] | None = None
    attempts: Count = 1


class Measurement(Timing, frozen=True, kw_only=True):
    """A model measured on one device: its timing at the first batch size asked for, and what belongs to all.

    Attributes
    ----------
    other_batches
        Timings at the further batch sizes asked for.
    load_s
        Building the engine or the session, and the first run at each batch size, for much is built only then.
    input_type
        Of the model's first input, as measured; its shape is `input_shape`.
    peak_memory_bytes
        Resident memory that loading and running added at its peak.
    before, after
        Readings of the machine's sensors around the timed runs.
    power_w
        Mean power during the timed runs by a counter of energy: that of the CPU and its memory, and only where the
        model runs there. Without a counter, mean power of the board's rails in untimed runs right behind. Else None.
    joules_per_inference
        Power times mean latency, over the batch size: an inference is one sample of a batch. (A model whose batch is
        fixed, measured with a batch size of 1, is one inference.)
    throttled
        The machine slowed itself down meanwhile; None where it does not tell.
    reference
        How far this device was from its usual self; None where nobody asked.
    """

    load_s: Seconds
    input_type: Name
    threads: Count
    peak_memory_bytes: Count
    device: Name
    hardware: Text
    runtime: Name
    provider: Name
    versions: Words
    precision: Name = "model"
    other_batches: Annotated[list[Timing], msgspec.Meta(max_length=16)] = []
    before: Readings | None = None
    after: Readings | None = None
    power_w: float | None = None
    joules_per_inference: float | None = None
    throttled: bool | None = None
    reference: Reference | None = None

    def doubts(self) -> list[str]:
        """Return why this measurement should not be relied on, in words; empty where it may be."""
        found = []
        timings = [self, *self.other_batches]
        if any(each.unsteady for each in timings):
            found.append("unsteady")
        if not all(each.complete for each in timings):
            found.append("fewer samples than asked")
        if self.throttled:
            found.append("throttled")
        if self.reference is not None and not self.reference.in_band:
            found.append("reference model out of its band")
        return found

    def normalised(self, latency_s: float) -> float:
        """Return a latency as it would be were the device its usual self, judged by the reference model."""
        if self.reference is None:
            return latency_s
        return latency_s * self.reference.expected_s / self.reference.p50_s


def encode_settings(settings: Settings | QualitySettings) -> bytes:
    """Settings as the exact bytes that travel and that `request_id` covers."""
    return msgspec.json.encode(settings, order="sorted")


def request_id(model_sha256: str, profile: str, settings: bytes) -> str:
    """Identity of a request: equal requests share it, so that repeating one is harmless.

    Parameters
    ----------
    model_sha256
        Lower-case hexadecimal SHA-256 of the model's bytes.
    profile
        Name of the device profile asked for, or ``"any"``.
    settings
        The settings as bytes exactly as sent, so that a peer that does not know a new field computes the
        same.
    """
    hasher = hashlib.sha256()
    for part in (model_sha256.encode(), profile.encode(), settings):
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    return hasher.hexdigest()
