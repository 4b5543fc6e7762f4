"""A rehearsal of a whole measurement with a model that does nothing, in no time.

What a process does for the first time is slow: imports that wait for their first use, and after a fork each page of
memory that is first written to. Rehearsed beforehand, it does not lie on an order's way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edge_bridge.measuring.lines import Line, MeasureOrder, decode_order, encode_line, encode_order
from edge_bridge.measuring.runtimes import Array, InputSpec
from edge_bridge.measuring.work import Surroundings, outcome_of
from edge_bridge.wire.quantities import Profile, Readings, Settings

_PROFILE = Profile(name="nobody", hardware="", runtime="nothing", provider="cpu", versions={})
#: As short as a measurement can be.
_SETTINGS = Settings(min_seconds=0.0, warmup_min_runs=1, warmup_max_seconds=0.0, attempts=1)


class _Nothing:
    inputs = (InputSpec("x", (None,), np.dtype(np.float32)), InputSpec("i", (1,), np.dtype(np.int64)))

    def precisions(self, provider: str) -> tuple[str, ...]:
        return ("model",)

    def load(self, model: Path, provider: str, threads: int, precision: str) -> _Nothing:
        with open(model, "rb") as stream:
            stream.read(1)
        return self

    def bind(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        return int

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        return []


def rehearse(read: Callable[[], Readings]) -> Line:
    """Go through a measurement from the order's bytes to those of its last line; return that line."""
    order = MeasureOrder(settings=_SETTINGS, profile=_PROFILE, memory_limit_bytes=0)
    # A clock on which every look takes a millisecond: nothing waits for time to pass.
    around = Surroundings(say=encode_line, read=read, clock_ns=itertools.count(0, 1_000_000).__next__)
    line = outcome_of(decode_order(encode_order(order)), Path("/dev/null"), b"", _Nothing(), around)
    encode_line(line)
    return line
