"""The results of a run as a table: its front from fast to slow, its baseline, and those of another run beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from mpinas.coordination.candidate import Candidate
from mpinas.coordination.ledger import BASELINE, Ledger
from mpinas.report.live import latency_columns, latency_of
from mpinas.report.results import baselines_differ, notes, ratios, retrained

#: Columns that a narrow terminal goes without, the first first.
EXPENDABLE = ("trained in", "parameters")


@dataclass(frozen=True, slots=True)
class Entry:
    """A candidate, and the run that it is of: `label` is empty for the run whose baseline all are compared with."""

    it: Candidate
    ledger: Ledger
    label: str = ""

    @property
    def name(self) -> str:
        """As it stands in the table."""
        name = "baseline" if self.it.id == BASELINE else str(self.it.id)
        return (f"{self.label}/{name}" if self.label else name) + (" *" if self.it.id in self.ledger.front else "")


def show(ledger: Ledger, console: Console, beside: Ledger | None = None, label: str = "beside") -> None:
    """Print the table, as much of it as the terminal has room for, and what must be known to read it."""
    console.print(_title(ledger), markup=False, highlight=False, soft_wrap=True)
    if beside is not None:
        console.print(f"{label}: {_title(beside)}", markup=False, highlight=False, soft_wrap=True)
    tables = [table(ledger, EXPENDABLE[:count], beside, label) for count in range(len(EXPENDABLE) + 1)]
    widths = [console.measure(each, options=console.options.update(max_width=10_000)).maximum for each in tables]
    room = console.width if console.is_terminal else max(widths)
    fitting = next((index for index, width in enumerate(widths) if width <= room), len(tables) - 1)
    # A number that is cut is worse than a line that the terminal breaks.
    console.width = max(console.width, widths[fitting])
    if not tables[fitting].row_count:
        console.print("nobody has been trained to the end yet")
        return
    console.print(tables[fitting])
    missing = f"; on a wider terminal, or with --json: {', '.join(EXPENDABLE[:fitting][::-1])}" if fitting else ""
    front = "Pareto front" if beside is None else "Pareto front of its run"
    console.print(f"* = {front}{missing}", markup=False, highlight=False, soft_wrap=True)
    told = notes(ledger)
    if beside is not None:
        told += [*baselines_differ(ledger, beside), *(f"{label}: {each}" for each in notes(beside))]
    for note in told:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def table(
    ledger: Ledger, left_out: Collection[str] = (), beside: Ledger | None = None, label: str = "beside"
) -> Table:  # fmt: skip
    """Finalists from fast to slow, those of another run among them; without some columns."""
    entries = [Entry(ledger.candidates[id_], ledger) for id_ in ledger.finalists()]
    if beside is not None:
        entries += [Entry(beside.candidates[id_], beside, label) for id_ in beside.finalists() if id_ != BASELINE]
    entries.sort(key=lambda entry: (entry.it.latency_s or 0.0, entry.label, entry.it.id))
    rows = [_row(entry, ledger, entries) for entry in entries]
    out = Table(box=None, padding=(0, 2, 0, 0))
    for name in rows[0] if rows else ():
        if name not in left_out:
            out.add_column(name, justify="left" if name in ("candidate", "what") else "right", no_wrap=True)
    for row in rows:
        out.add_row(*(value for name, value in row.items() if name not in left_out))
    return out


def _row(entry: Entry, reference: Ledger, entries: Iterable[Entry]) -> dict[str, str]:
    """Its line, by column; the columns depend on all `entries`. Ratios are to the baseline of `reference`."""
    it, ratio = entry.it, ratios(entry.it, reference)
    latencies = (latency_of(it, device) for device in reference.terms.devices)
    return {
        "candidate": entry.name,
        **({"what": _described(it)} if any(_described(each.it) for each in entries) else {}),
        "error": f"{it.error:.4f}",
        "test error": _number(it.test_metrics.get("error"), "{:.4f}"),
        **({"trained again": _again(it)} if any(each.it.retrainings for each in entries) else {}),
        **dict(zip(latency_columns(reference), latencies, strict=True)),
        "on device": _accepted(entry),
        "x faster": _number(ratio["times_faster"], "{:.1f}"),
        "x better": _number(ratio["times_better"], "{:.2f}"),
        "parameters": _number(it.parameters, "{:,}"),
        "trained in": _number(it.train_seconds, "{:.1f} s"),
    }


def _described(it: Candidate) -> str:
    """How its network was made from the human-designed one, and in what precision it runs; "" where nothing varies."""
    genome = it.genome
    words = [f"{genome['method']} {genome['keep']:g}"] if {"method", "keep"} <= genome.keys() else []
    return " ".join([*words, *([str(genome["precision"])] if "precision" in genome else [])])


def _again(it: Candidate) -> str:
    """Its test error (validation error, where there is no other) over all seeds."""
    found = retrained(it)
    if found is None:
        return "-"
    mean, deviation = found["test_error"] or found["error"]
    return f"{mean:.4f} ± {deviation:.4f} ({found['times']})"


def _accepted(entry: Entry) -> str:
    if entry.it.expected is None:
        return "-"
    return {True: "accepted", False: "NOT ACCEPTED", None: "not checked"}[entry.ledger.accepted(entry.it)]


def _title(ledger: Ledger) -> str:
    counts = ", ".join(f"{len(ids)} {state.lower()}" for state, ids in ledger.standing.items() if ids)
    used = ledger.occupation.utilisation
    busy = f"; trainers busy {used:.0%}" if used is not None else ""
    state = "finished" if ledger.finished else "not finished"
    data = f"{ledger.task}{' on SIMULATED data' if ledger.simulated else ''}"
    return f"{data}, {state}: {counts or 'nothing proposed yet'}{busy}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
