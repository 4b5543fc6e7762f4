"""The table of a simulated search, for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mpinas.simulation.figures import Figures, diagnose


def show(figures: Figures, console: Console, notes: tuple[str, ...] = ()) -> None:
    """Print it; that it is simulated stands above and below."""
    table = Table(title=f"SIMULATED search on {figures.ranks:,} ranks ({figures.nodes:,} nodes)", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in rows(figures):
        table.add_row(name, value)
    console.print(table)
    bottleneck, advice = diagnose(figures)
    console.print(f"bottleneck: {bottleneck}. {advice}", highlight=False, soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    console.print("SIMULATED: durations as given, candidates and what they are worth made up", highlight=False)


def rows(figures: Figures) -> list[tuple[str, str]]:
    """What stands in it: name and value."""
    return [
        ("time to finish", duration(figures.seconds_to_finish)),
        ("node-hours", f"{figures.node_hours:,.1f}"),
        ("evaluations an hour", f"{figures.evaluations_per_hour:,.1f}"),
        ("candidates evaluated", f"{figures.evaluated:,}"),
        ("  rejected, failed", f"{figures.rejected:,}, {figures.failed:,}"),
        ("trained before measured", f"{figures.predicted:,} of {figures.trainings:,}"),
        ("trainers busy", f"{figures.trainer_utilisation:.1%}"),
        ("  until the last training began", f"{figures.trainer_utilisation_search:.1%}"),
        (f"devices busy ({figures.devices} of a profile)", f"{figures.device_utilisation:.1%}"),
        (f"exporters busy ({figures.exporters})", f"{figures.exporter_utilisation:.1%}"),
        ("coordinator busy (on this machine)", f"{figures.coordinator_utilisation:.1%}"),
        ("  an event, mean and p99", f"{figures.handle_mean_ms:.2f} ms, {figures.handle_p99_ms:.2f} ms"),
        ("  a proposal, mean", f"{figures.proposal_mean_ms:.1f} ms"),
    ]


def duration(seconds: float) -> str:
    """As people say it: 2 d 03:04:05."""
    days, rest = divmod(round(seconds), 86_400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock


@contextmanager
def progress(out: TextIO, evaluations: int) -> Iterator[Callable[[int, float], None]]:
    """A line that says how far the simulation is, on a terminal; tell it (evaluated, virtual seconds)."""
    columns = (
        TextColumn("SIMULATED"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} evaluated after {task.fields[after]}"),
        TimeRemainingColumn(),
    )
    console = Console(file=out)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("", total=evaluations, after=duration(0))
        yield lambda evaluated, time: bar.update(line, completed=evaluated, after=duration(time))
