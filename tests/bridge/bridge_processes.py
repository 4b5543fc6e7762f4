"""Real relay and device processes for the tests of the bridge, over CURVE on loopback, and their end."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import zmq

from edge_bridge.client import BridgeClient
from edge_bridge.wire.files import Role
from edge_bridge.wire.keys import Connection, KeyPair, read_connection, read_key_pair, write_key_pair

#: No wait of these tests is longer; the events themselves come much sooner.
LIMIT_S = 60.0
ROOT = Path(__file__).parents[2]
E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)
#: The keys of a bridge by name; a stranger could be a job, but is not on the list.
ROLES: dict[str, Role] = {"relay": "relay", "job": "job", "device": "device", "stranger": "job"}


class Process:
    """A command of edge-bridge as a real process; its log is a file. `inside` names a network namespace."""

    def __init__(self, folder: Path, *arguments: str, inside: str = "") -> None:
        self.log = folder / f"{arguments[0]}-{time.monotonic_ns()}.log"
        with open(self.log, "wb") as stream:
            self.popen = subprocess.Popen(
                [*(("ip", "netns", "exec", inside) if inside else ()), sys.executable, "-m", "edge_bridge", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/bridge/fake_runtime'}"},
            )

    def line(self) -> str:
        """Next line of its standard output."""
        assert self.popen.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.popen.stdout, selectors.EVENT_READ)
            assert selector.select(LIMIT_S), self.log.read_text()
        line = self.popen.stdout.readline().decode().strip()
        assert line, self.log.read_text()
        return line

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(LIMIT_S)

    def terminate(self) -> int:
        self.popen.terminate()
        return self.popen.wait(LIMIT_S)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.kill()
        for stream in (self.popen.stdin, self.popen.stdout):
            assert stream is not None
            stream.close()


class Bridge:
    """Keys, a relay, and as many devices as a test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "BRIDGE.json"
        self.allowed = folder / "allowed"
        self.allowed.mkdir()
        self.processes: list[Process] = []
        self._clients: list[BridgeClient] = []
        for name, role in ROLES.items():
            write_key_pair(folder / name, name, role)
        for name in ("job", "device"):
            self.allow(name)

    def allow(self, name: str) -> None:
        (self.allowed / f"{name}.pub").write_bytes((self.folder / f"{name}.pub").read_bytes())

    def key(self, name: str = "job") -> KeyPair:
        return read_key_pair(self.folder / f"{name}.key")

    @property
    def connection(self) -> Connection:
        return read_connection(self.file)

    def run(self, *arguments: str, inside: str = "") -> Process:
        process = Process(self.folder, *arguments, inside=inside)
        self.processes.append(process)
        return process

    def relay(self, *options: str, inside: str = "") -> Process:
        key = str(self.folder / "relay.key")
        paths = ("--connection", str(self.file), "--key", key, "--allow", str(self.allowed))
        relay = self.run("relay", *paths, *options, inside=inside)
        assert relay.line() == str(self.file.resolve())
        return relay

    def device(self, *options: str, key: str = "device", state: str = "state", inside: str = "") -> Process:
        paths = ("--key", str(self.folder / f"{key}.key"), "--state", str(self.folder / state))
        limits = ("--load-seconds", "10", "--stall-seconds", "3")
        return self.run("device", str(self.file), *paths, "--name", "dut", *limits, *options, inside=inside)

    def client(self, key: str = "job") -> BridgeClient:
        """A client that is closed with the bridge, however a test ends."""
        client = BridgeClient.open(self.connection, self.key(key), LIMIT_S)
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for process in self.processes:
            process.close()


class Polled(Protocol[E_co]):
    """What brings events: the bridge's client, or the search's."""

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]: ...

    def poll(self) -> Sequence[E_co]: ...


def until(client: Polled[E], wanted: Callable[[E], bool]) -> list[E]:
    """Poll the client until the wanted event has come; return all events up to it."""
    poller = zmq.Poller()
    for socket in client.sockets:
        poller.register(socket, zmq.POLLIN)
    end_s = time.monotonic() + LIMIT_S
    events: list[E] = []
    while time.monotonic() < end_s:
        fresh = client.poll()
        events += fresh
        if any(map(wanted, fresh)):
            return events
        poller.poll(50)
    raise AssertionError(f"not within {LIMIT_S} s; came: {events}")


def until_true(condition: Callable[[], bool]) -> None:
    """Wait for something outside of our processes (the kernel's list of them) that has no event."""
    end_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end_s, "not in time"
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    """Process ids of the direct children."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split())[0] not in ("Z", "X")
    except OSError:
        return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
