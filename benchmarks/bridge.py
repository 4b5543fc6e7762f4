"""What the edge bridge costs and how far its latencies can be trusted: figures of docs/reliability.md.

``python benchmarks/bridge.py [overhead|wide-area|relay|repeatability] [--json]``. Each starts real processes, on this
machine; what stands beside the bridge in the same run is named in the output.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import zmq

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "bridge"
sys.path[:0] = [str(ROOT), str(TESTS)]

from bridge_processes import Bridge  # noqa: E402 - found through the path just set

from edge_bridge.client import BridgeClient, ClientEvent, Measured, MeasurementFailed  # noqa: E402
from edge_bridge.wire.keys import read_connection, read_key_pair  # noqa: E402
from edge_bridge.wire.protocol import cut  # noqa: E402
from edge_bridge.wire.quantities import Settings  # noqa: E402

LIMIT_S = 120.0
#: All that takes time by intention is left out: what remains is the way there and back.
INSTANT = Settings(min_seconds=0.0, warmup_min_runs=1, warmup_max_seconds=0.0, attempts=1)
#: After so long a device that has answered is ready for the next model.
IDLE_S = 0.05
FAKE = ("--runtime", "fake", "--no-reference")
Figures = dict[str, Any]


@contextmanager
def bridge_in_a_folder() -> Iterator[Bridge]:
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    bridge = Bridge(folder)
    try:
        yield bridge
    finally:
        bridge.close()
        shutil.rmtree(folder, ignore_errors=True)


def answers(client: BridgeClient, enough: Callable[[ClientEvent], bool], limit_s: float = LIMIT_S) -> None:
    """Poll until `enough` has said so of an event."""
    end_s = time.monotonic() + limit_s
    poller = zmq.Poller()
    for socket in client.sockets:
        poller.register(socket, zmq.POLLIN)
    while time.monotonic() < end_s:
        for event in client.poll():
            if isinstance(event, MeasurementFailed):
                raise RuntimeError(f"{event.reason}: {event.detail}")
            if enough(event):
                return
        poller.poll(100)
    raise TimeoutError(f"no answer within {limit_s} s")


def round_trips(client: BridgeClient, size_bytes: int, count: int, seed: int = 0, pause_s: float = 0.0) -> list[float]:
    """Seconds from submit to result for models of random bytes, one after the other, the same for the same seed."""
    rng = np.random.default_rng((seed, size_bytes))
    times_s = []
    for _ in range(count):
        model = rng.bytes(size_bytes)
        time.sleep(pause_s)
        began_s = time.perf_counter()
        client.submit(model, INSTANT)
        answers(client, lambda event: isinstance(event, Measured))
        times_s.append(time.perf_counter() - began_s)
    return times_s


def floor(size_bytes: int, count: int) -> list[float]:
    """Seconds for the same bytes over two bare CURVE connections and a word back: no relay, agent or child.

    In the frames that the bridge cuts them into, for these are faster than one: each end works while the other does.
    """
    context = zmq.Context()
    public, secret = zmq.curve_keypair()

    def pair() -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        server, client = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        server.curve_secretkey, server.curve_publickey, server.curve_server = secret, public, True
        client.curve_publickey, client.curve_secretkey = zmq.curve_keypair()
        client.curve_serverkey = public
        client.connect(f"tcp://127.0.0.1:{server.bind_to_random_port('tcp://127.0.0.1')}")
        return server, client

    (near, job), (far, device) = pair(), pair()
    payload, times_s = cut(os.urandom(size_bytes)), []
    for _ in range(count):
        began_s = time.perf_counter()
        job.send_multipart(payload, copy=False)
        far.send_multipart(near.recv_multipart(copy=False), copy=False)
        device.recv_multipart(copy=False)
        device.send(b"done")
        near.send(far.recv())
        job.recv()
        times_s.append(time.perf_counter() - began_s)
    context.destroy(linger=0)
    return times_s


def quartiles_ms(times_s: list[float]) -> Figures:
    low, middle, high = statistics.quantiles(times_s, n=4)
    return {
        "p50_ms": 1e3 * middle,
        "p25_ms": 1e3 * low,
        "p75_ms": 1e3 * high,
        "p99_ms": 1e3 * float(np.quantile(times_s, 0.99)),
    }


def overhead(count: int) -> Figures:
    """Submit to result over CURVE on loopback, beyond measuring: the fake runtime measures nothing at all.

    By a device that was idle; by one that has just answered, and must first make a new process for the next model; and
    by one that knows the answer, which leaves the way there and back.
    """
    with bridge_in_a_folder() as bridge:
        bridge.relay()
        bridge.device(*FAKE).line()
        client = bridge.client()
        round_trips(client, 999, 20)
        found: Figures = {}
        for size_bytes in (1_000, 1_000_000):
            found[f"bridge_{size_bytes}_bytes"] = quartiles_ms(round_trips(client, size_bytes, count, 1, IDLE_S))
            found[f"bridge_{size_bytes}_bytes_back_to_back"] = quartiles_ms(round_trips(client, size_bytes, count, 2))
            found[f"bridge_{size_bytes}_bytes_known"] = quartiles_ms(round_trips(client, size_bytes, count, 2))
            found[f"bare_zeromq_{size_bytes}_bytes"] = quartiles_ms(floor(size_bytes, count))
        client.close()
    return found


def relay(requests: int, devices: int) -> Figures:
    """Requests a second through one relay, and its memory with ten thousand waiting."""
    with bridge_in_a_folder() as bridge:
        process = bridge.relay()
        client = bridge.client()
        rng = np.random.default_rng(0)
        models = [rng.bytes(10_000) for _ in range(10_000)]
        empty = rss_bytes(process.popen.pid)
        began_s = time.perf_counter()
        for model in models:
            client.submit(model, INSTANT)
        while held(client) < len(models):
            client.poll()
        queueing_s = time.perf_counter() - began_s
        full = rss_bytes(process.popen.pid)
        fleet = fleet_of(bridge, devices)
        done = 0
        began_s = time.perf_counter()

        def counted(event: ClientEvent) -> bool:
            nonlocal done
            done += isinstance(event, Measured)
            return done == len(models)

        answers(client, counted)
        drain_s = time.perf_counter() - began_s
        # Closed loop: as many under way as there are devices.
        small = [rng.bytes(1_000) for _ in range(requests)]
        done, sent = 0, 0
        began_s = time.perf_counter()
        while done < requests:
            while sent < requests and sent - done < 2 * devices:
                client.submit(small[sent], INSTANT)
                sent += 1
            done += sum(isinstance(event, Measured) for event in client.poll())
        closed_s = time.perf_counter() - began_s
        fleet.kill()
        client.close()
    return {
        "devices": devices,
        "queued": len(models),
        "queued_model_bytes": 10_000,
        "queueing_per_s": len(models) / queueing_s,
        "relay_rss_empty_mb": empty / 1e6,
        "relay_rss_10000_queued_mb": full / 1e6,
        "relay_bytes_per_queued_request": (full - empty) / len(models),
        "drained_per_s": len(models) / drain_s,
        "closed_loop_per_s": requests / closed_s,
    }


def held(client: BridgeClient) -> int:
    """How many requests the relay holds."""
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s:
        client.ask_state()
        ask_again_s = time.monotonic() + 0.5
        while client.state is None and time.monotonic() < ask_again_s:
            client.poll()
            time.sleep(0.01)
        if client.state is not None:
            return client.state.queued
    raise TimeoutError("the relay does not tell its state")


def fleet_of(bridge: Bridge, devices: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(Path(__file__).with_name("bridge_fleet.py")), str(bridge.file)]
    fleet = subprocess.Popen(
        [*command, str(bridge.folder / "device.key"), str(devices)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert fleet.stdout is not None
    assert fleet.stdout.readline() == b"all registered\n"
    return fleet


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wide_area(count: int, wan: str) -> Figures:
    """Submit to result over a link of 20 ms round trip and 1% loss, in round trips beyond the bytes' own transfer."""

    def control(*words: str) -> None:
        subprocess.run([sys.executable, wan, *words], check=True, capture_output=True, timeout=30)

    control("up", "--delay", "10", "--loss", "0.01")
    try:
        with bridge_in_a_folder() as bridge:
            bridge.relay("--bind", "10.77.0.1", inside="wanA")
            bridge.device(*FAKE, inside="wanB").line()
            command = [
                "ip",
                "netns",
                "exec",
                "wanA",
                sys.executable,
                __file__,
                "remote-end",
                str(bridge.folder),
                str(count),
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600, env=os.environ)
            found: Figures = json.loads(done.stdout)
        found["bare_tcp_1000000_bytes"] = bare_transfer(count)
    finally:
        control("down")
    round_trip_ms = 20.0
    transfer_ms = found["bare_tcp_1000000_bytes"]["p50_ms"]
    found["small_model_round_trips_p50"] = found["bridge_1000_bytes"]["p50_ms"] / round_trip_ms
    found["big_model_round_trips_beyond_transfer_p50"] = (
        found["bridge_1000000_bytes"]["p50_ms"] - transfer_ms
    ) / round_trip_ms
    return found


