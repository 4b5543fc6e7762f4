"""Signs of life and the neighbours' deaths, by value; whole jobs are in tests/mpi/test_job_faults.py."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.history.journal import Journal
from mpinas.parallel import neighbours, world
from mpinas.parallel.neighbours import (
    EXPLAINED,
    TAIL_BYTES,
    Vigil,
    dead_among,
    explain,
    last_words,
    meet,
    report_the_dead,
    take_notice,
    work_of,
)
from mpinas.parallel.pulse import LOOKED_AWAY_S, PULSE_S, Pulse


class Wire:
    """A communicator of some ranks in one process: what is sent has arrived."""

    def __init__(self, rank: int, boxes: dict[int, list[int]]) -> None:
        self.rank, self.boxes = rank, boxes

    def Get_rank(self) -> int:  # noqa: N802 - as mpi4py calls it
        return self.rank

    def isend(self, value: int, dest: int) -> Wire:
        self.boxes[dest].append(value)
        return self

    def Test(self) -> bool:  # noqa: N802 - as mpi4py calls it
        return True

    def improbe(self) -> Wire | None:
        return self if self.boxes[self.rank] else None

    def recv(self) -> int:
        return self.boxes[self.rank].pop(0)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_who_is_silent_for_too_long_is_told_of_and_nobody_else():
    clock, boxes = Clock(), {rank: [] for rank in range(3)}
    coordinator = Pulse(Wire(0, boxes), (1, 2), clock)
    trainers = [Pulse(Wire(rank, boxes), (0,), clock) for rank in (1, 2)]
    for step in range(20):
        clock.now_s += PULSE_S
        trainers[0].beat()
        if step < 5:
            trainers[1].beat()
        coordinator.beat()
        assert coordinator.silent(30.0) == []
        assert trainers[0].silent(30.0) == []
    clock.now_s += PULSE_S
    coordinator.beat()
    assert coordinator.silent(30.0) == [2]
    assert coordinator.silent(40.0) == []
    assert coordinator.silent(1.0) == [1, 2]


def test_signs_come_once_in_a_while_however_often_one_asks():
    clock, boxes = Clock(), {0: [], 1: []}
    pulse = Pulse(Wire(1, boxes), (0,), clock)
    for _ in range(1000):
        pulse.beat()
        clock.now_s += PULSE_S / 100
    assert 9 <= len(boxes[0]) <= 11


def test_who_was_stopped_itself_does_not_blame_the_others():
    clock, boxes = Clock(), {0: [], 1: []}
    pulse = Pulse(Wire(0, boxes), (1,), clock)
    pulse.beat()
    clock.now_s += 10 * LOOKED_AWAY_S
    pulse.beat()
    assert pulse.silent(LOOKED_AWAY_S) == []
    for _ in range(6):
        clock.now_s += PULSE_S
        pulse.beat()
    assert pulse.silent(LOOKED_AWAY_S) == [1], "but if they go on to be silent, they are"


def written(path: Path, *events: ev.Event) -> bytes:
    journal = Journal(path)
    for time, event in enumerate(events):
        journal.append(float(time), event)
    journal.close()
    return path.read_bytes()


BEGUN = ev.Begun("0", 4, "digits", False)


def test_what_a_dead_rank_was_at_is_read_from_the_end_of_the_journal(tmp_path):
    answer = msg.Evaluated(1, 7, 1, {"error": 0.5}, 1.0)
    tail = written(
        tmp_path / "journal",
        BEGUN,
        ev.Ordered(7, 1, (1, 2), "evaluate"),
        ev.Ordered(8, 1, (3, 4), "evaluate"),
        msg.Progress(1, 7, 1, 1, 9, 0.5),
    )
    assert work_of(2, tail) == "it was at work on candidate 7 (evaluate, ranks 1, 2)"
    assert work_of(4, tail[40:]) == "it was at work on candidate 8 (evaluate, ranks 3, 4)", "the first line may be cut"
    assert work_of(5, tail) == "it had no order"
    answered = written(tmp_path / "answered", BEGUN, ev.Ordered(7, 1, (1, 2), "evaluate"), answer)
    assert work_of(2, answered) == "it had no order"
    shared = written(tmp_path / "shared", BEGUN, ev.Ordered(msg.SUPERNET, 1, (1, 2), "supernet"))
    assert work_of(1, shared) == "it was at work on the supernet (supernet, ranks 1, 2)"
    resumed = written(tmp_path / "resumed", BEGUN, ev.Ordered(7, 1, (1, 2), "evaluate"), BEGUN)
    assert work_of(1, resumed) == "it had no order"
    assert work_of(5, written(tmp_path / "cut", BEGUN, ev.Ordered(7, 1, (1, 2), "evaluate"))[100:]) == "", "too short"


def test_what_a_dead_rank_was_at_is_looked_for_further_back(dead, tmp_path, capfd):
    order = ev.Ordered(7, 1, (1, 2), "evaluate")
    much = [msg.Progress(3, 8, 1, epoch, 9999, 0.5) for epoch in range(3000)]
    assert len(written(tmp_path / "journal", BEGUN, order, *much)) > TAIL_BYTES[0]
    assert report_the_dead({1: dead}, tmp_path / "journal") == [1]
    assert "it was at work on candidate 7 (evaluate, ranks 1, 2)" in capfd.readouterr().err


def test_the_last_words_name_rank_host_process_and_candidate():
    said = last_words(3, 4711, "node7", "it was at work on candidate 5 (evaluate, ranks 3, 4)")
    assert said.startswith(
        "mpinas: rank 3 on node7 (process 4711) has died; it was at work on candidate 5 (evaluate, ranks 3, 4). "
    )


@pytest.fixture
def dead() -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    yield child.pid
    while neighbours._CLAIMS:  # as at the end of a process
        neighbours._CLAIMS.pop().close()


def test_the_dead_are_told_of_once_on_a_node(dead, tmp_path, capfd):
    processes = {0: os.getpid(), 1: dead}
    assert dead_among(processes) == [1]
    assert report_the_dead(processes, tmp_path / "no-journal") == [1]
    assert report_the_dead(processes, tmp_path / "no-journal") == []
    assert capfd.readouterr().err.count("rank 1 on") == 1


def test_a_process_that_nobody_has_waited_for_is_dead():
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    child.stdout.read()  # ends with the process
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert dead_among({1: child.pid}) == [1]
    child.wait()
    child.stdout.close()


EARLY = """
import os, signal
from mpinas.parallel.stop_signals import StopSignals
StopSignals.hold()
os.kill(os.getpid(), signal.SIGUSR2)
os.kill(os.getpid(), signal.SIGTERM)
print("starts", flush=True)
stop = StopSignals()
print(stop.asked())
os.kill(os.getpid(), signal.SIGUSR2)
print(stop.asked(), stop.asked(), stop.caught)
"""


def test_what_asks_a_job_to_end_while_it_starts_is_remembered():
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, timeout=60, check=False)
    told = "starts\n['SIGUSR2', 'SIGTERM']\n['SIGUSR2'] [] ['SIGUSR2', 'SIGTERM', 'SIGUSR2']\n"
    assert done.stdout == told, "each once, in time"


#: A rank whose reader has gone; what it should do is to end, with a code of its own.
UNHEARD = """
import os, signal, sys
from mpinas.parallel import world
from mpinas.parallel.neighbours import Vigil

