"""A runtime for tests only: takes anything for a model, at once, and runs nothing.

Found by its entry point where this folder is on PYTHONPATH, as a runtime of somebody else would be. A model whose
bytes begin with a word does what the word says:

- `abort`: its process ends by SIGABRT when it is run; `exit`: with code 3.
- `hang`: a run after the first does not return. `sleep SECONDS`: each run takes so long.
- `slow-load SECONDS`: loading takes so long.
- `nan`: outputs that are not finite. `hungry`: its resident memory grows by 64 MB with each run.
- `drift`: each run takes longer than the one before.
- `parrot`: says nonsense on every open pipe. `half`: half a line, and is killed in the middle of it.
- `endless-line`: says a line without an end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edge_bridge.measuring.runtimes import InputSpec

HOARD: list[bytearray] = []


class FakeModel:
    def __init__(self, words: list[str], precision: str) -> None:
        self._word = words[0] if words else ""
        self._seconds = float(words[1]) if len(words) > 1 else 0.0
        self._runs = 0
        self._bound = 0
        self._precision = precision
        self.inputs = (InputSpec("x", (None, 4), np.dtype(np.float32)),)

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        self._bound += 1
        return int if not self._word else self._once

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Twice the input; rounded to half precision when asked so."""
        found = inputs["x"] * 2
        if self._word == "nan":
            found = found * np.nan
        return [found.astype(np.float16) if self._precision == "fp16" else found]

    def _once(self) -> None:
        self._runs += 1
        match self._word:
            case "abort":
                os.abort()
            case "exit":
                os._exit(3)
            case "hang" if self._runs > 1:
                while True:
                    time.sleep(60)
            case "sleep":
                time.sleep(self._seconds)
            case "hungry":
                HOARD.append(bytearray(b"x" * (64 << 20)))
                time.sleep(0.2)
            case "drift":
                _spin(20e-6 * self._runs)
            case "parrot":
                _say_everywhere(b"{nonsense}\n")
            case "half":
                _say_everywhere(b'{"type": "meas')
                time.sleep(0.1)  # for whoever reads
                os.kill(os.getpid(), signal.SIGKILL)
            case "endless-line":
                while True:
                    _say_everywhere(b"x" * (1 << 15))


class FakeRuntime:
    def precisions(self, provider: str) -> tuple[str, ...]:
        return ("model", "fp16")

    def load(self, model: Path, provider: str, threads: int, precision: str) -> FakeModel:
        with open(model, "rb") as stream:
            start = stream.read(64)
        words = start.decode().split() if start[:1].isalpha() and start.isascii() else []
        if words[:1] == ["slow-load"]:
            time.sleep(float(words[1]))
            words = []
        return FakeModel(words, precision)


def _say_everywhere(what: bytes) -> None:
    for each in range(3, 32):
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(os.fstat(each).st_mode):
                os.write(each, what)


def _spin(seconds: float) -> None:
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        pass


RUNTIME = FakeRuntime()
