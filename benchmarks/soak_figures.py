"""What a soak's record says: how fast the memory of each process grows, and what became of the faults; pure.

Memory is a process's own: anonymous pages, shared memory and swap. Pages of files (libraries) are left out, because the
kernel takes and drops them as others need room. A slope is Theil and Sen's over the life of one process after its
warm-up, on medians over short pieces of time, since neighbouring samples are not independent. Must not know how
samples are taken.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from scipy.stats import theilslopes

from mpinas.search.forest import EXAMPLES_MAX

ROLES = ("rank 0", "relay", "agent")
#: Samples of so many seconds become one point.
PIECE_S = 30.0
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory of one process at one moment.

    Attributes
    ----------
    job
        Number of the job in the record.
    began
        When the process began, in the kernel's clock ticks: with its id, what tells it from all others.
    own_kib, rss_kib
        Its own memory, and all that is resident.
    evaluated
        Candidates that the run had evaluated by then.
    """

    job: int
    role: str
    pid: int
    began: int
    age_s: float
    own_kib: int
    rss_kib: int
    evaluated: int


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault. `exit_s`: from it to the end of the job; None where the job is to go on."""

    job: int
    fault: str
    exit_s: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A job has ended.

    Attributes
    ----------
    cause
        The fault that was to end it, "search at its end", "soak over", "interrupted"; anything else is wrong.
    twice, lost
        Candidates that this job evaluated a second time, or that an earlier journal had and this one has not.
    attempts_failed, candidates_failed
        Trainings that ended without a result; candidates that were given up.
    hung
        The job stood still or had to be killed; processes that outlived it.
    """

    job: int
    cause: str
    code: int | None
    resumed: bool
    seconds: float
    evaluated: int
    attempts_failed: int
    candidates_failed: int
    twice: int
    lost: int
    hung: int
    remark: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """What the search remembers by design: memory of a coordinator that has folded a journal, and of how many."""

    candidates: int
    kib: float


Record = Sample | Strike | Ended | History


@dataclass(frozen=True, slots=True)
class Slope:
    """`value` within `low` to `high`, seen over so much (`span`) of what it is a slope in."""

    value: float
    low: float
    high: float
    span: float


def of_processes(samples: Iterable[Sample], role: str) -> list[list[Sample]]:
    """Samples of each process of a role, oldest first."""
    found: dict[tuple[int, int], list[Sample]] = {}
    for each in samples:
        if each.role == role:
            found.setdefault((each.pid, each.began), []).append(each)
    return [sorted(process, key=lambda each: each.age_s) for process in found.values()]


def warm(process: Sequence[Sample], warm_up_s: float, least_s: float) -> list[Sample]:
    """A process's samples after its warm-up; none where they cover less than `least_s`."""
    rest = [each for each in process if each.age_s >= warm_up_s]
    return rest if rest and rest[-1].age_s - rest[0].age_s >= least_s else []


