"""The job around the coordinator, in virtual time: trainers, exporter, devices, a link, outages.

It hands events to the real coordinator and carries out its commands as the MPI shell would, without clock, MPI, sockets
or files. It checks what the shell relies on: that nobody is given an order while at work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from mpinas.coordination import commands as co
from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.errors import ProtocolError
from mpinas.search import Genome
from mpinas.simulation.durations import Duration
from mpinas.simulation.machine import Machine, speed_up
from mpinas.simulation.meter import Decides
from mpinas.simulation.stations import Job, Station, Timeline, Usage

#: What error and latency (in seconds) a candidate would have with its full budget.
Objectives = Callable[[Genome], tuple[float, float]]
#: How the error falls with the budget: err(epochs) = err(full) * (full / epochs) ** this.
LEARNING_EXPONENT = 0.3
#: As what share of a full training inherited weights are worth, and as many epochs as judging by them takes.
INHERITED, JUDGING_EPOCHS = 0.25, 0.5
#: Subnets in each step of a supernet's training.
SUBNETS = 4
#: A trainer that is told to stop leaves its work within so long.
STOP_S = 0.1
#: Past the moment at which something is due, so that no rounding makes it look too early.
_INSTANT_S = 1e-6

_TRAIN, _ASSESS, _RETRAIN, _EXPORT, _MEASURE, _JUDGE, _FAIL = range(7)  # what a draw is for


@dataclass(frozen=True, slots=True)
class Usages:
    """Shares of the time from the start (of trainers: from when they were there) to `time` that each was busy.

    devices: those of the profile that was busiest, while they were there.
    """

    time: float
    trainer_seconds: float
    trainers: float
    devices: float
    exporters: float


Work = msg.Evaluate | msg.Assess | msg.Retrain | msg.TrainSupernet


class World:
    """One job, from its Begun to the end of its last trainer; `run` it.

    Hooks for those who want it otherwise: `train`, `assess`, `retrain`, `measure`, `judge` give what comes back, and
    `record` is told every event of the journal.

    Parameters
    ----------
    coordinator
        As it stands after the replay of earlier jobs, if there were any.
    time
        When the job begins: the end of the earlier jobs' journal.
    seed
        Of all durations.
    """

    def __init__(
        self,
        coordinator: Decides,
        machine: Machine,
        objectives: Objectives,
        *,
        seed: int = 0,
        time: float = 0.0,
        task: str = "simulated",
    ) -> None:
        self.coordinator = coordinator
        self.ledger = coordinator.ledger
        self.machine = machine
        self.objectives = objectives
        self.timeline = Timeline(time)
        self.exporter = Station(self.timeline, machine.exporters)
        self.devices = {name: Station(self.timeline, machine.devices) for name in self.ledger.terms.devices}
        self.trainers = Usage(0, _since_s=time)
        self.left = False
        #: When the last training was ordered, and how busy all were until then: after it the search only runs out.
        self.last_training = Usages(time, 0.0, 0.0, 0.0, 0.0)
        #: Orders to train, and those among them for what no device had measured.
        self.trainings = self.trained_predicted = 0
        #: What each leader is at.
        self.under_way: dict[int, msg.Order] = {}
        self._at_work: set[int] = set()
        #: When each leader began what it is at, and how many seconds that takes.
        self._began: dict[int, tuple[float, float]] = {}
        self._seed = seed
        self._free_again_s = time  # the coordinator's idle work takes its time
        #: Candidates whose checkpoint was removed.
        self._lost: set[int] = set()
        self._set_up(task)

    @property
    def time(self) -> float:
        """Virtual seconds."""
        return self.timeline.now_s

    @property
    def queue(self) -> list[tuple[float, int, object]]:
        """What is going to happen; empty when nothing is under way."""
        return self.timeline.queue

    def _set_up(self, task: str) -> None:
        self.timeline.later(0.0, ev.Begun("0", self.machine.trainers, task, True))
        for rank in range(1, self.machine.trainers + 1):
            host = f"node{(rank - 1) // self.machine.ranks_per_node:04d}"
            self.timeline.later(*self.ready(rank, host))
        for begin, end in self.machine.outages:
            self.timeline.later(begin, self.lose_devices)
            self.timeline.later(end, self.find_devices)

    # --- time

    def run(self, until: Callable[[World], bool] = lambda world: world.left, events_max: int = 10**9) -> World:
        """Let things happen until `until` says so between two of them; at the latest when all trainers have ended."""
        for _ in range(events_max):
            due = self.timeline.due()
            if not due and self._think():
                continue
            if until(self) or self.left:
                return self
            if due:
                self.happen(self.timeline.pop())
            else:
                self._wait()
        raise AssertionError("the job does not end")

    def happen(self, what: ev.Event | Callable[[], None]) -> None:
        """An event comes to the coordinator; or something else happens, which may bring some."""
        if callable(what):
            what()
            return
        if isinstance(what, msg.Ready):
            self.trainers.change(self.time, there=1)
        for command in self.coordinator.handle(what, self.time):
            self.execute(command)

    def usages(self) -> Usages:
        """How busy all have been so far."""
        now_s = self.time
        trainers, exporter = self.trainers.upto(now_s), self.exporter.usage.upto(now_s)
        shares = [station.usage.upto(now_s).share for station in self.devices.values()]
        return Usages(now_s, trainers.busy_s, trainers.share, max(shares), exporter.share)

    def _think(self) -> bool:
        if self.time < self._free_again_s:
            return False
        over = self.coordinator.time_over(self.time)
        for event in over:
            self.happen(event)
        if over:
            return True
        commands = self.coordinator.idle(self.time)
        for command in commands:
            self.execute(command)
        if commands:
            self._free_again_s = self.time + self.machine.proposal_s
            return True
        overdue = self.coordinator.overdue(self.time)
        for event in overdue:
            self.timeline.later(0.0, event)
        return bool(overdue)

    def _wait(self) -> None:
        """Nothing is left to do now: on to the next moment at which there may be."""
        moments = [self.queue[0][0]] if self.queue else []
        if self.time < self._free_again_s:
            moments.append(self._free_again_s)
        due_s = self.coordinator.due(self.time)
        if due_s is not None:
            moments.append(due_s + _INSTANT_S)
        if not moments:
            raise AssertionError("the job hangs: nothing is under way and nothing was finished")
        self.timeline.now_s = min(moments)

    def later(self, delay_s: float, event: ev.Event) -> None:
        """Have an event come so much later."""
        self.timeline.later(delay_s, event)

    # --- commands

    def execute(self, command: co.Command) -> None:
        """Carry out one command of the coordinator."""
        match command:
            case co.Record(event):
                self.record(event)
            case co.Export(candidate, genome):
                exported = partial(self.happen, self.export(candidate, genome))
                self.exporter.submit(Job(candidate, self.draw(self.machine.export, _EXPORT, candidate), exported))
            case co.Measure(candidate, _, device, repetition):
                answer = self.measure(candidate, device, repetition)
                self.ask_device(
                    device, candidate, self.draw(self.machine.measure, _MEASURE, candidate, repetition), answer
                )
            case co.Judge(candidate, device):
                self.ask_device(
                    device, candidate, self.draw(self.machine.judge, _JUDGE, candidate), self.judge(candidate, device)
                )
            case co.Send(ranks, msg.Stop()):
                for rank in ranks:
                    self._stop(rank)
            case co.Send((leader,), msg.Pause() as pause):
                self._pause(leader, pause)
            case co.Send(ranks, order):
                assert not isinstance(order, (msg.Stop, msg.Pause))
                self._begin(ranks, order)
            case co.Discard(candidate):
                self._lost.add(candidate)
                for station in self.devices.values():
                    station.drop(candidate)
            case co.Leave():
                self.left = True

    def record(self, event: ev.Event) -> None:
        """An event stands in the journal; here it is not kept."""

    def ask_device(self, device: str, candidate: int, seconds: float, answer: ev.Event) -> None:
        """Queue a request at the devices of a profile; one takes the next when the relay has had its answer."""
        trip_s = self.machine.round_trip_s
        done = partial(self.happen, answer)
        self.devices[device].submit(Job(candidate, seconds + trip_s, done))

    def lose_devices(self) -> None:
        """An outage begins."""
        for name, station in self.devices.items():
            station.stop()
            self.happen(ev.DeviceLost("simulated outage", name))

    def find_devices(self) -> None:
        """It is over."""
        for name, station in self.devices.items():
            station.resume()
            self.happen(ev.DeviceBack("simulated outage over", name))

    # --- trainers

    def _begin(self, ranks: Iterable[int], order: Work) -> None:
        members = order.members
        if set(ranks) != set(members) or self._at_work.intersection(members):
            raise ProtocolError(
                f"{order} was sent to {ranks}, of whom {self._at_work.intersection(members)} are at work"
            )
        leader = members[0]
        self.under_way[leader] = order
        self._at_work.update(members)
        self.trainers.change(self.time, busy=len(members))
        if isinstance(order, msg.Evaluate):
            if not order.epochs_done and not self.ledger.candidates[order.candidate].rung_errors:  # else it goes on
                self.last_training = self.usages()
                self.trainings += 1
                self.trained_predicted += self.ledger.candidates[order.candidate].predicted
            seconds, answer = self.train(leader, order)
            if self.machine.progress and order.epochs:
                self._next_epoch(leader, order, seconds / (order.epochs - order.epochs_done), order.epochs_done + 1)
        elif isinstance(order, msg.Assess):
            seconds, answer = self.assess(leader, order)
        elif isinstance(order, msg.TrainSupernet):
            seconds, answer = self.train_supernet(leader, order)
        else:
            seconds, answer = self.retrain(leader, order)
        self._began[leader] = (self.time, seconds)
        self.timeline.later(seconds, partial(self._end, leader, order, answer))

    def _pause(self, leader: int, pause: msg.Pause) -> None:
        """It takes effect at the end of the epoch, unless that is the last, or the order is not that one any more."""
        order = self.under_way.get(leader)
        if not isinstance(order, msg.Evaluate | msg.TrainSupernet):
            return
        if (order.candidate, order.attempt) != (pause.candidate, pause.attempt):
            return
        done = order.epochs_done if isinstance(order, msg.Evaluate) else 0
        began_s, seconds = self._began[leader]
        epoch_s = seconds / (order.epochs - done)
        epochs = math.floor((self.time - began_s) / epoch_s) + 1
        if done + epochs < order.epochs:
            paused = msg.Paused(leader, order.candidate, order.attempt, done + epochs, epochs * epoch_s)
            self.timeline.later(began_s + epochs * epoch_s - self.time, partial(self._end, leader, order, paused))

    def _next_epoch(self, leader: int, order: msg.Evaluate, epoch_s: float, epoch: int) -> None:
        if epoch < order.epochs:  # the last one's report is the answer
            self.timeline.later(epoch_s, partial(self._epoch, leader, order, epoch_s, epoch))

    def _epoch(self, leader: int, order: msg.Evaluate, epoch_s: float, epoch: int) -> None:
        if self.under_way.get(leader) is order:
            error = self.error(order, epoch)
            self.happen(msg.Progress(leader, order.candidate, order.attempt, epoch, order.epochs, error))
            self._next_epoch(leader, order, epoch_s, epoch + 1)

    def _end(self, leader: int, order: Work, answer: ev.Event) -> None:
        if self.under_way.get(leader) is order:  # else it was told to stop
            self._free(leader)
            self.happen(answer)

    def _free(self, leader: int) -> None:
        order = self.under_way.pop(leader)
        assert not isinstance(order, (msg.Stop, msg.Pause))
        self._at_work.difference_update(order.members)
        self.trainers.change(self.time, busy=-len(order.members))

    def _stop(self, rank: int) -> None:
        """It abandons what it is at, and so do the other members: they are told to stop, too."""
        leaders = [leader for leader, order in self.under_way.items() if rank in getattr(order, "members", ())]
        for leader in leaders if rank in self._at_work else ():
            self._free(leader)
        self.timeline.later(STOP_S, msg.Stopped(rank))

    # --- what comes of it, and when

    def draw(self, duration: Duration, what: int, candidate: int, number: int = 0) -> float:
        """Seconds, the same for the same candidate whatever else happens."""
        return duration.draw((self._seed, what, candidate, number))

    def error(self, order: msg.Evaluate, epochs: int) -> float:
        """Validation error after so many epochs."""
        learned = max(epochs, INHERITED * order.epochs_full)
        return self.objectives(order.genome)[0] * math.pow(order.epochs_full / learned, LEARNING_EXPONENT)

    def ready(self, rank: int, host: str) -> tuple[float, msg.Ready]:
        """When a trainer is there, in seconds from the start, and what it says then."""
        return 0.0, msg.Ready(rank, host, "simulated")

    def export(self, candidate: int, genome: Genome) -> ev.Event:
        """What the exporter says."""
        return ev.Exported(candidate, 1_000_000, 250_000)

    def train(self, group: int, order: msg.Evaluate) -> tuple[float, ev.Event]:
        """Seconds that a group needs for it, and what it says then."""
        id_ = order.candidate
        if order.epochs_done and id_ in self._lost:
            return 1.0, msg.EvaluationFailed(group, id_, order.attempt, "checkpoint", "it was removed")
        if not order.epochs_done:
            self._lost.discard(id_)
        share = max(order.epochs - order.epochs_done, JUDGING_EPOCHS) / order.epochs_full
        seconds = (
            share * self.draw(self.machine.train, _TRAIN, id_) / speed_up(self.machine.serial_share, len(order.members))
        )
        if self.machine.failed_share and id_ != 0:  # without the baseline there is no search
            u, when = np.random.default_rng((self._seed, _FAIL, id_)).random(2)
            if u < self.machine.failed_share:
                return seconds * when, msg.EvaluationFailed(group, id_, order.attempt, "diverged", "simulated")
        return seconds, msg.Evaluated(group, id_, order.attempt, {"error": self.error(order, order.epochs)}, seconds)

    def train_supernet(self, group: int, order: msg.TrainSupernet) -> tuple[float, ev.Event]:
        """The same for the supernet: each of its epochs is as long as one of a mean candidate for each subnet."""
        epochs_s = self.machine.train.mean_s / self.ledger.terms.rungs[-1] * order.epochs * SUBNETS
        seconds = epochs_s / speed_up(self.machine.serial_share, len(order.members))
        return seconds, msg.SupernetTrained(group, order.candidate, order.attempt, {"error": 0.5}, seconds)

    def assess(self, group: int, order: msg.Assess) -> tuple[float, ev.Event]:
        """The same for a finalist's test file and ONNX file."""
        error = self.objectives(order.genome)[0]
        seconds = self.draw(self.machine.assess, _ASSESS, order.candidate)
        return seconds, msg.Assessed(group, order.candidate, order.attempt, {"error": error}, 0.0, error)

    def retrain(self, group: int, order: msg.Retrain) -> tuple[float, ev.Event]:
        """The same for a finalist's training from another seed: the error differs by a few percent."""
        z = np.random.default_rng((self._seed, _RETRAIN, order.candidate, order.seed)).standard_normal()
        error = {"error": self.objectives(order.genome)[0] * (1 + 0.03 * abs(float(z)))}
        seconds = self.draw(self.machine.train, _RETRAIN, order.candidate, order.seed) / speed_up(
            self.machine.serial_share, len(order.members)
        )
        return seconds, msg.Retrained(group, order.candidate, order.attempt, error, error, seconds)

    def measure(self, candidate: int, device: str, repetition: int) -> ev.Event:
        """What a device answers when it has measured."""
        latency_s = self.objectives(self.ledger.candidates[candidate].genome)[1]
        measurement = {"p50_s": latency_s, "samples": 64, "device": device, "hardware": "simulated"}
        return ev.Measured(candidate, measurement, device, repetition, request_id=f"{candidate}-{device}-{repetition}")

    def judge(self, candidate: int, device: str) -> ev.Event:
        """What a device answers when it has run the trained model."""
        expected = self.ledger.candidates[candidate].expected or 0.0
        return ev.Judged(candidate, device, expected, expected, "model")
