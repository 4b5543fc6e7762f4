"""The device's memory of what it has measured: SQLite, keyed by request and device profile.

What makes a repeated request harmless. Must not know the protocol or how results come about.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

from edge_bridge.errors import BridgeError

log = logging.getLogger("store")

_SCHEMA_VERSION = 1


class Store:
    """Results on disk. A result counts for the profile it was measured under: new versions measure anew.

    A disk that is full or broken costs the memory, not the service: writing then only leaves a line in the
    log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._database = self._open()
        except (sqlite3.DatabaseError, OSError) as error:
            raise BridgeError(
                f"result store {path} cannot be used ({error}): move it away to begin a new one"
            ) from None

    def get(self, request_id: str, profile_digest: str) -> bytes | None:
        """Measurement as JSON bytes, or None when there is none."""
        try:
            row = self._database.execute(
                "SELECT measurement FROM results WHERE request_id = ? AND profile = ?",
                (request_id, profile_digest),
            ).fetchone()
        except sqlite3.Error as error:
            log.warning("result store %s cannot be read: %s", self._path, error)
            return None
        return None if row is None else bytes(row[0])

    def put(self, request_id: str, profile_digest: str, measurement: bytes) -> None:
        """Keep a measurement; a second one for the same key replaces the first."""
        try:
            with self._database:
                self._database.execute(
                    "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)",
                    (request_id, profile_digest, measurement, time.time()),
                )
        except sqlite3.Error as error:
            log.warning("result store %s cannot be written: %s", self._path, error)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=5.0)
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"written by another version, schema {version}")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        with database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS results (request_id TEXT, profile TEXT, measurement BLOB, "
                "measured_at REAL, PRIMARY KEY (request_id, profile))"
            )
            database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        return database
