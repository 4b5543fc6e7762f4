"""A camera's windows against a model, in real or in virtual time: when each window is complete, what the queue
does, which results are in time.

Pure: clock, waiting and work come in. Must not know files, runtimes or processes. All times are nanoseconds
since the first frame began, by the clock that is given.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from edge_bridge.measuring.benchmark import percentile

T = TypeVar("T")
Times = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Windows:
    """Where windows lie in a recording and when the camera has finished them; both in the camera's order.

    Attributes
    ----------
    starts
        First frame of each window, as a position in the recording.
    complete_after
        Frames that the camera has sent when the window is complete. More than the recording holds where the
        recording is repeated.
    """

    starts: Times  # [windows]
    complete_after: Times  # [windows]


def cut_windows(layer_frames: Sequence[int], length: int, stride: int, most_frames: int) -> Windows:
    """Cut windows of `length` frames every `stride` frames; none reaches over the end of a layer.

    Frames left over at the end of a layer take their camera time all the same. The recording is begun again until
    the camera has sent `most_frames`; give no more than its length to play it once.
    """
    layers = []
    offset = 0
    for count in layer_frames:
        layers.append(np.arange(offset, offset + count - length + 1, stride, dtype=np.int64))
        offset += count
    starts = np.concatenate(layers) if layers else np.zeros(0, np.int64)
    rounds = -(-most_frames // offset) if offset else 0
    sent = np.arange(rounds, dtype=np.int64)[:, None] * offset + starts + length  # [rounds, windows a round]
    complete_after = sent.reshape(-1)  # [rounds * windows a round]
    wanted = int(np.searchsorted(complete_after, most_frames, side="right"))
    return Windows(np.tile(starts, rounds)[:wanted], complete_after[:wanted])


@dataclass(frozen=True, slots=True)
class Plan:
    """What comes when, and what is asked.

    Attributes
    ----------
    arrivals_ns
        When each window is complete; ascending.
    deadline_ns
        A result must be out so long after its window was complete.
    queue
        Windows that may wait; one more pushes out the oldest.
    batch
        Windows that one run may take.
    """

    arrivals_ns: Sequence[int]
    deadline_ns: int
    queue: int = 64
    batch: int = 1


class Work(Protocol[T]):
    """What is done with windows `first` to `first + count - 1`, in two steps timed apart."""

    def cut(self, first: int, count: int) -> T:
        """Make the model's input."""

    def run(self, item: T) -> object:
        """Return when the result is out."""


@dataclass(frozen=True, slots=True)
class Log:
    """What happened, run by run; everything else follows from it and the plan."""

    #: [runs, 5]: first window, windows, taken, input ready, result out. Windows are taken in order, once.
    runs: Times
    #: When the loop gave up waiting for work or was through.
    end_ns: int


def replay(plan: Plan, work: Work[T], clock_ns: Callable[[], int], wait_until: Callable[[int], object]) -> Log:
    """Take windows as they come, the oldest first, until all are done.

    The oldest is pushed out of a full queue because the newest says what the machine does now. When the last
    deadline is over, what still waits is left: it is late in any case, and a slow model could need minutes.
    """
    arrivals = plan.arrivals_ns
    last_deadline_ns = arrivals[-1] + plan.deadline_ns if len(arrivals) else 0
    runs = array("q")
    head = tail = 0
    while head < len(arrivals):
        now_ns = clock_ns()
        tail = bisect_right(arrivals, now_ns, tail)
        if head == tail:
            wait_until(arrivals[tail])
            continue
        if now_ns > last_deadline_ns and runs:
            break
        head = max(head, tail - plan.queue)
        count = min(plan.batch, tail - head)
        item = work.cut(head, count)
        ready_ns = clock_ns()
        work.run(item)
        runs.extend((head, count, now_ns, ready_ns, clock_ns()))
        head += count
    return Log(np.array(runs, np.int64).reshape(-1, 5), clock_ns())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a replay says; `windows` = `kept` + `late` + `dropped`.

    Attributes
    ----------
    dropped
        Windows that were never worked on: pushed out of a full queue, or left at the end.
    queue_max, queue_mean
        Windows complete and not yet taken; the mean is over time.
    response_*
        From a window's last frame to its result.
    service_*
        Making the input and running the model, for each window of a run.
    model_p50_s, cut_p50_s
        One run, and making its input.
    wake_p99_s
        How late the loop noticed a window for which it was waiting: the machine's part of a response.
    busy_share
        Share of the replay in which the loop worked.
    mean_batch
        Windows a run.
    """

    windows: int
    kept: int
    late: int
    dropped: int
    queue_max: int
    queue_mean: float
    response_p50_s: float
    response_p99_s: float
    response_max_s: float
    service_p50_s: float
    service_p99_s: float
    model_p50_s: float
    cut_p50_s: float
    wake_p99_s: float
    busy_share: float
    mean_batch: float

    @property
    def share_kept(self) -> float:
        """Share of the windows whose result was out before its deadline."""
        return self.kept / self.windows


def judge(plan: Plan, log: Log) -> Outcome:
    """Work out from a log, which holds at least one run, what an engineer asks."""
    arrivals = np.asarray(plan.arrivals_ns, np.int64)
    first, count, taken, ready, done = log.runs.T
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    served = np.repeat(first, count) + within
    responses = np.repeat(done, count) - arrivals[served]
    late = int((responses > plan.deadline_ns).sum())
    idle_since = np.concatenate([[0], done[:-1]])
    woken = (taken - arrivals[first])[arrivals[first] > idle_since]
    seen = np.searchsorted(arrivals, taken, side="right")  # windows complete when each run took its own
    left_at = _left_queue_at(plan, log, served, np.repeat(taken, count))
    still_waiting = len(arrivals) - int(first[-1] + count[-1])
    services = (done - taken) / count
    return Outcome(
        windows=len(arrivals),
        kept=len(served) - late,
        late=late,
        dropped=len(arrivals) - len(served),
        queue_max=min(plan.queue, max(still_waiting, int((seen - first).max()))),
        queue_mean=float((left_at - arrivals).sum() / max(log.end_ns, 1)),
        response_p50_s=_share(responses, 0.5),
        response_p99_s=_share(responses, 0.99),
        response_max_s=float(responses.max()) / 1e9,
        service_p50_s=_share(services, 0.5),
        service_p99_s=_share(services, 0.99),
        model_p50_s=_share(done - ready, 0.5),
        cut_p50_s=_share(ready - taken, 0.5),
        wake_p99_s=_share(woken, 0.99) if len(woken) else 0.0,
        busy_share=min(1.0, float((done - taken).sum()) / max(log.end_ns, 1)),
        mean_batch=float(count.mean()),
    )


def _left_queue_at(plan: Plan, log: Log, served: Times, taken: Times) -> Times:
    """When each window left the queue: taken, pushed out by the one `queue` places behind it, or at the end."""
    arrivals = np.asarray(plan.arrivals_ns, np.int64)
    left_at = np.full(len(arrivals), log.end_ns, np.int64)
    left_at[: -plan.queue] = np.minimum(arrivals[plan.queue :], log.end_ns)
    left_at[served] = taken
    return left_at


def _share(values_ns: npt.NDArray[np.int64] | npt.NDArray[np.float64], share: float) -> float:
    """Nearest-rank percentile, in seconds."""
    return float(percentile(np.sort(values_ns).tolist(), share)) / 1e9
