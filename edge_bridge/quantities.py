"""What is asked of a device and what it answers: settings, measurement, profile, and the identity of a
request.

Plain values only, checked when decoded. Must not know frames, sockets, clocks or runtimes.
"""

from __future__ import annotations

import hashlib
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
    batch
        Size of a dynamic first dimension.
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
    batch: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 1
    repetition: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0

    def enough_samples(self) -> int:
        """Number of timed runs that the percentile, and the asker, need."""
        return max(self.samples, SAMPLES_FOR[self.percentile])


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What a device says of itself when it registers."""

    name: Name
    hardware: Text
    runtime: Name
    provider: Name
    versions: Words

    def digest(self) -> str:
        """Hash over everything that changes a latency; results are kept under it."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """The latency of one model on one device; all times from a monotonic clock.

    Attributes
    ----------
    p50_s, p90_s, p95_s, p99_s
        Nearest-rank percentiles: the smallest sample that at least this share of the samples does not exceed.
    coefficient_of_variation
        Standard deviation over mean of the samples.
    complete
        The samples asked for were taken before `max_seconds` was over.
    unsteady
        The medians of the first and the second half of the samples disagree; do not rely on it.
    warmup_settled
        The warm-up ended because runs had become steady, not because its time was over.
    load_s
        Building the engine or the session.
    input_shape, input_type
        Of the model's first input, as measured.
    peak_memory_bytes
        Resident memory that loading and running added at its peak.
    """

    p50_s: Seconds
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
    load_s: Seconds
    batch: Count
    input_shape: Annotated[list[Count], msgspec.Meta(max_length=32)]
    input_type: Name
    threads: Count
    peak_memory_bytes: Count
    device: Name
    hardware: Text
    runtime: Name
    provider: Name
    versions: Words


def encode_settings(settings: Settings) -> bytes:
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
