"""What several commands share: option types, keys, announcements."""

from __future__ import annotations

import logging
import os
import select
import sys
from pathlib import Path

import click

from edge_bridge.errors import BridgeError
from edge_bridge.wire.keys import Connection, KeyPair, read_key_pair

log = logging.getLogger("edge-bridge")
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


def key_for(connection: Connection, path: Path | None) -> KeyPair | None:
    """Key pair for this relay; None where a private bridge wants none."""
    if connection.relay_public_key is None:
        return None
    if path is None:
        raise BridgeError(
            f"relay {connection.job_endpoint} takes known keys only: give --key, from `edge-bridge keygen`"
        )
    return read_key_pair(path)


def memory_limit_bytes(megabytes: int) -> int:
    """Bytes of so many MB; 0 stands for half of this machine's memory."""
    return megabytes * 2**20 or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def announce(line: str) -> None:
    """Print a line at once, if somebody reads; whoever started this may have gone, or look elsewhere."""
    # A full pipe would hold up the service for ever.
    if not select.select([], [sys.stdout], [], 0)[1]:
        log.debug("standard output is full")
        return
    try:
        click.echo(line)
        sys.stdout.flush()
    except BrokenPipeError:
        log.debug("nobody reads standard output")
