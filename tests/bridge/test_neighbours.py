"""Peers of protocol 1.0, as the bytes that they sent: today's relay, client and device talk with them."""

from __future__ import annotations

import json

import zmq
from bridge_processes import LIMIT_S, Bridge, until

from edge_bridge.client import BridgeClient, Measured, MeasurementFailed
from edge_bridge.wire.protocol import RELAY_TO_DEVICE, RELAY_TO_JOB, Registered, Task, Welcome, decode
from edge_bridge.wire.quantities import Settings

PROFILE = {
    "name": "old",
    "hardware": "box",
    "runtime": "onnxruntime",
    "provider": "cpu",
    "versions": {"python": "3.10"},
}
MEASUREMENT = {
    "p50_s": 0.001, "p90_s": 0.002, "p95_s": 0.002, "p99_s": 0.003, "mean_s": 0.001, "min_s": 0.001, "samples": 64,
    "coefficient_of_variation": 0.1, "complete": True, "unsteady": False, "warmup_runs": 10, "warmup_settled": True,
    "load_s": 0.1, "batch": 1, "input_shape": [1, 16], "input_type": "float32", "threads": 1, "peak_memory_bytes": 0,
    "device": "old", "hardware": "box", "runtime": "onnxruntime", "provider": "cpu", "versions": {"python": "3.10"},
}  # fmt: skip


def _dealer(bridge: Bridge, endpoint: str, name: str) -> zmq.Socket[bytes]:
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    key, relay_key = bridge.key(name), bridge.connection.relay_public_key
    assert relay_key is not None
    socket.curve_publickey, socket.curve_secretkey = key.public.encode(), key.secret.encode()
    socket.curve_serverkey = relay_key.encode()
    socket.connect(endpoint)
    return socket


def _say(socket: zmq.Socket[bytes], tag: bytes, header: dict[str, object]) -> None:
    socket.send_multipart([b"MPINAS-EDGE/1", tag, json.dumps(header).encode()])


def _next(socket: zmq.Socket[bytes]) -> list[bytes]:
    """Next message that is not a ping."""
    while True:
        assert socket.poll(LIMIT_S * 1000)
        frames = socket.recv_multipart()
        if frames[1] != b"PING":
            return frames


def test_a_device_of_1_0_measures_what_it_understands(bridge: Bridge):
    bridge.relay()
    device = _dealer(bridge, bridge.connection.device_endpoint, "device")
    _say(device, b"REGISTER", {"profile": PROFILE, "instance": "old one", "busy_with": None})
    assert isinstance(decode(_next(device), RELAY_TO_DEVICE).header, Registered)
    client = bridge.client()
    client.submit(b"batches are beyond it", Settings(batches=(1, 8)))
    wanted = client.submit(b"a model", Settings())
    frames = _next(device)
    task = decode(frames, RELAY_TO_DEVICE)
    assert isinstance(task.header, Task)
    assert (task.header.request_id, task.payload) == (wanted, (b"a model",))
    assert {"request_id", "model_sha256", "size_bytes", "profile", "settings"} <= json.loads(frames[2]).keys()
    _say(device, b"PROGRESS", {"request_id": wanted, "phase": "measuring", "device": ""})
    _say(device, b"RESULT", {"request_id": wanted, "measurement": MEASUREMENT})
    found = until(client, lambda event: isinstance(event, Measured))[-1]
    assert isinstance(found, Measured)
    assert (found.measurement.p50_s, found.measurement.interval_s, found.measurement.doubts()) == (0.001, None, [])
    client.close()
    device.close()


def test_a_job_of_1_0_is_served(bridge: Bridge):
    bridge.relay()
    job = _dealer(bridge, bridge.connection.job_endpoint, "job")
    _say(job, b"HELLO", {"client": "old", "versions": {}})
    frames = _next(job)
    assert isinstance(decode(frames, RELAY_TO_JOB).header, Welcome)
    assert {"devices", "jobs", "queued", "running", "uptime_s", "versions"} <= json.loads(frames[2]).keys()
    job.close()


def test_a_relay_of_1_0_is_not_asked_for_what_it_would_pass_on_in_part(bridge: Bridge):
    bridge.relay()
    connection = bridge.connection
    server = zmq.Context.instance().socket(zmq.ROUTER)
    server.linger = 0
    relay_key = bridge.key("relay")
    server.curve_server = True
    server.curve_publickey, server.curve_secretkey = relay_key.public.encode(), relay_key.secret.encode()
    port = server.bind_to_random_port("tcp://127.0.0.1")
    here = type(connection)(
        protocol=connection.protocol,
        job_endpoint=f"tcp://127.0.0.1:{port}",
        device_endpoint=connection.device_endpoint,
        relay_public_key=relay_key.public,
    )
    client = BridgeClient(here, bridge.key())
    while not server.poll(50):
        client.poll()
    peer, *hello = server.recv_multipart()
    assert hello[1] == b"HELLO"
    welcome = {"devices": [PROFILE], "jobs": 1, "queued": 0, "running": 0, "uptime_s": 1.0, "versions": {}}
    server.send_multipart([peer, b"MPINAS-EDGE/1", b"WELCOME", json.dumps(welcome).encode()])
    beyond = client.submit(b"model", Settings(batches=(1, 2)))
    failed = until(client, lambda event: isinstance(event, MeasurementFailed))[-1]
    assert isinstance(failed, MeasurementFailed)
    assert (failed.request_id, failed.reason) == (beyond, "unsupported")
    assert "update the relay" in failed.detail
    plain = client.submit(b"model", Settings())
    client.poll()
    assert server.poll(LIMIT_S * 1000)
    assert json.loads(server.recv_multipart()[3])["request_id"] == plain
    client.close()
    server.close()
