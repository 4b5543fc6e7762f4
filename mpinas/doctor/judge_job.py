"""What the ranks of one job need: facts in, findings out. Pure; must not look anything up itself."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from mpinas.doctor.facts import Gpu, Horovod, JobFacts, Mpi, RankFacts, Sum
from mpinas.doctor.finding import Finding
from mpinas.doctor.judge_machine import ending

#: Of ranks in a sentence.
_MANY = 8
#: File systems of one node.
_LOCAL = ("btrfs", "ext3", "ext4", "overlay", "tmpfs", "xfs")
_ANOTHER_MPI = "load the MPI module that mpi4py was built with, or build mpi4py anew (docs/platforms/, `make setup`)"


def mpi(job: JobFacts) -> list[Finding]:
    """Does MPI start, with threads, and do launcher and library know each other?"""
    if job.no_mpi:
        return [Finding("MPI", "fault", f"mpi4py: {job.no_mpi}", _ANOTHER_MPI)]
    if job.mpi is None:
        return [_not_started(job)]
    found = job.mpi
    rows = [Finding("MPI", "ok", library_name(found.library))]
    if found.multiple:
        rows.append(Finding("thread level", "ok", found.thread_level))
    else:
        rows.append(Finding("thread level", "fault", f"{found.thread_level}, and Horovod needs MPI_THREAD_MULTIPLE",
                            "unset MPI4PY_RC_THREAD_LEVEL, or load an MPI that has it (docs/platforms/)"))  # fmt: skip
    rows.append(_launcher(found, job))
    if not job.whole:
        rows.append(_cut_short(job))
    return rows


def _not_started(job: JobFacts) -> Finding:
    if job.code is None:
        return Finding("MPI", "fault", f"hangs: {job.step or 'Python does not start'}",
                       "see that all nodes have the same modules; or allow more with --limit")  # fmt: skip
    return Finding("MPI", "fault", f"{ending(job.code)}: {job.step or 'start of Python'}; see standard error",
                   _ANOTHER_MPI)  # fmt: skip


def _cut_short(job: JobFacts) -> Finding:
    how = "hangs" if job.code is None else ending(job.code)
    return Finding("job", "fault", f"{how}: {job.step}", "mend first what rank 0 says on standard error")


def _launcher(found: Mpi, job: JobFacts) -> Finding:
    if found.launch_error:
        what, _, advice = found.launch_error.partition(": launcher and MPI do not fit; ")
        return Finding("launcher", "fault", what, advice or "start with the launcher of the same MPI")
    if found.size == 1:
        return Finding("launcher", "ok", "a world of 1: under mpirun or srun this looks at all ranks")
    hosts = len({it.host for it in job.ranks})
    return Finding("launcher", "ok", f"{found.size} ranks on {hosts} node{'s' if hosts > 1 else ''}")


def library_name(library: str) -> str:
    """Name and version of what MPI_Get_library_version tells, which may be lines long."""
    return re.split(r"[,\n]", library.strip())[0].strip()[:60] or "an MPI without a name"


def mpirun(library: str, path: str, version: str) -> Finding:
    """`version`: what `mpirun --version` prints; `path` "" where there is none."""
    name = library_name(library)
    ours = re.match(r"Open MPI v?(\S+)", name)
    if not path:
        return Finding("mpirun", "not checked", "none on PATH: start jobs with srun")
    theirs = re.search(r"Open MPI\) (\S+)", version)
    if ours is None or (theirs is None and "Open MPI" in version):
        return Finding("mpirun", "not checked", f"{path}, for {name}")
    if theirs is None or theirs[1] != ours[1]:
        other = f"of Open MPI {theirs[1]}" if theirs else "of another MPI"
        return Finding("mpirun", "warning", f"{path} is {other}, mpi4py uses {name}",
                       "put the mpirun of that MPI first on PATH, or start with `srun --mpi=pmix`")  # fmt: skip
    return Finding("mpirun", "ok", f"{path}, of the same Open MPI")


def ranks(job: JobFacts) -> list[Finding]:
    """Are all there, and alike?"""
    rows = []
    if job.silent:
        rows.append(Finding("ranks", "fault", f"no word from {_named(job.silent)}",
                            "see standard error; is their node all right? Or allow more with --limit"))  # fmt: skip
    if job.ranks:
        rows += _alike(job.ranks)
    return rows


def _alike(found: Sequence[RankFacts]) -> list[Finding]:
    sights: dict[str, Callable[[RankFacts], str]] = {
        "Python": lambda it: it.python,
        "MPI": lambda it: library_name(it.mpi),
        "torch": lambda it: it.torch or it.torch_error,
        "Horovod": lambda it: it.horovod.version if it.horovod else it.horovod_error,
    }
    rows = []
    for name, of in sights.items():
        if len(values := Counter(map(of, found))) > 1:
            usual = values.most_common(1)[0][0]
            others = [it for it in found if of(it) != usual]
            text = f"{name} of {_named(it.rank for it in others)} is {of(others[0])}, of most {usual}"
            rows.append(Finding("ranks", "fault", text, "load the same modules and environment on all nodes"))
    rows += _shared_folder(found)
    return rows or ([Finding("ranks", "ok", "all answer and are alike")] if len(found) > 1 else [])


def _shared_folder(found: Sequence[RankFacts]) -> list[Finding]:
    advice = "put the run folder on a file system that all nodes share"
    here = found[0].folder
    if elsewhere := sorted({it.host for it in found if it.folder != here}):
        return [Finding("run folder", "fault", f"{here} is not there on {_some(elsewhere)}", advice)]
    # one node may lend its own disk to the others; they see it as nfs
    local = {it.host: it.folder_kind for it in found if it.folder_kind in _LOCAL}
    if len(local) > 1:
        return [Finding("run folder", "warning", f"{here} is on a disk of their own ({', '.join(set(local.values()))}) "
                        f"of {_some(sorted(local))}", advice)]  # fmt: skip
    return []


def horovod_build(rank: RankFacts) -> Finding:
    """How Horovod was built, and whether it fits the GPUs that this rank sees."""
    if rank.torch_error:
        return Finding("Horovod", "not checked", f"torch cannot be imported: {rank.torch_error}")
    if rank.horovod is None:
        return Finding("Horovod", "fault", rank.horovod_error,
                       "build it on this machine (docs/platforms/): `make setup` where there are no GPUs")  # fmt: skip
    found = _described(rank.horovod)
    if not rank.horovod.mpi:
        return Finding("Horovod", "fault", f"{found}: without MPI", "remove it and build it with HOROVOD_WITH_MPI=1")
    if rank.gpus and not (rank.horovod.nccl or rank.horovod.cuda):
        return Finding("Horovod", "warning", f"{found}: gradients of GPUs would go through the main memory",
                       "build it with HOROVOD_GPU_OPERATIONS=NCCL (docs/platforms/)")  # fmt: skip
    return Finding("Horovod", "ok", found)


def _described(built: Horovod) -> str:
    has = {"MPI": built.mpi, "NCCL": built.nccl, "CUDA": built.cuda, "gloo": built.gloo}
    return f"{built.version} with {', '.join(name for name, is_there in has.items() if is_there) or 'nothing'}"


def torch(rank: RankFacts) -> Finding:
    """Can it be imported?"""
    if rank.torch_error:
        return Finding("torch", "fault", rank.torch_error, "install torch anew, for this machine (docs/platforms/)")
    return Finding("torch", "ok", f"{rank.torch}, {f'for CUDA {rank.cuda}' if rank.cuda else 'a CPU build'}")


def allreduce(found: Sum | None) -> Finding:
    """A sum over the trainers: is it right?"""
    name = "allreduce"
    if found is None:
        return Finding(name, "not checked", "the job did not get so far")
    if found.why_not:
        return Finding(name, "not checked", found.why_not)
    if found.errors:
        rank, error = min(found.errors.items())
        return Finding(name, "fault", f"rank {rank}: {error}", "build Horovod anew with the MPI that runs here")
    if found.silent:
        return Finding(name, "fault", f"no answer from {_named(found.silent)}",
                       "see standard error; look at fabric and NCCL settings; or allow more with --limit")  # fmt: skip
    where = "on the CPU" if found.device == "cpu" else f"on {found.device}"
    text = f"{len(found.members)} trainer{'s' if len(found.members) > 1 else ''} without rank 0, {where}: right"
    return Finding(name, "ok", f"{text}, {found.took_s:.1f} s with the start")


# GPUs and cores


def places(found: Iterable[RankFacts]) -> dict[int, tuple[int, int]]:
    """(local rank, place among the trainers of its node) of each rank; -1 for one that does not train.

    As `parallel.job` counts them: by node, in the order of ranks.
    """
    seen: Counter[str] = Counter()
    trainers: Counter[str] = Counter()
    where = {}
    for it in sorted(found, key=lambda it: it.rank):
        where[it.rank] = (seen[it.host], trainers[it.host] if it.trains else -1)
        seen[it.host] += 1
        trainers[it.host] += it.trains
    return where


def gpu_of(rank: RankFacts, place: int) -> Gpu | None:
    """The GPU that this trainer would take, as `training.devices` deals them."""
    return rank.gpus[place % len(rank.gpus)] if rank.gpus and place >= 0 else None


def gpus(found: Sequence[RankFacts], nvidia_smi: str | None) -> Finding:
    """`nvidia_smi`: what `nvidia-smi -L` prints on rank 0's node; None where there is none, or it fails."""
    where = places(found)
    trainers = [it for it in found if it.trains] or list(found)
    taken = {it.rank: gpu_of(it, max(0, where[it.rank][1])) for it in trainers}
    if not any(taken.values()):
        return _no_gpu(trainers, 0 if nvidia_smi is None else nvidia_smi.count("UUID"))
    without = [rank for rank, gpu in taken.items() if gpu is None]
    if without:
        return Finding("GPUs", "fault", f"{_named(without)} sees no GPU, others do",
                       "give each trainer one: `mpinas jobscript`, and see `mpinas doctor --ranks`")  # fmt: skip
    if shared := _shared_gpu(trainers, taken):
        return shared
    names = Counter(gpu.name for gpu in taken.values() if gpu)
    return Finding("GPUs", "ok", ", ".join(f"{n} x {name}" for name, n in names.items()) + ", one for each trainer")


