"""The job script of a search on a machine: one pure function, `render(system, request) -> str`.

Starts nothing, reads no file, and must not know what a search does: only how it is called, and what its exit codes
mean (75: ended in peace and not finished; the same call with --resume goes on). Shell that is the same in every
script stands below as it will be there, but for words in @...@.
"""

from __future__ import annotations

import shlex

from mpinas.slurm.request import Allocation, Request, fit, job_name
from mpinas.slurm.system import Setting, System
from mpinas.slurm.walltime import format_duration

#: So long before the end Slurm tells the tasks (seconds): time to write checkpoints. It may tell them up to 60 s early.
WARN_S = 180
#: TERM so shortly before the end of the walltime is Slurm's, not a user's (seconds).
LATE_S = 60

_GPU_OF_TRAINER = """\
# Each trainer sees one GPU: where Slurm lists all of the node, one of its list. ParaStation may have given the task one
# already; then the list is all there are.
gpu_of_task='
  IFS=, read -ra gpus <<< "${CUDA_VISIBLE_DEVICES:-}"
  [ ${#gpus[@]} -ge @gpus@ ] || gpus=(@list@)
  export CUDA_VISIBLE_DEVICES=${gpus[SLURM_LOCALID]}
  exec "$@"
'"""

_GPU_OF_TASK = """\
# Each trainer sees one GPU: where Slurm lists all of the node, one of its list. ParaStation may have given the task one
# already; then the list is all there are. Rank 0 sees none; --gpus-per-task cannot say that, and wants one for it, too.
gpu_of_task='
  IFS=, read -ra gpus <<< "${CUDA_VISIBLE_DEVICES:-}"
  [ ${#gpus[@]} -ge @gpus@ ] || gpus=(@list@)
  place=$((SLURM_LOCALID - (SLURM_NODEID == 0)))    # rank 0 is the first task of the first node
  if ((place >= @gpus@ || (place < 0) != (SLURM_PROCID == 0))); then
    echo "mpinas: rank $SLURM_PROCID is task $SLURM_LOCALID of node $SLURM_NODEID: tasks are not placed" \\
      "as this script asks, and would share GPUs; try --layout heterogeneous" >&2
    ln -s 2 "$MPINAS_CODE_FILE" 2> /dev/null    # another may have said it
    exit 2
  fi
  export CUDA_VISIBLE_DEVICES=
  ((place < 0)) || CUDA_VISIBLE_DEVICES=${gpus[place]}
  exec "$@"
'"""

_ARGUMENTS = """\
search=(python -m mpinas search --run "$run"@edge@)
# The same script begins a run and goes on with it, after a requeue or when it is submitted again.
if [ -e "$run/experiment.toml" ]; then search+=(--resume); else search+=("$experiment"); fi"""

_BEFORE = """\
# Told to end by scancel (TERM): wait for the tasks, which were told, too, and do not requeue what was cancelled.
# TERM shortly before the end (seconds since the epoch; sbatch --time may say another than above) is that of the
# walltime: what was late for it goes on all the same.
ends=${SLURM_JOB_END_TIME:-}
if [ -z "$ends" ]; then    # Slurm before 23
  ends=$(SLURM_TIME_FORMAT=standard squeue --noheader --jobs "$SLURM_JOB_ID" --format %e 2>/dev/null | head -n 1)
  ends=$(date -d "${ends:-unknown}" +%s 2>/dev/null) || ends=$(($(date +%s) + @time@))
fi
told=
trap 'signalled=yes; (($(date +%s) >= ends - @late@)) || told=yes' TERM INT
trap signalled=yes USR2    # is for the tasks; should it come here as well, it ends nothing
# Ranks leave with code 75 one after the other: the first must not take the others with it (the default of some
# sites). But once one has left, the others have a minute: nothing hangs.
options=(@options@)
# What the first rank that ends the job wants it to end with, as the target of a link. srun has another code then: that
# of the ranks that were killed for it.
export MPINAS_CODE_FILE=$PWD/.mpinas-code-$SLURM_JOB_ID
rm -f "$MPINAS_CODE_FILE"
size() { stat -c %s "$run/journal.jsonl" 2>/dev/null || echo 0; }
before=$(size)
# srun has been seen to wait on though all its tasks had ended, and MPI may hang in ranks that leave it. Two minutes
# after a rank has said that it is over, srun is ended.
end_stuck_srun() {
  trap '' USR2
  for ((looks = 0; looks < 12;)); do
    sleep 10 &> /dev/null    # outlives this function, and is to hold no output open
    if [ -L "$MPINAS_CODE_FILE" ]; then ((looks += 1)); fi
  done
  echo "mpinas: the search has ended two minutes ago, and srun has not: ending it" >&2
  kill "$step"
  sleep 10 &> /dev/null
  kill -KILL "$step"
}"""

