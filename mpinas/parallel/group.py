"""The trainers that carry out one order together: a group that is made when it begins and gone when it has ended.

Knows neither orders nor the coordinator: its members are world ranks, the leader first, and each has something to do.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from mpinas.parallel.channel import Backoff
from mpinas.parallel.horovod import HorovodCollectives
from mpinas.parallel.world import Stalled
from mpinas.training.collectives import Collectives, SerialCollectives
from mpinas.training.outcome import Failure, explain

T = TypeVar("T")

#: A rank that failed has freed the others from collectives; all then say how they fared, within so long (seconds).
PATIENCE_S = 600.0
#: One that is done waits longer: its leader may be writing files.
DONE_PATIENCE_S = 3600.0


class Grouping:
    """Forms groups of `world`'s ranks; without a world there is one rank, and it is alone."""

    def __init__(self, world: Any = None, patience_s: float = PATIENCE_S) -> None:
        self._world = world
        self._patience_s = patience_s
        self._everyone = None if world is None else world.Get_group()

    def together(self, members: tuple[int, ...], act: Callable[[Collectives], T]) -> T | Failure:
        """What `act` gives on this rank, or why it failed on any: then on all members alike.

        Called by all members and nobody else; several groups at once do not wait for each other. A rank that fails
        leaves the Horovod world, which frees those that wait for it; then all say how they fared.

        Raises
        ------
        Stalled
            Another does not come to say it.
        """
        if len(members) == 1:
            return _attempt(act, SerialCollectives())
        with self._communicator(members) as comm:
            return self._attempt_on(comm, act)

    def gathered(self, members: tuple[int, ...], mine: T) -> list[T]:
        """What each of the members has to say. Called by all of them, after `together`; raises Stalled as it does."""
        if len(members) == 1:
            return [mine]
        with self._communicator(members) as comm:
            _meet(comm, self._patience_s)
            said: list[T] = comm.allgather(mine)
            return said

    @contextmanager
    def _communicator(self, members: tuple[int, ...]) -> Iterator[Any]:
        assert self._everyone is not None
        ranks = self._everyone.Incl(members)
        # a rank leads one group at a time: its number keeps apart the groups that are made at the same time
        comm = self._world.Create_group(ranks, tag=members[0])
        try:
            yield comm
        finally:
            comm.Free()
            ranks.Free()

    def _attempt_on(self, comm: Any, act: Callable[[Collectives], T]) -> T | Failure:
        collectives = HorovodCollectives(comm)
        collectives.open()
        outcome = _attempt(act, collectives)
        failed = isinstance(outcome, Failure)
        if failed:
            collectives.close()  # frees the peers that wait for this rank
        _meet(comm, self._patience_s if failed else DONE_PATIENCE_S)
        failures = comm.allgather(outcome if isinstance(outcome, Failure) else None)
        collectives.close()
        return _first_cause(failures) or outcome


def _meet(comm: Any, limit_s: float) -> None:
    """Wait for all members; raise Stalled where one does not come."""
    everybody, backoff, until_s = comm.Ibarrier(), Backoff(), time.monotonic() + limit_s
    while not everybody.Test():
        if time.monotonic() > until_s:
            raise Stalled(
                f"a rank of a group of {comm.Get_size()}, one of them on {socket.gethostname()}, has hung: "
                f"the others have waited {limit_s:g} s for it to end its part"
            )
        time.sleep(backoff.next_s())


def _attempt(act: Callable[[Collectives], T], collectives: Collectives) -> T | Failure:
    try:
        return act(collectives)
    except Exception as error:
        return explain(error)


def _first_cause(failures: list[Failure | None]) -> Failure | None:
    """The failure that brought the others about: not that a peer had left."""
    found = [failure for failure in failures if failure is not None]
    causes = [failure for failure in found if "HorovodInternalError" not in failure.detail]
    return next(iter(causes or found), None)
