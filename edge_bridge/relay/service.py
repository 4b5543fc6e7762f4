"""The relay as a process: two ROUTER sockets, the authenticator, one loop around the decisions in `relay`.

Must not decide anything about requests: it receives, hands over, sends.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import zmq
from zmq.utils import z85

from edge_bridge.endings import Endings
from edge_bridge.errors import BridgeError, ProtocolError
from edge_bridge.relay.core import Relay
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
from edge_bridge.relay.records import Limits
from edge_bridge.wire.allow_list import AllowList
from edge_bridge.wire.keys import Connection, KeyPair, write_connection
from edge_bridge.wire.protocol import (
    DEVICE_TO_RELAY,
    JOB_TO_RELAY,
    VERSION,
    Error,
    ErrorCode,
    Failed,
    Header,
    Measure,
    Ping,
    broken_identity,
    cut,
    decode,
    encode,
)
from edge_bridge.wire.sockets import Context, Socket, bind, bound_router

log = logging.getLogger("relay")
Side = Literal["job", "device"]

TICK_S = 1.0
#: A peer that breaks the protocol this often is ignored until it connects anew.
OFFENCES = 10
#: Lines about one key in the log, within so many seconds; the rest is only counted.
COMPLAINTS, COMPLAINTS_WITHIN_S = 20, 60.0
#: A payload of frames that are smaller on average is cut anew.
SMALL_FRAME_BYTES = 64 << 10
#: Most messages taken from one side before the other is looked at.
BURST = 64


@dataclass(frozen=True, slots=True)
class RelayPlan:
    """Where the relay listens and whom it lets in. Without key and allow-list only ipc endpoints are
    bound."""

    job_endpoint: str
    device_endpoint: str
    connection_file: Path
    public_host: str
    key: KeyPair | None = None
    allowed: AllowList | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        secure = self.key is not None and self.allowed is not None
        if not secure and not all(end.startswith("ipc://") for end in (self.job_endpoint, self.device_endpoint)):
            raise BridgeError("a relay on a network needs a key and an allow-list")


class RelayService:
    """Binds, announces the relay by its connection file, and serves until asked to end.

    Raises
    ------
    BridgeError
        When an endpoint cannot be bound or the connection file cannot be written.
    """

    def __init__(self, plan: RelayPlan) -> None:
        self._plan = plan
        self._context: Context = zmq.Context()
        try:
            self._zap = self._context.socket(zmq.REP)
            self._zap.bind("inproc://zeromq.zap.01")
            self._jobs = bound_router(self._context, plan.key, "job")
            self._devices = bound_router(self._context, plan.key, "device")
            connection = Connection(
                protocol=VERSION.decode(),
                job_endpoint=self._bind(self._jobs, plan.job_endpoint),
                device_endpoint=self._bind(self._devices, plan.device_endpoint),
                relay_public_key=plan.key.public if plan.key else None,
            )
            write_connection(plan.connection_file, connection)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self.connection = connection
        self._look_at_list()
        self._core = Relay(plan.limits, time.monotonic())
        self._offences: OrderedDict[tuple[Side, bytes], int] = OrderedDict()
        #: Key of each peer that the core knows, to shut it out when the key is taken off the list.
        self._keys: dict[tuple[Side, bytes], str] = {}
        #: By key: since when, and how many lines about it were logged.
        self._complaints: OrderedDict[str, tuple[float, int]] = OrderedDict()
        #: The first is being handled.
        self._events: deque[Event] = deque()

    def serve(self, endings: Endings) -> str:
        """Serve until asked to end; return who asked."""
        poller = zmq.Poller()
        for source in (self._zap, self._jobs, self._devices, *endings.descriptors()):
            poller.register(source, zmq.POLLIN)
        next_tick_s = time.monotonic()
        try:
            while True:
                wait_s = max(0.0, next_tick_s - time.monotonic())
                ready = dict(poller.poll(round(wait_s * 1000)))
                for source in ready:
                    asked = endings.asked_by(source) if isinstance(source, int) else None
                    if asked:
                        return asked
                if self._zap in ready:
                    self._authenticate()
                if self._jobs in ready:
                    self._take_in("job", self._jobs)
                if self._devices in ready:
                    self._take_in("device", self._devices)
                if time.monotonic() >= next_tick_s:
                    next_tick_s = time.monotonic() + TICK_S
                    self._tick()
        finally:
            self._context.destroy(linger=0)

    def _look_at_list(self) -> None:
        """Say what is odd about an allow-list that will do."""
        if self._plan.allowed is None:
            return
        roles = set(self._plan.allowed.roles())
        if not roles - {"relay"}:
            log.warning("nobody is on the allow-list yet: add the .pub lines of jobs and devices")
        if "relay" in roles:
            log.warning("a line of the allow-list has role relay, which lets nobody in: jobs and devices have others")

    def _bind(self, socket: Socket, endpoint: str) -> str:
        try:
            bind(socket, endpoint)
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                why = "is a relay already running there? end it, or choose another port"
            elif error.errno == errno.EACCES:
                why = "choose a port above 1023"
            else:
                why = "is it an address of this machine? see --bind"
            said = str(error.strerror).partition(" (addr=")[0]
            raise BridgeError(f"relay cannot listen on {endpoint} ({said}): {why}") from None
        bound = bytes(socket.getsockopt(zmq.LAST_ENDPOINT)).decode().rstrip("\0")
        if bound.startswith("ipc://"):
            return bound
        return f"tcp://{self._plan.public_host}:{bound.rpartition(':')[2]}"

    def _authenticate(self) -> None:
        """Answer one question of ZAP (ZeroMQ RFC 27): may this key in?"""
        frames = self._zap.recv_multipart()
        try:
            version, request, domain, address, _identity, mechanism, *credentials = frames
        except ValueError:
            self._zap.send_multipart([b"1.0", b"", b"500", b"malformed", b"", b""])
            return
        key = name = ""
        side: Side = "device" if domain == b"device" else "job"
        if mechanism == b"CURVE" and len(credentials) == 1 and self._plan.allowed is not None:
            key = z85.encode(credentials[0]).decode()
            name = self._plan.allowed.name_of(key, side) or ""
        if name:
            self._zap.send_multipart([version, request, b"200", b"OK", key.encode(), b""])
            return
        self._complain(
            key, f"refused {side} key {key} from {address.decode(errors='replace')}: not in the allow-list as a {side}"
        )
        self._zap.send_multipart([version, request, b"400", b"key not allowed", b"", b""])

    def _take_in(self, side: Side, socket: Socket) -> None:
        for _ in range(BURST):
            try:
                peer_frame, *frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            peer = peer_frame.bytes
            key, name = "", "local"
            if self._plan.allowed is not None:
                key = str(frames[0].get("User-Id")) if frames else ""
                allowed_as = self._plan.allowed.name_of(key, side)
                if allowed_as is None:
                    self._offence(side, peer, key, "refused", f"this key is not, or no longer, allowed as a {side}")
                    continue
                name = allowed_as
            if self._offences.get((side, peer), 0) >= OFFENCES:
                continue
            self._keys[side, peer] = key
            try:
                self._said(side, peer, name, [frame.bytes for frame in frames])
            except ProtocolError as error:
                code: ErrorCode = "version" if frames and frames[0].bytes != VERSION else "malformed"
                self._offence(side, peer, key or name, code, str(error))

    def _said(self, side: Side, peer: bytes, name: str, frames: list[bytes]) -> None:
        if side == "device":
            self._handle(DeviceSaid(peer, name, decode(frames, DEVICE_TO_RELAY)))
            return
        message = decode(frames, JOB_TO_RELAY)
        if isinstance(message.header, Measure):
            broken = broken_identity(message.header, message.payload)
            if broken is not None:
                key = self._keys.get((side, peer), "") or name
                self._complain(key, f"job {name}: request {message.header.request_id[:8]}: {broken}")
                failed = Failed(request_id=message.header.request_id, reason="bad-digest", detail=broken)
                self._send(side, peer, failed, ())
                return
            if len(message.payload) > 1 + message.header.size_bytes // SMALL_FRAME_BYTES:
                # Held as it came, every frame would take memory that no limit counts.
                message = message._replace(payload=cut(message.joined()))
        self._handle(JobSaid(peer, name, message))

    def _offence(self, side: Side, peer: bytes, key: str, code: ErrorCode, detail: str) -> None:
        """Answer a peer that breaks the rules, and drop it when it goes on doing so."""
        count = self._offences[side, peer] = self._offences.get((side, peer), 0) + 1
        if count > OFFENCES:
            return
        self._complain(key, f"{side} with key {key} broke the protocol ({count}): {detail}")
        self._send(side, peer, Error(code=code, detail=detail[:500]), ())
        if count == OFFENCES or code == "refused":
            self._complain(key, f"{side} with key {key} is dropped")
            self._gone(side, peer, detail)
        while len(self._offences) > 4096:
            self._offences.popitem(last=False)

    def _complain(self, key: str, text: str) -> None:
        """Log a line about a key, unless there were many of late: a log must not be filled from outside."""
        now_s = time.monotonic()
        since_s, count = self._complaints.pop(key, (now_s, 0))
        if now_s - since_s > COMPLAINTS_WITHIN_S:
            since_s, count = now_s, 0
        self._complaints[key] = (since_s, count + 1)
        if count < COMPLAINTS:
            log.warning("%s", text)
        elif count == COMPLAINTS:
            log.warning("key %s: no more lines about it for a while", key)
        while len(self._complaints) > 4096:
            self._complaints.popitem(last=False)

    def _gone(self, side: Side, peer: bytes, why: str) -> None:
        self._keys.pop((side, peer), None)
        self._handle(JobGone(peer, why) if side == "job" else DeviceGone(peer, why))

    def _tick(self) -> None:
        jobs, devices = self._core.peers()
        sides: tuple[tuple[Side, list[bytes]], ...] = (("job", jobs), ("device", devices))
        for side, peers in sides:
            for peer in peers:
                key = self._keys.get((side, peer), "")
                if self._plan.allowed is not None and self._plan.allowed.name_of(key, side) is None:
                    # It may be waiting in silence for what others measure.
                    self._offence(side, peer, key, "refused", f"this key is no longer allowed as a {side}")
                else:
                    self._send(side, peer, Ping(), ())
        self._handle(Tick())
        for side, peer in self._keys.keys() - {(side, peer) for side, peers in sides for peer in peers}:
            del self._keys[side, peer]

    def _handle(self, event: Event) -> None:
        """Hand an event over and do what follows; events that arise meanwhile wait their turn."""
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events:
            for command in self._core.handle(self._events[0], time.monotonic()):
                self._execute(command)
            self._events.popleft()

    def _execute(self, command: Command) -> None:
        match command:
            case ToJob(peer, header, payload):
                self._send("job", peer, header, payload)
            case ToDevice(peer, header, payload):
                self._send("device", peer, header, payload)
            case Note(text):
                log.info("%s", text)

    def _send(self, side: Side, peer: bytes, header: Header, payload: tuple[bytes, ...]) -> None:
        socket = self._jobs if side == "job" else self._devices
        try:
            socket.send_multipart([peer, *encode(header, payload)], zmq.NOBLOCK, copy=not payload)
        except zmq.ZMQError as error:
            why = "it has closed its connection" if error.errno == zmq.EHOSTUNREACH else error.strerror
            self._gone(side, peer, why)
