"""A job as a process of its own: asks for the models of a folder and prints one line of JSON for each event.

Run as ``python bridge_job.py BRIDGE.json KEY FOLDER SETTINGS``. It goes on until it is ended from outside.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import msgspec
import zmq

from edge_bridge.client import BridgeClient, Measured, MeasurementFailed, Progressed
from edge_bridge.wire.keys import read_connection, read_key_pair
from edge_bridge.wire.quantities import Settings


def _say(kind: str, **more: object) -> None:
    # The monotonic clock is the same for all processes of a machine: the reader may compare.
    print(json.dumps({"at_s": time.monotonic(), "kind": kind, **more}), flush=True)


def main() -> None:
    connection, key, folder, settings = sys.argv[1:5]
    client = BridgeClient.open(read_connection(Path(connection)), read_key_pair(Path(key)), 60.0)
    decoded = msgspec.json.decode(settings, type=Settings)
    for path in sorted(Path(folder).glob("*.onnx")):
        _say("asked", id=client.submit(path.read_bytes(), decoded), model=path.name)
    poller = zmq.Poller()
    for socket in client.sockets:
        poller.register(socket, zmq.POLLIN)
    while True:
        poller.poll(50)
        for event in client.poll():
            match event:
                case Measured(request_id=request_id, measurement=measurement):
                    _say("measured", id=request_id, p50_s=measurement.p50_s)
                case MeasurementFailed(request_id=request_id, reason=reason, detail=detail):
                    _say("failed", id=request_id, reason=reason, detail=detail)
                case Progressed(request_id=request_id, phase=phase):
                    _say("progress", id=request_id, phase=phase)
                case other:
                    _say("other", text=repr(other)[:200])


if __name__ == "__main__":
    main()
