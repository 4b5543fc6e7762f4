"""A running Slurm and its clients: daemons of Debian's packages on a `Machine`, jobs by `sbatch` and `srun`."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from cluster import configuration
from cluster.configuration import Node, Partition
from cluster.machine import Machine, connect, on_host, why_no_machine

T = TypeVar("T")

#: Address of the controller. Not 127.0.0.1: where there is no other network Slurm resolves no name.
HEAD = "10.79.0.1"

#: Where Debian's Slurm looks for PMIx, which has there the name `libpmix.so` only if one develops with it.
PMIX = Path(f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}/pmix2/lib")


def why_no_slurm() -> str | None:
    """Why no Slurm can be started here, or None."""
    for program in ("slurmctld", "slurmd", "munged", "sbatch", "srun"):
        if shutil.which(program) is None:
            return f"no `{program}` here (Debian: slurm-wlm and munge)"
    if not PMIX.exists():
        return f"no {PMIX} here (Debian: libpmix2)"
    return why_no_machine()


def until(condition: Callable[[], T], limit_s: float, what: str) -> T:
    """Wait until `condition` holds; what it returned. Raises AssertionError after `limit_s` seconds."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"waited {limit_s:.0f} s in vain: {what}")


class Slurm:
    """Daemons and clients. Use `one_node`, `three_nodes` or `pretended`; `close` ends everything, jobs too."""

    def __init__(
        self, machine: Machine, controller: tuple[str, str], nodes: Sequence[Node], partitions: Sequence[Partition],
        more: str = "",
    ) -> None:  # fmt: skip
        self.machine = machine
        self.folder = machine.folder
        for name in ("log", "munge", "state", "tmp", "dev"):
            (self.folder / name).mkdir(mode=0o755)
        for number in range(max(node.gpus for node in nodes)):
            null = os.makedev(1, 3)  # slurmd wants devices
            os.mknod(self.folder / "dev" / f"nvidia{number}", stat.S_IFCHR | 0o666, null)
        conf = configuration.write(self.folder, controller, nodes, partitions, more)
        self.env = client_environment(os.environ, self.folder, conf)
        self._complete_pmix()
        self._start_munge()
        self.machine.run("slurmctld", env=self.env)

    @classmethod
    def one_node(cls) -> Slurm:
        """One node, `node1`, of 8 cores and 4 GPUs that are none."""
        node = Node("node1", cores=8, gpus=4, memory_mb=16000, address=HEAD)
        partitions = [Partition("main", ["node1"], default=True)]
        return _started(lambda machine: cls(machine, ("node1", HEAD), [node], partitions), [node], hosts=False)

    @classmethod
    def three_nodes(cls) -> Slurm:
        """`cpu1`, and `gpu1` and `gpu2` with 4 GPUs each that are none: hosts at one switch, whose links can be cut."""
        nodes = [
            Node("cpu1", cores=32, address="10.79.0.11"),
            Node("gpu1", cores=32, gpus=4, address="10.79.0.12"),
            Node("gpu2", cores=32, gpus=4, address="10.79.0.13"),
        ]
        partitions = [
            Partition("cpu", ["cpu1"]),
            Partition("gpu", ["gpu1", "gpu2"]),
            Partition("all", ["cpu1", "gpu1", "gpu2"], default=True),
        ]
        return _started(lambda machine: cls(machine, ("head", HEAD), nodes, partitions), nodes, hosts=True)

    @classmethod
    def pretended(cls, nodes: Sequence[Node], partitions: Sequence[Partition]) -> Slurm:
        """A Slurm that has nodes by its configuration alone: for `sbatch --test-only`, which asks for no more."""
        free = [replace(node, address="") for node in nodes]
        more = "ResumeProgram=/bin/true\nSuspendProgram=/bin/true\nSuspendTime=3600\n"  # as nodes of a cloud want
        return _started(lambda machine: cls(machine, ("head", HEAD), free, partitions, more), [], hosts=False)

    def _complete_pmix(self) -> None:
        """Give PMIx the name that Slurm opens, in the eyes of the machine alone."""
        if not (PMIX / "libpmix.so").exists():
            own = shutil.copytree(PMIX, self.folder / "pmix", symlinks=True)
            (own / "libpmix.so").symlink_to("libpmix.so.2")
            self.machine.run("mount", "--bind", str(own), str(PMIX))

    def _start_munge(self) -> None:
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        options = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        names = [f"--{option}={self.folder}/munge/{name}" for option, name in options.items()]
        self.machine.run("munged", "--force", "--num-threads=2", *names)

    def _start_node(self, name: str, host: bool) -> None:
        """Start slurmd of node `name`, on a host of its own or beside the controller."""
        command = on_host(name, self.folder / "tmp", f"exec slurmd -N {name}") if host else ("slurmd", "-N", name)
        self.machine.run(*command, env=self.env)

    def _wait_for_nodes(self, names: Sequence[str], limit_s: float = 60.0) -> None:
        """Wait until these nodes can take jobs."""
        try:
            until(lambda: set(names) <= self._free_nodes(), limit_s, "not all nodes are up")
        except AssertionError as error:
            states = self.run("sinfo", "-N", "-l", check=False)
            raise AssertionError(f"{error}\n{states.stdout}{states.stderr}{self.logs()}") from None

    def _free_nodes(self) -> set[str]:
        lines = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False).stdout.splitlines()
        return {line.split()[0] for line in lines if line.split()[1] in ("idle", "mixed", "allocated")}

    def run(
        self, *command: str, cwd: Path | str = "/", timeout: float = 60.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a client to its end, as on a login node."""
        return self.machine.run(*command, cwd=cwd, env=self.env, timeout=timeout, check=check)

    def submit(self, script: Path, cwd: Path) -> int:
        """`sbatch` of a script in folder `cwd`; the number of the job."""
        return int(self.run("sbatch", "--parsable", str(script), cwd=cwd).stdout)

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol show job` says of a job (of the first part of a heterogeneous one)."""
        # on a busy machine munge closes the connection of a client that is slow to speak, which ends it by SIGPIPE
        answer = until(lambda: self._asked(number), 60, f"scontrol tells nothing of job {number}")
        return dict(re.findall(r"(\S+?)=(\S*)", answer.splitlines()[0]))

    def _asked(self, number: int) -> str:
        return self.run("scontrol", "--oneliner", "show", "job", str(number), check=False).stdout

    def wait(self, number: int, limit_s: float = 300.0) -> dict[str, str]:
        """Wait until a job has ended for good; what Slurm says of it then."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}

        def over() -> dict[str, str] | None:
            job = self.job(number)
            return job if job["JobState"] in ended else None

        try:
            return until(over, limit_s, f"job {number} does not end")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.job(number)}\n{self.logs()}") from None

    def clear(self) -> None:
        """End all jobs, and wait until their nodes are free."""

        def over() -> bool:
            left = self.run("squeue", "--noheader", "--format=%A", check=False)
            if jobs := left.stdout.split():
                self.run("scancel", *jobs, check=False)
            return left.returncode == 0 and not jobs

        until(over, 120, "jobs do not end")

    def cut(self, node: str) -> None:
        """Take the cable of a node off: nothing reaches it, and nobody is told."""
        self.machine.run("ip", "link", "set", f"to-{node}", "down")

    def mend(self, node: str) -> None:
        """Put the cable back."""
        self.machine.run("ip", "link", "set", f"to-{node}", "up")

    def logs(self) -> str:
        """The last of what the daemons said, for the message of a failed test."""
        return "\n".join(
            f"--- {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-25:])
            for file in sorted((self.folder / "log").iterdir())
        )

    def close(self) -> None:
        """End daemons and jobs."""
        self.machine.close()


def _started(make: Callable[[Machine], Slurm], nodes: Sequence[Node], hosts: bool) -> Slurm:
    machine = Machine()
    try:
        connect(machine, {node.name: node.address for node in nodes if hosts}, HEAD)
        machine.run("hostname", "head" if hosts or not nodes else nodes[0].name)
        slurm = make(machine)
        for node in nodes:
            slurm._start_node(node.name, hosts)
        slurm._wait_for_nodes([node.name for node in nodes])
        return slurm
    except BaseException:
        machine.close()
        raise


def client_environment(outside: Mapping[str, str], folder: Path, conf: Path) -> dict[str, str]:
    """The environment of a user on the login node: this one's, without what belongs to another MPI or Slurm job."""
    foreign = ("LD_LIBRARY_PATH", "SLURM", "OMPI_", "PMIX_", "PRTE_", "HOROVOD_", "CUDA_")
    own = {name: value for name, value in outside.items() if not name.startswith(foreign)}
    # programs of the environment of these tests first, as after `source .venv/bin/activate`
    path = f"{Path(sys.executable).parent}:{own.get('PATH', '')}:/usr/sbin:/sbin"
    more = {"SLURM_CONF": str(conf), "TMPDIR": str(folder / "tmp")}
    return {**own, **more, "PATH": path, "OMP_NUM_THREADS": "1"}
