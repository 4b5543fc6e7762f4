"""What the configuration files of a small Slurm say. Pure text; knows nothing of processes or namespaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: All times are as short as Slurm bears, so that a test sees in seconds what takes minutes on a cluster.
#: cred_expire: a requeued job may not start before its old credential is void, 120 s as Slurm comes.
#: config_overrides: what the nodes are said to have counts, not what this machine has.
#: EnforcePartLimits: a job that its partition does not take is refused, not queued.
COMMON = """\
ClusterName=test
SlurmctldHost={controller}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
EnforcePartLimits=ALL
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
KillWait=20
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=30
MessageTimeout=10
JobRequeue=1
MailProg=/bin/true
"""


@dataclass(frozen=True, slots=True)
class Node:
    """A node, or many alike: `name` may be a Slurm list such as "gpu[1-2]"; `address` "" where no slurmd will run."""

    name: str
    cores: int
    gpus: int = 0
    memory_mb: int = 16384
    threads_per_core: int = 1
    address: str = ""

    def line(self) -> str:
        """Its line in slurm.conf."""
        gres = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        # a node in the cloud counts as free although nothing answers there: it would be started for a job
        where = f"NodeAddr={self.address} State=UNKNOWN" if self.address else "State=CLOUD"
        return (f"NodeName={self.name} Boards=1 SocketsPerBoard=1 CoresPerSocket={self.cores} "
                f"ThreadsPerCore={self.threads_per_core} RealMemory={self.memory_mb}{gres} {where}\n")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition, and what it lets a job have; `max_time` as Slurm writes it."""

    name: str
    nodes: Sequence[str]
    default: bool = False
    min_nodes: int = 1
    max_nodes: int | None = None
    max_time: str = "INFINITE"

    def line(self) -> str:
        """Its line in slurm.conf."""
        most = "UNLIMITED" if self.max_nodes is None else self.max_nodes
        return (f"PartitionName={self.name} Nodes={','.join(self.nodes)} Default={'YES' if self.default else 'NO'} "
                f"MinNodes={self.min_nodes} MaxNodes={most} MaxTime={self.max_time} State=UP\n")  # fmt: skip


def write(
    folder: Path, controller: tuple[str, str], nodes: Sequence[Node], partitions: Sequence[Partition], more: str = ""
) -> Path:
    """Write slurm.conf and what belongs to it into `folder`.

    Parameters
    ----------
    controller
        Host name and address of slurmctld.
    more
        Further lines of slurm.conf.

    Returns
    -------
    Path
        slurm.conf, for SLURM_CONF.
    """
    etc = folder / "etc"
    etc.mkdir()
    common = COMMON.format(folder=folder, controller=controller[0], address=controller[1])
    lines = [node.line() for node in nodes] + [partition.line() for partition in partitions]
    (etc / "slurm.conf").write_text(common + more + "".join(lines))
    # nvidia_gpu_env: CUDA_VISIBLE_DEVICES is set as for real ones
    gres = [
        f"NodeName={node.name} Name=gpu Flags=nvidia_gpu_env "
        + (f"File={folder}/dev/nvidia[0-{node.gpus - 1}]\n" if node.gpus > 1 else f"File={folder}/dev/nvidia0\n")
        for node in nodes
        if node.gpus
    ]
    (etc / "gres.conf").write_text("".join(gres))
    # even without cgroups slurmd 22.05 wants to know which; naming them skips a search that fails in containers
    (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    return etc / "slurm.conf"
