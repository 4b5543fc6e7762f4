"""A tunnel to the relay through the system's ssh, kept up for as long as the agent lives.

A thread watches one ssh and starts the next when it ends. CURVE stays on inside: the tunnel carries, it is not trusted.
Must not know messages or what the agent does.
"""

from __future__ import annotations

import logging
import os
import random
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from types import TracebackType

import msgspec

from edge_bridge.device.ssh import (
    UP_MARK,
    Trouble,
    Verdict,
    end_ssh,
    judge,
    split_endpoint,
    start_ssh,
    tunnel_command,
)
from edge_bridge.errors import TunnelError
from edge_bridge.wire.keys import Connection
from edge_bridge.wire.ports import free_port

log = logging.getLogger("tunnel")

#: How long the agent waits at its start for the first tunnel; after that it comes up beside.
OPEN_LIMIT_S = 30.0
#: An ssh that is not up after this time is started anew.
UP_LIMIT_S = 60.0
#: How often the near end is tried where another ssh of the user's keeps the tunnel.
PROBE_S = 5.0
#: Pauses between two ssh: short, so that a mended link serves again at once; long where a person must act, as login
#: nodes shut out who knocks too often.
PAUSE_S, PAUSE_MOST_S, PAUSE_REFUSED_S = 0.2, 2.0, 60.0
#: A tunnel that stood so long was a good one: the next pause is the shortest.
GOOD_S = 10.0
#: How often the same trouble is mentioned in the log.
COMPLAIN_S = 30.0
_TAIL_BYTES = 8192


def pause_s(failures: int, trouble: Trouble, rng: random.Random) -> float:
    """Pause before the next ssh, after so many that did not last."""
    if trouble is Trouble.REFUSED:
        return PAUSE_REFUSED_S * rng.uniform(0.75, 1.25)
    return min(PAUSE_MOST_S, PAUSE_S * 2.0 ** min(failures, 10)) * rng.uniform(0.5, 1.0)


