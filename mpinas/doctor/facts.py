"""What is found out about a machine and a job: plain values, as JSON lines on their way from a child process.

Knows nothing of how they are gathered (`gather`, `folder_probe`, `mpinas.parallel.doctor`) or judged (`judge_*`).
"""

from __future__ import annotations

import msgspec


class Gpu(msgspec.Struct, frozen=True):
    """A GPU as torch shows it to one process."""

    index: int
    name: str
    #: "" where torch does not tell.
    uuid: str


class Horovod(msgspec.Struct, frozen=True):
    """How the installed Horovod was built."""

    version: str
    mpi: bool
    nccl: bool
    cuda: bool
    gloo: bool


class RankFacts(msgspec.Struct, frozen=True):
    """One rank of the job."""

    rank: int
    host: str
    pid: int
    python: str
    mpi: str
    #: Cores that the rank may run on.
    cores: tuple[int, ...]
    #: OMP_NUM_THREADS and CUDA_VISIBLE_DEVICES; None where unset.
    threads: str | None = None
    visible: str | None = None
    gpus: tuple[Gpu, ...] = ()
    torch: str = ""
    #: CUDA (or ROCm) that torch was built for; "" for a CPU build.
    cuda: str = ""
    #: Why torch or Horovod cannot be imported; "" where they can.
    torch_error: str = ""
    horovod: Horovod | None = None
    horovod_error: str = ""
    #: How much of the run folder's path exists here; "" where none was asked for.
    folder: str = ""
    #: Type of the file system it is on.
    folder_kind: str = ""

    @property
    def trains(self) -> bool:
        """Rank 0 coordinates; `parallel.layout` lets it train as well where it is alone."""
        return self.rank > 0


# What the child process of `mpinas.parallel.doctor` says, in this order.


class Step(msgspec.Struct, frozen=True, tag="step"):
    """What is begun now: where the child dies or hangs, the last one is to blame."""

    what: str


class NoMpi(msgspec.Struct, frozen=True, tag="no-mpi"):
    """mpi4py cannot be imported."""

    error: str


class Mpi(msgspec.Struct, frozen=True, tag="mpi"):
    """MPI has started."""

    library: str
    thread_level: str
    multiple: bool
    size: int
    #: What `parallel.world.check_launch` has against it; "" where nothing.
    launch_error: str


class Ranks(msgspec.Struct, frozen=True, tag="ranks"):
    """All ranks, but for those that were silent until the limit."""

    ranks: tuple[RankFacts, ...]
    silent: tuple[int, ...]


class Sum(msgspec.Struct, frozen=True, tag="sum"):
    """A Horovod allreduce of the trainers, checked by value."""

    #: World ranks of the trainers; none if it was not tried, `why_not` then says why.
    members: tuple[int, ...]
    why_not: str = ""
    device: str = ""
    took_s: float = 0.0
    #: What went wrong, by rank.
    errors: dict[int, str] = {}
    silent: tuple[int, ...] = ()


Line = Step | NoMpi | Mpi | Ranks | Sum


class JobFacts(msgspec.Struct):
    """Everything that the child process of this rank said, and how it ended."""

    step: str = ""
    mpi: Mpi | None = None
    no_mpi: str = ""
    ranks: tuple[RankFacts, ...] = ()
    silent: tuple[int, ...] = ()
    sum: Sum | None = None
    #: It said all it had to say.
    whole: bool = False
    #: Exit code or minus its signal; None: it was given up at the limit.
    code: int | None = 0

    def take(self, line: Line) -> None:
        """One more line of the child."""
        match line:
            case Step(what=what):
                self.step = what
            case NoMpi(error=error):
                self.no_mpi, self.whole = error, True
            case Mpi():
                self.mpi = line
            case Ranks(ranks=ranks, silent=silent):
                self.ranks, self.silent = ranks, silent
            case Sum():
                self.sum, self.whole = line, True


class Trial(msgspec.Struct, frozen=True):
    """One thing that was tried on a file system."""

    took_s: float
    error: str = ""


class FolderFacts(msgspec.Struct, frozen=True):
    """The file system that a run folder would be on."""

    #: The part of the path that exists: what is tried is tried there.
    path: str
    kind: str
    free_bytes: int
    #: None where the file system does not count them.
    free_inodes: int | None
    #: Write, fsync, rename, read back.
    write: Trial
    lock: Trial
