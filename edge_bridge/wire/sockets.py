"""How the bridge's sockets are set up, and what is to be heard about their connections.

One owner for every socket option: heartbeats, CURVE, limits. Must not know messages.
"""

from __future__ import annotations

import contextlib
import enum
import random
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from edge_bridge.errors import BridgeUnreachableError
from edge_bridge.wire.keys import KeyPair
from edge_bridge.wire.ports import lasting_ports
from edge_bridge.wire.protocol import FRAME_LIMIT_BYTES

HEARTBEAT_MS = 500
HEARTBEAT_TIMEOUT_MS = 1500
RECONNECT_MS = 100
RECONNECT_MOST_MS = 2000
#: A connection that does not come about is begun anew: after a long cut the kernel's own back-off would be waited out.
CONNECT_TIMEOUT_MS = 1500
HANDSHAKE_TIMEOUT_MS = 3000
#: Who uses a link opens it anew when it has not been up for so long, by up to a quarter less: after bytes that are no
#: ZeroMQ, or a frame beyond the limit, ZeroMQ does not try again, and nothing tells that from a relay that is away.
#: Never shorter than one whole attempt (connection and handshake), which would be cut off each time.
REOPEN_S = 6.0
#: Lasting ports that are tried before any is taken.
PORTS_TRIED = 1000

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]
#: Messages taken at once, so that a relay that never stops talking does not keep job or agent from its work.
BURST = 64


def reopen_at(planned_s: float | None, seconds: float, now_s: float, jitter: random.Random) -> float:
    """When to open a link anew: after so long, or a quarter less, if that is not planned for sooner already."""
    at_s = now_s + seconds * jitter.uniform(0.75, 1.0)
    return at_s if planned_s is None else min(planned_s, at_s)


class LinkEvent(enum.Enum):
    """What a monitored connection has done."""

    UP = "up"
    DOWN = "down"
    KEY_REFUSED = "key refused"
    NO_HANDSHAKE = "no handshake"


_EVENTS = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: LinkEvent.UP,
    zmq.EVENT_DISCONNECTED: LinkEvent.DOWN,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: LinkEvent.KEY_REFUSED,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: LinkEvent.NO_HANDSHAKE,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: LinkEvent.NO_HANDSHAKE,
}


def _common(socket: Socket) -> None:
    socket.linger = 0
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, FRAME_LIMIT_BYTES)
    socket.setsockopt(zmq.IPV6, 1)


def bound_router(context: Context, key: KeyPair | None, zap_domain: str) -> Socket:
    """ROUTER for one side of the relay, not bound yet. With a key it speaks CURVE and asks ZAP, always."""
    socket = context.socket(zmq.ROUTER)
    _common(socket)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    # More than a job with 10,000 requests is ever owed at once; one that reads nothing is given up beyond that.
    socket.setsockopt(zmq.SNDHWM, 100_000)
    if key is not None:
        socket.curve_secretkey = key.secret.encode()
        socket.curve_publickey = key.public.encode()
        socket.curve_server = True
        socket.setsockopt_string(zmq.ZAP_DOMAIN, zap_domain)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    return socket


def bind(socket: Socket, endpoint: str) -> None:
    """Listen. Port 0 stands for one that will be free when it is wanted again, or for any if there is none such."""
    address, _, port = endpoint.rpartition(":")
    lasting = lasting_ports()
    if port == "0" and lasting:
        with contextlib.suppress(zmq.ZMQBindError):  # all that were tried are taken
            socket.bind_to_random_port(address, lasting.start, lasting.stop, PORTS_TRIED)
            return
    socket.bind(endpoint)


class Link:
    """A DEALER that connects out to the relay, and its monitor.

    Parameters
    ----------
    endpoint
        Where the relay listens.
    key, relay_public_key
        Both for CURVE, both None for a private ipc socket.
    """

    def __init__(self, context: Context, endpoint: str, key: KeyPair | None, relay_public_key: str | None) -> None:
        self.endpoint = endpoint
        self.socket: Socket = context.socket(zmq.DEALER)
        _common(self.socket)
        # Send only into a connection that stands: nothing waits in a pipe to arrive a second time.
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MOST_MS)
        self.socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_TIMEOUT_MS)
        if key is not None and relay_public_key is not None:
            self.socket.curve_secretkey = key.secret.encode()
            self.socket.curve_publickey = key.public.encode()
            self.socket.curve_serverkey = relay_public_key.encode()
        self.monitor: Socket = self.socket.get_monitor_socket(sum(_EVENTS))
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise BridgeUnreachableError(
                f"relay endpoint {endpoint}: {error.strerror}, check the connection file"
            ) from None

    def events(self) -> list[LinkEvent]:
        """What has happened to the connection since the last call."""
        happened = []
        while self.monitor.poll(0):
            parsed: dict[str, Any] = dict(parse_monitor_message(self.monitor.recv_multipart()))
            event = _EVENTS.get(parsed["event"])
            if event is not None:
                happened.append(event)
        return happened

    def reopen(self) -> None:
        """Connect anew, on the same sockets; no event tells of the end of the old connection."""
        with contextlib.suppress(zmq.ZMQError):  # ENOENT: ZeroMQ has already dropped the endpoint
            self.socket.disconnect(self.endpoint)
        self.socket.connect(self.endpoint)

    def send(self, frames: list[bytes]) -> bool:
        """Send if the connection stands and has room; say whether it did."""
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK, copy=sum(map(len, frames)) < 65536)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[bytes] | None:
        """Frames of the next message, or None."""
        try:
            return self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def close(self) -> None:
        """Close both sockets; those that are closed stay so."""
        if not self.socket.closed:
            self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)
