"""The tables of the result store, and how files of older versions are brought up to date.

Must not know what the results are.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from edge_bridge.errors import BridgeError

SCHEMA_VERSION = 2
_RESULTS = (
    "CREATE TABLE results (request_id TEXT, profile TEXT, result BLOB NOT NULL, measured_at REAL NOT NULL, "
    "standing INTEGER NOT NULL CHECK (standing IN (0, 1, 2)), PRIMARY KEY (request_id, profile))"
)
_REST = (
    "CREATE INDEX by_standing ON results (profile, standing)",
    "CREATE TABLE readings (profile TEXT, number INTEGER, p50_s REAL NOT NULL, PRIMARY KEY (profile, number))",
    "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
)
#: Statements that lead from one version to the next.
_STEPS = {
    0: (_RESULTS, *_REST),
    # Version 1 had no reference model: nothing was found doubtful.
    1: (
        "ALTER TABLE results RENAME TO old_results",
        _RESULTS,
        "INSERT INTO results SELECT request_id, profile, measurement, measured_at, 1 FROM old_results",
        "DROP TABLE old_results",
        *_REST,
    ),
}


class BrokenStoreError(Exception):
    """The file is damaged, or is no database at all."""


def open_database(path: Path) -> sqlite3.Connection:
    """Open the store's file, made or brought up to date where needed.

    Raises
    ------
    BrokenStoreError
        When what is in it cannot be used by anybody.
    BridgeError
        When it was written by a newer version: its results are good, and must not be lost by a step back.
    OSError, sqlite3.Error
        When the disk does not let it.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = sqlite3.connect(path, timeout=5.0, isolation_level="IMMEDIATE")
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise BridgeError(
                f"result store {path} was written by a newer edge-bridge (schema {version}, this knows "
                f"{SCHEMA_VERSION}): update this one, or give another --state"
            )
        database.execute("PRAGMA journal_mode = WAL")
        # A result survives the end of the process at once, and that of the power from the next checkpoint on.
        database.execute("PRAGMA synchronous = NORMAL")
        if database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise BrokenStoreError("its pages do not fit together")
        if version != SCHEMA_VERSION:
            _update(database, version)
        # A file that says its version and lacks the tables is found out now, not at the first result.
        for table in ("results", "readings", "about"):
            database.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
    except BaseException as error:
        database.close()
        message = str(error)
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        if damaged or message.startswith("no such"):
            raise BrokenStoreError(message) from None
        raise
    return database


def _update(database: sqlite3.Connection, version: int) -> None:
    """All steps or none: a device may lose its power in the middle."""
    with database:
        database.execute("BEGIN IMMEDIATE")
        for statement in _STEPS[version]:
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def set_aside(path: Path) -> Path:
    """Move a store's files out of the way under the next free name, and return that name."""
    number = 1
    while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    return aside
