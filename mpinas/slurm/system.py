"""What a Slurm machine is, for job scripts: nodes, partitions, modules, settings. One small TOML file a machine.

Those that are shipped stand in `systems/`; a user's own is named by its path. Knows nothing of job scripts.
"""

from __future__ import annotations

import difflib
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import tomllib
from msgspec import Meta

from mpinas.errors import UserError
from mpinas.slurm.walltime import parse_duration

Positive = Annotated[int, Meta(ge=1)]
#: Of a partition: it stands in a line that Slurm reads.
Name = Annotated[str, Meta(pattern=r"^[\w.+-]+\Z")]
#: Of an environment or shell variable.
Variable = Annotated[str, Meta(pattern=r"^[A-Za-z_]\w*\Z")]
#: Text that ends up in a comment.
Line = Annotated[str, Meta(pattern=r"^[^\r\n]*\Z")]


class Partition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[[partitions]] A set of nodes that jobs are submitted to. The first of a system is its default."""

    name: Name
    nodes_min: Positive = 1
    #: None: not known; Slurm will say.
    nodes_max: Positive | None = None
    #: Longest walltime, as for `sbatch --time`; "": not known.
    time_max: str = ""


class Coordinator(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[coordinator] Where rank 0 runs in a heterogeneous job: a node without GPUs."""

    partition: Name
    #: For rank 0, its exporters and, with the local bridge, relay and device agent.
    cores: Positive
    #: To ask for; 0: what the partition gives.
    memory_gb: Annotated[int, Meta(ge=0)] = 0


class Setting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[[environment]] or [[placeholders]]: a variable, its value, and why it is so."""

    name: Variable
    value: Annotated[str, Meta(min_length=1)]
    why: Annotated[Line, Meta(min_length=1)]
    #: Of [[environment]]: false, and it stands in the script as a comment, for the user to decide.
    export: bool = True


class System(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine, as its file says. `name` is what it was asked for by: a shipped one's name, or a path."""

    name: str
    #: For people.
    title: Annotated[Line, Meta(min_length=1)]
    architecture: Literal["x86_64", "aarch64"]
    partitions: Annotated[tuple[Partition, ...], Meta(min_length=1)]
    #: Physical cores of a node.
    cores: Positive
    #: GPUs of a node; 0: trainers compute on cores.
    gpus: Annotated[int, Meta(ge=0)] = 0
    #: Which; for people.
    gpu: Line = ""
    #: Where there are no GPUs: how many cores each rank gets.
    cores_per_rank: Annotated[int, Meta(ge=0)] = 0
    #: Memory of a node; None: not known.
    memory_gb: Positive | None = None
    coordinator: Coordinator | None = None
    #: Jobs must name a project that pays.
    account: bool = True
    launcher: Annotated[str, Meta(pattern=r"^srun( --mpi=\w+)?\Z")] = "srun --mpi=pmix"
    #: srun's --cpu-bind; "": the machine's own.
    cpu_bind: Literal["", "cores", "none"] = "cores"
    #: Cores have several hardware threads, and one rank is to have one of each.
    nomultithread: bool = False
    #: Ask for whole nodes, with all their memory.
    whole_nodes: bool = False
    #: Values that only the user knows; a script that still has them says so and stops.
    placeholders: tuple[Setting, ...] = ()
    #: Shell lines that load what the job was built with.
    modules: tuple[Line, ...] = ()
    environment: tuple[Setting, ...] = ()
    #: What the user should know or check, one sentence each.
    notes: tuple[Line, ...] = ()


def system_names() -> list[str]:
    """Names of the machines that are shipped."""
    return sorted(entry.name.removesuffix(".toml") for entry in _shipped().iterdir() if entry.name.endswith(".toml"))


def load_system(name: str) -> System:
    """A shipped machine by its name, or a user's own by the path of its file.

    Raises
    ------
    UserError
        There is none, or the file is not as it should be.
    """
    if name in system_names():
        return _parse(_shipped().joinpath(f"{name}.toml").read_text(encoding="utf-8"), name)
    path = Path(name)
    if not (path.suffix == ".toml" or path.exists()):
        near = difflib.get_close_matches(name, system_names(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(system_names())};"
        raise UserError(f"system {name} is unknown; {hint} your own: the path of a TOML file (docs/platforms)")
    try:
        return _parse(path.read_text(encoding="utf-8"), name)
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{name}: not a text file in UTF-8") from None


def described(system: System) -> str:
    """One line for people: name, what it is, nodes and partitions."""
    each = f"{system.gpus} x {system.gpu}, " if system.gpus else ""
    partitions = ", ".join(partition.name for partition in system.partitions)
    return f"{system.name:<16} {system.title}: {each}{system.cores} cores a node ({system.architecture}); {partitions}"


def _shipped() -> Any:
    return files("mpinas.slurm").joinpath("systems")


def _parse(text: str, name: str) -> System:
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name}: not valid TOML: {error}") from None
    if "name" in tree:
        raise UserError(f"{name}: leave the key name out: a machine is named by its file")
    try:
        system = msgspec.convert({**tree, "name": name}, System)
    except msgspec.ValidationError as error:
        what, _, at = str(error).partition(" - at `$")
        where = at.rstrip("`").lstrip(".")
        if "matching regex" in what:
            what = "has characters that cannot stand in a job script there"
        raise UserError(f"{name}: {where}{': ' if where else ''}{what[0].lower()}{what[1:]}") from None
    _check(system)
    return system


def _check(system: System) -> None:
    """Raise UserError where values do not fit each other."""
    if not system.gpus and not 0 < system.cores_per_rank <= system.cores:
        raise UserError(
            f"{system.name}: a machine without GPUs needs cores_per_rank, from 1 to its {system.cores} cores a node"
        )
    if system.gpus >= system.cores:
        raise UserError(
            f"{system.name}: gpus = {system.gpus} and cores = {system.cores}: every GPU's rank and the coordinator "
            "need a core of their own"
        )
    names = [partition.name for partition in system.partitions]
    if len(set(names)) < len(names):
        raise UserError(f"{system.name}: partitions: {', '.join(names)}: name each once")
    for partition in system.partitions:
        if partition.nodes_max is not None and partition.nodes_max < partition.nodes_min:
            raise UserError(f"{system.name}: partition {partition.name}: nodes_max is below nodes_min")
        try:
            parse_duration(partition.time_max or "1")
        except ValueError as error:
            raise UserError(f"{system.name}: partition {partition.name}: time_max: {error}") from None
    for line in system.modules:
        if re.search(r"\\\Z", line):
            raise UserError(f"{system.name}: modules: a line must not end in a backslash")
