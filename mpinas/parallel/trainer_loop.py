"""What a trainer rank does: take an order, carry it out with its group, report.

Whatever goes wrong with a candidate is a report. A rank whose part fails leaves the Horovod world, which frees the
others; then all say how they fared and go on with the next order.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from mpinas.coordination import messages as msg
from mpinas.history.run_folder import RunFolder
from mpinas.parallel.channel import LeaderEnd, hand_on, order_from_leader
from mpinas.parallel.horovod import HorovodCollectives
from mpinas.training.candidate import Failure, Trainer, explain

Say = Callable[[msg.Report], None]
T = TypeVar("T")


class Crew:
    """The ranks of one group, as one of them sees it; by itself that of a world of one."""

    def __init__(self, group: int, members: tuple[int, ...], trainer: Trainer, folder: RunFolder) -> None:
        self.group = group
        self.members = members
        self.trainer = trainer
        self.folder = folder

    def ready(self) -> msg.Ready:
        """The first report."""
        return msg.Ready(self.group, self.members, socket.gethostname(), str(self.trainer.device))

    def execute(self, order: msg.Order, say: Say, should_stop: Callable[[], bool]) -> None:
        """Carry out an order. Only the leader's `say` and `should_stop` are used."""
        match order:
            case msg.Stop():
                say(msg.Stopped(self.group))
            case msg.Evaluate():
                self._evaluate(order, say, should_stop)
            case msg.Assess():
                self._assess(order, say)

    def _evaluate(self, order: msg.Evaluate, say: Say, should_stop: Callable[[], bool]) -> None:
        who = (self.group, order.candidate, order.attempt)

        def on_epoch(epoch: int, error: float) -> None:
            say(msg.Progress(*who, epoch, order.epochs, error))

        def act() -> tuple[dict[str, float], float]:
            weights = self.folder.weights_file(order.candidate)
            return self.trainer.evaluate(order.genome, order.epochs, order.seed, weights, on_epoch, should_stop)

        outcome = self._attempt(act)
        if isinstance(outcome, Failure):
            if outcome.reason != "abandoned":  # then the order to stop is waiting, and answers for it
                say(msg.EvaluationFailed(*who, outcome.reason, outcome.detail, outcome.traceback))
        else:
            say(msg.Evaluated(*who, *outcome))

    def _assess(self, order: msg.Assess, say: Say) -> None:
        who = (self.group, order.candidate, order.attempt)
        weights, onnx = self.folder.weights_file(order.candidate), self.folder.onnx_file(order.candidate)
        metadata = {"candidate": str(order.candidate), "genome": msgspec.json.encode(order.genome).decode()}
        shard = self.folder.shard_file(order.candidate)
        outcome = self._attempt(lambda: self.trainer.assess(order.genome, weights, onnx, shard, metadata))
        if isinstance(outcome, Failure):
            say(msg.AssessmentFailed(*who, outcome.reason, outcome.detail, outcome.traceback))
        else:
            say(msg.Assessed(*who, *outcome))

    def _attempt(self, act: Callable[[], T]) -> T | Failure:
        try:
            return act()
        except Exception as error:
            return explain(error)


class MpiCrew(Crew):
    """A crew on an MPI communicator. Every order gets a Horovod world of its own: that takes milliseconds, and nothing
    of one candidate (tensor names, a broken state) is left for the next."""

    def __init__(
        self, group: int, members: tuple[int, ...], trainer: Trainer, folder: RunFolder, comm: Any,
        collectives: HorovodCollectives,
    ) -> None:  # fmt: skip
        super().__init__(group, members, trainer, folder)
        self._comm = comm
        self._collectives = collectives

    def _attempt(self, act: Callable[[], T]) -> T | Failure:
        self._collectives.open()
        outcome = super()._attempt(act)
        if isinstance(outcome, Failure):
            self._collectives.close()  # frees the peers that wait for this rank
        failures = self._comm.allgather(outcome if isinstance(outcome, Failure) else None)
        self._collectives.close()
        return _first_cause(failures) or outcome


def _first_cause(failures: list[Failure | None]) -> Failure | None:
    """The failure that brought the others about: not that a peer had left."""
    found = [failure for failure in failures if failure is not None]
    causes = [failure for failure in found if "HorovodInternalError" not in failure.detail]
    return next(iter(causes or found), None)


def run_trainer(crew: MpiCrew, comm: Any, control: Any) -> None:
    """A trainer's whole life: orders until Stop."""
    leads = comm.Get_rank() == 0
    end = LeaderEnd(control) if leads else None
    say: Say = end.report if end else (lambda report: None)
    say(crew.ready())
    while True:
        if end:
            order = end.wait_for_order()
            hand_on(comm, order)
        else:
            order = order_from_leader(comm)
        crew.execute(order, say, end.order_waits if end else (lambda: False))
        if isinstance(order, msg.Stop):
            break
    if end:
        end.flush()


def be_polite() -> None:
    """Yield the processor to the device agent where both share a machine, so that it measures the model and not us."""
    os.nice(10)
