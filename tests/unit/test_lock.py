"""Who runs on a run folder: one job at a time, a dead one's lock is taken over, a living one's never.

Processes are real; what Slurm says and the waiting are values given in.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from mpinas.errors import UserError
from mpinas.history.lock import BEAT_S, WATCH_S, Life, Owner, RunLock, life_of, look, slurm_job_state, started_at

NOW = 1_800_000_000.0


def never(*_):
    raise AssertionError("nobody was to be asked or waited for")


def elsewhere(**changes):
    """A process of a job on another node."""
    process = {"host": "node07", "boot": "b7", "pids": "pid:[1]", "pid": 4711, "started": 99, "since": NOW}
    return Owner(**{**process, "token": "theirs", **changes})


def here(**changes):
    return msgspec.structs.replace(Owner.myself(NOW), **changes)


def left_behind(file, owner, beat=NOW):
    file.write_bytes(msgspec.json.encode(owner))
    os.utime(file, (beat, beat))
    return file


class Waiting:
    """Counts the seconds, and lets something happen after some of them."""

    def __init__(self, after=None, happens=None):
        self.seconds = 0.0
        self._after, self._happens = after, happens

    def __call__(self, seconds):
        self.seconds += seconds
        if self._after is not None and self.seconds >= self._after:
            self._after = None
            self._happens()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "running.json"


def test_a_free_folder_is_taken_and_given_back(file):
    with RunLock.acquire(file, wait=never, job_state=never) as lock:
        seen = look(file)
        assert seen.owner == lock.owner
        assert (seen.owner.pid, seen.owner.started) == (os.getpid(), started_at(os.getpid()))
        assert seen.beat == pytest.approx(time.time(), abs=60)
    assert list(file.parent.iterdir()) == []


def test_a_living_process_of_this_machine_keeps_its_lock_at_once(file):
    with RunLock.acquire(file), pytest.raises(UserError) as caught:
        RunLock.acquire(file, wait=never, job_state=never)
    said = str(caught.value)
    assert said.startswith(f"{file.parent}: another job is running on this folder: process {os.getpid()} on ")
    assert said.endswith("; wait for it or end it")
    assert "\n" not in said


HOLD = "import sys; from mpinas.history.lock import RunLock; from pathlib import Path; \
RunLock.acquire(Path(sys.argv[1])); print('has it', flush=True); sys.stdin.read()"


def test_a_killed_process_of_this_machine_is_known_to_be_dead_at_once(file):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"has it\n"
    with pytest.raises(UserError, match=f"process {holder.pid} on "):
        RunLock.acquire(file, wait=never, job_state=never)
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now: its parent has not looked yet
    RunLock.acquire(file, wait=never, job_state=never).release()
    holder.communicate(timeout=20)
    assert list(file.parent.iterdir()) == []


def test_a_pid_that_is_used_again_is_not_taken_for_the_owner(file):
    left_behind(file, here(started=started_at(os.getpid()) - 1, token="old"))
    RunLock.acquire(file, wait=never, job_state=never).release()


@pytest.mark.parametrize("same", ["boot", "pids", "host"])
def test_pids_of_another_boot_or_container_mean_nothing(file, same):
    left_behind(file, here(**{same: "another"}, pid=1, token="old"))
    waiting = Waiting()
    RunLock.acquire(file, wait=waiting, job_state=never).release()
    assert waiting.seconds == WATCH_S


@pytest.mark.parametrize(
    ("theirs", "mine", "says", "life"),
    [
        ({"job": "7", "cluster": "c"}, {"job": "8", "cluster": "c"}, "RUNNING", Life.UNKNOWN),
        ({"job": "7", "cluster": "c"}, {"job": "8", "cluster": "c"}, "SUSPENDED", Life.ALIVE),
        ({"job": "7", "cluster": "c"}, {"job": "8", "cluster": "c"}, "COMPLETING", Life.UNKNOWN),
        ({"job": "7", "cluster": "c"}, {"job": "8", "cluster": "c"}, "PENDING", Life.DEAD),
        ({"job": "7", "cluster": "c"}, {"job": "8", "cluster": "c"}, "TIMEOUT", Life.DEAD),
        ({"job": "7", "cluster": "c"}, {"job": "8", "cluster": "c"}, "", Life.DEAD),
        ({"job": "7", "cluster": "c"}, {"job": "8", "cluster": "c"}, None, Life.UNKNOWN),
        ({"job": "7", "cluster": "c"}, {"job": "7", "cluster": "c", "restarts": 1}, never, Life.DEAD),
        ({"job": "7", "cluster": "c"}, {"job": "7", "cluster": "c"}, never, Life.UNKNOWN),
        ({"job": "7", "cluster": "c"}, {"job": "8", "cluster": "d"}, never, Life.UNKNOWN),
        ({"job": "7", "cluster": "c"}, {}, never, Life.UNKNOWN),
        ({}, {"job": "8", "cluster": "c"}, never, Life.UNKNOWN),
    ],
)
def test_slurm_is_believed_where_it_can_know(theirs, mine, says, life):
    asked = []

    def job_state(job):
        asked.append(job)
        return says

    mine = here(**{"job": "", "cluster": "", "restarts": 0} | mine)
    assert life_of(elsewhere(**theirs), mine, says if says is never else job_state) is life
    assert asked == ([] if says is never else ["7"])


def test_who_cannot_be_asked_after_is_watched_and_refused_at_its_next_beat(file):
    left_behind(file, elsewhere(job="7", cluster="c"))
    waiting = Waiting(after=9, happens=lambda: os.utime(file, (NOW + 10, NOW + 10)))
    with pytest.raises(UserError, match="Slurm job 7, process 4711 on node07, since 20"):
        RunLock.acquire(file, wait=waiting, job_state=lambda job: None)
    assert waiting.seconds == 9
    assert look(file).owner == elsewhere(job="7", cluster="c")


def test_who_gives_no_sign_of_life_is_taken_over(file):
    left_behind(file, elsewhere(), beat=NOW - 1000)
    waiting = Waiting()
    lock = RunLock.acquire(file, wait=waiting, job_state=never)
    assert waiting.seconds == WATCH_S
    assert look(file).owner == lock.owner
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_a_lock_that_is_given_back_while_it_is_watched_is_taken(file):
    left_behind(file, elsewhere())
    waiting = Waiting(after=3, happens=file.unlink)
    lock = RunLock.acquire(file, wait=waiting, job_state=never)
    assert (waiting.seconds, look(file).owner) == (3, lock.owner)


@pytest.mark.parametrize("content", [b"", b'{"host":', b"\xff\xfe", b"[]"])
def test_a_lock_that_says_nothing_is_watched_too(file, content):
    """Its owner died as it wrote it, or is just writing it."""
    file.write_bytes(content)
    RunLock.acquire(file, wait=Waiting(), job_state=never).release()
    file.write_bytes(content)
    waiting = Waiting(after=1, happens=lambda: left_behind(file, elsewhere()))
    with pytest.raises(UserError, match=r"another job is running on this folder \(see running.json\)"):
        RunLock.acquire(file, wait=waiting, job_state=never)


class Clock:
    """Stands still."""

    def __init__(self):
        self.s = 100.0

    def __call__(self):
        return self.s


@pytest.fixture
def clock():
    return Clock()


def test_beats_are_seldom_and_are_seen(file, clock):
    lock = RunLock.acquire(file, me=here(), clock=clock)
    os.utime(file, (NOW, NOW))
    clock.s += BEAT_S - 1
    lock.beat(NOW + 1)
    assert look(file).beat == NOW
    clock.s += 1
    lock.beat(NOW + 2)
    assert look(file).beat == NOW + 2
    clock.s += 1
    lock.beat(NOW + 3)
    assert look(file).beat == NOW + 2
    clock.s += BEAT_S
    lock.beat(NOW - 3600)  # set back an hour: it beats all the same
    assert look(file).beat == NOW - 3600
    lock.release()


def test_who_has_lost_its_lock_ends_and_leaves_the_others_alone(file, clock):
    lock = RunLock.acquire(file, me=here(), clock=clock)
    clock.s += BEAT_S
    lock.beat(NOW)
    left_behind(file, elsewhere(), beat=NOW + 15)
    clock.s += BEAT_S - 1
    lock.beat(NOW)  # too soon to look
    clock.s += 1
    for _ in range(2):
        with pytest.raises(UserError, match=r"lock is lost \(another job has taken it over: process 4711 on node07"):
            lock.beat(NOW)
    lock.release()
    assert look(file).owner == elsewhere()
    assert look(file).beat == NOW + 15


def test_a_lock_that_somebody_has_removed_ends_the_job(file, clock):
    lock = RunLock.acquire(file, me=here(), clock=clock)
    file.unlink()
    clock.s += BEAT_S
    with pytest.raises(UserError, match=r"lost \(it is gone\).*--resume --run "):
        lock.beat(NOW)


def test_a_late_second_does_not_take_the_first_ones_new_lock(file, clock):
    """Both found the same dead owner; the first has taken over when the second comes to it."""
    left_behind(file, elsewhere(), beat=NOW)
    dead = look(file)
    first = RunLock.acquire(file, wait=Waiting(), job_state=never, clock=clock)
    second = RunLock(file, here(token="second"))
    second._remove(dead, Waiting())
    assert look(file).owner == first.owner
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    clock.s += BEAT_S
    first.beat(NOW)


def test_one_who_died_while_it_removed_a_dead_ones_lock_is_not_waited_for_for_ever(file):
    left_behind(file, elsewhere(), beat=NOW)
    dead, waiting = look(file), Waiting()
    RunLock(file, here(token="first"))._remove(dead, waiting)
    assert (look(file), waiting.seconds) == (None, 0.0)
    left_behind(file, elsewhere(), beat=NOW)
    claim = file.with_name(f"{file.name}.{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}")
    claim.touch()
    RunLock(file, here(token="second"))._remove(look(file), waiting)
    assert (list(file.parent.iterdir()), waiting.seconds) == ([], WATCH_S)


RACE = """
import sys, time
from pathlib import Path
from mpinas.errors import UserError
from mpinas.history.lock import RunLock
print("ready", flush=True)
sys.stdin.readline()
try:
    RunLock.acquire(Path(sys.argv[1]), wait=lambda seconds: time.sleep(seconds / 20))
    print("won", flush=True)
