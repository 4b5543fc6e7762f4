"""Exports candidates in processes of their own, so that the coordinator's loop never waits for torch's exporter.

Both ends are here: `Exporters` in the job, `serve` in each child. One JSON line a request on the child's standard
input, one a reply on its standard output; the child ends when its input does, or when the job dies.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from mpinas.children import deaf_to_wishes, end_with
from mpinas.errors import UserError, disk_error, disk_trouble
from mpinas.plugins import in_one_line
from mpinas.priority import EXPORTER_NICENESS, nice_process, nice_session
from mpinas.search import Genome


class Request(msgspec.Struct, frozen=True):
    """Export this genome, untrained."""

    candidate: int
    genome: Genome
    #: The space that the genome is of, and what its networks are for: see `models.Networks`.
    space: str
    input_shape: tuple[int, int, int]
    outputs: int
    path: str
    #: Training samples for integer networks (a NumPy file); "": there are none.
    calibration: str = ""
    #: The human-designed network, by name: for networks made from it.
    baseline: str = ""


class Reply(msgspec.Struct, frozen=True):
    """`error` is empty if the file is there; `disk`: it is the file system's, and not the network's."""

    candidate: int
    size_bytes: int = 0
    parameters: int = 0
    seconds: float = 0.0
    error: str = ""
    disk: bool = False


#: What a child says first: whatever ends it from now on is the request at work.
READY = Reply(-1)
#: No network takes longer to export; a child that does hangs.
EXPORT_LIMIT_S = 300.0
#: Who looked away for so long may have been stopped itself, its children too: that time is held against nobody.
LOOKED_AWAY_S = 10.0
#: Children that may end in a row before the job gives up.
FRUITLESS_MAX = 3


class Exporters:
    """The job's end of several children. Never blocks: `submit` queues, `poll` returns what is done."""

    def __init__(self, count: int, log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        self._each = [_Exporter(log, environment) for _ in range(count)]
        #: Children in a row that ended without anything being written in between.
        self._fruitless = 0

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
            One child after the other ends and none gets anything done, or the disk is full: it is not the candidates'
            fault.
        """
        replies: list[Reply] = []
        for exporter in self._each:
            answered, died = exporter.poll()
            self._fruitless = self._fruitless + 1 if died else 0 if answered else self._fruitless
            if self._fruitless > FRUITLESS_MAX:
                raise UserError(f"exporters ended {self._fruitless} times in a row without a result: see {self._log}")
            replies += answered
        for reply in replies:
            if reply.disk:
                raise disk_error(reply.error)
        return replies

    def close(self) -> None:
        """End the children; at once if they are busy."""
        for exporter in self._each:
            exporter.close()


class _Exporter:
    """The job's end of one child.

    A candidate that kills two children, or takes longer than `EXPORT_LIMIT_S`, gets an error; the others go on in a new
    child. One that dies before it was ready dies of something else, and takes no candidate with it.
    """

    def __init__(self, log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        self._environment = dict(environment)
        #: Requests without a reply, oldest first; the first is the one that the child works on.
        self._open: dict[int, Request] = {}
        #: At whose work a child was killed: it may have been an accident, so it is tried once more.
        self._suspect: int | None = None
        self._start()

    def _start(self) -> None:
        with open(self._log, "ab") as log, deaf_to_wishes():
            self._child = subprocess.Popen(
                [sys.executable, "-m", "mpinas.training.exporter", str(os.getpid())],
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
        self._ready = False
        self._head_since = self._looked_s = time.monotonic()

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

    def poll(self) -> tuple[list[Reply], bool]:
        """Replies that have arrived, and whether the child has died of its work or before it could begin."""
        self._send()
        now_s = time.monotonic()
        away_s, self._looked_s = now_s - self._looked_s, now_s
        if away_s > LOOKED_AWAY_S:
            self._head_since += away_s
        try:
            data = os.read(self._replies, 1 << 16)
        except BlockingIOError:
            if self._open and now_s - self._head_since > EXPORT_LIMIT_S:
                return self._give_up(f"took longer than {EXPORT_LIMIT_S:.0f} s") if self._ready else self._after_death()
            return [], False
        if not data:
            return self._after_death()
        *lines, self._received = (self._received + data).split(b"\n")
        replies = [msgspec.json.decode(line, type=Reply) for line in lines]
        self._head_since = time.monotonic() if replies else self._head_since
        if READY in replies:
            self._ready = True
            replies.remove(READY)
        for reply in replies:
            del self._open[reply.candidate]
            self._suspect = None if reply.candidate == self._suspect else self._suspect
        return replies, False

    def _send(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._requests, self._unsent) :]
        except (BlockingIOError, BrokenPipeError):
            pass  # full, or dead: the next read tells

    def _after_death(self) -> tuple[list[Reply], bool]:
        """Go on in a new child, without the request at work if it has killed the one before, too."""
        at_work = next(iter(self._open), None) if self._ready else None
        if at_work is not None and at_work == self._suspect:
            return self._give_up("the exporter was killed twice")
        was_ready, self._suspect = self._ready, at_work
        self.close()
        self._start()
        return [], not was_ready

    def _give_up(self, why: str) -> tuple[list[Reply], bool]:
        """Give up the request at work, and go on with the others in a new child."""
        self.close()
        candidate = next(iter(self._open))
        del self._open[candidate]
        self._start()
        return [Reply(candidate, error=f"{why}; its log is {self._log}")], True

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
    import numpy as np
    import torch

    from mpinas.models import Networks
    from mpinas.training.artifact import precision_of, write_artifact
    from mpinas.training.export import check_outputs, get_ready

    try:
        get_ready()
    except Exception:  # only time is lost: the candidates will say what is wrong
        traceback.print_exc()
    replies.write(msgspec.json.encode(READY) + b"\n")
    replies.flush()
    for line in requests:
        began_s = time.monotonic()
        request = msgspec.json.decode(line, type=Request)
        torch.manual_seed(request.candidate)
        try:
            networks = Networks(request.space, request.input_shape, request.outputs, request.baseline)
            model, shape = networks.build(request.genome), networks.shape(request.genome)
            calibration = np.load(request.calibration, allow_pickle=False) if request.calibration else None
            path = Path(request.path)
            size = write_artifact(model, shape, path, {}, precision_of(request.genome), calibration)
            check_outputs(path, request.outputs)
            parameters = sum(p.numel() for p in model.parameters())
            reply = Reply(request.candidate, size, parameters, time.monotonic() - began_s)
        except Exception as error:  # whatever a network does to the exporter is that candidate's outcome
            if (trouble := disk_trouble(error, request.path)) is not None:
                reply = Reply(request.candidate, error=trouble, disk=True)
            else:
                reply = Reply(request.candidate, error=in_one_line(_first(error)))
        replies.write(msgspec.json.encode(reply) + b"\n")
        replies.flush()


def _first(error: BaseException) -> BaseException:
    """What has led to an error: torch's exporter tells at length that it failed, and not why."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    import torch

    torch.set_num_threads(1)
    nice_process(EXPORTER_NICENESS)
    nice_session(EXPORTER_NICENESS)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print goes to the log
    serve(sys.stdin.buffer, answers)
