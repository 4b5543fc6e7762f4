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

from edge_bridge.relay.events import (
    Command,
    DeviceGone,
    DeviceSaid,
    Event,
    JobGone,
    JobSaid,
    Note,
    Tick,
    ToDevice,
    ToJob,
)
from edge_bridge.relay.queue import Place, Queue
from edge_bridge.relay.records import Away, Device, Job, Limits, Request
from edge_bridge.relay.tally import Tally
from edge_bridge.wire.protocol import (
    MINOR,
    OLD_PHASES,
    Ack,
    Cancel,
    Devices,
    Doubt,
    Error,
    Failed,
    Hello,
    JobState,
    Measure,
    Message,
    Progress,
    Register,
    Registered,
    Result,
    State,
    Status,
    Welcome,
    doubts_of,
    task_of,
)
from edge_bridge.wire.quantities import ANY_PROFILE, Profile


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
    _jobs: dict[bytes, Job] = field(default_factory=dict)
    _devices: dict[bytes, Device] = field(default_factory=dict)
    _away: dict[str, Away] = field(default_factory=dict)
    _requests: dict[str, Request] = field(default_factory=dict)
    #: The requests without a device, but for those kept for a device that is away.
    _queue: Queue = field(default_factory=Queue)
    _tally: Tally = field(default_factory=Tally)
    #: Sum of the payload bytes of `_requests`.
    _bytes_held: int = 0
    #: Profiles as last told to the jobs.
    _told: list[Profile] = field(default_factory=list)
    #: What devices doubt, by request id, oldest first: for jobs that are away when it is said.
    _doubts: OrderedDict[str, str] = field(default_factory=OrderedDict)
    #: Since when every device of a profile has been too old for what waits for it: (profile, minor version needed).
    _outdated: dict[tuple[str, int], float] = field(default_factory=dict)

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take one event, return what is to be done, in order."""
        commands = list(self._react(event, now_s))
        present = self._profiles()
        if present != self._told:
            self._told = present
            commands += [ToJob(job, Devices(devices=present)) for job in self._jobs]
        commands += self._dispatch(now_s)
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
                yield from self._device_gone(peer, why, now_s)
            case Tick():
                for peer, device in list(self._devices.items()):
                    silent_s = now_s - device.heard_s
                    if silent_s > self.limits.silence_s:
                        yield from self._device_gone(peer, f"silent for {silent_s:.0f} s", now_s)
                for device_id in [each for each, away in self._away.items() if now_s >= away.until_s]:
                    yield from self._lost(self._away.pop(device_id).request_id)
                yield from self._refuse_outdated(now_s)

    # Jobs

    def _job_said(self, peer: bytes, name: str, message: Message, now_s: float) -> Iterator[Command]:
        if peer not in self._jobs:
            if len(self._jobs) >= self.limits.jobs:
                yield ToJob(
                    peer,
                    Error(code="full", detail=f"the relay serves {len(self._jobs)} jobs, come back later"),
                )
                return
            self._jobs[peer] = Job(name)
            yield Note(f"job {name} is here")
        match message.header:
            case Hello(minor=minor) as hello if self._jobs[peer].may_ask(hello, now_s):
                self._jobs[peer].minor = minor
                yield ToJob(peer, self._welcome(now_s))
                if minor >= 1:
                    yield from (ToJob(peer, doubt) for doubt in self._kept_doubts())
            case Status() as status if self._jobs[peer].may_ask(status, now_s):
                yield ToJob(peer, self._state(now_s))
            case Measure() as measure:
                yield from self._measure(peer, measure, message.payload)
            case Cancel(request_id=request_id):
                yield from self._leave(peer, request_id)

    def _welcome(self, now_s: float) -> Welcome:
        return Welcome(
            devices=self._profiles(),
            jobs=len(self._jobs),
            queued=len(self._queue),
            running=self._running(),
            uptime_s=max(0.0, now_s - self.started_s),
            versions={"python": platform.python_version()},
            minor=MINOR,
        )

    def _state(self, now_s: float) -> State:
        queued = dict.fromkeys(self._jobs, 0)
        running = dict.fromkeys(self._jobs, 0)
        for request_id, request in self._requests.items():
            count = queued if request_id in self._queue else running
            for job in request.jobs:
                count[job] += 1
        error_s = self._tally.last_error_s
        return State(
            devices=[each.told(now_s) for each in self._devices.values()],
            jobs=[
                JobState(name=job.name, queued=queued[peer], running=running[peer], answered=job.answered)
                for peer, job in self._jobs.items()
            ],
            queued=len(self._queue),
            running=self._running(),
            bytes_held=self._bytes_held,
            answered_per_minute=self._tally.per_minute(now_s),
            uptime_s=max(0.0, now_s - self.started_s),
            last_error=self._tally.last_error,
            last_error_ago_s=None if error_s is None else max(0.0, now_s - error_s),
        )

    def _running(self) -> int:
        return sum(device.task is not None for device in self._devices.values())

    def _measure(self, peer: bytes, measure: Measure, payload: tuple[bytes, ...]) -> Iterator[Command]:
        known = self._requests.get(measure.request_id)
        if known is not None:
            known.jobs[peer] = None
        else:
            yield from self._make_room(peer, measure.size_bytes)
            if not self._has_room(measure.size_bytes):
                yield ToJob(peer, self._busy(measure.request_id))
                return
            request = Request(measure, payload, {peer: None})
            # A device may have said, when it came back to a restarted relay, that it is at this very request.
            request.device = next(
                (each for each, device in self._devices.items() if device.task == measure.request_id), None
            )
            self._requests[measure.request_id] = request
            self._bytes_held += measure.size_bytes
            kept = any(away.request_id == measure.request_id for away in self._away.values())
            if request.device is None and not kept:
                self._enqueue(measure.request_id)
        yield ToJob(peer, Ack(request_id=measure.request_id))

    def _has_room(self, size_bytes: int) -> bool:
        return len(self._requests) < self.limits.requests and (self._bytes_held + size_bytes <= self.limits.bytes_held)

    def _make_room(self, peer: bytes, size_bytes: int) -> Iterator[Command]:
        """Where the relay is full, send the newest requests of those who hold most away, if this job holds less."""
        if self._has_room(size_bytes):
            return
        held = dict.fromkeys(self._jobs, 0)
        for request in self._requests.values():
            held[next(iter(request.jobs))] += 1
        while not self._has_room(size_bytes):
            most = max(held, key=lambda job: held[job])
            newest = self._queue.newest_of(most)
            if newest is None or held[most] <= held[peer] + 1:
                return
            held[most] -= 1
            busy = self._busy(newest)
            yield from (ToJob(job, busy) for job in self._requests[newest].jobs)
            self._forget(newest)

    def _busy(self, request_id: str) -> Failed:
        detail = f"the relay holds {len(self._requests)} requests of {self._bytes_held} bytes"
        return Failed(request_id=request_id, reason="busy", detail=detail)

    def _leave(self, peer: bytes, request_id: str) -> Iterator[Command]:
        """Take a job off a request; what nobody waits for any more is dropped, and stopped where it runs."""
        request = self._requests.get(request_id)
        if request is None or peer not in request.jobs:
            return
        del request.jobs[peer]
        if request.jobs:
            if request_id in self._queue:
                self._enqueue(request_id)  # it takes the turn of another job now
            return
        device = None if request.device is None else self._devices.get(request.device)
        self._forget(request_id)
        yield Note(f"request {request_id[:8]} dropped, nobody waits for it")
        if device is not None and device.minor >= 1 and request.device is not None:
            yield ToDevice(request.device, Cancel(request_id=request_id))

    def _job_gone(self, peer: bytes, why: str) -> Iterator[Command]:
        job = self._jobs.get(peer)
        if job is None:
            return
        yield Note(f"job {job.name} is gone: {why}")
        for request_id in [each for each, request in self._requests.items() if peer in request.jobs]:
            yield from self._leave(peer, request_id)
        del self._jobs[peer]

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
            case Progress():
                yield from self._progress(header, device, now_s)
            case Result() | Failed():
                yield from self._answered(header, device, now_s)
            case Doubt(request_ids=ids, detail=detail):
                self._doubts.update(dict.fromkeys(ids, detail))
                while len(self._doubts) > self.limits.doubts:
                    self._doubts.popitem(last=False)
                yield from (ToJob(peer, header) for peer, job in self._jobs.items() if job.minor >= 1)
                yield Note(f"device {device.profile.name} doubts {len(ids)} of its measurements: {detail}")
                self._tally.error(f"{device.profile.name}: {detail}", now_s)

    def _answered(self, answer: Result | Failed, device: Device, now_s: float) -> Iterator[Command]:
        request_id, name = answer.request_id, device.profile.name
        if device.task != request_id:
            yield Note(f"device {name} answered request {request_id[:8]}, which it was not given: ignored")
            return
        device.task, device.since_s = None, now_s
        if isinstance(answer, Failed) and answer.reason == "cancelled":
            self._requeue(request_id)  # somebody may have asked for it again meanwhile
            return
        self._tally.answered(now_s)
        if isinstance(answer, Result):
            self._doubts.pop(request_id, None)
            device.measured += 1
            yield Note(f"request {request_id[:8]} measured on {name}")
        else:
            device.failed += 1
            device.last_error = f"{answer.reason}: {answer.detail}"[:500]
            self._tally.error(f"{name}: request {request_id[:8]}: {device.last_error}", now_s)
            yield Note(f"request {request_id[:8]} failed on {name}: {answer.reason}")
        request = self._requests.get(request_id)
        if request is not None:
            self._forget(request_id)
            for job in request.jobs:
                self._jobs[job].answered += 1
                yield ToJob(job, answer)

    def _register(self, peer: bytes, name: str, register: Register, now_s: float) -> Iterator[Command]:
        # With the name that belongs to its key: nobody takes the place of a device of another key.
        device_id = f"{name}/{register.device_id or register.instance}"
        for other, device in list(self._devices.items()):
            if other == peer or device_id == device.device_id:
                # The same device over a new connection, or its agent started again: its task may be with it still.
                del self._devices[other]
                if device.task is not None and self._take_from(other, device.task):
                    self._away[device_id] = Away(device.task, device.instance, now_s)
        if len(self._devices) >= self.limits.devices:
            yield ToDevice(peer, Error(code="full", detail=f"the relay serves {len(self._devices)} devices"))
            return
        new = self._devices[peer] = Device(
            register.profile, register.instance, device_id, register.minor, now_s, register.busy_with, since_s=now_s
        )
        if new.task in self._requests and self._requests[new.task].device is None:
            self._requests[new.task].device = peer
            self._queue.remove(new.task)
        yield ToDevice(peer, Registered(versions={"python": platform.python_version()}, minor=MINOR))
        yield Note(f"device {register.profile.name} ({name}) is here")
        away = self._away.pop(device_id, None)
        if away is not None and away.request_id != new.task:
            yield from self._take_up(peer, new, away, now_s)

    def _take_up(self, peer: bytes, device: Device, away: Away, now_s: float) -> Iterator[Command]:
        """Give back to a device that is there again what it was at: it may have the result in its store."""
        request = self._requests.get(away.request_id)
        if request is None or request.device is not None:
            return  # nobody wants it any more, or another device has it
        if away.instance != device.instance:
            yield from self._lost(away.request_id, requeue=device.task is not None)
        elif device.task is not None:
            self._requeue(away.request_id)
        if device.task is None and away.request_id in self._requests:
            yield self._give(away.request_id, peer, device, now_s)

    def _progress(self, progress: Progress, device: Device, now_s: float) -> Iterator[Command]:
        if progress.phase != device.phase:
            device.phase, device.since_s = progress.phase, now_s
        request = self._requests.get(progress.request_id)
        if request is not None:
            told = Progress(
                request_id=progress.request_id,
                phase=progress.phase,
                device=device.profile.name,
                elapsed_s=progress.elapsed_s,
            )
            yield from (
                ToJob(job, told) for job in request.jobs if self._jobs[job].minor >= 1 or told.phase in OLD_PHASES
            )

    def _device_gone(self, peer: bytes, why: str, now_s: float) -> Iterator[Command]:
        device = self._devices.pop(peer, None)
        if device is None:
            return
        yield Note(f"device {device.profile.name} is gone: {why}")
        self._tally.error(f"device {device.profile.name} is gone: {why}", now_s)
        if device.task is not None and self._take_from(peer, device.task):
            self._away[device.device_id] = Away(device.task, device.instance, now_s + self.limits.grace_s)

    def _take_from(self, peer: bytes, request_id: str) -> bool:
        """Take a request from a device that is not there any more; say whether it was with that one."""
        request = self._requests.get(request_id)
        if request is None or request.device != peer:
            return False
        request.device = None
        return True

    def _lost(self, request_id: str, requeue: bool = True) -> Iterator[Command]:
        """Count a device that ended with this request; after too many the request fails."""
        request = self._requests.get(request_id)
        if request is None or request.device is not None:
            return
        request.devices_lost += 1
        if request.devices_lost < self.limits.devices_lost:
            if requeue:
                self._requeue(request_id)
            return
        self._forget(request_id)
        detail = f"{request.devices_lost} devices went away while they had it"
        failed = Failed(request_id=request_id, reason="device-lost", detail=detail)
        yield from (ToJob(job, failed) for job in request.jobs)

    def _refuse_outdated(self, now_s: float) -> Iterator[Command]:
        """Refuse what only newer devices than those that are there would understand, after some time."""
        too_old: dict[tuple[str, int], Device] = {}
        for profile, needs in self._queue.kinds():
            fitting = [each for each in self._devices.values() if profile in (ANY_PROFILE, each.profile.name)]
            if fitting and all(each.minor < needs for each in fitting):
                too_old[profile, needs] = fitting[0]
        self._outdated = {kind: self._outdated.get(kind, now_s) for kind in too_old}
        for kind, since_s in list(self._outdated.items()):
            if now_s - since_s < self.limits.outdated_s:
                continue
            del self._outdated[kind]
            name = too_old[kind].profile.name
            detail = f"device {name} speaks protocol 1.{too_old[kind].minor}, 1.{kind[1]} is needed: update it"
            for request_id in self._queue.of_kind(*kind):
                failed = Failed(request_id=request_id, reason="unsupported", detail=detail)
                yield from (ToJob(job, failed) for job in self._requests[request_id].jobs)
                self._forget(request_id)

    def _kept_doubts(self) -> list[Doubt]:
        """The doubts that are remembered, in as few messages as there are texts."""
        texts: dict[str, list[str]] = {}
        for request_id, detail in self._doubts.items():
            texts.setdefault(detail, []).append(request_id)
        return [doubt for detail, ids in texts.items() for doubt in doubts_of(ids, detail)]

    # The queue

    def _dispatch(self, now_s: float) -> Iterator[Command]:
        """Give every idle device the request whose turn it is."""
        if not self._queue:
            return
        for peer, device in self._devices.items():
            if device.task is not None:
                continue
            request_id = self._queue.take(device.profile.name, device.minor)
            if request_id is not None:
                yield self._give(request_id, peer, device, now_s)

    def _give(self, request_id: str, peer: bytes, device: Device, now_s: float) -> Command:
        request = self._requests[request_id]
        self._queue.remove(request_id)
        request.device, device.task = peer, request_id
        device.phase, device.since_s = "queued", now_s
        return ToDevice(peer, task_of(request.measure), request.payload)

    def _enqueue(self, request_id: str, in_front: bool = False) -> None:
        request = self._requests[request_id]
        measure = request.measure
        place = Place(next(iter(request.jobs)), measure.profile, measure.needs, measure.priority)
        self._queue.put(request_id, place, in_front)

    def _requeue(self, request_id: str) -> None:
        request = self._requests.get(request_id)
        if request is not None:
            request.device = None
            self._enqueue(request_id, in_front=True)

    def _forget(self, request_id: str) -> None:
        request = self._requests.pop(request_id)
        self._queue.remove(request_id)
        self._bytes_held -= request.measure.size_bytes

    def _profiles(self) -> list[Profile]:
        return [device.profile for device in self._devices.values()]
