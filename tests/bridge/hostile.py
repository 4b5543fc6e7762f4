"""Messages that are nearly right, and peers that send them: what `test_hostile.py` and `benchmarks/bridge_hostile.py`
throw at a relay and at a device.

A mutation takes a valid message and spoils it in one to three ways. Some stay valid: those have to be harmless too.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zmq

from edge_bridge.errors import ProtocolError
from edge_bridge.wire import protocol as wire
from edge_bridge.wire.keys import KeyPair
from edge_bridge.wire.protocol import Error, Header, decode, encode
from edge_bridge.wire.quantities import Measurement, Profile, QualitySettings, Settings, Shard

ID = "ab" * 32
PROFILE = Profile(name="dut", hardware="box", runtime="onnxruntime", provider="cpu", versions={"onnxruntime": "1"})
MEASUREMENT = Measurement(
    p50_s=0.001, p90_s=0.002, p95_s=0.003, p99_s=0.004, mean_s=0.0012, min_s=0.0005, samples=64,
    coefficient_of_variation=0.1, complete=True, unsteady=False, warmup_runs=15, warmup_settled=True, load_s=0.1,
    batch=1, input_shape=[1, 16], input_type="float32", threads=1, peak_memory_bytes=1000, device="dut",
    hardware="box", runtime="onnxruntime", provider="cpu", versions={},
)  # fmt: skip
MODEL, SHARD = b"no model at all", b"\0" * 24
_MEASURE = wire.measure_of(MODEL, Settings())
_JUDGE = wire.judge_of(
    MODEL,
    SHARD,
    QualitySettings(shard=Shard(sha256=ID, input_shape=(2, 2), input_type="float32", target_shape=(2, 1))),
)
_RESULT = wire.Result(request_id=ID, measurement=msgspec.Raw(msgspec.json.encode(MEASUREMENT)))
_STATE = wire.State(
    devices=[], jobs=[], queued=0, running=0, bytes_held=0, answered_per_minute=0, uptime_s=1.0, last_error="",
    last_error_ago_s=None,
)  # fmt: skip
#: One valid message of every type, by direction.
VALID: dict[str, list[list[bytes]]] = {
    "job to relay": [
        encode(wire.Hello(client="me", versions={}, minor=1)),
        encode(_MEASURE, [MODEL]),
        encode(_JUDGE, [MODEL, SHARD]),
        encode(wire.Cancel(request_id=ID)),
        encode(wire.Status()),
    ],
    "relay to job": [
        encode(wire.Welcome(devices=[PROFILE], jobs=1, queued=2, running=3, uptime_s=4.5, versions={}, minor=1)),
        encode(wire.Devices(devices=[PROFILE])),
        encode(_STATE),
        encode(wire.Ack(request_id=ID)),
        encode(wire.Progress(request_id=ID, phase="warming", device="dut")),
        encode(_RESULT),
        encode(wire.Doubt(request_ids=[ID], detail="hot")),
        encode(wire.Failed(request_id=ID, reason="time-out", detail="slow")),
        encode(wire.Error(code="malformed", detail="what")),
        encode(wire.Ping()),
    ],
    "device to relay": [
        encode(wire.Register(profile=PROFILE, instance="one", busy_with=ID, device_id="disk", minor=1)),
        encode(wire.Progress(request_id=ID, phase="loading")),
        encode(_RESULT),
        encode(wire.Doubt(request_ids=[ID], detail="hot")),
        encode(wire.Failed(request_id=ID, reason="crashed", detail="gone")),
        encode(wire.Pong()),
    ],
    "relay to device": [
        encode(wire.Registered(versions={}, minor=1)),
        encode(wire.task_of(_MEASURE), [MODEL]),
        encode(wire.task_of(_JUDGE), [MODEL, SHARD]),
        encode(wire.Cancel(request_id=ID)),
        encode(wire.Ping()),
        encode(wire.Error(code="unregistered", detail="who")),
    ],
}
DIRECTIONS: dict[str, Mapping[bytes, type[Header]]] = {
    "job to relay": wire.JOB_TO_RELAY,
    "relay to job": wire.RELAY_TO_JOB,
    "device to relay": wire.DEVICE_TO_RELAY,
    "relay to device": wire.RELAY_TO_DEVICE,
}
_TAGS = sorted({tag for direction in DIRECTIONS.values() for tag in direction})
#: JSON that a field may be given instead of what belongs there.
NASTY = [
    b"null", b"true", b"-1", b"0", b"1.5", b"-0.0", b"9223372036854775808", b"1" + b"0" * 400, b"1e400", b"NaN",
    b"Infinity", b"-Infinity", b'""', b'"\\u0000"', b'"\\ud800"', b'"\xff\xfe"', b'"' + b"a" * 5000 + b'"', b"[]",
    b"{}", b"[[[[[[[[]]]]]]]]", b'{"":{}}', b"[" * 3000 + b"]" * 3000, b'{"a":' * 3000 + b"1" + b"}" * 3000,
    b'"any"', b'"' + b"0" * 64 + b'"', b'"' + b"G" * 64 + b'"', b"[1,2,3]", b"4611686018427387904", b"1e308",
    b'"../../etc/passwd"', b'"<b>\\u001b[2J"', b"536870912", b"536870913",
]  # fmt: skip


def mutate(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    """Spoil a message in one to three ways."""
    frames = list(frames)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        frames = rng.choice(_WAYS)(rng, frames)
    return frames


def _some(rng: random.Random, frames: list[bytes]) -> int:
    return rng.randrange(len(frames)) if frames else 0


def _flip(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    index = _some(rng, frames)
    if frames and frames[index]:
        spoilt = bytearray(frames[index])
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        frames[index] = bytes(spoilt)
    return frames


def _shorten(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    index = _some(rng, frames)
    if frames:
        frames[index] = frames[index][: rng.randint(0, len(frames[index]))]
    return frames


def _swap(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    rng.shuffle(frames)
    return frames


def _drop(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    del frames[_some(rng, frames) : _some(rng, frames) + 1]
    return frames or [b""]


def _repeat(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    frames.insert(_some(rng, frames), frames[_some(rng, frames)] if frames else b"")
    return frames


def _add(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    frames.insert(_some(rng, frames), rng.randbytes(rng.choice((0, 1, 7, 300, 20_000))))
    return frames


def _retype(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    frames[1:2] = [rng.choice([*_TAGS, b"", b"hello", b"HELLO\0", rng.randbytes(30)])]
    return frames


def _reversion(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    frames[:1] = [rng.choice([b"MPINAS-EDGE/2", b"MPINAS-EDGE/1\0", b"", b"GET / HTTP/1.1\r\n", rng.randbytes(5000)])]
    return frames


def _field(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    """Give one field, perhaps one further inside, another value; or name it twice; or add one."""
    try:
        header = json.loads(frames[2])
    except (ValueError, IndexError, RecursionError):
        return frames
    if not isinstance(header, dict):
        return frames
    inside = header
    while (inner := [each for each in inside.values() if isinstance(each, dict)]) and rng.random() < 0.5:
        inside = rng.choice(inner)
    name = rng.choice([*inside, "unheard_of"])
    inside[name] = "@@"
    spoilt = json.dumps(header).encode()
    value = rng.choice(NASTY)
    if rng.random() < 0.2:
        value = value + b', "' + name.encode() + b'": ' + rng.choice(NASTY)
    frames[2] = spoilt.replace(b'"@@"', value)
    return frames


def _reheader(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    frames[2:3] = [rng.choice([*NASTY, b"", b"{", b'{"a":1}' * 2, b"\x80\x04K\x01.", b"{}" + b" " * (1 << 20)])]
    return frames


_WAYS: list[Callable[[random.Random, list[bytes]], list[bytes]]] = [
    _flip, _flip, _shorten, _swap, _drop, _repeat, _add, _retype, _reversion, _field, _field, _field, _field, _reheader,
]  # fmt: skip


def is_message(frames: list[bytes], direction: str) -> bool:
    """Whether it is still one; anything but ProtocolError for what is none goes up."""
    try:
        decode(frames, DIRECTIONS[direction])
    except ProtocolError:
        return False
    return True


@dataclass(slots=True)
class Tally:
    """What a flood has done."""

    frames: int = 0
    connections: int = 0
    refused: int = 0


#: Spoilt messages on one connection; with the question behind them these are the ten that a relay bears.
PER_CONNECTION = 9


def flood_relay(
    endpoint: str,
    key: KeyPair,
    relay_public_key: str,
    direction: str,
    count: int,
    rng: random.Random,
    at_once: int = 8,
    limit_s: float = 600.0,
) -> Tally:
    """Send so many spoilt messages to a relay, from peers with an allowed key, each of which waits until it was read.

    A peer sends nine, and then a tenth whose refusal it must hear: so it is known that the relay has read them all.
    """
    tally = Tally()
    poller = zmq.Poller()
    waiting: dict[zmq.Socket[bytes], bytes] = {}
    end_s = time.monotonic() + limit_s
    try:
        while tally.frames < count or waiting:
            while tally.frames < count and len(waiting) < at_once:
                socket = dealer(endpoint, key, relay_public_key)
                for _ in range(PER_CONNECTION):
                    frames = mutate(rng, rng.choice(VALID[direction]))
                    socket.send_multipart(frames)
                    tally.frames += 1
                question = b"QUESTION-%d" % tally.connections
                socket.send_multipart([question, b"X", b"{}"])
                tally.connections += 1
                waiting[socket] = question
                poller.register(socket, zmq.POLLIN)
            assert time.monotonic() < end_s, f"the relay answers no more: {tally}"
            for socket, _ in poller.poll(1000):
                header = decode(socket.recv_multipart(), {**wire.RELAY_TO_JOB, **wire.RELAY_TO_DEVICE}).header
                if not isinstance(header, Error):
                    continue
                if waiting[socket].decode() in header.detail:
                    poller.unregister(socket)
                    socket.close(0)
                    del waiting[socket]
                elif header.code in ("malformed", "version"):
                    tally.refused += 1
    finally:
        for socket in waiting:
            socket.close(0)
    return tally


def dealer(endpoint: str | None, key: KeyPair | None, relay_public_key: str) -> zmq.Socket[bytes]:
    """A peer of the relay that is not held to anything; plain without a key. None: not connected yet."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    if key is not None:
        socket.curve_secretkey = key.secret.encode()
        socket.curve_publickey = key.public.encode()
        socket.curve_serverkey = relay_public_key.encode()
    if endpoint is not None:
        socket.connect(endpoint)
    return socket


