"""The journal: one JSON line an event, appended and flushed as it happens. A run is its journal.

The first line names the format. Every other line ends in a check value: the CRC-32 of its own bytes before that
field, begun with the check value of the line before. So a line that is changed, missing, moved, doubled or from
another journal is noticed, in the bytes as they stand. Format 2 had no check values; it is read, and rewritten with a
job's first event: until then nobody knows whether this version can go on with the run. Must not know what follows from
the events, nor who else may be at work on the folder (`lock` does).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import zlib
from io import FileIO
from pathlib import Path
from typing import Any, cast

import msgspec

from mpinas.coordination.events import EVENT_CLASSES, Event
from mpinas.errors import UserError
from mpinas.files import part_of

#: The format that is written. A reader refuses what it does not know.
FORMAT = "mpinas-journal/3"
_SEED = zlib.crc32(FORMAT.encode())
#: First line of a journal; with a check value of its own, so that no flipped bit makes another format of it.
HEADER = f"{FORMAT} {_SEED:08x}\n".encode()
_HEADER_2 = b"mpinas-journal/2\n"
_CHECK_BYTES = len(b',"crc":"00000000"}')

#: A parallel file system that is mounted without locks says one of these.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})
#: There is no room, or none for this user.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

Entry = tuple[float, Event]


class _Head(msgspec.Struct):
    """What every event's line begins with."""

    seq: int
    time: float
    event: str


_HEAD = msgspec.json.Decoder(_Head)
_EVENTS: dict[str, msgspec.json.Decoder[Any]] = {name: msgspec.json.Decoder(cls) for name, cls in EVENT_CLASSES.items()}


def encode(seq: int, time: float, event: Event, before: int) -> tuple[bytes, int]:
    """(line with its newline, check value). `before`: the check value of the line before.

    Raises ValueError for a number that is not finite, which JSON has no word for: the line could not be read again.
    """
    fields = _written(msgspec.to_builtins(event))
    content = msgspec.json.encode({"seq": seq, "time": time, "event": type(event).__name__, **fields})[:-1]
    check = zlib.crc32(content, before)
    return content + b',"crc":"%08x"}\n' % check, check


def _written(value: Any) -> Any:
    """The same as it is written; what is no text in UTF-8, as from names of files, with question marks."""
    match value:
        case dict():
            return {_written(key): _written(each) for key, each in value.items()}
        case list() | tuple():
            return [_written(each) for each in value]
        case str() if not value.isascii():
            return value.encode(errors="replace").decode()
        case float() if not math.isfinite(value):
            raise ValueError(f"a number of the event is {value}")
    return value


def decode(line: bytes) -> tuple[int, float, Event]:
    """(seq, time, event) of one line. Raises ValueError if it is not a line of a journal."""
    try:
        head = _HEAD.decode(line)
        return head.seq, head.time, cast(Event, _EVENTS[head.event].decode(line))
    except KeyError as error:
        raise ValueError(f"not an event: {error} is none that this version knows") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"not an event: {error}") from None


def read(path: Path) -> list[Entry]:
    """All events of a journal, oldest first. A torn last line (the job died while writing it) is left out.

    Raises
    ------
    UserError
        The file is missing, is no journal, or is damaged before its last line.
    """
    return Reader(path).more()


