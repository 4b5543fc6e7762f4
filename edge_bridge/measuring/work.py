"""What a model's process does with it: time it at each batch size, or judge it on a shard.

Runs in a process of its own, which `edge_bridge.measuring.child` makes. Must not know processes, sockets or
the protocol.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_bridge.errors import RuntimeMissingError
from edge_bridge.measuring.benchmark import (
    BLOCK_RUNS,
    BLOCK_S,
    LOADED_RUNS,
    LOADED_S,
    LONG_RUN_S,
    Clock,
    Run,
    Statistics,
    WarmUp,
    pause_before_next_s,
    run_on,
    sample,
    summarise,
    warm_up,
)
from edge_bridge.measuring.effort import Effort, counted_power_w, effort_of, mean_power_w, throttled_between
from edge_bridge.measuring.inputs import UnmeasurableError, make_inputs
from edge_bridge.measuring.lines import FailureLine, JudgedLine, JudgeOrder, Line, MeasuredLine, MeasureOrder, PhaseLine
from edge_bridge.measuring.quality import batch_for, error_of, outputs_over, read_shard
from edge_bridge.measuring.runtimes import Array, BadModelError, LoadedModel, Runtime
from edge_bridge.wire.protocol import Reason
from edge_bridge.wire.quantities import Measurement, Precision, Profile, Quality, Readings, Settings, Timing

Say = Callable[[Line], object]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a measurement takes from outside: whom it tells, the machine's sensors, and time.

    `energy_j` and `power_w` are single readings, for moments at which `read` would take too long.
    """

    say: Say
    read: Callable[[], Readings]
    energy_j: Callable[[], float | None] = lambda: None
    power_w: Callable[[], float | None] = lambda: None
    clock_ns: Clock = time.perf_counter_ns
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Taken:
    """One batch size, measured: what the last attempt gave."""

    found: Statistics
    warm: WarmUp
    attempts: int
    before: Readings
    after: Readings
    effort: Effort


def take(run: Run, batch: int, settings: Settings, around: Surroundings) -> Taken:
    """Time a model that is ready to run, again after a pause while it is unsteady or the machine slows itself down."""
    attempts = 0
    while True:
        attempts += 1
        around.say(PhaseLine("warming", batch=batch, attempt=attempts))
        warm = warm_up(run, settings, around.clock_ns)
        around.say(PhaseLine("measuring", batch=batch, attempt=attempts))
        before = around.read()
        if settings.warmup_max_seconds > 0 and warm.last_s <= LONG_RUN_S:
            # The sensors took milliseconds, in which nothing ran and clocks may have fallen.
            for _ in run_on(run, BLOCK_RUNS, BLOCK_S, around.clock_ns):
                pass
        before_j, start_ns = around.energy_j(), around.clock_ns()
        samples_ns = sample(run, settings, around.clock_ns)
        end_ns, after_j, after_w = around.clock_ns(), around.energy_j(), around.power_w()
        after = around.read()
        found = summarise(samples_ns, settings.percentile)
        doubtful = found.unsteady or throttled_between(before, after) is True
        pause_s = pause_before_next_s(attempts, doubtful, settings)
        if pause_s is None:
            power_w = counted_power_w(before_j, after_j, (end_ns - start_ns) / 1e9)
            if power_w is None and after_w is not None:
                power_w = _loaded_power_w(run, found.mean_s, after_w, around)
            effort = effort_of(before, after, power_w, found.mean_s, batch)
            return Taken(found, warm, attempts, before, after, effort)
        around.say(PhaseLine("cooling", batch=batch, attempt=attempts))
        around.sleep(pause_s)


def _loaded_power_w(run: Run, run_s: float, after_w: float, around: Surroundings) -> float | None:
    """Power of a machine that tells it for one moment only, read between runs that are not timed.

    `after_w` was read when the last timed run was just over: of a long run it is the power.
    """
    if run_s > LONG_RUN_S:
        return after_w
    return mean_power_w([around.power_w() for _ in run_on(run, LOADED_RUNS, LOADED_S, around.clock_ns)])


