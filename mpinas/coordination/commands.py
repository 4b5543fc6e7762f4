"""What the coordinator has decided is to be done: plain values, carried out by `parallel.coordinator_loop`."""

from __future__ import annotations

from dataclasses import dataclass

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.search import Genome


@dataclass(frozen=True, slots=True)
class Record:
    """Append this event to the journal, before anything that follows from it."""

    event: ev.Event


@dataclass(frozen=True, slots=True)
class Export:
    """Write this candidate, untrained, as an artifact; answer with Exported or ExportFailed."""

    candidate: int
    genome: Genome


@dataclass(frozen=True, slots=True)
class Measure:
    """Have a device of this profile measure the artifact; answer with Measured or MeasurementFailed."""

    candidate: int
    genome: Genome
    device: str
    repetition: int = 0


@dataclass(frozen=True, slots=True)
class Release:
    """The artifact is not going to be measured in the near future."""

    candidate: int


@dataclass(frozen=True, slots=True)
class Judge:
    """Have a device run the trained model on its labelled samples; answer with Judged or JudgingFailed."""

    candidate: int
    device: str


@dataclass(frozen=True, slots=True)
class Send:
    """Give trainers an order: to each of `ranks` (world ranks), the leader of an order for several first."""

    ranks: tuple[int, ...]
    order: msg.Order


@dataclass(frozen=True, slots=True)
class Discard:
    """This candidate's files are of no more use, nor is what a device may still say of it."""

    candidate: int


@dataclass(frozen=True, slots=True)
class DropCheckpoint:
    """This candidate has its result on the full budget: there is nothing left to go on with."""

    candidate: int


@dataclass(frozen=True, slots=True)
class Leave:
    """All trainers have ended; the loop can, too."""


Command = Record | Export | Measure | Release | Judge | Send | Discard | DropCheckpoint | Leave
