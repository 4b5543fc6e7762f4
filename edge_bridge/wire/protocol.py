"""The wire format MPINAS-EDGE/1 (docs/bridge-protocol.md): messages, and one encode/decode pair for all of
them.

Bytes in, checked values out; whatever a stranger sends raises `ProtocolError` and nothing else. Must not know
sockets, clocks or who sends when. Never pickle: headers are JSON, bulk data are frames of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec

from edge_bridge.errors import ProtocolError
from edge_bridge.wire.quantities import (
    ANY_PROFILE,
    Count,
    Digest,
    Measurement,
    Name,
    Profile,
    Quality,
    QualitySettings,
    Settings,
    Text,
    Words,
    encode_settings,
    request_id,
)

T = TypeVar("T")

VERSION = b"MPINAS-EDGE/1"
#: What has been added since MPINAS-EDGE/1 was first spoken; 0 for a peer that does not say.
MINOR = 1
HEADER_LIMIT_BYTES = 1 << 20
#: Of a MEASURE; the TASK made of it may be longer, for it names what was left out.
MEASURE_LIMIT_BYTES = 1 << 16
#: Of a REGISTER: the profiles of all devices of a relay must fit into one header.
REGISTER_LIMIT_BYTES = 1 << 11
#: A sender cuts the payload into frames of this size, small enough for one end to decrypt while the other encrypts;
#: a receiver takes frames up to FRAME_LIMIT_BYTES, and MOST_FRAMES of them.
CHUNK_BYTES = 256 << 10
FRAME_LIMIT_BYTES = (8 << 20) + 1024
MOST_FRAMES = 4096
MODEL_LIMIT_BYTES = 512 << 20
#: Request ids in one DOUBT.
MOST_DOUBTED = 1024

Minor = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
Phase = Literal["queued", "loading", "warming", "measuring", "judging", "cooling"]
#: Phases that a peer of minor version 0 knows.
OLD_PHASES: tuple[Phase, ...] = ("queued", "loading", "warming", "measuring")
#: What a request wants: the model's latency, or its error on a labelled shard.
Work = Literal["latency", "quality"]
#: Reasons of a FAILED answer. "busy" asks the client to come again later; "cancelled" is a device's answer to CANCEL,
#: and goes no further than the relay.
Reason = Literal[
    "busy", "bad-digest", "bad-model", "too-large", "out-of-memory", "run-failed", "time-out", "crashed",
    "unsupported", "device-lost", "cancelled", "internal",
]  # fmt: skip
ErrorCode = Literal["version", "malformed", "refused", "unregistered", "full"]


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all messages. Unknown fields are ignored, so that neighbouring versions talk."""


class Hello(Header, frozen=True, kw_only=True):
    """A job introduces itself; answered by Welcome."""

    client: Text
    versions: Words
    minor: Minor = 0


class Measure(Header, frozen=True, kw_only=True):
    """Measure the model in the payload, or judge it on the shard that follows it there."""

    request_id: Digest
    model_sha256: Digest
    #: Of the whole payload.
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=MODEL_LIMIT_BYTES)]
    profile: Name
    #: Kept as the bytes sent: `request_id` covers them.
    settings: msgspec.Raw
    work: Work = "latency"
    #: Of the model, the first part of the payload; None where it is all of it.
    model_bytes: Annotated[int, msgspec.Meta(ge=1, le=MODEL_LIMIT_BYTES)] | None = None
    #: Higher goes first. Not part of the request's identity.
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5
    #: The device must speak this minor version at least, or it would misunderstand the request.
    needs: Minor = 0

    def decoded_settings(self) -> Settings:
        """Return the settings of a "latency" request checked."""
        return decode_part(self.settings, Settings)

    def decoded_quality_settings(self) -> QualitySettings:
        """Return the settings of a "quality" request checked."""
        return decode_part(self.settings, QualitySettings)


class Cancel(Header, frozen=True, kw_only=True):
    """The job no longer wants this request. From the relay to a device: nobody does, stop."""

    request_id: Digest


class Welcome(Header, frozen=True, kw_only=True):
    """Answer to Hello: the devices now present and the relay's state."""

    devices: Annotated[list[Profile], msgspec.Meta(max_length=1024)]
    jobs: Count
    queued: Count
    running: Count
    uptime_s: Annotated[float, msgspec.Meta(ge=0)]
    versions: Words
    minor: Minor = 0


class Devices(Header, frozen=True, kw_only=True):
    """The list of devices has changed; this is the new one."""

    devices: Annotated[list[Profile], msgspec.Meta(max_length=1024)]


class Status(Header, frozen=True, kw_only=True):
    """A job asks how the relay is; answered by State."""


class DeviceState(msgspec.Struct, frozen=True, kw_only=True):
    """One device as the relay sees it; times in seconds before now."""

    profile: Profile
    minor: Minor
    #: "idle", or the phase of what it is at.
    doing: Name
    request_id: Digest | None
    doing_for_s: Annotated[float, msgspec.Meta(ge=0)]
    heard_ago_s: Annotated[float, msgspec.Meta(ge=0)]
    measured: Count
    failed: Count
    last_error: Text


