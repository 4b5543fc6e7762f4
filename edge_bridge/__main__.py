"""`python -m edge_bridge` and the console script `edge-bridge`.

Whoever ends a command by Ctrl-C or SIGTERM sees no traceback, also while its modules are still being imported.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

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
        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Nothing is open yet, and an exception could end up in the middle of any import."""
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
