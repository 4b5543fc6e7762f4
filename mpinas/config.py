"""The experiment file: one typed tree, read once, unknown keys refused, the defaults that were used written out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import tomli_w
import tomllib
from msgspec import Meta

from mpinas import plugins
from mpinas.errors import UserError
from mpinas.files import write_whole

Positive = Annotated[int, Meta(ge=1)]
Seed = Annotated[int, Meta(ge=0, lt=2**31)]


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the numbers that scan lines are labelled with; networks give (value - offset) / scale."""

    name: Annotated[str, Meta(min_length=1, max_length=60)]
    scale: Annotated[float, Meta(gt=0)] = 1.0
    offset: float = 0.0
    #: For people to read; "" for a number without one.
    unit: Annotated[str, Meta(max_length=20)] = ""
    #: Column of the labels; where no target names one, all columns in the order of the targets.
    column: Annotated[int, Meta(ge=0)] | msgspec.UnsetType = msgspec.UNSET


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[task] What is learned, from which files."""

    name: str
    #: Files or folders with labelled recordings; relative to the experiment file. Not for tasks that ship their data.
    train: tuple[str, ...] = ()
    #: Files or folders that the final front is judged on; none: no test error.
    test: tuple[str, ...] = ()
    #: Frames of a window: what the baseline sees, and the most that a candidate may ask for.
    frames: Annotated[int, Meta(ge=1, le=1024)] = 16
    #: Windows cut from each training line.
    windows_per_line: Positive = 1
    #: Share of the training layers held out, chosen by seed once for the run.
    validation_fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    #: The human-designed network to beat, by name; "": that of the space or the task.
    baseline: str = ""
    #: Keys of a task from outside: docs/extending.md.
    options: dict[str, Any] = {}
    #: Of "lpbf", as the keys below: the dataset of a layer that holds a row of numbers for each scan line.
    labels: Annotated[str, Meta(min_length=1)] = "laser_params"
    #: What a network is to learn of them.
    targets: Annotated[tuple[Target, ...], Meta(min_length=1)] = (
        Target(name="speed", scale=900.0, unit="mm/s"),
        Target(name="power", scale=215.0, unit="W"),
    )
    #: Side of the square around the brightest pixel that a network sees, in pixels.
    crop: Annotated[int, Meta(ge=7, le=1024)] = 41
    #: A frame whose brightest pixel is below this was taken with the laser off; 0: none was.
    lit: Annotated[int, Meta(ge=0, le=255)] = 100


class Search(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[search] How candidates are found."""

    #: How many candidates to evaluate, the human-designed baseline among them.
    evaluations: Annotated[int, Meta(ge=2, le=100_000_000)] = 64
    seed: Seed = 0
    space: str = "cnn3d"
    #: "scratch": train every candidate; "supernet": judge each by weights that all share, train the front on;
    #: "warm": begin each with the shared weights. docs/running.md.
    strategy: Literal["scratch", "supernet", "warm"] = "scratch"
    #: Precisions that a candidate may run in: a gene of that name, unless there is only fp32.
    precision: Annotated[tuple[Literal["fp32", "fp16", "int8"], ...], Meta(min_length=1)] = ("fp32",)
    #: By what rule genomes are proposed: docs/search.md.
    algorithm: Literal["surrogate", "nsga2", "nsga3", "regularized-evolution", "random"] = "surrogate"
    population: Annotated[int, Meta(ge=2)] = 16
    #: Budgets in epochs below training.epochs, ascending: who is among the best after one goes on to the next.
    rungs: tuple[Positive, ...] = ()
    #: Begin with these: run folders (their fronts) or JSON files with a list of genomes, relative to the file; genomes.
    start: tuple[str | dict[str, str | int | float | bool], ...] = ()
    #: How often, in all, members of the front are trained, from other seeds; their error is the mean.
    repeats: Annotated[int, Meta(ge=1, le=100)] = 1
    #: Train so many of the front again at the end, from several seeds, and report mean and deviation.
    finalists: Annotated[int, Meta(ge=0, le=1000)] = 0
    finalist_seeds: Annotated[int, Meta(ge=1, le=100)] = 3
    #: End when so many evaluations in a row brought nobody to the front; 0: never.
    patience: Annotated[int, Meta(ge=0)] = 0
    #: End when a member of the front keeps all of these: {error = 0.1, latency_s = 0.001}.
    target: dict[str, Annotated[float, Meta(gt=0)]] = {}
    #: Begin nothing new in a job after so many hours; 0: no limit.
    max_hours: Annotated[float, Meta(ge=0)] = 0.0
    #: Rejected and failed candidates are replaced until this many were proposed; 0: ten times the evaluations.
    proposals_max: Annotated[int, Meta(ge=0)] = 0
    #: Fewer choices for some genes of the space: frames = [8, 16].
    genes: dict[str, Annotated[tuple[str | int | float | bool, ...], Meta(min_length=1)]] = {}
    #: Hard upper limits on what is measured: latency_s, size_bytes, parameters, p90_s, p99_s …
    limits: dict[str, Annotated[float, Meta(gt=0)]] = {}


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[training] How a candidate is trained."""

    #: Trainer ranks that train one candidate together, while there are candidates for all.
    group_size: Positive = 1
    #: Ranks that may train one together when there are fewer; 0: as many as the batch is enough for.
    group_size_max: Annotated[int, Meta(ge=0)] = 0
    epochs: Positive = 10
    #: Of the whole group, not of one rank.
    batch_size: Annotated[int, Meta(ge=2)] = 32
    #: Whom candidates learn from, too, as their gene `distillation` says: "baseline", "supernet" (its largest subnet)
    #: or an ONNX file of mpinas; "": nobody.
    teacher: str = ""
    #: "auto": a GPU where this rank sees one.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    #: CPU threads of one trainer; 0: the cores this rank may use, shared among the trainers of the node.
    threads: Annotated[int, Meta(ge=0)] = 0
    #: At the end of an epoch a training is put down, to go on from if the job dies, when the last time is so long ago.
    checkpoint_seconds: Annotated[float, Meta(ge=0)] = 30.0
    #: A rank that gives no sign of life for so long ends the job.
    stall_seconds: Annotated[float, Meta(ge=10)] = 60.0
    #: A rank that lives, and is at work without getting on for so long (as in a driver that hangs), does as well.
    hang_seconds: Annotated[float, Meta(ge=10)] = 3600.0


class Supernet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[supernet] How the weights that all subnets share are trained; for search.strategy "supernet" and "warm"."""

    epochs: Positive = 60
    #: Subnets of one step: the largest, the smallest, the others at random.
    subnets: Annotated[int, Meta(ge=2, le=64)] = 4
    learning_rate: Annotated[float, Meta(gt=0)] = 2e-3
    weight_decay: Annotated[float, Meta(ge=0)] = 0.01
    #: Mirror training samples.
    flips: bool = False


