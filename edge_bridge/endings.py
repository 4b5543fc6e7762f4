"""How a service of the bridge is asked to end: SIGTERM, SIGINT, or the end of its standard input.

Turns all three into something a poller can wait for. Must not know what is ended.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from types import FrameType, TracebackType

END_OF_STDIN = "end of standard input"


class Endings:
    """Context in which the wishes to end arrive as readable file descriptors.

    Parameters
    ----------
    with_stdin
        End also when standard input reaches its end: a child whose owner holds the other end of that pipe
        ends with its owner, however that died.
    """

    def __init__(self, with_stdin: bool) -> None:
        self._with_stdin = with_stdin
        self._read_end, self._write_end = socket.socketpair()
        for end in (self._read_end, self._write_end):
            end.setblocking(False)

    def __enter__(self) -> Endings:
        self._old_wakeup = signal.set_wakeup_fd(self._write_end.fileno(), warn_on_full_buffer=False)
        self._old_handlers = {each: signal.signal(each, _ignore) for each in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, handler in self._old_handlers.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._read_end.close()
        self._write_end.close()

    def descriptors(self) -> list[int]:
        """File descriptors to poll for reading."""
        return [self._read_end.fileno(), *([sys.stdin.fileno()] if self._with_stdin else [])]

    def asked_by(self, readable: int) -> str | None:
        """Say who asks to end, if what became readable is such a wish."""
        if readable == self._read_end.fileno():
            numbers = [each for each in self._read_end.recv(64) if each in self._old_handlers]
            return signal.Signals(numbers[0]).name if numbers else None
        if self._with_stdin and readable == sys.stdin.fileno() and not os.read(readable, 4096):
            return END_OF_STDIN
        return None


def _ignore(number: int, frame: FrameType | None) -> None:
    """Take the signal; the wake-up descriptor carries it on."""
