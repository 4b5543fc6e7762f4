"""One search as one MPI job, from the experiment file to the front. Every rank runs `run`."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mpinas
from mpinas.children import child_environment
from mpinas.config import Experiment, check_resumable, read_experiment, write_experiment
from mpinas.coordination import events as ev
from mpinas.coordination.ledger import BASELINE, ENDED, Ledger
from mpinas.coordination.lifecycle import State
from mpinas.coordination.messages import Evaluate, Order, Report, TrainSupernet
from mpinas.coordination.plan import Plan
from mpinas.errors import UserError
from mpinas.history.journal import Journal
from mpinas.history.lock import RunLock
from mpinas.history.run_folder import RunFolder, plan_of
from mpinas.history.warm_start import start_genomes
from mpinas.parallel import world as mpi
from mpinas.parallel.layout import describe, largest_group, trainers_of
from mpinas.parallel.standstill import Post
from mpinas.parallel.stop_signals import StopSignals
from mpinas.parallel.watch import Watch
from mpinas.priority import RANKS_SESSION_NICENESS, TRAINER_NICENESS, nice_process, session_made_nice
from mpinas.slurm.walltime import ask_scontrol, job_end

if TYPE_CHECKING:  # torch is imported only once it is clear that there is something to do
    from mpinas.coordination.coordinator import Coordinator
    from mpinas.parallel.means import Means
    from mpinas.search import SearchSpace
    from mpinas.tasks import Task


#: At its end rank 0 closes files and ends its children so soon, or a file system or a child hangs (seconds).
LET_GO_S = 120.0


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the command line says."""

    experiment: Path | None = None
    run: Path | None = None
    resume: bool = False
    overrides: tuple[str, ...] = ()
    #: Compress the baseline by these methods, and search nothing.
    compress: tuple[str, ...] = ()
    #: The job is ended so many seconds after its start; None: when Slurm says, if it does.
    time_limit_s: float | None = None


def run(arguments: Arguments) -> bool:
    """The job, on this rank; returns when the whole job is done: True if the search is at its end.

    Raises
    ------
    UserError, LeaveAlike
        UserError on rank 0 and LeaveAlike on the others, where the user can mend it; no run folder was left behind.
    """
    began = time.time()
    StopSignals.hold()
    world, post = mpi.start(), Post()
    with mpi.whole_or_nothing(world, post):
        ended = _run(world, arguments, post, began)
        if world.Get_rank() == 0:
            mpi.note_code(0 if ended else mpi.UNFINISHED)
        return ended
    raise AssertionError("unreachable: the job was ended")


