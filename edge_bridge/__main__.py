"""`python -m edge_bridge` and the console script `edge-bridge`.

Whoever ends a command by Ctrl-C or SIGTERM sees no traceback, also while its modules are still being imported.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

#: Exit code of a command that was ended before it had its answer.
INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    wanted = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not signal.SIG_IGN]
    for each in wanted:
        signal.signal(each, _end_at_once)
    from edge_bridge.cli import main as run

    for each in wanted:
        signal.signal(each, signal.default_int_handler)
    try:
        try:
            run()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        _end_unheard(error)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _end_unheard(error: OSError) -> NoReturn:
    """Standard output, as a rule, cannot be written: into a file on a full disk, or a pipe that nobody reads."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE):
        raise error
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in buffers has nowhere to go
    if error.errno == errno.EPIPE:
        sys.exit(1)  # as click has it
    where = error.filename or "standard output"
    print(f"edge-bridge: {where}: cannot be written ({error.strerror}); write to another place", file=sys.stderr)
    sys.exit(2)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Nothing is open yet, and an exception could end up in the middle of any import."""
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
