"""A relay worked by hand: a real socket that a device agent connects to, and on which a test says what it likes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TypeVar

import zmq
from bridge_processes import LIMIT_S

from edge_bridge.wire.keys import Connection, write_connection
from edge_bridge.wire.protocol import (
    DEVICE_TO_RELAY,
    MINOR,
    Header,
    Measure,
    Pong,
    Register,
    Registered,
    cut,
    decode,
    encode,
    task_of,
)

H = TypeVar("H", bound=Header)


class HandRelay:
    """Listens on a private socket in this folder, which must be short; BRIDGE.json is written there."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "BRIDGE.json"
        self._endpoint = f"ipc://{folder}/device"
        write_connection(
            self.file,
            Connection(protocol="MPINAS-EDGE/1", job_endpoint=f"ipc://{folder}/job", device_endpoint=self._endpoint),
        )
        self._context = zmq.Context()
        self._peer = b""
        self.open()

    def open(self) -> None:
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.bind(self._endpoint)

    def close(self) -> None:
        self._socket.close(0)

    def destroy(self) -> None:
        self._context.destroy(linger=0)

    def next(self, kind: type[H], within_s: float = LIMIT_S) -> H:
        """Next message of this kind; others before it are passed over."""
        found = self.within(kind, within_s)
        assert found is not None, f"no {kind.__name__} within {within_s} s"
        return found

    def within(self, kind: type[H], within_s: float) -> H | None:
        """The same, or None."""
        end_s = time.monotonic() + within_s
        while self._socket.poll(max(0, round((end_s - time.monotonic()) * 1000))):
            self._peer, *frames = self._socket.recv_multipart()
            header = decode(frames, DEVICE_TO_RELAY).header
            if isinstance(header, kind):
                return header
        return None

    def say(self, header: Header, payload: tuple[bytes, ...] = ()) -> None:
        self.say_frames(encode(header, payload))

    def say_frames(self, frames: list[bytes]) -> None:
        self._socket.send_multipart([self._peer, *frames])

    def welcome(self, minor: int = MINOR) -> Register:
        """Take the device that comes next."""
        register = self.next(Register)
        self.say(Registered(versions={}, minor=minor))
        return register

    def give(self, measure: Measure, payload: bytes) -> str:
        self.say(task_of(measure), cut(payload))
        return measure.request_id


def pong_of(relay: HandRelay) -> Pong:
    """What shows that the agent still listens."""
    return relay.next(Pong)
