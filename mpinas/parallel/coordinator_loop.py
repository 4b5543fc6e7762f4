"""Rank 0's loop: everything that arrives becomes an event, and the commands that follow are carried out.

One thread, no spinning: it sleeps on the sockets and pipes, looks for MPI reports in between, and decides nothing.
"""

from __future__ import annotations

import ctypes
import gc
import math
import time
from collections.abc import Callable
from typing import Protocol

import zmq

from mpinas.coordination import commands as co
from mpinas.coordination import events as ev
from mpinas.coordination.coordinator import Coordinator
from mpinas.coordination.ledger import Ledger
from mpinas.coordination.messages import Report, SupernetTrained
from mpinas.edge.client import EdgeClient
from mpinas.history.journal import Journal
from mpinas.history.lock import RunLock
from mpinas.history.run_folder import RunFolder
from mpinas.history.shard import read_shard
from mpinas.models import Networks
from mpinas.parallel.channel import Backoff, Channel
from mpinas.parallel.pulse import Pulse
from mpinas.parallel.stop_signals import StopSignals
from mpinas.parallel.world import Stalled
from mpinas.search import Genome
from mpinas.training.exporter import Exporters, Reply, Request

#: After so many events what they have left is kept from the garbage collector. A long search has millions of small
#: objects that live to its end; a full collection would look through them all, and stop rank 0 for a second.
FREEZE_EVENTS = 10_000
#: Between two times (seconds) that pages are given back in which nothing lies any more. Models of many kilobytes that
#: come and go leave holes between the small objects of a search; the C library keeps them.
TRIM_S = 60.0


class Display(Protocol):
    """Shows what happens; `report.live` has them."""

    def show(self, event: ev.Event, time: float, ledger: Ledger) -> None:
        """An event was recorded."""
        ...

    def tick(self, time: float, ledger: Ledger) -> None:
        """Called often; refresh what depends on the clock."""
        ...


class Shell:
    """Carries out commands and collects events."""

    def __init__(
        self,
        channel: Channel,
        device: EdgeClient,
        exporters: Exporters,
        folder: RunFolder,
        journal: Journal,
        lock: RunLock,
        networks: Networks,
    ) -> None:
        self._channel = channel
        self._device = device
        self._exporters = exporters
        self._folder = folder
        self._journal = journal
        self._lock = lock
        self._networks = networks
        #: See `Channel.tell`.
        self.tell = channel.tell
        #: What waits for an artifact that is being written a second time.
        self._again: dict[int, list[co.Measure]] = {}
        #: What went wrong here and is to be told as an event.
        self._failed: list[ev.Event] = []

    def execute(self, command: co.Command, now: float) -> None:
        """Carry out one command; waits for nothing but the disk."""
        match command:
            case co.Record(event):
                self._journal.append(now, event)
                if isinstance(event, SupernetTrained):  # only now: it would be trained anew
                    self._folder.supernet_checkpoint_file.unlink(missing_ok=True)
            case co.Export(candidate, genome):
                self._exporters.submit(self._request(candidate, genome))
            case co.Measure():
                self._measure(command)
            case co.Release(candidate):
                if candidate not in self._again:
                    self._folder.discard_export(candidate)
            case co.Judge(candidate, device):
                self._judge(candidate, device)
            case co.Send(ranks, order):
                self._channel.send(ranks, order)
            case co.Discard(candidate):
                if candidate in self._again:
                    self._again[candidate].clear()
                self._device.cancel(candidate)
                self._folder.discard(candidate)
                self._folder.discard_export(candidate)
            case co.DropCheckpoint(candidate):
                self._folder.checkpoint_file(candidate).unlink(missing_ok=True)

    def _measure(self, command: co.Measure) -> None:
        """Hand the artifact to the device; one that has been released is written anew first."""
        file = self._folder.export_file(command.candidate)
        if command.candidate not in self._again and file.is_file():
            self._device.measure(command.candidate, file.read_bytes(), command.device, command.repetition)
            return
        if command.candidate not in self._again:
            self._exporters.submit(self._request(command.candidate, command.genome))
        self._again.setdefault(command.candidate, []).append(command)

    def _judge(self, candidate: int, device: str) -> None:
        try:
            model = self._folder.onnx_file(candidate).read_bytes()
            shard, data = read_shard(self._folder.shard_file(candidate))
        except (OSError, ValueError) as error:
            self._failed.append(ev.JudgingFailed(candidate, device, "files", f"{type(error).__name__}: {error}"[:300]))
            return
        self._device.judge(candidate, device, model, shard, data)

    def _request(self, candidate: int, genome: Genome) -> Request:
        of, path = self._networks, str(self._folder.export_file(candidate))
        calibration = self._folder.calibration_file
        samples = str(calibration) if calibration.is_file() else ""
        return Request(candidate, genome, of.space, of.input_shape, of.outputs, path, samples, of.baseline)

    def collect(self, now: float) -> list[ev.Event]:
        """What has happened since the last call; does not wait. Raises UserError where the run is another job's now."""
        self._lock.beat(now)
        exported = [event for reply in self._exporters.poll() for event in self._exported(reply)]
        failed, self._failed = self._failed, []
        return [*self._channel.receive(), *exported, *self._device.poll(), *failed]

    def _exported(self, reply: Reply) -> list[ev.Event]:
        if (waiting := self._again.pop(reply.candidate, None)) is None:
            return [_from_reply(reply)]
        if reply.error:
            return [
                ev.MeasurementFailed(it.candidate, "export", reply.error, it.device, it.repetition) for it in waiting
            ]
        for command in waiting:
            self._measure(command)
        if not waiting:  # nobody wants it any more
            self._folder.discard_export(reply.candidate)
        return []

    def wait(self, seconds: float) -> None:
        """Sleep until a socket or pipe has something, or so long."""
        poller = zmq.Poller()
        for descriptor in self._exporters.descriptors():
            poller.register(descriptor, zmq.POLLIN)
        for socket in self._device.sockets:
            poller.register(socket, zmq.POLLIN)
        poller.poll(math.ceil(seconds * 1000))


