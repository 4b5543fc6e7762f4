"""Throw spoilt messages at a real relay and a real device over CURVE, and see what it costs them.

    python benchmarks/bridge_hostile.py [--frames 100000] [--device-frames 3000] [--seed 0] [--json]

Jobs and devices with allowed keys send to the relay; a false relay with the true relay's key sends to the device. A
relay bears ten offences of a connection, so that peers connect anew all the time; a device stays away from a relay
that offends it, so that few messages can be sent to it in a while: as many again go through its parts in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bridge")]

import bridge_models  # noqa: E402 - from the tests' folder, as all below
from bridge_processes import Bridge, Process, until  # noqa: E402
from hostile import (  # noqa: E402
    DIRECTIONS,
    VALID,
    HostileRelay,
    Tally,
    flood_relay,
    is_message,
    mutate,
    resident_bytes,
)

from edge_bridge.client import Measured, MeasurementFailed  # noqa: E402
from edge_bridge.device.tasks import job_of  # noqa: E402
from edge_bridge.wire.keys import Connection, write_connection  # noqa: E402
from edge_bridge.wire.protocol import RELAY_TO_DEVICE, Task, decode  # noqa: E402
from edge_bridge.wire.quantities import Settings  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=100_000, help="spoilt messages to the relay, half from each side")
    parser.add_argument("--device-frames", type=int, default=3_000, help="spoilt messages to the device")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    rows = [_in_process(arguments.frames, rng)]
    with tempfile.TemporaryDirectory(prefix="mpinas-hostile-") as folder:
        bridge = Bridge(Path(folder))
        try:
            rows += [*_relay(bridge, arguments.frames, rng), _device(bridge, arguments.device_frames, rng)]
        finally:
            bridge.close()
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print("| at | spoilt messages | refused | connections | seconds | memory before | after | log |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        memory = f"{row['before_bytes'] / 2**20:.1f} MiB | {row['after_bytes'] / 2**20:.1f} MiB"
        counts = f"{row['frames']} | {row['refused']} | {row['connections']} | {row['seconds']:.0f}"
        print(f"| {row['at']} | {counts} | {memory} | {row['log_bytes'] / 1000:.1f} kB |")
    print("Afterwards an honest job was served each time.")


def _in_process(count: int, rng: random.Random) -> dict[str, object]:
    """Decode alone, in all four directions; what is still a task is taken apart as a device does."""
    tally, start_s = Tally(), time.monotonic()
    before_bytes = resident_bytes_here()
    for _ in range(count):
        direction = rng.choice(list(DIRECTIONS))
        frames = mutate(rng, rng.choice(VALID[direction]))
        tally.frames += 1
        if not is_message(frames, direction):
            tally.refused += 1
        elif direction == "relay to device":
            message = decode(frames, RELAY_TO_DEVICE)
            if isinstance(message.header, Task):
                job_of(message.header, message)
    return _row("decoder, in process", tally, start_s, before_bytes, resident_bytes_here(), 0)


def _relay(bridge: Bridge, count: int, rng: random.Random) -> list[dict[str, object]]:
    relay = bridge.relay()
    connection, public = bridge.connection, bridge.key("relay").public
    rows = []
    for direction, endpoint, key in (
        ("job to relay", connection.job_endpoint, bridge.key("job")),
        ("device to relay", connection.device_endpoint, bridge.key("device")),
    ):
        # What a first few cost is the allocator's and ZeroMQ's, not the messages'.
        flood_relay(endpoint, key, public, direction, 500, rng)
        before_bytes, log_bytes, start_s = resident_bytes(relay.popen.pid), _log_bytes(relay), time.monotonic()
        tally = flood_relay(endpoint, key, public, direction, count // 2, rng, limit_s=1800.0)
        after_bytes = resident_bytes(relay.popen.pid)
        rows.append(
            _row(f"relay, {direction}", tally, start_s, before_bytes, after_bytes, _log_bytes(relay) - log_bytes)
        )
    _served(bridge)
    relay.terminate()
    return rows


def _device(bridge: Bridge, count: int, rng: random.Random) -> dict[str, object]:
    honest = bridge.connection
    hostile = HostileRelay(bridge.key("relay"))
    write_connection(
        bridge.file,
        Connection(
            protocol=honest.protocol,
            job_endpoint=honest.job_endpoint,
            device_endpoint=hostile.endpoint,
            relay_public_key=honest.relay_public_key,
        ),
    )
    device = bridge.device()
    hostile.flood(rng, 100)
    before_bytes, log_bytes, start_s = resident_bytes(device.popen.pid), _log_bytes(device), time.monotonic()
    tally = hostile.flood(rng, count, limit_s=1800.0)
    after_bytes = resident_bytes(device.popen.pid)
    row = _row("device, relay to device", tally, start_s, before_bytes, after_bytes, _log_bytes(device) - log_bytes)
    hostile.close()
    # The very same device process, with the true relay.
    write_connection(bridge.file, honest)
    bridge.relay()
    _served(bridge, device)
    return row


def _served(bridge: Bridge, device: Process | None = None) -> None:
    device = device or bridge.device()
    client = bridge.client()
    client.submit(bridge_models.linear(), Settings(min_seconds=0.01, warmup_max_seconds=0.1, attempts=1))
    ended = until(client, lambda event: isinstance(event, Measured | MeasurementFailed))[-1]
    client.close()
    if not isinstance(ended, Measured):
        sys.exit(f"an honest job was not served: {ended}")
    device.terminate()


def _row(
    at: str, tally: Tally, start_s: float, before_bytes: int, after_bytes: int, log_bytes: int
) -> dict[str, object]:
    return {
        "at": at,
        "frames": tally.frames,
        "refused": tally.refused,
        "connections": tally.connections,
        "seconds": time.monotonic() - start_s,
        "before_bytes": before_bytes,
        "after_bytes": after_bytes,
        "log_bytes": log_bytes,
    }


def _log_bytes(process: Process) -> int:
    return process.log.stat().st_size


def resident_bytes_here() -> int:
    """Resident memory of this process."""
    return resident_bytes(os.getpid())


if __name__ == "__main__":
    main()
