"""Break whole jobs, each in every way many times, and keep the table of docs/reliability.md.

    python benchmarks/faults.py [--trials 20] [--only NAME]… [--record FILE] [--write PAGE] [--json]

The trials are in `tests/mpi/job_faults.py`. Each outcome is appended to --record (JSON lines) as it comes; what stands
there already counts and is not tried again, so that a stopped run goes on. A full disk wants root, and memory that is
exhausted control groups (version 1).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import date
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "mpi")]

from job_faults import FAULTS, RANKS, STALL_S, Outcome, trial, why_not  # noqa: E402 - from the tests' folder
from pages import replace_table  # noqa: E402

BEGIN, END = "<!-- job faults: begin -->", "<!-- job faults: end -->"
#: Slow to show, or like another: fewer of them are asked for.
FEWER = {"SIGSTOP a rank": 5, "out of memory": 5, "disk full": 5}


@click.command(help=__doc__)
@click.option(
    "--trials", type=click.IntRange(1), default=20, show_default=True, help="Of each fault; stalls, memory, disks: 5."
)
@click.option("--only", multiple=True, type=click.Choice(list(FAULTS)), help="Repeatable.")
@click.option("--record", type=click.Path(path_type=Path), default=ROOT / "runs" / "faults.jsonl", show_default=True)
@click.option("--write", "page", type=click.Path(path_type=Path, exists=True), help="Page whose table is replaced.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcomes instead of the table.")
def main(trials: int, only: tuple[str, ...], record: Path, page: Path | None, as_json: bool) -> None:
    outcomes = [Outcome(**json.loads(line)) for line in record.read_text().splitlines()] if record.exists() else []
    there = {(each.fault, each.seed) for each in outcomes}
    record.parent.mkdir(parents=True, exist_ok=True)
    # in turns, so that a run that is stopped has some of each
    wanted = [
        (fault, seed)
        for seed in range(trials)
        for fault in only or FAULTS
        if seed < FEWER.get(fault, trials) and (fault, seed) not in there
    ]
    for number, (fault, seed) in enumerate(wanted, start=1):
        if why := why_not(fault):
            click.echo(f"{fault}: left out, {why}", err=True)
            continue
        outcome = tried(fault, seed)
        outcomes.append(outcome)
        with open(record, "a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
        click.echo(f"{number}/{len(wanted)} {fault}, seed {seed}: {'good' if outcome.good else outcome}", err=True)
    text = table(outcomes)
    click.echo(json.dumps([asdict(each) for each in outcomes], indent=1) if as_json else text)
    if page is not None:
        replace_table(page, BEGIN, END, text)
    if not all(each.good for each in outcomes):
        sys.exit(1)


def tried(fault: str, seed: int) -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix="mpinas-fault-"))
    try:
        outcome = trial(fault, seed, folder)
    except AssertionError as error:
        why = f"{folder}: {error}"[:2000]
        return Outcome(fault, seed, None, None, False, None, None, 0, 0, 0, 1, 0, False, why)
    if outcome.good:
        shutil.rmtree(folder)
    return outcome


def table(outcomes: Iterable[Outcome]) -> str:
    """One row for each fault, and how it was filled."""
    rows = [
        "| fault | trials | hangs, or processes left | ports, shared memory left | lost | evaluated twice "
        "| saved epochs again | says what broke, and its work | reached the end | fault to exit, p50 / max "
        "| start to first order, p50 / max |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    by_fault: dict[str, list[Outcome]] = {}
    for each in outcomes:
        by_fault.setdefault(each.fault, []).append(each)
    for fault in FAULTS:
        if not (some := by_fault.get(fault)):
            continue
        ended = [each for each in some if each.ended_s is not None]
        named = f"{sum(each.named for each in ended)} of {len(ended)}" if ended else "goes on"
        if any(each.work_named is not None for each in ended):
            named += f", {sum(bool(each.work_named) for each in ended)}"
        counts = [sum(getattr(each, what) for each in some) for what in ("hung", "left", "lost", "twice", "again")]
        cells = [fault, len(some), *counts, named, sum(each.finished for each in some)]
        cells += [spread(some, lambda each: each.ended_s), spread(some, lambda each: each.first_order_s)]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    how = f"{RANKS} ranks, a rank counts as stalled after {STALL_S} s"
    return "\n".join(
        [*rows, "", f"Filled by `python benchmarks/faults.py`, {date.today()}, {os.cpu_count()} cores; {how}."]
    )


def spread(outcomes: list[Outcome], of: Callable[[Outcome], float | None]) -> str:
    found = [value for each in outcomes if (value := of(each)) is not None]
    return f"{statistics.median(found):.1f} s / {max(found):.1f} s" if found else "-"


if __name__ == "__main__":
    main()
