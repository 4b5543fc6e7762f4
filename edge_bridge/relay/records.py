"""What the relay knows of each request, job and device; and what bounds them.

Must not decide anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_bridge.wire.protocol import DeviceState, Header, Measure
from edge_bridge.wire.quantities import Profile

#: HELLO of one job is answered at most this often, and STATUS likewise.
ASK_S = 0.02


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the relay's memory and patience."""

    requests: int = 10_000
    bytes_held: int = 2 << 30
    jobs: int = 256
    devices: int = 256
    #: A request that ended this many devices fails: it may be what ends them.
    devices_lost: int = 5
    #: A device whose agent does not answer pings for so long is given up, even if its socket lives.
    silence_s: float = 15.0
    #: What a device that went away was measuring is kept for it so long, before another one may have it.
    grace_s: float = 10.0
    #: A request that every device there is too old for is refused after so long.
    outdated_s: float = 60.0
    #: Doubts kept for jobs that are away.
    doubts: int = 4096


@dataclass(slots=True)
class Request:
    """What a job wants, until it is answered."""

    measure: Measure
    payload: tuple[bytes, ...]
    #: Jobs that wait for it, in the order they asked.
    jobs: dict[bytes, None]
    #: The device that has it; None while it is queued, or kept for a device that is away.
    device: bytes | None = None
    devices_lost: int = 0


@dataclass(slots=True)
class Job:
    """A job that is here."""

    name: str
    answered: int = 0
    minor: int = 0
    #: When it was last answered by messages of each type: answers that are long, and must not be had without end.
    told_s: dict[type[Header], float] = field(default_factory=dict)

    def may_ask(self, by: Header, now_s: float) -> bool:
        """Whether it has not just been answered."""
        told_s = self.told_s.get(type(by))
        if told_s is not None and now_s - told_s < ASK_S:
            return False
        self.told_s[type(by)] = now_s
        return True


@dataclass(slots=True)
class Device:
    """A device that is here."""

    profile: Profile
    instance: str
    device_id: str
    minor: int
    heard_s: float
    #: What it is measuring; it may be a request that this relay does not know (yet).
    task: str | None = None
    phase: str = "queued"
    since_s: float = 0.0
    measured: int = 0
    failed: int = 0
    last_error: str = ""

    def told(self, now_s: float) -> DeviceState:
        """What a job that asks is told of it."""
        return DeviceState(
            profile=self.profile,
            minor=self.minor,
            doing=self.phase if self.task is not None else "idle",
            request_id=self.task,
            doing_for_s=max(0.0, now_s - self.since_s),
            heard_ago_s=max(0.0, now_s - self.heard_s),
            measured=self.measured,
            failed=self.failed,
            last_error=self.last_error[:200],
        )


@dataclass(frozen=True, slots=True)
class Away:
    """A device that went away with a task, by its device_id in `Relay._away`."""

    request_id: str
    instance: str
    until_s: float
