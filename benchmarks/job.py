"""How busy a real search keeps its trainers, and what others make of the same trainings: figures of docs/job-benchmark.md.

``python benchmarks/job.py [--candidates 40] [--ranks 5] [--repeat 1] [--json]``. Real trainings of scikit-learn's digits
under ``mpirun``, exports and measurements on the local bridge with them. The trainings of the search by single trainers
are then done again by mpi4py.futures and libEnsemble: same genomes, seeds, epochs and order, same function, same ranks.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import resource
import shutil
import statistics
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
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(ROOT)]

from job_journal import Run, driven, evaluating, figures, read_run  # noqa: E402 - found through the path just set
from job_rivals import Done, Evaluation, Work  # noqa: E402

from mpinas.history.run_folder import RunFolder, plan_of  # noqa: E402

Figures = dict[str, Any]
EXPERIMENT = ROOT / "examples" / "digits.toml"
#: What the trainers of a search are beside a local bridge (`trainer_loop.be_polite`).
TRAINERS_NICE = 10
SINGLE, PAIRS, REGROUPING = "single trainers", "groups of 2", "regrouping"
RIVALS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mpi4py.futures": ("mpi4py", ("-m", "mpi4py.futures", str(HERE / "job_rivals.py"), "futures")),
    "libEnsemble": ("libensemble", (str(HERE / "job_rivals.py"), "libensemble")),
}


def settings(kind: str, candidates: int, epochs: int) -> list[str]:
    """Overrides of the example. Single trainers stay single to the end, as those of the others do."""
    own = {
        SINGLE: ["training.group_size=1", "training.group_size_max=1"],
        PAIRS: ["training.group_size=2", "training.group_size_max=2"],
        REGROUPING: ["training.group_size=1", f"search.rungs=[{max(1, epochs // 4)}, {max(2, epochs // 2)}]",
                     "search.finalists=2", "search.finalist_seeds=2"],
    }[kind]  # fmt: skip
    return [f"search.evaluations={candidates}", f"training.epochs={epochs}", "training.threads=1",
            'training.device="cpu"', *own]  # fmt: skip


def launch(ranks: int, arguments: tuple[str, ...], folder: Path) -> Figures:
    """Run one job to its end; what it took as a whole, process start and imports included."""
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpirun is None:
        raise click.ClickException("mpirun is missing: run `make setup`, or load the MPI module")
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


def once(number: int, only: str, candidates: int, ranks: int, epochs: int, keep: Path) -> Iterator[tuple[str, Figures]]:
    """One of each, one after the other: none has the machine to share with another."""
    def folder(name: str) -> Path:
        path = keep / f"{number}-{name.replace(' ', '-')}"
        path.mkdir()
        return path

    single, run = None, None
    for kind in (SINGLE, PAIRS, REGROUPING):
        if only in kind or (kind == SINGLE and any(only in name for name in RIVALS)):
            here = folder(kind)
            found, of = search(kind, candidates, ranks, epochs, here)
            yield kind, found
            if kind == SINGLE:
                single, run = here / "run", of
                for name in RIVALS:
                    if only in name:
                        yield name, same_again(name, of, single, ranks, folder(name))


@contextmanager
def work_folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        if keep.exists():
            raise click.ClickException(f"{keep}: exists already; name another folder")
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    path = Path(tempfile.mkdtemp(prefix="job-"))
    yield path  # stays if something went wrong: its logs are what is to be read
    shutil.rmtree(path)
