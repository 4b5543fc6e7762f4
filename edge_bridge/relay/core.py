"""The relay's decisions: events in, commands out.

Who is present, which request waits, which device gets it, what the jobs are told. Must not know zmq, clocks
(the time comes in), keys or files. It holds no truth: everything here may be lost, jobs ask again and
devices answer from their stores.
"""

from __future__ import annotations

import platform
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from edge_bridge.wire.protocol import (
    Ack,
    Cancel,
    Devices,
    Error,
    Failed,
    Header,
    Hello,
    Measure,
    Message,
    Phase,
    Pong,
    Progress,
    Register,
    Registered,
    Result,
    Welcome,
    task_of,
)
from edge_bridge.wire.quantities import ANY_PROFILE, Profile


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


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the relay's memory and patience."""

    requests: int = 10_000
    bytes_held: int = 2 << 30
    jobs: int = 256
    devices: int = 256
    #: A request that outlived this many devices fails: it may be what ends them.
    devices_lost: int = 5
    #: A device whose agent does not answer pings for so long is given up, even if its socket lives.
    silence_s: float = 15.0


@dataclass(slots=True)
class _Request:
    measure: Measure
    payload: tuple[bytes, ...]
    #: Jobs that wait for it, in the order they asked.
    jobs: dict[bytes, None]
    #: The device that has it; None while it is queued.
    device: bytes | None = None
    devices_lost: int = 0


@dataclass(slots=True)
class _Device:
    profile: Profile
    instance: str
    heard_s: float
    #: What it is measuring; it may be a request that this relay does not know (yet).
    task: str | None = None