#: Of exporters where nobody says how many: each takes 400 MB of memory.
EXPORTERS_MAX = 4
#: Of exporters altogether.
EXPORTERS_LIMIT = 256


class Edge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[edge] Where latencies come from."""

    #: "local": relay and device agent are started beside the job; else the connection file of a relay.
    bridge: str = "local"
    #: Secret key file of this job, for a relay that is not local.
    key: str = ""
    #: Names of the device profiles that every candidate is measured on; "any" alone: whatever device is there.
    devices: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=120)], ...], Meta(min_length=1)] = ("any",)
    #: With several devices: one latency objective for "each", or that of the "worst".
    combine: Literal["each", "worst"] = "each"
    #: Use latencies as the device's reference model says they usually are, where it says so.
    normalise: bool = False
    #: "fp16": the device may compute in half precision, if it can.
    precision: Literal["model", "fp16"] = "model"
    #: At least so many timed runs: 64 are enough for p90, 662 for p99, at 99% confidence.
    samples: Annotated[int, Meta(ge=64, le=100_000)] = 64
    #: CPU threads the model may use on the device.
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    #: Timed runs of one measurement stop after so long.
    max_seconds: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    #: A trained model is accepted if its error on the device differs by no more than this share from the network's.
    quality_tolerance: Annotated[float, Meta(ge=0, le=1)] = 0.02
    #: At the end, with all searched and trained, the job waits so long for a device that is away.
    answer_seconds: Annotated[float, Meta(ge=0)] = 600.0
    #: Trainers wait so long for a slow device; then a candidate goes by predicted latencies until it is measured.
    patience_seconds: Annotated[float, Meta(ge=0)] = 5.0
    #: Processes beside the coordinator that write models for the device; 0: one for each of its cores, 4 at most.
    exporters: Annotated[int, Meta(ge=0, le=EXPORTERS_LIMIT)] = 0

    def exporters_on(self, cores: int) -> int:
        """How many there are where the coordinator may use so many cores."""
        return self.exporters or min(EXPORTERS_MAX, cores)


class Experiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole experiment file."""

    task: Task
    search: Search = Search()
    training: Training = Training()
    supernet: Supernet = Supernet()
    edge: Edge = Edge()

    @property
    def needs_supernet(self) -> bool:
        """Are shared weights to be trained?"""
        return self.search.strategy != "scratch" or self.training.teacher == "supernet"

    def added_genes(self) -> dict[str, tuple[str | float, ...]]:
        """Genes beyond those of the space: of how a network is trained and run."""
        added: dict[str, tuple[str | float, ...]] = {}
        if self.search.precision != ("fp32",):
            added["precision"] = self.search.precision
        if self.training.teacher:
            added["distillation"] = DISTILLATION
        return added


