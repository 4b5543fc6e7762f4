"""The connection file that an agent reads, on this machine or on a login node: once at first, and again when asked.

Must not know tunnels or the agent.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from edge_bridge.device.ssh import FETCH_LIMIT_S, fetch, split_remote
from edge_bridge.errors import TunnelError
from edge_bridge.wire.keys import Connection, decode_connection, read_connection

log = logging.getLogger("tunnel")

#: A file on a login node is fetched again at most this often, and then in a shorter time: the agent waits for it.
REFETCH_S, REFETCH_LIMIT_S = 60.0, 10.0


class ConnectionFile:
    """A file of this machine, ``LOGIN:PATH``, or a path that is not here but on the login node that is given.

    Parameters
    ----------
    path
        As the user wrote it; a file of that name on this machine goes first.
    login
        For a path without a login of its own; "" for none.
    given
        Options for ssh.
    """

    def __init__(self, path: Path, login: str, given: Sequence[str]) -> None:
        self._path, self._given = path, tuple(given)
        self._remote = None if path.exists() else split_remote(path) or ((login, str(path)) if login else None)
        self._fetched: Connection | None = None
        self._fetched_s = 0.0

    @property
    def watched(self) -> tuple[Path, ...]:
        """Files of this machine whose change asks for another `read`."""
        return () if self._remote else (self._path,)

    def read(self) -> Connection:
        """Return the connection as the file has it now; a fetched one may be a minute old.

        Raises
        ------
        BridgeError
            When it cannot be had, or is none.
        """
        if self._remote is None:
            return read_connection(self._path)
        now_s = time.monotonic()
        if self._fetched is not None and now_s - self._fetched_s < REFETCH_S:
            return self._fetched
        self._fetched_s = now_s
        where = ":".join(self._remote)
        log.info("fetching the connection file %s", where)
        try:
            limit_s = FETCH_LIMIT_S if self._fetched is None else REFETCH_LIMIT_S
            self._fetched = decode_connection(fetch(*self._remote, self._given, os.getpid(), limit_s), where)
        except TunnelError as error:
            if self._fetched is None:
                raise
            log.warning("connection file not fetched again, the old one stays: %s", error)
        return self._fetched
