"""What a job is to be, and how that fits a machine. Pure; knows no job script."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from mpinas.errors import UserError
from mpinas.slurm.system import Coordinator, Partition, System
from mpinas.slurm.walltime import format_duration, parse_duration

#: Where rank 0 is: beside the trainers of the first node, or on a node without GPUs.
Layout = Literal["extra-task", "heterogeneous"]
#: Slurm counts walltime in minutes, and may announce the end a minute early.
SHORTEST_S = 120


@dataclass(frozen=True, slots=True)
class Request:
    """What a job is to be. Paths are as the user writes them, relative to the folder that it is submitted from."""

    nodes: int
    #: Walltime, as for `sbatch --time`.
    time: str
    account: str = ""
    #: "": the system's first.
    partition: str = ""
    layout: Layout = "extra-task"
    experiment: str = "experiment.toml"
    #: "": runs/ and the experiment's name. One script, one run folder: so a requeued job finds it.
    run: str = ""
    #: Connection file of a relay; "": what the experiment says.
    bridge: str = ""
    key: str = ""
    max_requeues: int = 20

    @property
    def run_folder(self) -> str:
        """The folder of the run."""
        return self.run or f"runs/{PurePosixPath(self.experiment).stem}"


@dataclass(frozen=True, slots=True)
class Allocation:
    """Nodes, tasks and cores that a request comes to on a machine."""

    partition: Partition
    nodes: int
    time_s: float
    #: Tasks of a node; where rank 0 is an extra task of the first node, without that.
    tasks_per_node: int
    #: Of each task, but for a coordinator on a node of its own.
    cores_per_task: int
    trainers: int
    #: Is rank 0 one more task of the first node?
    extra_task: bool
    #: Where rank 0 is in a heterogeneous job.
    coordinator: Coordinator | None

    @property
    def tasks(self) -> int:
        """On the trainers' nodes, rank 0 included if it is there."""
        return self.nodes * self.tasks_per_node + self.extra_task


def job_name(run: str) -> str:
    """What the job of a run folder is called.

    Raises
    ------
    UserError
        The folder's name would not pass through Slurm and a shell unharmed.
    """
    name = PurePosixPath(run).name
    if not re.fullmatch(r"[\w.+-]+", name, re.ASCII) or name == "..":
        raise UserError(f"--run {run!r}: the job is named after it; let it end in letters, digits, '.', '_' and '-'")
    return f"mpinas-{name}"


def fit(system: System, request: Request) -> Allocation:
    """What to ask Slurm for.

    Raises
    ------
    UserError
        The machine cannot run such a job, or the request is not well formed.
    """
    _check_words(request)
    if system.account and not request.account:
        raise UserError(f"{system.name}: jobs there need a project that pays: add --account NAME")
    time_s = _walltime(request)
    partition = _partition(system, request, time_s)
    heterogeneous = request.layout == "heterogeneous"
    if heterogeneous:
        _check_heterogeneous(system)
    extra_task = system.gpus > 0 and not heterogeneous
    # in one job step all tasks have the same number of cores, and the first node has a task more
    cores = system.cores // (system.gpus + extra_task) if system.gpus else system.cores_per_rank
    tasks_per_node = system.gpus or system.cores // cores
    trainers = request.nodes * tasks_per_node - (not system.gpus)
    if trainers < 1:
        raise UserError(f"--nodes {request.nodes}: gives {system.name} one rank, and rank 0 trains nothing; ask for 2")
    coordinator = system.coordinator if heterogeneous else None
    return Allocation(partition, request.nodes, time_s, tasks_per_node, cores, trainers, extra_task, coordinator)


def _check_words(request: Request) -> None:
    """Raise UserError for what would not come through a job script as it is meant."""
    for option in ("experiment", "run", "bridge", "key"):
        text = getattr(request, option)
        if not text.isprintable():
            raise UserError(f"--{option} {text!r}: has characters that no path in a job script should have")
    for option in ("account", "partition"):
        text = getattr(request, option)
        if text and not re.fullmatch(r"[\w.@+-]+", text, re.ASCII):
            raise UserError(f"--{option} {text!r}: is no name that Slurm knows; look at `sacctmgr show assoc`, `sinfo`")
    if request.key and not request.bridge:
        raise UserError(f"--key {request.key}: is for a relay; name its connection file with --bridge BRIDGE.json")
    if request.nodes < 1:
        raise UserError(f"--nodes {request.nodes}: a job needs one at least")
    if request.max_requeues < 0:
        raise UserError(f"--max-requeues {request.max_requeues}: write how often the job may go on by itself; 0: never")


def _walltime(request: Request) -> float:
    try:
        time_s = parse_duration(request.time)
    except ValueError as error:
        raise UserError(f"--time {error}") from None
    if time_s < SHORTEST_S:
        raise UserError(f"--time {request.time}: is too short to begin anything; write two minutes or more")
    return time_s


def _partition(system: System, request: Request, time_s: float) -> Partition:
    """The partition that takes the request."""
    names = [each.name for each in system.partitions]
    if request.partition and request.partition not in names:
        raise UserError(
            f"--partition {request.partition}: {system.name} has trainers on {', '.join(names)}; another one: copy the "
            "system's file and add it (docs/platforms)"
        )
    asked = system.partitions[names.index(request.partition)] if request.partition else system.partitions[0]
    refusal = _refusal(asked, request.nodes, time_s)
    if refusal:
        others = [each.name for each in system.partitions if not _refusal(each, request.nodes, time_s)]
        raise UserError(f"{refusal}; {f'add --partition {others[0]}' if others else 'ask for what it gives'}")
    return asked


def _refusal(partition: Partition, nodes: int, time_s: float) -> str:
    """Why the partition would not take such a job; "" where nothing is known against it."""
    most, longest = partition.nodes_max, partition.time_max
    if nodes < partition.nodes_min:
        return f"--nodes {nodes}: partition {partition.name} is for {partition.nodes_min} nodes and more"
    if most is not None and nodes > most:
        return f"--nodes {nodes}: partition {partition.name} gives a job {most} nodes at most"
    if longest and time_s > parse_duration(longest):
        return f"--time {format_duration(time_s)}: partition {partition.name} gives a job {longest} at most"
    return ""


def _check_heterogeneous(system: System) -> None:
    if not system.gpus:
        raise UserError(
            f"--layout heterogeneous: {system.name} has no GPUs that rank 0 would waste; leave --layout out"
        )
    if system.coordinator is None:
        raise UserError(
            f"--layout heterogeneous: {system.name} has no partition without GPUs to put rank 0 on; leave --layout out"
        )