_SINK = """
import socket
server = socket.create_server(("10.77.0.2", 7777))
print("up", flush=True)
peer, _ = server.accept()
while True:
    left = 1_000_000
    while left:
        data = peer.recv(min(left, 1 << 20))
        if not data:
            raise SystemExit
        left -= len(data)
    peer.sendall(b"k")
"""
_SOURCE = """
import json, os, socket, sys, time
peer = socket.create_connection(("10.77.0.2", 7777))
payload, times = os.urandom(1_000_000), []
for _ in range(int(sys.argv[1])):
    began = time.perf_counter()
    peer.sendall(payload)
    peer.recv(1)
    times.append(time.perf_counter() - began)
print(json.dumps(times))
"""


def bare_transfer(count: int) -> Figures:
    """The same million bytes over one TCP connection across the link, and a byte back."""
    inside = ("ip", "netns", "exec")
    sink = subprocess.Popen([*inside, "wanB", sys.executable, "-c", _SINK], stdout=subprocess.PIPE)
    try:
        assert sink.stdout is not None
        sink.stdout.readline()
        source = subprocess.run(
            [*inside, "wanA", sys.executable, "-c", _SOURCE, str(count)],
            check=True, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
    finally:
        sink.kill()
        sink.wait()
    return quartiles_ms(json.loads(source.stdout))


def repeatability(minutes: float, rounds: int) -> Figures:
    """Each model measured again and again by the agent's way, and by ONNX Runtime's own loop in the same minute."""
    from bridge_models import convolutions  # needs `onnx`, which is not on a device

    found: Figures = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        paths = {}
        for name, size in (("0.1 ms", 0), ("1 ms", 1), ("5 ms", 2), ("20 ms", 3), ("100 ms", 4)):
            paths[name] = Path(folder) / f"model-{size}.onnx"
            paths[name].write_bytes(convolutions(size))
        ours: dict[str, list[float]] = {name: [] for name in paths}
        rival: dict[str, list[float]] = {name: [] for name in paths}
        began_s = time.monotonic()
        for number in range(rounds):
            time.sleep(max(0.0, began_s + number * 60 * minutes / rounds - time.monotonic()))
            for name, path in paths.items():
                ours[name].append(measured_p50_s(path))
                rival[name].append(rival_p50_s(path))
        for name in paths:
            pairs = [a / b - 1 for a, b in zip(ours[name], rival[name], strict=True)]
            found[name] = {
                "ours_p50_ms": 1e3 * statistics.median(ours[name]),
                "onnxruntime_loop_p50_ms": 1e3 * statistics.median(rival[name]),
                "difference_median": statistics.median(pairs),
                "difference_largest": max(pairs, key=abs),
                "ours_variation_of_p50": statistics.pstdev(ours[name]) / statistics.fmean(ours[name]),
                "onnxruntime_loop_variation_of_p50": statistics.pstdev(rival[name]) / statistics.fmean(rival[name]),
            }
    return {"rounds": rounds, "minutes": minutes, "models": found}


def measured_p50_s(path: Path) -> float:
    command = [sys.executable, "-m", "edge_bridge", "--log-level", "warning", "measure", str(path), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT)
    return float(json.loads(done.stdout)["p50_s"])


_RIVAL = """
import json, os, sys, time
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = {i.name: np.random.default_rng(0).random(i.shape, dtype=np.float32) for i in session.get_inputs()}
def run(repeat):
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - began)
    return times
first = run(10)
repeat = max(64, min(2000, int(1.0 / min(first))))
print(json.dumps(sorted(run(repeat))[repeat // 2]))
"""


def rival_p50_s(path: Path) -> float:
    """As ONNX Runtime's own transformers benchmark does it: warm up, then time `session.run` a number of times."""
    done = subprocess.run(
        [sys.executable, "-c", _RIVAL, str(path)], check=True, capture_output=True, text=True, timeout=LIMIT_S
    )
    return float(json.loads(done.stdout))


def table(name: str, found: Figures, indent: str = "") -> Iterator[str]:
    yield f"{indent}{name}"
    for key, value in found.items():
        if isinstance(value, dict):
            yield from table(key, value, indent + "  ")
        else:
            yield f"{indent}  {key:<45} {value:.4g}" if isinstance(value, float) else f"{indent}  {key:<45} {value}"


@click.command()
@click.argument("which", nargs=-1)
@click.option("--json", "as_json", is_flag=True)
@click.option("--count", default=100, show_default=True, help="Round trips of each size.")
@click.option("--minutes", default=10.0, show_default=True, help="Over which the repeatability is spread.")
@click.option("--rounds", default=20, show_default=True, help="Measurements of each model.")
@click.option("--wan", default=str(ROOT.parent / "shared/tools/wan/wan.py"), help="The wide-area link emulator.")
def main(which: tuple[str, ...], as_json: bool, count: int, minutes: float, rounds: int, wan: str) -> None:
    if which[:1] == ("remote-end",):
        folder = Path(which[1])
        client = BridgeClient.open(read_connection(folder / "BRIDGE.json"), read_key_pair(folder / "job.key"), LIMIT_S)
        round_trips(client, 999, 5)
        sizes = {
            f"bridge_{size}_bytes": quartiles_ms(round_trips(client, size, int(which[2])))
            for size in (1_000, 1_000_000)
        }
        click.echo(json.dumps(sizes))
        client.close()
        return
    sections: dict[str, Callable[[], Figures]] = {
        "overhead": lambda: overhead(count),
        "relay": lambda: relay(5000, 64),
        "wide-area": lambda: wide_area(count, wan),
        "repeatability": lambda: repeatability(minutes, rounds),
    }
    found = {}
    for name in which or sections:
        if name not in sections:
            raise click.UsageError(f"no section {name}; there are {', '.join(sections)}")
        found[name] = sections[name]()
        if not as_json:
            click.echo("\n".join(table(name, found[name])))
    if as_json:
        click.echo(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
