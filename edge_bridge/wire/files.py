"""Small files that hold trust, and what may stand in them: read without a wait, written whole, kept.

Must not know what the files are for.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from zmq.utils import z85

#: 40 characters of ZeroMQ's base 85 alphabet; not all of them are a key (`is_key`).
KEY_PATTERN = r"^[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}$"
PublicKey = Annotated[str, msgspec.Meta(pattern=KEY_PATTERN)]
#: What a key opens: the relay's job side, its device side, or nothing (the relay's own).
Role = Literal["job", "device", "relay"]
NAME_RULE = "at most 64 printable characters without blanks"
#: No file here is larger.
FILE_LIMIT_BYTES = 1 << 20


def is_key(text: str) -> bool:
    """Say whether this is a key: characters of base 85 may also be numbers too large for 32 bytes."""
    try:
        return len(z85.decode(text.encode())) == 32
    except (ValueError, KeyError, struct.error):
        return False


def is_name(text: str) -> bool:
    """Say whether this may stand as a name in an allow-list (`NAME_RULE`)."""
    return 0 < len(text) <= 64 and text.isprintable() and " " not in text


def read_small(path: Path, limit_bytes: int = FILE_LIMIT_BYTES) -> tuple[bytes, int]:
    """Content and permissions of a plain file; a pipe, a device or a huge file is an OSError and no wait."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file")
    with open(descriptor, "rb") as stream:
        content = stream.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"larger than {limit_bytes} bytes")
    return content, stat.S_IMODE(info.st_mode)


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that does not exist yet, down to the disk; none is left where that fails."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        try:
            stream.write(content)
            stream.flush()
            # A device loses its power at any moment; an empty key file would stay.
            os.fsync(stream.fileno())
        except OSError:
            os.unlink(path)
            raise
