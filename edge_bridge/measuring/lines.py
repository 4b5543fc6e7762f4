"""What the agent and its measuring child say to each other: JSON, one message a line or a datagram.

An order goes down a socket together with the open files that it names; lines come back over a pipe. Must not
know processes or sockets.
"""

from __future__ import annotations

import msgspec

from edge_bridge.wire.protocol import Phase, Reason
from edge_bridge.wire.quantities import Measurement, Profile, Quality, QualitySettings, Settings

#: The most that a line of the child may have; a child that says more is not to be believed.
LINE_LIMIT_BYTES = 1 << 20


class MeasureOrder(msgspec.Struct, frozen=True, kw_only=True, tag="measure"):
    """Measure the model in the file that comes with this."""

    settings: Settings
    profile: Profile
    #: Most address space of the process that runs the model; 0 for no limit.
    memory_limit_bytes: int


class JudgeOrder(msgspec.Struct, frozen=True, kw_only=True, tag="judge"):
    """Judge the model in the first file that comes with this on the shard in the second."""

    settings: QualitySettings
    profile: Profile
    memory_limit_bytes: int


class TakenLine(msgspec.Struct, frozen=True, tag="taken"):
    """A process has taken the order. Between the measurer and its child alone."""

    pid: int


class PhaseLine(msgspec.Struct, frozen=True, tag="phase"):
    """The work has entered a phase, or has been in it for so long."""

    phase: Phase
    elapsed_s: float = 0.0
    #: What is measured now, and the how-manieth time.
    batch: int | None = None
    attempt: int = 1


class MeasuredLine(msgspec.Struct, frozen=True, tag="measured"):
    """The measurement is done."""

    measurement: Measurement


class JudgedLine(msgspec.Struct, frozen=True, tag="judged"):
    """The model has been judged."""

    quality: Quality


class FailureLine(msgspec.Struct, frozen=True, tag="failure"):
    """The work has failed."""

    reason: Reason
    detail: str


class EndedLine(msgspec.Struct, frozen=True, tag="ended"):
    """The process that ran the model is gone, with this exit code (a signal is negative). Between the two alone."""

    code: int


Order = MeasureOrder | JudgeOrder
#: What `Measurer.advance` tells.
Line = PhaseLine | MeasuredLine | JudgedLine | FailureLine
ChildLine = Line | TakenLine | EndedLine
_LINES: msgspec.json.Decoder[ChildLine] = msgspec.json.Decoder(ChildLine)
_ORDERS: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)


def encode_line(line: ChildLine) -> bytes:
    """One line, with its end."""
    return msgspec.json.encode(line) + b"\n"


def decode_line(data: bytes) -> ChildLine:
    """Line of the child; msgspec.MsgspecError for what is none."""
    return _LINES.decode(data)


def encode_order(order: Order) -> bytes:
    """An order as one datagram."""
    return msgspec.json.encode(order)


def decode_order(data: bytes) -> Order:
    """Order of the measurer."""
    return _ORDERS.decode(data)
