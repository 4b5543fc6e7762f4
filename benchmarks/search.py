"""How few evaluations the search needs, beside the searches of other projects: figures of docs/search.md.

``python benchmarks/search.py [nbgraph|functions|cost] [--json]``. Every rival runs in the same script on the same
problem, and only genomes never evaluated before count. The rivals come with ``pip install -e .[job,bench]``.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # one core each, before numpy starts threads

import importlib.util
import json
import re
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from search_problems import FUNCTIONS, TUNED, UNSEEN, Problem, function, nas_bench_graph  # noqa: E402
from search_rivals import OURS, OURS_ASYNC, OURS_OTHER, PEERS, PYMOO, shares  # noqa: E402

from mpinas.search import Genome, SearchSpace, make_search  # noqa: E402

Figures = dict[str, Any]


def needs(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise click.ClickException(f"{package} is missing: pip install -e .[bench]")


def _one(task: tuple[str, str, str, int, tuple[int, ...]]) -> list[float]:
    kind, name, rival, seed, marks = task
    problem: Problem = nas_bench_graph(name) if kind == "nbgraph" else function(name)
    return shares(problem, rival, seed, marks)


def compare(kind: str, names: list[str], rivals: list[str], seeds: int, marks: tuple[int, ...], jobs: int) -> Figures:
    """Problem -> rival -> budget -> mean, standard deviation and median over seeds."""
    tasks = [(kind, name, rival, seed, marks) for seed in range(seeds) for name in names for rival in rivals]
    results = {}
    with ProcessPoolExecutor(jobs) as pool:
        for task, result in zip(tasks, pool.map(_one, tasks), strict=True):
            results[task] = result
            click.echo(f"{task[1]}, {task[2]}, seed {task[3]}: {[round(share, 4) for share in result]}", err=True)
    return {
        name: {
            rival: {
                str(mark): spread([results[kind, name, rival, seed, marks][at] for seed in range(seeds)])
                for at, mark in enumerate(marks)
            }
            for rival in rivals
        }
        for name in names
    }


def spread(values: list[float]) -> Figures:
    return {
        "mean": round(statistics.fmean(values), 4),
        "sd": round(statistics.stdev(values), 4) if len(values) > 1 else 0.0,
        "median": round(statistics.median(values), 4),
        "runs": len(values),
    }


def show(figures: Figures, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(figures, indent=1))
        return
    for mark in next(iter(next(iter(figures.values())).values())):
        click.echo(f"\nshare of the true front's hypervolume at {mark} evaluations, mean ± sd")
        click.echo(f"{'':32}" + "".join(f"{name:>16}" for name in figures) + f"{'mean':>9}")
        for rival in next(iter(figures.values())):
            cells = [figures[name][rival][mark] for name in figures]
            row = "".join(f"{cell['mean']:9.3f} ±{cell['sd']:5.3f}" for cell in cells)
            click.echo(f"{rival:32}{row}{statistics.fmean(cell['mean'] for cell in cells):9.3f}")


@click.group(help=__doc__)
def main() -> None: ...


def _marks(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(mark) for mark in text.split(",")))


@main.command()
@click.option("--names", default=",".join(TUNED), help=f"Of {', '.join(TUNED)}; never tuned to: {', '.join(UNSEEN)}.")
@click.option("--seeds", default=10, help="Runs of each.")
@click.option("--marks", default="100,200,500", help="Budgets at which to look.")
@click.option("--only", default="", help="Only rivals in whose name this regular expression is found.")
@click.option("--jobs", default=os.cpu_count() or 1, help="Processes.")
@click.option("--json", "as_json", is_flag=True)
def nbgraph(names: str, seeds: int, marks: str, only: str, jobs: int, as_json: bool) -> None:
    """NAS-Bench-Graph: real networks' accuracy and latency."""
    needs("nas_bench_graph", "pymoo", "optuna", "nevergrad")
    rivals = [name for name in {**OURS, **OURS_ASYNC, **OURS_OTHER, **PEERS} if re.search(only, name)]
    show(compare("nbgraph", names.split(","), rivals, seeds, _marks(marks), jobs), as_json)


@main.command()
@click.option("--names", default=",".join(FUNCTIONS))
@click.option("--seeds", default=5)
@click.option("--marks", default="100,200")
@click.option("--only", default="")
@click.option("--jobs", default=os.cpu_count() or 1)
@click.option("--json", "as_json", is_flag=True)
def functions(names: str, seeds: int, marks: str, only: str, jobs: int, as_json: bool) -> None:
    """ZDT, DTLZ2 and constrained functions on a grid, beside pymoo."""
    needs("pymoo")
    rivals = [name for name in {**OURS, **OURS_OTHER, **PYMOO} if re.search(only, name)]
    show(compare("functions", names.split(","), rivals, seeds, _marks(marks), jobs), as_json)


def example_space() -> SearchSpace:
    """As many genes, of as many kinds, as a family of networks has."""
    numbers = {f"width{at}": [8, 12, 16, 24, 32, 48, 64] for at in range(8)}
    names = {f"kind{at}": ["plain", "separable", "skip"] for at in range(4)}
    return SearchSpace({**numbers, **names, **{f"depth{at}": [1, 2, 3, 4] for at in range(4)}})


def objectives_of(genome: Genome) -> tuple[float, float]:
    """An error that falls with work and rises where neighbours differ, and a latency that follows the work."""
    widths = np.array([genome[f"width{at}"] for at in range(8)], float)
    factors = [{"plain": 2.0, "separable": 1.3, "skip": 1.0}[str(genome[f"kind{at}"])] for at in range(4)]
    depths = np.array([genome[f"depth{at}"] for at in range(4)], float)
    work = float((widths[::2] * widths[1::2] * factors * depths).sum())
    uneven = float(np.abs(np.diff(np.log(widths))).mean())
    return 1 / np.log(work) + 0.1 * uneven, 1e-6 * work


@main.command()
@click.option("--told", default="1000,100000", help="Evaluations told before.")
@click.option("--asks", default=100, help="Asks to measure, each followed by a tell.")
@click.option("--algorithm", default="surrogate")
@click.option("--json", "as_json", is_flag=True)
def cost(told: str, asks: int, algorithm: str, as_json: bool) -> None:
    """What an `ask` costs, in processor time of one core; the first after a replay is shown apart."""
    figures: Figures = {}
    for count in _marks(told):
        space, rng = example_space(), np.random.default_rng(0)
        search = make_search(algorithm, space, 2, 0)
        began_s, told_now = time.process_time(), 0
        while told_now < count:
            try:
                genome = search.restore(space.sample(rng))
            except ValueError:  # drawn before
                continue
            search.tell(genome, objectives_of(genome))
            told_now += 1
        replay_s = time.process_time() - began_s
        times_ms = []
        for _ in range(asks + 1):
            began_s = time.process_time()
            genome = search.ask()
            times_ms.append(1e3 * (time.process_time() - began_s))
            search.tell(genome, objectives_of(genome))
        first, rest = times_ms[0], times_ms[1:]
        figures[str(count)] = {
            "replay_s": round(replay_s, 2),
            "first_ms": round(first, 1),
            "mean_ms": round(statistics.fmean(rest), 1),
            "p50_ms": round(statistics.median(rest), 1),
            "max_ms": round(max(rest), 1),
        }
    if as_json:
        click.echo(json.dumps(figures, indent=1))
    else:
        for count_, row in figures.items():
            click.echo(f"{count_} told: " + ", ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
