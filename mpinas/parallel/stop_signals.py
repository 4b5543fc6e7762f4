"""The signals that ask a job to end, from its first moment on: rank 0 remembers them, trainers leave it to rank 0.

Must not know what a job does about them.
"""

from __future__ import annotations

import signal
from types import FrameType

from mpinas.parallel.neighbours import LAUNCHER_SIGNALS, take_notice


class StopSignals:
    """TERM, INT and USR2 ask the job to end; TERM or INT once more, and the system's own way takes over."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    #: Of these, what a scheduler sends; whoever types Ctrl-C while a job starts wants it gone.
    HELD = frozenset({signal.SIGTERM, signal.SIGUSR2})

    def __init__(self) -> None:
        #: Names of those that came, oldest first.
        self.caught: list[str] = []
        self._told = 0
        for number in self.SIGNALS:
            signal.signal(number, self._catch)
        self._let_come()

    def asked(self) -> list[str]:
        """Names of those that came since the last call, each once: one may come at any moment, this one too."""
        names = self.caught[self._told :]
        self._told += len(names)
        return names

    @property
    def at_once(self) -> bool:
        """Has one come after which there is no time left?"""
        return any(name != "SIGUSR2" for name in self.caught)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught.append(signal.Signals(number).name)
        if number != signal.SIGUSR2:
            for again in (signal.SIGTERM, signal.SIGINT):
                signal.signal(again, signal.SIG_DFL)

    @classmethod
    def hold(cls) -> None:
        """While the job starts: what comes before there is somebody to act on it waits until there is."""
        signal.pthread_sigmask(signal.SIG_BLOCK, cls.HELD)

    @classmethod
    def _let_come(cls) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, cls.HELD)

    @classmethod
    def ignore(cls) -> None:
        """For trainers: rank 0 decides and sends an order."""
        for number in cls.SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        for number in LAUNCHER_SIGNALS:  # TERM may say that a rank has died
            signal.signal(number, take_notice)
        cls._let_come()