def coordinate(
    coordinator: Coordinator,
    shell: Shell,
    display: Display,
    begun: ev.Begun,
    stop: StopSignals,
    pulse: tuple[Pulse, float],
    clock: Callable[[], float] = time.time,
) -> None:
    """Run the job from its Begun to the end of its last trainer.

    `pulse`: of the trainers, and for how long one may be silent (seconds).

    Raises
    ------
    Stalled
        A trainer is silent.
    """
    backoff = Backoff()
    latest = 0.0
    #: Nothing has happened since `idle` had nothing to do; until then it will not have.
    settled, look_at = False, math.inf
    handled = 0
    trim_at_s = time.monotonic() + TRIM_S
    gc.freeze()
    waiting: list[ev.Event] = [begun]

    def carry_out(commands: list[co.Command]) -> bool:
        """True when the job is over."""
        for command in commands:
            if isinstance(command, co.Leave):
                return True
            shell.execute(command, latest)
            if isinstance(command, co.Record):
                display.show(command.event, latest, coordinator.ledger)
        return False

    def meanwhile(report: Report) -> None:
        """Progress of an order that this very thread carries out: all that was decided before is written down."""
        nonlocal latest
        latest = max(latest, clock())
        carry_out(coordinator.handle(report, latest))

    shell.tell(meanwhile)
    while True:
        for event in waiting:
            latest = max(latest, clock())  # the journal's clock never goes back
            if carry_out(coordinator.handle(event, latest)):
                return
        if waiting:
            backoff.reset()
            settled = False
            handled += len(waiting)
        elif handled >= FREEZE_EVENTS:
            handled = 0
            gc.freeze()
        elif time.monotonic() >= trim_at_s:
            trim_at_s = time.monotonic() + TRIM_S
            give_pages_back()
        display.tick(clock(), coordinator.ledger)
        check_pulse(*pulse, coordinator.ledger)
        if settled:
            shell.wait(backoff.next_s())
        collected = shell.collect(clock())
        latest = max(latest, clock())
        # that the job is to end comes before what would give new orders
        waiting = [*map(ev.StopRequested, stop.asked()), *coordinator.time_over(latest), *collected]
        if waiting or (settled and latest < look_at):
            continue
        waiting = coordinator.overdue(latest)
        if not waiting:  # one piece of work, then look for events again: they come first
            commands = coordinator.idle(latest)
            settled, look_at = not commands, _or_never(coordinator.due(latest))
            if carry_out(commands):
                return


def give_pages_back() -> None:
    """Where the C library is glibc; others do so by themselves, or cannot."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def check_pulse(pulse: Pulse, limit_s: float, ledger: Ledger) -> None:
    """Raise Stalled where a trainer that has not ended is silent."""
    pulse.beat()
    for rank in pulse.silent(limit_s):
        trainer = ledger.trainers.get(rank)
        if trainer is not None and not trainer.stopped:
            group = None if trainer.group is None else ledger.groups.get(trainer.group)
            work = "without an order" if group is None else f"at work on candidate {group.order.candidate}"
            raise Stalled(f"rank {rank} on {trainer.host}, {work}, has given no sign of life for {limit_s:g} s")
        if trainer is None:
            raise Stalled(f"rank {rank}, not ready yet, has given no sign of life for {limit_s:g} s")


def _or_never(due: float | None) -> float:
    return math.inf if due is None else due


def _from_reply(reply: Reply) -> ev.Event:
    if reply.error:
        return ev.ExportFailed(reply.candidate, reply.error)
    return ev.Exported(reply.candidate, reply.size_bytes, reply.parameters, reply.seconds)
