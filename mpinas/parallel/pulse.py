"""Signs of life between rank 0 and the trainers: a rank that stalls, or is cut off, ends the job instead of hanging it.

Rank 0 gives its signs from the coordinator's loop, so that they stop when it does; a trainer has a thread for it, for
its main thread is at work. Must not know orders, nor how a job is ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

#: Between two signs (seconds).
PULSE_S = 2.0
#: Who looked away for so long was itself stopped, with others perhaps: what it did not hear meanwhile says nothing.
LOOKED_AWAY_S = 5 * PULSE_S


class Pulse:
    """One end; `beat` often, from one thread. It never blocks.

    Parameters
    ----------
    comm
        A communicator that nothing else is sent on.
    peers
        Ranks of it to hear, and to be heard by.
    """

    def __init__(self, comm: Any, peers: Iterable[int], clock: Callable[[], float] = time.monotonic) -> None:
        self._comm = comm
        self._clock = clock
        now_s = clock()
        self._heard_s = dict.fromkeys(peers, now_s)
        self._sending: dict[int, Any] = {}
        self._looked_s = now_s
        self._next_s = now_s

    def beat(self) -> None:
        """Hear who is there; if it is time, say so of this rank."""
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._next_s = now_s + PULSE_S
        if now_s - self._looked_s > LOOKED_AWAY_S:
            self._heard_s = dict.fromkeys(self._heard_s, now_s)
        self._looked_s = now_s
        while (message := self._comm.improbe()) is not None:
            self._heard_s[message.recv()] = now_s
        rank = self._comm.Get_rank()
        for peer in self._heard_s:
            if peer not in self._sending or self._sending[peer].Test():
                self._sending[peer] = self._comm.isend(rank, dest=peer)

    def silent(self, limit_s: float) -> list[int]:
        """Who has not been heard of for longer."""
        now_s = self._looked_s
        return [peer for peer, heard_s in self._heard_s.items() if now_s - heard_s > limit_s]