class World:
    def Get_size(self):
        return 2

    def Abort(self, code):
        os._exit(code)

def fail():
    raise RuntimeError("a tick that fails")

os.read(0, 1)  # until nobody reads any more
if sys.argv[1] == "abort":
    world.end_job(World(), "the job ends here")
else:
    Vigil(lambda: None, (0.01, fail))
    signal.pause()
"""


@pytest.mark.parametrize(("what", "code"), [("abort", world.UNFINISHED), ("vigil", 1)])
def test_a_rank_ends_though_nobody_reads_what_it_says(what, code):
    rank = subprocess.Popen(
        [sys.executable, "-c", UNHEARD, what],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        rank.stdout.close()
        rank.stdin.close()
        assert rank.wait(60) == code
    finally:
        rank.kill()


def test_nobody_is_taken_for_dead_where_no_descriptor_is_free():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        assert dead_among({0: os.getpid()}) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_vigil_leaves_it_at_what_a_neighbour_has_explained(monkeypatch):
    monkeypatch.setattr(neighbours, "HUSH_S", 0.5)
    before = signal.signal(signal.SIGCONT, take_notice)
    woken, ticked = threading.Event(), threading.Event()
    vigil = Vigil(woken.set, (0.01, ticked.set))
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, both := {EXPLAINED, signal.SIGCONT})
        for number in both:  # to this thread: the vigil's blocks nothing, and would take them one after the other
            signal.pthread_kill(threading.get_ident(), number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)  # at one time, however busy the machine is
        ticked.clear()
        assert ticked.wait(10), "it has been silent for long enough"
        assert not woken.is_set()
    finally:
        vigil.close()
        signal.signal(signal.SIGCONT, before)
    assert signal.getsignal(EXPLAINED) == signal.SIG_DFL, "as it was before"


def test_what_hangs_at_the_end_of_rank_0_ends_the_job_and_what_does_not_leaves_it_alone():
    code = """
import threading
from mpinas.parallel import world
class Alone:
    Get_rank, Get_size = (lambda self: 0), (lambda self: 1)
with world.in_time(Alone(), 60, "closing"):
    pass
print("went on", flush=True)
with world.in_time(Alone(), 0.1, "closing"):
    threading.Event().wait(60)
print("not ended")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (world.UNFINISHED, "went on\n"), done.stderr
    assert "rank 0 on " in done.stderr
    assert ", closing, has hung for 0.1 s; " in done.stderr


WAITS_FOR_A_WORD = f"""
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {{{int(EXPLAINED)}}})
print("waits", flush=True)
print(int(signal.sigwait({{{int(EXPLAINED)}}})))
"""


def test_a_rank_that_ends_the_job_lets_its_neighbours_know(monkeypatch):
    monkeypatch.setattr(neighbours, "_NEIGHBOURS", [])
    heard: list[int] = []
    before = signal.signal(EXPLAINED, lambda number, frame: heard.append(number))
    with subprocess.Popen([sys.executable, "-c", WAITS_FOR_A_WORD], stdout=subprocess.PIPE, text=True) as other, \
            subprocess.Popen([sys.executable, "-c", ""]) as gone:  # fmt: skip
        gone.wait(60)
        assert other.stdout.readline() == "waits\n"
        meet({0: gone.pid, 1: os.getpid(), 2: other.pid})
        explain()
        assert other.stdout.readline() == f"{int(EXPLAINED)}\n"
    signal.signal(EXPLAINED, before)
    assert heard == [], "not itself"


def test_a_vigil_wakes_at_a_launchers_signal_and_in_between():
    before = signal.signal(signal.SIGCONT, take_notice)
    woken, ticked = threading.Event(), threading.Event()
    vigil = Vigil(woken.set, (0.01, ticked.set))
    try:
        assert ticked.wait(10)
        assert not woken.is_set()
        os.kill(os.getpid(), signal.SIGCONT)
        assert woken.wait(10)
    finally:
        vigil.close()
        signal.signal(signal.SIGCONT, before)
    assert signal.set_wakeup_fd(-1) == -1, "as it was before"
