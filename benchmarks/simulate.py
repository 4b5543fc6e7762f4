"""Does one coordinator keep 4,096 trainers busy, and what does an outage cost? Virtual time, real coordinator.

``python benchmarks/simulate.py [busy|history|outage] [--json]``. All durations are SIMULATED; what the coordinator
itself costs (events a second, milliseconds, memory) is real: CPU seconds on this machine.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from mpinas.coordination import events as ev  # noqa: E402 - found through the path just set
from mpinas.coordination import messages as msg  # noqa: E402
from mpinas.coordination.coordinator import Coordinator  # noqa: E402
from mpinas.coordination.ledger import Ledger  # noqa: E402
from mpinas.coordination.lifecycle import State  # noqa: E402
from mpinas.coordination.plan import Plan  # noqa: E402
from mpinas.coordination.terms import Terms  # noqa: E402
from mpinas.search import SearchSpace, make_search  # noqa: E402
from mpinas.search.selection import hypervolume  # noqa: E402
from mpinas.simulation.durations import Fixed, LogNormal  # noqa: E402
from mpinas.simulation.landscape import Landscape  # noqa: E402
from mpinas.simulation.machine import Machine  # noqa: E402
from mpinas.simulation.meter import Metered, percentile_ms  # noqa: E402
from mpinas.simulation.world import World  # noqa: E402

#: 60 million genomes: numbers and categories, as a network's are.
SPACE = SearchSpace(
    {
        **{f"width{stage}": [16, 24, 32, 48, 64, 96] for stage in range(4)},
        **{f"depth{stage}": [1, 2, 3, 4] for stage in range(4)},
        "activation": ["relu", "gelu", "silu"],
        "kernel": [3, 5, 7],
        "frames": [4, 8, 12, 16],
        "learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
    }
)
BASELINE = {"baseline": "simulated"}
EPOCHS = 10
#: Trainings: the mean, and two of three within a factor of 1.65 around it.
TRAIN = LogNormal(300.0, 0.5)
#: The device side of the claim: 8 devices, 2 s each, a link of 30 ms. The exporter writes a file in 50 ms.
MACHINE = Machine(
    4096, devices=8, train=TRAIN, export=Fixed(0.05), measure=Fixed(2.0), judge=Fixed(2.0), round_trip_s=0.03
)
Figures = dict[str, Any]


def job(machine: Machine, evaluations: int, seed: int, algorithm: str, rungs: tuple[int, ...] = (EPOCHS,)) -> World:
    """A simulated job with a metered coordinator, not begun."""
    terms = Terms(rungs=rungs)
    plan = Plan(evaluations=evaluations, seed=seed, proposals_max=10 * evaluations)
    search = make_search(algorithm, SPACE, 2, seed, 32)
    coordinator = Coordinator(plan, search, Ledger(terms), BASELINE)
    # CPU seconds of the thread, which waits for nothing: others on this machine do not count
    return World(Metered(coordinator, time.thread_time), machine, Landscape(SPACE, 1), seed=seed)


def memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def costs(meter: Metered, since: int = 0) -> Figures:
    """What the coordinator took for the events handled from the `since`-th on, and for proposals."""
    handled = np.array(meter.handled_s)[since:]
    proposed = np.array(meter.proposed_s)
    return {
        "events": len(handled),
        "events_per_second": len(handled) / float(handled.sum()),
        "handle_p50_ms": percentile_ms(handled, 50),
        "handle_p99_ms": percentile_ms(handled, 99),
        "handle_max_ms": percentile_ms(handled, 100),
        "proposals": len(proposed),
        "proposal_mean_ms": 1e3 * float(proposed.mean()) if len(proposed) else 0.0,
        "proposal_p99_ms": percentile_ms(proposed, 99),
        "memory_mib": memory_mib(),
    }


def run_busy(trainers: int, rounds: int, algorithm: str, seed: int) -> Figures:
    """A whole search of `rounds` trainings for each trainer."""
    world = job(replace(MACHINE, trainers=trainers), rounds * trainers, seed, algorithm)
    world.run()
    search = world.last_training
    return {
        "trainers": trainers,
        "evaluated": world.ledger.count(State.EVALUATED),
        "trained_predicted": world.trained_predicted,
        "virtual_seconds": world.time,
        "trainer_utilisation": world.ledger.occupation.utilisation,
        "trainer_utilisation_search": search.trainers,
        "device_utilisation": search.devices,
        "exporter_utilisation": search.exporters,
        "finished": world.ledger.finished,
        **costs(world.coordinator),
    }


def past(candidates: int, landscape: Landscape) -> Iterator[tuple[float, ev.Event]]:
    """The journal of a search by one trainer that has come so far: what a job resumes."""
    rng = np.random.default_rng(5)
    yield 0.0, ev.Begun("0", 1, "simulated", True)
    yield 0.0, msg.Ready(1, "node", "simulated")
    known: set[tuple[object, ...]] = set()
    for id_ in range(candidates):
        genome = BASELINE if id_ == 0 else SPACE.sample(rng)
        while tuple(genome.values()) in known:
            genome = SPACE.sample(rng)
        known.add(tuple(genome.values()))
        error, latency_s = landscape(genome)
        measurement = {"p50_s": latency_s, "samples": 64, "device": "any", "hardware": "simulated"}
        time_s = float(id_)
        yield time_s, ev.Proposed(id_, genome)
        yield time_s, ev.Exported(id_, 1_000_000, 250_000)
        yield time_s, ev.Measured(id_, measurement, request_id=f"{id_}-any-0")
        yield time_s, ev.Ordered(id_, 1, (1,), "evaluate", 0)
        yield time_s + 0.9, msg.Evaluated(1, id_, 1, {"error": error}, 0.9)


def run_history(trainers: int, candidates: int, more: int, algorithm: str) -> Figures:
    """The coordinator's speed in a job that resumes so many candidates; progress messages after every epoch."""
    before_mib = memory_mib()
    world = job(replace(MACHINE, trainers=trainers), candidates + 10 * more, 0, algorithm)
    meter = world.coordinator
    began_s = time.perf_counter()
    meter.coordinator.replay(past(candidates, world.objectives))
    replay_s = time.perf_counter() - began_s
    history_mib = memory_mib() - before_mib
    world.timeline.now_s = float(candidates)
    world.run(lambda w: w.ledger.count(State.EVALUATED) >= candidates + trainers)
    since = len(meter.handled_s)
    del meter.proposed_s[:]
    world.run(lambda w: w.ledger.count(State.EVALUATED) >= candidates + trainers + more)
    return {
        "candidates": len(world.ledger.candidates),
        "trainers": trainers,
        "replay_s": replay_s,
        "history_mib": history_mib,
        **costs(meter, since),
    }


