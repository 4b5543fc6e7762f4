"""What a device remembers: its result store on good, full and damaged disks, and files of older versions."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path

import pytest

from edge_bridge.device.store import RETRY_S, Standing, Store
from edge_bridge.errors import BridgeError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


def rows(path: Path) -> list[tuple[str, bytes, int]]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT request_id, result, standing FROM results ORDER BY request_id").fetchall()


def test_results_are_kept_by_request_and_profile(path):
    store = Store(path)
    store.put("request", "profile", b"1")
    store.put("request", "other", b"2")
    store.put("request", "profile", b"3")
    store.close()
    store = Store(path)
    assert (store.get("request", "profile"), store.get("request", "other")) == (b"3", b"2")
    assert (store.get("request", "third"), store.get("x", "profile")) == (None, None)
    store.close()


def test_the_device_id_stays(path):
    first, second = Store(path), Store(path)
    assert len(first.device_id) == 32
    assert second.device_id == first.device_id
    first.close()
    second.close()
    assert Store(path.with_name("other.sqlite")).device_id != first.device_id


def test_what_was_measured_since_the_last_good_reading_is_doubtful(path):
    store = Store(path)
    store.put("sound", "profile", b"1", Standing.OPEN)
    assert store.settle("profile", Standing.SOUND) == ["sound"]
    store.put("a", "profile", b"2", Standing.OPEN)
    store.put("b", "profile", b"3", Standing.OPEN)
    store.put("c", "other", b"4", Standing.OPEN)
    store.close()
    store = Store(path)  # the agent may have ended in between
    assert store.settle("profile", Standing.DOUBTFUL) == ["a", "b"]
    assert store.settle("profile", Standing.DOUBTFUL) == []
    assert [store.get(each, "profile") for each in ("sound", "a", "b")] == [b"1", None, None]
    assert store.get("c", "other") == b"4"
    store.put("a", "profile", b"5", Standing.OPEN)
    assert store.get("a", "profile") == b"5"
    store.close()


def test_readings_are_kept_by_profile(path):
    store = Store(path)
    store.keep_readings("profile", [0.1])
    store.keep_readings("profile", [0.1, 0.2])
    store.close()
    store = Store(path)
    assert (store.readings("profile"), store.readings("other")) == ((0.1, 0.2), ())
    store.close()


def test_a_full_disk_loses_nothing_and_is_mentioned_once(path, caplog, files_up_to):
    caplog.set_level(logging.WARNING)
    store = Store(path)
    store.put("before", "profile", b"0", Standing.OPEN)
    with files_up_to(0):
        for each in range(300):
            store.put(f"during {each}", "profile", b"x" * 1000, Standing.OPEN)
        store.keep_readings("profile", [0.5])
        store.tend(RETRY_S * 1e6)
        assert store.get("during 7", "profile") == b"x" * 1000
        assert store.settle("profile", Standing.DOUBTFUL) == ["before", *(f"during {each}" for each in range(300))]
        assert (store.get("before", "profile"), store.get("during 7", "profile")) == (None, None)
        store.put("again", "profile", b"1")
        assert store.readings("profile") == (0.5,)
        assert store.unwritten == 302
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "results stay in memory until it can, free some disk space" in caplog.text
    store.tend(RETRY_S * 3e6)
    assert store.unwritten == 0
    assert "is well again: 302 results written" in caplog.text
    assert store.readings("profile") == (0.5,)
    store.close()
    found = rows(path)
    assert len(found) == 302
    assert {standing for request_id, _, standing in found if request_id != "again"} == {2}


def test_a_disk_that_is_full_at_the_start_is_waited_for(path, files_up_to):
    with files_up_to(0):
        store = Store(path)
        store.put("request", "profile", b"1")
        assert store.get("request", "profile") == b"1"
        made = store.device_id
    store.tend(RETRY_S * 1e6)
    assert store.unwritten == 0
    store.close()
    store = Store(path)
    assert (store.get("request", "profile"), store.device_id) == (b"1", made)
    store.close()


def test_results_in_memory_are_bounded(path, monkeypatch, caplog, files_up_to):
    monkeypatch.setattr("edge_bridge.device.store.MOST_UNWRITTEN", 10)
    store = Store(path)
    with files_up_to(0):
        for each in range(12):
            store.put(f"{each:02}", "profile", b"1")
        assert store.unwritten == 10
        assert (store.get("01", "profile"), store.get("02", "profile")) == (None, b"1")
    assert "request 01: its result is lost" in caplog.text
    store.close()


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_moved_aside(path, content, caplog):
    for number in (1, 2):
        path.write_bytes(content)
        store = Store(path)
        assert f"moved to {path}.broken-{number}, a new one is begun" in caplog.text
        store.put("request", "profile", b"1")
        store.close()
        assert Path(f"{path}.broken-{number}").read_bytes() == content
        assert rows(path) == [("request", b"1", 1)]


def test_a_file_damaged_while_it_is_open_is_moved_aside(path, caplog):
    store = Store(path)
    for each in range(200):
        store.put(f"{each:03}", "profile", b"x" * 1000)
    store.close()
    with open(path, "r+b") as stream:
        stream.seek(8192)
        stream.write(b"\xff" * 100_000)
    store = Store(path)
    assert "is damaged" in caplog.text
    assert store.get("003", "profile") is None
    store.put("003", "profile", b"1")
    assert store.get("003", "profile") == b"1"
    store.close()


def test_a_file_without_its_tables_is_moved_aside(path, caplog):
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 2")
    Store(path).close()
    assert "no such table" in caplog.text


def test_a_file_of_version_1_is_brought_up_to_date(path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(
            "CREATE TABLE results (request_id TEXT, profile TEXT, measurement BLOB, measured_at REAL, "
            "PRIMARY KEY (request_id, profile))"
        )
        database.execute("INSERT INTO results VALUES ('request', 'profile', ?, 17.5)", (b"1",))
        database.execute("PRAGMA user_version = 1")
        database.commit()
    store = Store(path)
    assert store.get("request", "profile") == b"1"
    assert store.settle("profile", Standing.DOUBTFUL) == []
    store.put("new", "profile", b"2")
    store.close()
    assert rows(path) == [("new", b"2", 1), ("request", b"1", 1)]
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (2,)


def test_a_file_of_a_newer_version_is_left_alone(path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 3")
    with pytest.raises(BridgeError, match=r"was written by a newer edge-bridge \(schema 3, this knows 2\): update"):
        Store(path)
    assert [each.name for each in path.parent.iterdir()] == ["results.sqlite"]
