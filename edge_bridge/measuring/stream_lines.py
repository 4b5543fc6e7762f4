"""What the stream test and its process say to each other: JSON, one message a line, over pipes.

Must not know processes, files or runtimes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edge_bridge.wire.quantities import Precision, Words

StreamPhase = Literal["starting", "loading", "reading", "warming", "replaying"]

#: Most windows of one test; what is kept of each takes about 200 bytes.
MOST_WINDOWS = 2_000_000
#: No run of the warm-up begins later.
WARMUP_MOST_S = 10.0

Hertz = Annotated[float, msgspec.Meta(gt=0, le=1e8)]


class StreamOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Replay this recording through this model.

    Attributes
    ----------
    layer
        Path of one layer in the recording; "" for all.
    rate_hz
        Frames a second of the camera.
    camera_s
        Most camera time that is replayed.
    frames
        Most frames that the camera sends; 0 for no limit but `camera_s`.
    repeat
        Begin the recording again until one of these is reached.
    stride
        Frames from one window to the next; 0 for as many as a window has.
    deadline_s
        From a window's last frame to its result; None for the time of `stride` frames.
    queue, batch
        Windows that may wait; windows that one run may take.
    allowed_misses
        Share of windows that may be late or dropped in a test that is passed.
    preload_bytes, memory_limit_bytes
        Most bytes of frames in memory; address space of the process, 0 for no limit.
    hardware
        This machine, in words; goes into the report as it is.
    """

    model_path: str
    recording_path: str
    layer: str = ""
    rate_hz: Hertz
    camera_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0
    frames: Annotated[int, msgspec.Meta(ge=0, le=2**40)] = 0
    repeat: bool = False
    stride: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] | None = None
    queue: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 64
    batch: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    allowed_misses: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    runtime: str = "onnxruntime"
    provider: str = "cpu"
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    precision: Precision = "model"
    preload_bytes: Annotated[int, msgspec.Meta(ge=1, le=2**44)] = 1 << 30
    memory_limit_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**60)] = 0
    hardware: str = ""


class StreamReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a model did on a replayed recording; see `edge_bridge.measuring.replay.Outcome` and `StreamOrder`.

    Attributes
    ----------
    keeps_up
        No more windows than allowed were late or dropped.
    highest_rate_hz
        Estimate: the rate at which a window comes every `service_p99_s`.
    simulated
        The recording says that it was computed.
    preload_cut
        There were more frames than fit into `preload_bytes`.
    layers, recording_frames
        What was read; the camera sent `frames`, in `camera_s`.
    warmup_cut
        Not every batch size was run before the replay: there was no time. The first runs of the others may be slow.
    cropped
        Frames are larger or smaller than the model's, and each window was cut out around its brightest pixel.
    """

    keeps_up: bool
    rate_hz: float
    windows: int
    kept: int
    late: int
    dropped: int
    share_kept: float
    allowed_misses: float
    deadline_s: float
    response_p50_s: float
    response_p99_s: float
    response_max_s: float
    queue_max: int
    queue_mean: float
    queue: int
    busy_share: float
    service_p50_s: float
    service_p99_s: float
    model_p50_s: float
    cut_p50_s: float
    wake_p99_s: float
    highest_rate_hz: float
    batch: int
    mean_batch: float
    window_shape: list[int]
    stride: int
    frame_shape: list[int]
    cropped: bool
    simulated: bool
    repeated: bool
    preload_cut: bool
    layers: int
    recording_frames: int
    frames: int
    camera_s: float
    load_s: float
    warmup_runs: int
    warmup_cut: bool
    threads: int
    precision: str
    runtime: str
    provider: str
    hardware: str
    versions: Words


class StreamPhaseLine(msgspec.Struct, frozen=True, tag="phase"):
    """The test has entered a phase."""

    phase: StreamPhase


class StreamReportLine(msgspec.Struct, frozen=True, tag="report"):
    """The test is done."""

    report: StreamReport


class StreamFailureLine(msgspec.Struct, frozen=True, tag="failure"):
    """The test could not be made; one line for the user."""

    detail: str


StreamLine = StreamPhaseLine | StreamReportLine | StreamFailureLine
_LINES: msgspec.json.Decoder[StreamLine] = msgspec.json.Decoder(StreamLine)


def encode_stream_line(line: StreamLine | StreamOrder) -> bytes:
    """One line, with its end."""
    return msgspec.json.encode(line) + b"\n"


def decode_stream_line(data: bytes) -> StreamLine:
    """Line of the stream test's process; msgspec.MsgspecError for what is none."""
    return _LINES.decode(data)


def decode_stream_order(data: bytes) -> StreamOrder:
    """Order for the stream test's process; msgspec.MsgspecError for what is none."""
    return msgspec.json.decode(data, type=StreamOrder)
