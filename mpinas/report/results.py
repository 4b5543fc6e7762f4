"""The results of a run, finished or not: a fold over its journal, as plain values and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mpinas.coordination.candidate import Candidate
from mpinas.coordination.ledger import BASELINE, Ledger
from mpinas.coordination.lifecycle import State
from mpinas.history.journal import read
from mpinas.history.run_folder import RunFolder, terms_of
from mpinas.report.live import DOUBTFUL, PREDICTED, latency_columns, latency_of, name_of
from mpinas.search.selection import hypervolume

#: Columns that a narrow terminal goes without, the first first.
EXPENDABLE = ("trained in", "parameters")


def load(folder: RunFolder) -> Ledger:
    """What is known of the run now. Raises UserError for a folder without a whole and consistent journal."""
    return Ledger(terms_of(folder.experiment())).apply_all(read(folder.journal_file))


def as_dict(ledger: Ledger, folder: RunFolder) -> dict[str, Any]:
    """Everything, as plain values for JSON. Times in seconds.

    `hypervolume`: share of the box between zero and the baseline's objectives that the front dominates.
    """
    return {
        "run": str(folder.path),
        "task": ledger.task,
        "simulated_data": ledger.simulated,
        "finished": ledger.finished,
        "devices": list(ledger.terms.devices),
        "objectives": list(ledger.terms.objectives),
        "counts": {state.value: len(ids) for state, ids in ledger.standing.items()},
        "candidates": [_candidate(it, ledger, folder) for it in ledger.candidates.values()],
        "front": sorted(ledger.front),
        "predicted_front": ledger.left_out,
        "baseline": BASELINE if BASELINE in ledger.candidates else None,
        "trainer_utilisation": ledger.occupation.utilisation,
        "hypervolume": _hypervolume(ledger),
        "notes": notes(ledger),
    }


def _candidate(it: Candidate, ledger: Ledger, folder: RunFolder) -> dict[str, Any]:
    evaluated = it.state is State.EVALUATED
    return {
        "id": it.id,
        "genome": it.genome,
        "state": it.state.value,
        "history": [state.value for state in it.history],
        "objectives": dict(zip(ledger.terms.objectives, ledger.objectives(it), strict=True)) if evaluated else None,
        "metrics": it.metrics,
        "test_error": it.test_metrics.get("error"),
        "test_metrics": it.test_metrics,
        "measurement": _slowest(it),
        "measurements": {device: dict(reading.measurement) for device, reading in it.readings.items()},
        "latencies_s": it.latencies_s,
        "predicted": sorted(device for device, reading in it.readings.items() if reading.predicted),
        "doubts": {device: list(doubts) for device, doubts in it.doubts.items()},
        "size_bytes": it.size_bytes,
        "parameters": it.parameters,
        "train_seconds": it.train_seconds,
        "epochs": it.epochs_done,
        "errors_by_epochs": {ledger.terms.rungs[rung]: error for rung, error in it.rung_errors.items()},
        "repeats": list(it.repeats),
        "retrained": _retrained(it),
        "group": it.group,
        "attempts": it.attempts,
        "reason": it.reason,
        "onnx_difference": it.onnx_difference,
        "quality": {device: asdict(verdict) for device, verdict in it.verdicts.items()},
        "accepted": ledger.accepted(it),
        "onnx": str(folder.onnx_file(it.id)) if it.onnx_difference is not None else None,
        **ratios(it, ledger),
    }


def _retrained(it: Candidate) -> dict[str, Any] | None:
    """Mean and standard deviation over the trainings from other seeds, on the test file where it has labels."""
    if not it.retrainings:
        return None
    errors = [each.metrics["error"] for each in it.retrainings]
    tests = [each.test_metrics["error"] for each in it.retrainings if each.test_metrics]
    return {"times": len(errors), "error": _mean_and_deviation(errors), "test_error": _mean_and_deviation(tests)}


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float] | None:
    """None of no values; the deviation of one is zero."""
    return (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0) if values else None


def _slowest(it: Candidate) -> dict[str, Any] | None:
    """The measurement on the slowest of its devices."""
    slowest = max(it.readings.values(), key=lambda reading: reading.latency_s, default=None)
    return None if slowest is None else dict(slowest.measurement)


def ratios(it: Candidate, ledger: Ledger) -> dict[str, float | None]:
    """How many times faster and better than the baseline.

    Faster: on the device where it is least so. Better: on the test file where both were judged on it.
    """
    baseline = ledger.candidates.get(BASELINE)
    if baseline is None or baseline.state is not State.EVALUATED or it.state is not State.EVALUATED:
        return {"times_faster": None, "times_better": None}
    mine, other = it.test_metrics.get("error"), baseline.test_metrics.get("error")
    if mine is None or other is None:
        mine, other = it.error, baseline.error
    theirs, ours = baseline.latencies_s, it.latencies_s
    return {
        "times_faster": min(theirs[device] / ours[device] for device in ledger.terms.devices),
        "times_better": other / mine if mine > 0 else None,
    }


def _hypervolume(ledger: Ledger) -> float | None:
    baseline = ledger.candidates.get(BASELINE)
    if baseline is None or baseline.state is not State.EVALUATED or min(ledger.objectives(baseline)) <= 0:
        return None
    reference = np.array(ledger.objectives(baseline))  # (objectives,)
    front = [ledger.objectives(ledger.candidates[id_]) for id_ in ledger.front]
    points = np.array(front, float).reshape(-1, len(reference))  # (members, objectives)
    return hypervolume(points / reference, np.ones(len(reference)))


def notes(ledger: Ledger) -> list[str]:
    """What must be known to read the results: latencies in doubt, files missing, models that devices do not accept."""
    told = [
        f"candidate {id_} is not on the front: its latency is {PREDICTED}, no device has measured it"
        for id_ in ledger.left_out
    ]
    for id_ in sorted(ledger.finalists()):
        it = ledger.candidates[id_]
        for device, doubts in it.doubts.items():
            times = it.readings[device].times
            often = f"measured {times} time{'s' if times > 1 else ''}"
            told.append(f"{DOUBTFUL} {name_of(id_)}: latency on {device} in doubt: {', '.join(doubts)} ({often})")
        if it.assessed and it.onnx_difference is None and it.reason:
            told.append(f"{name_of(id_)} has no ONNX file: {it.reason}")
        for device, verdict in it.verdicts.items():
            first = ledger.first_answered.get(device, ("", ""))[0]
            if verdict.device and verdict.device != first:
                told.append(f"{name_of(id_)} on {device}: measured by {first}, checked by {verdict.device}")
            if verdict.error is not None and not verdict.accepted:
                there = f"error {verdict.error:.4f} on its samples, {verdict.expected:.4f} expected"
                told.append(f"{name_of(id_)} is not accepted on {device} ({verdict.precision}): {there}")
            elif not verdict.accepted:
                how = "not checked" if verdict.accepted is None else "not accepted"
                told.append(f"{name_of(id_)} is {how} on {device}: {verdict.reason}: {verdict.detail}")
    return told


def show(ledger: Ledger, console: Console) -> None:
    """Print the table, as much of it as the terminal has room for, and what must be known to read it."""
    console.print(_title(ledger), markup=False, highlight=False, soft_wrap=True)
    tables = [table(ledger, left_out=EXPENDABLE[:count]) for count in range(len(EXPENDABLE) + 1)]
    widths = [console.measure(each, options=console.options.update(max_width=10_000)).maximum for each in tables]
    room = console.width if console.is_terminal else max(widths)
    fitting = next((index for index, width in enumerate(widths) if width <= room), len(tables) - 1)
    # A number that is cut is worse than a line that the terminal breaks.
    console.width = max(console.width, widths[fitting])
    console.print(tables[fitting])
    missing = f"; on a wider terminal, or with --json: {', '.join(EXPENDABLE[:fitting][::-1])}" if fitting else ""
    console.print(f"* = Pareto front{missing}", markup=False, highlight=False, soft_wrap=True)
    for note in notes(ledger):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def table(ledger: Ledger, left_out: Collection[str] = ()) -> Table:
    """Front members from fast to slow, and the baseline; without some of the columns."""
    out = Table(box=None, padding=(0, 2, 0, 0))
    rows = [
        _row(ledger.candidates[id_], ledger)
        for id_ in sorted(_shown(ledger), key=lambda i: ledger.candidates[i].latency_s or 0.0)
    ]
    for name in rows[0] if rows else ():
        if name not in left_out:
            out.add_column(name, justify="left" if name in ("candidate", "what") else "right", no_wrap=True)
    for row in rows:
        out.add_row(*(value for name, value in row.items() if name not in left_out))
    return out


def _shown(ledger: Ledger) -> Collection[int]:
    """Front and baseline; everybody where the baseline was compressed: all that came of it is a result."""
    everybody = any("method" in it.genome for it in ledger.candidates.values())
    return ledger.evaluated if everybody else ledger.finalists()


def _row(it: Candidate, ledger: Ledger) -> dict[str, str]:
    """Its line in the table, by column."""
    ratio = ratios(it, ledger)
    name = "baseline" if it.id == BASELINE else str(it.id)
    latencies = (latency_of(it, device) for device in ledger.terms.devices)
    described = _described(it)
    return {
        "candidate": name + (" *" if it.id in ledger.front else ""),
        **({"what": described} if any(map(_described, ledger.candidates.values())) else {}),
        "error": f"{it.error:.4f}",
        "test error": _number(it.test_metrics.get("error"), "{:.4f}"),
        **({"trained again": _again(it)} if any(each.retrainings for each in ledger.candidates.values()) else {}),
        **dict(zip(latency_columns(ledger), latencies, strict=True)),
        "on device": _accepted(it, ledger),
        "x faster": _number(ratio["times_faster"], "{:.1f}"),
        "x better": _number(ratio["times_better"], "{:.2f}"),
        "parameters": _number(it.parameters, "{:,}"),
        "trained in": _number(it.train_seconds, "{:.1f} s"),
    }


def _described(it: Candidate) -> str:
    """How its network was made from the human-designed one, and in what precision it runs; "" where nothing varies."""
    genome = it.genome
    words = [f"{genome['method']} {genome['keep']:g}"] if "method" in genome else []
    return " ".join([*words, *([str(genome["precision"])] if "precision" in genome else [])])


def _again(it: Candidate) -> str:
    """Its test error (validation error, where there is no other) over all seeds."""
    found = _retrained(it)
    if found is None:
        return "-"
    mean, deviation = found["test_error"] or found["error"]
    return f"{mean:.4f} ± {deviation:.4f} ({found['times']})"


def _accepted(it: Candidate, ledger: Ledger) -> str:
    if it.expected is None:
        return "-"
    return {True: "accepted", False: "NOT ACCEPTED", None: "not checked"}[ledger.accepted(it)]


def _title(ledger: Ledger) -> str:
    counts = ", ".join(f"{len(ids)} {state.lower()}" for state, ids in ledger.standing.items() if ids)
    used = ledger.occupation.utilisation
    busy = f"; trainers busy {used:.0%}" if used is not None else ""
    state = "finished" if ledger.finished else "not finished"
    data = f"{ledger.task}{' on SIMULATED data' if ledger.simulated else ''}"
    return f"{data}, {state}: {counts or 'nothing proposed yet'}{busy}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
