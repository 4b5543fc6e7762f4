"""The results of a run, finished or not: a fold over its journal, as plain values."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np

from mpinas.coordination.candidate import Candidate
from mpinas.coordination.ledger import BASELINE, Ledger
from mpinas.coordination.lifecycle import State
from mpinas.errors import UserError
from mpinas.history.journal import read
from mpinas.history.run_folder import RunFolder, terms_of
from mpinas.report.live import DOUBTFUL, PREDICTED, name_of, withdrawn
from mpinas.search.selection import hypervolume

#: Baselines of two runs that differ by more than this share were not trained or measured alike.
ALIKE = 0.05


def load(folder: RunFolder) -> Ledger:
    """What is known of the run now. Raises UserError for a folder without a whole and consistent journal."""
    history = read(folder.journal_file)
    folder.check_journal(begun=bool(history))
    return Ledger(terms_of(folder.experiment())).apply_all(history)


def load_beside(folder: RunFolder, other: RunFolder) -> Ledger:
    """What is known of another run whose candidates compare with those of the run in `folder`.

    Raises
    ------
    UserError
        They do not: another task, other data, another split, or other devices.
    """
    mine, theirs = folder.experiment(), other.experiment()
    for what, one, two in (
        ("task", msgspec.structs.replace(mine.task, baseline=""), msgspec.structs.replace(theirs.task, baseline="")),
        ("search.seed", mine.search.seed, theirs.search.seed),
        ("edge.devices", mine.edge.devices, theirs.edge.devices),
        ("edge.threads", mine.edge.threads, theirs.edge.threads),
    ):
        if one != two:
            raise UserError(f"--beside {other.path}: its {what} is not that of {folder.path}: they do not compare")
    return load(other)


def baselines_differ(ledger: Ledger, other: Ledger) -> list[str]:
    """In words, how the baselines of two runs differ that should be alike."""
    mine, theirs = (each.candidates.get(BASELINE) for each in (ledger, other))
    if mine is None or theirs is None or State.EVALUATED not in mine.history or State.EVALUATED not in theirs.history:
        return []
    pairs = {"error": (mine.error, theirs.error)}
    for device in ledger.terms.devices:
        pairs[f"latency on {device} in ms"] = (1e3 * mine.latencies_s[device], 1e3 * theirs.latencies_s[device])
    return [
        f"the baselines of the two runs differ in {what}: {one:.4g} and {two:.4g}"
        for what, (one, two) in pairs.items()
        if abs(one - two) > ALIKE * one
    ]


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
        "retrained": retrained(it),
        "group": it.group,
        "attempts": it.attempts,
        "reason": it.reason,
        "onnx_difference": it.onnx_difference,
        "quality": {device: asdict(verdict) for device, verdict in it.verdicts.items()},
        "accepted": ledger.accepted(it),
        "onnx": str(folder.onnx_file(it.id)) if it.onnx_difference is not None else None,
        **ratios(it, ledger),
    }


def retrained(it: Candidate) -> dict[str, Any] | None:
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
    """How many times faster and better than the baseline of the run in `ledger`.

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
    """What must be known of the results: latencies in doubt, files missing, models that devices do not accept, GPUs
    that failed."""
    told = [
        f"candidate {id_} is not on the front: its latency is {PREDICTED}, no device has measured it"
        for id_ in ledger.left_out
    ]
    told += withdrawn(ledger)
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
