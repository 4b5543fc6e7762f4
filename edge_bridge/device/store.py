"""The device's memory of what it has measured: SQLite, keyed by request and device profile.

What makes a repeated request harmless. A disk that is full or broken costs neither the service nor a result: what
cannot be written stays in memory and goes to the disk when that is well again. Must not know the protocol or how
results come about.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import sqlite3
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_bridge.device.schema import BrokenStoreError, open_database, set_aside

log = logging.getLogger("store")

#: Most results kept in memory while the disk does not take them, some 2 KB each.
MOST_UNWRITTEN = 20_000
#: How often a disk that did not take them is tried again.
RETRY_S = 5.0


class Standing(enum.IntEnum):
    """How far a result may be relied on."""

    #: Measured since the reference model was last read.
    OPEN = 0
    #: A reading in band came after it, or no readings are taken.
    SOUND = 1
    #: The device was found out of band after it: not answered from here, but measured anew.
    DOUBTFUL = 2


@dataclass(frozen=True, slots=True)
class _Row:
    result: bytes
    standing: Standing
    measured_at: float


class Store:
    """Results on disk. A result counts for the profile it was measured under: new versions measure anew.

    Raises
    ------
    BridgeError
        When the file was written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None
        #: What the disk has not taken, in the order of measuring; it goes before what is on disk.
        self._unwritten: OrderedDict[tuple[str, str], _Row] = OrderedDict()
        self._unwritten_readings: dict[str, tuple[float, ...]] = {}
        self._device_id = ""
        self._tried_s = 0.0
        self._complained = False
        self._open()
        self._device_id = self._find_device_id()

    @property
    def device_id(self) -> str:
        """Made when the store was; tells this device from others over restarts."""
        return self._device_id

    @property
    def unwritten(self) -> int:
        """Results that the disk has not taken yet."""
        return len(self._unwritten)

    def get(self, request_id: str, profile_digest: str) -> bytes | None:
        """Result as JSON bytes, or None when there is none that may be relied on."""
        row = self._row(request_id, profile_digest)
        return None if row is None or row.standing is Standing.DOUBTFUL else row.result

    def put(self, request_id: str, profile_digest: str, result: bytes, standing: Standing = Standing.SOUND) -> None:
        """Keep a result; a second one for the same key replaces the first."""
        # The wall clock is for whoever reads the file; nothing is decided by it.
        self._save({(request_id, profile_digest): _Row(result, standing, time.time())})

    def settle(self, profile_digest: str, standing: Standing) -> list[str]:
        """Give everything measured since the last reading this standing; return its request ids."""
        found = {
            (request_id, profile_digest): _Row(bytes(result), Standing.OPEN, measured_at)
            for request_id, result, measured_at in self._query(
                "SELECT request_id, result, measured_at FROM results WHERE profile = ? AND standing = ? "
                "ORDER BY measured_at",
                (profile_digest, int(Standing.OPEN)),
            )
        }
        found.update({key: row for key, row in self._unwritten.items() if key[1] == profile_digest})
        settled = {key: replace(row, standing=standing) for key, row in found.items() if row.standing is Standing.OPEN}
        if settled:
            self._save(settled)
        return [request_id for request_id, _ in settled]

    def readings(self, profile_digest: str) -> tuple[float, ...]:
        """First readings of the reference model under this profile, in seconds."""
        if profile_digest in self._unwritten_readings:
            return self._unwritten_readings[profile_digest]
        rows = self._query("SELECT p50_s FROM readings WHERE profile = ? ORDER BY number", (profile_digest,))
        return tuple(float(row[0]) for row in rows)

    def keep_readings(self, profile_digest: str, readings: Iterable[float]) -> None:
        """Replace the readings of this profile."""
        self._unwritten_readings[profile_digest] = tuple(readings)
        self._write()

    def tend(self, now_s: float) -> None:
        """Try again, now and then, to write what the disk has not taken."""
        if (self._unwritten or self._unwritten_readings or self._database is None) and (
            now_s - self._tried_s >= RETRY_S
        ):
            self._tried_s = now_s
            self._write()

    def close(self) -> None:
        """Write what is left, if the disk takes it, and close the file."""
        if self._unwritten or self._unwritten_readings:
            self._write()
        if self._unwritten:
            log.error("result store %s: %d results could not be written and are lost", self._path, len(self._unwritten))
        if self._database is not None:
            self._database.close()
            self._database = None

    def _row(self, request_id: str, profile_digest: str) -> _Row | None:
        unwritten = self._unwritten.get((request_id, profile_digest))
        if unwritten is not None:
            return unwritten
        rows = self._query(
            "SELECT result, standing, measured_at FROM results WHERE request_id = ? AND profile = ?",
            (request_id, profile_digest),
        )
        return _Row(bytes(rows[0][0]), Standing(rows[0][1]), rows[0][2]) if rows else None

    def _save(self, rows: dict[tuple[str, str], _Row]) -> None:
        self._unwritten.update(rows)
        if self._complained:
            self._bound()  # `tend` tries again; not each request
        else:
            self._write()

    def _bound(self) -> None:
        while len(self._unwritten) > MOST_UNWRITTEN:
            (request_id, _), _ = self._unwritten.popitem(last=False)
            log.error("request %s: its result is lost, the disk has been full for too long", request_id[:8])

    def _write(self) -> None:
        """Write everything unwritten in one transaction; leave it where it is when that fails."""
        try:
            if self._database is None:
                self._database = open_database(self._path)
            with self._database as database:
                database.executemany(
                    "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)",
                    [(*key, row.result, row.measured_at, int(row.standing)) for key, row in self._unwritten.items()],
                )
                for profile, readings in self._unwritten_readings.items():
                    database.execute("DELETE FROM readings WHERE profile = ?", (profile,))
                    database.executemany(
                        "INSERT INTO readings VALUES (?, ?, ?)",
                        [(profile, number, p50_s) for number, p50_s in enumerate(readings)],
                    )
                if self._device_id:
                    database.execute("INSERT OR IGNORE INTO about VALUES ('device_id', ?)", (self._device_id,))
        except (sqlite3.Error, OSError, BrokenStoreError) as error:
            self._trouble(error)
            self._bound()
            return
        if self._complained:
            log.warning("result store %s is well again: %d results written", self._path, len(self._unwritten))
        self._complained = False
        self._unwritten.clear()
        self._unwritten_readings.clear()

    def _query(self, sql: str, values: tuple[object, ...]) -> list[Any]:
        if self._database is None:
            return []
        try:
            return self._database.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            self._trouble(error)
            return []

    def _open(self) -> None:
        try:
            self._database = open_database(self._path)
        except BrokenStoreError as error:
            self._begin_anew(error)
        except (sqlite3.Error, OSError) as error:
            self._trouble(error)

    def _trouble(self, error: Exception) -> None:
        """Say once what is wrong. A file that is damaged is moved away, for waiting would not mend it."""
        damaged = isinstance(error, BrokenStoreError) or (
            isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        )
        if damaged:
            self._begin_anew(error)
        elif not self._complained:
            self._complained = True
            self._tried_s = time.monotonic()
            log.warning(
                "result store %s cannot be used now (%s): results stay in memory until it can, free some disk space",
                self._path,
                error,
            )

    def _begin_anew(self, error: Exception) -> None:
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        try:
            aside = set_aside(self._path)
            log.warning("result store %s is damaged (%s): moved to %s, a new one is begun", self._path, error, aside)
            self._database = open_database(self._path)
        except (sqlite3.Error, OSError, BrokenStoreError) as again:
            self._complained = True
            log.warning("result store %s cannot be begun anew (%s): results stay in memory", self._path, again)

    def _find_device_id(self) -> str:
        rows = self._query("SELECT value FROM about WHERE name = 'device_id'", ())
        if rows:
            return str(rows[0][0])
        made = uuid.uuid4().hex
        self._device_id = made
        self._write()
        return made