def _run(world: Any, arguments: Arguments, post: Post, began: float) -> bool:
    rank, size = world.Get_rank(), world.Get_size()
    experiment, path = mpi.on_rank_0(world, lambda: read_arguments(arguments))
    post.folder = str(path)
    trainers, plan = trainers_of(size), plan_of(experiment)
    if rank == 0:
        _say(describe(size, plan.group_size, plan.group_size_max))

    from mpinas.models import check_baseline, check_supernet
    from mpinas.parallel.means import baseline_of, gather_means, networks_of, save_calibration, space_of
    from mpinas.tasks import make_task

    task = mpi.on_all_ranks(world, lambda: make_task(experiment.task, experiment.search.seed))
    search = experiment.search
    space = mpi.on_all_ranks(world, lambda: space_of(task, experiment))
    mpi.on_rank_0(world, lambda: check_baseline(networks_of(task, experiment), baseline_of(task, experiment)))
    if experiment.needs_supernet:
        mpi.on_all_ranks(world, lambda: check_supernet(networks_of(task, experiment), space))
    plan = mpi.on_rank_0(world, lambda: plan_of(experiment, start_genomes(search.start, space)))
    if size > 1:
        from mpinas.parallel import horovod

        mpi.on_all_ranks(world, horovod.check)
    trains = rank in trainers
    position = _position_on_node(world, trains)
    largest = largest_group(len(trainers), plan.group_size, plan.group_size_max)
    control, ended = world.Dup(), False
    training = experiment.training
    watch = Watch(world, training.stall_seconds, training.hang_seconds, RunFolder(path).journal_file, post)
    with ExitStack() as stack:
        desk: list[Desk] = []
        # before the data are read: exporters and device take seconds to start, too
        mpi.on_rank_0(
            world,
            lambda: desk.append(
                stack.enter_context(Desk(path, experiment, arguments.resume, task, _end_of_job(arguments, began)))
            ),
        )

        def get_ready() -> Means | None:
            if rank == 0:  # before anybody counts its signs of life: a long journal takes minutes
                desk[0].take_up(plan, space)
            return gather_means(task, space, experiment, position, largest) if trains else None

        means = mpi.on_all_ranks(world, get_ready)
        if rank == trainers[0] and means is not None:
            save_calibration(means, experiment, RunFolder(path))
            if training.batch_size > (count := len(means.samples[0])):
                _say(f"training.batch_size = {training.batch_size} is more than the {count} training samples: "
                     "every epoch is a single step")  # fmt: skip
        world.Barrier()
        if rank == 0:
            _say(f"task {task.name}, space {search.space} of {len(space):.1e} genomes; data read and ranks "
                 f"ready after {time.time() - began:.1f} s")  # fmt: skip
        # What rank 0 holds is let go of before the job is ended: the lock, and the journal, which may find the disk
        # full only now. The others do not listen for rank 0 any more, so that it looks after itself.
        with mpi.abort_on_user_error(world), stack.pop_all() as held:
            if rank == 0:
                ended = desk[0].coordinate(control, trainers, means, watch)
                with mpi.in_time(world, LET_GO_S, "letting go of journal, device and exporters"):
                    held.close()
            elif means is not None:
                _train(world, control, RunFolder(path), experiment, means, watch)
    mpi.on_rank_0(world, lambda: desk[0].refuse_hopeless())  # noqa: PLW0108 - the desk is rank 0's
    return bool(world.bcast(ended, root=0))


def _end_of_job(arguments: Arguments, began: float) -> float | None:
    """When this job is ended, as it was told or as Slurm says (seconds since the epoch); the sooner of the two."""
    known = [job_end(os.environ, ask_scontrol)]
    if arguments.time_limit_s is not None:
        known.append(began + arguments.time_limit_s)
    return min((end for end in known if end is not None), default=None)


def read_arguments(arguments: Arguments) -> tuple[Experiment, Path]:
    """The experiment to run and the folder to run it in. Raises UserError."""
    if arguments.resume:
        if arguments.run is None:
            raise UserError("--resume needs the folder to go on with: add --run DIR")
        folder = RunFolder.existing(arguments.run)
        experiment = read_experiment(arguments.experiment or folder.experiment_file, arguments.overrides)
        check_resumable(folder.experiment(), experiment)
        return experiment, arguments.run
    source = arguments.experiment or Path("experiment.toml")
    # whatever budgets a search has, compression has none
    overrides = (*arguments.overrides, "search.rungs=[]") if arguments.compress else arguments.overrides
    experiment = read_experiment(source, overrides)
    if arguments.compress:
        experiment = _compressed(experiment, arguments.compress)
    path = arguments.run or Path("runs") / f"{source.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    RunFolder.check_new(path)
    return experiment, path


def _compressed(experiment: Experiment, methods: tuple[str, ...]) -> Experiment:
    """The experiment that compresses this one's human-designed network. Raises UserError."""
    from mpinas.models import check_compressible
    from mpinas.parallel.means import baseline_of, networks_of
    from mpinas.tasks import make_task
    from mpinas.training.compression import compressed

    task = make_task(experiment.task, experiment.search.seed)
    changed = compressed(experiment, methods, str(baseline_of(task, experiment)["baseline"]))
    if {"prune", "distill"} & set(methods):
        check_compressible(networks_of(task, changed))
    return changed


def _position_on_node(world: Any, trains: bool) -> tuple[int, int]:
    """(this trainer's place among those of its node, how many of them share its cores)."""
    from mpi4py import MPI

    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    peers = node.Split(color=int(trains))
    cores = peers.allgather(frozenset(os.sched_getaffinity(0)))
    place = peers.Get_rank()
    peers.Free()
    node.Free()
    return place, sum(not cores[place].isdisjoint(others) for others in cores)