class JobState(msgspec.Struct, frozen=True, kw_only=True):
    """One job as the relay sees it."""

    name: Text
    queued: Count
    running: Count
    answered: Count


class State(Header, frozen=True, kw_only=True):
    """Answer to Status."""

    devices: Annotated[list[DeviceState], msgspec.Meta(max_length=1024)]
    jobs: Annotated[list[JobState], msgspec.Meta(max_length=1024)]
    queued: Count
    running: Count
    bytes_held: Count
    #: Answers in the last minute.
    answered_per_minute: Count
    uptime_s: Annotated[float, msgspec.Meta(ge=0)]
    #: The last failure of any request, device or peer; "" if there was none.
    last_error: Text
    last_error_ago_s: Annotated[float, msgspec.Meta(ge=0)] | None


class Ack(Header, frozen=True, kw_only=True):
    """The relay holds the request."""

    request_id: Digest


class Progress(Header, frozen=True, kw_only=True):
    """Where a request is. Sent when the phase changes, and every few seconds of a long one."""

    request_id: Digest
    phase: Phase
    device: Text = ""
    #: Since the phase began.
    elapsed_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Result(Header, frozen=True, kw_only=True):
    """A measurement, or a quality; passed on by the relay as the bytes that the device sent."""

    request_id: Digest
    measurement: msgspec.Raw

    def decoded_measurement(self) -> Measurement:
        """Return the answer to a "latency" request checked."""
        return decode_part(self.measurement, Measurement)

    def decoded_quality(self) -> Quality:
        """Return the answer to a "quality" request checked."""
        return decode_part(self.measurement, Quality)


class Doubt(Header, frozen=True, kw_only=True):
    """The device has found itself out of its usual band: what it measured since it was last in band is doubtful.

    Passed on by the relay to every job; each knows which of the requests were its own.
    """

    request_ids: Annotated[list[Digest], msgspec.Meta(max_length=4096)]
    detail: Text


class Failed(Header, frozen=True, kw_only=True):
    """The request has ended without a measurement."""

    request_id: Digest
    reason: Reason
    detail: Text


class Error(Header, frozen=True, kw_only=True):
    """The receiver of this sent something that is not taken, and why."""

    code: ErrorCode
    detail: Text


class Register(Header, frozen=True, kw_only=True):
    """A device offers itself; `busy_with` names the request it is measuring right now, if any."""

    profile: Profile
    #: Unlike for each run of the agent: a reconnected device takes its own place.
    instance: Name
    busy_with: Digest | None = None
    #: Of the store with the device's results, kept over restarts: what the device was at is kept for it a while.
    device_id: Name | None = None
    minor: Minor = 0


class Registered(Header, frozen=True, kw_only=True):
    """The relay has taken the device."""

    versions: Words
    minor: Minor = 0


class Task(Measure, frozen=True, kw_only=True):
    """Measure as the relay passes it to a device."""


class Ping(Header, frozen=True, kw_only=True):
    """Is the peer there? A device answers Pong; a job need not answer."""


class Pong(Header, frozen=True, kw_only=True):
    """Answer to Ping."""


class Message(NamedTuple):
    """One message: checked header and raw payload frames."""

    header: Header
    payload: tuple[bytes, ...] = ()

    def joined(self) -> bytes:
        """Payload as one string of bytes."""
        return self.payload[0] if len(self.payload) == 1 else b"".join(self.payload)


_CLASSES: tuple[type[Header], ...] = (
    Hello, Measure, Cancel, Welcome, Devices, Status, State, Ack, Progress, Result, Doubt, Failed, Error,
    Register, Registered, Task, Ping, Pong,
)  # fmt: skip
_HEADER_LIMITS: dict[type[Header], int] = {Measure: MEASURE_LIMIT_BYTES, Register: REGISTER_LIMIT_BYTES}
_TAG: dict[type[Header], bytes] = {each: each.__name__.upper().encode() for each in _CLASSES}


def _direction(*classes: type[Header]) -> Mapping[bytes, type[Header]]:
    return {_TAG[each]: each for each in classes}


#: What each side may send; anything else is a ProtocolError at the receiver.
JOB_TO_RELAY = _direction(Hello, Measure, Cancel, Status)
RELAY_TO_JOB = _direction(Welcome, Devices, State, Ack, Progress, Result, Doubt, Failed, Error, Ping)
DEVICE_TO_RELAY = _direction(Register, Progress, Result, Doubt, Failed, Pong)
RELAY_TO_DEVICE = _direction(Registered, Task, Cancel, Ping, Error)


def encode(header: Header, payload: Sequence[bytes] = ()) -> list[bytes]:
    """Frames of a message, without the identity frame."""
    return [VERSION, _TAG[type(header)], msgspec.json.encode(header), *payload]


