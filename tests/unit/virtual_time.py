"""A job in virtual time for tests: the simulated world with short, fixed durations, and a note of all that happens."""

from mpinas.coordination import commands as co
from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.coordinator import Coordinator
from mpinas.coordination.ledger import Ledger
from mpinas.coordination.lifecycle import State
from mpinas.coordination.plan import Plan
from mpinas.coordination.terms import Terms
from mpinas.search import SearchSpace, make_search
from mpinas.simulation import world
from mpinas.simulation.durations import Fixed
from mpinas.simulation.machine import Machine, speed_up

SPACE = SearchSpace({"width": list(range(1, 31)), "depth": list(range(1, 11))})
#: As that of a real task, it is none of the space's.
BASELINE = {"width": 20, "depth": 5, "baseline": "human-designed"}
#: More servers than any test has jobs: nothing waits for an exporter or a device unless a test says so.
PLENTY = 1_000_000


def error_of(genome):
    return 1.0 / (genome["width"] * genome["depth"]) ** 0.5


def latency_of(genome):
    return 1e-4 * genome["width"] * genome["depth"]


def objectives_of(genome):
    return error_of(genome), latency_of(genome)


class World(world.World):
    """`groups` trainers, by default each on its own, an exporter and a device with fixed durations.

    Further arguments are the plan's, the terms' (`limits`, `devices`, `worst`) and the machine's (`machine`, a dict).
    """

    def __init__(
        self,
        *,
        groups=3,
        evaluations=20,
        limits=None,
        devices=("any",),
        worst=False,
        seed=0,
        rungs=(2,),
        journal=(),
        space=SPACE,
        proposals_max=500,
        algorithm="nsga2",
        machine=None,
        progress=False,
        **plan,
    ):
        terms = Terms(limits or {}, devices, worst, rungs=rungs)
        plan = Plan(evaluations=evaluations, seed=seed, proposals_max=proposals_max, **plan)
        search = make_search(algorithm, space, len(terms.objectives), seed, 6)
        coordinator = Coordinator(plan, search, Ledger(terms), BASELINE)
        self.journal = list(journal)
        coordinator.replay(self.journal)
        #: (leader's rank, order) but for Stop.
        self.sent = []
        self.discarded, self.measured, self.judged = [], [], []
        #: Candidates whose artifact lies in the folder.
        self.artifacts = set()
        self.device_up = True
        #: What a device would have answered while `device_up` was False.
        self.waiting_for_device = []
        self.genomes = {id_: it.genome for id_, it in coordinator.ledger.candidates.items()}
        standard = {
            "exporters": PLENTY,
            "devices": PLENTY,
            "export": Fixed(0.1),
            "measure": Fixed(0.5),
            "judge": Fixed(0.7),
            "assess": Fixed(1.0),
            "progress": progress,
        }
        super().__init__(
            coordinator,
            Machine(groups, **(standard | (machine or {}))),
            objectives_of,
            seed=seed,
            time=self.journal[-1][0] if self.journal else 0.0,
            task="toy",
        )

    def run(self, until=lambda world: world.left, events_max=100_000):
        return super().run(until, events_max)

    def record(self, event):
        self.journal.append((self.time, event))
        if isinstance(event, ev.Proposed):
            self.genomes[event.candidate] = event.genome

    def execute(self, command):
        match command:
            case co.Measure(candidate, genome, device, repetition):
                assert genome == self.genomes[candidate]
                self.measured.append((candidate, device, repetition))
                self.artifacts.add(candidate)
            case co.Judge(candidate, device):
                self.judged.append((candidate, device))
            case co.Send(_, msg.Evaluate() | msg.Assess() | msg.Retrain() | msg.TrainSupernet() as order):
                self.sent.append((order.members[0], order))
            case co.Release(candidate):
                assert self.ledger.candidates[candidate].state is not State.MEASURING
                self.artifacts.discard(candidate)
            case co.Discard(candidate):
                self.discarded.append(candidate)
                self.artifacts.discard(candidate)
        super().execute(command)

    def ask_device(self, device, candidate, seconds, answer):
        if self.device_up:
            super().ask_device(device, candidate, seconds, answer)
        else:
            self.waiting_for_device.append(answer)

    def ready(self, rank, host):
        return 1.0 + (rank - 1) / 10, msg.Ready(rank, "here", "cpu")

    def export(self, candidate, genome):
        return ev.Exported(candidate, 1000 * genome["width"], genome["width"])

    def measure(self, candidate, device, repetition, doubts=(), name="agx", factor=1.0):
        """Device "slow" takes thrice the time; every request has an id of its own."""
        seconds = latency_of(self.genomes[candidate]) * (3 if device == "slow" else 1)
        measurement = {"p50_s": seconds, "samples": 64, "device": name, "hardware": "orin"}
        request_id = f"{candidate}-{device}-{repetition}"
        return ev.Measured(candidate, measurement, device, repetition, doubts, factor, request_id)

    def judge(self, candidate, device):
        return ev.Judged(candidate, device, 0.4, 0.4, "model")

    def assess(self, group, order):
        return 1.0, msg.Assessed(group, order.candidate, order.attempt, {"error": 0.5}, 1e-6, 0.4)

    def train(self, group, order):
        share = (order.epochs - order.epochs_done) / order.epochs_full
        whole_s = 5.0 + order.genome["width"] / 10
        seconds = whole_s * share / speed_up(self.machine.serial_share, len(order.members))
        error = self.error(order, order.epochs)
        return seconds, msg.Evaluated(group, order.candidate, order.attempt, {"error": error}, seconds)


def deserted():
    """A whole job whose device goes away in the middle of it and never comes back."""
    world = World(groups=2, evaluations=30, answer_s=60.0)
    world.run(until=lambda w: len(w.ledger.standing[State.EVALUATED]) == 15)
    world.device_up = False
    world.later(0.0, ev.DeviceLost("gone"))
    return world.run()
