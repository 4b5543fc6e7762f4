"""The bridge that a job starts itself: relay and device agent as child processes on private sockets.

They end with the job, however it ends: their standard input is a pipe that only the job holds. Must not know
candidates or the protocol.
"""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mpinas.children import child_environment, deaf_to_wishes
from mpinas.errors import UserError

#: Longest path of a unix socket on Linux.
SOCKET_PATH_BYTES = 107
#: The relay must listen, and a child must end, within so long.
START_S = 30.0
END_S = 5.0
#: The machine is shared with the trainers: its reference model varies more than that of a device of its own, and
#: waiting for quiet would only make the search wait.
DEVICE_OPTIONS = ("--any-core", "--reference-band", "0.25", "--cooling-seconds", "5", "--exit-with-stdin")
#: A child that ends this often within this time will not be started again.
RESTARTS = 5
RESTARTS_WITHIN_S = 60.0


@dataclass(slots=True)
class _Child:
    name: str
    arguments: tuple[str, ...]
    log: Path
    process: subprocess.Popen[bytes]
    #: Monotonic times at which it had ended unasked.
    ended_s: list[float] = field(default_factory=list)


class LocalBridge:
    """Relay and device agent of one job.

    Parameters
    ----------
    log_folder
        Gets `edge-relay.log` and `edge-device.log`.

    Raises
    ------
    UserError
        When the relay does not come up.
    """

    def __init__(self, log_folder: Path) -> None:
        log_folder.mkdir(parents=True, exist_ok=True)
        self._folder = _short_private_folder()
        self.connection_file = self._folder / "BRIDGE.json"
        self._children: list[_Child] = []
        try:
            relay = ("relay", "--local", str(self._folder), "--exit-with-stdin", "--remove-folder")
            self._start("relay", relay, log_folder / "edge-relay.log")
            self._wait_until_it_listens(self._children[0])
            state = str(self._folder / "results")
            device = ("device", str(self.connection_file), "--name", "local", "--state", state)
            self._start("device", (*device, *DEVICE_OPTIONS), log_folder / "edge-device.log")
        except BaseException:
            self.close()
            raise

    def revive(self) -> list[str]:
        """Start again what has ended unasked, and say in a line each what that was.

        Raises
        ------
        UserError
            When a child ends again and again.
        """
        told = []
        for child in self._children:
            code = child.process.poll()
            if code is None:
                continue
            now_s = time.monotonic()
            child.ended_s = [each for each in child.ended_s if now_s - each < RESTARTS_WITHIN_S] + [now_s]
            if len(child.ended_s) > RESTARTS:
                raise UserError(
                    f"the local {child.name} ended {len(child.ended_s)} times in {RESTARTS_WITHIN_S:g} s, "
                    f"the last time saying {_last_line(child.log)!r}: see {child.log}"
                )
            _close_pipes(child.process)
            child.process = _launch(child.arguments, child.log)
            self._hear(child)
            told.append(f"the local {child.name} ended with code {code} and was started again")
        return told

    def device_registered(self) -> bool:
        """Whether the device has registered with the relay since the last call."""
        output = self._children[1].process.stdout
        assert output is not None
        try:
            return bool(os.read(output.fileno(), 1 << 12))
        except BlockingIOError:
            return False

    def process_ids(self) -> dict[str, int]:
        """Process id of each child by name."""
        return {child.name: child.process.pid for child in self._children}

    def close(self) -> None:
        """End the children within a limit, and remove their folder."""
        for child in self._children:
            _close_pipes(child.process)
        end_s = time.monotonic() + END_S
        for child in self._children:
            try:
                child.process.wait(max(0.0, end_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        self._children.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, name: str, arguments: tuple[str, ...], log: Path) -> None:
        self._children.append(_Child(name, arguments, log, _launch(arguments, log)))
        self._hear(self._children[-1])

    @staticmethod
    def _hear(child: _Child) -> None:
        """The device says on standard output when the relay has taken it; nobody waits for that."""
        if child.name == "device" and child.process.stdout is not None:
            os.set_blocking(child.process.stdout.fileno(), False)

    def _wait_until_it_listens(self, relay: _Child) -> None:
        """Wait for the relay's line on standard output, which follows its connection file."""
        output = relay.process.stdout
        assert output is not None
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            if selector.select(START_S) and output.readline():
                return
        raise UserError(
            f"the local relay did not start within {START_S:g} s, saying {_last_line(relay.log)!r}: see {relay.log}"
        )


def _launch(arguments: tuple[str, ...], log: Path) -> subprocess.Popen[bytes]:
    stream: IO[bytes]
    with open(log, "ab") as stream, deaf_to_wishes():
        return subprocess.Popen(
            [sys.executable, "-m", "edge_bridge", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            bufsize=0,
            # Ctrl-C on the job's terminal is the job's affair: it ends them when it has finished.
            start_new_session=True,
            env=child_environment(os.environ),
        )


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _short_private_folder() -> Path:
    """Make a folder of mode 0700 whose sockets' paths fit.

    In the usual temporary folder if that is short enough.
    """
    for parent in (tempfile.gettempdir(), "/tmp"):
        folder = Path(tempfile.mkdtemp(prefix="mpinas-", dir=parent))
        if len(os.fsencode(folder.resolve() / "device")) <= SOCKET_PATH_BYTES:
            return folder
        folder.rmdir()
    raise UserError("no temporary folder with a path short enough for a local bridge: set TMPDIR to a shorter one")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return lines[-1] if lines else ""
