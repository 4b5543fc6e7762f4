"""The command line: the only reader of argv. Heavy imports stand inside the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import mpinas
from mpinas.errors import UserError

if TYPE_CHECKING:
    from mpinas.parallel.job import Arguments

PATH = click.Path(path_type=Path)
# of whatever is a job
RUN = click.option("--run", type=PATH, help="Folder of the run.  [default: runs/EXPERIMENT-DATE-TIME]")
EDGE = click.option("--edge", metavar="local|BRIDGE.json", help="Where latencies come from; overrides [edge] bridge.")
TIME_LIMIT = click.option("--time-limit", metavar="HH:MM:SS",
                          help="End in peace within this time, as sbatch takes it.  [default: Slurm's]")  # fmt: skip
# of whatever reads an experiment
SET = click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
                   help="Override a key; repeatable.")  # fmt: skip


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mpinas.__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Hardware-aware neural architecture search as one MPI job, with the edge device in the loop.

    Without a command: `search` on experiment.toml of the current folder.
    """
    if context.invoked_subcommand is None:
        context.invoke(search)


@cli.command()
@click.argument("experiment", type=PATH, required=False)
@RUN
@click.option("--resume", is_flag=True, help="Go on with the run in --run.")
@SET
@EDGE
@TIME_LIMIT
def search(
    experiment: Path | None,
    run: Path | None,
    resume: bool,
    overrides: tuple[str, ...],
    edge: str | None,
    time_limit: str | None,
) -> None:
    """Search for networks as EXPERIMENT says (default: experiment.toml). Start it with mpirun or srun.

    Exit code 75: it ended before the search did, because of its time or a signal; --resume goes on.
    """
    from mpinas.parallel.job import Arguments

    _run_job(Arguments(experiment, run, resume, _with_edge(overrides, edge), time_limit_s=_seconds(time_limit)))


def _with_edge(overrides: tuple[str, ...], edge: str | None) -> tuple[str, ...]:
    return overrides if edge is None else (*overrides, f"edge.bridge={edge}")


def _seconds(time_limit: str | None) -> float | None:
    from mpinas.slurm.walltime import parse_duration

    try:
        return None if time_limit is None else parse_duration(time_limit)
    except ValueError as error:
        raise UserError(f"--time-limit: {error}") from None


def _run_job(arguments: Arguments) -> None:
    from mpinas.parallel.job import run
    from mpinas.parallel.world import UNFINISHED

    if not run(arguments):
        sys.exit(UNFINISHED)


@cli.command()
@click.argument("experiment", type=PATH)
@click.option("--method", "methods", multiple=True, type=click.Choice(["prune", "distill", "quantise"]),
              help="Repeatable.  [default: all]")  # fmt: skip
@RUN
@SET
@EDGE
@TIME_LIMIT
def compress(
    experiment: Path,
    methods: tuple[str, ...],
    run: Path | None,
    overrides: tuple[str, ...],
    edge: str | None,
    time_limit: str | None,
) -> None:
    """Compress the human-designed baseline of EXPERIMENT instead of searching. Start it with mpirun or srun.

    Structured pruning and distillation to narrower networks, and quantisation: trained, measured and shown as the
    candidates of a search are. `mpinas search --resume --run DIR` goes on.
    """
    from mpinas.parallel.job import Arguments

    methods = methods or ("prune", "distill", "quantise")
    overrides = _with_edge(overrides, edge)
    _run_job(Arguments(experiment, run, overrides=overrides, compress=methods, time_limit_s=_seconds(time_limit)))


@cli.command()
@click.argument("path", type=PATH, default=Path("experiment.toml"))
def init(path: Path) -> None:
    """Write a commented experiment file to PATH (default: experiment.toml; "-": standard output)."""
    from mpinas.config import TEMPLATE

    if str(path) == "-":
        click.echo(TEMPLATE, nl=False)
        return
    _write_new(path, TEMPLATE)
    click.echo(f"{path} written; edit it, then: mpirun --oversubscribe -n 3 python -m mpinas search {path}")


