"""The few exceptions that cross packages. Outcomes of candidates are messages, not exceptions."""

from __future__ import annotations

import errno


class UserError(Exception):
    """What the user can mend. One line: what, where, what to do. Ends the command with exit code 2."""


class ProtocolError(Exception):
    """A message that the control protocol does not allow here: a bug, never bad input."""


#: What a file system answers that is full or does not work: no candidate's fault, and it does not pass by itself.
_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE})


def disk_trouble(error: BaseException, near: str = "") -> str | None:
    """What the file system said, if it is that which brought an error about; None if it was something else.

    `near`: where it was at work, for a file system that does not say which file it was.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _OF_THE_DISK:
            where = cause.filename or near
            return f"{where}{where and ': '}cannot be written ({cause.strerror})"
        cause = cause.__cause__ or cause.__context__
    return None


def disk_error(trouble: str) -> UserError:
    """The job ends by it, and can go on."""
    return UserError(f"{trouble}: nothing finished is lost; free some space, then go on with `mpinas search --resume`")