def _train(
    world: Any, control: Any, folder: RunFolder, experiment: Experiment, means: Means, watch: Watch
) -> None:  # fmt: skip
    """A trainer rank's part of the job."""
    from mpinas.parallel.group import Grouping
    from mpinas.parallel.means import trainer_of
    from mpinas.parallel.trainer_loop import Crew, run_trainer

    StopSignals.ignore()
    if experiment.edge.bridge == "local":
        nice_process(TRAINER_NICENESS)
    crew = Crew(world.Get_rank(), trainer_of(means, experiment, folder), folder, Grouping(world), watch.post)
    with watch.over_rank_0():
        run_trainer(crew, control)


class Desk:
    """All that rank 0 holds open while the job runs: folder, journal, device, exporters. A context manager."""

    def __init__(
        self, path: Path, experiment: Experiment, resume: bool, task: Task, ends_at: float | None
    ) -> None:  # fmt: skip
        self.experiment = experiment
        self._ends_at = ends_at
        self.task = task
        self._path = path
        self._resume = resume
        self._begun = False
        self._stack = ExitStack()

    def __enter__(self) -> Desk:
        """Raises UserError, and then leaves no new folder behind."""
        from mpinas.training.exporter import Exporters

        self.simulated = self.task.simulated
        self.folder = RunFolder.existing(self._path) if self._resume else RunFolder.create(self._path, self.experiment)
        try:
            lock = RunLock.acquire(self.folder.lock_file)
        except UserError:
            if not self.folder.lock_file.exists():  # else the folder is another job's by now
                self._leave_nothing()
            raise
        try:
            self.lock = self._stack.enter_context(lock)
            self._stack.callback(self._leave_nothing)  # while the lock is held: else another job might have begun on it
            self.lock.keep_beating()
            self.journal = self._stack.enter_context(closing(Journal(self.folder.journal_file)))
            if self._resume:
                self.folder.prepare()
            self._stack.callback(self.folder.clear_exports)  # once the exporters are gone
            if self.experiment.edge.bridge == "local":
                self._stack.enter_context(session_made_nice(RANKS_SESSION_NICENESS))
            self.device = self._stack.enter_context(closing(self._open_edge()))
            self.n_exporters = self.experiment.edge.exporters_on(len(os.sched_getaffinity(0)))
            log, environment = self.folder.logs / "exporter.log", child_environment(os.environ)
            self.exporters = self._stack.enter_context(closing(Exporters(self.n_exporters, log, environment)))
        except BaseException:
            self._stack.close()
            raise
        return self

    def _leave_nothing(self) -> None:
        """No new folder stays behind of a job that has not begun."""
        if not self._begun and not self._resume:
            shutil.rmtree(self._path, ignore_errors=True)

    def _open_edge(self) -> Any:
        from edge_bridge.wire.quantities import Settings
        from mpinas.edge.client import open_edge

        edge = self.experiment.edge
        settings = Settings(
            samples=edge.samples,
            threads=edge.threads,
            max_seconds=edge.max_seconds,
            precision="fp16" if edge.precision == "fp16" else "model",
        )
        return open_edge(
            edge.bridge,
            settings=settings,
            log_folder=self.folder.logs,
            key_file=edge.key or None,
            devices=edge.devices,
            normalise=edge.normalise,
        )

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def take_up(self, plan: Plan, space: SearchSpace) -> None:
        """Read where earlier jobs have left the run, and keep of their files what is of use. Raises UserError."""
        from mpinas.parallel.means import coordinator_of
        from mpinas.training.weights import check_shared

        plan = replace(plan, exporters=self.n_exporters)
        self.coordinator = coordinator_of(self.task, self.experiment, plan, space)
        self.folder.check_journal(begun=bool(self.journal.history))  # else all its models would be in the way
        self.coordinator.replay(self.journal.history)
        ledger, search = self.coordinator.ledger, self.experiment.search
        if len(ledger.evaluated) > search.evaluations < self.folder.experiment().search.evaluations:
            raise UserError(f"--resume: search.evaluations = {search.evaluations}, but {len(ledger.evaluated)} are "
                            "evaluated already: leave it as it was, or make it larger")  # fmt: skip
        self.folder.keep_only(ledger.kept(), _begun(ledger))
        if ledger.supernet.metrics:
            check_shared(self.folder.supernet_file)
        if plan.after_baseline and BASELINE in ledger.candidates and self.coordinator.agenda.went_all_the_way(BASELINE):
            check_shared(self.folder.weights_file(BASELINE))

    def coordinate(self, control: Any, trainers: tuple[int, ...], means: Means | None, watch: Watch) -> bool:
        """Run the search, to its end if there is time; True if it has come there. In a world of one, train as well."""
        from mpinas.parallel.channel import MpiChannel
        from mpinas.parallel.coordinator_loop import Shell, coordinate
        from mpinas.parallel.means import networks_of
        from mpinas.report.live import open_display

        self._begun = True
        if self._resume:  # only now: a run that cannot go on stays as the version has it that wrote it
            write_experiment(self.experiment, self.folder.experiment_file)
        coordinator, evaluations = self.coordinator, self.experiment.search.evaluations
        stop = StopSignals()
        if means is None:
            channel: Any = MpiChannel(control)
        else:
            channel = self._serial_channel(means, coordinator, stop, watch.post)
        networks = networks_of(self.task, self.experiment)
        shell = Shell(channel, self.device, self.exporters, self.folder, self.journal, self.lock, networks)
        begun = ev.Begun(mpinas.__version__, len(trainers), self.task.name, self.simulated, self._ends_at)
        ledger = coordinator.ledger
        with (
            watch.over_trainers(trainers) as pulse,
            closing(open_display(sys.stdout, evaluations, self.folder.logs / "search.log")) as display,
        ):
            coordinate(coordinator, shell, display, begun, stop, pulse)
        if ledger.finished is None:
            _say(f"to go on: start `mpinas search --resume --run {self._path}` as this job was started")
        _say(f"to see the results: mpinas results {self._path}")
        if ledger.stopped < ledger.trainers_expected:
            gone = [rank for rank, trainer in ledger.trainers.items() if not trainer.stopped]
            raise mpi.Stalled(f"told to go, {', '.join(f'rank {rank}' for rank in gone) or 'some ranks'} did not")
        return ledger.finished is not None

    def refuse_hopeless(self) -> None:
        """Raise UserError where the search is at its end because what everything else rests on has failed."""
        if self.coordinator.ledger.finished is not None and (why := self.coordinator.agenda.hopeless()):
            raise UserError(f"{self._path}: {why}")

    def _serial_channel(self, means: Means, coordinator: Coordinator, stop: StopSignals, post: Post) -> Any:
        """Of a world of one: it looks at clock and signals while it trains, for nobody else does."""
        from mpinas.parallel.channel import SerialChannel
        from mpinas.parallel.group import Grouping
        from mpinas.parallel.means import trainer_of
        from mpinas.parallel.trainer_loop import Crew

        if self.experiment.edge.bridge == "local":
            nice_process(TRAINER_NICENESS)
        crew = Crew(0, trainer_of(means, self.experiment, self.folder), self.folder, Grouping(), post)

        def execute(order: Order, say: Callable[[Report], None]) -> None:
            # what cannot be put aside between two epochs is left at once
            pauses = isinstance(order, Evaluate | TrainSupernet)
            crew.execute(order, say, (lambda: stop.at_once) if pauses else told_to_end, told_to_end)

        def told_to_end() -> bool:
            return bool(stop.caught or coordinator.time_over(time.time()))

        return SerialChannel(execute, crew.ready())


def _say(line: str) -> None:
    print(f"mpinas: {line}", flush=True)


def _begun(ledger: Ledger) -> set[int]:
    """Whose training an earlier job has left for this one to go on with."""
    last = ledger.terms.last_rung
    return {
        it.id
        for it in ledger.candidates.values()
        if it.state not in ENDED and it.attempts > 0
        if not (it.state is State.EVALUATED and it.rung == last)
    }