@dataclass(slots=True)
class Relay:
    """State of the relay, changed only by `handle`.

    Parameters
    ----------
    limits
        Bounds on memory and patience.
    started_s
        Time of the first event, on the caller's monotonic clock.
    """

    limits: Limits
    started_s: float
    _jobs: dict[bytes, str] = field(default_factory=dict)
    _devices: dict[bytes, _Device] = field(default_factory=dict)
    _requests: dict[str, _Request] = field(default_factory=dict)
    #: Ids of the requests without a device, and only those; first come, first served.
    _queue: OrderedDict[str, None] = field(default_factory=OrderedDict)
    #: Sum of the model bytes of `_requests`.
    _bytes_held: int = 0

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take one event, return what is to be done, in order."""
        before = self._profiles()
        commands = list(self._react(event, now_s))
        after = self._profiles()
        if before != after:
            commands += [ToJob(job, Devices(devices=after)) for job in self._jobs]
        commands += self._dispatch()
        return commands

    def peers(self) -> tuple[list[bytes], list[bytes]]:
        """Jobs and devices to be pinged."""
        return list(self._jobs), list(self._devices)

    def _react(self, event: Event, now_s: float) -> Iterator[Command]:
        match event:
            case JobSaid(peer, name, message):
                yield from self._job_said(peer, name, message, now_s)
            case DeviceSaid(peer, name, message):
                yield from self._device_said(peer, name, message, now_s)
            case JobGone(peer, why):
                yield from self._job_gone(peer, why)
            case DeviceGone(peer, why):
                yield from self._device_gone(peer, why)
            case Tick():
                for peer, device in list(self._devices.items()):
                    silent_s = now_s - device.heard_s
                    if silent_s > self.limits.silence_s:
                        yield from self._device_gone(peer, f"silent for {silent_s:.0f} s")

    # Jobs

    def _job_said(self, peer: bytes, name: str, message: Message, now_s: float) -> Iterator[Command]:
        if peer not in self._jobs:
            if len(self._jobs) >= self.limits.jobs:
                yield ToJob(
                    peer,
                    Error(code="full", detail=f"the relay serves {len(self._jobs)} jobs, come back later"),
                )
                return
            self._jobs[peer] = name
            yield Note(f"job {name} is here")
        match message.header:
            case Hello():
                yield ToJob(peer, self._welcome(now_s))
            case Measure() as measure:
                yield from self._measure(peer, measure, message.payload)
            case Cancel(request_id=request_id):
                yield from self._leave(peer, request_id)

    def _welcome(self, now_s: float) -> Welcome:
        running = sum(device.task is not None for device in self._devices.values())
        return Welcome(
            devices=self._profiles(),
            jobs=len(self._jobs),
            queued=sum(request.device is None for request in self._requests.values()),
            running=running,
            uptime_s=max(0.0, now_s - self.started_s),
            versions={"python": platform.python_version()},
        )

    def _measure(self, peer: bytes, measure: Measure, payload: tuple[bytes, ...]) -> Iterator[Command]:
        known = self._requests.get(measure.request_id)
        if known is not None:
            known.jobs[peer] = None
        elif len(self._requests) >= self.limits.requests or (
            self._bytes_held + measure.size_bytes > self.limits.bytes_held
        ):
            detail = f"the relay holds {len(self._requests)} requests of {self._bytes_held} bytes"
            yield ToJob(peer, Failed(request_id=measure.request_id, reason="busy", detail=detail))
            return
        else:
            request = _Request(measure, payload, {peer: None})
            # A device may have said, when it came back to a restarted relay, that it is at this very request.
            request.device = next(
                (each for each, device in self._devices.items() if device.task == measure.request_id), None
            )
            self._requests[measure.request_id] = request
            self._bytes_held += measure.size_bytes
            if request.device is None:
                self._queue[measure.request_id] = None
        yield ToJob(peer, Ack(request_id=measure.request_id))

    def _leave(self, peer: bytes, request_id: str) -> Iterator[Command]:
        """Take a job off a request; what nobody waits for and no device has begun is dropped."""
        request = self._requests.get(request_id)
        if request is None or peer not in request.jobs:
            return
        del request.jobs[peer]
        if not request.jobs:
            self._forget(request_id)
            yield Note(f"request {request_id[:8]} dropped, nobody waits for it")

    def _job_gone(self, peer: bytes, why: str) -> Iterator[Command]:
        name = self._jobs.pop(peer, None)
        if name is None:
            return
        yield Note(f"job {name} is gone: {why}")
        for request_id in [each for each, request in self._requests.items() if peer in request.jobs]:
            yield from self._leave(peer, request_id)

    # Devices

    def _device_said(self, peer: bytes, name: str, message: Message, now_s: float) -> Iterator[Command]:
        header = message.header
        if isinstance(header, Register):
            yield from self._register(peer, name, header, now_s)
            return
        device = self._devices.get(peer)
        if device is None:
            yield ToDevice(peer, Error(code="unregistered", detail="this relay does not know you: register"))
            return
        device.heard_s = now_s
        match header:
            case Pong():
                pass
            case Progress(request_id=request_id, phase=phase):
                yield from self._progress(request_id, phase, device)
            case Result(request_id=request_id) | Failed(request_id=request_id):
                if device.task == request_id:
                    device.task = None
                request = self._requests.get(request_id)
                if request is not None:
                    self._forget(request_id)
                    yield from (ToJob(job, header) for job in request.jobs)
                outcome = "measured" if isinstance(header, Result) else "failed"
                yield Note(f"request {request_id[:8]} {outcome} on {device.profile.name}")

    def _register(self, peer: bytes, name: str, register: Register, now_s: float) -> Iterator[Command]:
        for other, device in list(self._devices.items()):
            if device.instance == register.instance and other != peer:
                # The same agent over a new connection. What it still measures stays with it.
                if device.task is not None and device.task != register.busy_with:
                    self._requeue(device.task)
                del self._devices[other]
        old = self._devices.get(peer)
        if old is None and len(self._devices) >= self.limits.devices:
            yield ToDevice(peer, Error(code="full", detail=f"the relay serves {len(self._devices)} devices"))
            return
        if old is not None and old.task is not None and old.task != register.busy_with:
            self._requeue(old.task)
        self._devices[peer] = _Device(register.profile, register.instance, now_s, register.busy_with)
        if register.busy_with in self._requests:
            self._requests[register.busy_with].device = peer
            self._queue.pop(register.busy_with, None)
        yield ToDevice(peer, Registered(versions={"python": platform.python_version()}))
        yield Note(f"device {register.profile.name} ({name}) is here")

    def _progress(self, request_id: str, phase: Phase, device: _Device) -> Iterator[Command]:
        request = self._requests.get(request_id)
        if request is not None:
            told = Progress(request_id=request_id, phase=phase, device=device.profile.name)
            yield from (ToJob(job, told) for job in request.jobs)

    def _device_gone(self, peer: bytes, why: str) -> Iterator[Command]:
        device = self._devices.pop(peer, None)
        if device is None:
            return
        yield Note(f"device {device.profile.name} is gone: {why}")
        request_id = device.task
        request = self._requests.get(request_id) if request_id is not None else None
        if request_id is None or request is None:
            return
        request.devices_lost += 1
        if request.devices_lost < self.limits.devices_lost:
            self._requeue(request_id)
            return
        self._forget(request_id)
        detail = f"{request.devices_lost} devices went away while they had it"
        failed = Failed(request_id=request_id, reason="device-lost", detail=detail)
        yield from (ToJob(job, failed) for job in request.jobs)

    # The queue

    def _dispatch(self) -> Iterator[Command]:
        """Give every idle device the first request that fits it."""
        for peer, device in self._devices.items():
            if not self._queue:
                return
            request_id = None if device.task is not None else self._take(device.profile.name)
            if request_id is None:
                continue
            request = self._requests[request_id]
            request.device, device.task = peer, request_id
            yield ToDevice(peer, task_of(request.measure), request.payload)

    def _take(self, profile: str) -> str | None:
        """Remove from the queue, and return, the first request for this profile."""
        fits = (ANY_PROFILE, profile)
        taken = next((each for each in self._queue if self._requests[each].measure.profile in fits), None)
        if taken is not None:
            del self._queue[taken]
        return taken

    def _requeue(self, request_id: str) -> None:
        request = self._requests.get(request_id)
        if request is not None:
            request.device = None
            self._queue[request_id] = None
            self._queue.move_to_end(request_id, last=False)

    def _forget(self, request_id: str) -> None:
        request = self._requests.pop(request_id)
        self._queue.pop(request_id, None)
        self._bytes_held -= request.measure.size_bytes

    def _profiles(self) -> list[Profile]:
        return [device.profile for device in self._devices.values()]
