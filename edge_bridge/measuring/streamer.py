"""Hold on the stream test's process: start it, wait for its report, end it when it overstays.

Never loads a model or a recording. Must not know what is in the lines beyond phases, report and failure.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec

from edge_bridge.endings import Endings
from edge_bridge.errors import BridgeError
from edge_bridge.measuring.stream_lines import (
    WARMUP_MOST_S,
    StreamFailureLine,
    StreamLine,
    StreamOrder,
    StreamPhase,
    StreamPhaseLine,
    StreamReport,
    StreamReportLine,
    decode_stream_line,
    encode_stream_line,
)

LINE_LIMIT_BYTES = 1 << 20
#: The system takes no wait of years.
MOST_WAIT_S = 3600.0


def phase_limit_s(phase: StreamPhase, order: StreamOrder, load_s: float, stall_s: float) -> float:
    """How long a phase may last before the test is given up; `stall_s` is the longest time of one run.

    But for the first run at a batch size, in which a runtime may build an engine: that may take as long as loading.
    """
    match phase:
        case "starting" | "loading" | "reading":
            return load_s
        case "warming":
            return WARMUP_MOST_S + max(stall_s, load_s)
        case "replaying":
            return order.camera_s + (order.deadline_s or order.camera_s) + stall_s


def run_stream(
    order: StreamOrder,
    endings: Endings,
    on_phase: Callable[[StreamPhase], None],
    load_s: float = 120.0,
    stall_s: float = 30.0,
) -> StreamReport:
    """Make a stream test in a process of its own and return its report.

    Raises
    ------
    BridgeError
        One line: what the test's process said, how it died, what it overstayed, or who asked to end.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "edge_bridge.measuring.stream", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
        # numpy's threads take address space, and cores from the model.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    phase: StreamPhase = "starting"
    buffer = b""
    try:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(encode_stream_line(order))
        while True:
            limit_s = phase_limit_s(phase, order, load_s, stall_s)
            deadline_s = time.monotonic() + limit_s
            while b"\n" not in buffer:
                buffer += _read_more(
                    child.stdout.fileno(), endings, deadline_s, f"{phase} took more than {limit_s:g} s"
                )
                if len(buffer) > LINE_LIMIT_BYTES:
                    raise BridgeError("the stream test's process said nonsense: a line without an end")
            line, _, buffer = buffer.partition(b"\n")
            match _decoded(line):
                case StreamPhaseLine(phase=phase):
                    on_phase(phase)
                case StreamReportLine(report=report):
                    return report
                case StreamFailureLine(detail=detail):
                    raise BridgeError(detail)
    except EOFError:
        code = child.wait(timeout=5)
        raise BridgeError(f"the stream test's process {_how(code)} while {phase} ({order.model_path})") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdin.close()
        child.stdout.close()


def _read_more(descriptor: int, endings: Endings, deadline_s: float, overstayed: str) -> bytes:
    """Bytes that the child says; EOFError at their end."""
    while True:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise BridgeError(f"the stream test was given up: {overstayed}; see --load-seconds, --stall-seconds")
        for ready in select.select([*endings.descriptors(), descriptor], [], [], min(left_s, MOST_WAIT_S))[0]:
            if ready == descriptor:
                if data := os.read(descriptor, 65_536):
                    return data
                raise EOFError
            if asked := endings.asked_by(ready):
                raise BridgeError(f"ended by {asked}")


def _decoded(line: bytes) -> StreamLine:
    try:
        return decode_stream_line(line)
    except msgspec.MsgspecError as error:
        raise BridgeError(f"the stream test's process said nonsense: {error}"[:500]) from None


def _how(code: int) -> str:
    if code < 0:
        hint = " (memory of the machine exhausted?)" if code == -signal.SIGKILL else ""
        return f"was ended by {signal.Signals(-code).name}{hint}"
    return f"ended with exit code {code}"