def _shared_gpu(trainers: Sequence[RankFacts], taken: Mapping[int, Gpu | None]) -> Finding | None:
    users: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for it in trainers:
        if gpu := taken[it.rank]:
            # without a UUID: by what the launcher shows this rank, and the index in it
            users[it.host, gpu.uuid or f"{it.visible} {gpu.index}"].append(it.rank)
    for (host, _), its in users.items():
        if len(its) > 1:
            return Finding("GPUs", "fault", f"{_named(its)} share a GPU of {host}",
                           "start one trainer for each GPU (`mpinas jobscript`); `mpinas doctor --ranks`")  # fmt: skip
    return None


def _no_gpu(trainers: Sequence[RankFacts], on_node: int) -> Finding:
    hidden = sorted({it.visible for it in trainers if it.visible is not None})
    if not on_node:
        return Finding("GPUs", "ok", "none: trainers use the CPU")
    there = f"{on_node} on this node, and trainers see none"
    if not any(it.cuda for it in trainers):
        return Finding("GPUs", "warning", f"{there}: torch is a CPU build", "install a torch built for CUDA")
    if hidden:
        return Finding("GPUs", "fault", f"{there}: CUDA_VISIBLE_DEVICES is {', '.join(map(repr, hidden))}",
                       "see that the job script gives each trainer its GPU (`mpinas jobscript`)")  # fmt: skip
    return Finding("GPUs", "fault", there, "see that the driver is new enough for this torch: `nvidia-smi`")


