"""The relay's allow-list: which public keys it lets in, as what, and how soon a change on disk counts.

Only the files and their lines. Must not know sockets or messages.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edge_bridge.errors import KeyFileError
from edge_bridge.wire.files import NAME_RULE, Role, is_key, is_name, read_small

log = logging.getLogger("keys")

#: How often the list is looked at; a revoked key is shut out after this time at the latest.
LOOK_S = 0.5
#: So long after a change the files are read at every look: file times may be too coarse to show a second change.
SETTLE_S = 3.0

#: Of each file: path, inode, mode, time of change in ns, size.
_Stamp = tuple[tuple[str, int, int, int, int], ...]


class AllowList:
    """Public keys that a relay lets in, from a file, or from the *.pub files of a folder.

    A line is ``KEY NAME ROLE``; an empty line or one that begins with ``# `` is skipped. What is on disk counts, at the
    latest `LOOK_S` after it was written and no restart needed: adding lets in, removing shuts out. A line that is
    none stops a relay from starting; appearing later it lets nobody in, is logged, and leaves the other lines
    alone. So does a file of a folder that cannot be read, or that anybody could write. A list of which that is true as
    a whole lets nobody in.

    Parameters
    ----------
    clock
        Monotonic time in seconds.

    Raises
    ------
    KeyFileError
        When the list cannot be read or a line of it is none.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._names: dict[tuple[str, Role], str] = {}
        self._complaints: list[str] = []
        self._stamp: _Stamp = ()
        self._changed_s = self._next_look_s = self._clock()
        self._look(self._changed_s)
        if self._complaints:
            raise KeyFileError(self._complaints[0])

    def name_of(self, public_key: str, role: Role) -> str | None:
        """Name beside this key, or None when it is not allowed in this role."""
        now_s = self._clock()
        if now_s >= self._next_look_s:
            self._look(now_s)
        name = self._names.get((public_key, role))
        if name is None and self._stamp[:1] != self._stamp_of(self._path):
            # Who has just been added need not wait; one stat, so that a stranger who knocks costs little.
            self._look(now_s)
            name = self._names.get((public_key, role))
        return name

    def roles(self) -> list[Role]:
        """The role of each key on the list."""
        return [role for _, role in self._names]

    def _look(self, now_s: float) -> None:
        """Take over what is on disk, if it may have changed."""
        self._next_look_s = now_s + LOOK_S
        files = sorted(self._path.glob("*.pub")) if self._path.is_dir() else []
        stamp = tuple(each for path in (self._path, *files) for each in self._stamp_of(path))
        if stamp != self._stamp:
            self._changed_s = now_s
        elif now_s >= self._changed_s + SETTLE_S and not self._complaints:
            # What could not be read may be readable now, and need not show it.
            return
        known, self._stamp = self._complaints, stamp
        self._names, self._complaints = self._read(files)
        for complaint in self._complaints:
            if complaint not in known:
                log.error("%s", complaint)

    def _read(self, files: list[Path]) -> tuple[dict[tuple[str, Role], str], list[str]]:
        names: dict[tuple[str, Role], str] = {}
        complaints = []
        try:
            if self._path.stat().st_mode & stat.S_IWOTH:
                return {}, [f"allow-list {self._path} lets nobody in: everybody could write it, chmod o-w {self._path}"]
            for file in files or ([] if self._path.is_dir() else [self._path]):
                try:
                    content, mode = read_small(file)
                except OSError as error:
                    if file is self._path:
                        raise
                    # One that was removed since the folder was listed is no trouble; a link to nowhere is.
                    if os.path.lexists(file):
                        complaints.append(f"allow-list {file} cannot be read ({error.strerror}) and lets nobody in")
                    continue
                if mode & stat.S_IWOTH:
                    complaints.append(f"allow-list {file} lets nobody in: everybody could write it, chmod o-w {file}")
                    continue
                for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
                    if line.split()[:1] in ([], ["#"]):
                        continue
                    entry = _allowed(line)
                    if isinstance(entry, str):
                        complaints.append(f"allow-list {file} line {number}: {entry}")
                    else:
                        names[entry[0], entry[2]] = entry[1]
        except OSError as error:
            return {}, [
                f"allow-list {self._path} cannot be read ({error.strerror}) and lets nobody in: it is a file of lines "
                "KEY NAME ROLE, or a folder of .pub files"
            ]
        return names, complaints

    @staticmethod
    def _stamp_of(path: Path) -> _Stamp:
        try:
            info = path.stat()
        except OSError:
            return ((str(path), 0, 0, 0, 0),)
        return ((str(path), info.st_ino, info.st_mode, info.st_mtime_ns, info.st_size),)


def _allowed(line: str) -> tuple[str, str, Role] | str:
    """Key, name and role of a line; or what is wrong with it."""
    key, *rest = line.split()
    if not is_key(key):
        return "not a public key (take the line from a .pub file)"
    if len(rest) < 2:
        return f"key {key[:8]}… has no role: write KEY NAME job, or KEY NAME device"
    name, role, *more = rest
    if more or not is_name(name):
        return f"{' '.join(rest)[:80]!r} is not NAME ROLE: {NAME_RULE}"
    try:
        return key, name, msgspec.convert(role, Role)
    except msgspec.ValidationError:
        return f"role {role[:40]!r} is none of job, device, relay"
