"""The job's side of the bridge: submit models, poll for what came of them, never block.

Owns patience: it asks again after a reconnection or a busy relay, with back-off and jitter, and the
deadlines are its own. A request whose device is away waits. Must not know candidates, MPI or how a model
came about.
"""

from __future__ import annotations

import heapq
import logging
import platform
import random
import time
from dataclasses import dataclass

import zmq

from edge_bridge.errors import (
    BridgeError,
    BridgeUnreachableError,
    KeyRefusedError,
    ProtocolError,
    UnfitRequestError,
)
from edge_bridge.wire.keys import Access, Connection, KeyPair
from edge_bridge.wire.protocol import (
    JOB_TO_RELAY,
    MINOR,
    MODEL_LIMIT_BYTES,
    RELAY_TO_JOB,
    Ack,
    Cancel,
    Devices,
    Doubt,
    Error,
    Failed,
    Hello,
    Measure,
    Message,
    Phase,
    Ping,
    Progress,
    Result,
    State,
    Status,
    Welcome,
    cut,
    decode,
    encode,
    judge_of,
    measure_of,
)
from edge_bridge.wire.quantities import ANY_PROFILE, Measurement, Profile, Quality, QualitySettings, Settings
from edge_bridge.wire.sockets import BURST, REOPEN_S, Context, Link, LinkEvent, Socket, reopen_at

log = logging.getLogger("bridge")

#: First and longest wait before an unacknowledged or refused request is sent again.
RETRY_S = 1.0
RETRY_MOST_S = 60.0
#: An acknowledgement may take this long, and a second more for each of these bytes, before the request goes
#: again.
ACK_S = 20.0
ACK_BYTES_PER_S = 200_000
#: After a refused key or a failed handshake the relay is tried again this often; while nothing tells why there is no
#: relay, every REOPEN_S.
REFUSED_RETRY_S = 2.0
#: A relay that does not answer HELLO, or is full, is asked again this often.
HELLO_S = 3.0


@dataclass(frozen=True, slots=True)
class Measured:
    """A request has been measured."""

    request_id: str
    measurement: Measurement


@dataclass(frozen=True, slots=True)
class Judged:
    """A trained model's error on a shard has come."""

    request_id: str
    quality: Quality


@dataclass(frozen=True, slots=True)
class Doubted:
    """What was measured for these requests is doubtful: the device was out of its usual band. Some may be others'."""

    request_ids: tuple[str, ...]
    detail: str


@dataclass(frozen=True, slots=True)
class MeasurementFailed:
    """A request has ended without a measurement, or without a quality."""

    request_id: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """A request has entered a phase."""

    request_id: str
    phase: Phase
    device: str
    #: Since the phase began.
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DevicesChanged:
    """The devices now present."""

    devices: tuple[Profile, ...]


@dataclass(frozen=True, slots=True)
class RelayLost:
    """The relay cannot be reached; requests wait."""

    detail: str


@dataclass(frozen=True, slots=True)
class RelayBack:
    """The relay is there again; everything outstanding has been sent again."""


ClientEvent = Measured | Judged | Doubted | MeasurementFailed | Progressed | DevicesChanged | RelayLost | RelayBack


@dataclass(slots=True)
class _Pending:
    measure: Measure
    payload: tuple[bytes, ...]
    #: When to send (again); None while the relay holds it.
    send_at_s: float | None
    #: When to give it up; None for never.
    deadline_s: float | None = None
    tries: int = 0


