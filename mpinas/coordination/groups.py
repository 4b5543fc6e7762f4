"""The groups of trainers of a job, and how busy they are: records that the ledger keeps."""

from __future__ import annotations

from dataclasses import dataclass

from mpinas.coordination import events as ev


@dataclass(slots=True)
class Group:
    """One group of trainers of the job that runs now."""

    id: int
    members: tuple[int, ...]
    host: str
    device: str
    #: The one order that is outstanding, if any, and since when (seconds).
    order: ev.Ordered | None = None
    since: float = 0.0
    stopped: bool = False


@dataclass(slots=True)
class Occupation:
    """Trainer seconds used and there, over all jobs of the run: the trainers' utilisation."""

    busy_s: float = 0.0
    past_s: float = 0.0
    trainers: int = 0
    first_ready: float | None = None
    last_report: float = 0.0

    @property
    def utilisation(self) -> float | None:
        """Share of the trainers' time, from the first ready group to the last report, that was spent on orders."""
        available = self.past_s + self._span()
        return self.busy_s / available if available > 0 else None

    def _span(self) -> float:
        return 0.0 if self.first_ready is None else self.trainers * (self.last_report - self.first_ready)

    def new_job(self, trainers: int) -> None:
        """Close the account of the job before."""
        self.past_s += self._span()
        self.trainers, self.first_ready, self.last_report = trainers, None, 0.0
