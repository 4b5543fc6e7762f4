"""How much to search, and with what: the part of the experiment that decisions are made by.

Must not know candidates, events or where it is read from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mpinas.search import Genome


@dataclass(frozen=True, slots=True)
class Plan:
    """What the coordinator decides by.

    Attributes
    ----------
    evaluations
        How many candidates to evaluate, the baseline among them; the rejected and the failed are replaced, until
        `proposals_max` have been proposed.
    seed
        Of the run; every candidate has its own from it.
    group_size, group_size_max
        Trainers that train one candidate together: at least so many while there is work for all, at most so many when
        there is less. 0: any number.
    ahead_min
        How many candidates to keep measured or on their way there, at least, beyond what is trained.
    answer_s
        How long a job that has searched and trained all it should waits for a device that is not there.
    starved_s
        How long trainers wait for a slow device before a candidate goes by predicted latencies.
    exporters
        How many candidates are written for the devices at once.
    start
        Genomes to begin with, after the baseline.
    repeats
        How often, in all, a candidate of the front is trained, each time from another seed; its error is the mean.
    finalists, finalist_seeds
        How many of the front are trained again at the end, and how often.
    patience
        The search ends when so many evaluations in a row bring nobody to the front; 0: never.
    target
        Upper bounds by objective or metric: the search ends when one candidate keeps all; empty: never.
    supernet_epochs
        Train the weights that all subnets share for so long, before anything else; 0: they share none.
    after_baseline
        Others start from the trained baseline, or learn from it: they wait for it.
    limit_s
        Nothing new is begun when the job has gone on for so many seconds; 0: no limit.
    """

    evaluations: int
    seed: int
    proposals_max: int
    group_size: int = 1
    group_size_max: int = 0
    ahead_min: int = 2
    answer_s: float = 600.0
    starved_s: float = 5.0
    exporters: int = 4
    start: tuple[Genome, ...] = ()
    repeats: int = 1
    finalists: int = 0
    finalist_seeds: int = 3
    patience: int = 0
    target: Mapping[str, float] = field(default_factory=dict)
    supernet_epochs: int = 0
    after_baseline: bool = False
    limit_s: float = 0.0

    def seed_of(self, candidate: int, repetition: int = 0) -> int:
        """Of a candidate's weights and batches: its own, and the same on every attempt."""
        return (self.seed * 1_000_003 + candidate + 7_919_777 * repetition) % 2**31