class Tunnel:
    """Context in which a port of this machine leads to the relay's device side.

    Parameters
    ----------
    login
        As ssh takes it: HOST, USER@HOST, or a Host of ~/.ssh/config.
    given
        Further options for ssh; they win over those set here.

    Raises
    ------
    TunnelError
        On entering, when ssh is missing or the login refuses: what trying again would not mend.
    """

    def __init__(self, login: str, connection: Connection, given: Sequence[str] = ()) -> None:
        split_endpoint(connection.device_endpoint)
        self._login, self._connection, self._given = login, connection, tuple(given)
        self._port = free_port()
        self._rng = random.Random()
        self._thread = threading.Thread(target=self._watch, name="tunnel", daemon=True)
        self._wake_end, self._waker = socket.socketpair()
        self._closing = threading.Event()
        #: Set when the first ssh is up or the first verdict that ends everything is there.
        self._settled = threading.Event()
        self._been_up = False
        self._refusal: str | None = None
        self._complained: tuple[str, float] = ("", 0.0)

    @property
    def connection(self) -> Connection:
        """The connection, by way of the tunnel."""
        return msgspec.structs.replace(self._connection, device_endpoint=f"tcp://127.0.0.1:{self._port}")

    def through(self, fresh: Connection) -> Connection:
        """Lead the tunnel to where this connection says the relay is now; return it by way of the tunnel."""
        split_endpoint(fresh.device_endpoint)
        moved = fresh.device_endpoint != self._connection.device_endpoint
        self._connection = fresh
        if moved:
            self._waker.send(b"x")
        return self.connection

    def __enter__(self) -> Tunnel:
        self._thread.start()
        self._settled.wait(OPEN_LIMIT_S)
        if self._refusal is not None:
            self.close()
            raise TunnelError(self._refusal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the ssh and the thread that watches it."""
        self._closing.set()
        self._waker.send(b"x")
        self._thread.join(15.0)
        self._waker.close()
        self._wake_end.close()

    def _watch(self) -> None:
        failures = 0
        while not self._closing.is_set():
            begun_s = time.monotonic()
            try:
                was_up, verdict = self._one_ssh()
            except (TunnelError, OSError) as error:
                was_up, verdict = False, Verdict(Trouble.REFUSED, str(error))
            if self._closing.is_set():
                return
            if verdict is None:
                self._wake_end.recv(64)
                continue
            failures = 0 if was_up and time.monotonic() - begun_s > GOOD_S else failures + 1
            if not self._been_up:
                if verdict.trouble is Trouble.PORT_TAKEN and failures <= 5:
                    self._port = free_port()
                    continue
                if verdict.trouble is Trouble.REFUSED and not self._settled.is_set():
                    self._refusal = verdict.line
                    self._settled.set()
                    return
            self._complain(f"tunnel is down, it will be tried again: {verdict.line}")
            self._sleep(pause_s(failures, verdict.trouble, self._rng))

    def _one_ssh(self) -> tuple[bool, Verdict | None]:
        """Run one ssh to its end; say whether it came up, and why it ended: None if somebody here wanted it."""
        arguments = tunnel_command(self._login, self._port, self._connection.device_endpoint, self._given)
        process = start_ssh(self._login, arguments, os.getpid())
        assert process.stdout is not None
        assert process.stderr is not None
        up, said, heard = False, b"", b""
        begun_s = time.monotonic()
        try:
            with selectors.DefaultSelector() as selector:
                for each in (process.stdout, process.stderr, self._wake_end):
                    selector.register(each, selectors.EVENT_READ)
                ended = False
                while not ended:
                    # A helper of ssh may hold its pipes open when ssh has gone: ask for ssh itself, too.
                    ended = process.poll() is not None
                    for key, _ in selector.select(0.0 if ended else 0.25):
                        if key.fileobj is self._wake_end:
                            return up, None
                        chunk = os.read(key.fd, 4096)
                        if not chunk:
                            selector.unregister(key.fileobj)
                        elif key.fileobj is process.stderr:
                            said = (said + chunk)[-_TAIL_BYTES:]
                            self._mention(chunk)
                        else:
                            heard = (heard + chunk)[-_TAIL_BYTES:]
                    if not up and UP_MARK in heard:
                        up = True
                        self._come_up()
                    if not up and time.monotonic() - begun_s > UP_LIMIT_S:
                        said += f"\nnot up after {UP_LIMIT_S:.0f} s".encode()
                        break
            if process.poll() == 0 and not up and self._listens():
                return True, self._ride_along()
            return up, judge(self._login, said.decode(errors="replace"), process.poll())
        finally:
            end_ssh(process)

    def _ride_along(self) -> Verdict | None:
        """Watch a tunnel that the user's own control socket keeps: the ssh that asked for it has ended in peace."""
        self._come_up()
        while self._listens():
            if self._sleep(PROBE_S):
                return None
        return Verdict(Trouble.LOST, f"ssh {self._login}: the control socket's connection has ended")

    def _come_up(self) -> None:
        self._been_up = True
        self._settled.set()
        self._complained = ("", 0.0)
        log.info("tunnel is up: 127.0.0.1:%d leads to %s as %s sees it", self._port, self._far_end, self._login)

    @property
    def _far_end(self) -> str:
        return self._connection.device_endpoint.removeprefix("tcp://")

    def _mention(self, chunk: bytes) -> None:
        """Log what ssh says of connections through the tunnel: it goes on, yet the relay is not reached."""
        text = chunk.decode(errors="replace")
        if "administratively prohibited" in text:
            self._complain(f"ssh {self._login} forbids the way to {self._far_end}: AllowTcpForwarding, permitopen")
        elif "open failed: connect failed" in text:
            self._complain(f"nothing answers at {self._far_end} as {self._login} sees it: is the relay running there?")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def _complain(self, line: str) -> None:
        now_s = time.monotonic()
        if line != self._complained[0] or now_s - self._complained[1] >= COMPLAIN_S:
            self._complained = (line, now_s)
            log.warning("%s", line)

    def _sleep(self, seconds: float) -> bool:
        """Wait so long, or until somebody here wants something, and say which."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_end, selectors.EVENT_READ)
            return bool(selector.select(seconds))
