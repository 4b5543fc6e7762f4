"""`python -m mpinas.parallel.doctor`: one rank of `mpinas doctor`. It starts MPI, and says as JSON lines how that goes.

A child of what the launcher started, so that MPI may abort, hang or crash and the doctor has the last word. It judges
nothing. No collective of MPI is called before every rank has answered: one that is silent must not hold up the others.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mpinas.doctor.facts import Gpu, Horovod, Line, Mpi, NoMpi, RankFacts, Ranks, Step, Sum
from mpinas.doctor.folder_probe import existing_part, kind_here
from mpinas.doctor.judge_job import places
from mpinas.errors import UserError
from mpinas.parallel.world import check_launch, release_shared_memory

T = TypeVar("T")
Tell = Callable[[Line], None]
_FACTS, _SUM_ORDER, _SUMMED, _END = 1, 2, 3, 4
#: Between two looks whether a message has come.
_LOOK_S = 0.005


class Wish(msgspec.Struct, frozen=True):
    """What the doctor wants to know, as JSON on the command line."""

    #: Absolute path of the run folder; "" if it is not asked for.
    folder: str = ""
    try_horovod: bool = True
    #: Longest wait for the other ranks.
    limit_s: float = 60.0


class SumOrder(msgspec.Struct, frozen=True):
    """From rank 0 to a trainer: sum with these, you are the so-manieth trainer of your node; nobody: no sum."""

    members: tuple[int, ...]
    place: int = 0


def main() -> None:
    """One rank, from the start of MPI to its end."""
    wish = msgspec.json.decode(sys.argv[1], type=Wish)
    tell = _own_output()
    tell(Step("starting MPI"))
    # as in a search
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        tell(NoMpi(_in_short(error)))
        return
    world = MPI.COMM_WORLD
    levels = ("THREAD_SINGLE", "THREAD_FUNNELED", "THREAD_SERIALIZED", "THREAD_MULTIPLE")
    level = MPI.Query_thread()
    name = next((f"MPI_{it}" for it in levels if getattr(MPI, it) == level), str(level))
    size = world.Get_size()
    if size == 1:
        release_shared_memory()
    tell(Mpi(MPI.Get_library_version(), name, level >= MPI.THREAD_MULTIPLE, size, _launch_error(size)))
    tell(Step("importing torch and Horovod"))
    mine = _rank_facts(world.Get_rank(), MPI.Get_library_version(), wish)
    if world.Get_rank() == 0:
        _lead(world, mine, wish, tell)
    else:
        _follow(world, mine)


def _own_output() -> Tell:
    """Standard output for our lines alone; whatever a library prints goes to standard error."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def tell(line: Line) -> None:
        out.write(msgspec.json.encode(line) + b"\n")
        out.flush()

    return tell


def _launch_error(size: int) -> str:
    try:
        check_launch(os.environ, size)
    except UserError as error:
        return str(error)
    return ""


