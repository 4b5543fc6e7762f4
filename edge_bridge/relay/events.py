"""What the relay is told, and what it decides to do: events in, commands out.

Must not know how either is decided or carried out.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_bridge.wire.protocol import Header, Message


@dataclass(frozen=True, slots=True)
class JobSaid:
    """A checked message of a job; `name` is for the log."""

    peer: bytes
    name: str
    message: Message


@dataclass(frozen=True, slots=True)
class DeviceSaid:
    """A checked message of a device."""

    peer: bytes
    name: str
    message: Message


@dataclass(frozen=True, slots=True)
class JobGone:
    """A job can no longer be reached."""

    peer: bytes
    why: str


@dataclass(frozen=True, slots=True)
class DeviceGone:
    """A device can no longer be reached."""

    peer: bytes
    why: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = JobSaid | DeviceSaid | JobGone | DeviceGone | Tick


@dataclass(frozen=True, slots=True)
class ToJob:
    """Send to a job."""

    peer: bytes
    header: Header
    payload: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class ToDevice:
    """Send to a device."""

    peer: bytes
    header: Header
    payload: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log."""

    text: str


Command = ToJob | ToDevice | Note
