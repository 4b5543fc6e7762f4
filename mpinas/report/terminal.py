"""Is there a person behind our standard output? A launcher's pseudo-terminal is no person."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TextIO


def terminal_size(out: TextIO, environment: Mapping[str, str]) -> tuple[int, int] | None:
    """(columns, lines) of the terminal that shows `out`, or None if none does.

    mpirun gives its ranks a pseudo-terminal even where its own output goes to a file, so under a launcher it is the
    launcher's output that counts: that of our parent, if it runs on this node.
    """
    if not out.isatty():
        return None
    if "PMIX_RANK" not in environment and "SLURM_PROCID" not in environment:
        return _size(out.fileno())
    try:
        shown = os.open(f"/proc/{os.getppid()}/fd/1", os.O_WRONLY | os.O_NOCTTY)
    except OSError:
        return None
    try:
        return _size(shown) if os.isatty(shown) else None
    finally:
        os.close(shown)


def _size(descriptor: int) -> tuple[int, int] | None:
    size = os.get_terminal_size(descriptor)
    return (size.columns, size.lines) if size.columns and size.lines else None  # nobody has told it its size