_SRUN = """\
@launcher@ "${options[@]}" --ntasks=@tasks@ "${search[@]}" &"""

_SRUN_EXTRA_TASK = """\
# The node of each rank: rank 0 and @gpus@ on the first, then @gpus@ on each, so that neighbours share a node.
hosts=$(mktemp) || exit 2
trap 'rm -f "$hosts"' EXIT
scontrol show hostnames "$SLURM_JOB_NODELIST" |
  awk -v gpus=@gpus@ '{ for (n = gpus + (NR == 1); n > 0; n--) print }' > "$hosts"
export SLURM_HOSTFILE=$hosts
unset SLURM_NTASKS_PER_NODE    # was for the allocation; the nodes have different numbers of tasks now
@launcher@ "${options[@]}" --ntasks=@tasks@ --distribution=arbitrary --gres=gpu:@gpus@ \\
  bash -c "$gpu_of_task" task "${search[@]}" &"""

_SRUN_HETEROGENEOUS = """\
# Both components are one MPI world, the coordinator's task its rank 0.
@launcher@ "${options[@]}" --het-group=0 --ntasks=1 --cpus-per-task=@coordinator_cores@ \\
  env CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=@coordinator_cores@ "${search[@]}" \\
  : "${options[@]}" --het-group=1 --ntasks=@tasks@ --cpus-per-task=@cores@ \\
  bash -c "$gpu_of_task" task "${search[@]}" &"""

_AFTER = """\
# In the background, because only a shell that waits heeds a signal as it comes: that ends the wait, so wait again.
step=$!
end_stuck_srun &
while signalled=; wait "$step"; code=$?; [ -n "$signalled" ]; do :; done
kill $! 2> /dev/null

# What a rank has said is the end, but for 75: ended in peace and not finished. 0: finished; 2: one line above says what
# to mend; 1: a fault of the program. Where none has said anything, some were killed, or their node went, and the code
# is any. What is not finished goes on from the journal.
: < "${MPINAS_CODE_FILE%/*}"    # NFS forgets what was not there when the folder is opened
if said=$(readlink "$MPINAS_CODE_FILE"); then code=$said; fi
rm -f "$MPINAS_CODE_FILE"
if [ "$code" -eq 0 ] || { [ "$code" -ne 75 ] && [ -n "$said" ]; }; then exit "$code"; fi
leave() { echo "mpinas: ended with code $code, $1; submit this script again to go on" >&2; exit "$code"; }
if [ -n "$told" ]; then leave "because it was told to"; fi
if [ "$code" -ne 75 ] && [ "$(size)" = "$before" ]; then leave "before it did anything"; fi
if [ "${SLURM_RESTART_COUNT:-0}" -ge "$max_requeues" ]; then leave "after $max_requeues requeues"; fi
echo "mpinas: ended with code $code; back into the queue, to go on"
# A heterogeneous job is requeued by the number of its first component. The requeue itself sends TERM, to scontrol too.
trap '' TERM
scontrol requeue "${SLURM_HET_JOB_ID:-$SLURM_JOB_ID}" && exit 0
leave "and Slurm did not requeue it\""""


def render(system: System, request: Request) -> str:
    """The text of the job script.

    Raises
    ------
    UserError
        The machine cannot run such a job, or the request is not well formed.
    """
    job = fit(system, request)
    sections = [
        _head(system, request, job),
        _options(system, request, job),
        _yours(system, request),
        _environment(system, job),
        *([_fill(_GPU_OF_TASK if job.extra_task else _GPU_OF_TRAINER, **_words(system, job))] if system.gpus else []),
        _fill(_ARGUMENTS, edge=_edge(request)),
        _launch(system, job),
        _AFTER,
    ]
    return "\n\n".join(sections) + "\n"


