"""A child process that may die, hang or talk nonsense without harm to us. Knows nothing of what it does."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from types import TracebackType

#: A process that hangs in the kernel (a dead file system) outlives its SIGKILL: we do not wait for it.
KILL_S = 1.0
SAID_LINES = 12


class Child:
    """One child: a context manager that ends it. `lines` reads what it says, and gives it up when it falls silent.

    It inherits every open file that was inherited by us: some launchers give MPI a socket that way (PMI_FD). It stays
    in our process group: whoever kills the rank kills it too. Its standard error is kept for `said`; with `speaks` it
    is ours instead, and nothing of it is lost however this ends.
    """

    def __init__(self, command: Sequence[str], speaks: bool = False) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._missing = ""
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=None if speaks else self._errors,
                close_fds=False,
            )
        except OSError as error:
            self._missing = f"{command[0]}: {error.strerror}"

    def lines(self, silence_s: float) -> Iterator[str]:
        """What it prints, line by line, until it closes its output or prints nothing for so long."""
        if self._process is None:
            return
        assert self._process.stdout is not None
        output, rest = self._process.stdout.fileno(), b""
        while select.select([output], [], [], silence_s)[0]:
            data = os.read(output, 1 << 16)
            if not data:
                break
            *whole, rest = (rest + data).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
        if rest:
            yield rest.decode(errors="replace")

    def ended(self, limit_s: float = KILL_S) -> int | None:
        """Exit code, minus the signal that killed it, 127 if it could not be started; None: it runs on."""
        if self._process is None:
            return 127
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(limit_s)
        return None

    def said(self) -> str:
        """The last lines of its standard error, or why it could not be started."""
        if self._missing:
            return self._missing
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - (1 << 14)))
        lines = self._errors.read().decode(errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-SAID_LINES:])

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self.ended()
            assert self._process.stdout is not None
            self._process.stdout.close()
        self._errors.close()


def answer(command: Sequence[str], silence_s: float) -> tuple[int | None, str, str]:
    """Exit code as `Child.ended` gives it, what it printed, and the last lines of its standard error."""
    with Child(command) as child:
        printed = "\n".join(child.lines(silence_s))
        return child.ended(), printed, child.said()
