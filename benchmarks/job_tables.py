"""The tables that `job.py` prints. Must not know how its figures were taken."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

Figures = dict[str, Any]


def middle(runs: list[dict[str, Figures]], name: str, *path: str) -> tuple[float, float, float]:
    """Median, least and most of a figure over the repetitions."""
    values: list[float] = []
    for run in runs:
        value: Any = run[name]
        for key in path:
            value = value[key]
        values.append(value)
    return statistics.median(values), min(values), max(values)


def cell(form: Callable[[float], str], of: tuple[float, float, float], repeated: bool) -> str:
    return f"{form(of[0])} ({form(of[1])} to {form(of[2])})" if repeated else form(of[0])


def seconds(value: float) -> str:
    return f"{value:.1f} s"


def milliseconds(value: float) -> str:
    return f"{1000 * value:.0f} ms"


def percent(value: float) -> str:
    return f"{value:.1%}"


#: Columns: of what is told of the whole job, and of its evaluations alone.
OF_SEARCHES: dict[str, tuple[Callable[[float], str], tuple[str, ...]]] = {
    "trainers busy": (percent, ("trainer_utilisation",)),
    "from the journal": (percent, ("utilisation",)),
    "idle: start": (percent, ("idle_share", "start")),
    "measurements": (percent, ("idle_share", "measurements")),
    "others": (percent, ("idle_share", "other trainers")),
    "hand-over": (percent, ("idle_share", "hand-over")),
    "end": (percent, ("idle_share", "end")),
    "tail": (seconds, ("tail_s",)),
    "span": (seconds, ("span_s",)),
    "whole job": (seconds, ("wall_s",)),
}
OF_DRIVERS: dict[str, tuple[Callable[[float], str], tuple[str, ...]]] = {
    "first start to last end": (seconds, ("evaluating", "span_s")),
    "workers busy": (percent, ("evaluating", "busy_share")),
    "before the tail": (percent, ("evaluating", "busy_until_one_is_done_share")),
    "one evaluation": (seconds, ("evaluating", "evaluation_s")),
    "end to next start": (milliseconds, ("evaluating", "gap_median_s")),
    "p90": (milliseconds, ("evaluating", "gap_p90_s")),
    "CPU, whole job": (seconds, ("cpu_s",)),
}


def table(title: str, columns: dict[str, Any], runs: list[dict[str, Figures]], names: list[str]) -> Table:
    out = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    out.add_column("")
    for column in columns:
        out.add_column(column, justify="right")
    for name in names:
        out.add_row(name, *(cell(form, middle(runs, name, *path), len(runs) > 1) for form, path in columns.values()))
    return out


def show(all_: Figures, single: str, rivals: tuple[str, ...]) -> None:
    """`single`: the search whose evaluations the `rivals` did again."""
    console = Console()
    console.width = max(console.width, 160 if all_["repeat"] == 1 else 320)
    runs = all_["runs"]
    done = list(runs[0])
    console.print(f"{all_['date']}, {all_['machine']}, load {all_['load']:.1f} at the start; {all_['candidates']} "
                  f"candidates of {all_['epochs']} epochs, {all_['ranks']} ranks, {all_['repeat']} time(s)",
                  highlight=False)  # fmt: skip
    searches = [name for name in done if name not in rivals]
    console.print(table("\nmpinas search: all trainers' time from the first ready one to the last answer",
                        OF_SEARCHES, runs, searches))  # fmt: skip
    for name in searches:
        console.print(f"{name}: orders {runs[0][name]['groups']}", highlight=False)
    if any(name in rivals for name in done):
        drivers = [single, *(name for name in done if name in rivals)]
        console.print(table("\nthe same evaluations, by single trainers", OF_DRIVERS, runs, drivers))
        for name in drivers[1:]:
            alike = sum(run[name]["same_error"] for run in runs)
            of = sum(run[name]["evaluations"] for run in runs)
            console.print(f"{name}: {alike} of {of} evaluations gave the same error as in the search", highlight=False)
        console.print(f"{single} (mpinas) also exported, measured and assessed candidates meanwhile", highlight=False)
