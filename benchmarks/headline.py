"""How much faster and better than a human-designed network: the runs behind docs/results.md, and that page.

``python benchmarks/headline.py run [--seeds 3] [--only paper] [--ranks 3]`` simulates recordings once and does each run
that is not there yet, one after the other; stopped and called again, it goes on. ``python benchmarks/headline.py table
[-o docs/results.md]`` adds the figures of the runs that are finished to docs/results.json, and makes the page of that.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import msgspec

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(ROOT)]

from headline_figures import of_compression, of_search  # noqa: E402 - found through the path just set
from headline_jobs import bring_to_end, is_finished, machine, shown, simulate_recordings  # noqa: E402
from headline_tables import page  # noqa: E402

from mpinas.coordination.ledger import Ledger  # noqa: E402
from mpinas.errors import UserError  # noqa: E402
from mpinas.history.run_folder import RunFolder  # noqa: E402
from mpinas.report.results import as_dict, load  # noqa: E402

DEFAULT_FOLDER = ROOT / "runs" / "headline"
#: Figures of all finished runs, those of other machines and days too: their folders are not kept.
RECORD = ROOT / "docs" / "results.json"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a run is: a command of mpinas, an experiment file, and what is set beside the seed."""

    command: str
    experiment: str
    settings: tuple[str, ...] = ()

    def digest(self) -> str:
        """Of what is done: runs of an experiment file that has been changed since are not of this kind any more."""
        content = msgspec.toml.decode((ROOT / self.experiment).read_bytes())
        return hashlib.sha256(msgspec.json.encode((self.command, content, self.settings), order="sorted")).hexdigest()


#: Long enough for candidates and the published 3D CNN to learn most of what they can.
CNN = ("search.evaluations=30", 'search.precision=["fp32", "int8"]', "training.epochs=30")
KINDS = {
    "paper": Kind("search", "examples/paper/small.toml"),
    "swin-free": Kind(
        "search",
        "examples/paper/small.toml",
        ("search.space=swin3d-free", "task.baseline=examples/paper/small.py:Baseline"),
    ),
    "wide": Kind("search", "examples/paper/wide.toml"),
    "cnn": Kind("search", "examples/demo.toml", CNN),
    "random": Kind("search", "examples/demo.toml", (*CNN, "search.algorithm=random")),
    "compress": Kind("compress", "examples/demo.toml", CNN[2:]),
}


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Beside each run folder: what it is of, what began it, and where."""

    kind: str
    seed: int
    command: str
    #: See `Kind.digest`.
    experiment: str
    machine: str


@dataclass(frozen=True, slots=True)
class Job:
    """One run, done or not."""

    kind: str
    seed: int
    ranks: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.kind}-seed{self.seed}"

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder / self.name)

    @property
    def record_file(self) -> Path:
        return self.folder / f"{self.name}.json"

    def arguments(self) -> list[str]:
        """Of a job that begins it, after the name of the program."""
        kind = KINDS[self.kind]
        settings = (*kind.settings, f"search.seed={self.seed}")
        overrides = [part for each in settings for part in ("--set", each)]
        return [kind.command, kind.experiment, "--run", shown(self.run.path), *overrides]

    def record(self) -> Record:
        command = ["mpirun", "--oversubscribe", "-n", str(self.ranks), "python", "-m", "mpinas", *self.arguments()]
        return Record(
            kind=self.kind, seed=self.seed, command=shlex.join(command), experiment=KINDS[self.kind].digest(),
            machine=machine(),
        )  # fmt: skip


def check_made_alike(job: Job) -> None:
    """Raise UserError where what is there was begun by another command: it would not be what it is called."""
    if not job.run.path.exists():
        return
    found = read_record(job.record_file)
    wanted = job.record()
    if found is None or (found.command, found.experiment) != (wanted.command, wanted.experiment):
        was = "an unknown command" if found is None else f"{found.command}, or with another experiment file"
        raise UserError(f"{job.run.path}: begun by {was}; remove it, or name another --folder")


def read_record(path: Path) -> Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return None


def told(record: Record, name: str, run: RunFolder, ledger: Ledger) -> dict[str, Any]:
    """All that the page needs to know of a finished run."""
    experiment, results = run.experiment(), as_dict(ledger, run)
    searched = record.kind != "compress"
    busy_s, frames = ledger.occupation.busy_s, experiment.task.frames
    return {
        **msgspec.to_builtins(record),
        "name": name,
        "simulated": results["simulated_data"],
        "threads": experiment.edge.threads,
        "figures": of_search(results, busy_s, frames) if searched else of_compression(results),
    }


def finished_runs(folder: Path) -> Iterator[dict[str, Any]]:
    """Of those that this program began in `folder`."""
    for file in sorted(folder.glob("*-seed*.json")):
        record, run = read_record(file), RunFolder(file.with_suffix(""))
        if record is not None and run.journal_file.exists():
            ledger = load(run)
            if ledger.finished is not None:
                yield told(record, file.stem, run, ledger)


def added(record: Path, runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `record` has and these runs, which replace those of the same name; `record` has them all afterwards.

    Without those of an experiment that is another one now.
    """
    known = json.loads(record.read_text()) if record.exists() else []
    current = {name: kind.digest() for name, kind in KINDS.items()}
    found = {run["name"]: run for run in (*known, *runs) if run["experiment"] == current[run["kind"]]}
    ordered = [found[name] for name in sorted(found)]
    record.write_text(json.dumps(ordered, indent=1) + "\n")
    return ordered


