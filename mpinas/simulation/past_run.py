"""How long things took in a real run, read from its journal: what the next one is planned with.

A device serves one after the other, so what one answer took is the time since the answer before, or since it was asked
for where nothing waited. Must not know files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.errors import UserError
from mpinas.simulation.machine import speed_up


@dataclass(slots=True)
class Seen:
    """Seconds, one number each time it happened.

    Attributes
    ----------
    epoch_s
        Of a candidate's training, in the mean over an order, by one trainer.
    measure_s
        With the round trip to the device in it.
    trained, failed, rejected
        How many candidates came to what.
    """

    epoch_s: list[float] = field(default_factory=list)
    assess_s: list[float] = field(default_factory=list)
    export_s: list[float] = field(default_factory=list)
    measure_s: list[float] = field(default_factory=list)
    trained: int = 0
    failed: int = 0
    rejected: int = 0

    @property
    def failed_share(self) -> float:
        """Of those that were trained."""
        return self.failed / (self.failed + self.trained)

    @property
    def rejected_share(self) -> float:
        """Of all that came so far that they could be rejected."""
        return self.rejected / (self.rejected + self.failed + self.trained)


def seen_in(history: Iterable[tuple[float, ev.Event]], rungs: Sequence[int], serial_share: float) -> Seen:
    """What a journal says.

    Parameters
    ----------
    history
        (seconds, event), oldest first.
    rungs
        Budgets of the run, in epochs.
    serial_share
        Of a training, as in Machine: what several trainers took is said as what one would have taken.

    Raises
    ------
    UserError
        Nothing was trained in it.
    """
    reader = _Reader(rungs, serial_share)
    for time, event in history:
        reader.take(time, event)
    if not reader.seen.epoch_s:
        raise UserError("--from: no candidate was trained in that run; name one that got further")
    return reader.seen


class _Reader:
    """Who asked when, as far as it is still open."""

    def __init__(self, rungs: Sequence[int], serial_share: float) -> None:
        self.seen = Seen()
        self._rungs = rungs
        self._serial_share = serial_share
        self._orders: dict[int, tuple[float, ev.Ordered]] = {}
        self._epochs_done: dict[int, int] = {}
        #: When each candidate was ready for the devices.
        self._exported: dict[int, float] = {}
        #: When each device last became free.
        self._device_free: dict[str, float] = {}

    def take(self, time: float, event: ev.Event) -> None:
        match event:
            case ev.Begun():
                self._orders.clear()
                self._device_free.clear()
            case ev.Exported(candidate, seconds=seconds):
                self._exported[candidate] = time
                if seconds > 0:
                    self.seen.export_s.append(seconds)
            case ev.Measured(candidate, device=device, repetition=repetition):
                name = f"{device}/{event.measurement.get('device', '')}"
                since = max(self._device_free.get(name, 0.0), self._exported.get(candidate, 0.0))
                if repetition == 0 and since > 0.0:
                    self.seen.measure_s.append(time - since)
                self._device_free[name] = time
            case ev.DeviceBack(device=device):
                for name in self._device_free:
                    if name.startswith(f"{device}/"):
                        self._device_free[name] = time
            case ev.Rejected():
                self.seen.rejected += 1
            case ev.GivenUp(work="evaluate"):
                self.seen.failed += 1
            case ev.Ordered(members=members):
                self._orders[members[0]] = time, event
            case msg.Evaluated() | msg.Paused() | msg.EvaluationFailed() | msg.Assessed():
                self._answered(time, event)

    def _answered(
        self, time: float, report: msg.Evaluated | msg.Paused | msg.EvaluationFailed | msg.Assessed
    ) -> None:  # fmt: skip
        since, order = self._orders.pop(report.group)
        id_ = report.candidate
        match report:
            case msg.Assessed():
                self.seen.assess_s.append(time - since)
            case msg.EvaluationFailed(reason=reason):
                self._epochs_done.pop(id_, None)
                self.seen.failed += reason != "checkpoint"
            case msg.Evaluated() | msg.Paused() if id_ != msg.SUPERNET:
                done = self._epochs_done.get(id_, 0)
                epochs = report.epochs_done if isinstance(report, msg.Paused) else self._rungs[order.rung]
                faster = speed_up(self._serial_share, len(order.members))
                if epochs > done:  # else it was judged as inherited
                    self.seen.epoch_s.append((time - since) * faster / (epochs - done))
                self.seen.trained += id_ not in self._epochs_done
                self._epochs_done[id_] = epochs
