"""What the agent and its measuring child say to each other: JSON, one message a line, over pipes.

Must not know processes or sockets.
"""

from __future__ import annotations

import msgspec

from edge_bridge.wire.protocol import Phase, Reason
from edge_bridge.wire.quantities import Measurement, Profile, Settings


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Measure this file. The child deletes the file as soon as it is loaded."""

    model_path: str
    settings: Settings
    profile: Profile
    #: Most address space of the process that runs the model; 0 for no limit.
    memory_limit_bytes: int


class PhaseLine(msgspec.Struct, frozen=True, tag="phase"):
    """The measurement has entered a phase."""

    phase: Phase


class MeasuredLine(msgspec.Struct, frozen=True, tag="measured"):
    """The measurement is done."""

    measurement: Measurement


class FailureLine(msgspec.Struct, frozen=True, tag="failure"):
    """The measurement has failed."""

    reason: Reason
    detail: str


Line = PhaseLine | MeasuredLine | FailureLine
_DECODER: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def encode_line(line: Line | Order) -> bytes:
    """One line, with its end."""
    return msgspec.json.encode(line) + b"\n"


def decode_line(data: bytes) -> Line:
    """Line of the child; msgspec.MsgspecError for what is none."""
    return _DECODER.decode(data)
