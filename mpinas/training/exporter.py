"""Exports candidates in processes of their own, so that the coordinator's loop never waits for torch's exporter.

Both ends are here: `Exporters` in the job, `serve` in each child. One JSON line a request on the child's standard
input, one a reply on its standard output; the child ends when its input does, so it never outlives the job.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from mpinas.errors import UserError
from mpinas.search import Genome


class Request(msgspec.Struct, frozen=True):
    """Export this genome, untrained."""

    candidate: int
    genome: Genome
    input_shape: tuple[int, int, int]
    outputs: int
    path: str


class Reply(msgspec.Struct, frozen=True):
    """`error` is empty if the file is there."""

    candidate: int
    size_bytes: int = 0
    parameters: int = 0
    seconds: float = 0.0
    error: str = ""


#: No network takes longer to export; a child that does hangs.
EXPORT_LIMIT_S = 300.0
#: Children that may end in a row before the job gives up.
FRUITLESS_MAX = 3


class Exporters:
    """The job's end of several children. Never blocks: `submit` queues, `poll` returns what is done."""

    def __init__(self, count: int, log: Path, environment: Mapping[str, str]) -> None:
        self._each = [_Exporter(log, environment) for _ in range(count)]

    def descriptors(self) -> list[int]:
        """One of them is readable when `poll` has something; others after a child has died."""
        return [exporter.fileno() for exporter in self._each]

    def submit(self, request: Request) -> None:
        """Queue a request where the fewest wait."""
        min(self._each, key=lambda exporter: exporter.waiting).submit(request)

    def poll(self) -> list[Reply]:
        """Replies that have arrived.

        Raises
        ------
        UserError
            A child gets nothing done, and neither do those that took its place: it is not the candidates' fault.
        """
        return [reply for exporter in self._each for reply in exporter.poll()]

    def close(self) -> None:
        """End the children; at once if they are busy."""
        for exporter in self._each:
            exporter.close()


class _Exporter:
    """The job's end of one child.

    A candidate that kills the child, or takes longer than `EXPORT_LIMIT_S`, gets an error; the others go on in a new
    child.
    """

    def __init__(self, log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        self._environment = dict(environment)
        #: Requests without a reply, oldest first; the first is the one that the child works on.
        self._open: dict[int, Request] = {}
        self._head_since = time.monotonic()
        #: Children in a row that ended without one reply.
        self._fruitless = 0
        self._start()

    def _start(self) -> None:
        with open(self._log, "ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "mpinas.training.exporter"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C on the terminal is the job's affair
                env=self._environment,
            )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._requests, self._replies = self._child.stdin.fileno(), self._child.stdout.fileno()
        os.set_blocking(self._requests, False)
        os.set_blocking(self._replies, False)
        self._unsent = b"".join(map(_line, self._open.values()))
        self._received = b""
        self._head_since = time.monotonic()

    def fileno(self) -> int:
        return self._replies

    @property
    def waiting(self) -> int:
        """Requests without a reply."""
        return len(self._open)

    def submit(self, request: Request) -> None:
        if not self._open:
            self._head_since = time.monotonic()
        self._open[request.candidate] = request
        self._unsent += _line(request)
        self._send()

    def poll(self) -> list[Reply]:
        self._send()
        try:
            data = os.read(self._replies, 1 << 16)
        except BlockingIOError:
            if self._open and time.monotonic() - self._head_since > EXPORT_LIMIT_S:
                return self._fail_head(f"took longer than {EXPORT_LIMIT_S:.0f} s")
            return []
        if not data:
            return self._fail_head("the exporter was killed")
        *lines, self._received = (self._received + data).split(b"\n")
        replies = [msgspec.json.decode(line, type=Reply) for line in lines]
        for reply in replies:
            self._fruitless = 0
            del self._open[reply.candidate]
            self._head_since = time.monotonic()
        return replies

    def _send(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._requests, self._unsent) :]
        except (BlockingIOError, BrokenPipeError):
            pass  # full, or dead: the next read tells

    def _fail_head(self, why: str) -> list[Reply]:
        """Give up the request at work, and go on with the others in a new child."""
        self.close()
        self._fruitless += 1
        if self._fruitless > FRUITLESS_MAX:
            raise UserError(f"the exporter ended {self._fruitless} times in a row without a result: see {self._log}")
        failed = list(self._open)[:1]
        for candidate in failed:
            del self._open[candidate]
        self._start()
        return [Reply(candidate, error=f"{why}; its log is {self._log}") for candidate in failed]

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()


def _line(request: Request) -> bytes:
    return msgspec.json.encode(request) + b"\n"


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """The child's end: answer every line until the input ends."""
    import torch

    from mpinas.models import build, input_frames
    from mpinas.training.export import export_onnx, get_ready

    get_ready()
    for line in requests:
        began_s = time.monotonic()
        request = msgspec.json.decode(line, type=Request)
        torch.manual_seed(request.candidate)
        try:
            model = build(request.genome, request.input_shape, request.outputs)
            shape = (input_frames(request.genome, request.input_shape), *request.input_shape[1:])
            size = export_onnx(model, shape, Path(request.path), {})
            parameters = sum(p.numel() for p in model.parameters())
            reply = Reply(request.candidate, size, parameters, time.monotonic() - began_s)
        except Exception as error:  # whatever a network does to the exporter is that candidate's outcome
            reply = Reply(request.candidate, error=f"{type(error).__name__}: {error}".splitlines()[0])
        replies.write(msgspec.json.encode(reply) + b"\n")
        replies.flush()


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    os.nice(5)  # a measurement on the same machine goes first
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print goes to the log
    serve(sys.stdin.buffer, answers)
