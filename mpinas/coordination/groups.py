"""The trainers of a job, the groups they form for one order, and how busy they are.

Records that the ledger keeps, and the rules by which groups are formed. Pure; must not know candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mpinas.coordination import events as ev

#: Work that can be put aside at the end of an epoch.
PAUSABLE = ("evaluate", "supernet")
#: A training that ends sooner is left as it is: forming another group has its price.
WORTH_S = 5.0


@dataclass(slots=True)
class Trainer:
    """One trainer rank of the job that runs now."""

    rank: int
    host: str
    device: str
    #: Leader of the group that it is a member of now, if it is of any.
    group: int | None = None
    stopped: bool = False
    #: What its GPU failed with: it gets no orders.
    withdrawn: str = ""


@dataclass(slots=True)
class Group:
    """The trainers that carry out an order, since when (seconds), and the last epoch whose end they have reported."""

    order: ev.Ordered
    since: float
    epoch: int = 0

    @property
    def members(self) -> tuple[int, ...]:
        """World ranks, the leader first."""
        return self.order.members


def group_size(idle: int, works: int, smallest: int, largest: int) -> int:
    """How many of `idle` trainers take the next of `works` pieces of work that are to be begun; 0: wait for more.

    Small groups while there is work for all of them: several small ones get more done than a large one. When there is
    less, the idle ones are shared out, so that the last candidates have all ranks.
    """
    if idle < smallest:
        return 0
    share = idle // max(1, works)
    return max(smallest, min(share, largest or share))


def to_enlarge(idle: int, running: Sequence[tuple[int, int, float]], largest: int) -> list[int]:
    """Which groups are to make way for larger ones, so that the last trainings have the idle trainers, too.

    Those with the most left to do first, as long as each can have at least twice its trainers of those that are idle.

    Parameters
    ----------
    idle
        Trainers that have nothing to do, and will not have.
    running
        (leader, size, seconds that it still needs as it is).
    largest
        Trainers of one group at most; 0: any number.
    """
    if not running:
        return []
    share = (idle + sum(size for _, size, _ in running)) // len(running)
    share = min(share, largest or share)
    found = []
    for leader, size, left_s in sorted(running, key=lambda each: -each[2]):
        if 2 * size <= share and left_s >= WORTH_S and idle >= size:
            found.append(leader)
            idle -= share - size
    return found


def choose(idle: Iterable[Trainer], size: int) -> tuple[int, ...]:
    """`size` of the idle trainers, on one host where one has enough: that with the fewest, to keep the others whole."""
    if size == 1:
        return (next(iter(idle)).rank,)
    by_host: dict[str, list[int]] = {}
    for trainer in idle:
        by_host.setdefault(trainer.host, []).append(trainer.rank)
    enough = sorted((ranks for ranks in by_host.values() if len(ranks) >= size), key=len)
    if enough:
        return tuple(sorted(enough[0])[:size])
    # the fullest hosts first, so that as few as possible take part
    ordered = sorted(by_host.values(), key=len, reverse=True)
    return tuple(sorted([rank for ranks in ordered for rank in sorted(ranks)][:size]))


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
        """Share of the trainers' time, from the first ready one to the last answer, that was spent on orders."""
        available = self.past_s + self._span()
        return self.busy_s / available if available > 0 else None

    def _span(self) -> float:
        return 0.0 if self.first_ready is None else self.trainers * (self.last_report - self.first_ready)

    def new_job(self, trainers: int) -> None:
        """Close the account of the job before."""
        self.past_s += self._span()
        self.trainers, self.first_ready, self.last_report = trainers, None, 0.0