def slope(process: Sequence[Sample], of: Callable[[Sample], float], piece_s: float = PIECE_S) -> Slope | None:
    """KiB of own memory for each unit of `of`; None where too little is known."""
    pieces = [list(piece) for _, piece in itertools.groupby(process, lambda each: each.age_s // piece_s)]
    at = [statistics.median(map(of, piece)) for piece in pieces]
    own = [statistics.median(each.own_kib for each in piece) for piece in pieces]
    if len(set(at)) < 3:
        return None
    fit = theilslopes(own, at, alpha=CONFIDENCE)
    low, high = (float(fit.low_slope), float(fit.high_slope))
    return Slope(float(fit.slope), low, high, max(at) - min(at))


def pooled(slopes: Sequence[Slope]) -> Slope | None:
    """All growth over all that was seen: the mean, each with the weight of its span."""
    span = sum(each.span for each in slopes)
    if not span:
        return None
    value = sum(each.value * each.span for each in slopes) / span
    below = math.sqrt(sum(((each.value - each.low) * each.span) ** 2 for each in slopes)) / span
    above = math.sqrt(sum(((each.high - each.value) * each.span) ** 2 for each in slopes)) / span
    return Slope(value, value - below, value + above, span)


def good(record: Sequence[Record]) -> bool:
    """Nothing was lost or done twice, nothing hung, and no job ended by what it should have lived through."""
    ended = [each for each in record if isinstance(each, Ended)]
    return not any(each.twice or each.lost or each.hung or each.remark for each in ended)


def table(record: Sequence[Record], warm_up_s: float, least_s: float) -> str:
    samples = [each for each in record if isinstance(each, Sample)]
    warm_of = {
        role: [some for process in of_processes(samples, role) if (some := warm(process, warm_up_s, least_s))]
        for role in ROLES
    }
    full = [[each for each in process if each.evaluated >= EXAMPLES_MAX] for process in warm_of["rank 0"]]
    full = [some for process in full if (some := warm(process, warm_up_s, least_s))]
    shown = {"rank 0": warm_of["rank 0"], f"rank 0, from {EXAMPLES_MAX} candidates on": full} | warm_of
    lines = [*_memory(samples, shown), "", *_rank_0(record, full), "", *_faults(record), ""]
    return "\n".join([*lines, _counts(record)])


def _memory(samples: Sequence[Sample], shown: dict[str, list[list[Sample]]]) -> list[str]:
    rows = [
        "| process | lives seen, hours after warm-up | own memory after warm-up, median | largest then: own, resident "
        "| slope, MiB an hour (95%) | steepest life |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for role, processes in shown.items():
        slopes = [found for process in processes if (found := slope(process, lambda each: each.age_s / 3600))]
        whole, all_ = pooled(slopes), [each for process in processes for each in process]
        if whole is None:
            rows.append(f"| {role} | none long enough | | | | |")
            continue
        at_first = statistics.median(process[0].own_kib for process in processes)
        steepest = max(slopes, key=lambda each: each.value)
        cells = [
            role,
            f"{len(slopes)}, {whole.span:.2f} h",
            f"{at_first / 1024:.1f} MiB",
            f"{max(e.own_kib for e in all_) / 1024:.1f} MiB, {max(e.rss_kib for e in all_) / 1024:.1f} MiB",
            _mib(whole),
            f"{_mib(steepest)} in {60 * steepest.span:.0f} min",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _mib(it: Slope) -> str:
    return f"{it.value / 1024:.2f} ({it.low / 1024:.2f} to {it.high / 1024:.2f})"


def _rank_0(record: Sequence[Record], processes: Sequence[Sequence[Sample]]) -> list[str]:
    """Rank 0 remembers every candidate: its growth by candidates, beside what they need by design.

    `processes`: only from when its surrogate models learn from as many examples as they ever do; before, they grow.
    """
    grown = pooled([found for each in processes if (found := slope(each, lambda sample: sample.evaluated))])
    by_time = pooled([found for each in processes if (found := slope(each, lambda sample: sample.age_s / 3600))])
    if grown is None or by_time is None:
        return [
            f"Rank 0: not seen for long enough after {EXAMPLES_MAX} candidates, up to which its surrogate models grow, "
            "to tell its history from a leak."
        ]
    told = (
        f"From {EXAMPLES_MAX} candidates on, when its surrogate models grow no more, rank 0 grew by "
        f"{grown.value:.1f} KiB ({grown.low:.1f} to {grown.high:.1f}) for each candidate evaluated, over "
        f"{grown.span:.0f} of them."
    )
    histories = [each for each in record if isinstance(each, History) and each.candidates]
    if not histories:
        return [told]
    design = sum(each.kib for each in histories) / sum(each.candidates for each in histories)
    hourly = grown.span / by_time.span
    rest = (by_time.value - design * hourly) / 1024
    return [
        f"{told} By design it remembers {design:.1f} KiB of each (the journal folded anew, in a process that does "
        f"nothing else): at {hourly:.0f} an hour {design * hourly / 1024:.2f} MiB an hour, which leaves {rest:.2f}."
    ]


def _faults(record: Sequence[Record]) -> list[str]:
    rows = ["| fault | times | fault to exit, p50 / max |", "| --- | ---: | ---: |"]
    strikes = [each for each in record if isinstance(each, Strike)]
    for fault, times in sorted(Counter(each.fault for each in strikes).items()):
        exits = [each.exit_s for each in strikes if each.fault == fault and each.exit_s is not None]
        how = f"{statistics.median(exits):.1f} s / {max(exits):.1f} s" if exits else "goes on"
        rows.append(f"| {fault} | {times} | {how} |")
    return rows


def _counts(record: Sequence[Record]) -> str:
    ended = [each for each in record if isinstance(each, Ended)]
    evaluated, attempts, given_up, twice, lost, hung = (
        sum(getattr(each, what) for each in ended)
        for what in ("evaluated", "attempts_failed", "candidates_failed", "twice", "lost", "hung")
    )
    wrong = sum(bool(each.remark) for each in ended)
    minutes, resumed = sum(each.seconds for each in ended) / 60, sum(each.resumed for each in ended)
    return (
        f"{minutes:.0f} minutes, {len(ended)} jobs, {resumed} of them resumed: {evaluated} evaluations, {twice} twice, "
        f"{lost} lost; {attempts} attempts at a training and {given_up} candidates failed by the faults; {hung} hangs "
        f"or processes left; {wrong} jobs ended otherwise than meant."
    )
