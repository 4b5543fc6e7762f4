"""The results of a run, finished or not: a fold over its journal, as plain values and as a table."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table

from mpinas.coordination.candidate import Candidate
from mpinas.coordination.ledger import BASELINE, NO_ANSWER, Ledger
from mpinas.coordination.lifecycle import State
from mpinas.history.journal import read
from mpinas.history.run_folder import RunFolder, terms_of
from mpinas.report.live import DOUBTFUL, latency_columns, latency_of, name_of
from mpinas.search.selection import hypervolume


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
        "doubts": {device: list(doubts) for device, doubts in it.doubts.items()},
        "size_bytes": it.size_bytes,
        "parameters": it.parameters,
        "train_seconds": it.train_seconds,
        "group": it.group,
        "attempts": it.attempts,
        "reason": it.reason,
        "onnx_difference": it.onnx_difference,
        "quality": {device: asdict(verdict) for device, verdict in it.verdicts.items()},
        "accepted": it.accepted,
        "onnx": str(folder.onnx_file(it.id)) if it.onnx_difference is not None else None,
        **ratios(it, ledger),
    }


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
        mine, other = it.metrics["error"], baseline.metrics["error"]
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
    """What must be known to read the results: measurements in doubt, models that devices do not accept."""
    told = []
    for id_ in sorted(ledger.finalists()):
        it = ledger.candidates[id_]
        for device, doubts in it.doubts.items():
            times = it.readings[device].repetition + 1
            often = f"measured {times} time{'s' if times > 1 else ''}"
            told.append(f"{DOUBTFUL} {name_of(id_)}: latency on {device} in doubt: {', '.join(doubts)} ({often})")
        for device, verdict in it.verdicts.items():
            if verdict.error is not None and not verdict.accepted:
                there = f"error {verdict.error:.4f} on its samples, {verdict.expected:.4f} expected"
                told.append(f"{name_of(id_)} is not accepted on {device} ({verdict.precision}): {there}")
            elif not verdict.accepted:
                how = "not checked" if verdict.reason == NO_ANSWER else "not accepted"
                told.append(f"{name_of(id_)} is {how} on {device}: {verdict.reason}: {verdict.detail}")
    return told


def table(ledger: Ledger) -> Table:
    """Front members from fast to slow, and the baseline."""
    out = Table(title=_title(ledger), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in (
        "candidate",
        "error",
        "test error",
        *latency_columns(ledger),
        "on device",
        "x faster",
        "x better",
        "parameters",
        "trained in",
    ):
        out.add_column(name, justify="left" if name == "candidate" else "right", no_wrap=True)
    for id_ in sorted(ledger.finalists(), key=lambda i: ledger.candidates[i].latency_s or 0.0):
        it = ledger.candidates[id_]
        ratio = ratios(it, ledger)
        name = "baseline" if id_ == BASELINE else str(id_)
        out.add_row(
            name + (" *" if id_ in ledger.front else ""),
            f"{it.metrics['error']:.4f}",
            _number(it.test_metrics.get("error"), "{:.4f}"),
            *(latency_of(it, device) for device in ledger.terms.devices),
            _accepted(it),
            _number(ratio["times_faster"], "{:.1f}"),
            _number(ratio["times_better"], "{:.2f}"),
            _number(it.parameters, "{:,}"),
            _number(it.train_seconds, "{:.1f} s"),
        )
    return out


def _accepted(it: Candidate) -> str:
    if not it.verdicts:
        return "-"
    return {True: "accepted", False: "NOT ACCEPTED", None: "not checked"}[it.accepted]


def _title(ledger: Ledger) -> str:
    counts = ", ".join(f"{len(ids)} {state.lower()}" for state, ids in ledger.standing.items() if ids)
    used = ledger.occupation.utilisation
    busy = f"; trainers busy {used:.0%}" if used is not None else ""
    state = "finished" if ledger.finished else "not finished"
    data = f"{ledger.task}{' on SIMULATED data' if ledger.simulated else ''}"
    return f"{data}, {state}: {counts or 'nothing proposed yet'}{busy}   (* = Pareto front)"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
