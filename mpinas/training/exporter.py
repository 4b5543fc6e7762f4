"""Exports candidates in a process of its own, so that the coordinator's loop never waits for torch's exporter.

Both ends are here: `Exporter` in the job, `serve` in the child. One JSON line a request on the child's standard
input, one a reply on its standard output; the child ends when its input does, so it never outlives the job.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

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
    error: str = ""


class ExporterDied(Exception):  # noqa: N818
    """The child ended by itself."""


class Exporter:
    """The job's end. Never blocks: `submit` queues, `poll` returns what is done."""

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        self._log = open(log, "ab")  # noqa: SIM115 - as long as the child
        self._child = subprocess.Popen(
            [sys.executable, "-m", "mpinas.training.exporter"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        assert self._child.stdin and self._child.stdout
        os.set_blocking(self._child.stdout.fileno(), False)
        os.set_blocking(self._child.stdin.fileno(), False)
        self._waiting: list[bytes] = []
        self._received = b""

    def fileno(self) -> int:
        """Readable when `poll` has something."""
        assert self._child.stdout
        return self._child.stdout.fileno()

    def submit(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(msgspec.json.encode(request) + b"\n")
        self._send()

    def _send(self) -> None:
        assert self._child.stdin
        while self._waiting:
            try:
                sent = os.write(self._child.stdin.fileno(), self._waiting[0])
            except BlockingIOError:
                return
            except BrokenPipeError:
                raise ExporterDied(f"the exporter ended; its log is {self._log.name}") from None
            self._waiting[0] = self._waiting[0][sent:]
            if not self._waiting[0]:
                self._waiting.pop(0)

    def poll(self) -> list[Reply]:
        """Replies that have arrived.

        Raises
        ------
        ExporterDied
            It ended by itself: a bug, or killed from outside.
        """
        self._send()
        assert self._child.stdout
        try:
            data = os.read(self._child.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return []
        if not data:
            raise ExporterDied(f"the exporter ended; its log is {self._log.name}")
        *lines, self._received = (self._received + data).split(b"\n")
        return [msgspec.json.decode(line, type=Reply) for line in lines]

    def close(self) -> None:
        """End the child; at once if it is busy."""
        assert self._child.stdin and self._child.stdout
        self._child.stdin.close()
        self._child.kill()
        self._child.wait()
        self._child.stdout.close()
        self._log.close()


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """The child's end: answer every line until the input ends."""
    from mpinas.models import build, input_frames
    from mpinas.training.export import export_onnx

    for line in requests:
        request = msgspec.json.decode(line, type=Request)
        try:
            model = build(request.genome, request.input_shape, request.outputs)
            shape = (input_frames(request.genome, request.input_shape), *request.input_shape[1:])
            size = export_onnx(model, shape, Path(request.path), {})
            reply = Reply(request.candidate, size, sum(p.numel() for p in model.parameters()))
        except Exception as error:  # whatever a network does to the exporter is that candidate's outcome
            reply = Reply(request.candidate, error=f"{type(error).__name__}: {error}".splitlines()[0])
        replies.write(msgspec.json.encode(reply) + b"\n")
        replies.flush()


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print goes to the log
    serve(sys.stdin.buffer, answers)
