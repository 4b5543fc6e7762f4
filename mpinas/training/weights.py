"""The file of a candidate's trained weights: a torch state dict, read without running code from it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from torch import nn

from mpinas.errors import UserError
from mpinas.files import write_whole
from mpinas.plugins import in_one_line


class Dropped(Exception):  # noqa: N818 - an outcome, not an error of the program
    """The trained model is not there any more."""


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict; the file is complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    archive = io.BytesIO()  # torch's own writer does not tell that the disk is full
    torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, archive)
    write_whole(path, archive.getbuffer())


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state dict that `save_weights` wrote; runs no code from the file.

    Raises
    ------
    Dropped
        It is not there any more.
    ValueError
        It is not as it was written.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        why = "its trained model was removed when it left the front; a later measurement brought it back"
        raise Dropped(why) from None
    try:
        state: dict[str, torch.Tensor] = torch.load(_proven(content), map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise a dozen classes, by where the damage is
        raise ValueError(f"{path}: not as it was written: {in_one_line(error)}") from error
    return state


def _proven(content: bytes) -> io.BytesIO:
    """The same archive, of members whose checksums are right: torch looks at none, and follows any directory."""
    copied = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(copied, "w") as copy:
        for member in archive.infolist():
            copy.writestr(member.filename, archive.read(member))
    copied.seek(0)
    return copied


def check_shared(path: Path) -> None:
    """Raise UserError where weights that candidates begin with or learn from are not as `save_weights` wrote them."""
    try:
        read_weights(path)
    except Dropped:
        why = "is not there any more"
    except (ValueError, OSError) as error:
        why = f"cannot be used ({error})"
    else:
        return
    raise UserError(f"{path}: {why}, and candidates begin with it or learn from it; restore it from a copy, or begin a "
                    "new run")  # fmt: skip


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Give a network what `save_weights` wrote. Raises as `read_weights`."""
    model.load_state_dict(read_weights(path))
    return model