class HostileRelay:
    """A ROUTER with the relay's key that says to its devices what it likes."""

    def __init__(self, key: KeyPair) -> None:
        self._key = key
        self._endpoint = "tcp://127.0.0.1:*"
        self._socket = self._bound()
        self._endpoint = self._socket.getsockopt(zmq.LAST_ENDPOINT).decode().rstrip("\0")

    @property
    def endpoint(self) -> str:
        return self._endpoint

    def flood(self, rng: random.Random, count: int, limit_s: float = 300.0) -> Tally:
        """Send so many spoilt messages to the device that is connected, and see after every nine that it still answers.

        The connection is broken each time, before the device would do so and stay away for a while.
        """
        tally = Tally()
        end_s = time.monotonic() + limit_s
        while tally.frames < count:
            peer = self._hear(b"REGISTER", end_s)
            tally.connections += 1
            if tally.connections == 1 or rng.random() < 0.8:
                self._socket.send_multipart([peer, *encode(wire.Registered(versions={}, minor=rng.choice((0, 1))))])
            broken = 0
            while broken < PER_CONNECTION and tally.frames < count:
                frames = mutate(rng, rng.choice(VALID["relay to device"]))
                if frames[1:2] == [b"ERROR"] and b"refused" in frames[-1]:
                    continue  # would be believed, and rightly end an agent that was never registered
                broken += not is_message(frames, "relay to device")
                self._socket.send_multipart([peer, *frames])
                tally.frames += 1
            tally.refused += broken
            self._socket.send_multipart([peer, *encode(wire.Ping())])
            self._hear(b"PONG", end_s)
            self._socket.close(0)
            self._socket = self._bound()
        return tally

    def close(self) -> None:
        self._socket.close(0)

    def _hear(self, wanted: bytes, end_s: float) -> bytes:
        """Peer that says what is wanted; whatever else is said is passed over."""
        while time.monotonic() < end_s:
            if self._socket.poll(1000):
                peer, _, tag, *_ = self._socket.recv_multipart()
                if tag == wanted:
                    return peer
        raise AssertionError(f"no {wanted.decode()} from the device")

    def _bound(self) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        socket.linger = 0
        socket.curve_secretkey = self._key.secret.encode()
        socket.curve_publickey = self._key.public.encode()
        socket.curve_server = True
        end_s = time.monotonic() + 10.0
        while True:
            try:
                socket.bind(self._endpoint)
                return socket
            except zmq.ZMQError:  # the one before is still being closed, by a thread of ZeroMQ's
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.005)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no memory")
