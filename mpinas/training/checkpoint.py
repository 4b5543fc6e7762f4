"""A candidate's checkpoint: all that it takes to train it on as if it had never been put aside.

The file is a mark, the SHA-256 of what follows, and a torch archive that is read without running code from it.
Must not know orders or groups, nor what a checkpoint that cannot be used leads to.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mpinas.files import write_whole
from mpinas.search import Genome

#: First bytes of the file; another format gets another mark.
MARK = b"mpinas-checkpoint-1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size


class Unusable(Exception):  # noqa: N818 - an outcome, not an error of the program
    """The checkpoint is missing, damaged or not that of the training that is to go on."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A training that was put aside.

    Attributes
    ----------
    genome, seed, epochs_done
        Whose it is, and how far it has come.
    model
        The network's state dict.
    optimizer
        The state of the optimizer by the parameter's number, without its settings: those follow from the genome.
    seconds
        What it has taken: of a candidate, since the result or the pause before; of a supernet, in all.
    """

    genome: Genome
    seed: int
    epochs_done: int
    model: dict[str, torch.Tensor]
    optimizer: dict[int, dict[str, torch.Tensor]]
    seconds: float = 0.0


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write the file; it is complete or not there, and one that was there is replaced at once."""
    archive = io.BytesIO()
    tree: dict[str, Any] = {
        "genome": dict(checkpoint.genome),
        "seed": checkpoint.seed,
        "epochs_done": checkpoint.epochs_done,
        "model": _on_cpu(checkpoint.model),
        "optimizer": {number: _on_cpu(state) for number, state in checkpoint.optimizer.items()},
        "seconds": checkpoint.seconds,
    }
    torch.save(tree, archive)
    content = archive.getbuffer()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, MARK, hashlib.sha256(content).digest(), content)


def read_archive(path: Path) -> bytes:
    """The archive in the file, once its digest has been checked; `unpack` opens it.

    Raises
    ------
    Unusable
        There is no such file, or it is not as it was written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Unusable(f"the checkpoint cannot be read: {error.strerror}") from None
    start = len(MARK) + _DIGEST_BYTES
    if not content.startswith(MARK) or hashlib.sha256(content[start:]).digest() != content[len(MARK) : start]:
        raise Unusable("the checkpoint is damaged: its digest is wrong")
    return content[start:]


def unpack(archive: bytes, genome: Genome, seed: int) -> Checkpoint:
    """The checkpoint of this training, from its archive; after whatever number of epochs.

    Raises
    ------
    Unusable
        It is that of another training.
    """
    try:
        tree = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(**tree)
    except (pickle.UnpicklingError, RuntimeError, TypeError) as error:
        raise Unusable(f"the checkpoint is no archive of ours: {str(error).splitlines()[0]}") from None
    for what, found, wanted in (("genome", checkpoint.genome, genome), ("seed", checkpoint.seed, seed)):
        if found != wanted:
            raise Unusable(f"the checkpoint is of another training: {what} {found}, not {wanted}")
    return checkpoint


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}
