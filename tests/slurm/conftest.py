"""A Slurm for the tests that want one: started once, ended with the session. Skipped where none can be started."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster.slurm import Slurm, why_no_slurm


@pytest.fixture(scope="session")
def slurm_here() -> None:
    """Skips the test where there is no Slurm."""
    if reason := why_no_slurm():
        pytest.skip(f"no Slurm can be started here: {reason}")


@pytest.fixture(scope="session")
def _one_node(slurm_here: None) -> Iterator[Slurm]:
    slurm = Slurm.one_node()
    yield slurm
    slurm.close()


@pytest.fixture(scope="session")
def _three_nodes(slurm_here: None) -> Iterator[Slurm]:
    slurm = Slurm.three_nodes()
    yield slurm
    slurm.close()


@pytest.fixture
def one_node(_one_node: Slurm) -> Iterator[Slurm]:
    """A Slurm of node1, with 4 pretended GPUs; without jobs, whatever the test before has left."""
    yield _one_node
    _one_node.clear()


@pytest.fixture
def three_nodes(_three_nodes: Slurm) -> Iterator[Slurm]:
    """A Slurm of cpu1, gpu1 and gpu2, whose links can be cut; without jobs, whatever the test before has left."""
    yield _three_nodes
    _three_nodes.clear()
