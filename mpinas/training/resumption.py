"""What an earlier training has left: found by a group's leader, known to all its ranks.

Must not know orders, nor what is trained.
"""

from __future__ import annotations

from pathlib import Path

from mpinas.search import Genome
from mpinas.training.checkpoint import Checkpoint, Unusable, read_archive, unpack
from mpinas.training.collectives import Collectives

#: Sent in place of a checkpoint where there is none: a message has some bytes at least.
_NONE = b"-"


def find_checkpoint(
    file: Path, genome: Genome, seed: int, group: Collectives, epochs: tuple[int, int] = (0, 2**31)
) -> Checkpoint | None:
    """The checkpoint of this training; one that is damaged, or of another training, counts as none.

    Parameters
    ----------
    epochs
        Of so many epochs at least, and so many at most; where the first is not 0 there has to be one.

    Raises
    ------
    Unusable
        There has to be one, and there is none.
    """
    least, most = epochs
    found = _NONE
    if group.rank == 0:
        try:
            archive = read_archive(file)
            checkpoint = unpack(archive, genome, seed)
            if not least <= checkpoint.epochs_done <= most:
                raise Unusable(f"the checkpoint is of another training: epochs {checkpoint.epochs_done}, not {least}")
            found = archive
        except Unusable:
            if least:
                raise
    found = group.broadcast_bytes(found)
    return None if found == _NONE else unpack(found, genome, seed)
