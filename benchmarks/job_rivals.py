"""The evaluations of a search, driven by others: one program, started by `mpirun` from `job.py`.

    mpirun -n 5 python -m mpi4py.futures benchmarks/job_rivals.py futures TASK.json
    mpirun -n 5 python benchmarks/job_rivals.py libensemble TASK.json

The task file says what to evaluate and where the answers go. Must not know how the search came to these candidates.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]


class Evaluation(msgspec.Struct, frozen=True):
    """One candidate to train."""

    candidate: int
    genome: dict[str, Any]
    seed: int


class Work(msgspec.Struct, frozen=True):
    """What to evaluate, in this order, by trainers that are nice by so much."""

    experiment: str
    answers: str
    nice: int
    evaluations: tuple[Evaluation, ...]


class Done(msgspec.Struct, frozen=True):
    """An evaluation's times on the clock of the machine, and its error; none if it failed."""

    candidate: int
    rank: int
    began_s: float
    ended_s: float
    error: float | None


class Worker:
    """A rank's means to train: the same as a trainer's of the search, in a group of one."""

    def __init__(self, work: Work, rank: int, trainers: int) -> None:
        from mpinas.config import read_experiment
        from mpinas.parallel.means import networks_of
        from mpinas.tasks import make_task
        from mpinas.training.candidate import Trainer
        from mpinas.training.devices import local_device
        from mpinas.training.heritage import Heritage

        experiment = read_experiment(Path(work.experiment))
        training = experiment.training
        task = make_task(experiment.task, experiment.search.seed)
        device = local_device(training.device, training.threads, rank - 1, trainers)
        heritage = Heritage(networks_of(task, experiment), device)
        self._trainer = Trainer(task, heritage, task.load(), task.load_test(), device, training.batch_size)
        self._epochs, self._folder, self._rank = training.epochs, Path(work.answers).parent / "models", rank
        os.nice(work.nice)

    def evaluate(self, each: Evaluation) -> Done:
        from mpinas.training.candidate import Files
        from mpinas.training.collectives import SerialCollectives
        from mpinas.training.loop import Callbacks
        from mpinas.training.recipe import Epochs

        began_s = time.time()
        error = None
        folder = self._folder / f"{each.candidate:05d}"
        try:
            metrics, _ = self._trainer.evaluate(
                SerialCollectives(),
                each.genome,
                each.seed,
                Epochs.whole(self._epochs),
                Files(folder / "weights.pt", folder / "checkpoint.pt"),
                Callbacks(),
            )
            error = metrics["error"]
        except Exception as failure:  # a candidate's outcome, as it is in the search
            print(f"candidate {each.candidate}: {type(failure).__name__}: {failure}", file=sys.stderr)
        return Done(each.candidate, self._rank, began_s, time.time(), error)


def main() -> None:
    driver, path = sys.argv[1:]
    work = msgspec.json.decode(Path(path).read_bytes(), type=Work)
    found = {"futures": by_futures, "libensemble": by_libensemble}[driver](work)
    if found is not None:
        Path(work.answers).write_bytes(msgspec.json.encode(found))


def by_futures(work: Work) -> list[Done]:
    """Rank 0 only: `python -m mpi4py.futures` makes the other ranks its pool."""
    import job_rivals  # under the name that the pool's ranks find it by
    from mpi4py.futures import MPIPoolExecutor

    with MPIPoolExecutor(initializer=job_rivals.be_ready, initargs=(work,)) as pool:
        pool.bootup(wait=True)
        return list(pool.map(job_rivals.evaluate_here, work.evaluations))


_workers: list[Worker] = []


def be_ready(work: Work) -> None:
    """On a rank of the pool, once."""
    from mpi4py import MPI

    _workers.append(Worker(work, MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size() - 1))


def evaluate_here(each: Evaluation) -> Done:
    """On a rank of the pool."""
    return _workers[0].evaluate(each)


def by_libensemble(work: Work) -> list[Done] | None:
    """Every rank calls this; rank 0 gives what was found. No generator: candidates go out in order, one at a time."""
    import numpy as np
    from libensemble.alloc_funcs.give_pregenerated_work import give_pregenerated_sim_work
    from libensemble.libE import libE
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    rank, size = world.Get_rank(), world.Get_size()
    worker = Worker(work, rank, size - 1) if rank else None
    if rank == 0:
        os.nice(work.nice)  # its manager polls without pause: at the workers' own level it takes least from them
    world.Barrier()

    def simulate(history: Any, persis_info: Any, sim_specs: Any, info: Any) -> Any:
        assert worker is not None
        done = worker.evaluate(work.evaluations[int(history["place"][0])])
        out = np.zeros(1, dtype=sim_specs["out"])
        out[0] = (done.rank, done.began_s, done.ended_s, np.nan if done.error is None else done.error)
        return out, persis_info

    count = len(work.evaluations)
    points = np.zeros(count, dtype=[("place", int), ("sim_id", int), ("sim_started", bool), ("sim_ended", bool)])
    points["place"] = points["sim_id"] = np.arange(count)  # (evaluations,)
    found, _, _ = libE(
        {"sim_f": simulate, "in": ["place"],
         "out": [("rank", int), ("began_s", float), ("ended_s", float), ("error", float)]},
        {},
        {"sim_max": count},
        alloc_specs={"alloc_f": give_pregenerated_sim_work, "out": []},
        libE_specs={"comms": "mpi", "mpi_comm": world, "disable_log_files": True, "save_H_and_persis_on_abort": False,
                    "save_H_on_completion": False, "disable_resource_manager": True},
        H0=points,
    )  # fmt: skip
    if rank:
        return None
    return [
        Done(
            work.evaluations[row["place"]].candidate, int(row["rank"]), float(row["began_s"]), float(row["ended_s"]),
            None if np.isnan(row["error"]) else float(row["error"]),
        )
        for row in found
    ]  # fmt: skip


if __name__ == "__main__":
    main()
