"""The results of a run, finished or not: a fold over its journal, as plain values and as a table."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.table import Table

from mpinas.coordination.ledger import BASELINE, OBJECTIVES, Candidate, Ledger
from mpinas.coordination.lifecycle import State
from mpinas.history.journal import read
from mpinas.history.run_folder import RunFolder
from mpinas.report.live import milliseconds
from mpinas.search.selection import hypervolume


def load(folder: RunFolder) -> Ledger:
    """What is known of the run now. Raises UserError for a folder without a whole journal."""
    return Ledger(dict(folder.experiment().search.limits)).apply_all(read(folder.journal_file))


def as_dict(ledger: Ledger, folder: RunFolder) -> dict[str, Any]:
    """Everything, as plain values for JSON. Times in seconds.

    `hypervolume`: share of the rectangle between zero and the baseline's (error, latency) that the front dominates.
    """
    return {
        "run": str(folder.path),
        "task": ledger.task,
        "simulated_data": ledger.simulated,
        "finished": ledger.finished,
        "counts": {state.value: len(ids) for state, ids in ledger.standing.items()},
        "candidates": [_candidate(it, ledger, folder) for it in ledger.candidates.values()],
        "front": sorted(ledger.front),
        "baseline": BASELINE if BASELINE in ledger.candidates else None,
        "trainer_utilisation": ledger.occupation.utilisation,
        "hypervolume": _hypervolume(ledger),
    }


def _candidate(it: Candidate, ledger: Ledger, folder: RunFolder) -> dict[str, Any]:
    evaluated = it.state is State.EVALUATED
    return {
        "id": it.id,
        "genome": it.genome,
        "state": it.state.value,
        "history": [state.value for state in it.history],
        "objectives": dict(zip(OBJECTIVES, it.objectives(), strict=True)) if evaluated else None,
        "metrics": it.metrics,
        "test_error": it.test_metrics.get("error"),
        "test_metrics": it.test_metrics,
        "measurement": it.measurement,
        "size_bytes": it.size_bytes,
        "parameters": it.parameters,
        "train_seconds": it.train_seconds,
        "group": it.group,
        "attempts": it.attempts,
        "reason": it.reason,
        "onnx_difference": it.onnx_difference,
        "onnx": str(folder.onnx_file(it.id)) if it.onnx_difference is not None else None,
        **ratios(it, ledger),
    }


def ratios(it: Candidate, ledger: Ledger) -> dict[str, float | None]:
    """How many times faster and better than the baseline; better on the test file where both were judged on it."""
    baseline = ledger.candidates.get(BASELINE)
    if baseline is None or baseline.state is not State.EVALUATED or it.state is not State.EVALUATED:
        return {"times_faster": None, "times_better": None}
    mine, other = it.test_metrics.get("error"), baseline.test_metrics.get("error")
    if mine is None or other is None:
        mine, other = it.metrics["error"], baseline.metrics["error"]
    assert it.latency_s is not None
    assert baseline.latency_s is not None
    return {
        "times_faster": baseline.latency_s / it.latency_s,
        "times_better": other / mine if mine > 0 else None,
    }


def _hypervolume(ledger: Ledger) -> float | None:
    baseline = ledger.candidates.get(BASELINE)
    if baseline is None or baseline.state is not State.EVALUATED or min(baseline.objectives()) <= 0:
        return None
    points = np.array([ledger.candidates[id_].objectives() for id_ in ledger.front], float).reshape(-1, len(OBJECTIVES))
    return hypervolume(points / np.array(baseline.objectives()), np.ones(len(OBJECTIVES)))


def table(ledger: Ledger) -> Table:
    """Front members from fast to slow, and the baseline."""
    out = Table(title=_title(ledger), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in (
        "candidate",
        "error",
        "test error",
        "latency p50",
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
            milliseconds(it.latency_s),
            _number(ratio["times_faster"], "{:.1f}"),
            _number(ratio["times_better"], "{:.2f}"),
            _number(it.parameters, "{:,}"),
            _number(it.train_seconds, "{:.1f} s"),
        )
    return out


def _title(ledger: Ledger) -> str:
    counts = ", ".join(f"{len(ids)} {state.lower()}" for state, ids in ledger.standing.items() if ids)
    used = ledger.occupation.utilisation
    busy = f"; trainers busy {used:.0%}" if used is not None else ""
    state = "finished" if ledger.finished else "not finished"
    data = f"{ledger.task}{' on SIMULATED data' if ledger.simulated else ''}"
    return f"{data}, {state}: {counts or 'nothing proposed yet'}{busy}   (* = Pareto front)"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
