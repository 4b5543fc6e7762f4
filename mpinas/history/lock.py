"""Who runs on a run folder: a lock file that also tells a dead job from a living one, on other machines too.

The journal's own lock does not reach across nodes on every parallel file system. So a job leaves `running.json`, made
exclusively, that says who it is, and touches it every few seconds: its beat. Whoever finds one looks whether that
process lives (same machine), asks Slurm (same cluster), or watches for a beat. The content never changes: a new owner
is a new file. Must not know the journal, nor what the job does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from pathlib import Path
from types import TracebackType

import msgspec

from mpinas.errors import UserError

#: Seconds between two beats; and how long without one an owner is watched before it is taken for dead.
BEAT_S, WATCH_S = 10.0, 25.0
_LOOK_S = 1.0
#: Processes of a Slurm job exist in these states. In COMPLETING they are just being ended; in others there are none.
_SLURM_ALIVE = frozenset({"RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "CONFIGURING", "RESIZING"})
#: … and in these they cannot beat.
_SLURM_FROZEN = frozenset({"SUSPENDED", "STOPPED"})

#: State of a Slurm job in Slurm's words, "" if it has none any more, None if Slurm cannot be asked.
JobState = Callable[[str], str | None]


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds the lock.

    Attributes
    ----------
    boot, pids, pid, started
        What tells its process from all others of this host: boot id, pid namespace, pid, and the process's start in
        clock ticks since the boot (a pid is used again).
    cluster, job, restarts
        Of Slurm; "" and 0 outside of it.
    since
        When it took the lock, in Unix time.
    token
        Random; no two owners have the same.
    """

    host: str
    boot: str
    pids: str
    pid: int
    started: int
    cluster: str = ""
    job: str = ""
    restarts: int = 0
    since: float
    token: str

    @classmethod
    def myself(cls, now: float, environ: Mapping[str, str] = os.environ) -> Owner:
        """This process."""
        return cls(
            host=socket.gethostname(),
            boot=_first_line("/proc/sys/kernel/random/boot_id"),
            pids=process_namespace(),
            pid=os.getpid(),
            started=started_at(os.getpid()) or 0,
            cluster=environ.get("SLURM_CLUSTER_NAME", ""),
            job=environ.get("SLURM_JOB_ID", ""),
            restarts=int(environ.get("SLURM_RESTART_COUNT", "0")),
            since=now,
            token=secrets.token_hex(8),
        )

    @property
    def described(self) -> str:
        """For people."""
        process = f"process {self.pid} on {self.host}"
        who = f"Slurm job {self.job}, {process}" if self.job else process
        return f"{who}, since {datetime.fromtimestamp(self.since):%Y-%m-%d %H:%M}"


@dataclass(frozen=True, slots=True)
class Sight:
    """A lock file as it was found. `owner` is None where it cannot be read (yet); `beat`: the last one, Unix time."""

    content: bytes
    beat_ns: int
    owner: Owner | None

    @property
    def beat(self) -> float:
        """Unix time of the last beat, by the clock of the owner."""
        return self.beat_ns / 1e9


class Life(Enum):
    """What is known of an owner without waiting."""

    ALIVE = auto()
    DEAD = auto()
    UNKNOWN = auto()


def look(file: Path) -> Sight | None:
    """The lock file as it is now; None if there is none. Raises UserError where it cannot be read."""
    try:
        with open(file, "rb") as opened:  # opened anew each time: a network file system then asks its server
            content, status = opened.read(), os.fstat(opened.fileno())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        owner = msgspec.json.decode(content, type=Owner)
    except (msgspec.MsgspecError, ValueError):
        owner = None
    return Sight(content, status.st_mtime_ns, owner)


def life_of(other: Owner, me: Owner, job_state: JobState) -> Life:
    """Whether the process of `other` lives, as far as `me` can tell without waiting."""
    if other.boot and (other.host, other.boot, other.pids) == (me.host, me.boot, me.pids):
        return Life.ALIVE if started_at(other.pid) == other.started else Life.DEAD
    if not other.job or not other.cluster or other.cluster != me.cluster:
        return Life.UNKNOWN
    if other.job == me.job:  # requeued, or another step of the job
        return Life.DEAD if other.restarts < me.restarts else Life.UNKNOWN
    state = job_state(other.job)
    if state in _SLURM_FROZEN:
        return Life.ALIVE
    # a job that runs may have other things to do since its search has died: its beat tells
    return Life.UNKNOWN if state is None or state == "COMPLETING" or state in _SLURM_ALIVE else Life.DEAD