def not_there(runs: Sequence[dict[str, Any]], seeds: int) -> list[str]:
    """Names of the runs that a whole page of so many seeds would have beside these."""
    there = {run["name"] for run in runs}
    return [name for kind in KINDS for seed in range(seeds) if (name := f"{kind}-seed{seed}") not in there]


@click.group(help=__doc__, context_settings={"show_default": True})
def main() -> None:
    pass


FOLDER = click.option("--folder", type=click.Path(path_type=Path), default=DEFAULT_FOLDER, help="Of the run folders.")


@main.command("run")
@click.option("--seeds", type=click.IntRange(1), default=3, help="Runs of each kind.")
@click.option("--only", default=",".join(KINDS), help="Kinds of runs, with commas.")
@click.option("--ranks", type=click.IntRange(1), default=3, help="MPI ranks; rank 0 coordinates.")
@click.option("--limit-minutes", type=click.FloatRange(0, min_open=True), default=45.0, help="Of one job.")
@FOLDER
def do_runs(seeds: int, only: str, ranks: int, limit_minutes: float, folder: Path) -> None:
    """Do each run that is not there, or not at its end."""
    kinds = [kind.strip() for kind in only.split(",")]
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise click.BadParameter(f"{unknown[0]}: known are {', '.join(KINDS)}", param_hint="--only")
    folder = folder.resolve()
    jobs = [Job(kind, seed, ranks, folder) for seed in range(seeds) for kind in kinds]
    for job in jobs:
        check_made_alike(job)
    folder.mkdir(parents=True, exist_ok=True)
    simulate_recordings()
    failed = []
    for number, job in enumerate(jobs, start=1):
        if is_finished(job.run):
            continue
        now = f"{datetime.now():%H:%M:%S} load {os.getloadavg()[0]:.1f}: {job.name} ({number} of {len(jobs)})"
        click.echo(f"{now}, {limit_minutes:g} minutes at most; mpinas results {shown(job.run.path)}", err=True)
        if not job.run.path.exists():
            job.record_file.write_bytes(msgspec.json.encode(job.record()))
        if why := bring_to_end(job.run, job.arguments(), job.ranks, 60 * limit_minutes):
            click.echo(f"{job.name}: {why}", err=True)
            failed.append(job.name)
    if failed:
        raise UserError(f"not ended: {', '.join(failed)}; call again to go on")


@main.command("table")
@click.option("--seeds", type=click.IntRange(1), default=3, help="How many there should be of each kind.")
@click.option("--json", "as_json", is_flag=True, help="The figures of each run.")
@click.option("--record", type=click.Path(path_type=Path), default=RECORD, help="Where they are kept.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write.  [default: standard output]")
@FOLDER
def show_table(seeds: int, as_json: bool, record: Path, output: Path | None, folder: Path) -> None:
    """Make the page from the record, and from the runs in the folder, which are added to it."""
    runs = added(record, finished_runs(folder.resolve()))
    text = json.dumps(runs, indent=1) + "\n" if as_json else page(runs, not_there(runs, seeds))
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"headline.py: {error}")
