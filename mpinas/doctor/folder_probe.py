"""`python -m mpinas.doctor.folder_probe DIR`: tries what a run folder needs, and prints `FolderFacts` as JSON.

A process of its own: a call into a dead file system never comes back. It leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from mpinas.doctor.facts import FolderFacts, Trial

_BYTES = b"mpinas" * 1000


def existing_part(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = Path(os.path.abspath(path))
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def kind_of(path: str, mounts: str) -> str:
    """Type of the file system that holds the absolute `path`, by the text of /proc/self/mountinfo; "" if unknown."""
    best, kind = "", ""
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        fields = mount.split()
        if len(fields) < 5 or not source:
            continue
        point = fields[4].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        # of two on the same point the later one hides the other
        if inside and len(point) >= len(best):
            best, kind = point, source.split()[0]
    return kind


def kind_here(folder: Path) -> str:
    """Type of the file system of an existing folder."""
    return kind_of(os.path.realpath(folder), Path("/proc/self/mountinfo").read_text())


def probe(folder: Path) -> FolderFacts:
    """Everything about the file system of an existing folder."""
    found = os.statvfs(folder)
    return FolderFacts(
        path=str(folder),
        kind=kind_here(folder),
        free_bytes=found.f_bavail * found.f_frsize,
        free_inodes=found.f_favail if found.f_files else None,
        write=_tried(lambda: _write(folder)),
        lock=_tried(lambda: _lock(folder)),
    )


def _tried(act: Callable[[], None]) -> Trial:
    start_s = time.perf_counter()
    try:
        act()
    except OSError as error:
        return Trial(time.perf_counter() - start_s, error.strerror or str(error))
    return Trial(time.perf_counter() - start_s)


def _write(folder: Path) -> None:
    """As checkpoints are written: beside, to the disk, renamed."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".mpinas-doctor-") as place:
        beside, final = Path(place, "part"), Path(place, "whole")
        with open(beside, "wb") as file:
            file.write(_BYTES)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, final)
        if final.read_bytes() != _BYTES:
            raise OSError("what was read back is not what was written")


def _lock(folder: Path) -> None:
    """A second open file must not get the lock of the first."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".mpinas-doctor-") as file, open(file.name, "rb") as other:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        raise OSError("two hold the same lock")


if __name__ == "__main__":
    print(msgspec.json.encode(probe(existing_part(Path(sys.argv[1])))).decode())