#: Share of the loss that is the distance from the teacher's outputs.
DISTILLATION = (0.0, 0.5, 0.9)
#: What a limit may be set on: what is known of a candidate before it is trained, and its error.
LIMITED = ("latency_s", "p50_s", "p90_s", "p95_s", "p99_s", "mean_s", "load_s", "peak_memory_bytes", "size_bytes",
           "parameters", "error")  # fmt: skip
_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "task": Task, "search": Search, "training": Training, "supernet": Supernet, "edge": Edge,
}  # fmt: skip
#: What a resumed run may not change, because what was evaluated already would not compare.
_FIXED = (
    "task",
    "search.seed",
    "search.space",
    "search.population",
    "search.genes",
    "search.algorithm",
    "search.strategy",
    "search.precision",
    "search.rungs",
    "training.epochs",
    "training.batch_size",
    "training.teacher",
    "supernet",
    "search.limits",
    "edge.devices",
    "edge.combine",
    "edge.threads",
    "edge.normalise",
    "edge.precision",
)


def read_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read `path`, apply `section.key=value` overrides, check everything.

    Paths in the file are relative to the file, those in overrides to the current folder; both come back absolute.

    Raises
    ------
    UserError
        Anything about the file that is not as it should be.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such experiment file; `mpinas init` writes one, commented") from None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read: {why}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    _absolute_paths(tree, path.resolve().parent)
    for override in overrides:
        _override(tree, override)
    return _checked(tree, f"{path} and the command line" if overrides else str(path))


def write_experiment(experiment: Experiment, path: Path) -> None:
    """Write the whole tree, defaults included."""
    write_whole(path, tomli_w.dumps(msgspec.to_builtins(experiment)).encode())


def check_resumable(before: Experiment, now: Experiment) -> None:
    """Refuse a resumed run whose candidates would not compare with those evaluated already."""
    old, new = msgspec.to_builtins(before), msgspec.to_builtins(now)
    for key in _FIXED:
        was, is_ = old, new
        for part in key.split("."):
            was, is_ = was[part], is_[part]
        if was != is_:
            where, was, is_ = _differing(key, was, is_)
            raise UserError(f"--resume: {where} was {was!r} and is now {is_!r}; start a new run folder to change it")