def front_volume(world: World) -> float:
    """Of the box between zero and twice the baseline's objectives."""
    reference = 2 * np.array(world.objectives(BASELINE))
    points = [world.ledger.objectives(world.ledger.candidates[id_]) for id_ in world.ledger.front]
    return hypervolume(np.array(points), reference) / float(reference.prod())


def run_outage(trainers: int, evaluations: int, algorithm: str, seed: int) -> Figures:
    """The same search without and with the devices gone for its middle third."""
    machine = replace(MACHINE, trainers=trainers)
    whole = job(machine, evaluations, seed, algorithm).run()
    third_s = whole.last_training.time / 3
    broken = job(replace(machine, outages=((third_s, 2 * third_s),)), evaluations, seed, algorithm).run()
    without, with_ = front_volume(whole), front_volume(broken)
    return {
        "seed": seed,
        "outage_s": third_s,
        "trainer_utilisation_search": broken.last_training.trainers,
        "trainer_utilisation_without": whole.last_training.trainers,
        "trained_predicted": broken.trained_predicted,
        "evaluated": broken.ledger.count(State.EVALUATED),
        "hypervolume_without": without,
        "hypervolume_with": with_,
        "hypervolume_ratio": with_ / without,
        "on_front_unmeasured": sum(broken.ledger.candidates[id_].predicted for id_ in broken.ledger.front),
    }


def show(title: str, rows: list[Figures]) -> None:
    table = Table(title=f"{title} (SIMULATED durations)")
    table.add_column("")
    for _ in rows:
        table.add_column(justify="right")
    for name in rows[0]:
        table.add_row(name, *(f"{row[name]:,.4g}" if isinstance(row[name], float) else str(row[name]) for row in rows))
    Console().print(table)


def put(title: str, rows: list[Figures], as_json: bool) -> None:
    if as_json:
        json.dump({"benchmark": title, "simulated": True, "rows": rows}, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        show(title, rows)


ALGORITHM = click.option("--algorithm", default="nsga2", show_default=True)
JSON = click.option("--json", "as_json", is_flag=True)
TRAINERS = click.option("--trainers", default=4096, show_default=True)


@click.group()
def main() -> None:
    """Figures of docs/planning.md."""


@main.command()
@TRAINERS
@click.option("--rounds", default=20, show_default=True, help="Trainings for each trainer.")
@click.option("--seed", default=0, show_default=True)
@ALGORITHM
@JSON
def busy(trainers: int, rounds: int, seed: int, algorithm: str, as_json: bool) -> None:
    """Trainings log-normal around 300 s, 8 devices of 2 s across 30 ms: how busy are the trainers?"""
    put("busy", [run_busy(trainers, rounds, algorithm, seed)], as_json)


@main.command()
@TRAINERS
@click.option("--candidates", default=100_000, show_default=True)
@click.option("--more", default=5000, show_default=True, help="Evaluations during which the cost is taken.")
@click.option("--algorithm", default="random", show_default=True)
@JSON
def history(trainers: int, candidates: int, more: int, algorithm: str, as_json: bool) -> None:
    """Events a second with so many candidates in the history."""
    put("history", [run_history(trainers, candidates, more, algorithm)], as_json)


@main.command()
@click.option("--trainers", default=64, show_default=True)
@click.option("--evaluations", default=1500, show_default=True)
@click.option("--seeds", default=5, show_default=True)
@ALGORITHM
@JSON
def outage(trainers: int, evaluations: int, seeds: int, algorithm: str, as_json: bool) -> None:
    """No device in the middle third of the search: what does it cost?"""
    rows = [run_outage(trainers, evaluations, algorithm, seed) for seed in range(seeds)]
    put("outage", rows, as_json)
    if not as_json:
        ratios = [row["hypervolume_ratio"] for row in rows]
        print(f"hypervolume with / without: median {statistics.median(ratios):.4f}, "
              f"{min(ratios):.4f} to {max(ratios):.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
