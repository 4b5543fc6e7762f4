"""The stream test's own process: load a model, read a recording ahead, replay it at the camera's rate.

Run as ``python -m edge_bridge.measuring.stream PARENT_PID``; the order arrives on standard input, lines leave on
standard output. A model or a file that hangs, leaks or crashes a library ends this process and nothing else. Must not
know sockets or the protocol.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edge_bridge.errors import BridgeError
from edge_bridge.measuring.child import die_with
from edge_bridge.measuring.replay import Outcome, Plan, Windows, cut_windows, judge, replay
from edge_bridge.measuring.runtimes import BadModelError, LoadedModel, get_runtime, in_short, runtime_versions
from edge_bridge.measuring.stream_lines import (
    MOST_WINDOWS,
    WARMUP_MOST_S,
    StreamFailureLine,
    StreamLine,
    StreamOrder,
    StreamPhaseLine,
    StreamReport,
    StreamReportLine,
    decode_stream_order,
    encode_stream_line,
)
from edge_bridge.measuring.stream_work import ModelWork, WindowSpec, window_spec

if TYPE_CHECKING:
    from edge_bridge.measuring.footage import Footage

#: The warm-up runs each batch size once, then single windows for so long and so many runs in all.
WARMUP_S = 0.5
WARMUP_RUNS = 10
#: A sleep may end late; so long before a window is due the loop looks at the clock instead.
SPIN_NS = 100_000
#: How runtimes and the loader of libraries say that there is no memory.
OUT_OF_MEMORY = ("bad_alloc", "allocate memory", "Failed to allocate", "failed to map segment")

Say = Callable[[StreamLine], None]


def stream(order: StreamOrder, say: Say) -> StreamReport:
    """Make the whole test in this process.

    Raises
    ------
    BridgeError
        One line for what the user can mend.
    """
    say(StreamPhaseLine("loading"))
    start_s = time.perf_counter()
    model = _load(order)
    load_s = time.perf_counter() - start_s
    try:
        spec = window_spec(list(model.inputs), order.batch)
    except BridgeError as error:
        raise BridgeError(f"model {order.model_path}: {error}") from None
    say(StreamPhaseLine("reading"))
    most_frames = _most_frames(order)
    footage = _read_ahead(order, most_frames)
    sent = most_frames if order.repeat else len(footage.frames)
    stride = order.stride or spec.frames
    windows = _windows(order, footage, spec, stride, sent)
    plan = Plan(
        arrivals_ns=[round(frames * 1e9 / order.rate_hz) for frames in windows.complete_after.tolist()],
        deadline_ns=round((order.deadline_s or stride / order.rate_hz) * 1e9),
        queue=order.queue,
        batch=order.batch,
    )
    work = ModelWork(model, spec, footage.frames, windows.starts.tolist(), order.batch)
    try:
        say(StreamPhaseLine("warming"))
        warmup_runs, warmup_cut = warm_up_work(work, order.batch, len(windows.starts), time.monotonic)
        say(StreamPhaseLine("replaying"))
        outcome = _replay_now(plan, work)
    except MemoryError:
        raise
    except Exception as error:
        # A runtime raises what it likes for a model that does not run.
        raise BridgeError(f"model {order.model_path}: failed while running ({_line(error)})") from None
    return StreamReport(
        **{name: getattr(outcome, name) for name in Outcome.__slots__},
        keeps_up=outcome.late + outcome.dropped <= order.allowed_misses * outcome.windows,
        share_kept=outcome.share_kept,
        highest_rate_hz=stride / outcome.service_p99_s,
        rate_hz=order.rate_hz,
        allowed_misses=order.allowed_misses,
        deadline_s=plan.deadline_ns / 1e9,
        queue=order.queue,
        batch=order.batch,
        window_shape=[spec.frames, spec.height, spec.width],
        stride=stride,
        frame_shape=list(footage.frames.shape[1:]),
        cropped=work.cropped,
        simulated=footage.simulated,
        repeated=sent > len(footage.frames),
        preload_cut=not footage.complete,
        layers=len(footage.layer_frames),
        recording_frames=len(footage.frames),
        frames=sent,
        camera_s=sent / order.rate_hz,
        load_s=load_s,
        warmup_runs=warmup_runs,
        warmup_cut=warmup_cut,
        threads=order.threads,
        precision=order.precision,
        runtime=order.runtime,
        provider=order.provider,
        hardware=order.hardware,
        versions=runtime_versions(order.runtime),
    )


def failure_of(error: Exception, order: StreamOrder) -> StreamFailureLine:
    """Turn what a test can raise into one line."""
    text = _line(error)
    if isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY):
        limit = (
            f"the {order.memory_limit_bytes / 2**20:.0f} MB that it may take" if order.memory_limit_bytes else "fits"
        )
        text = f"model {order.model_path}: with the frames it needs more memory than {limit}; see --memory-limit-mb"
    elif not isinstance(error, BridgeError):
        text = f"the stream test failed ({type(error).__name__}: {text})"
    # Names in a file may be no UTF-8.
    return StreamFailureLine(text.encode(errors="replace").decode())


def _load(order: StreamOrder) -> LoadedModel:
    runtime = get_runtime(order.runtime)
    known = runtime.precisions(order.provider)
    if order.precision not in known:
        raise BridgeError(
            f"--precision {order.precision}: {order.runtime} with {order.provider} runs a model as {' or '.join(known)}"
        )
    if order.threads > (cores := len(os.sched_getaffinity(0))):
        raise BridgeError(f"--threads {order.threads}: a model may use {cores} cores here")
    try:
        return runtime.load(Path(order.model_path), order.provider, order.threads, order.precision)
    except OSError as error:
        raise BridgeError(f"model {order.model_path}: cannot be read ({error.strerror}); check the path") from None
    except BadModelError as error:
        raise BridgeError(f"model {order.model_path}: cannot be loaded ({in_short(_line(error))})") from None


def _most_frames(order: StreamOrder) -> int:
    by_time = max(1, round(order.camera_s * order.rate_hz))
    return min(order.frames, by_time) if order.frames else by_time


def _read_ahead(order: StreamOrder, most_frames: int) -> Footage:
    try:
        from edge_bridge.measuring.footage import read_footage
    except ImportError as error:
        raise BridgeError(f"recordings need h5py ({error}): pip install h5py, or the extra [device]") from None
    return read_footage(Path(order.recording_path), order.layer, most_frames, order.preload_bytes)


def _windows(order: StreamOrder, footage: Footage, spec: WindowSpec, stride: int, sent: int) -> Windows:
    a_round = sum((count - spec.frames) // stride + 1 for count in footage.layer_frames if count >= spec.frames)
    at_most = a_round * -(-sent // len(footage.frames))
    if at_most > MOST_WINDOWS:
        raise BridgeError(
            f"{at_most} windows, at most {MOST_WINDOWS} are replayed: give fewer --seconds or a larger --stride"
        )
    windows = cut_windows(footage.layer_frames, spec.frames, stride, sent)
    if not len(windows.starts):
        raise BridgeError(
            f"recording {order.recording_path}: no window of {spec.frames} frames in it: the longest layer has"
            f" {max(footage.layer_frames)} (as far as --frames and --seconds go); replay more, or another recording"
        )
    return windows


def warm_up_work(work: ModelWork, batch: int, windows: int, clock_s: Callable[[], float]) -> tuple[int, bool]:
    """Return the runs, and whether time was over before every batch size had been run."""
    start_s = clock_s()
    runs = 0
    cut = False
    # A single window first, for most runs take one; then the others, the largest first.
    for count in (1, *range(min(batch, windows), 1, -1)):
        cut = runs > 0 and clock_s() - start_s >= WARMUP_MOST_S
        if cut:
            break
        work.run(work.cut(0, count))
        runs += 1
    while (now_s := clock_s() - start_s) < WARMUP_MOST_S and (now_s < WARMUP_S or runs < WARMUP_RUNS):
        work.run(work.cut(runs % windows, 1))
        runs += 1
    return runs, cut


def _replay_now(plan: Plan, work: ModelWork) -> Outcome:
    gc.collect()
    gc.disable()
    begin_ns = time.perf_counter_ns()

    def clock_ns() -> int:
        return time.perf_counter_ns() - begin_ns

    def wait_until(due_ns: int) -> None:
        while (left_ns := due_ns - clock_ns()) > 0:
            if left_ns > SPIN_NS:
                time.sleep((left_ns - SPIN_NS) / 1e9)

    log = replay(plan, work, clock_ns, wait_until)
    gc.enable()
    return judge(plan, log)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:1000] or type(error).__name__


def main() -> None:
    """Carry out the one order on standard input."""
    die_with(int(sys.argv[1]))
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    # What a runtime prints must not mix with the lines.
    lines = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    order = decode_stream_order(sys.stdin.buffer.readline())
    if order.memory_limit_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (order.memory_limit_bytes, order.memory_limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def say(line: StreamLine) -> None:
        lines.write(encode_stream_line(line))

    try:
        say(StreamReportLine(stream(order, say)))
    except Exception as error:
        say(failure_of(error, order))
    # Without taking the runtime down: some crash when they are.
    os._exit(0)


if __name__ == "__main__":
    main()
