"""The connection file that an agent reads, on this machine or on a login node: once at first, and again when asked.

Must not know tunnels or the agent.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from edge_bridge.device.ssh import fetch, split_remote
from edge_bridge.errors import BridgeError
from edge_bridge.wire.keys import Connection, decode_connection, read_connection

log = logging.getLogger("tunnel")

#: A file on a login node is fetched again at most this often.
REFETCH_S = 60.0


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
        self._fetching: threading.Thread | None = None

    @property
    def watched(self) -> tuple[Path, ...]:
        """Files of this machine whose change asks for another `read`."""
        return () if self._remote else (self._path,)

    def read(self) -> Connection:
        """Return the connection as the file has it now; a fetched one as it was when last fetched.

        A file that was fetched a minute ago is fetched again meanwhile, for a later call: ssh may take long, and who
        waits for it would miss that the relay is back.

        Raises
        ------
        BridgeError
            When it cannot be had, or is none.
        """
        if self._remote is None:
            return read_connection(self._path)
        now_s = time.monotonic()
        if self._fetched is None:
            self._fetched, self._fetched_s = self._fetch(self._remote), now_s
        elif now_s - self._fetched_s >= REFETCH_S and not (self._fetching and self._fetching.is_alive()):
            self._fetched_s = now_s
            self._fetching = threading.Thread(target=self._refetch, args=(self._remote,), name="fetch", daemon=True)
            self._fetching.start()
        return self._fetched

    def _refetch(self, remote: tuple[str, str]) -> None:
        try:
            self._fetched = self._fetch(remote)
        except (BridgeError, OSError) as error:
            log.warning("connection file not fetched again, the old one stays: %s", error)

    def _fetch(self, remote: tuple[str, str]) -> Connection:
        where = ":".join(remote)
        log.info("fetching the connection file %s", where)
        return decode_connection(fetch(*remote, self._given, os.getpid()), where)