def _differing(key: str, was: Any, is_: Any) -> tuple[str, Any, Any]:
    """The first of the values in a tree that is another now, by its key."""
    while isinstance(was, dict) and isinstance(is_, dict):
        name = next(name for name in {**was, **is_} if was.get(name) != is_.get(name))
        key, was, is_ = f"{key}.{name}", was.get(name), is_.get(name)
    return key, was, is_


def _checked(tree: dict[str, Any], where: str) -> Experiment:
    for name, section in tree.items():
        _known(name, _SECTIONS, f"{where}: section [{name}]")
        if not isinstance(section, dict):
            raise UserError(f"{where}: {name} must be a section, written [{name}]")
        if name == "edge" and "profile" in section and "devices" not in section:
            section["devices"] = [section.pop("profile")]  # so said before a search could have several
        for key in section:
            _known(key, _SECTIONS[name].__struct_fields__, f"{where}: {name}.{key}")
    if "task" not in tree or "name" not in tree["task"]:
        raise UserError(f'{where}: task.name is missing; write name = "lpbf", or another task\'s, under [task]')
    try:
        experiment = msgspec.convert(tree, Experiment)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {_in_words(tree, error)}") from None
    for name in experiment.search.limits:
        _known(name, LIMITED, f"{where}: search.limits.{name}")
    _check_search(experiment, where)
    _check_devices(experiment.edge, where)
    if experiment.training.batch_size < 2 * experiment.training.group_size:
        raise UserError(
            f"{where}: training.batch_size = {experiment.training.batch_size} gives some rank of a group of "
            f"{experiment.training.group_size} under 2 samples; make it {2 * experiment.training.group_size} or more"
        )
    return experiment


def _in_words(tree: dict[str, Any], error: msgspec.ValidationError) -> str:
    """Which key is wrong, and how; where few values are right, which."""
    what, _, at = str(error).rpartition(" - at `$.")
    section, _, key = at.rstrip("`").partition(".")
    table, some, rest = key.partition("[...]")
    kinds = get_type_hints(_SECTIONS[section], include_extras=True)
    if some and table in kinds:  # msgspec says only which table it is in
        key = f"{table}.{_culprit(tree[section][table], kinds[table])}{rest}"
    kind = kinds.get(key.partition("[")[0])
    while kind is not None and get_origin(kind) is not Literal:  # one of them, or a tuple of some
        kind = next(iter(get_args(kind)), None)
    wrong = what.removeprefix("Invalid enum value ")
    if wrong != what and kind is not None:
        return f"{section}.{key}: {wrong} is unknown; known are {', '.join(get_args(kind))}"
    return f"{section}.{key}: {what[0].lower()}{what[1:]}"


def _culprit(table: dict[str, Any], kind: Any) -> str:
    """The key of a table whose value is wrong."""
    for key, value in table.items():
        try:
            msgspec.convert({key: value}, kind)
        except msgspec.ValidationError:
            return key
    return "..."


def _check_search(experiment: Experiment, where: str) -> None:
    rungs, epochs = experiment.search.rungs, experiment.training.epochs
    if list(rungs) != sorted(set(rungs)) or any(rung >= epochs for rung in rungs):
        raise UserError(
            f"{where}: search.rungs = {list(rungs)}: write budgets that ascend, all below training.epochs = {epochs}"
        )
    latencies = ["latency_s", *(f"latency_s@{device}" for device in experiment.edge.devices)]
    for name in experiment.search.target:
        _known(name, ["error", *latencies], f"{where}: search.target.{name}")
    if len(set(experiment.search.precision)) < len(experiment.search.precision):
        raise UserError(f"{where}: search.precision = {list(experiment.search.precision)}: name each once")
    training = experiment.training
    if training.teacher not in ("", "baseline", "supernet") and not training.teacher.endswith(".onnx"):
        raise UserError(
            f'{where}: training.teacher = {training.teacher!r}: write "baseline", "supernet" or an ONNX file\'s path'
        )
    if experiment.search.space == "compressed" and training.teacher != "baseline":
        raise UserError(f'{where}: search.space = "compressed" is for `mpinas compress EXPERIMENT`, with another space')
    if 0 < training.group_size_max < training.group_size:
        raise UserError(
            f"{where}: training.group_size_max = {training.group_size_max} is below training.group_size = "
            f"{training.group_size}; leave it out, or make it larger"
        )
    if 2 * training.group_size_max > training.batch_size:
        raise UserError(
            f"{where}: training.group_size_max = {training.group_size_max} would give some rank under 2 samples of a "
            f"batch of {training.batch_size}; make it {training.batch_size // 2} or less"
        )


