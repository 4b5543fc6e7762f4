"""The device agent: connects out, takes one task at a time, answers from its store or has its child measure.

Never loads a model itself and never blocks: it answers pings while the child measures. Must not know
runtimes or how a measurement is done.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zmq

from edge_bridge.device.store import Store
from edge_bridge.endings import Endings
from edge_bridge.errors import KeyRefusedError, ProtocolError, RuntimeMissingError
from edge_bridge.measuring.lines import FailureLine, Line, MeasuredLine, PhaseLine
from edge_bridge.measuring.measurer import ChildLimits, Measurer
from edge_bridge.measuring.runtimes import runtime_versions
from edge_bridge.wire.keys import Connection, KeyPair
from edge_bridge.wire.protocol import (
    RELAY_TO_DEVICE,
    Error,
    Failed,
    Header,
    Message,
    Ping,
    Pong,
    Progress,
    Reason,
    Register,
    Registered,
    Result,
    Task,
    decode,
    encode,
)
from edge_bridge.wire.quantities import Profile
from edge_bridge.wire.sockets import Context, Link, LinkEvent

log = logging.getLogger("device")

POLL_MS = 1000
#: How often a relay that cannot be reached is mentioned in the log.
COMPLAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """Where the agent connects, as what, and where it keeps its results."""

    connection: Connection
    key: KeyPair | None
    profile: Profile
    state: Path
    limits: ChildLimits = field(default_factory=ChildLimits)


def describe_device(name: str, runtime: str, provider: str) -> Profile:
    """Profile of this machine."""
    return Profile(
        name=name or platform.node() or "device",
        hardware=_hardware(),
        runtime=runtime,
        provider=provider,
        versions={
            **runtime_versions(runtime),
            "python": platform.python_version(),
            "kernel": platform.release(),
        },
    )


class Agent:
    """The agent's state: a link to the relay, a measurer, a store, and the tasks it was given.

    Parameters
    ----------
    on_registered
        Called each time a relay has taken this device.
    """

    def __init__(self, plan: DevicePlan, on_registered: Callable[[], None] = lambda: None) -> None:
        self._profile = plan.profile
        self._digest = plan.profile.digest()
        self._endpoint = plan.connection.device_endpoint
        self._on_registered = on_registered
        self._instance = uuid.uuid4().hex
        self._store = Store(plan.state / "results.sqlite")
        self._measurer = Measurer(plan.profile, plan.state / "models", plan.limits)
        self._tasks: deque[tuple[Task, bytes]] = deque()
        self._measuring: str | None = None
        #: Failures that could not be sent: told when the task comes again, instead of failing again.
        self._unsent: dict[str, Failed] = {}
        self._register_due = False
        self._complained_s = -COMPLAIN_S
        context: Context = zmq.Context.instance()
        self._link = Link(context, self._endpoint, plan.key, plan.connection.relay_public_key)

    def serve(self, endings: Endings) -> str:
        """Serve until asked to end; return who asked.

        Raises
        ------
        KeyRefusedError
            When the relay does not, or no longer, allow this device's key.
        RuntimeMissingError
            When the runtime of the profile is not on this machine.
        """
        try:
            while True:
                poller = zmq.Poller()
                sources = [*self._measurer.descriptors(), *endings.descriptors()]
                for source in (self._link.socket, self._link.monitor, *sources):
                    poller.register(source, zmq.POLLIN)
                for ready, _ in poller.poll(50 if self._register_due else POLL_MS):
                    asked = endings.asked_by(ready) if isinstance(ready, int) else None
                    if asked:
                        return asked
                self._step()
        finally:
            self._link.close()
            self._measurer.close()
            self._store.close()

    def _step(self) -> None:
        for event in self._link.events():
            self._link_event(event)
        if self._register_due:
            busy_with = self._measuring
            register = Register(profile=self._profile, instance=self._instance, busy_with=busy_with)
            self._register_due = not self._send(register)
        while (frames := self._link.receive()) is not None:
            try:
                self._said(decode(frames, RELAY_TO_DEVICE))
            except ProtocolError as error:
                log.warning("relay %s broke the protocol: %s", self._endpoint, error)
        for line in self._measurer.advance():
            self._line(line)
        while self._tasks and not self._measurer.busy:
            self._begin(*self._tasks.popleft())

    def _link_event(self, event: LinkEvent) -> None:
        match event:
            case LinkEvent.UP:
                self._register_due = True
            case LinkEvent.DOWN:
                log.warning("relay %s is gone, waiting for it", self._endpoint)
            case LinkEvent.KEY_REFUSED:
                raise KeyRefusedError(_refusal(self._endpoint))
            case LinkEvent.NO_HANDSHAKE:
                if time.monotonic() - self._complained_s >= COMPLAIN_S:
                    self._complained_s = time.monotonic()
                    log.warning(
                        "relay %s answers but the handshake fails: is the connection file its latest?",
                        self._endpoint,
                    )

    def _said(self, message: Message) -> None:
        match message.header:
            case Ping():
                self._send(Pong())
            case Registered():
                log.info("registered with relay %s as %s", self._endpoint, self._profile.name)
                self._on_registered()
            case Task() as task:
                self._take(task, message)
            case Error(code="unregistered"):
                self._register_due = True
            case Error(code="refused", detail=detail):
                raise KeyRefusedError(f"{_refusal(self._endpoint)} ({detail})")
            case Error(code=code, detail=detail):
                log.warning("relay %s says %s: %s", self._endpoint, code, detail)

    def _take(self, task: Task, message: Message) -> None:
        request_id = task.request_id
        known = self._store.get(request_id, self._digest)
        unsent = self._unsent.pop(request_id, None)
        if known is not None:
            log.info("request %s answered from the store", request_id[:8])
            self._send(Result(request_id=request_id, measurement=msgspec.Raw(known)))
        elif unsent is not None:
            self._send(unsent)
        elif request_id != self._measuring and all(request_id != each.request_id for each, _ in self._tasks):
            model = message.joined()
            if hashlib.sha256(model).hexdigest() != task.model_sha256:
                self._fail(request_id, "bad-digest", "the model's bytes do not match their SHA-256")
            else:
                self._tasks.append((task, model))

    def _begin(self, task: Task, model: bytes) -> None:
        try:
            settings = task.decoded_settings()
        except ProtocolError as error:
            self._fail(task.request_id, "unsupported", str(error))
            return
        log.info("request %s: measuring a model of %d bytes", task.request_id[:8], len(model))
        try:
            self._measurer.begin(model, settings)
        except OSError as error:
            self._fail(task.request_id, "internal", f"the model cannot be written for the child: {error}")
            return
        self._measuring = task.request_id

    def _line(self, line: Line) -> None:
        request_id = self._measuring
        if request_id is None:
            if isinstance(line, FailureLine) and line.reason == "unsupported":
                raise RuntimeMissingError(line.detail)
            log.warning("the measuring child says, unasked: %s", line)
            return
        match line:
            case PhaseLine(phase=phase):
                self._send(Progress(request_id=request_id, phase=phase))
            case MeasuredLine(measurement=measurement):
                encoded = msgspec.json.encode(measurement)
                self._store.put(request_id, self._digest, encoded)
                self._measuring = None
                log.info("request %s: p50 %.6f s", request_id[:8], measurement.p50_s)
                self._send(Result(request_id=request_id, measurement=msgspec.Raw(encoded)))
            case FailureLine(reason=reason, detail=detail):
                self._measuring = None
                self._fail(request_id, reason, detail)

    def _fail(self, request_id: str, reason: Reason, detail: str) -> None:
        log.warning("request %s failed, %s: %s", request_id[:8], reason, detail)
        failed = Failed(request_id=request_id, reason=reason, detail=detail[:2000])
        if not self._send(failed):
            self._unsent[request_id] = failed

    def _send(self, header: Header) -> bool:
        return self._link.send(encode(header))


def _refusal(endpoint: str) -> str:
    return (
        f"relay {endpoint} does not know this device's key: "
        "add its .pub line to the relay's allow-list, then start the device again"
    )


def _hardware() -> str:
    """Processor, number of cores and memory, as far as the machine tells."""
    model = platform.machine()
    for path, marker in (("/proc/device-tree/model", ""), ("/proc/cpuinfo", "model name")):
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        lines = [line for line in text.splitlines() if line.startswith(marker)]
        if lines:
            model = lines[0].partition(":")[2].strip() if marker else lines[0].strip("\0 ")
            break
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory_gib:.0f} GiB"