except UserError:
    print("refused", flush=True)
sys.stdin.read()
"""


def test_of_many_that_take_over_one_wins(file):
    """Of processes that start at once on a dead owner's lock; those that lose find the winner alive."""
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout.readline() == b"ready\n"
    left_behind(file, elsewhere(), beat=NOW)
    for racer in racers:
        racer.stdin.write(b"\n")
        racer.stdin.flush()
    said = [racer.stdout.readline() for racer in racers]
    for racer in racers:
        racer.communicate(timeout=20)
    assert sorted(said) == [b"refused\n"] * 3 + [b"won\n"]


def test_a_thread_can_beat_for_a_busy_process(file, monkeypatch):
    monkeypatch.setattr("mpinas.history.lock.BEAT_S", 0.01)
    lock = RunLock.acquire(file, me=here())
    os.utime(file, (NOW, NOW))
    lock.keep_beating()
    deadline = time.monotonic() + 20
    while look(file).beat == NOW and time.monotonic() < deadline:
        pass
    assert look(file).beat != NOW
    lock.release()
    assert look(file) is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match=r"running.json: cannot be written: No such file or directory"):
        RunLock.acquire(tmp_path / "nowhere" / "running.json")


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ('test "$*" = "--noheader --jobs 12 --format %T" && echo RUNNING', "RUNNING"),
        ("echo RUNNING; echo RUNNING", "RUNNING"),
        ("echo PENDING; echo RUNNING", "RUNNING"),
        ("echo PENDING", "PENDING"),
        ("true", ""),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", ""),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", None),
    ],
)
def test_squeue_is_understood(tmp_path, monkeypatch, script, state):
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\n{script}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert slurm_job_state("12") == state


def test_without_slurm_nobody_knows(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm_job_state("12") is None
