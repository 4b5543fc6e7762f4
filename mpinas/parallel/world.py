"""Starts MPI, once and only for commands that compute; refuses to start where the job would be silently wrong."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from mpinas.errors import UserError, disk_error, disk_trouble
from mpinas.parallel.neighbours import explain, say
from mpinas.parallel.standstill import Post

T = TypeVar("T")


GOES_ON = "the job ends here, and `mpinas search --resume --run DIR` goes on"
#: Exit code of a job that has ended in peace before its search: it can go on.
UNFINISHED = 75


class Stalled(Exception):  # noqa: N818 - the outcome of the whole job
    """A rank gives no sign of life: the job ends, and can go on."""


class LeaveAlike(Exception):  # noqa: N818 - a way out, not an error
    """A user error was seen on some rank: all ranks leave with exit code 2, after rank 0 has said why."""


def start() -> Any:
    """COMM_WORLD of a job that may run.

    Raises
    ------
    UserError
        MPI is missing, too weak or was started in a way that cannot work. Every rank sees the same.
    """
    for name in ("HOROVOD_CONTROLLER", "HOROVOD_CPU_OPERATIONS"):
        if name in os.environ:
            raise UserError(
                f"{name}={os.environ[name]} is set: Horovod's groups would train alone and say nothing; unset it"
            )
    # more ranks than cores: without this an allreduce of 8 kB takes 100 ms instead of 0.1 ms
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    # a rank that hangs in a collective for so long fails its group; leaders write files meanwhile, so not too soon
    os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", "300")
    os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "1800")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"MPI cannot be used ({str(error).splitlines()[0]}): run `make setup`, or load the MPI module"
        ) from None
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise UserError(
            "this MPI gives no MPI_THREAD_MULTIPLE, which Horovod needs: unset MPI4PY_RC_THREAD_LEVEL, or use an MPI "
            "built with it (docs/running.md)"
        )
    world = MPI.COMM_WORLD
    check_launch(os.environ, world.Get_size())
    if world.Get_size() == 1:
        release_shared_memory()
    return world


def release_shared_memory() -> None:
    """Remove the names of what Open MPI's ranks share, for nobody is going to look for them any more.

    It leaves them behind where there is no launcher, and sometimes where one kills the ranks.
    """
    with suppress(OSError):
        mapped = Path("/proc/self/maps").read_text()
        for file in set(re.findall(r" (/.*/sm_segment\.\S+)$", mapped, re.MULTILINE)):
            with suppress(OSError):
                os.unlink(file)


def check_launch(environment: Mapping[str, str], world_size: int) -> None:
    """Refuse several tasks that each see a world of their own: they would all run the whole search.

    Raises
    ------
    UserError
        The launcher and the MPI library do not know each other.
    """
    if world_size > 1:
        return
    # SLURM_NTASKS alone is also set for a plain python inside sbatch; SLURM_STEP_NUM_TASKS comes from srun
    counts = {name: environment.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")}
    for name, count in counts.items():
        if count.isdigit() and int(count) > 1:
            raise UserError(
                f"{name}={count}, but MPI sees a world of 1: launcher and MPI do not fit; start with "
                "`srun --mpi=pmix`, or with the mpirun of the same MPI"
            )


@contextmanager
def whole_or_nothing(world: Any, post: Post) -> Iterator[None]:
    """An exception that nobody expected on one rank ends the whole job at once, never a hang."""
    try:
        yield
    except (UserError, LeaveAlike):
        raise
    except Stalled as error:
        end_job(world, f"{error}; {GOES_ON}")
    except KeyboardInterrupt:
        _abort(world, "mpinas: interrupted" if world.Get_rank() == 0 else "", 130)
    except BaseException as error:
        if (trouble := disk_trouble(error, post.folder)) is not None:
            _abort(world, f"mpinas: error: {disk_error(trouble)}", 2)
        who = f"rank {world.Get_rank()} on {socket.gethostname()} failed{post}"
        goes_on = "the job ends here. `mpinas search --resume --run DIR` goes on from the journal."
        _abort(world, f"mpinas: {who}; {goes_on}\n{traceback.format_exc()}", 1)


#: Asked to end the job, a launcher that is cut off may never answer.
ABORT_S = 10


def end_job(world: Any, message: str) -> None:
    """Say why and end the job; from any thread, and on a node that is cut off too."""
    _abort(world, f"mpinas: {message}", UNFINISHED)


@contextmanager
def abort_on_user_error(world: Any) -> Iterator[None]:
    """Once the ranks have parted, what the user can mend ends the whole job: the others cannot be asked to leave."""
    try:
        yield
    except UserError as error:
        _abort(world, f"mpinas: error: {error}", 2)


@contextmanager
def in_time(world: Any, limit_s: float, what: str) -> Iterator[None]:
    """What hangs in here for longer ends the job, which can go on: by then the other ranks may look after nobody."""
    message = f"rank {world.Get_rank()} on {socket.gethostname()}, {what}, has hung for {limit_s:g} s; {GOES_ON}"
    overdue = threading.Timer(limit_s, end_job, (world, message))
    overdue.daemon = True
    overdue.start()
    try:
        yield
    finally:
        overdue.cancel()


def _abort(world: Any, message: str, code: int) -> None:
    """Say why, and end all ranks."""
    signal.alarm(ABORT_S)  # ends this process even where nobody reads what it says, or Abort holds the interpreter
    with suppress(OSError):  # who started the job may be gone, and the other ends of the pipes with it
        sys.stdout.flush()
    if message:
        say(message)
    explain()
    note_code(code)  # MPI kills the others, and srun has the code of that
    release_shared_memory()
    if world.Get_size() == 1:
        os._exit(code)  # nobody else is to be told, and Open MPI would
    world.Abort(code)


def note_code(code: int) -> None:
    """Tell a job script what the job is to end with, whatever code srun has: the first rank that says it is right, for
    those after it end because it does.

    It is the target of a symbolic link with the name that the script has given: made at one stroke or not at all, by
    one alone, on full disks too, as long as they have inodes.
    """
    if (name := os.environ.get("MPINAS_CODE_FILE")) is not None:
        with suppress(OSError):
            os.symlink(str(code), name)


def on_rank_0(world: Any, act: Callable[[], T]) -> T:
    """Do `act` on rank 0 and give its result to all; a UserError there makes all ranks leave alike."""
    result: tuple[T | None, str | None] = (None, None)
    if world.Get_rank() == 0:
        try:
            result = (act(), None)
        except UserError as error:
            result = (None, str(error))
    value, message = world.bcast(result, root=0)
    if message is not None:
        _leave(world, message)
    return cast(T, value)


def on_all_ranks(world: Any, act: Callable[[], T]) -> T:
    """Do `act` on every rank; a UserError on any of them makes all leave alike, and rank 0 says the first."""
    value, message = None, None
    try:
        value = act()
    except UserError as error:
        message = str(error)
    messages = [m for m in world.allgather(message) if m is not None]
    if messages:
        _leave(world, messages[0])
    return cast(T, value)


def _leave(world: Any, message: str) -> None:
    release_shared_memory()
    if world.Get_rank() == 0:
        raise UserError(message)
    raise LeaveAlike
