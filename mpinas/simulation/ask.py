"""What the user asks of the planner: read, checked, and turned into a machine to simulate.

Must not know what is done with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpinas.config import EXPORTERS_LIMIT, EXPORTERS_MAX, Experiment
from mpinas.errors import UserError
from mpinas.history import journal
from mpinas.history.run_folder import RunFolder, terms_of
from mpinas.search import ALGORITHMS
from mpinas.simulation.durations import Duration, Empirical, Fixed, around
from mpinas.simulation.machine import Machine
from mpinas.simulation.past_run import Seen, seen_in

RANKS_MAX = 1_000_000
SECONDS_MAX = 1e7


@dataclass(frozen=True, slots=True)
class Question:
    """What the user asks; durations that are None are taken from `seen`, else from the defaults here."""

    ranks: int
    devices: int = 1
    exporters: int = EXPORTERS_MAX
    train_s: float | None = None
    train_spread: float = 0.3
    export_s: float | None = None
    measure_s: float | None = None
    assess_s: float | None = None
    round_trip_s: float = 0.03
    outages: tuple[tuple[float, float], ...] = ()
    rejected_share: float | None = None
    failed_share: float | None = None
    serial_share: float = 0.05
    proposal_s: float = 0.0
    ranks_per_node: int = 4
    seed: int = 0
    algorithm: str | None = None
    seen: Seen | None = None


def check(question: Question) -> None:
    """Raise UserError, in one line, where a number makes no sense."""
    counts = {"--ranks": question.ranks, "--devices": question.devices, "--exporters": question.exporters,
              "--ranks-per-node": question.ranks_per_node}  # fmt: skip
    for name, count in counts.items():
        most = EXPORTERS_LIMIT if name == "--exporters" else RANKS_MAX
        if not 1 <= count <= most:
            raise UserError(f"{name} {count}: give a number from 1 to {most:,}")
    seconds = {
        "--train-seconds": question.train_s,
        "--export-seconds": question.export_s,
        "--measure-seconds": question.measure_s,
        "--assess-seconds": question.assess_s,
    }
    for name, value in seconds.items():
        if value is not None and not 0 < value <= SECONDS_MAX:
            raise UserError(f"{name} {value:g}: give seconds above 0, {SECONDS_MAX:g} at most")
    if not 0 <= question.round_trip_s <= 60:
        raise UserError(f"--round-trip-ms {question.round_trip_s * 1e3:g}: give 0 to 60000")
    if not 0 <= question.proposal_s <= 60:
        raise UserError(f"--proposal-ms {question.proposal_s * 1e3:g}: give 0 to 60000")
    if not 0 <= question.train_spread <= 2:
        raise UserError(f"--train-spread {question.train_spread:g}: give 0 (all alike) to 2 (factors of 7 and more)")
    shares = {"--rejected": question.rejected_share, "--failed": question.failed_share,
              "--serial-share": question.serial_share}  # fmt: skip
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 0.99:
            raise UserError(f"{name} {share:g}: give a share from 0 to 0.99")
    if question.algorithm is not None and question.algorithm not in ALGORITHMS:
        raise UserError(f"--algorithm {question.algorithm}: known are {', '.join(ALGORITHMS)}")
    ends = [0.0, *(moment for outage in sorted(question.outages) for moment in outage)]
    if ends != sorted(ends) or len(set(ends[1:])) < len(ends) - 1 or not all(math.isfinite(end) for end in ends):
        raise UserError("--outage: give FROM:TO in seconds from the start, FROM before TO, one outage after the other")


def machine_for(question: Question, epochs: int) -> Machine:
    """What the search is going to run on. Raises UserError."""
    check(question)
    seen = question.seen or Seen()

    def duration(given_s: float | None, seen_s: list[float], default: Duration) -> Duration:
        if given_s is not None:
            return Fixed(given_s)
        return Empirical(tuple(seen_s)) if seen_s else default

    default = Machine(1)
    train: Duration = Empirical(tuple(epochs * each for each in seen.epoch_s)) if seen.epoch_s else default.train
    if question.train_s is not None or not seen.epoch_s:
        train = around(question.train_s or default.train.mean_s, question.train_spread)
    measure = duration(question.measure_s, seen.measure_s, default.measure)
    failed = question.failed_share
    return Machine(
        trainers=max(1, question.ranks - 1),
        exporters=question.exporters,
        devices=question.devices,
        train=train,
        serial_share=question.serial_share,
        assess=duration(question.assess_s, seen.assess_s, default.assess),
        export=duration(question.export_s, seen.export_s, default.export),
        measure=measure,
        judge=measure,
        # what was seen has the round trip in it
        round_trip_s=0.0 if isinstance(measure, Empirical) else question.round_trip_s,
        outages=tuple(sorted(question.outages)),
        failed_share=failed if failed is not None else (seen.failed_share if seen.trained else 0.0),
        proposal_s=question.proposal_s,
        ranks_per_node=question.ranks_per_node,
    )


def question(experiment: Experiment, past: Path | None, outages: tuple[str, ...], **numbers: Any) -> Question:
    """From the options of the command line, by their names there. Raises UserError."""
    seen = None
    if past is not None:
        folder = RunFolder.existing(past)
        rungs = terms_of(folder.experiment()).rungs
        seen = seen_in(journal.read(folder.journal_file), rungs, numbers["serial_share"])
    exporters = numbers["exporters"]
    found = Question(
        ranks=numbers["ranks"],
        devices=numbers["devices"],
        exporters=_exporters(experiment) if exporters is None else exporters,
        train_s=numbers["train_seconds"],
        train_spread=numbers["train_spread"],
        export_s=numbers["export_seconds"],
        measure_s=numbers["measure_seconds"],
        assess_s=numbers["assess_seconds"],
        round_trip_s=numbers["round_trip_ms"] / 1e3,
        outages=tuple(_outage(text) for text in outages),
        rejected_share=numbers["rejected"],
        failed_share=numbers["failed"],
        serial_share=numbers["serial_share"],
        proposal_s=numbers["proposal_ms"] / 1e3,
        ranks_per_node=numbers["ranks_per_node"],
        seed=numbers["seed"],
        algorithm=numbers["algorithm"],
        seen=seen,
    )
    check(found)
    return found


def notes(experiment: Experiment, asked: Question) -> tuple[str, ...]:
    """What of the experiment is not simulated as it stands there."""
    said = []
    if experiment.search.limits and asked.rejected_share is None and asked.seen is None:
        said.append("the limits of the experiment reject nobody here; say --rejected SHARE, or --from RUN")
    if asked.exporters != _exporters(experiment):
        said.append(f"for {asked.exporters} exporters write edge.exporters = {asked.exporters} into the experiment")
    if asked.seen is not None and not asked.seen.export_s and asked.export_s is None:
        assumed = f"{Machine(1).export.mean_s:g} s is assumed; say --export-seconds"
        said.append(f"the journal of --from does not say how long exports took: {assumed}")
    return tuple(said)


def _exporters(experiment: Experiment) -> int:
    """As a job has them on a node with cores enough."""
    return experiment.edge.exporters_on(EXPORTERS_MAX)


def _outage(text: str) -> tuple[float, float]:
    begin, _, end = text.partition(":")
    try:
        return float(begin), float(end)
    except ValueError:
        raise UserError(f"--outage {text}: write FROM:TO in seconds from the start, as in --outage 3600:7200") from None
