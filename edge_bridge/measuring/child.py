"""The measuring child: imports the runtime once, and keeps a fresh process forked ahead for the next model.

Run by the measurer as ``python -m edge_bridge.measuring.child RUNTIME PARENT_PID ORDERS_FD``. Three kinds of
processes share its pipes. The *server* imports the runtime, forks, and tells when a model's process has ended. The
*spare* waits for an order at the socket ORDERS_FD; with it come the model and the shard as open files without a
name. With an order the spare is the *model's process*: it does the work, says lines on standard output, and ends.
The server forks the next spare then, so that no fork lies on an order's way, and none beside the timed runs.

A byte on the server's standard input ends the model's process. A model that hangs, leaks or crashes the runtime
ends its own process and nothing else. Must not know network sockets or the protocol.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, NoReturn

from edge_bridge.errors import RuntimeMissingError
from edge_bridge.measuring.lines import ChildLine, EndedLine, FailureLine, TakenLine, decode_order, encode_line
from edge_bridge.measuring.rehearsal import rehearse
from edge_bridge.measuring.runtimes import Runtime, get_runtime
from edge_bridge.measuring.sensors import open_sensors
from edge_bridge.measuring.work import Surroundings, outcome_of
from edge_bridge.wire.quantities import Readings

ORDER_LIMIT_BYTES = 1 << 20
#: Names of the processes in the system's list.
SERVER_NAME, SPARE_NAME, MODEL_NAME = "edge-measurer", "edge-spare", "edge-model"
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15

Say = Callable[[ChildLine], None]


class Server:
    """Forks, and tells who has ended. `serve` does not return before standard input ends."""

    def __init__(self, runtime: Runtime, orders: socket.socket, lines: IO[bytes]) -> None:
        self._runtime = runtime
        self._orders = orders
        self._lines = lines
        self._pid = os.getpid()
        #: A byte here: the spare has taken an order.
        self._taken, self._taken_w = os.pipe()
        #: A byte here: a child has ended.
        self._wake, wake_w = os.pipe()
        for each in (self._taken, self._wake, wake_w):
            os.set_blocking(each, False)
        signal.set_wakeup_fd(wake_w)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        #: One of the two at a time.
        self._spare: int | None = None
        self._model: int | None = None
        self._spare = self._fork()

    def serve(self) -> None:
        """Serve until standard input ends."""
        stdin = sys.stdin.fileno()
        while True:
            ready = select.select([stdin, self._taken, self._wake], [], [])[0]
            # Before the dead are counted: a spare that took an order and died was a model's process.
            self._model_begins()
            if stdin in ready:
                if not os.read(stdin, 64):
                    return
                if self._model is not None:
                    os.kill(self._model, signal.SIGKILL)
            _drain(self._wake)
            self._count_the_dead()

    def _model_begins(self) -> None:
        # Only a spare is listened to: what a model's process writes there means nothing.
        if _drain(self._taken) and self._spare is not None:
            self._model, self._spare = self._spare, None

    def _count_the_dead(self) -> None:
        """Tell of a model's process that has ended, and only then fork the next spare: not beside timed runs."""
        while self._spare is not None or self._model is not None:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._model_begins()
            if pid == self._model:
                self._model = None
                # An end of line first: the dead may have been in the middle of one.
                self._lines.write(b"\n" + encode_line(EndedLine(os.waitstatus_to_exitcode(status))))
            self._spare = self._fork()

    def _fork(self) -> int:
        forked = os.fork()
        if forked:
            return forked
        try:
            self._be_spare()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(70)

    def _be_spare(self) -> NoReturn:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with(self._pid)
        _name_process(SPARE_NAME)
        sensors = open_sensors()
        rehearse(sensors.read)
        data, files, _, _ = socket.recv_fds(self._orders, ORDER_LIMIT_BYTES, 2)
        if not data:
            os._exit(0)
        os.write(self._taken_w, b"t")
        self._say(TakenLine(os.getpid()))
        _name_process(MODEL_NAME)
        order = decode_order(data)
        _limit(order.memory_limit_bytes)
        model, shard = files
        around = Surroundings(self._say, sensors.read, sensors.energy_j, sensors.power_w)
        self._say(outcome_of(order, Path(f"/proc/self/fd/{model}"), _view(shard), self._runtime, around))
        os._exit(0)

    def _say(self, line: ChildLine) -> None:
        self._lines.write(encode_line(line))


def die_with(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent ends, and end now if it has already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def main() -> None:
    """Serve orders until standard input ends."""
    runtime_name, parent_pid, orders_fd = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    die_with(parent_pid)
    _name_process(SERVER_NAME)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    # What a runtime prints must not mix with the lines.
    lines = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    try:
        runtime = get_runtime(runtime_name)
    except RuntimeMissingError as error:
        lines.write(encode_line(FailureLine("unsupported", str(error))))
        sys.exit(1)
    rehearse(Readings)
    # What is here now is never looked at by the collector again: its pages stay shared by all that are forked.
    gc.collect()
    gc.freeze()
    Server(runtime, socket.socket(fileno=orders_fd), lines).serve()


def _limit(memory_bytes: int) -> None:
    """Limits of a model's process; it is the first that the kernel takes when memory is short."""
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _view(file: int) -> bytes | memoryview:
    """Bytes of an open file, without a copy."""
    if os.fstat(file).st_size == 0:
        return b""
    return memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_READ))


def _drain(pipe: int) -> bytes:
    try:
        return os.read(pipe, 4096)
    except BlockingIOError:
        return b""


def _name_process(name: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


if __name__ == "__main__":
    main()