def decode(frames: Sequence[bytes], direction: Mapping[bytes, type[Header]]) -> Message:
    """Check frames (without the identity frame) and return the message in them.

    Raises
    ------
    ProtocolError
        For every sequence of bytes that is not a message of this direction.
    """
    if len(frames) < 3:
        raise ProtocolError(f"{len(frames)} frames where version, type and header are wanted")
    version, tag, header_bytes, *payload = frames
    if version != VERSION:
        raise ProtocolError(f"peer speaks {_shown(version)}, this is {VERSION.decode()}: update the older side")
    wanted = direction.get(tag)
    if wanted is None:
        raise ProtocolError(f"type {_shown(tag)} is not one that this peer may send")
    limit_bytes = _HEADER_LIMITS.get(wanted, HEADER_LIMIT_BYTES)
    if len(header_bytes) > limit_bytes:
        raise ProtocolError(f"header of {len(header_bytes)} bytes, at most {limit_bytes} are taken")
    header = decode_part(header_bytes, wanted)
    if len(payload) > MOST_FRAMES or not all(payload):
        raise ProtocolError(f"payload of {len(payload)} frames: at most {MOST_FRAMES}, none of them empty")
    size_bytes = sum(map(len, payload))
    expected_bytes = header.size_bytes if isinstance(header, Measure) else 0
    if size_bytes != expected_bytes:
        raise ProtocolError(f"payload of {size_bytes} bytes, the header says {expected_bytes}")
    return Message(header, tuple(payload))


def decode_part(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Check JSON bytes against a type; raise ProtocolError for all that does not fit."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ProtocolError(f"{kind.__name__.upper()}: {error}"[:300]) from None


def cut(model: bytes) -> tuple[bytes, ...]:
    """Model bytes as payload frames."""
    return tuple(model[start : start + CHUNK_BYTES] for start in range(0, len(model), CHUNK_BYTES))


def measure_of(model: bytes, settings: Settings, profile: str = ANY_PROFILE, priority: int = 5) -> Measure:
    """Header that asks for a measurement of these model bytes."""
    raw = encode_settings(settings)
    sha256 = hashlib.sha256(model).hexdigest()
    return Measure(
        request_id=request_id(sha256, profile, raw),
        model_sha256=sha256,
        size_bytes=len(model),
        profile=profile,
        settings=msgspec.Raw(raw),
        priority=priority,
        # An older device would measure one batch size only, and in the model's own precision.
        needs=0 if settings.batches == (1,) and settings.precision == "model" else 1,
    )


def judge_of(
    model: bytes, shard: bytes, settings: QualitySettings, profile: str = ANY_PROFILE, priority: int = 5
) -> Measure:
    """Header that asks for the error of a trained model on a shard: the bytes that `settings.shard` describes."""
    raw = encode_settings(settings)
    sha256 = hashlib.sha256(model).hexdigest()
    return Measure(
        request_id=request_id(sha256, profile, raw),
        model_sha256=sha256,
        size_bytes=len(model) + len(shard),
        profile=profile,
        settings=msgspec.Raw(raw),
        work="quality",
        model_bytes=len(model),
        priority=priority,
        needs=1,
    )


def broken_identity(measure: Measure, payload: Sequence[bytes]) -> str | None:
    """Say what in a request does not belong together: its id, its settings, the digests, the bytes. None if all does.

    Equal ids share one measurement, so a peer that could name the id of another's request could spoil it.
    """
    if measure.request_id != request_id(measure.model_sha256, measure.profile, bytes(measure.settings)):
        return "the request_id is not that of its model, profile and settings"
    model_bytes = measure.size_bytes if measure.model_bytes is None else measure.model_bytes
    model, shard = hashlib.sha256(), hashlib.sha256()
    left = model_bytes
    for part in payload:
        model.update(part[:left] if left < len(part) else part)
        if left < len(part):
            shard.update(part[left:])
        left = max(0, left - len(part))
    if model.hexdigest() != measure.model_sha256:
        return "the model's bytes do not match their SHA-256"
    if measure.work == "latency":
        return None if model_bytes == measure.size_bytes else "there are bytes behind the model"
    try:
        wanted = measure.decoded_quality_settings().shard
    except ProtocolError as error:
        return str(error)
    if sum(wanted.sizes_bytes()) != measure.size_bytes - model_bytes:
        return "the shard's shapes do not match its size"
    return None if shard.hexdigest() == wanted.sha256 else "the shard's bytes do not match their SHA-256"


def doubts_of(request_ids: Sequence[str], detail: str) -> list[Doubt]:
    """The messages that call these doubtful, in as few as there may be."""
    return [
        Doubt(request_ids=list(request_ids[start : start + MOST_DOUBTED]), detail=detail)
        for start in range(0, len(request_ids), MOST_DOUBTED)
    ]


def task_of(measure: Measure) -> Task:
    """Return the same request as it goes to a device."""
    return Task(**{name: getattr(measure, name) for name in measure.__struct_fields__})


def _shown(data: bytes) -> str:
    return repr(data[:40])[1:]
