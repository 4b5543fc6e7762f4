"""The agent's hold on its measuring child: start it, give it one model, read its lines, end the model's process
when it overstays.

Never loads a model and never waits: `begin` and `advance` return at once. A model reaches the child as an open file
without a name, in memory: nothing touches the disk. Must not know network sockets or the store.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from edge_bridge.measuring.lines import (
    LINE_LIMIT_BYTES,
    ChildLine,
    EndedLine,
    FailureLine,
    Line,
    PhaseLine,
    TakenLine,
    decode_line,
)
from edge_bridge.measuring.parcel import Parcel, order_of, parcel_of
from edge_bridge.measuring.watch import ChildLimits, Watch
from edge_bridge.wire.quantities import Profile, QualitySettings, Settings

__all__ = ["ChildLimits", "Measurer"]

#: A process that has done its work, or was killed, is gone after this long; else its server is started anew.
END_S = 10.0
#: A child that has closed its output is given so long to end by itself.
EXIT_S = 0.2
#: How often the memory of a model's process is looked at, where the kernel does not watch it for us.
MEMORY_EVERY_S = 1.0


class Measurer:
    """One measuring child, started at once, and again after it had to be ended.

    Parameters
    ----------
    profile
        The device; its runtime and provider are the ones used.
    """

    def __init__(self, profile: Profile, limits: ChildLimits) -> None:
        self._profile = profile
        self._limits = limits
        #: Set while there is work, from `begin` to its last line.
        self._watch: Watch | None = None
        self._parcel: Parcel | None = None
        #: By when the process of the work before must have ended; None when there is none.
        self._end_due_s: float | None = None
        #: Of the process that has taken the order; None until one has, and once it has ended.
        self._pid: int | None = None
        self._memory_due_s = 0.0
        self._buffer = b""
        self._start()

    @property
    def busy(self) -> bool:
        """Whether there is work whose outcome has not been told."""
        return self._watch is not None

    def descriptors(self) -> list[int]:
        """File descriptors that are readable when `advance` has something to do."""
        stdout = self._child.stdout
        return [] if stdout is None or stdout.closed else [stdout.fileno()]

    def begin(self, model: bytes, settings: Settings | QualitySettings, shard: bytes = b"") -> None:
        """Measure this model, or judge it on this shard; `advance` tells how it goes. Only when not busy.

        Raises
        ------
        OSError
            When there is no memory for another copy of the model.
        """
        assert not self.busy
        on_cpu = self._profile.provider == "cpu"
        memory_bytes = self._limits.memory_bytes if on_cpu else 0
        parcel = parcel_of(order_of(settings, self._profile, memory_bytes), model, shard)
        if self._child.poll() is not None:
            self._restart()
        self._parcel = parcel
        self._watch = Watch(settings, self._limits, time.monotonic())
        if self._end_due_s is None:
            self._send()

    def advance(self) -> list[Line]:
        """Lines since the last call. With a measurement, a quality or a failure the measurer is free again."""
        now_s = time.monotonic()
        lines = [line for each in self._read() if (line := self._heard(each, now_s)) is not None]
        if self._end_due_s is not None and now_s > self._end_due_s:
            self._restart()
        if self._watch is not None and (due := self._due(self._watch, now_s)) is not None:
            lines.append(due)
            if isinstance(due, FailureLine):
                self.cancel()
        return lines

    def cancel(self) -> None:
        """Give up the work, if there is any; nothing more is told of it."""
        if self._watch is None:
            return
        self._watch = None
        if self._parcel is not None:
            self._parcel.close()
            self._parcel = None
        elif self._pid is None:
            self._restart()  # nobody has taken the order yet: somebody would
        else:
            with contextlib.suppress(OSError):  # dead already; its output has ended
                assert self._child.stdin is not None
                self._child.stdin.write(b"k")
            self._end_due_s = time.monotonic() + END_S

    def close(self) -> None:
        """End the child, whatever it is at."""
        self._watch = None
        if self._parcel is not None:
            self._parcel.close()
            self._parcel = None
        self._end_child()

    def _heard(self, line: ChildLine, now_s: float) -> Line | None:
        """Take one line of the child; return it where it is news for the caller."""
        if isinstance(line, EndedLine):
            return self._model_ended(line.code)
        if isinstance(line, TakenLine):
            self._pid = line.pid
            return None
        if self._end_due_s is not None:
            return None  # of work that was given up
        if isinstance(line, PhaseLine):
            if self._watch is None:
                return None
            self._watch.enter(line, now_s)
            return line
        if self._watch is not None:
            self._watch = None
            # Unless the line comes from ourselves, or from the server: then there is no process to wait for.
            self._end_due_s = None if self._pid is None else now_s + END_S
        return line

    def _model_ended(self, code: int) -> Line | None:
        """A model's process has gone: after its last line, or before, which is an outcome too."""
        died = self._end_due_s is None and self._watch is not None
        self._end_due_s = self._pid = None
        if self._parcel is not None:
            self._send()
        elif died:
            self._watch = None
            return FailureLine("crashed", _crash_text(code))
        return None

    def _due(self, watch: Watch, now_s: float) -> PhaseLine | FailureLine | None:
        limit_bytes = self._limits.memory_bytes
        if self._pid is not None and limit_bytes and self._profile.provider != "cpu" and now_s > self._memory_due_s:
            self._memory_due_s = now_s + MEMORY_EVERY_S
            if resident_bytes(self._pid) > limit_bytes:
                return FailureLine("out-of-memory", f"more than {limit_bytes} bytes")
        return watch.due(now_s)

    def _read(self) -> list[ChildLine]:
        data = b""
        for descriptor in self.descriptors():
            try:
                data = os.read(descriptor, 65_536)
            except BlockingIOError:
                return []
        if not data:
            return self._child_ended() if self.descriptors() else []
        *whole, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > LINE_LIMIT_BYTES:
            return self._nonsense("a line without an end")
        lines: list[ChildLine] = []
        broken = ""
        for each in filter(None, whole):
            try:
                line = decode_line(each)
            except msgspec.MsgspecError as error:
                broken = broken or str(error)
                continue
            if isinstance(line, EndedLine):
                broken = ""  # half a line of a process that died in the middle of it
            lines.append(line)
        if broken and self._end_due_s is None:
            return self._nonsense(broken)
        return lines

    def _nonsense(self, what: str) -> list[ChildLine]:
        self._restart()
        return [FailureLine("internal", f"the measuring child said nonsense: {what}"[:500])]

    def _child_ended(self) -> list[ChildLine]:
        """The child has closed its output: it is dead, or it is of no use any more."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(EXIT_S)  # for the code that it ends with by itself
        self._end_child()
        if not self.busy:
            return []
        code = self._child.returncode
        waiting = self._parcel is not None
        self._start()
        return [] if waiting else [FailureLine("crashed", f"the measuring child ended with code {code}")]

    def _send(self) -> None:
        assert self._parcel is not None
        parcel, self._parcel = self._parcel, None
        with contextlib.suppress(OSError):  # it has just died: the end of its output tells, or the time-out
            parcel.send(self._orders)

    def _restart(self) -> None:
        self._end_child()
        self._start()

    def _start(self) -> None:
        """Start a child, and give it what waits."""
        self._buffer = b""
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = (self._profile.runtime, str(os.getpid()), str(theirs.fileno()))
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "edge_bridge.measuring.child", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                # One thread in numpy's library, so that the child forks from a single thread.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"},
            )
        assert self._child.stdout is not None
        os.set_blocking(self._child.stdout.fileno(), False)
        if self._parcel is not None:
            self._send()

    def _end_child(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._end_due_s = self._pid = None
        self._orders.close()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                stream.close()


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 for one that has ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _crash_text(code: int) -> str:
    if code >= 0:
        return f"the model's process ended with exit code {code}"
    hint = " (memory of the machine exhausted?)" if code == -signal.SIGKILL else ""
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"the model's process was ended by {name}{hint}"
