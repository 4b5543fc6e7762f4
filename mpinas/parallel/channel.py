"""How orders and reports travel. Both ends of each exchange stand together; nobody spins, nobody blocks for ever.

Rank 0 sends an order to each rank that has a part in it; of these the leader alone reports, and hears what comes
meanwhile: to stop, or to pause. Beyond that, must not know what is said.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Protocol

from mpinas.coordination.messages import Evaluate, Order, Pause, Progress, Report, TrainSupernet


class Tag(IntEnum):
    """On the control communicator: one for each direction."""

    ORDER = 1
    REPORT = 2


class Backoff:
    """Sleeps a little longer each time nothing came, up to `limit_s`."""

    def __init__(self, limit_s: float = 0.005) -> None:
        self._limit_s = limit_s
        self._next_s = 0.0

    def reset(self) -> None:
        """Something came."""
        self._next_s = 0.0

    def next_s(self) -> float:
        """How long to sleep now."""
        now = self._next_s
        self._next_s = min(self._limit_s, self._next_s * 2 or 1e-5)
        return now


class Channel(Protocol):
    """The coordinator's end, whatever is behind it."""

    def send(self, ranks: tuple[int, ...], order: Order) -> None:
        """Give trainers an order; does not wait for it to arrive."""
        ...

    def receive(self) -> list[Report]:
        """Reports that have arrived, in order of each rank; does not wait."""
        ...

    def tell(self, meanwhile: Callable[[Report], None]) -> None:
        """Who is to hear of progress while `send` carries an order out, where it does."""
        ...


class MpiChannel:
    """Rank 0's end of the control communicator."""

    def __init__(self, control: Any) -> None:
        self._control = control
        self._sending: list[Any] = []

    def send(self, ranks: tuple[int, ...], order: Order) -> None:
        """Give trainers an order; does not wait for it to arrive."""
        self._sending = [request for request in self._sending if not request.Test()]
        self._sending += [self._control.isend(order, dest=rank, tag=Tag.ORDER) for rank in ranks]

    def receive(self) -> list[Report]:
        """Reports that have arrived, in order of each rank; does not wait."""
        reports: list[Report] = []
        while (message := self._control.improbe(tag=Tag.REPORT)) is not None:
            reports.append(message.recv())
        return reports

    def tell(self, meanwhile: Callable[[Report], None]) -> None:
        """Nobody: `send` carries nothing out."""


class SerialChannel:
    """A world of one: an order is carried out by `execute` before `send` returns; its reports wait for `receive`.

    But for Progress, which is told at once: it counts when the job is killed before the order is done.
    """

    def __init__(self, execute: Callable[[Order, Callable[[Report], None]], None], ready: Report) -> None:
        self._execute = execute
        self._reports: list[Report] = [ready]
        self._meanwhile: Callable[[Report], None] = self._reports.append

    def tell(self, meanwhile: Callable[[Report], None]) -> None:
        """Who hears of progress."""
        self._meanwhile = meanwhile

    def send(self, ranks: tuple[int, ...], order: Order) -> None:
        """Carry the order out, here and now."""
        self._execute(order, self._say)

    def _say(self, report: Report) -> None:
        if isinstance(report, Progress):
            self._meanwhile(report)
        else:
            self._reports.append(report)

    def receive(self) -> list[Report]:
        """Reports that have arrived, in order; does not wait."""
        reports, self._reports = self._reports, []
        return reports


class TrainerEnd:
    """A trainer's end of the control communicator."""

    def __init__(self, control: Any) -> None:
        self._control = control
        self._sending: list[Any] = []
        #: The order under way, or the last one.
        self._order: Order | None = None
        #: Told to pause it.
        self._pause = False
        #: What came while it was under way and is to be carried out after it.
        self._next: deque[Order] = deque()

    def report(self, report: Report) -> None:
        """Tell rank 0; does not wait for it to arrive."""
        self._sending = [request for request in self._sending if not request.Test()]
        self._sending.append(self._control.isend(report, dest=0, tag=Tag.REPORT))

    def wait_for_order(self) -> Order:
        """The next order, however long it takes. A Pause that comes before it has crossed the answer to its order."""
        backoff = Backoff()
        while not self._next:
            order = self._take()
            if order is None:
                time.sleep(backoff.next_s())
            elif not isinstance(order, Pause):
                self._next.append(order)
        self._order, self._pause = self._next.popleft(), False
        return self._order

    def order_waits(self) -> bool:
        """Has another order come while one is under way? It can only be one to stop."""
        self._hear()
        return bool(self._next)

    def pause_asked(self) -> bool:
        """Is the order under way to be paused?"""
        self._hear()
        return self._pause

    def _hear(self) -> None:
        """Take all that has arrived; a Pause of any other order than that under way means nothing any more."""
        while (order := self._take()) is not None:
            if not isinstance(order, Pause):
                self._next.append(order)
            elif isinstance(under_way := self._order, Evaluate | TrainSupernet):
                names = (order.candidate, order.attempt)
                self._pause |= names == (under_way.candidate, under_way.attempt)

    def _take(self) -> Order | None:
        message = self._control.improbe(source=0, tag=Tag.ORDER)
        order: Order | None = None if message is None else message.recv()
        return order

    def flush(self) -> None:
        """Wait until every report is on its way."""
        for request in self._sending:
            request.wait()
        self._sending.clear()
