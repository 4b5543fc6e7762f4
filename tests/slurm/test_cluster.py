"""The Slurm of the tests leaves nothing behind, however they end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster.machine import Machine
from cluster.slurm import Slurm, until

HERE = Path(__file__).parent
#: Start a Slurm with a job in it, and let somebody else end us.
HOLDER = """
import signal
from cluster.slurm import Slurm
slurm = Slurm.three_nodes()
slurm.run("sbatch", "--wrap", "sleep 1000", "--output=/dev/null")
print(slurm.folder, flush=True)
signal.pause()
"""


DAEMONS = ("munged", "slurmctld", "slurmd -N cpu1", "slurmd -N gpu2", "sleep 1000")


def processes_of(folder: Path) -> str:
    """Commands whose environment or arguments name the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if str(folder).encode() in command + (process / "environ").read_bytes():
                found.append(command.replace(b"\0", b" ").decode())
        except OSError:  # gone meanwhile
            continue
    return "\n".join(found)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_nothing_is_left_of_a_slurm_whose_tests_were_killed(slurm_here, how):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        folder = Path(holder.stdout.readline().strip())
        until(lambda: all(daemon in processes_of(folder) for daemon in DAEMONS), 60, "not all of them run")
        holder.send_signal(how)
        until(lambda: not processes_of(folder) and not folder.exists(), 60, f"something of {folder} is left")
    finally:
        holder.kill()
        holder.communicate()


def test_nothing_is_left_of_an_empty_machine(slurm_here):
    with Machine() as machine:
        assert machine.run("hostname").returncode == 0
    assert not machine.folder.exists()


def test_two_at_a_time_do_not_see_each_other(slurm_here, one_node):
    other = Slurm.one_node()
    try:
        for slurm in (one_node, other):
            assert slurm.run("srun", "printenv", "SLURM_CONF").stdout.strip() == f"{slurm.folder}/etc/slurm.conf"
    finally:
        other.close()
    assert not other.folder.exists()
