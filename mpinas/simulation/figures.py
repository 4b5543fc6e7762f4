"""What a simulated search came to, and what held it back. Plain numbers in, plain numbers and words out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

#: Busy above this share: nothing else holds the trainers back.
FULL = 0.95
#: With its start and its end, in which trainings run out, a search that is long enough keeps this.
WHOLE = 0.9
#: Busy above this share: it may be what the others wait for.
BUSY = 0.8
#: Fewer trainings than this for each group of trainers: the start and the end of the search weigh more than the middle.
ROUNDS_MIN = 8

_BUSY = "the trainers are busy throughout: more ranks finish sooner for about the same node-hours, while this stays so"
_UNMEASURED = (
    "; but most candidates were trained by predicted latencies: more devices or exporters would spare trainings of "
    "what is too slow"
)
_TOO_FEW = (
    "{0.trainings} trainings for {0.trainers} trainers: the start and the end of the search, when there is "
    "not work for all, weigh too much; more search.evaluations, or fewer ranks"
)


@dataclass(frozen=True, slots=True)
class Figures:
    """All of one simulated search. Shares are between 0 and 1.

    Attributes
    ----------
    trainer_utilisation
        Share of the trainers' time, from the first ready one to the last answer, that was spent on orders.
    trainer_utilisation_search
        The same, until the last training was ordered: without the time in which the search runs out.
    device_utilisation, exporter_utilisation
        Until then, too; of the device profile that was busiest.
    coordinator_utilisation
        Share of the (virtual) time that its decisions took, at the (real) speed of the machine that simulates.
    node_hours
        For all nodes, from start to finish.
    predicted
        Candidates that were trained before a device had measured them.
    """

    ranks: int
    trainers: int
    nodes: int
    devices: int
    exporters: int
    seconds_to_finish: float
    node_hours: float
    evaluated: int
    rejected: int
    failed: int
    proposed: int
    predicted: int
    front: int
    trainings: int
    evaluations_per_hour: float
    trainer_utilisation: float
    trainer_utilisation_search: float
    device_utilisation: float
    exporter_utilisation: float
    coordinator_utilisation: float
    events: int
    handle_p99_ms: float
    handle_mean_ms: float
    proposal_mean_ms: float
    finished: str
    simulated: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Flat, for JSON, with what they mean."""
        bottleneck, advice = diagnose(self)
        return {**asdict(self), "bottleneck": bottleneck, "advice": advice}


def diagnose(figures: Figures) -> tuple[str, str]:
    """(what holds the search back, what to change), both in words."""
    unmeasured = _UNMEASURED if 2 * figures.predicted > figures.trainings else ""
    if figures.trainer_utilisation_search >= FULL:
        if figures.trainer_utilisation >= WHOLE:
            return "trainers", _BUSY + unmeasured
        return "evaluations", _TOO_FEW.format(figures) + unmeasured
    shares = {
        "coordinator": figures.coordinator_utilisation,
        "device": figures.device_utilisation,
        "exporter": figures.exporter_utilisation,
    }
    name = max(shares, key=lambda each: shares[each])
    if shares[name] >= BUSY:
        return name, {
            "coordinator": "proposals take too long for so many trainers: fewer ranks, larger groups, or "
            "search.algorithm = \"nsga2\"",
            "device": f"trainers wait for measurements: more devices than {figures.devices} of a profile, fewer "
            "edge.samples, or fewer ranks",
            "exporter": f"trainers wait for ONNX files: more exporters than {figures.exporters}, or fewer ranks",
        }[name]  # fmt: skip
    if figures.trainings < ROUNDS_MIN * figures.trainers:
        return "evaluations", _TOO_FEW.format(figures) + unmeasured
    return "dependencies", (
        "nothing is busy all the time: each candidate passes export, measurement and training one after the other; "
        "more are needed ahead, or these steps shorter"
    )
