"""Hostile input: spoilt messages, peers that may not be here, frames too large. Refused, and the service goes on."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from pathlib import Path

import bridge_models as models
import msgspec
import pytest
import zmq
from bridge_processes import LIMIT_S, Bridge, until
from hostile import (
    DIRECTIONS,
    MODEL,
    VALID,
    HostileRelay,
    dealer,
    flood_relay,
    is_message,
    mutate,
    resident_bytes,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_bridge.client import BridgeClient, Measured, MeasurementFailed
from edge_bridge.device.tasks import job_of
from edge_bridge.errors import KeyRefusedError, ProtocolError
from edge_bridge.relay.core import Relay
from edge_bridge.relay.events import DeviceSaid, JobSaid, Tick
from edge_bridge.relay.records import Limits
from edge_bridge.wire import protocol as wire
from edge_bridge.wire.keys import Connection, write_connection
from edge_bridge.wire.protocol import Measure, Result, broken_identity, decode, encode
from edge_bridge.wire.quantities import Settings

pytestmark = pytest.mark.timeout(120)
QUICK = Settings(min_seconds=0.01, max_seconds=5.0, warmup_max_seconds=0.1, attempts=1)
#: A spoilt message costs nothing that stays; what a process's allocator and logs add is below this.
GROWTH_BYTES = 32 << 20


@pytest.mark.parametrize("direction", DIRECTIONS)
@given(st.integers(0, 2**62))
@settings(max_examples=300, deadline=None)
def test_a_spoilt_message_is_a_protocol_error_or_a_message(direction, seed):
    rng = random.Random(seed)
    frames = mutate(rng, rng.choice(VALID[direction]))
    with contextlib.suppress(ProtocolError):
        message = decode(frames, DIRECTIONS[direction])
        if isinstance(message.header, Result):
            message.header.decoded_measurement()
        if isinstance(message.header, Measure):
            broken_identity(message.header, message.payload)


@given(st.dictionaries(st.text(max_size=12), st.recursive(st.none() | st.booleans() | st.floats() | st.text(),
       lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
       max_leaves=8), max_size=5), st.integers(0, 2**32))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_any_json_in_any_field_is_a_protocol_error_or_a_message(extra, seed):
    rng = random.Random(seed)
    for direction, messages in VALID.items():
        frames = list(rng.choice(messages))
        header = {**msgspec.json.decode(frames[2]), **extra}
        for name in extra:
            header[rng.choice(list(header))] = extra[name]
        frames[2] = msgspec.json.encode(header)
        assert is_message(frames, direction) in (True, False)


def test_the_relays_decisions_survive_what_is_still_a_message():
    rng = random.Random(1)
    relay = Relay(Limits(requests=20, bytes_held=10_000, jobs=4, devices=4), 0.0)
    handled = 0
    for number in range(5000):
        now_s = number * 0.01
        peer = b"peer%d" % rng.randrange(8)
        direction = rng.choice(("job to relay", "device to relay"))
        frames = mutate(rng, rng.choice(VALID[direction]))
        if is_message(frames, direction):
            handled += 1
            message = decode(frames, DIRECTIONS[direction])
            said = JobSaid if direction == "job to relay" else DeviceSaid
            for command in relay.handle(said(peer, "somebody", message), now_s):
                if hasattr(command, "header"):
                    encode(command.header, command.payload)
        relay.handle(Tick(), now_s)
    assert handled > 500
    jobs, devices = relay.peers()
    assert len(jobs) <= 4
    assert len(devices) <= 4


def test_a_devices_tasks_survive_what_is_still_a_message():
    rng = random.Random(2)
    taken = 0
    for _ in range(3000):
        frames = mutate(rng, rng.choice(VALID["relay to device"]))
        if is_message(frames, "relay to device"):
            message = decode(frames, wire.RELAY_TO_DEVICE)
            if isinstance(message.header, wire.Task):
                taken += 1
                job_of(message.header, message)
    assert taken > 100


def test_a_job_survives_a_hostile_relay(tmp_path: Path):
    rng = random.Random(3)
    context = zmq.Context.instance()
    relay = context.socket(zmq.ROUTER)
    relay.linger = 0
    relay.bind(f"ipc://{tmp_path}/job")
    connection = Connection(
        protocol="MPINAS-EDGE/1", job_endpoint=f"ipc://{tmp_path}/job", device_endpoint=f"ipc://{tmp_path}/device"
    )
    client = BridgeClient(connection, None)
    try:
        wanted = client.submit(MODEL, Settings())
        end_s = time.monotonic() + LIMIT_S
        while not relay.poll(20):
            assert time.monotonic() < end_s
            client.poll()
        peer = relay.recv_multipart()[0]
        relay.send_multipart([peer, *VALID["relay to job"][0]])
        for _ in range(1000):
            relay.send_multipart([peer, *mutate(rng, rng.choice(VALID["relay to job"]))])
            client.poll()
        failed = wire.Failed(request_id=wanted, reason="bad-model", detail="it is none")
        relay.send_multipart([peer, *encode(failed)])
        failures = [each for each in until(client, _ended) if _ended(each)]
        assert failures == [MeasurementFailed(wanted, "bad-model", "it is none")]
    finally:
        client.close()
        relay.close()


def test_a_relay_bears_spoilt_messages_of_jobs_and_devices(bridge: Bridge):
    relay = bridge.relay()
    flood_relay(*_job_side(bridge), "job to relay", 40, random.Random(4))
    before_bytes = resident_bytes(relay.popen.pid)
    for side in (_job_side(bridge), _device_side(bridge)):
        direction = "job to relay" if side[0] == bridge.connection.job_endpoint else "device to relay"
        tally = flood_relay(*side, direction, 250, random.Random(5))
        assert tally.refused > tally.frames / 3
    assert resident_bytes(relay.popen.pid) - before_bytes < GROWTH_BYTES
    _served(bridge)
    text = relay.log.read_text()
    assert "Traceback" not in text
    assert bridge.key("job").public in text
    assert bridge.key("device").public in text
    # At most so many lines about one key, whatever it sends.
    assert sum("broke the protocol" in line for line in text.splitlines()) <= 60
    assert relay.terminate() == 0


def test_a_device_bears_spoilt_messages_of_its_relay(bridge: Bridge, tmp_path: Path):
    hostile = HostileRelay(bridge.key("relay"))
    connection = Connection(
        protocol="MPINAS-EDGE/1",
        job_endpoint=hostile.endpoint,
        device_endpoint=hostile.endpoint,
        relay_public_key=bridge.key("relay").public,
    )
    write_connection(bridge.file, connection)
    device = bridge.device()
    hostile.flood(random.Random(6), 20)
    before_bytes = resident_bytes(device.popen.pid)
    tally = hostile.flood(random.Random(7), 150)
    assert tally.refused > 50
    assert resident_bytes(device.popen.pid) - before_bytes < GROWTH_BYTES
    assert "Traceback" not in device.log.read_text()
    hostile.close()
    assert device.terminate() == 0


def test_a_frame_beyond_the_limit_ends_its_connection_and_nothing_else(bridge: Bridge):
    relay = bridge.relay()
    before_bytes = resident_bytes(relay.popen.pid)
    large = dealer(*_job_side(bridge))
    monitor = large.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    large.send_multipart([b"MPINAS-EDGE/1", b"HELLO", b" " * (9 << 20)])
    assert monitor.poll(LIMIT_S * 1000), "the connection is still there"
    large.disable_monitor()
    monitor.close(0)
    large.close(0)
    assert resident_bytes(relay.popen.pid) - before_bytes < GROWTH_BYTES
    _served(bridge)


def test_a_key_opens_the_side_of_its_role_and_no_other(bridge: Bridge):
    relay = bridge.relay()
    for endpoint, key in ((bridge.connection.device_endpoint, "job"), (bridge.connection.job_endpoint, "device")):
        assert _handshake(endpoint, bridge, key) == zmq.EVENT_HANDSHAKE_FAILED_AUTH
        assert bridge.key(key).public in relay.log.read_text()
    with pytest.raises(KeyRefusedError, match="does not know this job's key"):
        bridge.client("device")
    assert bridge.device(key="job").popen.wait(LIMIT_S) == 2
    _served(bridge)


def test_bytes_that_are_no_zeromq_reach_nobody(bridge: Bridge):
    relay = bridge.relay()
    rng = random.Random(8)
    for endpoint in (bridge.connection.job_endpoint, bridge.connection.device_endpoint):
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        for _ in range(20):
            with socket.create_connection((host, int(port)), LIMIT_S) as raw:
                # A greeting that begins well, or not at all.
                head = rng.choice((b"", b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0CURVE", b"GET / HTTP/1.1\r\n\r\n"))
                raw.sendall(head + rng.randbytes(rng.randrange(1, 2000)))
    _served(bridge)
    assert "Traceback" not in relay.log.read_text()


def _served(bridge: Bridge) -> None:
    """An honest job has its model measured by an honest device."""
    device = bridge.device()
    client = bridge.client()
    client.submit(models.linear(), QUICK)
    assert isinstance(until(client, _ended)[-1], Measured)
    client.close()
    assert device.terminate() == 0


def _ended(event: object) -> bool:
    return isinstance(event, Measured | MeasurementFailed)


def _job_side(bridge: Bridge):
    return bridge.connection.job_endpoint, bridge.key("job"), bridge.key("relay").public


def _device_side(bridge: Bridge):
    return bridge.connection.device_endpoint, bridge.key("device"), bridge.key("relay").public


def _handshake(endpoint: str, bridge: Bridge, key: str) -> int:
    """How the handshake with this key ends, as an event of ZeroMQ's monitor."""
    knocking = dealer(None, bridge.key(key), bridge.key("relay").public)
    monitor = knocking.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    knocking.connect(endpoint)  # only now: a handshake may be over at once
    assert monitor.poll(LIMIT_S * 1000)
    event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
    knocking.disable_monitor()
    monitor.close(0)
    knocking.close(0)
    return event