def measure(order: MeasureOrder, file: Path, runtime: Runtime, around: Surroundings) -> Measurement:
    """Load, warm up and time one model, in this process."""
    settings = order.settings
    if order.profile.provider != "cpu":
        # What a machine counts is the energy of its CPU.
        around = replace(around, energy_j=lambda: None)
    memory_before_bytes = _status_bytes("VmRSS")
    model, load_s = _load(file, order.profile, settings.threads, settings.precision, runtime, around.say)
    takens, shapes = [], []
    kind = "none"
    for batch in settings.batches:
        inputs = make_inputs(model.inputs, batch)
        first = next(iter(inputs.values()), np.zeros(0))
        shapes.append(list(first.shape))
        kind = str(first.dtype) if inputs else kind
        around.say(PhaseLine("loading", batch=batch))
        start_ns = around.clock_ns()
        run = model.bind(inputs)
        # What a runtime puts off until the first run at a batch size (an engine, the choice of kernels) is loading too.
        run()
        load_s += (around.clock_ns() - start_ns) / 1e9
        gc.collect()
        gc.disable()
        takens.append(take(run, batch, settings, around))
        gc.enable()
    timings = [
        Timing(**_timing(taken, batch, shape, settings))
        for taken, batch, shape in zip(takens, settings.batches, shapes, strict=True)
    ]
    first_taken, profile = takens[0], order.profile
    throttled = [each.effort.throttled for each in takens]
    return Measurement(
        **_timing(first_taken, settings.batches[0], shapes[0], settings),
        other_batches=timings[1:],
        load_s=load_s,
        input_type=kind,
        threads=settings.threads,
        precision=settings.precision,
        peak_memory_bytes=max(0, _status_bytes("VmHWM") - memory_before_bytes),
        before=first_taken.before,
        after=first_taken.after,
        power_w=first_taken.effort.power_w,
        joules_per_inference=first_taken.effort.joules_per_inference,
        throttled=None if None in throttled else any(throttled),
        device=profile.name,
        hardware=profile.hardware,
        runtime=profile.runtime,
        provider=profile.provider,
        versions=profile.versions,
    )


def judge(order: JudgeOrder, file: Path, shard: bytes | memoryview, runtime: Runtime, around: Surroundings) -> Quality:
    """Load one model and find its error on a shard, in this process."""
    settings, profile = order.settings, order.profile
    samples = read_shard(shard, settings.shard)
    model, load_s = _load(file, profile, settings.threads, settings.precision, runtime, around.say)
    batch = batch_for(model.inputs, samples.inputs, settings.batch)
    name = model.inputs[0].name

    def first_output(inputs: Array) -> Array:
        outputs = model.run({name: inputs})
        return np.asarray(outputs[0]) if outputs else np.zeros(())

    around.say(PhaseLine("loading", batch=batch))
    start_ns = around.clock_ns()
    # As in `measure`: the first run is part of loading.
    first_output(np.zeros((batch, *samples.inputs.shape[1:]), samples.inputs.dtype))
    load_s += (around.clock_ns() - start_ns) / 1e9
    around.say(PhaseLine("judging", batch=batch))
    end_ns = around.clock_ns() + round(settings.max_seconds * 1e9)
    outputs = outputs_over(first_output, samples.inputs, batch, lambda: around.clock_ns() < end_ns)
    found = error_of(outputs, samples.targets, settings.metric)
    return Quality(
        error=found.error,
        metric=settings.metric,
        per_output=found.per_output,
        samples=len(samples.inputs),
        precision=settings.precision,
        load_s=load_s,
        device=profile.name,
        runtime=profile.runtime,
        provider=profile.provider,
        versions=profile.versions,
    )


def outcome_of(
    order: MeasureOrder | JudgeOrder,
    file: Path,
    shard: bytes | memoryview,
    runtime: Runtime,
    around: Surroundings,
) -> Line:
    """Do the work, and turn whatever a model can raise into a line."""
    try:
        if isinstance(order, JudgeOrder):
            return JudgedLine(judge(order, file, shard, runtime, around))
        return MeasuredLine(measure(order, file, runtime, around))
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


def _load(
    file: Path, profile: Profile, threads: int, precision: Precision, runtime: Runtime, say: Say
) -> tuple[LoadedModel, float]:
    """Return the model and the seconds that loading took."""
    say(PhaseLine("loading"))
    known = runtime.precisions(profile.provider)
    if precision not in known:
        raise UnmeasurableError(
            "unsupported",
            f"precision {precision}: {profile.runtime} with {profile.provider} runs a model as {' or '.join(known)}",
        )
    if 0 < profile.threads < threads:
        raise UnmeasurableError("unsupported", f"{threads} threads: a model may use {profile.threads} cores here")
    start_s = time.perf_counter()
    model = runtime.load(file, profile.provider, threads, precision)
    return model, time.perf_counter() - start_s


def _timing(taken: Taken, batch: int, shape: list[int], settings: Settings) -> dict[str, Any]:
    """Fields of a Timing."""
    found = taken.found
    return {
        "p50_s": found.p50_s,
        "p90_s": found.p90_s,
        "p95_s": found.p95_s,
        "p99_s": found.p99_s,
        "mean_s": found.mean_s,
        "min_s": found.min_s,
        "samples": found.samples,
        "coefficient_of_variation": found.coefficient_of_variation,
        "complete": found.samples >= settings.enough_samples(),
        "unsteady": found.unsteady,
        "warmup_runs": taken.warm.runs,
        "warmup_settled": taken.warm.settled,
        "batch": batch,
        "input_shape": shape,
        "percentile": settings.percentile,
        "interval_s": found.interval_s,
        "attempts": taken.attempts,
    }


def _status_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0
