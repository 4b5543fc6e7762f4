"""The journal: one JSON line an event, appended and flushed as it happens. A run is its journal."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import msgspec

from mpinas.coordination.events import EVENT_CLASSES, Event
from mpinas.errors import UserError

#: First line of every journal. A reader refuses what it does not know.
FORMAT = "mpinas-journal/2"

Entry = tuple[float, Event]


def encode(seq: int, time: float, event: Event) -> bytes:
    """One line, newline included."""
    fields = msgspec.to_builtins(event)
    return msgspec.json.encode({"seq": seq, "time": time, "event": type(event).__name__, **fields}) + b"\n"


def decode(line: bytes) -> tuple[int, float, Event]:
    """(seq, time, event) of one line. Raises ValueError if it is not a line of a journal."""
    try:
        record: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
        seq, time, name = record.pop("seq"), record.pop("time"), record.pop("event")
        event: Event = msgspec.convert(record, EVENT_CLASSES[name])
    except (msgspec.MsgspecError, KeyError) as error:
        raise ValueError(f"not an event: {error}") from None
    if not isinstance(seq, int) or not isinstance(time, (int, float)):
        raise ValueError("not an event: seq or time is no number")
    return seq, float(time), event


def read(path: Path) -> list[Entry]:
    """All events of a journal, oldest first. A torn last line (the job died while writing it) is left out.

    Raises
    ------
    UserError
        The file is missing, is no journal, or is damaged before its last line.
    """
    return _read_whole(path)[0]


def _read_whole(path: Path) -> tuple[list[Entry], int]:
    """Events, and the length in bytes of what is whole."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no journal here; is this the folder of a run?") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.splitlines(keepends=True)
    if lines and lines[0].strip() != FORMAT.encode():
        raise UserError(
            f"{path}: not a journal of this version ({FORMAT}): it starts with {lines[0][:40]!r}; begin a new run, or "
            "go on with the version that wrote it"
        )
    entries: list[Entry] = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            seq, time, event = decode(line)
        except ValueError as error:
            raise UserError(f"{path}: line {number} is damaged ({error}); restore the file from a copy") from None
        if seq != len(entries):
            raise UserError(
                f"{path}: line {number} has number {seq}, {len(entries)} was due; lines are missing or moved"
            )
        entries.append((time, event))
    return entries, len(whole)


class Journal:
    """The journal of a running job, open for appending; at most one job at a time has it open.

    Raises
    ------
    UserError
        Another job has it open, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - open as long as the job runs
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"{path}: another job is running on this folder; wait for it or end it") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        #: What earlier jobs wrote.
        self.history, whole = _read_whole(path)
        self._file.truncate(whole)
        if whole == 0:
            self._write(FORMAT.encode() + b"\n")
        self._seq = len(self.history)

    def append(self, time: float, event: Event) -> None:
        """Write one event; it is with the operating system when this returns."""
        self._write(encode(self._seq, time, event))
        self._seq += 1

    def _write(self, line: bytes) -> None:
        while line:
            line = line[self._file.write(line) :]

    def close(self) -> None:
        """Make it durable and let the next job have it."""
        os.fsync(self._file)
        self._file.close()
