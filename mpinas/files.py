"""Files that are complete or not there, also where their machine goes down just after."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file beside, and put it in place. Raises OSError that names the file."""
    beside = part_of(path)
    try:
        with open(beside, "wb") as file:
            for part in parts:
                file.write(part)
        put_in_place(beside, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write does not say which
        with suppress(OSError):
            beside.unlink()
        raise


def part_of(path: Path) -> Path:
    """Where a file is written until it is complete."""
    return path.with_name(path.name + ".part")


def put_in_place(beside: Path, path: Path) -> None:
    """Give a complete file its name, once its content is on the disk."""
    with open(beside, "rb+") as file:
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems know no such thing
            os.fsync(folder)
    finally:
        os.close(folder)