def cores(found: Sequence[RankFacts]) -> list[Finding]:
    """Are the ranks on cores of their own, and with no more threads than cores?"""
    rows = [row for row in (_one_core(found) or _few_cores(found), _threads(found)) if row is not None]
    if rows:
        return rows
    first = found[0]
    threads = "unset" if first.threads is None else first.threads
    return [Finding("cores", "ok", f"rank 0 on {span(first.cores)}; OMP_NUM_THREADS is {threads}")]


def _one_core(found: Sequence[RankFacts]) -> Finding | None:
    users: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for it in found:
        if len(it.cores) == 1:
            users[it.host, it.cores[0]].append(it.rank)
    for (host, core), ranks_ in users.items():
        if len(ranks_) > 1:
            return Finding("cores", "warning", f"{_named(ranks_)} share core {core} of {host}",
                           "bind each rank to cores of its own: `--cpus-per-task` and SRUN_CPUS_PER_TASK, or "
                           "`mpirun --map-by slot:PE=N --bind-to core`")  # fmt: skip
    return None


def _few_cores(found: Sequence[RankFacts]) -> Finding | None:
    trainers: defaultdict[str, list[RankFacts]] = defaultdict(list)
    for it in found:
        if it.trains:
            trainers[it.host].append(it)
    for host, its in trainers.items():
        n = len({core for it in its for core in it.cores})
        if len(its) > n:
            return Finding("cores", "warning", f"{len(its)} trainers on {_cores(n)} of {host}",
                           "start fewer ranks a node")  # fmt: skip
    return None


def _threads(found: Sequence[RankFacts]) -> Finding | None:
    many = [it for it in found if it.threads is not None and it.threads.isdigit() and int(it.threads) > len(it.cores)]
    if not many:
        return None
    others = f" (and {len(many) - 1} others alike)" if len(many) > 1 else ""
    first = many[0]
    text = f"OMP_NUM_THREADS={first.threads}, and rank {first.rank} has {_cores(len(first.cores))}{others}"
    return Finding("threads", "warning", text, "set it to the cores of a rank, or bind each rank to more cores")


def _cores(n: int) -> str:
    return f"{n} core{'s' if n != 1 else ''}"


def span(numbers: Iterable[int]) -> str:
    """Numbers as people write them: 0-3,8."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _named(ranks_: Iterable[int]) -> str:
    numbers = list(ranks_)
    return f"rank{'s' if len(numbers) > 1 else ''} {span(numbers)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MANY]) + (f" and {len(names) - _MANY} others" if len(names) > _MANY else "")
