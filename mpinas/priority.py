"""Yielding the processor to a device agent that measures on the same machine, so that it measures the model and not us.

Linux may share a processor among sessions first (autogroups, on by default), and niceness counts only within a session;
the agent, the model that it measures and each exporter have sessions of their own, all ranks of a node share one. So
both are set: the niceness of the process and that of its session. Source: sched(7), "The autogroup feature".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SESSION = Path("/proc/self/autogroup")
#: Of a trainer's process.
TRAINER_NICENESS = 10
#: Of the session of all ranks: rank 0 is in it, and must not starve where other sessions are busy (ADR 16).
RANKS_SESSION_NICENESS = 5
#: Of what writes models for the device: before trainers, which wait for it.
EXPORTER_NICENESS = 5


def nice_process(niceness: int) -> None:
    """This process yields to others of its session."""
    os.nice(niceness)


def nice_session(niceness: int) -> None:
    """This process' session yields to other sessions; nothing where the kernel does not group so."""
    with suppress(OSError):
        _SESSION.write_text(str(niceness))


@contextmanager
def session_made_nice(niceness: int) -> Iterator[None]:
    """Meanwhile the session yields; afterwards it is as others again: it may be that of a terminal, which goes on."""
    nice_session(niceness)
    try:
        yield
    finally:
        nice_session(0)
