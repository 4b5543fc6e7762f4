"""How a job starts child processes: they are no MPI ranks, and signals that are meant for ranks are not for them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

#: Variables by which MPI and Slurm tell a process that it is a rank; a child that kept them could act as one.
_LAUNCHER_PREFIXES = (
    "OMPI_",
    "PMIX_",
    "PMI_",
    "PMI2_",
    "PRTE_",
    "SLURM_",
    "MPI_",
    "MPICH_",
    "I_MPI_",
    "HYDRA_",
    "HOROVOD_",
)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment for a child that must not take itself for an MPI rank."""
    return {
        name: value for name, value in environment.items() if not name.startswith(_LAUNCHER_PREFIXES) and name != "PMI"
    }


#: By which Slurm asks every process of a step to end, children too: rank 0 alone decides what follows.
_WISHES = frozenset({signal.SIGUSR2, signal.SIGTERM, signal.SIGINT})


@contextmanager
def deaf_to_wishes() -> Iterator[None]:
    """What is started meanwhile never gets a signal that asks a job to end: it ends by its pipe, or by SIGKILL.

    Blocked signals stay blocked over exec; one that comes for this process meanwhile comes afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WISHES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Let the kernel (Linux) kill this process when `parent`, whose child it is, dies; at once if it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the job is gone")
