"""The relay as a process: two ROUTER sockets, the authenticator, one loop around the decisions in `relay`.

Must not decide anything about requests: it receives, hands over, sends.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from edge_bridge.endings import Endings
from edge_bridge.errors import BridgeError, ProtocolError
from edge_bridge.relay.core import (
    Command,
    DeviceGone,
    DeviceSaid,
    Event,
    JobGone,
    JobSaid,
    Limits,
    Note,
    Relay,
    Tick,
    ToDevice,
    ToJob,
)
from edge_bridge.wire.keys import AllowList, Connection, KeyPair, write_connection
from edge_bridge.wire.protocol import (
    DEVICE_TO_RELAY,
    JOB_TO_RELAY,
    VERSION,
    Error,
    ErrorCode,
    Header,
    Ping,
    decode,
    encode,
)
from edge_bridge.wire.sockets import Context, Socket, bound_router

log = logging.getLogger("relay")

TICK_S = 1.0
#: A peer that breaks the protocol this often is ignored until it connects anew.
OFFENCES = 10
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
        self._core = Relay(plan.limits, time.monotonic())
        self._offences: dict[tuple[str, bytes], int] = {}
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

    def _bind(self, socket: Socket, endpoint: str) -> str:
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise BridgeError(f"relay cannot listen on {endpoint}: {error.strerror}, choose another port") from None
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
        if mechanism == b"CURVE" and len(credentials) == 1 and self._plan.allowed is not None:
            key = z85.encode(credentials[0]).decode()
            name = self._plan.allowed.name_of(key) or ""
        if name:
            self._zap.send_multipart([version, request, b"200", b"OK", key.encode(), b""])
            return
        log.warning("refused %s key %r from %s: not in the allow-list", domain.decode(), key, address.decode())
        self._zap.send_multipart([version, request, b"400", b"key not allowed", b"", b""])

    def _take_in(self, side: str, socket: Socket) -> None:
        for _ in range(BURST):
            try:
                peer_frame, *frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            peer = peer_frame.bytes
            key, name = "", peer.hex()
            if self._plan.allowed is not None:
                key = str(frames[0].get("User-Id")) if frames else ""
                allowed_as = self._plan.allowed.name_of(key)
                if allowed_as is None:
                    self._offence(side, peer, key, "refused", "this key is no longer allowed")
                    continue
                name = allowed_as
            if self._offences.get((side, peer), 0) >= OFFENCES:
                continue
            try:
                if side == "job":
                    message = decode([frame.bytes for frame in frames], JOB_TO_RELAY)
                    self._handle(JobSaid(peer, name, message))
                else:
                    message = decode([frame.bytes for frame in frames], DEVICE_TO_RELAY)
                    self._handle(DeviceSaid(peer, name, message))
            except ProtocolError as error:
                code: ErrorCode = "version" if frames and frames[0].bytes != VERSION else "malformed"
                self._offence(side, peer, key or name, code, str(error))

    def _offence(self, side: str, peer: bytes, key: str, code: ErrorCode, detail: str) -> None:
        """Answer a peer that breaks the rules, and drop it when it goes on doing so."""
        count = self._offences[side, peer] = self._offences.get((side, peer), 0) + 1
        if count > OFFENCES:
            return
        log.warning("%s with key %s broke the protocol (%d): %s", side, key, count, detail)
        self._send(side, peer, Error(code=code, detail=detail[:500]), ())
        if count == OFFENCES or code == "refused":
            log.warning("%s with key %s is dropped", side, key)
            self._handle(JobGone(peer, detail) if side == "job" else DeviceGone(peer, detail))
        while len(self._offences) > 4096:
            self._offences.pop(next(iter(self._offences)))

    def _tick(self) -> None:
        jobs, devices = self._core.peers()
        for side, peers in (("job", jobs), ("device", devices)):
            for peer in peers:
                self._send(side, peer, Ping(), ())
        self._handle(Tick())

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

    def _send(self, side: str, peer: bytes, header: Header, payload: tuple[bytes, ...]) -> None:
        socket = self._jobs if side == "job" else self._devices
        try:
            socket.send_multipart([peer, *encode(header, payload)], zmq.NOBLOCK, copy=not payload)
        except zmq.ZMQError as error:
            # EHOSTUNREACH: the connection is gone. EAGAIN: it does not take any more.
            self._handle(JobGone(peer, error.strerror) if side == "job" else DeviceGone(peer, error.strerror))
