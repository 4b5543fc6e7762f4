"""Every job script that we show is one that a Slurm configured like its machine would run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cluster.configuration import Node, Partition
from cluster.slurm import Slurm

from mpinas.slurm.system import System, load_system, system_names

EXAMPLES = sorted((Path(__file__).parents[2] / "jobscripts").iterdir())
#: How many nodes a machine has for which we know no number.
NODES = 64


def machine_like(system: System) -> Slurm:
    """A Slurm that is configured like this machine, without its nodes."""
    count = max(partition.nodes_max or max(partition.nodes_min, NODES) for partition in system.partitions)
    threads = 2 if system.nomultithread else 1
    memory_gb = system.memory_gb or 64
    nodes = [Node(f"node[1-{count}]", system.cores, system.gpus, 1024 * memory_gb, threads)]
    partitions = [
        Partition(each.name, [nodes[0].name], False, each.nodes_min, each.nodes_max, each.time_max or "INFINITE")
        for each in system.partitions
    ]
    if (rank_0 := system.coordinator) is not None:
        memory_gb = max(rank_0.memory_gb, 64)
        nodes.append(Node("cpu[1-4]", rank_0.cores, memory_mb=1024 * memory_gb, threads_per_core=threads))
        partitions.append(Partition(rank_0.partition, ["cpu[1-4]"]))
    return Slurm.pretended(nodes, partitions)


def more(option: str, text: str) -> str:
    """The script, asking for one more of something where the trainers' nodes are asked for."""
    before, found, after = text.rpartition(f"#SBATCH --{option}")
    number = re.match(r"\d+", after)
    assert found
    assert number
    return f"{before}{found}{int(number[0]) + 1}{after[number.end() :]}"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_a_slurm_like_the_machine_takes_it_and_nothing_larger(slurm_here, example, tmp_path):
    text = example.read_text()
    made_by = re.search(r"^# Made by: mpinas jobscript (\S+) ", text, re.MULTILINE)
    assert made_by
    system = load_system(made_by[1])
    slurm = machine_like(system)
    try:

        def verdict(text: str) -> tuple[int, str]:
            script = tmp_path / "job.sh"
            script.write_text(text)
            done = slurm.run("sbatch", "--test-only", str(script), cwd=tmp_path, check=False)
            return done.returncode, done.stdout + done.stderr

        code, said = verdict(text)
        assert code == 0, said
        assert re.search(r"Job \d+ to start at", said)
        for option in ("cpus-per-task=", *(["gres=gpu:"] if system.gpus else [])):
            code, said = verdict(more(option, text))
            assert code == 1, said
            assert "allocation failure: Requested node configuration is not available" in said
    finally:
        slurm.close()


def test_there_is_one_for_every_system():
    text = "".join(example.read_text() for example in EXAMPLES)
    assert set(re.findall(r"^# Made by: mpinas jobscript (\S+) ", text, re.MULTILINE)) == set(system_names())
