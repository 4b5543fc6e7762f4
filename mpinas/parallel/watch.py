"""What looks after the ranks of a job while it runs: signs of life between them, and an eye on the neighbours' deaths.

Must not know orders or the search.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mpinas.history.lock import process_namespace
from mpinas.parallel import world as mpi
from mpinas.parallel.neighbours import Vigil, meet, report_the_dead
from mpinas.parallel.pulse import PULSE_S, Pulse
from mpinas.parallel.standstill import Post, Standstill


class Watch:
    """Of one rank; to be made by all ranks together.

    Parameters
    ----------
    limit_s
        For how long a rank may give no sign of life.
    hang_s
        For how long a rank may be at work without getting on.
    journal
        Tells what a dead rank was at.
    post
        What this rank is at.
    """

    def __init__(self, world: Any, limit_s: float, hang_s: float, journal: Path, post: Post) -> None:
        from mpi4py import MPI

        self._world = world
        self._pulses = world.Dup()
        self._limit_s = limit_s
        self._hang_s = hang_s
        self.post = post
        self._standstill = Standstill(post, hang_s)
        node = world.Split_type(MPI.COMM_TYPE_SHARED)
        where = process_namespace()
        found = node.allgather((world.Get_rank(), os.getpid(), where))
        process_ids = {rank: pid for rank, pid, there in found if there == where}
        node.Free()
        meet(process_ids)
        self._report_the_dead = partial(report_the_dead, process_ids, journal)

    @contextmanager
    def over_trainers(self, trainers: tuple[int, ...]) -> Iterator[tuple[Pulse, float]]:
        """On rank 0: their pulse, to be felt in its loop, and for how long one may be silent."""
        others = [rank for rank in trainers if rank != self._world.Get_rank()]
        with closing(Vigil(self._report_the_dead, (PULSE_S, self._look))):
            yield Pulse(self._pulses, others), self._limit_s

    @contextmanager
    def over_rank_0(self) -> Iterator[None]:
        """On a trainer, from another thread: the job ends when rank 0 is silent."""
        pulse, rank = Pulse(self._pulses, peers=(0,)), self._world.Get_rank()
        # the first trainer speaks first; where it cannot, the others do
        limit_s = self._limit_s + (0.0 if rank == 1 else mpi.ABORT_S)

        def listen() -> None:
            self._look()
            pulse.beat()
            if pulse.silent(limit_s):
                mpi.end_job(
                    self._world,
                    f"rank 0 has given no sign of life for {limit_s:g} s, says rank {rank} on {socket.gethostname()}"
                    f"{self.post}; {mpi.GOES_ON}",
                )

        with closing(Vigil(self._report_the_dead, (PULSE_S, listen))):
            yield

    def _look(self) -> None:
        """Some launchers do not end a job when a rank has died; none sees that a main thread hangs."""
        if self._report_the_dead():
            mpi.end_job(self._world, "the job ends here")
        if self._standstill.look():
            who = f"rank {self._world.Get_rank()} on {socket.gethostname()}{self.post}"
            mpi.end_job(
                self._world, f"{who}, has not got on for {self._hang_s:g} s (training.hang_seconds); {mpi.GOES_ON}"
            )
