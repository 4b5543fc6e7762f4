"""The agent's hold on its measuring child: start it, give it one model, read its lines, end it when it
overstays.

Never loads a model and never waits: `advance` returns at once. Must not know sockets or the store.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_bridge.measuring.lines import FailureLine, Line, Order, PhaseLine, decode_line, encode_line
from edge_bridge.wire.protocol import Phase
from edge_bridge.wire.quantities import Profile, Settings


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What a model may take.

    Attributes
    ----------
    memory_bytes
        Address space of the model's process; 0 for no limit (CUDA reserves more than there is).
    load_s
        Building the session.
    stall_s
        Beyond the time that the settings give to warm-up and to measuring: one run may take so long.
    """

    memory_bytes: int = 0
    load_s: float = 120.0
    stall_s: float = 30.0


def phase_limit_s(phase: Phase, settings: Settings, limits: ChildLimits) -> float:
    """How long a phase may last before its model is given up."""
    match phase:
        case "queued" | "loading":
            return limits.load_s
        case "warming":
            return settings.warmup_max_seconds + limits.stall_s
        case "measuring":
            return settings.max_seconds + limits.stall_s


class Measurer:
    """One measuring child, started when needed and again after it had to be ended.

    Parameters
    ----------
    profile
        The device; its runtime and provider are the ones used.
    folder
        Private folder for model files; what is in it is deleted.
    """

    def __init__(self, profile: Profile, folder: Path, limits: ChildLimits) -> None:
        self._profile = profile
        self._folder = folder
        self._limits = limits
        self._settings: Settings | None = None
        self._phase: Phase = "queued"
        self._deadline_s = 0.0
        self._count = 0
        self._buffer = b""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()
        self._child = self._start()

    @property
    def busy(self) -> bool:
        """Whether a model is being measured."""
        return self._settings is not None

    def descriptors(self) -> list[int]:
        """File descriptors that are readable when `advance` has something to say."""
        stdout = self._child.stdout
        return [] if stdout is None or stdout.closed else [stdout.fileno()]

    def begin(self, model: bytes, settings: Settings) -> None:
        """Measure this model; `advance` tells how it goes. Only when not busy."""
        assert not self.busy
        # A name of its own: the child may still be removing the file of the model before.
        path = self._folder / f"model-{self._count}.onnx"
        self._count += 1
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            stream.write(model)
        if self._child.poll() is not None:
            self._restart()
        order = Order(
            model_path=str(path),
            settings=settings,
            profile=self._profile,
            memory_limit_bytes=self._limits.memory_bytes if self._profile.provider == "cpu" else 0,
        )
        self._settings = settings
        self._enter("queued")
        try:
            assert self._child.stdin is not None
            self._child.stdin.write(encode_line(order))
        except BrokenPipeError:
            pass  # it has just died; `advance` finds the end of its output

    def advance(self) -> list[Line]:
        """Lines since the last call. After a measurement or a failure the measurer is free again."""
        lines: list[Line] = []
        for line in self._read():
            if isinstance(line, PhaseLine):
                self._enter(line.phase)
            elif self.busy:
                self._settings = None
            lines.append(line)
        if self.busy and time.monotonic() > self._deadline_s:
            assert self._settings is not None
            limit_s = phase_limit_s(self._phase, self._settings, self._limits)
            lines.append(FailureLine("time-out", f"{self._phase} took more than {limit_s:g} s"))
            self._settings = None
            self._restart()
        return lines

    def close(self) -> None:
        """End the child, whatever it is at."""
        self._end_child()

    def _read(self) -> list[Line]:
        data = b""
        for descriptor in self.descriptors():
            try:
                data = os.read(descriptor, 65_536)
            except BlockingIOError:
                return []
        if not data:
            return self._ended() if self.descriptors() else []
        *whole, self._buffer = (self._buffer + data).split(b"\n")
        try:
            return [decode_line(line) for line in whole]
        except msgspec.MsgspecError as error:
            self._restart()
            return [FailureLine("internal", f"the measuring child said nonsense: {error}"[:500])]

    def _ended(self) -> list[Line]:
        """The child has closed its output: it is dead, or it is of no use any more."""
        self._end_child()
        if not self.busy:
            return []
        code = self._child.returncode
        self._child = self._start()
        return [FailureLine("crashed", f"the measuring child ended with code {code}")]

    def _restart(self) -> None:
        self._end_child()
        self._child = self._start()

    def _enter(self, phase: Phase) -> None:
        assert self._settings is not None
        self._phase = phase
        self._deadline_s = time.monotonic() + phase_limit_s(phase, self._settings, self._limits)

    def _start(self) -> subprocess.Popen[bytes]:
        self._buffer = b""
        child = subprocess.Popen(
            [sys.executable, "-m", "edge_bridge.measuring.child", self._profile.runtime, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            # One thread in numpy's library, so that the child forks from a single thread.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"},
        )
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        return child

    def _end_child(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                stream.close()
