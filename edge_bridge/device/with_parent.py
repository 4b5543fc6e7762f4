"""Run a command that ends when the process that started it ends, however that died.

Used as `python with_parent.py PARENT_PID COMMAND…`: asks the kernel for SIGTERM at the parent's death, then becomes the
command. Standard library only; knows nothing of the bridge.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Become the command, unless the parent has already gone."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() == parent:
        os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
