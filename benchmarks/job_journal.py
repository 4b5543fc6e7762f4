"""What a journal says of how busy the trainers were: nothing here is taken from the ledger's own account.

Times are those of rank 0's clock: an order's when it was written down, an answer's when it arrived. Must not know how
the run was started.
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.history.journal import Entry, read

ANSWERS = get_args(msg.Answer)
#: What lets a candidate go to a trainer without any trainer having become free.
ARRIVALS = (ev.Exported, ev.Measured, ev.MeasurementFailed, ev.Predicted, ev.DeviceLost)
#: What an order cannot have waited for: the coordinator's own decisions, and reports that free nobody.
UNMOVING = (ev.Ordered, ev.Proposed, ev.Promoted, ev.Rejected, ev.Judged, ev.JudgingFailed, msg.Progress)
CAUSES = ("start", "measurements", "other trainers", "hand-over", "end")


@dataclass(frozen=True, slots=True)
class Piece:
    """An order from Ordered to its answer. `cause`: what it had to wait for; `worked_s`: what its leader says it took,
    where it does."""

    ranks: tuple[int, ...]
    candidate: int
    work: str
    cause: str
    began_s: float
    ended_s: float
    worked_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """All pieces of a run in the order in which they were begun, and when its first trainer was ready."""

    trainers: int
    first_ready_s: float
    pieces: list[Piece]
    genomes: dict[int, dict[str, Any]]
    errors: dict[int, float]

    @property
    def last_answer_s(self) -> float:
        return max(piece.ended_s for piece in self.pieces)

    @property
    def evaluations(self) -> list[Piece]:
        return [piece for piece in self.pieces if piece.work == "evaluate"]


def read_run(journal: Path) -> Run:
    """The run of a journal that one job has written to its end."""
    entries = read(journal)
    open_: dict[int, tuple[ev.Ordered, float, str]] = {}
    pieces: list[Piece] = []
    moved: Entry | None = None
    for time_s, event in entries:
        if isinstance(event, ev.Ordered):
            assert event.members[0] not in open_, f"{journal}: a leader has two orders"
            open_[event.members[0]] = (event, time_s, _cause(moved, event))
        elif isinstance(event, ANSWERS):
            order, began_s, cause = open_.pop(event.group)
            worked_s = getattr(event, "train_seconds", time_s - began_s)
            pieces.append(Piece(order.members, order.candidate, order.work, cause, began_s, time_s, worked_s))
        if not isinstance(event, UNMOVING):
            moved = (time_s, event)
    assert not open_, f"{journal}: orders without an answer: {sorted(open_)}"
    return Run(
        trainers=next(event.trainers for _, event in entries if isinstance(event, ev.Begun)),
        first_ready_s=min(time_s for time_s, event in entries if isinstance(event, msg.Ready)),
        pieces=sorted(pieces, key=lambda piece: piece.began_s),
        genomes={event.candidate: event.genome for _, event in entries if isinstance(event, ev.Proposed)},
        errors={event.candidate: event.metrics["error"] for _, event in entries if isinstance(event, msg.Evaluated)},
    )


def _cause(moved: Entry | None, order: ev.Ordered) -> str:
    """Why an order was not given before: what had happened last."""
    if moved is not None and isinstance(moved[1], ARRIVALS):
        return "measurements"
    own = moved is not None and isinstance(moved[1], ANSWERS) and moved[1].group in order.members
    return "hand-over" if own else "other trainers"


def figures(run: Run) -> dict[str, Any]:
    """Shares are of all trainers' time from the first ready one to the last answer."""
    span_s = run.last_answer_s - run.first_ready_s
    whole_s = run.trainers * span_s
    idle_s = _idle(run)
    groups = Counter((piece.work, len(piece.ranks)) for piece in run.pieces)
    idle_for_good_s = min(_last_of_rank(run).values())
    return {
        "span_s": span_s,
        "utilisation": sum(len(piece.ranks) * (piece.ended_s - piece.began_s) for piece in run.pieces) / whole_s,
        "idle_share": {cause: idle_s[cause] / whole_s for cause in CAUSES},
        "start_s": max(_first_of_rank(run).values()) - run.first_ready_s,
        "tail_s": run.last_answer_s - idle_for_good_s,
        "candidates": len({piece.candidate for piece in run.evaluations}),
        "groups": {f"{work} by {size}": count for (work, size), count in sorted(groups.items())},
    }


def _first_of_rank(run: Run) -> dict[int, float]:
    return {rank: min(piece.began_s for piece in _of(run, rank)) for rank in range(1, run.trainers + 1)}


def _last_of_rank(run: Run) -> dict[int, float]:
    return {rank: max(piece.ended_s for piece in _of(run, rank)) for rank in range(1, run.trainers + 1)}


def _of(run: Run, rank: int) -> list[Piece]:
    return [piece for piece in run.pieces if rank in piece.ranks]


def _idle(run: Run) -> dict[str, float]:
    """Trainer seconds without an order, by cause."""
    idle_s = dict.fromkeys(CAUSES, 0.0)
    for rank in range(1, run.trainers + 1):
        mine = _of(run, rank)
        idle_s["start"] += mine[0].began_s - run.first_ready_s
        idle_s["end"] += run.last_answer_s - mine[-1].ended_s
        for before, after in pairwise(mine):
            idle_s[after.cause] += after.began_s - before.ended_s
    return idle_s


def evaluating(run: Run) -> dict[str, Any]:
    """The evaluations alone, as the trainers themselves took the time: what other drivers are compared in."""
    return driven([(rank, piece.ended_s - piece.worked_s, piece.ended_s) for piece in run.evaluations
                   for rank in piece.ranks], run.trainers)  # fmt: skip


def driven(evaluations: list[tuple[int, float, float]], trainers: int) -> dict[str, Any]:
    """Of (rank, began, ended): from the first start to the last end, and between a rank's end and its next start."""
    began_s, ended_s = min(each[1] for each in evaluations), max(each[2] for each in evaluations)
    by_rank: dict[int, list[tuple[float, float]]] = {}
    for rank, began, ended in sorted(evaluations, key=lambda each: each[1]):
        by_rank.setdefault(rank, []).append((began, ended))
    gaps_s = [after[0] - before[1] for mine in by_rank.values() for before, after in pairwise(mine)]
    busy_s = sum(ended - began for _, began, ended in evaluations)
    return {
        "span_s": ended_s - began_s,
        "busy_share": busy_s / (trainers * (ended_s - began_s)),
        "busy_until_one_is_done_share": _steady_share(by_rank, began_s, trainers),
        "evaluation_s": busy_s / len(evaluations),
        "gap_median_s": statistics.median(gaps_s) if gaps_s else 0.0,
        "gap_p90_s": sorted(gaps_s)[int(0.9 * len(gaps_s))] if gaps_s else 0.0,
    }


def _steady_share(by_rank: dict[int, list[tuple[float, float]]], began_s: float, trainers: int) -> float:
    """Busy share before the tail: until the first rank has ended its last evaluation."""
    until_s = min(mine[-1][1] for mine in by_rank.values())
    busy_s = sum(max(0.0, min(ended, until_s) - began) for mine in by_rank.values() for began, ended in mine)
    return busy_s / (trainers * (until_s - began_s))