def _in_short(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


# facts of one rank


def _rank_facts(rank: int, library: str, wish: Wish) -> RankFacts:
    folder = existing_part(Path(wish.folder)) if wish.folder else None
    facts = RankFacts(
        rank=rank,
        host=platform.node(),
        pid=os.getpid(),
        python=platform.python_version(),
        mpi=library,
        cores=tuple(sorted(os.sched_getaffinity(0))),
        threads=os.environ.get("OMP_NUM_THREADS"),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        folder="" if folder is None else str(folder),
        folder_kind="" if folder is None else kind_here(folder),
    )
    return _with_torch(facts, wish.try_horovod)


def _with_torch(facts: RankFacts, with_horovod: bool) -> RankFacts:
    try:
        import torch
    except Exception as error:
        return msgspec.structs.replace(facts, torch_error=_in_short(error))
    facts = msgspec.structs.replace(
        facts, torch=str(torch.__version__), cuda=torch.version.cuda or torch.version.hip or "", gpus=_gpus(torch.cuda)
    )
    if not with_horovod:
        return facts
    try:
        import horovod
        import horovod.torch as hvd
    except Exception as error:
        return msgspec.structs.replace(facts, horovod_error=_in_short(error))
    built = Horovod(
        horovod.__version__, hvd.mpi_built(), bool(hvd.nccl_built()), hvd.cuda_built() or hvd.rocm_built(),
        hvd.gloo_built(),
    )  # fmt: skip
    return msgspec.structs.replace(facts, horovod=built)


def _gpus(cuda: Any) -> tuple[Gpu, ...]:
    if not cuda.is_available():
        return ()
    found = [cuda.get_device_properties(index) for index in range(cuda.device_count())]
    return tuple(Gpu(index, it.name, _uuid(it)) for index, it in enumerate(found))


def _uuid(properties: Any) -> str:
    """As `nvidia-smi -L` writes it; "" where this torch does not tell."""
    uuid = str(getattr(properties, "uuid", ""))
    return uuid if not uuid or uuid.startswith("GPU-") else f"GPU-{uuid}"


# rank 0 and the others


def _lead(world: Any, mine: RankFacts, wish: Wish, tell: Tell) -> None:
    others = range(1, world.Get_size())
    tell(Step("waiting for the other ranks"))
    facts, silent = _gather(world, _FACTS, set(others), wish.limit_s, RankFacts)
    found = tuple(sorted((mine, *facts.values()), key=lambda it: it.rank))
    tell(Ranks(found, silent))
    tell(Step("an allreduce of Horovod"))
    tell(_sum_of_others(world, found, silent, wish))
    for rank in facts:
        world.send(None, rank, _END)


def _sum_of_others(world: Any, found: tuple[RankFacts, ...], silent: tuple[int, ...], wish: Wish) -> Sum:
    members = tuple(it.rank for it in found if it.trains)
    if why_not := _why_no_sum(found, silent, wish):
        for rank in members:
            world.send(SumOrder(()), rank, _SUM_ORDER)
        return Sum((), why_not)
    where = places(found)
    for rank in members:
        world.send(SumOrder(members, where[rank][1]), rank, _SUM_ORDER)
    start_s = time.monotonic()
    answers, mute = _gather(world, _SUMMED, set(members), wish.limit_s, Sum)
    return Sum(
        members=members,
        device=next((it.device for it in answers.values()), ""),
        took_s=time.monotonic() - start_s,
        errors={rank: text for it in answers.values() for rank, text in it.errors.items()},
        silent=mute,
    )


def _why_no_sum(found: tuple[RankFacts, ...], silent: tuple[int, ...], wish: Wish) -> str:
    if len(found) + len(silent) == 1:
        return "only with several ranks: mpirun -n 3 python -m mpinas doctor"
    if silent:
        return "not all ranks are there"
    if not wish.try_horovod:
        return "not asked for"
    without = [it for it in found if it.horovod is None or not it.horovod.mpi]
    return f"rank {without[0].rank} has no Horovod with MPI" if without else ""


def _gather(
    world: Any, tag: int, ranks: set[int], limit_s: float, kind: type[T]
) -> tuple[dict[int, T], tuple[int, ...]]:
    """A message of each rank, and the ranks from which none came within the limit."""
    from mpi4py import MPI

    found: dict[int, T] = {}
    end_s = time.monotonic() + limit_s
    while len(found) < len(ranks) and time.monotonic() < end_s:
        status = MPI.Status()
        message = world.improbe(tag=tag, status=status)
        if message is None:
            time.sleep(_LOOK_S)
        else:
            found[status.Get_source()] = msgspec.json.decode(message.recv(), type=kind)
    return found, tuple(sorted(ranks - set(found)))


def _follow(world: Any, mine: RankFacts) -> None:
    world.send(msgspec.json.encode(mine), 0, _FACTS)
    order = world.recv(source=0, tag=_SUM_ORDER)
    if order.members:
        world.send(msgspec.json.encode(_sum(world, order)), 0, _SUMMED)
    world.recv(source=0, tag=_END)


def _sum(world: Any, order: SumOrder) -> Sum:
    """The sum of all members' ranks, as training makes it: on a communicator that rank 0 is no part of."""
    rank = world.Get_rank()
    try:
        import torch

        from mpinas.parallel.horovod import HorovodCollectives
        from mpinas.training.devices import local_device

        device = local_device("auto", 1, order.place, 1)
        everyone = world.Get_group()
        collectives = HorovodCollectives(world.Create_group(everyone.Incl(order.members), tag=_SUM_ORDER))
        collectives.open()
        total = collectives.sum(torch.tensor([float(rank), 1.0], device=device)).tolist()
        collectives.close()
    except Exception as error:
        return Sum(order.members, errors={rank: _in_short(error)})
    expected = [float(sum(order.members)), float(len(order.members))]
    if total != expected:
        return Sum(order.members, errors={rank: f"the sum is {total}, and {expected} is right"})
    return Sum(order.members, device=device.type)


if __name__ == "__main__":
    main()