class BridgeClient:
    """A job's connection to a relay. Not thread-safe; made by `open`."""

    def __init__(self, connection: Connection, key: KeyPair | None, access: Access | None = None) -> None:
        self._connection, self._key, self._access = connection, key, access
        self._link = _link_of(connection, key)
        self._pending: dict[str, _Pending] = {}
        #: (when, request id): what to send, and what to give up; entries that no longer hold are skipped.
        self._to_send: list[tuple[float, str]] = []
        self._deadlines: list[tuple[float, str]] = []
        self._state: State | None = None
        #: When to say HELLO (again); None while the link is down or the relay has answered.
        self._hello_at_s: float | None = None
        self._welcome: Welcome | None = None
        #: The relay has answered, and the connection has stood since.
        self._up = False
        self._was_up = False
        self._refused: str | None = None
        #: What a relay says that takes no more jobs.
        self._full: str | None = None
        #: When to connect anew; None while the link is up.
        self._reopen_at_s: float | None = None
        self._last_trouble = "nothing answers"
        #: What was last wrong with connection file or key.
        self._complained = ""
        self._devices: tuple[Profile, ...] | None = None
        self._jitter = random.Random()
        self._reopen_in(REOPEN_S, time.monotonic())

    @classmethod
    def open(
        cls,
        connection: Connection,
        key: KeyPair | None = None,
        timeout_s: float = 10.0,
        access: Access | None = None,
    ) -> BridgeClient:
        """Connect, and wait until the relay has answered.

        Parameters
        ----------
        connection
            From the relay's connection file.
        key
            This job's key pair; None only for a private local bridge.
        timeout_s
            How long to wait for the answer.
        access
            Reads connection file and key anew: used whenever the relay is not there or refuses the key, so that a
            relay can move and a key be rolled over without a restart.

        Raises
        ------
        KeyRefusedError
            When the relay does not know the key.
        BridgeUnreachableError
            When it does not answer in time, or takes no more jobs.
        """
        client = cls(connection, key, access)
        try:
            client._wait_for_welcome(timeout_s)
        except BaseException:
            client.close()
            raise
        return client

    @property
    def sockets(self) -> list[Socket]:
        """Sockets for a zmq.Poller: when one is readable, `poll` has something to do."""
        return [self._link.socket, self._link.monitor]

    @property
    def outstanding(self) -> int:
        """Number of requests without an answer."""
        return len(self._pending)

    @property
    def devices(self) -> tuple[Profile, ...]:
        """The devices last heard of."""
        return self._devices or ()

    @property
    def welcome(self) -> Welcome | None:
        """What the relay last said of itself."""
        return self._welcome

    def submit(
        self,
        model: bytes,
        settings: Settings,
        profile: str = ANY_PROFILE,
        deadline_s: float | None = None,
        priority: int = 5,
    ) -> str:
        """Ask for a measurement and return its request id; asking for the same again is one request.

        Parameters
        ----------
        model
            An ONNX file's bytes.
        deadline_s
            Give up after so long and say so; None waits for ever.
        priority
            0 to 9; higher goes first.

        Raises
        ------
        UnfitRequestError
            When no relay would take this; nothing is sent.
        """
        _check_size(len(model))
        return self._ask(measure_of(model, settings, profile, priority), cut(model), deadline_s)

    def judge(
        self,
        model: bytes,
        shard: bytes,
        settings: QualitySettings,
        profile: str = ANY_PROFILE,
        deadline_s: float | None = None,
        priority: int = 5,
    ) -> str:
        """Ask for a trained model's error on a labelled shard, and return the request id.

        Parameters
        ----------
        shard
            Inputs, then targets, as `settings.shard` describes them.

        Raises
        ------
        UnfitRequestError
            When no relay would take this; nothing is sent.
        """
        _check_size(len(model) + len(shard))
        if (needed := sum(settings.shard.sizes_bytes())) != len(shard):
            raise UnfitRequestError(f"a shard of {len(shard)} bytes; its shapes need {needed}")
        measure = judge_of(model, shard, settings, profile, priority)
        return self._ask(measure, (*cut(model), *cut(shard)), deadline_s)

    def cancel(self, request_id: str) -> None:
        """Forget a request; no event of it follows."""
        if self._pending.pop(request_id, None) is not None and self._up:
            self._link.send(encode(Cancel(request_id=request_id)))

    def ask_state(self) -> None:
        """Ask the relay how it is; `state` has the answer once it has come."""
        self._state = None
        self._link.send(encode(Status()))

    @property
    def state(self) -> State | None:
        """The relay's answer to `ask_state`; None until it comes (a relay of 1.0 never answers)."""
        return self._state

    def _ask(self, measure: Measure, payload: tuple[bytes, ...], deadline_s: float | None) -> str:
        now_s = time.monotonic()
        if measure.request_id not in self._pending:
            _check(measure, payload)
            pending = _Pending(measure, payload, None, None if deadline_s is None else now_s + deadline_s)
            self._pending[measure.request_id] = pending
            self._send_at(pending, now_s)
            if pending.deadline_s is not None:
                heapq.heappush(self._deadlines, (pending.deadline_s, measure.request_id))
            self._send_due(now_s)
        return measure.request_id

    def poll(self, now_s: float | None = None) -> list[ClientEvent]:
        """Do what is due without blocking, and return what has happened.

        Parameters
        ----------
        now_s
            The caller's time.monotonic(), if it has it.
        """
        now_s = time.monotonic() if now_s is None else now_s
        events: list[ClientEvent] = []
        for link_event in self._link.events():
            events += self._link_event(link_event, now_s)
        # After the events: a relay that is back by itself is left in peace.
        if self._reopen_at_s is not None and now_s >= self._reopen_at_s:
            events += self._reopen(now_s)
        if self._hello_at_s is not None and now_s >= self._hello_at_s:
            self._say_hello(now_s)
        for _ in range(BURST):
            frames = self._link.receive()
            if frames is None:
                break
            try:
                events += self._said(decode(frames, RELAY_TO_JOB), now_s)
            except ProtocolError as error:
                self._last_trouble = f"the relay broke the protocol: {error}"
        events += self._beyond_relay()
        self._send_due(now_s)
        events += self._expire(now_s)
        return events

    def wait(self, most_ms: int) -> None:
        """Wait until `poll` has something to do, or for so long; for whoever has nothing else to wait for."""
        poller = zmq.Poller()  # anew each time: so may the sockets be
        for socket in self.sockets:
            poller.register(socket, zmq.POLLIN)
        poller.poll(most_ms)

    def close(self) -> None:
        """Close the connection. The relay drops what only this job waited for."""
        self._link.close()

    def _wait_for_welcome(self, timeout_s: float) -> None:
        end_s = time.monotonic() + timeout_s
        self.poll()
        while not self._up:
            if self._refused is not None:
                raise KeyRefusedError(self._refused)
            if time.monotonic() > end_s:
                if self._full is not None:
                    raise BridgeUnreachableError(f"relay {self._endpoint} takes no more jobs: {self._full}")
                raise BridgeUnreachableError(
                    f"no relay at {self._endpoint} within {timeout_s:g} s ({self._last_trouble}): "
                    "start it with `edge-bridge relay`, or take its connection file anew"
                )
            self.wait(20)
            self.poll()

    @property
    def _endpoint(self) -> str:
        return self._connection.job_endpoint

    @property
    def _relay_minor(self) -> int:
        return MINOR if self._welcome is None else self._welcome.minor

    def _link_event(self, event: LinkEvent, now_s: float) -> list[ClientEvent]:
        match event:
            case LinkEvent.UP:
                self._hello_at_s, self._reopen_at_s = now_s, None
                self._refused = None
                self._last_trouble = "connected, but no answer"
                return []
            case LinkEvent.NO_HANDSHAKE:
                self._last_trouble = "something answers, but it is not the relay that wrote the connection file"
                return self._down(REFUSED_RETRY_S, now_s)
            case LinkEvent.KEY_REFUSED:
                self._refused = (
                    f"relay {self._endpoint} does not know this job's key: "
                    "add its .pub line, of role job, to the relay's allow-list"
                )
                return self._down(REFUSED_RETRY_S, now_s)
            case LinkEvent.DOWN:
                return self._down(REOPEN_S, now_s)

    def _down(self, reopen_s: float, now_s: float) -> list[ClientEvent]:
        """The relay is not there, or not for this job: connect anew after so long, if it is not back by itself."""
        self._hello_at_s = self._full = None
        self._reopen_in(reopen_s, now_s)
        if not self._up:
            return []
        self._up = False
        return [RelayLost(self._refused or f"connection to {self._endpoint} lost")]

    def _reopen_in(self, seconds: float, now_s: float) -> None:
        self._reopen_at_s = reopen_at(self._reopen_at_s, seconds, now_s, self._jitter)

    def _say_hello(self, now_s: float) -> None:
        versions = {"python": platform.python_version()}
        if self._link.send(encode(Hello(client=platform.node()[:200], versions=versions, minor=MINOR))):
            self._hello_at_s = now_s + HELLO_S * self._jitter.uniform(0.75, 1.0)

    def _said(self, message: Message, now_s: float) -> list[ClientEvent]:  # noqa: PLR0911
        match message.header:
            case Welcome(devices=devices) as welcome:
                self._welcome, self._hello_at_s, self._full = welcome, None, None
                return [*self._stands(now_s), *self._devices_are(devices)]
            case Devices(devices=devices):
                return self._devices_are(devices)
            case State() as state:
                self._state = state
            case Ack(request_id=request_id) if request_id in self._pending:
                self._pending[request_id].send_at_s = None
            case Progress(request_id=request_id) as told if request_id in self._pending:
                return [Progressed(request_id, told.phase, told.device, told.elapsed_s)]
            case Doubt(request_ids=request_ids, detail=detail):
                return [Doubted(tuple(request_ids), detail)]
            case Result(request_id=request_id) as result if request_id in self._pending:
                return [self._result(result)]
            case Failed(request_id=request_id, reason="busy") if request_id in self._pending:
                self._again(self._pending[request_id], now_s)
            case Failed(request_id=request_id, reason=reason, detail=detail) if request_id in self._pending:
                del self._pending[request_id]
                return [MeasurementFailed(request_id, reason, detail)]
            case Error(code="refused", detail=detail):
                self._refused = f"relay {self._endpoint} refuses this job: {detail}"
                return self._down(REFUSED_RETRY_S, now_s)
            case Error(code=code, detail=detail):
                self._full = detail if code == "full" else self._full
                self._last_trouble = f"the relay says {code}: {detail}"
            case Ping() | _:
                pass
        return []

    def _stands(self, now_s: float) -> list[ClientEvent]:
        """The relay has answered on a new connection: what it may have forgotten is sent again."""
        if self._up:
            return []  # an answer to a second HELLO
        for pending in self._pending.values():
            pending.tries = 0
            self._send_at(pending, now_s)
        back = self._was_up
        self._up = self._was_up = True
        return [RelayBack()] if back else []

    def _devices_are(self, devices: list[Profile]) -> list[ClientEvent]:
        if self._devices == tuple(devices):
            return []
        self._devices = tuple(devices)
        return [DevicesChanged(self._devices)]

    def _result(self, result: Result) -> ClientEvent:
        asked = self._pending.pop(result.request_id).measure
        try:
            if asked.work == "quality":
                return Judged(result.request_id, result.decoded_quality())
            return Measured(result.request_id, result.decoded_measurement())
        except ProtocolError as error:
            return MeasurementFailed(result.request_id, "internal", f"the device's answer is malformed: {error}")

    def _beyond_relay(self) -> list[ClientEvent]:
        """Give up what an older relay would pass on in part."""
        minor = self._relay_minor
        if minor >= MINOR:
            return []
        beyond = [each for each, pending in self._pending.items() if pending.measure.needs > minor]
        for request_id in beyond:
            del self._pending[request_id]
        detail = f"the relay speaks version 1.{minor} of the protocol and this needs 1.{MINOR}: update the relay"
        return [MeasurementFailed(each, "unsupported", detail) for each in beyond]

    def _send_at(self, pending: _Pending, at_s: float) -> None:
        pending.send_at_s = at_s
        heapq.heappush(self._to_send, (at_s, pending.measure.request_id))

    def _send_due(self, now_s: float) -> None:
        while self._up and self._to_send and self._to_send[0][0] <= now_s:
            at_s, request_id = self._to_send[0]
            pending = self._pending.get(request_id)
            if pending is not None and pending.send_at_s == at_s:
                if pending.measure.needs > self._relay_minor:
                    return  # `poll` gives it up
                if not self._link.send(encode(pending.measure, pending.payload)):
                    return
                self._send_at(pending, now_s + ACK_S + pending.measure.size_bytes / ACK_BYTES_PER_S)
            # The entry just sent is still in front: what was pushed meanwhile is later.
            heapq.heappop(self._to_send)

    def _again(self, pending: _Pending, now_s: float) -> None:
        """Back off: twice as long each time, and by a random part less, so that jobs do not come in step."""
        wait_s = min(RETRY_MOST_S, RETRY_S * 2**pending.tries)
        pending.tries = min(pending.tries + 1, 16)
        self._send_at(pending, now_s + wait_s * self._jitter.uniform(0.5, 1.0))

    def _expire(self, now_s: float) -> list[ClientEvent]:
        over = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            at_s, request_id = heapq.heappop(self._deadlines)
            pending = self._pending.get(request_id)
            # Another request of this id may have been answered meanwhile, and this one asked anew.
            if pending is not None and pending.deadline_s == at_s:
                over.append(request_id)
                self.cancel(request_id)
        return [MeasurementFailed(each, "deadline", "no answer before the client's deadline") for each in over]

    def _reopen(self, now_s: float) -> list[ClientEvent]:
        """Connect anew, with connection file and key as they are now."""
        self._reopen_at_s = None
        lost = self._down(REOPEN_S, now_s)
        if not self._replace():
            self._link.reopen()
        return lost

    def _replace(self) -> bool:
        """Take another link where connection file or key have changed; say whether they had."""
        if self._access is None:
            return False
        try:
            connection, key = self._access()
            if (connection, key) == (self._connection, self._key):
                return False
            link = _link_of(connection, key)
        except BridgeError as error:
            # The file may be in the middle of its replacement: what was good goes on.
            self._last_trouble = str(error)
            if self._complained != str(error):
                self._complained = str(error)
                log.warning("%s; going on with what it said before", error)
            return False
        self._link.close()
        self._link, self._connection, self._key = link, connection, key
        self._complained = ""
        return True


def _link_of(connection: Connection, key: KeyPair | None) -> Link:
    if connection.relay_public_key is not None and key is None:
        raise KeyRefusedError(
            f"relay {connection.job_endpoint} takes known keys only: name a key file made by `edge-bridge keygen`"
        )
    context: Context = zmq.Context.instance()
    return Link(context, connection.job_endpoint, key, connection.relay_public_key)


def _check_size(size_bytes: int) -> None:
    if not 1 <= size_bytes <= MODEL_LIMIT_BYTES:
        raise UnfitRequestError(f"a payload of {size_bytes} bytes; from 1 to {MODEL_LIMIT_BYTES} are taken")


def _check(measure: Measure, payload: tuple[bytes, ...]) -> None:
    """Refuse what the relay could not decode: it would drop this job, and its other requests with it."""
    try:
        decode(encode(measure, payload), JOB_TO_RELAY)
        if measure.work == "latency":
            measure.decoded_settings()
        else:
            measure.decoded_quality_settings()
    except ProtocolError as error:
        raise UnfitRequestError(f"no relay would take this request: {error}") from None