def _check_devices(edge: Edge, where: str) -> None:
    """A device that nobody has heard of yet is no error: it may come later."""
    devices = edge.devices
    said = f"{where}: edge.devices = {list(devices)}"
    if len(set(devices)) < len(devices):
        raise UserError(f"{said}: a device is named twice; name each once")
    if "any" in devices and len(devices) > 1:
        raise UserError(f'{said}: "any" stands for whatever device is there; leave it out, or name nothing else')
    if edge.bridge == "local" and not set(devices) <= {"any", "local"}:
        raise UserError(
            f'{said}: the local bridge has one device, "local"; name a relay\'s connection file as edge.bridge'
        )


def _known(name: str, known: Any, what: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise UserError(f"{what} is unknown; {hint}")


def _override(tree: dict[str, Any], text: str) -> None:
    """Apply one `section.key=value`; the value is TOML, or a bare string."""
    key, equals, raw = text.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) < 2 or not all(parts):
        raise UserError(f"--set {text}: write section.key=value, as in --set search.evaluations=24")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    table = tree
    for part in parts[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {text}: {part} is no section")
        table = inner
    table[parts[-1]] = value
    _absolute_paths({parts[0]: table} if len(parts) == 2 else {}, Path.cwd())


def _absolute_paths(tree: dict[str, Any], folder: Path) -> None:
    """Make paths absolute; leave anything of a wrong type for the check that follows."""
    task, edge = tree.get("task"), tree.get("edge")
    if isinstance(task, dict):
        for key in ("name", "baseline"):
            if isinstance(task.get(key), str):
                task[key] = plugins.absolute(task[key], folder)
        for key in ("train", "test"):
            value = [task[key]] if isinstance(task.get(key), str) else task.get(key)
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                task[key] = [str(folder / item) for item in value]
    search = tree.get("search")
    if isinstance(search, dict):
        if isinstance(search.get("space"), str):
            search["space"] = plugins.absolute(search["space"], folder)
        start = [search["start"]] if isinstance(search.get("start"), str) else search.get("start")
        if isinstance(start, list):
            search["start"] = [str(folder / item) if isinstance(item, str) else item for item in start]
    training = tree.get("training")
    if isinstance(training, dict) and str(training.get("teacher", "")).endswith(".onnx"):
        training["teacher"] = str(folder / training["teacher"])
    if isinstance(edge, dict):
        for key in ("bridge", "key"):
            if isinstance(edge.get(key), str) and edge[key] not in ("local", ""):
                edge[key] = str(folder / edge[key])


TEMPLATE = """\
# An experiment of mpinas. Run it:  mpirun --oversubscribe -n 3 python -m mpinas search experiment.toml --run runs/first
# Keys that are left out take the default shown here after the #.

[task]
name = "lpbf"                # laser speed and power from melt pool frames; others, and your own: docs/extending.md
train = ["data/train.hdf5"]  # files or folders, relative to this file; `mpinas data simulate` writes one
test = ["data/test.hdf5"]    # what the final front is judged on; leave out for no test error
frames = 16                  # frames of a window: what the baseline sees, and the most a candidate may ask for
# windows_per_line = 1       # windows cut from each training line
# validation_fraction = 0.2  # share of whole layers held out, chosen by search.seed
# baseline = ""              # the human-designed network to beat; "": the space's or the task's
# labels = "laser_params"    # dataset with a row of numbers for each scan line; other recordings: docs/data.md
# targets = [{name = "speed", scale = 900.0, unit = "mm/s"},   # learn (value - offset) / scale of these columns
#            {name = "power", scale = 215.0, unit = "W"}]
# crop = 41                  # side of the square around the brightest pixel, in pixels
# lit = 100                  # frames with no pixel of so many counts are dark: laser off; 0: none is

[search]
evaluations = 64             # candidates to evaluate, the human-designed baseline among them
seed = 0
# space = "cnn3d"            # or "swin3d" (as published, 224 x 224: for GPUs), "swin3d-free"; see `mpinas space show`
# strategy = "scratch"       # or "supernet": judge all by shared weights, train the front; "warm": begin with them
# precision = ["fp32"]       # in which a candidate may run: ["fp32", "fp16", "int8"]
# algorithm = "surrogate"    # or "nsga2", "nsga3", "regularized-evolution", "random"
# population = 16            # parents of the genetic search
# rungs = []                 # smaller budgets, in epochs: [2, 5]; the best after each go on, up to training.epochs
# start = []                 # begin with these: run folders (their fronts) or JSON files with a list of genomes
# repeats = 1                # train members of the front so often, from other seeds; their error is the mean
# finalists = 0              # train so many of the front again at the end, with all ranks …
# finalist_seeds = 3         # … from so many seeds; results show mean and deviation on the test file
# patience = 0               # end when so many evaluations in a row brought nobody to the front
# max_hours = 0.0            # begin nothing new in a job after so long
# proposals_max = 0          # rejected and failed candidates are replaced up to this many; 0: 10 x evaluations

# [search.genes]             # fewer choices for some genes of the space
# frames = [8, 16]

[search.limits]              # hard limits on what the device measures; what breaks one is never trained
# latency_s = 0.002
# size_bytes = 4_000_000

# [search.target]            # end when a member of the front keeps all of these
# error = 0.1

[training]
group_size = 1               # trainer ranks that train one candidate together (Horovod), while there is work for all
# group_size_max = 0         # ranks that train the last ones together; 0: as many as the batch is enough for
epochs = 10
batch_size = 32              # of the whole group
# teacher = ""               # "baseline", "supernet" or an ONNX file: candidates may learn from it (gene distillation)
# device = "auto"            # "auto", "cpu" or "cuda"
# threads = 0                # CPU threads of one trainer; 0: its share of the node's cores
# checkpoint_seconds = 30    # write a training's checkpoint at the end of an epoch, when the last is so old
# stall_seconds = 60         # a rank that gives no sign of life for so long ends the job
# hang_seconds = 3600        # a rank that is at work and takes no training step for so long does, too

# [supernet]                 # for strategy "supernet" and "warm", and teacher = "supernet"
# epochs = 60
# subnets = 4                # of one step: the largest, the smallest, the others at random
# learning_rate = 0.002
# weight_decay = 0.01
# flips = false              # mirror training samples

[edge]
# bridge = "local"           # or the connection file of a relay: "BRIDGE.json"
# key = ""                   # this job's secret key file, for a relay that is not local
# devices = ["any"]          # device profiles that every candidate is measured on: ["agx-orin", "cpu"]
# combine = "each"           # several devices: one latency objective for "each", or the "worst" of them as one
# normalise = false          # latencies as the device's reference model says they usually are
# precision = "model"        # or "fp16", if the device can
# samples = 64               # timed runs at least; 64 are enough for p90, 662 for p99
# threads = 1                # CPU threads the model may use on the device
# max_seconds = 30.0         # timed runs of one measurement stop after so long
# quality_tolerance = 0.02   # share by which a trained model's error on the device may differ from the network's
# answer_seconds = 600.0     # at the end, wait so long for a device that is away
# patience_seconds = 5.0     # trainers wait so long for a slow device; then latencies are predicted until measured
# exporters = 0              # processes that write models for the device; 0: one for each core of rank 0, 4 at most
"""