def _write_new(path: Path, text: str) -> None:
    """A file that is complete, or not there."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
            except OSError:
                path.unlink()
                raise
    except FileExistsError:
        raise UserError(f"{path}: exists already; name another file or remove it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


@cli.command()
@click.argument("run", type=PATH)
@click.option("--beside", type=PATH, help="Another run of the same task: of `mpinas compress`, or another space.")
@click.option("--json", "as_json", is_flag=True, help="Everything of RUN, as JSON.")
def results(run: Path, beside: Path | None, as_json: bool) -> None:
    """Show the front and the baseline of the run in folder RUN, finished or not."""
    from rich.console import Console

    from mpinas.history.run_folder import RunFolder
    from mpinas.report import results as report
    from mpinas.report.results_table import show

    folder = RunFolder.existing(run)
    ledger = report.load(folder)
    if as_json:
        click.echo(json.dumps(report.as_dict(ledger, folder), indent=1))
        return
    other = None if beside is None else report.load_beside(folder, RunFolder.existing(beside))
    show(ledger, Console(), other, label=beside.name if beside else "")


@cli.command()
@click.argument("model", type=PATH)
@click.argument("recording", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="CSV file to write.")
def predict(model: Path, recording: Path, output: Path) -> None:
    """Predict the targets (speed and power) of every scan line of RECORDING (HDF5) with MODEL (ONNX)."""
    from mpinas.tasks.lpbf.predict import predict_lines, write_csv
    from mpinas.training.deployed import Deployed

    deployed = Deployed(model)
    rows, simulated = predict_lines(deployed.run, deployed.input_shape, deployed.metadata, recording)
    write_csv(rows, output)
    click.echo(f"{output}: {len(rows)} scan lines{' of SIMULATED data' if simulated else ''}")


@cli.group()
def space() -> None:
    """Search spaces."""


@space.command("show")
@click.argument("name")
@click.option("--frames", type=click.IntRange(1, 4096), default=16, show_default=True, help="Of a sample.")
@click.option("--side", type=click.IntRange(4, 4096), default=41, show_default=True, help="Of a frame, in pixels.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_space(name: str, frames: int, side: int, as_json: bool) -> None:
    """Show the genes of the space NAME, its size, and the baseline, for laser speed and power."""
    from rich.console import Console

    from mpinas.models.facts import described
    from mpinas.report import space as report

    found = described(name, (frames, side, side), outputs=2, baseline="lpbf-cnn")
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    report.show(found, Console())


@cli.command("simulate")
@click.argument("experiment", type=PATH)
@click.option("--ranks", type=int, default=4096, show_default=True, help="MPI ranks; rank 0 coordinates.")
@click.option("--ranks-per-node", type=int, default=4, show_default=True, help="For the node-hours.")
@click.option("--devices", type=int, default=1, show_default=True, help="Devices of each profile.")
@click.option("--exporters", type=int, help="Processes that write ONNX files.  [default: the experiment's, else 4]")
@click.option("--train-seconds", type=float, help="Mean of a full training by one trainer.  [default: 300]")
@click.option("--train-spread", type=float, default=0.3, show_default=True, help="0: all alike; 0.5: factors of 1.65.")
@click.option("--measure-seconds", type=float, help="One candidate on one device.  [default: 2]")
@click.option("--export-seconds", type=float, help="One ONNX file.  [default: 0.7]")
@click.option("--assess-seconds", type=float, help="One finalist on the test file.  [default: 5]")
@click.option("--round-trip-ms", type=float, default=30.0, show_default=True, help="Of the link to the devices.")
@click.option("--outage", "outages", multiple=True, metavar="FROM:TO", help="No device, in seconds from the start.")
@click.option("--rejected", type=float, help="Share of the candidates that break a limit.  [default: 0]")
@click.option("--failed", type=float, help="Share of the trainings that fail.  [default: 0]")
@click.option("--serial-share", type=float, default=0.05, show_default=True, help="Of a training, in groups (Amdahl).")
@click.option(
    "--proposal-ms", type=float, default=0.0, show_default=True, help="What a proposal costs rank 0 at least."
)
@click.option("--algorithm", help="Another search algorithm than the experiment's: nsga2 simulates faster.")
@click.option("--from", "past", type=PATH, metavar="RUN", help="Take durations and shares from the run in this folder.")
@SET
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of all durations.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def plan_a_search(
    experiment: Path,
    past: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    outages: tuple[str, ...],
    **numbers: Any,
) -> None:
    """Run the search of EXPERIMENT in virtual time: how long will it take, on what, and what will it wait for?

    The coordinator is the real one; trainers, exporters and devices are simulated. See docs/planning.md.
    """
    import time

    from rich.console import Console

    from mpinas.config import read_experiment
    from mpinas.models import check_supernet
    from mpinas.parallel.means import baseline_of, networks_of, space_of
    from mpinas.simulation import ask, planner, show
    from mpinas.tasks import make_task

    settings = read_experiment(experiment, overrides)
    question = ask.question(settings, past, outages, **numbers)
    task = make_task(settings.task, settings.search.seed)
    space = space_of(task, settings)
    if settings.needs_supernet:
        check_supernet(networks_of(task, settings), space)
    with show.progress(sys.stderr, settings.search.evaluations) as tell:
        figures = planner.simulate(settings, space, baseline_of(task, settings), question, time.perf_counter, tell)
    if as_json:
        click.echo(json.dumps(figures.as_dict(), indent=1))
    else:
        show.show(figures, Console(), ask.notes(settings, question))


@cli.group()
def data() -> None:
    """Look at recordings, or simulate some."""


@data.command()
@click.argument("path", type=PATH)
@click.option("--json", "as_json", is_flag=True)
def inspect(path: Path, as_json: bool) -> None:
    """Print what the recording PATH (a file, or a folder of files) holds."""
    from mpinas.tasks.lpbf.inspect import describe, format_description

    description = describe(path)
    click.echo(json.dumps(description, indent=1) if as_json else format_description(description))


@data.command()
@click.argument("path", type=PATH)
@click.option("--layout", type=click.Choice(["v1.0", "v1.1"]), default="v1.0", show_default=True)
@click.option("--objects", default="S001,S002", show_default=True, help="Names of the objects, with commas.")
@click.option("--layers", default=5, show_default=True, help="Layers of each object.")
@click.option("--lines", default=30, show_default=True, help="Scan lines of each layer.")
@click.option("--seed", default=0, show_default=True)
@click.option("--unlabelled", is_flag=True, help="Leave the labels out, as in the published test files.")
def simulate(path: Path, layout: str, objects: str, layers: int, lines: int, seed: int, unlabelled: bool) -> None:
    """Write simulated recordings to PATH: one file (v1.0), or a file or folder of one file an object (v1.1)."""
    from mpinas.tasks.lpbf.simulate import SimulationPlan
    from mpinas.tasks.lpbf.simulate import simulate as write

    plan = SimulationPlan(
        layout=layout,  # type: ignore[arg-type]
        objects=tuple(name.strip() for name in objects.split(",")),
        layers=layers,
        lines_per_layer=lines,
        seed=seed,
        labelled=not unlabelled,
    )
    with click.progressbar(length=len(plan.objects) * layers, label="simulating layers", file=sys.stderr) as bar:
        files = write(path, plan, lambda done, total: bar.update(1))
    for file in files:
        click.echo(f"{file}: simulated, {layers * lines * (len(plan.objects) if layout == 'v1.0' else 1)} scan lines")


@cli.command()
@click.argument("system", required=False)
@click.option("--list", "list_systems", is_flag=True, help="Name the systems that are known, and end.")
@click.option("--nodes", type=click.IntRange(1), metavar="N", help="Nodes of the trainers.")
@click.option("--time", metavar="HH:MM:SS", help="Walltime, as for sbatch. The job goes on when it is over.")
@click.option("--account", default="", help="The project that pays.")
@click.option("--partition", default="", help="[default: the system's first]")
@click.option("--layout", type=click.Choice(["extra-task", "heterogeneous"]), default="extra-task", show_default=True,
              help="Rank 0 beside the trainers of the first node, or on a node without GPUs.")  # fmt: skip
@click.option("--experiment", default="experiment.toml", show_default=True, metavar="FILE")
@click.option("--run", default="", metavar="DIR", help="Folder of the run.  [default: runs/EXPERIMENT]")
@click.option("--bridge", default="", metavar="BRIDGE.json", help="Connection file of the relay to the device.")
@click.option("--key", default="", metavar="FILE", help="This job's secret key, for the relay.")
@click.option("--max-requeues", type=int, default=20, show_default=True, help="So often the job goes on by itself.")
@click.option("-o", "--output", type=PATH, help="File to write.  [default: the terminal]")
def jobscript(system: str | None, list_systems: bool, output: Path | None, **asked: Any) -> None:
    """Write the Slurm job script of a search on SYSTEM: a name of --list, or the path of your own TOML file.

    See docs/platforms.
    """
    from mpinas.slurm.jobscript import render
    from mpinas.slurm.request import Request
    from mpinas.slurm.system import described, load_system, system_names

    if list_systems:
        click.echo("\n".join(described(load_system(name)) for name in system_names()))
        return
    known = None if system is None else load_system(system)
    for option, value in (("SYSTEM", known), ("--nodes", asked["nodes"]), ("--time", asked["time"])):
        if value is None:
            raise UserError(f"{option} is missing: mpinas jobscript SYSTEM --nodes N --time HH:MM:SS, or --list")
    assert known is not None
    text = render(known, Request(**asked))
    for file in (asked["experiment"], asked["bridge"], asked["key"]):
        if file and not Path(file).is_file():
            click.echo(f"mpinas: {file} is not there yet; the job looks for it from where sbatch is called", err=True)
    if output is None or str(output) == "-":
        click.echo(text, nl=False)
        return
    _write_new(output, text)
    click.echo(f"{output} written; read it, then: sbatch {output}")


@cli.command()
@click.option("--bridge", type=PATH, metavar="BRIDGE.json", help="Look at the way to this relay, too.")
@click.option("--key", type=PATH, help="Key file of a job, for --bridge.")
@click.option("--run-folder", type=PATH, metavar="DIR", help="Look at the file system that DIR is or would be on.")
@click.option("--ranks", is_flag=True, help="Only print who is where: rank, host, role, cores, GPU.")
@click.option("--limit", "limit_s", type=click.FloatRange(1, 3600), default=60, show_default=True,
              help="Longest wait for each thing looked at, in seconds.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(
    bridge: Path | None, key: Path | None, run_folder: Path | None, ranks: bool, limit_s: float, as_json: bool
) -> None:
    """Would a search work here? Looks at packages, MPI, Horovod, GPUs, cores, files, bridge and time left.

    On a login node by itself, in a job under mpirun or srun. Says what to do about each fault, and ends with 2 if
    there is one.
    """
    import os

    from mpinas.doctor.examination import Request, run

    if key is not None and bridge is None:
        raise UserError("--key is for the relay of --bridge BRIDGE.json: name that, too, or leave the key away")
    sys.exit(run(Request(bridge, key, run_folder, ranks, as_json, limit_s), os.environ))


@cli.command()
@click.argument("run", type=PATH)
@click.option("--watch", "watching", is_flag=True, help="Look again every few seconds, until the run is over.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch one line each time.")
def status(run: Path, watching: bool, as_json: bool) -> None:
    """Show how the run in folder RUN is getting on: queued, running, stopped, died or finished. Reads only.

    Ends with 2 if it is damaged.
    """
    import time

    from rich.console import Console

    from mpinas.report import status as report
    from mpinas.report.status_text import lines_of

    console = Console()

    def show(found: report.Status) -> None:
        if as_json:
            click.echo(json.dumps(found.as_dict(), indent=None if watching else 1))
            return
        if watching and console.is_terminal:
            console.clear()
        click.echo("\n".join(lines_of(found)))

    if watching:
        found = report.watch(run, show)
    else:
        found = report.Observer(run).look(time.time())
        show(found)
    sys.exit(2 if found is not None and found.state == "damaged" else 0)


@cli.command()
@click.argument("run", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(run: Path, as_json: bool) -> None:
    """Look whether the run in folder RUN is whole: experiment, journal, every model and checkpoint. Reads only.

    Says what to do about each fault, and ends with 2 if there is one.
    """
    import time
    from dataclasses import asdict

    from mpinas.history.run_folder import RunFolder
    from mpinas.report import verify as report
    from mpinas.training.checkpoint import read_archive
    from mpinas.training.weights import read_weights

    openers = report.Openers(weights=read_weights, checkpoint=read_archive)
    found = report.verify(RunFolder.existing(run), openers, time.time())
    click.echo(json.dumps([asdict(each) for each in found], indent=1) if as_json else "\n".join(report.lines_of(found)))
    sys.exit(2 if any(each.level == report.FAULT for each in found) else 0)
