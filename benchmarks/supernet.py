"""What shared weights are worth: do they rank networks as training each does, and how much sooner is the front there?

``python benchmarks/supernet.py kendall [--subnets 30]`` trains a supernet on the demo's recordings and compares the
error that random subnets inherit (recalibrated) with that after a training of their own, by Kendall's rank correlation;
with ``--warm 3`` also that after three epochs that begin with what they inherit. The supernet and trainings by
themselves are kept in the folder, and not done again: remove it when the way networks are trained has changed.
``python benchmarks/supernet.py race`` does the same search with `strategy` "scratch" and "supernet", and tells after
how many trainer seconds each front dominates how much; those of the supernet's training are counted. The space is
`cnn3d` narrowed to two families of networks, which share no weights but the stem: frames folded into channels, then
plain or depthwise-separable convolutions (``--set 'search.genes.block=["separable"]'`` leaves one), read on a grid.
What is elastic in a family is as in the whole space. Trainings are so long, and of mirrored samples, that an error
tells of the network: after 12 epochs without mirroring it told of chance and of learning by heart.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]

from headline_jobs import bring_to_end, is_finished, machine, shown, simulate_recordings  # noqa: E402 - as above

from mpinas.config import Experiment, read_experiment  # noqa: E402
from mpinas.coordination import messages as msg  # noqa: E402
from mpinas.coordination.ledger import BASELINE, Ledger  # noqa: E402
from mpinas.coordination.terms import Terms  # noqa: E402
from mpinas.errors import UserError  # noqa: E402
from mpinas.history.journal import Entry, read  # noqa: E402
from mpinas.history.run_folder import RunFolder, terms_of  # noqa: E402
from mpinas.search import Genome  # noqa: E402
from mpinas.search.selection import hypervolume  # noqa: E402
from mpinas.search.space import genome_key  # noqa: E402

EXPERIMENT = "examples/demo.toml"
#: Training genes are fixed: what is inherited cannot know how a network would have been trained.
GENES = ("task.frames=16", "search.genes.frames=[1, 2, 4, 8, 16]", "search.genes.field=[20, 31, 41]",
         "search.genes.scale=[1, 2, 3]", 'search.genes.stem=["fold"]', 'search.genes.block=["plain", "separable"]',
         "search.genes.learning_rate=[0.002]", "search.genes.weight_decay=[0.0]", "search.genes.flips=[true]",
         "training.epochs=40", "supernet.flips=true")  # fmt: skip
STRATEGIES = ("scratch", "supernet")
#: (trainer seconds, those of them spent on the baseline, share of the baseline's box that the front dominates).
Point = tuple[float, float, float]


def rank_correlation(inherited: Sequence[float], alone: Sequence[Sequence[float]]) -> dict[str, float]:
    """Kendall's tau between inherited errors and those of trainings by itself, one row of `alone` a seed.

    `tau`: with the mean over the seeds. `tau_of_one_seed`: with each seed by itself, the mean of these.
    `tau_between_seeds`: between the first two seeds, where there are two: more is not to be had of one training.
    """
    from scipy.stats import kendalltau  # type: ignore[import-untyped]

    def tau(one: Sequence[float], other: Sequence[float]) -> float:
        return float(kendalltau(one, other).statistic)

    means = np.mean(alone, 0).tolist()  # (seeds, subnets) -> (subnets,)
    found = {"tau": tau(inherited, means), "tau_of_one_seed": float(np.mean([tau(inherited, row) for row in alone]))}
    return found | ({"tau_between_seeds": tau(alone[0], alone[1])} if len(alone) > 1 else {})


def curve(entries: Sequence[Entry], terms: Terms) -> list[Point]:
    """How the measured front grows with trainer seconds: a point for each answer of a group, in order.

    Trainer seconds run from an order to its answer, times the group's ranks. The share is that of the results: of the
    box between zero and the objectives of the run's baseline, as it is at the end.
    """
    whole = Ledger(terms).apply_all(entries)
    reference = np.array(whole.objectives(whole.candidates[BASELINE]))  # (objectives,)
    ledger, points, spent_s, baseline_s = Ledger(terms), [], 0.0, 0.0
    for time_s, event in entries:
        group = ledger.groups.get(event.group) if isinstance(event, get_args(msg.Answer)) else None
        ledger.apply(event, time_s)
        if group is not None:
            seconds = len(group.members) * (time_s - group.since)
            spent_s += seconds
            baseline_s += seconds * (group.order.candidate == BASELINE)
            points.append((spent_s, baseline_s, _share(ledger, reference)))
    return points


def _share(ledger: Ledger, reference: np.ndarray[Any, Any]) -> float:
    front = [ledger.objectives(ledger.candidates[id_]) for id_ in ledger.front]
    points = np.array(front, float).reshape(-1, len(reference))  # (members, objectives)
    return hypervolume(points / reference, np.ones(len(reference)))


def reached(points: Iterable[Point], share: float) -> Point | None:
    """The first point that dominates so much; None if none does."""
    return next((point for point in points if point[2] >= share), None)


def verdict(curves: dict[str, list[Point]]) -> dict[str, Any]:
    """What it took each to dominate what "scratch" did in the end.

    `ratio`: trainer seconds of "supernet" to those of "scratch"; `ratio_without_baseline`: without those of the
    baseline's training and test, which are the same in both. None where "supernet" never came so far, or "scratch"
    found nothing that beats the baseline.
    """
    goal = curves["scratch"][-1][2]
    first = {name: reached(points, goal) for name, points in curves.items()}
    scratch, supernet = first["scratch"], first["supernet"]
    assert scratch is not None
    found: dict[str, Any] = {"goal": goal, "reached": first, "final": {name: each[-1] for name, each in curves.items()}}
    if supernet is None or goal == 0:
        return found | {"ratio": None, "ratio_without_baseline": None}
    own = [point[0] - point[1] for point in (supernet, scratch)]
    return found | {"ratio": supernet[0] / scratch[0], "ratio_without_baseline": own[0] / own[1]}


@lru_cache(maxsize=1)
def trainer(overrides: tuple[str, ...], folder: Path) -> tuple[Any, Any]:
    """(what trains by the experiment with these overrides, its search space); one CPU thread, the files in `folder`."""
    from mpinas.parallel.means import gather_means, space_of, trainer_of
    from mpinas.tasks import make_task

    experiment = read_experiment(ROOT / EXPERIMENT, (*overrides, "training.threads=1", 'training.device="cpu"'))
    task = make_task(experiment.task, experiment.search.seed)
    space = space_of(task, experiment)
    means = gather_means(task, space, experiment, (0, 1), 1)
    return trainer_of(means, experiment, RunFolder(folder)), space


def evaluate(
    overrides: tuple[str, ...], folder: Path, genome: Genome, seed: int, until: int, epochs: int
) -> tuple[float, float]:
    """(validation error, seconds) of one network after some of its `epochs`; after 0 that with what it inherits."""
    from mpinas.training.candidate import Files
    from mpinas.training.collectives import SerialCollectives
    from mpinas.training.loop import Callbacks
    from mpinas.training.recipe import Epochs

    files = Files(folder / f"{os.getpid()}.pt", folder / f"{os.getpid()}.part")
    of, _ = trainer(overrides, folder)
    metrics, seconds = of.evaluate(SerialCollectives(), genome, seed, Epochs(0, until, epochs), files, Callbacks())
    files.checkpoint.unlink(missing_ok=True)  # of this network, not of the next
    return metrics["error"], seconds


class Kept:
    """Trainings by themselves, in a file: (validation error, seconds) by what they were of."""

    def __init__(self, file: Path, experiment: Experiment) -> None:
        self._file = file
        told = msgspec.json.encode((experiment.task, experiment.training, experiment.search.seed))
        #: Of what all trainings here have in common.
        self.digest = hashlib.sha256(told).hexdigest()
        lines = file.read_text().splitlines() if file.exists() else []
        self._found = {line["of"]: (line["error"], line["seconds"]) for line in map(json.loads, lines)}

    def _key(self, genome: Genome, seed: int) -> str:
        return f"{self.digest} {seed} {json.dumps(genome, sort_keys=True)}"

    def get(self, genome: Genome, seed: int) -> tuple[float, float] | None:
        """None: not trained yet."""
        return self._found.get(self._key(genome, seed))

    def add(self, genome: Genome, seed: int, result: tuple[float, float]) -> tuple[float, float]:
        """The same, and in the file from now on."""
        self._found[self._key(genome, seed)] = result
        with open(self._file, "a") as out:
            out.write(json.dumps({"of": self._key(genome, seed), "error": result[0], "seconds": result[1]}) + "\n")
        return result


def measure(
    overrides: tuple[str, ...], subnets: int, seeds: int, processes: int, warm: int, folder: Path
) -> dict[str, Any]:
    """Train a supernet, on from its checkpoint, then compare.

    `warm`: epochs after which subnets that go on from what they inherit are compared, too; 0: none do.
    """
    from mpinas.models.elastic import largest, smallest
    from mpinas.training.candidate import Files
    from mpinas.training.collectives import SerialCollectives
    from mpinas.training.loop import Callbacks

    experiment = read_experiment(ROOT / EXPERIMENT, overrides)
    shared, epochs = (*overrides, "search.strategy=supernet"), experiment.training.epochs
    kept = Kept(folder / "alone.jsonl", experiment)
    run = RunFolder(folder / f"shared-{kept.digest[:12]}")  # never one that has learned from other samples
    run.path.mkdir(exist_ok=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        of, space = trainer(shared, run.path)
        genomes = draw(space, subnets)
        say(f"a supernet of {experiment.supernet.epochs} epochs")
        _, supernet_s = of.train_supernet(
            SerialCollectives(), 0, experiment.supernet.epochs,
            Files(run.supernet_file, run.supernet_checkpoint_file), Callbacks(),
        )  # fmt: skip
        say(f"{subnets} subnets: what they inherit, then {seeds} trainings of each by itself")
        inherited = [evaluate(shared, run.path, genome, 0, 0, epochs)[0] for genome in genomes]
        extremes = [
            [evaluate(shared, run.path, genome, 0, 0, epochs)[0] for genome in extreme(space)]
            for extreme in (largest, smallest)
        ]
        todo = [(genome, seed) for seed in range(seeds) for genome in genomes if kept.get(genome, seed) is None]
        tasks = [pool.submit(evaluate, overrides, run.path, genome, seed, epochs, epochs) for genome, seed in todo]
        for (genome, seed), task in zip(todo, tasks, strict=True):
            kept.add(genome, seed, task.result())
        tasks = [pool.submit(evaluate, shared, run.path, genome, 0, warm, warm) for genome in genomes if warm]
        warmed = [task.result()[0] for task in tasks]
    done = [[kept.get(genome, seed) or (float("nan"), 0.0) for genome in genomes] for seed in range(seeds)]
    alone = [[error for error, _ in row] for row in done]
    return {
        **rank_correlation(inherited, alone),
        **({"tau_warm": rank_correlation(warmed, alone)["tau"]} if warm else {}),
        "families": [f"{each['stem']}-{each['block']}-{each['head']}" for each in largest(space)],
        "inherited_by_largest": extremes[0],
        "inherited_by_smallest": extremes[1],
        "supernet_seconds": supernet_s,
        "stand_alone_seconds": sum(seconds for row in done for _, seconds in row) / seeds,
        "subnets": [
            {"genome": genome, "inherited": inherited[place], "stand_alone": [row[place] for row in alone]}
            for place, genome in enumerate(genomes)
        ],
    }


def draw(space: Any, count: int) -> list[Genome]:
    """So many different genomes, always the same."""
    rng = np.random.default_rng(0)
    found: dict[Any, Genome] = {}
    while len(found) < min(count, len(space)):
        genome = space.sample(rng)
        found[genome_key(genome)] = genome
    return list(found.values())


def say(what: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} load {os.getloadavg()[0]:.1f}: {what}", err=True)


@click.group(help=__doc__, context_settings={"show_default": True})
def main() -> None:
    simulate_recordings()


SET = click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Of the experiment.")
FOLDER = click.option("--folder", type=click.Path(path_type=Path), default=ROOT / "runs" / "supernet",
                      help="Of the two runs, and of trainings by themselves.")  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="All figures.")


@main.command()
@click.option("--subnets", type=click.IntRange(3), default=30, help="Random subnets to compare.")
@click.option("--seeds", type=click.IntRange(1), default=2, help="Trainings of each by itself; their mean counts.")
@click.option("--processes", type=click.IntRange(1), default=2, help="That train them.")
@click.option("--warm", type=click.IntRange(0), default=0, help="Epochs after inheriting, compared too; 0: none.")
@FOLDER
@SET
@JSON
def kendall(
    subnets: int, seeds: int, processes: int, warm: int, folder: Path, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Rank correlation between inherited and stand-alone error."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(), **measure((*GENES, *overrides), subnets, seeds, processes, warm, folder)}
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    click.echo(
        f"{found['machine']}; families {', '.join(found['families'])}; {len(found['subnets'])} subnets, {seeds} seeds"
    )
    for each in sorted(found["subnets"], key=lambda it: it["inherited"]):
        alone = " ".join(f"{error:.4f}" for error in each["stand_alone"])
        click.echo(f"  inherited {each['inherited']:.4f}  stand-alone {alone}  {each['genome']['block']}")
    for name in ("largest", "smallest"):
        click.echo(f"inherited by the {name}: {' '.join(f'{error:.4f}' for error in found[f'inherited_by_{name}'])}")
    for name in ("tau", "tau_of_one_seed", "tau_between_seeds", "tau_warm"):
        click.echo(f"{name} {found[name]:.2f}" if name in found else f"{name} -")
    click.echo(f"seconds on one core: supernet (what was left of its training) {found['supernet_seconds']:.0f}, all "
               f"trainings of a seed {found['stand_alone_seconds']:.0f}")  # fmt: skip


@main.command()
@click.option("--evaluations", type=click.IntRange(3), default=60, help="Candidates of each search.")
@click.option("--ranks", type=click.IntRange(2), default=3, help="MPI ranks; rank 0 coordinates.")
@click.option("--limit-minutes", type=click.FloatRange(0, min_open=True), default=60.0, help="Of one job.")
@FOLDER
@SET
@JSON
def race(
    evaluations: int, ranks: int, limit_minutes: float, folder: Path, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Hypervolume against trainer seconds, from scratch and with a supernet. Runs that are there are not done again."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    curves = {}
    for strategy in STRATEGIES:
        run = RunFolder(folder / strategy)
        settings = (*GENES, f"search.evaluations={evaluations}", f"search.strategy={strategy}", *overrides)
        parts = [part for each in settings for part in ("--set", each)]
        if run.path.exists() and run.experiment() != read_experiment(ROOT / EXPERIMENT, settings):
            raise UserError(f"{run.path}: begun with other settings; remove it, or name another --folder")
        if not is_finished(run):
            say(f"{strategy}, {limit_minutes:g} minutes at most; mpinas results {shown(run.path)}")
            beginning = ["search", EXPERIMENT, "--run", shown(run.path), *parts]
            if why := bring_to_end(run, beginning, ranks, 60 * limit_minutes):
                raise UserError(f"{strategy}: {why}")
        curves[strategy] = curve(read(run.journal_file), terms_of(run.experiment()))
    found = {"machine": machine(), **verdict(curves), "curves": curves}
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    click.echo(f"{found['machine']}; hypervolume of scratch in the end: {found['goal']:.3f}")
    for strategy in STRATEGIES:
        spent_s, of_baseline_s, share = found["final"][strategy]
        first = found["reached"][strategy]
        when = "never" if first is None else f"after {first[0]:.0f} trainer seconds"
        click.echo(f"{strategy}: that {when}; {share:.3f} in the end, after {spent_s:.0f} trainer seconds, "
                   f"{of_baseline_s:.0f} of them for the baseline")  # fmt: skip
    for name in ("ratio", "ratio_without_baseline"):
        click.echo(f"{name} {found[name]:.2f}" if found[name] is not None else f"{name} -")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"supernet.py: {error}")
