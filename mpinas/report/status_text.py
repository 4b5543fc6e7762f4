"""The status of a run for people: a screen of plain words. Must not know how it was found out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from mpinas.coordination import messages as msg
from mpinas.report.live import BEST_GO_ON, duration, name_of
from mpinas.report.status import SILENT_S, Queued, Status

#: Orders under way that are told one by one.
SHOWN = 12


def lines_of(status: Status) -> list[str]:
    """A screen at most, in plain words."""
    return [
        _head(status),
        *_progress(status),
        *_works(status),
        *(_queued(each) for each in status.queue if each.state != "RUNNING"),
        *_what_to_do(status),
    ]


def _head(status: Status) -> str:
    head = f"{status.run}: {status.state}"
    if status.owner and status.state in ("running", "starting", "died"):
        head += f", {status.owner.described}"
    elif status.state == "starting":
        head += f", Slurm job {', '.join(each.job for each in status.queue)} runs and has not begun the search yet"
    if status.reason:
        ends = status.state in ("running", "starting")
        head += f"; it is about to end: {status.reason}" if ends else f": {status.reason}"
    silent = status.beat is not None and status.time - status.beat >= SILENT_S
    if status.beat is not None and (status.state == "died" or (status.state == "running" and silent)):
        ago = duration(max(0.0, status.time - status.beat))
        head += f" (last sign of life {_clock(status.beat)}, {ago} ago)"
    return head


def _progress(status: Status) -> list[str]:
    if not status.task:
        return []
    data = " on SIMULATED data" if status.simulated else ""
    counts = f"{status.rejected} rejected, {status.failed} failed; {status.front} on the front"
    told = [f"{status.task}{data}: {status.evaluated} of {status.evaluations} candidates evaluated, {counts}"]
    if status.evaluated >= status.evaluations and status.state == "running":
        told.append(BEST_GO_ON)
    elif status.per_hour is not None and status.left_s is not None:
        until = _clock(status.time + status.left_s)
        told.append(
            f"about {duration(status.left_s)} to go, until {until}, at {status.per_hour:.1f} evaluations an hour"
        )
    if status.ends_at is not None:
        left = duration(max(0.0, status.ends_at - status.time))
        told.append(f"the job's time is over in {left}, at {_clock(status.ends_at)}")
    if status.devices_lost:
        told.append(f"device lost: {status.devices_lost}")
    return [*told, *status.withdrawn]


def _works(status: Status) -> list[str]:
    if not status.under_way or status.state not in ("running", "died"):
        return []
    told = ["under way:" if status.state == "running" else "was under way:"]
    for each in status.under_way[:SHOWN]:
        what = "supernet" if each.candidate == msg.SUPERNET else f"{each.work} {name_of(each.candidate)}"
        epoch = f", epoch {each.epoch} of {each.epochs} done" if each.epochs else ""
        ranks = f"rank{'s' if len(each.ranks) > 1 else ''} {_few(each.ranks)} on {_few(each.hosts)}"
        told.append(f"  {what}{epoch}, {ranks}, for {duration(max(0.0, each.seconds))}")
    if len(status.under_way) > SHOWN:
        told.append(f"  and {len(status.under_way) - SHOWN} more")
    return told


def _queued(job: Queued) -> str:
    start = "" if job.start == "N/A" else f", expected to start at {job.start}"
    return f"Slurm job {job.job}: {job.state}{start} ({job.reason})"


def _what_to_do(status: Status) -> list[str]:
    match status.state:
        case "stopped" | "died":
            return [f"to go on: start `mpinas search --resume --run {status.run}` as that job was started"]
        case "finished":
            return [f"to see the results: mpinas results {status.run}"]
        case "damaged":
            return [f"to see what else: mpinas verify {status.run}"]
    return []


def _few(names: Sequence[object]) -> str:
    """At most four of them."""
    return ", ".join(map(str, names)) if len(names) <= 4 else f"{names[0]} … {names[-1]} ({len(names)})"


def _clock(when: float) -> str:
    return f"{datetime.fromtimestamp(when):%Y-%m-%d %H:%M}"