def _fill(shell: str, **words: str) -> str:
    for name, value in words.items():
        shell = shell.replace(f"@{name}@", value)
    return shell


def _words(system: System, job: Allocation) -> dict[str, str]:
    return {
        "gpus": str(system.gpus),
        "list": " ".join(str(gpu) for gpu in range(system.gpus)),
        "launcher": system.launcher,
        "tasks": str(job.tasks),
        "cores": str(job.cores_per_task),
        "coordinator_cores": str(job.coordinator.cores if job.coordinator else ""),
    }


def _head(system: System, request: Request, job: Allocation) -> str:
    each = f"a GPU each ({system.gpu})" if system.gpus else f"{job.cores_per_task} cores each"
    where = ", on a node without GPUs" if job.coordinator else ""
    nodes = "1 node" if job.nodes == 1 else f"{job.nodes} nodes"
    trainers = "1 trainer" if job.trainers == 1 else f"{job.trainers} trainers"
    lines = [
        "#!/bin/bash",
        f"# A search on {system.title}.",
        f"# {nodes}: {trainers} with {each}; rank 0 coordinates{where}.",
        f"# Made by: {shlex.join(_command(system, request, job))}",
        "# Submit it with sbatch, from the folder that the paths in it are relative to. Submitted again, it goes on.",
        *(f"# {note}" for note in system.notes),
    ]
    return "\n".join(lines)


def _command(system: System, request: Request, job: Allocation) -> list[str]:
    """The call of `mpinas jobscript` that makes this script."""
    options = [
        ("--nodes", str(request.nodes), ""),
        ("--time", format_duration(job.time_s), ""),
        ("--account", request.account, ""),
        ("--partition", request.partition, ""),
        ("--layout", request.layout, "extra-task"),
        ("--experiment", request.experiment, "experiment.toml"),
        ("--run", request.run, ""),
        ("--bridge", request.bridge, ""),
        ("--key", request.key, ""),
        ("--max-requeues", str(request.max_requeues), "20"),
    ]
    given = [word for option, value, default in options if value != default for word in (option, value)]
    return ["mpinas", "jobscript", system.name, *given]


def _sbatch(option: str, why: str = "") -> str:
    line = f"#SBATCH {option}"
    return f"{line:<40} # {why}" if why else line


