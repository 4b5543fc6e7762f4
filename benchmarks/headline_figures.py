"""What a run says of the headline: how much faster, how much better, against the clock of the camera.

Plain values from the results of one run, as `mpinas results --json` has them. Must not know where runs lie, nor how
figures are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

#: The figures of the paper that mpinas replaces (arXiv 2505.19995): times faster, times better.
PUBLISHED = {"times_faster": 8.8, "times_better": 1.35}
#: Frames of the camera in a second.
CAMERA_HZ = 20_000.0
Results = Mapping[str, Any]
Candidate = Mapping[str, Any]


def of_search(results: Results, trainer_s: float, frames: int) -> dict[str, Any]:
    """The headline figures of one finished search; None where no network has what is asked.

    Networks are chosen by their validation errors, and told with their test errors: the best of several on the test
    file would be better there than elsewhere.

    Parameters
    ----------
    results
        `mpinas.report.results.as_dict`.
    trainer_s
        Seconds of all trainers spent on orders.
    frames
        Of a window: what the camera takes while one window is worked on.
    """
    baseline = baseline_of(results)
    members = [{**it, "validation": validation_ratio(baseline, it)} for it in found(results)]
    faster = best(members, "times_faster", lambda it: it["validation"] >= 1)
    better = best(members, "validation")
    much_better = best(members, "times_faster", lambda it: it["validation"] >= PUBLISHED["times_better"])
    much_faster = best(members, "validation", lambda it: it["times_faster"] >= PUBLISHED["times_faster"])
    latency_s = None if faster is None else latency_of(faster)
    window_s = frames / CAMERA_HZ
    return {
        "times_faster": value(faster, "times_faster"),
        "its_times_better": value(faster, "times_better"),
        "times_better": value(better, "times_better"),
        "times_faster_where_better": value(much_better, "times_faster"),
        "its_times_better_where_better": value(much_better, "times_better"),
        "times_better_where_faster": value(much_faster, "times_better"),
        "latency_s": latency_s,
        "window_s": window_s,
        "keeps_up": latency_s is not None and latency_s <= window_s,
        "hypervolume": results["hypervolume"],
        "trainer_s": trainer_s,
        "evaluated": results["counts"]["EVALUATED"],
        "refused": len(results["front"]) - len(members) - (baseline["id"] in results["front"]),
        "baseline_latency_s": latency_of(baseline),
        "baseline_error": baseline["test_error"],
    }


def of_compression(results: Results) -> list[dict[str, Any]]:
    """How each compressed network compares with the human-designed one, in the order in which they were proposed.

    `times_better`: on the test file; None where there was no test. `times_better_validation`: on the validation lines.
    """
    baseline = baseline_of(results)
    return [
        {
            "method": it["genome"]["method"],
            "keep": it["genome"]["keep"],
            "precision": it["genome"]["precision"],
            "times_faster": it["times_faster"],
            "times_better": it["times_better"] if it["test_error"] is not None else None,
            "times_better_validation": validation_ratio(baseline, it),
        }
        for it in results["candidates"]
        if it["state"] == "EVALUATED" and it["id"] != baseline["id"]
    ]


def found(results: Results) -> list[Candidate]:
    """Members of the front with a test error, without the baseline and those whose trained model a device refused."""
    front = set(results["front"]) - {results["baseline"]}
    members = [it for it in results["candidates"] if it["id"] in front and it["accepted"] is not False]
    return [it for it in members if it["test_error"] is not None]


def validation_ratio(baseline: Candidate, it: Candidate) -> float:
    """How many times better than the baseline on the validation lines."""
    return float(baseline["objectives"]["error"] / it["objectives"]["error"])


def baseline_of(results: Results) -> Candidate:
    """The human-designed network."""
    baseline: Candidate = next(it for it in results["candidates"] if it["id"] == results["baseline"])
    return baseline


def best(members: Iterable[Candidate], by: str, if_: Callable[[Candidate], bool] = lambda _: True) -> Candidate | None:
    """Of those for whom `if_` holds, the one with the most of `by`; None where it holds for none."""
    return max(filter(if_, members), key=lambda it: float(it[by]), default=None)


def value(it: Candidate | None, name: str) -> float | None:
    """That number of a candidate, None of nobody."""
    return None if it is None else float(it[name])


def latency_of(it: Candidate) -> float:
    """Median latency on the slowest of its devices, in seconds."""
    return float(max(it["latencies_s"].values()))
