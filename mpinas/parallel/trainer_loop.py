"""What a trainer rank does: take an order, carry it out with the others it names, report if it leads them.

Whatever goes wrong with a candidate is a report, and the rank takes its next order.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import msgspec

from mpinas.coordination import messages as msg
from mpinas.coordination.failures import NO_DEVICE, UNEXPECTED
from mpinas.history.run_folder import RunFolder
from mpinas.parallel.channel import TrainerEnd
from mpinas.parallel.group import Grouping
from mpinas.parallel.standstill import Post
from mpinas.training.candidate import Files, Trainer
from mpinas.training.collectives import Collectives
from mpinas.training.devices import device_trouble
from mpinas.training.loop import Callbacks
from mpinas.training.outcome import Failure, Paused
from mpinas.training.recipe import Epochs

Say = Callable[[msg.Report], None]
Test = Callable[[], bool]
Work = msg.Evaluate | msg.Assess | msg.Retrain | msg.TrainSupernet
#: What the report on an order says beyond whom it is about; or that it was paused.
Outcome = tuple[Any, ...] | Paused


class Crew:
    """One trainer rank, with its means and its way to form groups with others."""

    def __init__(self, rank: int, trainer: Trainer, folder: RunFolder, grouping: Grouping, post: Post) -> None:
        self.rank = rank
        self.post = post
        self.trainer = trainer
        self.folder = folder
        self.grouping = grouping

    def ready(self) -> msg.Ready:
        """The first report."""
        return msg.Ready(self.rank, socket.gethostname(), str(self.trainer.device))

    def execute(self, order: msg.Order, say: Say, should_stop: Test, should_pause: Test | None = None) -> None:
        """Carry out an order. Of a group the leader alone reports, and asks whether to stop or to pause.

        Without `should_pause` nothing is ever paused. A Pause by itself is for an order that has been answered.
        """
        match order:
            case msg.Stop():
                say(msg.Stopped(self.rank))
            case msg.Pause():
                pass
            case _:
                leads = order.members[0] == self.rank
                work = self._work_of(order, say if leads else _say_nothing, should_stop, should_pause)
                self.post.work = "the supernet" if order.candidate == msg.SUPERNET else f"candidate {order.candidate}"
                self.post.step()
                outcome = self.grouping.together(order.members, work)
                self.post.work = ""
                if isinstance(outcome, Failure) and outcome.reason in (NO_DEVICE, UNEXPECTED):
                    self._examine_devices(order.members, say if leads else _say_nothing)
                if leads:
                    _answer(order, outcome, say)

    def _examine_devices(self, members: tuple[int, ...], say: Say) -> None:
        """Some member's GPU may have failed: who has lost it takes no more orders.

        The leader says so for all, and before its answer: after that there may be another order for any of them.
        """
        mine = None
        if (trouble := device_trouble(self.trainer.device)) is not None:
            mine = msg.Withdrawn(self.rank, f"{socket.gethostname()}, {self.trainer.device}: {trouble}")
        for withdrawn in self.grouping.gathered(members, mine):
            if withdrawn is not None:
                say(withdrawn)

    def _work_of(
        self, order: Work, say: Say, should_stop: Test, should_pause: Test | None
    ) -> Callable[[Collectives], Outcome]:
        """What a member does with its group."""
        trainer = self.trainer
        if isinstance(order, msg.TrainSupernet):
            shared = Files(self.folder.supernet_file, self.folder.supernet_checkpoint_file)
            callbacks = self._callbacks(order, say, should_stop, should_pause)
            return lambda group: trainer.train_supernet(group, order.seed, order.epochs, shared, callbacks)
        genome, weights = order.genome, self.folder.weights_file(order.candidate)
        match order:
            case msg.Evaluate(seed=seed):
                epochs = Epochs(order.epochs_done, order.epochs, order.epochs_full)
                files = Files(weights, self.folder.checkpoint_file(order.candidate))
                callbacks = self._callbacks(order, say, should_stop, should_pause)
                return lambda group: trainer.evaluate(group, genome, seed, epochs, files, callbacks)
            case msg.Retrain(seed=seed, epochs=length):
                callbacks = self._callbacks(order, say, should_stop)
                return lambda group: trainer.retrain(group, genome, seed, length, callbacks)
            case msg.Assess():
                onnx, shard = self.folder.onnx_file(order.candidate), self.folder.shard_file(order.candidate)
                metadata = {"candidate": str(order.candidate), "genome": msgspec.json.encode(genome).decode()}
                return lambda group: trainer.assess(group, genome, weights, onnx, shard, metadata)

    def _callbacks(
        self,
        order: msg.Evaluate | msg.Retrain | msg.TrainSupernet,
        say: Say,
        should_stop: Test,
        should_pause: Test | None = None,
    ) -> Callbacks:
        def on_epoch(epoch: int, error: float) -> None:
            say(msg.Progress(*_identity(order), epoch, order.epochs, error))

        return Callbacks(on_epoch, should_stop, should_pause, self.post.step)


#: The report on each kind of order: that it is done, that it failed.
_ANSWERS: dict[type[Work], tuple[Callable[..., msg.Report], Callable[..., msg.Report]]] = {
    msg.Evaluate: (msg.Evaluated, msg.EvaluationFailed),
    msg.Assess: (msg.Assessed, msg.AssessmentFailed),
    msg.Retrain: (msg.Retrained, msg.RetrainingFailed),
    msg.TrainSupernet: (msg.SupernetTrained, msg.SupernetFailed),
}


def _answer(order: Work, outcome: Outcome | Failure, say: Say) -> None:
    done, failed = _ANSWERS[type(order)]
    match outcome:
        case Failure(reason="abandoned"):
            pass  # the order to stop is waiting, and answers for it
        case Failure(reason, detail, traceback):
            say(failed(*_identity(order), reason, detail, traceback))
        case Paused(epochs_done, seconds):
            say(msg.Paused(*_identity(order), epochs_done, seconds))
        case _:
            say(done(*_identity(order), *outcome))


def _identity(order: Work) -> tuple[int, int, int]:
    """What every report on an order begins with."""
    return order.members[0], order.candidate, order.attempt


def _say_nothing(report: msg.Report) -> None:
    """A member that does not lead."""


def run_trainer(crew: Crew, control: Any) -> None:
    """A trainer's whole life: orders until Stop."""
    end = TrainerEnd(control)
    end.report(crew.ready())
    order: msg.Order | None = None
    while not isinstance(order, msg.Stop):
        order = end.wait_for_order()
        crew.execute(order, end.report, end.order_waits, end.pause_asked)
    end.flush()
