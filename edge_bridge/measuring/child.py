"""The measuring child: imports the runtime once, then forks a fresh process for each model.

Run by the agent as ``python -m edge_bridge.measuring.child RUNTIME PARENT_PID``; orders arrive on standard input,
lines leave on standard output. A model that hangs, leaks or crashes the runtime ends its own process and
nothing else. Must not know sockets or the protocol.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from edge_bridge.errors import RuntimeMissingError
from edge_bridge.measuring.benchmark import sample, summarise, warm_up
from edge_bridge.measuring.lines import FailureLine, Line, MeasuredLine, Order, PhaseLine, encode_line
from edge_bridge.measuring.runtimes import Array, BadModelError, InputSpec, Runtime, get_runtime
from edge_bridge.wire.protocol import Reason
from edge_bridge.wire.quantities import Measurement

#: Most bytes of one model's inputs.
INPUT_LIMIT_BYTES = 1 << 30
INPUT_SEED = 0
_PR_SET_PDEATHSIG = 1

Say = Callable[[Line], None]


class UnmeasurableError(Exception):
    """A measurement that ends with this reason; outcome of the child, never an error of it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason


def measure(order: Order, runtime: Runtime, say: Say) -> Measurement:
    """Load, warm up and time one model, in this process."""
    settings, profile = order.settings, order.profile
    say(PhaseLine("loading"))
    before_bytes = _status_bytes("VmRSS")
    start_s = time.perf_counter()
    path = Path(order.model_path)
    try:
        model = runtime.load(path, profile.provider, settings.threads)
    finally:
        path.unlink(missing_ok=True)
    load_s = time.perf_counter() - start_s
    inputs = make_inputs(list(model.inputs), settings.batches[0])
    run = model.bind(inputs)
    say(PhaseLine("warming"))
    gc.collect()
    gc.disable()
    warm = warm_up(run, settings, time.perf_counter_ns)
    say(PhaseLine("measuring"))
    samples_ns = sample(run, settings, time.perf_counter_ns)
    gc.enable()
    found = summarise(samples_ns)
    first = next(iter(inputs.values()), np.zeros(0))
    return Measurement(
        p50_s=found.p50_s,
        p90_s=found.p90_s,
        p95_s=found.p95_s,
        p99_s=found.p99_s,
        mean_s=found.mean_s,
        min_s=found.min_s,
        samples=found.samples,
        coefficient_of_variation=found.coefficient_of_variation,
        complete=found.samples >= settings.enough_samples(),
        unsteady=found.unsteady,
        warmup_runs=warm.runs,
        warmup_settled=warm.settled,
        load_s=load_s,
        batch=settings.batches[0],
        input_shape=list(first.shape),
        input_type=str(first.dtype),
        threads=settings.threads,
        peak_memory_bytes=max(0, _status_bytes("VmHWM") - before_bytes),
        device=profile.name,
        hardware=profile.hardware,
        runtime=profile.runtime,
        provider=profile.provider,
        versions=profile.versions,
    )


def make_inputs(specs: list[InputSpec], batch: int) -> dict[str, Array]:
    """Seeded inputs: floats uniform in [0, 1), uint8 over its range, other integers and booleans 0 or 1.

    A free first dimension becomes `batch`; a fixed one must equal it unless `batch` is 1; no other may be
    free.
    """
    rng = np.random.default_rng(INPUT_SEED)
    inputs: dict[str, Array] = {}
    total_bytes = 0
    for spec in specs:
        shape = tuple(batch if size is None and axis == 0 else size for axis, size in enumerate(spec.shape))
        if any(size is None for size in shape):
            raise UnmeasurableError(
                "unsupported", f"input {spec.name} {spec.shape}: only the first dimension may be free"
            )
        sizes = tuple(size for size in shape if size is not None)
        if batch != 1 and sizes and sizes[0] != batch:
            raise UnmeasurableError(
                "unsupported", f"input {spec.name} has a fixed batch of {sizes[0]}, asked was {batch}"
            )
        count = int(np.prod(sizes, dtype=object)) if sizes else 1
        total_bytes += count * spec.dtype.itemsize
        if total_bytes > INPUT_LIMIT_BYTES:
            raise UnmeasurableError("too-large", f"inputs of more than {INPUT_LIMIT_BYTES} bytes ({spec.name} {sizes})")
        if spec.dtype.kind == "f":
            values: Array = rng.random(sizes, dtype=np.float32)
        else:
            values = rng.integers(0, 256 if spec.dtype == np.uint8 else 2, sizes)
        inputs[spec.name] = np.ascontiguousarray(np.asarray(values).astype(spec.dtype))
    return inputs


def outcome_of(order: Order, runtime: Runtime, say: Say) -> Line:
    """Measure, and turn whatever a model can raise into a line."""
    try:
        return MeasuredLine(measure(order, runtime, say))
    except UnmeasurableError as error:
        return FailureLine(error.reason, str(error))
    except RuntimeMissingError as error:
        return FailureLine("unsupported", str(error))
    except MemoryError:
        return FailureLine("out-of-memory", f"more than {order.memory_limit_bytes} bytes")
    except Exception as error:
        # A runtime raises what it likes for a model it does not like: an outcome of the model, not of the
        # child.
        text = " ".join(str(error).split())[:1000]
        reason: Reason = "bad-model" if isinstance(error, BadModelError) else "run-failed"
        if "bad_alloc" in text or "allocate memory" in text.lower():
            reason = "out-of-memory"
        return FailureLine(reason, text or type(error).__name__)


def die_with(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent ends, and end now if it has already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def main() -> None:
    """Serve orders until standard input ends."""
    runtime_name, parent_pid = sys.argv[1], int(sys.argv[2])
    die_with(parent_pid)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    # What a runtime prints must not mix with the lines.
    lines = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def say(line: Line) -> None:
        lines.write(encode_line(line))

    try:
        runtime = get_runtime(runtime_name)
    except RuntimeMissingError as error:
        say(FailureLine("unsupported", str(error)))
        sys.exit(1)
    decoder = msgspec.json.Decoder(Order)
    while line := sys.stdin.buffer.readline():
        order = decoder.decode(line)
        own_pid = os.getpid()
        forked = os.fork()
        if forked == 0:
            _measure_and_exit(order, runtime, say, own_pid)
        _, status = os.waitpid(forked, 0)
        Path(order.model_path).unlink(missing_ok=True)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            hint = " (memory of the machine exhausted?)" if code == -signal.SIGKILL else ""
            say(FailureLine("crashed", f"the model's process was ended by {signal.Signals(-code).name}{hint}"))
        elif code > 0:
            say(FailureLine("crashed", f"the model's process ended with exit code {code}"))


def _measure_and_exit(order: Order, runtime: Runtime, say: Say, parent_pid: int) -> None:
    try:
        die_with(parent_pid)
        if order.memory_limit_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (order.memory_limit_bytes, order.memory_limit_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        say(outcome_of(order, runtime, say))
        os._exit(0)
    finally:
        os._exit(70)


def _status_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
