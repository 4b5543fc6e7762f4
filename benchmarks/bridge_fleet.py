"""A fleet of devices in one process: real connections and messages, and an answer at once instead of a measurement.

Used by bridge.py to load a relay with more devices than this machine could run agents for.
Run as ``python benchmarks/bridge_fleet.py BRIDGE.json KEY DEVICES``; ends with its standard input.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import zmq

from edge_bridge.wire.keys import read_connection, read_key_pair
from edge_bridge.wire.protocol import RELAY_TO_DEVICE, Ping, Pong, Register, Result, Task, decode, encode
from edge_bridge.wire.quantities import Measurement, Profile
from edge_bridge.wire.sockets import Link, LinkEvent

ANSWER = Measurement(
    p50_s=1e-3, p90_s=1e-3, p95_s=1e-3, p99_s=1e-3, mean_s=1e-3, min_s=1e-3, samples=64, coefficient_of_variation=0.0,
    complete=True, unsteady=False, warmup_runs=1, warmup_settled=True, batch=1, input_shape=[1], load_s=0.0,
    input_type="float32", threads=1, peak_memory_bytes=0, device="fleet", hardware="none: answers at once",
    runtime="none", provider="none", versions={},
)  # fmt: skip


def main() -> None:
    connection, key = read_connection(Path(sys.argv[1])), read_key_pair(Path(sys.argv[2]))
    context = zmq.Context()
    links = [
        Link(context, connection.device_endpoint, key, connection.relay_public_key) for _ in range(int(sys.argv[3]))
    ]
    raw = msgspec.Raw(msgspec.json.encode(ANSWER))
    profile = Profile(name="fleet", hardware="none", runtime="none", provider="none", versions={})
    poller = zmq.Poller()
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    by_socket = {}
    for link in links:
        for socket in (link.socket, link.monitor):
            poller.register(socket, zmq.POLLIN)
            by_socket[socket] = link
    registered = 0
    while True:
        for ready, _ in poller.poll():
            link = by_socket.get(ready)
            if link is None:
                if not sys.stdin.buffer.read1(1):
                    return
                continue
            if ready is link.monitor and LinkEvent.UP in link.events():
                link.send(encode(Register(profile=profile, instance=f"{id(link)}", minor=1)))
                registered += 1
                if registered == len(links):
                    print("all registered", flush=True)
            while (frames := link.receive()) is not None:
                match decode(frames, RELAY_TO_DEVICE).header:
                    case Task(request_id=request_id):
                        link.send(encode(Result(request_id=request_id, measurement=raw)))
                    case Ping():
                        link.send(encode(Pong()))


if __name__ == "__main__":
    main()
