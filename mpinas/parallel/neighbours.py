"""The ranks of one node: when the launcher ends a job because one has died, another says which, and what it was at.

Open MPI's launcher gives the others about half a second between its first signal and SIGKILL; Slurm gives them more, or
none where its PMIx is first, and names the rank itself. Must not know orders or reports: what a rank was at is read
from the end of the journal.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

import msgspec

#: What launchers send to the others when a rank has died.
LAUNCHER_SIGNALS = (signal.SIGTERM, signal.SIGCONT)
#: From a rank that ends the job, and has said why, to the others of its node: they need not say that it has died.
EXPLAINED = signal.SIGURG
#: So long they leave it at that (seconds): by then the job has ended.
HUSH_S = 30.0
#: So much of the journal's end is looked through for what a rank was at, and if it does not say, so much more.
TAIL_BYTES = (1 << 18, 1 << 23)


class Vigil:
    """A thread that wakes at a launcher's signals, whatever the main thread is doing, and at regular times.

    Parameters
    ----------
    on_signal, every
        Called by the thread: when one of LAUNCHER_SIGNALS has come, and every so many seconds; neither while the job
        ends by what a neighbour has explained.
    """

    def __init__(
        self, on_signal: Callable[[], object], every: tuple[float | None, Callable[[], None]] = (None, lambda: None)
    ) -> None:
        self._on_signal = on_signal
        self._tick_s, self._on_tick = every
        self._ends = False
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._explained_before = signal.signal(EXPLAINED, take_notice)
        self._thread = threading.Thread(target=self._watch, name="vigil", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        try:
            self._look_and_listen()
        except BaseException:  # nobody would look after this process any more: that would be noticed by nobody
            say(traceback.format_exc())
            os._exit(1)

    def _look_and_listen(self) -> None:
        silent_until_s = 0.0
        while not self._ends:
            awake, _, _ = select.select([self._reader], [], [], self._tick_s)
            came = set(os.read(self._reader, 64)) if awake else set()
            if EXPLAINED in came:
                silent_until_s = time.monotonic() + HUSH_S
            if time.monotonic() < silent_until_s:
                continue
            if came & {int(number) for number in LAUNCHER_SIGNALS}:
                self._on_signal()
            self._on_tick()

    def close(self) -> None:
        """End the thread."""
        self._ends = True
        os.write(self._writer, b"\0")
        self._thread.join()
        signal.set_wakeup_fd(self._before)
        signal.signal(EXPLAINED, self._explained_before)
        os.close(self._reader)
        os.close(self._writer)


def take_notice(number: int, frame: FrameType | None) -> None:
    """For a signal that only the vigil heeds."""


#: Processes of the other ranks of this node, once they are known.
_NEIGHBOURS: list[int] = []


def meet(process_ids: Mapping[int, int]) -> None:
    """These are the ranks of this node, by rank."""
    _NEIGHBOURS[:] = [pid for pid in process_ids.values() if pid != os.getpid()]


def explain() -> None:
    """Let the neighbours know that this process ends the job, and has said why."""
    for pid in _NEIGHBOURS:
        with suppress(OSError):  # it may be gone
            os.kill(pid, EXPLAINED)


def dead_among(process_ids: Mapping[int, int]) -> list[int]:
    """Ranks of this node whose processes have ended; `process_ids` by rank."""
    return [rank for rank, pid in process_ids.items() if not _lives(pid)]


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return False
    except OSError:  # no descriptor is free, as a rule: nothing is known of it
        return True
    return state not in "ZX"


def report_the_dead(process_ids: Mapping[int, int], journal: Path) -> list[int]:
    """Say once on this node which ranks have died, and what they were at; those that this process has spoken of."""
    spoken_of = [rank for rank in dead_among(process_ids) if claim(process_ids[rank])]
    for rank in spoken_of:
        work = "it coordinated the search" if rank == 0 else _work_of(rank, journal)
        say(last_words(rank, process_ids[rank], socket.gethostname(), work))
    return spoken_of


def say(line: str) -> None:
    """On standard error, if anybody is there to read it."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


#: Held as long as this process lives, so that no other says the same.
_CLAIMS: list[socket.socket] = []


def claim(pid: int) -> bool:
    """May this process speak of that one's end? The first on this machine that asks may, as long as it lives."""
    held = socket.socket(socket.AF_UNIX)
    try:
        held.bind(f"\0mpinas-{pid}")  # a name that goes with the process
    except OSError:
        held.close()
        return False
    _CLAIMS.append(held)
    return True


def _work_of(rank: int, journal: Path) -> str:
    found = (work_of(rank, _tail(journal, size)) for size in TAIL_BYTES)
    return next((work for work in found if work), "the end of the journal does not say what it was at")


def _tail(journal: Path, size: int) -> bytes:
    try:
        with open(journal, "rb") as file:
            file.seek(max(0, journal.stat().st_size - size))
            return file.read()
    except OSError:
        return b""


def work_of(rank: int, tail: bytes) -> str:
    """What a rank was at when the journal ended, in words; empty where the tail does not say it.

    `tail`: the last lines of a journal; the first of them may be cut.
    """
    work, leader, known = "", -1, False
    for line in tail.splitlines():
        try:
            event = msgspec.json.decode(line)
            kind = event["event"]
        except (msgspec.DecodeError, TypeError, KeyError):
            continue
        if kind == "Ordered" and rank in event["members"]:
            leader = event["members"][0]
            what = "the supernet" if event["work"] == "supernet" else f"candidate {event['candidate']}"
            work, known = f"{what} ({event['work']}, ranks {', '.join(map(str, event['members']))})", True
        elif kind == "Begun" or (event.get("group") == leader and kind != "Progress"):
            work, leader, known = "", -1, True
    return f"it was at work on {work}" if work else "it had no order" if known else ""


def last_words(rank: int, pid: int, host: str, work: str) -> str:
    """The line about a dead rank."""
    return (
        f"mpinas: rank {rank} on {host} (process {pid}) has died; {work}. The job ends; nothing finished is lost, "
        "and `mpinas search --resume --run DIR` goes on. Where it has not said why, and signal 9 ended it, it was most "
        "often out of memory"
    )
