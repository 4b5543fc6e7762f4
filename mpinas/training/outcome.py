"""Why a training has no result: it was put aside, or something went wrong, whose reason is one of a few words."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

import torch

from mpinas.errors import disk_error, disk_trouble
from mpinas.training.checkpoint import Unusable
from mpinas.training.loop import Abandoned, Diverged
from mpinas.training.weights import Dropped


@dataclass(frozen=True, slots=True)
class Paused:
    """A training that was left between two epochs, as its leader was told, with a checkpoint of all that is done."""

    epochs_done: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a candidate has no result. `reason`: diverged, memory, abandoned, dropped, checkpoint, device or error."""

    reason: str
    detail: str
    traceback: str = ""


def explain(error: Exception) -> Failure:  # noqa: PLR0911 - one return a reason
    """The outcome that an exception stands for.

    Raises UserError where it is that of the whole job: the disk is full.
    """
    if (trouble := disk_trouble(error)) is not None:
        raise disk_error(trouble) from error
    match error:
        case Diverged():
            return Failure("diverged", str(error))
        case Abandoned():
            return Failure("abandoned", str(error))
        case Dropped():
            return Failure("dropped", str(error))
        case Unusable():
            return Failure("checkpoint", str(error))
        case _ if _is_out_of_memory(error):
            return Failure("memory", str(error).strip().splitlines()[0] if str(error) else "out of memory")
        case _ if _is_of_the_gpu(error):
            return Failure("device", str(error).strip().splitlines()[0])
        case _:
            lines = str(error).strip().splitlines() or ["no message"]
            return Failure("error", f"{type(error).__name__}: {lines[0]}", traceback.format_exc())


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # the CPU allocator raises a plain RuntimeError
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))


def _is_of_the_gpu(error: Exception) -> bool:
    """Whether the GPU itself failed."""
    # torch 2.8 and newer have a class for it, and told it in the same words before; what a library on the GPU refuses
    # begins like that, too (CUBLAS_STATUS_...), but may be the network's fault
    if isinstance(error, getattr(torch, "AcceleratorError", ())):
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and told.startswith("CUDA error: ") and "_STATUS_" not in told
