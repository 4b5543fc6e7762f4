"""Which device and how many threads one trainer uses."""

from __future__ import annotations

import os

import torch

from mpinas.errors import UserError


def local_device(kind: str, threads: int, local_rank: int, sharing: int) -> torch.device:
    """The device of trainer `local_rank` of this node; sets torch's CPU threads.

    `threads` 0: its share of the cores that it may use with `sharing` trainers, itself among them; a launcher may have
    given each its own. Where the launcher shows each rank its own GPU there is one to see; where it shows all, they are
    dealt in turn.

    Raises
    ------
    UserError
        A GPU is asked for and there is none.
    """
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // sharing))
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError('training.device = "cuda", but this rank sees no GPU: check the job script, or use "auto"')
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def device_trouble(device: torch.device) -> str | None:
    """What is wrong with a device that has failed, in words; None if it computes. Once lost, a process has lost it."""
    try:
        total = torch.ones(64, device=device).sum().item()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0]
    return None if total == 64 else f"it adds up 64 ones to {total}"