class RunLock:
    """The lock, held by this process. A context manager; `acquire` it."""

    def __init__(self, file: Path, owner: Owner, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self.owner = owner
        self._content = msgspec.json.encode(owner)
        self._last_s = clock()
        #: Why it is not held any more.
        self._lost: str | None = None
        self._released = threading.Event()

    @classmethod
    def acquire(
        cls,
        file: Path,
        *,
        me: Owner | None = None,
        job_state: JobState | None = None,
        wait: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> RunLock:
        """Take the lock; that of a dead owner is taken over. May wait for WATCH_S.

        Parameters
        ----------
        me
            Who takes it; by default this process.
        job_state
            How Slurm is asked; by default with squeue.
        clock
            When the next beat is due, in seconds; not the wall clock, which may be set back.

        Raises
        ------
        UserError
            Another job runs on the folder, or the file cannot be made.
        """
        lock = cls(file, me or Owner.myself(time.time()), clock)
        while not lock._create():
            seen = look(file)
            if seen is None:
                continue  # it has just been released
            life = life_of(seen.owner, lock.owner, job_state or slurm_job_state) if seen.owner else Life.UNKNOWN
            if life is Life.ALIVE or (life is Life.UNKNOWN and _beats(file, seen, wait)):
                who = f": {seen.owner.described}" if seen.owner else f" (see {file.name})"
                raise UserError(f"{file.parent}: another job is running on this folder{who}; wait for it or end it")
            lock._remove(seen, wait)
        return lock

    def _create(self) -> bool:
        """False if there is a lock file already."""
        try:
            descriptor = os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        except OSError as error:
            raise UserError(f"{self._file}: cannot be written: {error.strerror}") from None
        try:
            with open(descriptor, "wb", buffering=0) as file:
                file.write(self._content)
        except OSError as error:
            self._file.unlink(missing_ok=True)
            raise UserError(f"{self._file}: cannot be written: {error.strerror}") from None
        return True

    def _remove(self, dead: Sight, wait: Callable[[float], None]) -> None:
        """Remove a dead owner's file, of all that found it so one alone: a file in its place is another owner's.

        Who makes the claim, a file named after the dead one's content, may remove it. One who died with the claim is
        waited for as long as for a beat; then the next goes on in its place.
        """
        claim = self._file.with_name(f"{self._file.name}.{hashlib.sha256(dead.content).hexdigest()[:16]}")
        try:
            for _ in range(round(WATCH_S / _LOOK_S)):
                with contextlib.suppress(FileExistsError):
                    os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                    break
                wait(_LOOK_S)
                if not self._is(dead):
                    return
            if self._is(dead):
                self._file.unlink(missing_ok=True)
            claim.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{self._file}: cannot be taken over: {error.strerror}") from None

    def _is(self, dead: Sight) -> bool:
        seen = look(self._file)
        return seen is not None and seen.content == dead.content

    def keep_beating(self) -> None:
        """Beat from a thread of its own until the release, whatever the process is busy with."""

        def run() -> None:
            with contextlib.suppress(UserError):  # the next `beat` says it
                while not self._released.wait(BEAT_S):
                    self.beat(time.time())

        threading.Thread(target=run, name="run-lock", daemon=True).start()

    def beat(self, now: float) -> None:
        """Show that this process lives; does nothing if it did so less than BEAT_S ago. `now`: Unix time.

        Raises
        ------
        UserError
            The lock is another's, or gone: this job must not write any more.
        """
        if self._lost is not None:
            raise UserError(self._lost)
        if self._clock() - self._last_s < BEAT_S:
            return
        self._last_s = self._clock()
        try:
            seen = look(self._file)
        except UserError:  # the file system does not answer: it may the next time
            return
        if seen is None or seen.content != self._content:
            who = f"another job has taken it over: {seen.owner.described}" if seen and seen.owner else "it is gone"
            self._lost = (
                f"{self._file}: this job's lock is lost ({who}); it ends here, and its results are kept; to go on when "
                f"no other job runs: --resume --run {self._file.parent}"
            )
            raise UserError(self._lost)
        with contextlib.suppress(OSError):  # it may go better the next time
            os.utime(self._file, ns=(round(now * 1e9),) * 2)

    def release(self) -> None:
        """Let the next job have it."""
        self._released.set()
        with contextlib.suppress(UserError, OSError):
            seen = look(self._file)
            if seen is not None and seen.content == self._content:
                self._file.unlink()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _beats(file: Path, seen: Sight, wait: Callable[[float], None]) -> bool:
    """Watch for a beat. False as well when the lock is gone."""
    for _ in range(round(WATCH_S / _LOOK_S)):
        wait(_LOOK_S)
        again = look(file)
        if again is None:
            return False
        if again != seen:
            return True
    return False


def started_at(pid: int) -> int | None:
    """Start of a process, in clock ticks since the boot; None if there is no such process, or only its remains."""
    stat = _first_line(f"/proc/{pid}/stat")
    if not stat:
        return None
    # the command's name, in parentheses, may have spaces and parentheses; state is the field after it, start the 22nd
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def slurm_job_state(job: str) -> str | None:
    """What squeue says of a job: see `JobState`."""
    try:
        told = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%T"],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    if told.returncode != 0:
        return "" if "Invalid job id" in told.stderr else None
    states = told.stdout.split()  # of a heterogeneous job or an array there are several
    return next((state for state in states if state in _SLURM_ALIVE), states[0] if states else "")


def _first_line(file: str) -> str:
    """Of a small file; empty where there is no such file."""
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            return opened.readline().strip()
    except (OSError, ValueError):
        return ""


def process_namespace() -> str:
    """Within which process ids mean the same; empty where that is not known."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