class Reader:
    """Reads a journal, and what has been added to it since; never writes. `path` may be that of a running job."""

    def __init__(self, path: Path) -> None:
        self._path = path
        #: Length in bytes of what has been read, which is whole; and how many lines that is, the first one included.
        self.length = self.lines = 0
        #: Check value of the last line; None in a journal of format 2.
        self.check: int | None = _SEED

    def more(self) -> list[Entry]:
        """Events since the last call, oldest first. Raises UserError as `read`."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self.length)
                data = file.read()
        except FileNotFoundError:
            raise UserError(f"{self._path}: no journal here; is this the folder of a run?") from None
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read: {error.strerror}") from None
        *lines, torn = data.split(b"\n")
        if self.lines == 0:
            self._begin(lines.pop(0) + b"\n" if lines else None, torn)
        return [self._take(line) for line in lines]

    def _begin(self, first: bytes | None, torn: bytes) -> None:
        """Take in the first line, which may still be being written."""
        if first is None:
            # a write that was cut off lacks its end; after a power cut that may be zeros, but no more than were written
            begun = torn.rstrip(b"\0")
            if len(torn) <= len(HEADER) and (HEADER.startswith(begun) or _HEADER_2.startswith(begun)):
                return
            first = torn
        if first not in (HEADER, _HEADER_2):
            raise UserError(
                f"{self._path}: not a journal of this version ({FORMAT}): it starts with {first[:40]!r}; begin a new "
                "run, or go on with the version that wrote it"
            )
        self.check = None if first == _HEADER_2 else _SEED
        self.length, self.lines = len(first), 1

    def _take(self, line: bytes) -> Entry:
        """One line, without its newline."""
        due, check = self.lines - 1, None
        if self.check is not None:
            check = zlib.crc32(line[:-_CHECK_BYTES], self.check)
        whole = check is None or line.endswith(b',"crc":"%08x"}' % check)
        try:
            seq, time, event = decode(line)
        except ValueError as error:
            raise self._damaged(str(error) if whole else "its check value is wrong") from None
        if seq != due:
            raise self._damaged(f"it has number {seq}, {due} was due; lines are missing, moved or doubled")
        if not whole:
            raise self._damaged("its check value is wrong: it was changed, or is of another run")
        self.length += len(line) + 1
        self.lines += 1
        self.check = check
        return time, event

    def _damaged(self, why: str) -> UserError:
        return UserError(
            f"{self._path}: line {self.lines + 1} is damaged ({why}); restore the file from a copy, or keep only the "
            f"{self.lines} lines before it (head -n {self.lines}), which are whole, and go on from there"
        )


class Journal:
    """The journal of a running job, open for appending; at most one job at a time has it open.

    Where the file system has no locks `lock.RunLock` alone keeps others out.

    Raises
    ------
    UserError
        Another job has it open, or it is damaged, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        #: Why nothing can be written any more.
        self._failure: str | None = None
        self._length = 0
        self._check = _SEED
        #: Of format 2, and not rewritten yet.
        self._is_old = False
        self._file = _opened(path)
        try:
            self._load()
        except BaseException:
            self._file.close()
            raise

    def _load(self) -> None:
        reader = Reader(self._path)
        #: What earlier jobs wrote; let go of with this job's first event, for a long run's is large.
        self.history = reader.more()
        self._seq = len(self.history)
        if reader.check is None:
            self._is_old = True
            return
        self._length, self._check = reader.length, reader.check
        try:
            self._file.truncate(self._length)
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written: {error.strerror}") from None
        if self._length == 0:
            self._write(HEADER)

    def _convert(self) -> None:
        """Rewrite a journal of format 2: the new file is complete, and locked, before it takes the old one's place.

        Raises UserError, and then the old one is left as it is.
        """
        lines = [HEADER]
        for seq, (time, event) in enumerate(self.history):
            line, self._check = encode(seq, time, event, self._check)
            lines.append(line)
        beside = part_of(self._path)
        beside.unlink(missing_ok=True)
        old, self._file = self._file, _opened(beside)
        try:
            self._write(b"".join(lines))
            os.fsync(self._file)
            beside.replace(self._path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise UserError(self._fail(error)) from None
        except UserError:
            beside.unlink(missing_ok=True)
            raise
        finally:
            old.close()
        self._is_old = False

    def append(self, time: float, event: Event) -> None:
        """Write one event; it is with the operating system when this returns.

        Raises
        ------
        UserError
            It cannot be written, nor can any later one. What was written before stays whole.
        """
        if self._is_old:
            self._convert()
        self.history = []
        line, check = encode(self._seq, time, event, self._check)
        self._write(line)
        self._seq, self._check = self._seq + 1, check

    def _write(self, data: bytes) -> None:
        if self._failure is not None:
            raise UserError(self._failure)
        rest = data
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # else half a line is left, which readers leave out
                self._file.truncate(self._length)
            raise UserError(self._fail(error)) from None
        self._length += len(data)

    def _fail(self, error: OSError) -> str:
        """Nothing more can be written; in words."""
        remedy = "free some space" if error.errno in _FULL else "mend that"
        self._failure = (
            f"{self._path}: cannot be written ({error.strerror}): the run is whole up to here; {remedy}, then go on "
            f"with --resume --run {self._path.parent}"
        )
        return self._failure

    def close(self) -> None:
        """Make it durable and let the next job have it. Raises UserError if what was written cannot be kept."""
        try:
            if self._failure is None:
                os.fsync(self._file)
        except OSError as error:  # some file systems find only now that there is no room
            raise UserError(self._fail(error)) from None
        finally:
            self._file.close()


def _opened(path: Path) -> FileIO:
    """The file, open for appending and locked where the file system has locks. Raises UserError."""
    while True:
        try:
            file = open(path, "a+b", buffering=0)  # noqa: SIM115 - open as long as the job runs
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        try:
            _lock(file)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except BlockingIOError:
            file.close()
            raise UserError(f"{path}: another job is running on this folder; wait for it or end it") from None
        except FileNotFoundError:
            pass
        except OSError as error:
            file.close()
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        file.close()  # another job has rewritten the journal meanwhile: what is locked is not it any more


def _lock(file: FileIO) -> None:
    """Where there are locks. Raises BlockingIOError if another job has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