def _options(system: System, request: Request, job: Allocation) -> str:
    """What Slurm is asked for; of a heterogeneous job, for each of its two components."""
    name = _sbatch(f"--job-name={job_name(request.run_folder)}", "`mpinas status` finds the job by it")
    whole_job = [
        name,
        _sbatch("--output=%x-%j.out", "in the folder that it is submitted from: Slurm makes no folders"),
        _sbatch("--open-mode=append", "a requeued job keeps its number, and what it said before"),
    ]
    warn_s = min(WARN_S, int(job.time_s) // 4)
    component = [
        *([f"#SBATCH --account={request.account}"] if request.account else []),
        f"#SBATCH --time={format_duration(job.time_s)}",
        _sbatch(f"--signal=USR2@{warn_s}", "before the end, to all tasks (B: would be this shell): save, then exit"),
        _sbatch("--requeue", "when a node fails, Slurm itself puts the job back into the queue"),
    ]
    if job.coordinator is None:
        return "\n".join([*whole_job, *component, *_trainer_nodes(system, job)])
    lines = [
        "# Component 0, the coordinator:",
        *whole_job,
        *component,
        *_coordinator_node(system, job),
        "#SBATCH hetjob",
        "# Component 1, the trainers; what is not said again is not asked for:",
        name,
        *component,
        *_trainer_nodes(system, job),
    ]
    return "\n".join(lines)


def _trainer_nodes(system: System, job: Allocation) -> list[str]:
    why = "one task a GPU" if system.gpus else "rank 0 is one of all these"
    if job.extra_task:
        why = "one a GPU, and room for rank 0 on the first node"
    lines = [
        f"#SBATCH --partition={job.partition.name}",
        f"#SBATCH --nodes={job.nodes}",
        _sbatch(f"--ntasks-per-node={job.tasks_per_node + job.extra_task}", why),
        _sbatch(f"--cpus-per-task={job.cores_per_task}", f"of the {system.cores} cores of a node"),
    ]
    if system.gpus:
        lines.append(_sbatch(f"--gres=gpu:{system.gpus}", "of each node"))
    if system.nomultithread:
        lines.append(_sbatch("--hint=nomultithread", "one hardware thread of each core"))
    if system.whole_nodes:
        lines.append(_sbatch("--exclusive", "a group is as fast as its slowest rank: no neighbours"))
        lines.append(_sbatch("--mem=0", "all memory of the nodes"))
    return lines


def _coordinator_node(system: System, job: Allocation) -> list[str]:
    rank_0 = job.coordinator
    if rank_0 is None:
        return []
    lines = [
        f"#SBATCH --partition={rank_0.partition}",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks=1",
        _sbatch(f"--cpus-per-task={rank_0.cores}", "for rank 0 and the processes that write models for the device"),
    ]
    if system.nomultithread:
        lines.append(_sbatch("--hint=nomultithread", "one hardware thread of each core"))
    if rank_0.memory_gb:
        lines.append(f"#SBATCH --mem={rank_0.memory_gb}G")
    return lines


def _yours(system: System, request: Request) -> str:
    """What the user may change, and must where it is a placeholder."""
    lines = ["# ---- yours to set"]
    for setting in system.placeholders:
        lines += [f"# {setting.why}", _assignment(setting)]
    lines += [
        "venv=.venv    # the environment with mpinas and Horovod, made with the modules below",
        f"experiment={shlex.quote(request.experiment)}",
        f"run={shlex.quote(request.run_folder)}",
        f"max_requeues={request.max_requeues}    # of one job; submit it again to go on after that",
        "# ----",
        ': "${SLURM_JOB_ID:?submit this script with sbatch}"',
    ]
    for setting in system.placeholders:
        said = shlex.quote(f"mpinas: {_assignment(setting)} is a placeholder: set it at the top of the job script")
        lines += [
            f'if [ "${setting.name}" = {shlex.quote(setting.value)} ]; then',
            f"  echo {said} >&2",
            "  exit 2",
            "fi",
        ]
    return "\n".join(lines)


def _assignment(setting: Setting) -> str:
    return f"{setting.name}={shlex.quote(setting.value)}"


def _environment(system: System, job: Allocation) -> str:
    lines = [
        *(system.modules or ["# module load ...    # what Horovod and mpi4py were built with, if that are modules"]),
        'source "$venv/bin/activate" || exit 2',
        "set -u    # only now: what modules and activate run may use variables that nobody set",
        "",
        "# Horovod's groups live on sub-communicators of MPI; with either of these set the job refuses to start.",
        "unset HOROVOD_CONTROLLER HOROVOD_CPU_OPERATIONS",
        "# Threads of a rank: its cores, or ranks take each other's.",
        f"export OMP_NUM_THREADS={job.cores_per_task}",
    ]
    if job.coordinator is None:
        lines += [
            "# srun does not inherit --cpus-per-task any more (Slurm 22.05); without it each task has one core.",
            f"export SRUN_CPUS_PER_TASK={job.cores_per_task}",
        ]
    for setting in system.environment:
        lines += [f"# {setting.why}", f"{'' if setting.export else '# '}export {_assignment(setting)}"]
    return "\n".join(lines)


def _edge(request: Request) -> str:
    """Arguments of the search that say where latencies come from, a blank in front."""
    words = ["--edge", request.bridge] if request.bridge else []
    words += ["--set", f"edge.key={request.key}"] if request.key else []
    return f" {shlex.join(words)}" if words else ""


def _launch(system: System, job: Allocation) -> str:
    options = ["--kill-on-bad-exit=0", "--wait=60"]
    if system.cpu_bind:
        options.append(f"--cpu-bind={system.cpu_bind}")
    call = _SRUN
    if job.coordinator is not None:
        call = _SRUN_HETEROGENEOUS
    elif job.extra_task:
        call = _SRUN_EXTRA_TASK
    time_s = int(job.time_s)
    before = _fill(_BEFORE, options=" ".join(options), time=str(time_s), late=str(min(LATE_S, time_s // 2)))
    return "\n".join([before, _fill(call, **_words(system, job))])
