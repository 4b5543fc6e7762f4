"""How busy a real search keeps its trainers, and the same trainings driven by others: figures of docs/job-benchmark.md.

``python benchmarks/job.py [--candidates 40] [--ranks 5] [--repeat 1] [--json]``. Real trainings on scikit-learn's
digits under ``mpirun``, with exports and measurements on the local bridge. What the search had trained by single
trainers is then trained again by mpi4py.futures and libEnsemble: same genomes, seeds, epochs, order, function, ranks.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import msgspec

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(ROOT)]

from job_journal import Run, driven, evaluating, figures, read_run  # noqa: E402 - found through the path just set
from job_rivals import Done, Evaluation, Work  # noqa: E402
from job_tables import show  # noqa: E402

from mpinas.history.run_folder import RunFolder, plan_of  # noqa: E402

Figures = dict[str, Any]
EXPERIMENT = ROOT / "examples" / "digits.toml"
#: What the trainers of a search are beside a local bridge (`mpinas.priority`).
TRAINERS_NICE = 10
SINGLE, PAIRS, REGROUPING = "single trainers", "groups of 2", "regrouping"
RIVALS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mpi4py.futures": ("mpi4py", ("-m", "mpi4py.futures", str(HERE / "job_rivals.py"), "futures")),
    "libEnsemble": ("libensemble", (str(HERE / "job_rivals.py"), "libensemble")),
}


class Refused(click.ClickException):
    """What the user can mend."""

    exit_code = 2


def settings(kind: str, candidates: int, epochs: int) -> list[str]:
    """Overrides of the example. Single trainers stay single to the end, as those of the others do."""
    own = {
        SINGLE: ["training.group_size=1", "training.group_size_max=1", "search.rungs=[]"],
        PAIRS: ["training.group_size=2", "training.group_size_max=2", "search.rungs=[]"],
        REGROUPING: ["training.group_size=1", f"search.rungs=[{max(1, epochs // 4)}, {max(2, epochs // 2)}]",
                     "search.finalists=2", "search.finalist_seeds=2"],
    }[kind]  # fmt: skip
    return [f"search.evaluations={candidates}", f"training.epochs={epochs}", "training.threads=1",
            'training.device="cpu"', *own]  # fmt: skip


def launch(ranks: int, arguments: tuple[str, ...], folder: Path) -> Figures:
    """Run one job to its end; what it took as a whole, process start and imports included."""
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpirun is None:
        raise Refused("mpirun is missing: run `make setup`, or load the MPI module")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",  # as the search sets it
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    load, began_s, cpu_s = os.getloadavg()[0], time.monotonic(), _children_cpu_s()
    log = folder / "job.log"
    with open(log, "wb") as out:
        job = subprocess.run([mpirun, "-n", str(ranks), sys.executable, *arguments], cwd=ROOT, env=environment,
                             stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)  # fmt: skip
    if job.returncode:
        end = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
        raise click.ClickException(f"the job ended with {job.returncode}; {log} says: {end}")
    return {"wall_s": time.monotonic() - began_s, "cpu_s": _children_cpu_s() - cpu_s, "load_before": load}


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def search(kind: str, candidates: int, ranks: int, epochs: int, folder: Path) -> tuple[Figures, Run]:
    """One search as a user starts it."""
    run = folder / "run"
    overrides = [part for each in settings(kind, candidates, epochs) for part in ("--set", each)]
    job = launch(ranks, ("-m", "mpinas", "search", str(EXPERIMENT), "--run", str(run), *overrides), folder)
    said = subprocess.run([sys.executable, "-m", "mpinas", "results", str(run), "--json"], cwd=ROOT, check=True,
                          stdout=subprocess.PIPE)  # fmt: skip
    found = read_run(RunFolder(run).journal_file)
    told = {"trainer_utilisation": json.loads(said.stdout)["trainer_utilisation"]}
    return job | told | figures(found) | {"evaluating": evaluating(found)}, found


def same_again(name: str, run: Run, source: Path, ranks: int, folder: Path) -> Figures:
    """The evaluations of `run` in the order in which it began them, by another driver."""
    experiment = RunFolder(source).experiment_file
    plan = plan_of(RunFolder(source).experiment())
    work = Work(str(experiment), str(folder / "answers.json"), TRAINERS_NICE, tuple(
        Evaluation(each.candidate, run.genomes[each.candidate], plan.seed_of(each.candidate))
        for each in run.evaluations
    ))  # fmt: skip
    task = folder / "task.json"
    task.write_bytes(msgspec.json.encode(work))
    job = launch(ranks, (*RIVALS[name][1], str(task)), folder)
    done = msgspec.json.decode((folder / "answers.json").read_bytes(), type=list[Done])
    alike = sum(each.error == run.errors.get(each.candidate) for each in done)
    if len(done) != len(work.evaluations) or alike != len(done):
        click.echo(f"{name}: {len(done)} of {len(work.evaluations)} evaluations, {alike} with the same error", err=True)
    times = driven([(each.rank, each.began_s, each.ended_s) for each in done], run.trainers)
    return job | {"evaluating": times, "evaluations": len(done), "same_error": alike}


def measure(
    names: list[str], candidates: int, ranks: int, epochs: int, keep: Path, say: Callable[[str], None]
) -> dict[str, Figures]:
    """Each of `names` once, one after the other: none has to share the machine with another."""
    found: dict[str, Figures] = {}
    of: Run | None = None
    for name in names:
        folder = keep / name.replace(" ", "-")
        folder.mkdir(parents=True)
        say(name)
        if name in RIVALS:
            assert of is not None
            found[name] = same_again(name, of, keep / SINGLE.replace(" ", "-") / "run", ranks, folder)
        else:
            found[name], run = search(name, candidates, ranks, epochs, folder)
            of = run if name == SINGLE else of
        # what is done stays known if what comes after fails
        (folder / "figures.json").write_text(json.dumps(found[name], indent=1))
    return found


@contextmanager
def work_folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        if keep.exists():
            raise Refused(f"{keep}: exists already; name another folder")
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    path = Path(tempfile.mkdtemp(prefix="job-"))
    yield path  # stays if something went wrong: its logs are what is to be read
    shutil.rmtree(path)


@click.command(help=__doc__)
@click.option("--candidates", type=click.IntRange(5), default=40, show_default=True)
@click.option("--ranks", type=click.IntRange(3), default=5, show_default=True, help="MPI ranks; one coordinates.")
@click.option("--epochs", type=click.IntRange(4), default=30, show_default=True, help="Of a full training.")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--only", type=click.Choice([SINGLE, *RIVALS, PAIRS, REGROUPING]), multiple=True, help="Some; repeatable."
)
@click.option("--keep", type=click.Path(path_type=Path), help="New folder for run folders and logs.  [default: none]")
@click.option("--json", "as_json", is_flag=True)
def main(
    candidates: int, ranks: int, epochs: int, repeat: int, only: tuple[str, ...], keep: Path | None, as_json: bool
) -> None:
    asked = only or (SINGLE, *RIVALS, PAIRS, REGROUPING)
    names = [name for name in (SINGLE, *RIVALS, PAIRS, REGROUPING)
             if name in asked or (name == SINGLE and any(other in RIVALS for other in asked))]  # fmt: skip
    for name in names:
        if name in RIVALS and importlib.util.find_spec(RIVALS[name][0]) is None:
            raise Refused(f'{name} is missing: pip install -e ".[bench]", or leave it out with --only')
    told: Figures = {
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": os.getloadavg()[0],
        "candidates": candidates,
        "ranks": ranks,
        "epochs": epochs,
        "repeat": repeat,
    }

    def say(name: str) -> None:
        click.echo(f"{datetime.now():%H:%M:%S} load {os.getloadavg()[0]:.1f}: {name}", err=True)

    with work_folder(keep) as folder:
        told["runs"] = [
            measure(names, candidates, ranks, epochs, folder / str(number), say) for number in range(repeat)
        ]
    if as_json:
        click.echo(json.dumps(told, indent=1))
    else:
        show(told, SINGLE, tuple(RIVALS))


if __name__ == "__main__":
    main()
