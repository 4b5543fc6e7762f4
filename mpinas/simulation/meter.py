"""What the coordinator itself costs: real seconds of this machine, taken while the job around it is simulated."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Protocol

import numpy as np

from mpinas.coordination.commands import Command
from mpinas.coordination.events import Event
from mpinas.coordination.ledger import Ledger


class Decides(Protocol):
    """A coordinator, as far as a simulated job needs one."""

    ledger: Ledger

    def handle(self, event: Event, time: float) -> list[Command]:
        """What follows from an event."""
        ...

    def idle(self, time: float) -> list[Command]:
        """What is done when no event waits."""
        ...

    def time_over(self, time: float) -> list[Event]:
        """That the job should end."""
        ...

    def overdue(self, time: float) -> list[Event]:
        """What is not waited for any longer."""
        ...

    def due(self, time: float) -> float | None:
        """When there may be something to do though no event has come."""
        ...


class Metered:
    """A coordinator and how long each of its calls took. `clock` in seconds, such as `time.perf_counter`."""

    def __init__(self, coordinator: Decides, clock: Callable[[], float]) -> None:
        self.coordinator = coordinator
        self.ledger = coordinator.ledger
        self._clock = clock
        #: Of each event handled.
        self.handled_s = array("d")
        #: Of each idle call that gave commands (proposals), and of all others together.
        self.proposed_s = array("d")
        self.looked_s = 0.0

    def handle(self, event: Event, time: float) -> list[Command]:
        """The coordinator's, timed."""
        began_s = self._clock()
        commands = self.coordinator.handle(event, time)
        self.handled_s.append(self._clock() - began_s)
        return commands

    def idle(self, time: float) -> list[Command]:
        """The coordinator's, timed."""
        began_s = self._clock()
        commands = self.coordinator.idle(time)
        took_s = self._clock() - began_s
        if commands:
            self.proposed_s.append(took_s)
        else:
            self.looked_s += took_s
        return commands

    def time_over(self, time: float) -> list[Event]:
        """As the coordinator's."""
        return self.coordinator.time_over(time)

    def overdue(self, time: float) -> list[Event]:
        """The coordinator's."""
        return self.coordinator.overdue(time)

    def due(self, time: float) -> float | None:
        """The coordinator's."""
        return self.coordinator.due(time)

    @property
    def total_s(self) -> float:
        """All that deciding took."""
        return sum(self.handled_s) + sum(self.proposed_s) + self.looked_s


def percentile_ms(seconds: array[float], percent: float) -> float:
    """In milliseconds; 0 of nothing."""
    return float(np.percentile(seconds, percent)) * 1e3 if len(seconds) else 0.0
