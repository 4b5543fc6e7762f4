"""A job in virtual time: real decisions, real search; groups, exporter and devices with fixed durations."""

import heapq

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.commands import Discard, Export, Judge, Leave, Measure, Record, Release, Send
from mpinas.coordination.coordinator import Coordinator, Plan
from mpinas.coordination.ledger import Ledger
from mpinas.coordination.lifecycle import State
from mpinas.coordination.terms import Terms
from mpinas.search import GeneticSearch, SearchSpace

SPACE = SearchSpace({"width": list(range(1, 31)), "depth": list(range(1, 11))})


def error_of(genome):
    return 1.0 / (genome["width"] * genome["depth"]) ** 0.5


def latency_of(genome):
    return 1e-4 * genome["width"] * genome["depth"]


class World:
    """What the coordinator talks to, in virtual time: groups, an exporter and a device with fixed durations."""

    def __init__(
        self, *, groups=3, evaluations=20, limits=None, seed=0, journal=(), space=SPACE, proposals_max=500, **terms
    ):
        self.ledger = Ledger(Terms(limits or {}, **terms))
        plan = Plan(evaluations=evaluations, epochs=2, seed=seed, proposals_max=proposals_max)
        search = GeneticSearch(space, n_objectives=len(self.ledger.terms.objectives), seed=seed, population_size=6)
        self.coordinator = Coordinator(plan, search, self.ledger, {"width": 20, "depth": 5})
        self.journal = list(journal)
        self.coordinator.replay(journal)
        self.time = self.journal[-1][0] if self.journal else 0.0
        self.queue, self.sequence = [], 0
        self.sent, self.discarded, self.measured, self.judged = [], [], [], []
        #: Candidates whose artifact lies in the folder.
        self.artifacts = set()
        self.left = False
        self.device_up = True
        self.waiting_for_device = []
        self.genomes = {i: c.genome for i, c in self.ledger.candidates.items()}
        self.later(0.0, ev.Begun("0", groups + 1, tuple((g + 1,) for g in range(groups)), "toy", False))
        for group in range(groups):
            self.later(1.0 + group / 10, msg.Ready(group, (group + 1,), "here", "cpu"))

    def later(self, delay, event):
        self.sequence += 1
        heapq.heappush(self.queue, (self.time + delay, self.sequence, event))

    def execute(self, command):  # noqa: PLR0912 - one case a command
        match command:
            case Record(event):
                self.journal.append((self.time, event))
                if isinstance(event, ev.Proposed):
                    self.genomes[event.candidate] = event.genome
            case Export(candidate, genome):
                self.later(0.1, ev.Exported(candidate, 1000 * genome["width"], genome["width"]))
            case Measure(candidate, genome, device, repetition):
                assert genome == self.genomes[candidate]
                self.measured.append((candidate, device, repetition))
                self.artifacts.add(candidate)
                answer = self.measure(candidate, device, repetition)
                if self.device_up:
                    self.later(0.5, answer)
                else:
                    self.waiting_for_device.append(answer)
            case Send(group, msg.Evaluate() as order):
                self.sent.append((group, order))
                self.later(*self.train(group, order))
            case Send(group, msg.Assess() as order):
                self.sent.append((group, order))
                self.later(1.0, msg.Assessed(group, order.candidate, order.attempt, {"error": 0.5}, 1e-6, 0.4))
            case Send(group, msg.Stop()):
                self.later(0.1, msg.Stopped(group))
            case Judge(candidate, device):
                self.judged.append((candidate, device))
                if self.device_up:
                    self.later(0.7, self.judge(candidate, device))
            case Release(candidate):
                assert self.ledger.candidates[candidate].state is not State.MEASURING
                self.artifacts.discard(candidate)
            case Discard(candidate):
                self.discarded.append(candidate)
                self.artifacts.discard(candidate)
            case Leave():
                self.left = True

    def measure(self, candidate, device, repetition, doubts=(), name="agx", factor=1.0):
        """Device "slow" takes thrice the time; every request has an id of its own."""
        seconds = latency_of(self.genomes[candidate]) * (3 if device == "slow" else 1)
        measurement = {"p50_s": seconds, "samples": 64, "device": name, "hardware": "orin"}
        request_id = f"{candidate}-{device}-{repetition}"
        return ev.Measured(candidate, measurement, device, repetition, doubts, factor, request_id)

    def judge(self, candidate, device):
        return ev.Judged(candidate, device, 0.4, 0.4, "model")

    def train(self, group, order):
        seconds = 5.0 + order.genome["width"] / 10
        report = msg.Evaluated(group, order.candidate, order.attempt, {"error": error_of(order.genome)}, seconds)
        return seconds, report

    def run(self, until=lambda world: world.left, events_max=100_000):
        for _ in range(events_max):
            if until(self):
                return self
            assert self.queue, "the job hangs: nothing is under way and nothing was finished"
            self.time, _, event = heapq.heappop(self.queue)
            for command in self.coordinator.handle(event, self.time):
                self.execute(command)
        raise AssertionError("the job does not end")
