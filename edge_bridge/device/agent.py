"""The device agent: takes one task at a time, answers from its store or has its child measure.

Never loads a model itself and never blocks: it answers pings while the child measures, and decides by the
monotonic clock alone. Must not know runtimes or how a measurement is done.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zmq

from edge_bridge.device.drift import DriftPlan
from edge_bridge.device.reference import SETTINGS as REFERENCE_SETTINGS
from edge_bridge.device.reference import ReferenceWatch
from edge_bridge.device.store import Standing, Store
from edge_bridge.device.tasks import Job, Refusal, Waiting, job_of
from edge_bridge.device.uplink import Uplink
from edge_bridge.endings import Endings
from edge_bridge.errors import ProtocolError, RuntimeMissingError
from edge_bridge.measuring.lines import FailureLine, JudgedLine, Line, MeasuredLine, PhaseLine
from edge_bridge.measuring.measurer import ChildLimits, Measurer
from edge_bridge.wire.keys import Access
from edge_bridge.wire.protocol import (
    MINOR,
    OLD_PHASES,
    Cancel,
    Doubt,
    Error,
    Failed,
    Header,
    Message,
    Phase,
    Ping,
    Pong,
    Progress,
    Reason,
    Register,
    Registered,
    Result,
    Task,
    decode_part,
    doubts_of,
)
from edge_bridge.wire.quantities import Measurement, Profile, Quality
from edge_bridge.wire.sockets import LinkEvent

log = logging.getLogger("device")

#: The measurer looks for models that overstay at least this often.
POLL_S = 1.0
#: A relay that does not answer REGISTER is asked again; one that is full, after the longer time.
REGISTER_S, REGISTER_FULL_S = 3.0, 5.0
#: How often somebody who waits for a device that cools down is told so.
COOLING_S = 2.0
#: Failures kept while the relay cannot be reached.
MOST_UNSENT = 256


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """Where the agent connects, as what, and where it keeps its results.

    Attributes
    ----------
    access, watched
        Reads connection and key (again and again: they may be replaced), from these files.
    drift
        How the device is watched by its reference model; None leaves that out.
    forget_reference
        Learn anew what the reference model should take.
    """

    access: Access
    watched: tuple[Path, ...]
    profile: Profile
    state: Path
    limits: ChildLimits = field(default_factory=ChildLimits)
    drift: DriftPlan | None = field(default_factory=DriftPlan)
    forget_reference: bool = False


class Agent:
    """The agent's state: a way to the relay, a measurer, a store, and the tasks it was given.

    Parameters
    ----------
    on_registered
        Called each time a relay has taken this device.
    """

    def __init__(self, plan: DevicePlan, on_registered: Callable[[], None] = lambda: None) -> None:
        self._profile = plan.profile
        self._digest = plan.profile.digest()
        self._on_registered = on_registered
        self._instance = uuid.uuid4().hex
        self._store = Store(plan.state / "results.sqlite")
        self._reference = ReferenceWatch(plan.drift, self._store, self._digest, plan.forget_reference)
        self._waiting = Waiting()
        self._running: Job | None = None
        self._begun_s = 0.0
        #: The reference model is at the measurer.
        self._reading = False
        #: When waiting requests were last told that the device cools down, and since when it does.
        self._cooling_told_s = self._cooling_since_s = 0.0
        #: Failures that could not be sent: told when the task comes again, instead of failing again.
        self._unsent: OrderedDict[str, Failed] = OrderedDict()
        self._unsent_doubts: list[Doubt] = []
        #: When to send REGISTER; None while the relay has this device, or is not there.
        self._register_at_s: float | None = None
        self._relay_minor = 0
        self._jitter = random.Random()
        self._uplink = Uplink(plan.access, plan.watched)
        self._measurer = Measurer(plan.profile, plan.limits)

    def serve(self, endings: Endings) -> str:
        """Serve until asked to end; return who asked.

        Raises
        ------
        KeyRefusedError
            When the relay does not allow this device's key, and never did.
        RuntimeMissingError
            When the runtime or the provider of the profile is not on this machine.
        """
        try:
            while True:
                poller = zmq.Poller()
                sources = [*self._measurer.descriptors(), *endings.descriptors()]
                for source in (*self._uplink.sockets, *sources):
                    poller.register(source, zmq.POLLIN)
                for ready, _ in poller.poll(self._wait_ms(time.monotonic())):
                    asked = endings.asked_by(ready) if isinstance(ready, int) else None
                    if asked:
                        return asked
                self._step(time.monotonic())
        finally:
            self._uplink.close()
            self._measurer.close()
            self._store.close()

    def _wait_ms(self, now_s: float) -> int:
        register_s = POLL_S if self._register_at_s is None else self._register_at_s - now_s
        wait_s = min(POLL_S, self._uplink.wait_s(now_s), register_s, self._reference.wait_s(now_s))
        return max(0, round(wait_s * 1000)) + 1

    def _step(self, now_s: float) -> None:
        for event in self._uplink.advance(now_s):
            if event is LinkEvent.UP:
                self._register_at_s = now_s
            elif event is LinkEvent.DOWN:
                self._register_at_s = None
        if self._register_at_s is not None and now_s >= self._register_at_s:
            self._register(now_s)
        for message in self._uplink.receive(now_s):
            self._said(message, now_s)
        for line in self._measurer.advance():
            self._line(line, now_s)
        self._go_on(now_s)
        self._store.tend(now_s)

    # The relay

    def _register(self, now_s: float) -> None:
        busy_with = self._running.request_id if self._running is not None else None
        if busy_with is None and self._waiting:
            busy_with = next(iter(self._waiting)).request_id
        register = Register(
            profile=self._profile,
            instance=self._instance,
            busy_with=busy_with,
            device_id=self._store.device_id,
            minor=MINOR,
        )
        sent = self._uplink.send(register)
        self._register_at_s = now_s + (REGISTER_S if sent else 0.05)

    def _said(self, message: Message, now_s: float) -> None:
        match message.header:
            case Ping():
                self._send(Pong())
            case Registered(minor=minor) if self._register_at_s is not None:
                self._register_at_s = None
                self._relay_minor = minor
                self._uplink.trust()
                log.info("registered with relay %s as %s", self._uplink.endpoint, self._profile.name)
                self._on_registered()
                self._send_doubts()
            case Task() as task:
                self._take(task, message)
            case Cancel(request_id=request_id):
                self._cancel(request_id)
            case Error(code=code, detail=detail):
                self._told_off(code, detail, now_s)

    def _told_off(self, code: str, detail: str, now_s: float) -> None:
        match code:
            case "unregistered":
                # Not at once each time: the two would do nothing else.
                if self._register_at_s is None:
                    self._register_at_s = now_s + 0.1
            case "refused":
                self._uplink.refused(detail, now_s)
            case _:
                self._uplink.complain(f"relay {self._uplink.endpoint} says {code}", now_s, detail)
                if self._register_at_s is not None:
                    self._register_at_s = now_s + REGISTER_FULL_S * self._jitter.uniform(0.5, 1.0)

    def _take(self, task: Task, message: Message) -> None:
        request_id = task.request_id
        known = self._known(request_id, task)
        unsent = self._unsent.pop(request_id, None)
        if known is not None:
            log.info("request %s answered from the store", request_id[:8])
            self._send(Result(request_id=request_id, measurement=msgspec.Raw(known)))
        elif unsent is not None:
            self._fail(request_id, unsent.reason, unsent.detail)
        elif request_id not in self._waiting and (self._running is None or request_id != self._running.request_id):
            if not self._waiting.has_room(task.size_bytes):
                self._fail(request_id, "busy", f"{len(self._waiting)} tasks wait on the device already")
                return
            job = job_of(task, message)
            if isinstance(job, Refusal):
                self._fail(request_id, job.reason, job.detail)
            else:
                self._waiting.add(job)

    def _known(self, request_id: str, task: Task) -> bytes | None:
        """Result in the store, if the disk gives back what was put there."""
        known = self._store.get(request_id, self._digest)
        if known is None:
            return None
        try:
            if task.work == "latency":
                decode_part(known, Measurement)
            else:
                decode_part(known, Quality)
        except ProtocolError as error:
            log.warning("request %s: its result in the store is damaged, measuring anew: %s", request_id[:8], error)
            return None
        return known

    def _cancel(self, request_id: str) -> None:
        if self._running is not None and self._running.request_id == request_id:
            self._measurer.cancel()
            self._running = None
        self._waiting.cancel(request_id)
        log.info("request %s cancelled", request_id[:8])
        # Also if it is not here: the relay may believe so, and would give this device nothing else.
        self._send(Failed(request_id=request_id, reason="cancelled", detail="nobody waits for it"))

    # The measurer

    def _go_on(self, now_s: float) -> None:
        """Give the measurer what is next: a reading of the reference model where one is due, else a task."""
        while not self._measurer.busy:
            if self._reference.due(now_s, bool(self._waiting)):
                self._reading = True
                try:
                    self._measurer.begin(self._reference.model, REFERENCE_SETTINGS)
                except OSError as error:
                    self._reading = False
                    self._reference.failed("internal", str(error))
            elif self._reference.cooling:
                self._tell_cooling(now_s)
                return
            elif self._waiting:
                self._begin(self._waiting.take(), now_s)
            else:
                return

    def _begin(self, job: Job, now_s: float) -> None:
        log.info("request %s: a model of %d bytes", job.request_id[:8], len(job.model))
        try:
            self._measurer.begin(job.model, job.settings, job.shard)
        except OSError as error:
            self._fail(job.request_id, "internal", f"no memory to hand the model over: {error}")
            return
        self._running, self._begun_s = job, now_s

    def _line(self, line: Line, now_s: float) -> None:
        if self._reading:
            self._reference_line(line, now_s)
            return
        job = self._running
        if job is None:
            if isinstance(line, FailureLine) and line.reason == "unsupported":
                raise RuntimeMissingError(line.detail)
            log.warning("the measuring child says, unasked: %s", line)
            return
        match line:
            case PhaseLine(phase=phase, elapsed_s=elapsed_s):
                self._progress(job.request_id, phase, elapsed_s)
            case MeasuredLine(measurement=measurement):
                told = self._reference.attach(measurement, now_s)
                log.info(
                    "request %s: p50 %.3f ms, done in %.0f ms",
                    job.request_id[:8],
                    told.p50_s * 1e3,
                    (now_s - self._begun_s) * 1e3,
                )
                self._answer(job.request_id, msgspec.json.encode(told), self._reference.standing)
            case JudgedLine(quality=quality):
                # What drifts is time: an error does not.
                log.info("request %s: %s %.6g", job.request_id[:8], quality.metric, quality.error)
                self._answer(job.request_id, msgspec.json.encode(quality), Standing.SOUND)
            case FailureLine(reason=reason, detail=detail):
                self._running = None
                self._reference.measured()
                self._fail(job.request_id, reason, detail)

    def _reference_line(self, line: Line, now_s: float) -> None:
        match line:
            case MeasuredLine(measurement=measurement):
                self._reading = False
                was_cooling = self._reference.cooling
                doubtful, why = self._reference.read(measurement.p50_s, now_s)
                if self._reference.cooling and not was_cooling:
                    self._cooling_since_s, self._cooling_told_s = now_s, now_s - COOLING_S
                self._unsent_doubts += doubts_of(doubtful, why)
                self._send_doubts()
            case FailureLine(reason="unsupported", detail=detail):
                raise RuntimeMissingError(detail)
            case FailureLine(reason=reason, detail=detail):
                self._reading = False
                self._reference.failed(reason, detail)

    def _tell_cooling(self, now_s: float) -> None:
        if self._waiting and now_s - self._cooling_told_s >= COOLING_S:
            self._cooling_told_s = now_s
            for job in self._waiting:
                self._progress(job.request_id, "cooling", now_s - self._cooling_since_s)

    # Answers

    def _answer(self, request_id: str, result: bytes, standing: Standing) -> None:
        # First into the store: from then on nothing that breaks costs a second measurement.
        self._store.put(request_id, self._digest, result, standing)
        self._running = None
        self._reference.measured()
        self._send(Result(request_id=request_id, measurement=msgspec.Raw(result)))

    def _fail(self, request_id: str, reason: Reason, detail: str) -> None:
        log.warning("request %s failed, %s: %s", request_id[:8], reason, detail)
        failed = Failed(request_id=request_id, reason=reason, detail=detail[:2000])
        if not self._send(failed):
            self._unsent[request_id] = failed
            while len(self._unsent) > MOST_UNSENT:
                self._unsent.popitem(last=False)

    def _progress(self, request_id: str, phase: Phase, elapsed_s: float) -> None:
        if self._relay_minor >= 1 or phase in OLD_PHASES:
            self._send(Progress(request_id=request_id, phase=phase, elapsed_s=max(0.0, elapsed_s)))

    def _send_doubts(self) -> None:
        """Tell of doubts; an older relay would not understand, and the next one may."""
        while self._unsent_doubts and self._relay_minor >= 1 and self._send(self._unsent_doubts[0]):
            self._unsent_doubts.pop(0)
        del self._unsent_doubts[:-MOST_UNSENT]

    def _send(self, header: Header) -> bool:
        return self._uplink.send(header)
