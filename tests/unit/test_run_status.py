"""`mpinas status`: what a run's folder, its lock and Slurm's queue say together. Times are those of the journal."""

import json
import os
from dataclasses import replace

import msgspec
import pytest
from click.testing import CliRunner
from small_disk import can_mount, small_disk
from test_lock import elsewhere, here, left_behind
from virtual_time import World

from mpinas.cli import cli
from mpinas.config import Experiment
from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.errors import UserError
from mpinas.history.journal import Journal
from mpinas.history.run_folder import RunFolder
from mpinas.report.status import Observer, Queued, queued_jobs, watch
from mpinas.report.status_text import lines_of

EXPERIMENT = msgspec.convert(
    {"task": {"name": "digits"}, "search": {"evaluations": 20}, "training": {"epochs": 2}}, Experiment
)
PENDING = Queued("12", "PENDING", "2026-11-23T06:00:00", "Priority")
RUNNING = Queued("12", "RUNNING", "2026-11-22T06:00:00", "None")


def never(*_):
    raise AssertionError("Slurm was not to be asked")


def write(folder, events):
    book = Journal(folder.journal_file)
    for time, event in events:
        book.append(time, event)
    book.close()


def look(folder, now, queue=(), job_state=never):
    observer = Observer(folder.path, lambda name: list(queue), job_state)
    return observer.look(now)


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "first", EXPERIMENT)


def under_way(world):
    """Both trainers at work, in the middle of a search."""
    return len(world.ledger.evaluated) == 8 and len(world.ledger.groups) == 2 and not world.ledger.idle


@pytest.fixture(scope="module")
def half():
    world = World(groups=2, progress=True).run(until=under_way)
    world.ledger.apply(event := msg.Progress(1, world.ledger.groups[1].order.candidate, 1, 1, 2, 0.5), world.time)
    world.journal.append((world.time, event))
    return world


def test_of_a_running_job_all_that_matters_is_told_and_nothing_is_touched(folder, half):
    write(folder, half.journal)
    with open(folder.journal_file, "ab") as file:
        file.write(b'{"seq":999,"ti')  # it is just writing
    left_behind(folder.lock_file, here(since=0.0, job="7"))
    before = {each: (each.stat().st_mtime_ns, each.stat().st_size) for each in folder.path.rglob("*")}
    status = look(folder, now := half.time + 30.0)
    assert {each: (each.stat().st_mtime_ns, each.stat().st_size) for each in folder.path.rglob("*")} == before
    assert (status.state, status.evaluations, status.evaluated) == ("running", 20, 8)
    assert status.front == len(half.ledger.front)
    assert status.per_hour == pytest.approx(3600 * 8 / now)
    assert status.left_s == pytest.approx(12 / 8 * now)
    at = {each.ranks: each for each in status.under_way}
    order = half.ledger.groups[1].order
    assert (at[1,].candidate, at[1,].work, at[1,].epoch, at[1,].epochs) == (order.candidate, "evaluate", 1, 2)
    assert at[1,].hosts == ("here",)
    assert at[1,].seconds == pytest.approx(now - half.ledger.groups[1].since)
    told = "\n".join(lines_of(status))
    assert f": running, Slurm job 7, process {os.getpid()} on " in told
    assert "toy on SIMULATED data: 8 of 20 candidates evaluated, 0 rejected, 0 failed; " in told
    assert " evaluations an hour" in told
    assert f"\n  evaluate candidate {order.candidate}, epoch 1 of 2 done, rank 1 on here, for " in told
    assert "to go on" not in told
    told = "\n".join(lines_of(replace(status, evaluated=20)))
    assert "the best are trained on and tested" in told
    assert "evaluations an hour" not in told, "nothing is known of how long that takes"
    assert msgspec.json.decode(msgspec.json.encode(status.as_dict()))["owner"]["pid"] == os.getpid()


def test_a_gpu_that_failed_is_told(folder, half):
    write(folder, [*half.journal, (half.time, msg.Withdrawn(2, "node7, cuda:0: CUDA error"))])
    told = "trainer 2 gets no more orders: its GPU failed (node7, cuda:0: CUDA error)"
    status = look(folder, half.time + 1.0)
    assert status.withdrawn == [told]
    assert told in lines_of(status)


def test_the_end_of_the_jobs_time_is_told(folder, half):
    events = [(0.0, ev.Begun("0", 2, "toy", False, ends_at=half.time + 3900)), *half.journal[1:]]
    write(folder, events)
    left_behind(folder.lock_file, here(since=0.0))
    status = look(folder, half.time)
    assert status.ends_at == half.time + 3900
    assert any(line.startswith("the job's time is over in 1 h 05 min, at ") for line in lines_of(status))


def test_a_job_that_was_killed_has_died_and_what_was_under_way_is_told(folder, half):
    write(folder, half.journal)
    left_behind(folder.lock_file, here(since=0.0, started=1), beat=half.time)
    status = look(folder, half.time + 200.0)
    assert (status.state, status.over, status.left_s) == ("died", True, None)
    head, *told = lines_of(status)
    assert f"process {os.getpid()} on " in head
    assert ", 3 min 20 s ago)" in head
    order = half.ledger.groups[2].order
    assert "was under way:" in told
    assert any(
        line.startswith(f"  evaluate candidate {order.candidate}, ") and "rank 2 on here" in line for line in told
    )
    assert told[-1] == f"to go on: start `mpinas search --resume --run {folder.path}` as that job was started"


@pytest.mark.parametrize(
    ("silent_s", "job", "says", "state"),
    [
        (30.0, "", never, "running"),
        (90.0, "", never, "died"),
        (90.0, "7", lambda job: {"7": "RUNNING"}[job], "running"),
        (90.0, "7", lambda job: "", "died"),
        (90.0, "7", lambda job: None, "died"),
    ],
)
def test_of_a_job_elsewhere_its_beats_tell_and_else_slurm(folder, half, silent_s, job, says, state):
    write(folder, half.journal)
    left_behind(folder.lock_file, elsewhere(since=0.0, job=job, cluster="c"), beat=half.time)
    status = look(folder, half.time + silent_s, job_state=says)
    assert status.state == state
    assert ("last sign of life" in lines_of(status)[0]) is (silent_s > 60)


def test_a_job_that_was_asked_to_end_has_stopped(folder, half):
    write(folder, [*half.journal, (half.time, ev.StopRequested("SIGUSR2")), (half.time + 1, msg.Stopped(1))])
    status = look(folder, half.time)
    assert (status.state, status.reason, status.under_way) == ("stopped", "SIGUSR2", ())
    told = lines_of(status)
    assert told[0] == f"{folder.path}: stopped: SIGUSR2"
    assert told[-1].startswith("to go on: ")
    left_behind(folder.lock_file, here(since=0.0))
    ending = look(folder, half.time)
    left_behind(folder.lock_file, here(since=0.0, started=1))
    killed = look(folder, half.time)
    assert killed.state == "died"
    assert killed.reason.endswith("; it had been asked to end (SIGUSR2)")
    assert ending.state == "running"
    assert lines_of(ending)[0].endswith("; it is about to end: SIGUSR2")


@pytest.mark.skipif(not can_mount(), reason="a file system of its own wants the right to mount")
def test_that_the_disk_is_full_is_told(tmp_path, half):
    with small_disk(tmp_path / "small"):
        folder = RunFolder.create(tmp_path / "small" / "run", EXPERIMENT)
        write(folder, half.journal)
        assert lines_of(look(folder, half.time))[0].endswith("see what it printed; its file system is full")


def test_a_job_that_ended_with_an_error_has_stopped_too(folder, half):
    write(folder, half.journal)
    assert look(folder, half.time).reason == "its job ended before the search did; see what it printed"


def test_a_finished_run(folder):
    world = World(groups=2).run()
    write(folder, world.journal)
    status = look(folder, world.time)
    assert (status.state, status.evaluated, status.under_way, status.queue) == ("finished", 20, (), [])
    assert lines_of(status)[-1] == f"to see the results: mpinas results {folder.path}"


def test_a_job_that_goes_on_and_is_not_there_yet_is_starting(folder, half):
    write(folder, [*half.journal, (half.time, ev.StopRequested("SIGTERM"))])
    left_behind(folder.lock_file, here(since=half.time + 5))
    status = look(folder, half.time + 9)
    assert (status.state, status.reason, status.under_way) == ("starting", "", ())


def test_queued_jobs_are_told_as_long_as_there_is_nothing_better(tmp_path, folder, half):
    nowhere = tmp_path / "second"
    (tmp_path / "x").mkdir()
    asked = []
    observer = Observer(nowhere, lambda name: asked.append(name) or [PENDING], never)
    status = observer.look(0.0)
    assert (asked, status.state) == (["mpinas-second"], "queued")
    (tmp_path / "link").symlink_to(folder.path)
    for path in (tmp_path / "link", tmp_path / "x" / ".." / "first"):
        Observer(path, lambda name: asked.append(name) or [PENDING], never).look(0.0)
    assert asked[1:] == ["mpinas-link", "mpinas-first"]
    assert lines_of(status) == [
        f"{nowhere}: queued", "Slurm job 12: PENDING, expected to start at 2026-11-23T06:00:00 (Priority)"
    ]  # fmt: skip
    assert look(folder, 0.0, [PENDING]).state == "queued"
    assert (begun := look(folder, 0.0, [RUNNING])).state == "starting"
    assert lines_of(begun) == [f"{folder.path}: starting, Slurm job 12 runs and has not begun the search yet"]
    assert look(folder, 0.0).reason == "no job has begun on it"
    (folder.models / "00001").mkdir()
    lost = look(folder, 0.0)
    assert (lost.state, "restore it from a copy" in lost.reason) == ("damaged", True), "models, and no journal"
    assert CliRunner().invoke(cli, ["status", str(folder.path)]).exit_code == 2
    folder.journal_file.write_bytes(b"")
    assert look(folder, 0.0) == lost, "and an empty one"
    folder.journal_file.unlink()
    (folder.models / "00001").rmdir()
    write(folder, [*half.journal, (half.time, ev.StopRequested("SIGUSR2"))])
    requeued = look(folder, half.time, [PENDING])
    assert (requeued.state, requeued.reason) == ("queued", "the job before: stopped (SIGUSR2)")
    left_behind(folder.lock_file, here(since=0.0, started=1))
    assert look(folder, half.time, [PENDING]).reason.startswith("the job before: died (no sign of life")
    assert look(folder, half.time, [RUNNING]).state == "starting"


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(UserError, match="no such run folder"):
        Observer(tmp_path / "x", lambda name: [], never).look(0.0)
    with pytest.raises(UserError, match="not a run folder"):
        Observer(tmp_path, lambda name: [PENDING], never).look(0.0)


def test_a_damaged_journal_is_a_status(folder, half):
    write(folder, half.journal)
    data = folder.journal_file.read_bytes()
    folder.journal_file.write_bytes(data.replace(b'"width":20', b'"width":21', 1))
    status = look(folder, half.time)
    assert (status.state, status.over) == ("damaged", True)
    assert "line 3 is damaged" in status.reason
    assert lines_of(status)[-1] == f"to see what else: mpinas verify {folder.path}"


def test_watching_reads_on_until_the_run_is_over(folder, half, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    world = World(groups=2).run()
    parts = [world.journal[:20], world.journal[20:60], world.journal[60:]]
    write(folder, parts.pop(0))
    left_behind(folder.lock_file, here(since=0.0))
    seen = []

    def wait(seconds):
        assert seconds == 5.0
        book = Journal(folder.journal_file)
        for time, event in parts.pop(0):
            book.append(time, event)
        book.close()

    watch(folder.path, lambda status: seen.append((status.state, status.evaluated)), lambda: 50.0, wait)
    states, evaluated = zip(*seen, strict=True)
    assert states == ("running", "running", "finished")
    assert list(evaluated) == sorted(set(evaluated))
    assert evaluated[-1] == 20


def test_a_journal_that_a_job_has_rewritten_is_read_from_its_start(folder, half):
    """As one of format 2 is, when a job goes on with it."""
    write(folder, half.journal)
    new = folder.journal_file.read_bytes()
    lines = [line.rpartition(b',"crc"')[0] + b"}\n" for line in new.splitlines()[1:]]
    folder.journal_file.write_bytes(b"mpinas-journal/2\n" + b"".join(lines[:40]))
    observer = Observer(folder.path, lambda name: [], never)
    few = observer.look(half.time).evaluated
    write(folder, [])
    assert (observer.look(half.time).state, observer.look(half.time).evaluated) == ("stopped", few)
    write(folder, half.journal[40:])
    assert observer.look(half.time).evaluated == 8 > few


def test_squeue_is_understood(tmp_path, monkeypatch):
    squeue = tmp_path / "squeue"
    squeue.write_text(
        "#!/bin/sh\n"
        'test "$*" = "--me --noheader --name mpinas-first --format %i %T %S %r" || exit 1\n'
        "echo '12 PENDING 2026-11-23T06:00:00 Priority'\n"
        "echo '13 PENDING N/A (Nodes required for job are DOWN)'\n"
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert queued_jobs("mpinas-first") == [
        PENDING, Queued("13", "PENDING", "N/A", "(Nodes required for job are DOWN)")
    ]  # fmt: skip
    assert queued_jobs("mpinas-other") == []


def test_the_command(folder, half, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    write(folder, half.journal)
    told = CliRunner().invoke(cli, ["status", str(folder.path)])
    assert told.exit_code == 0
    assert told.output.startswith(f"{folder.path}: stopped: ")
    found = json.loads(CliRunner().invoke(cli, ["status", str(folder.path), "--json", "--watch"]).output)
    assert (found["state"], found["evaluated"], found["owner"], found["queue"]) == ("stopped", 8, None, [])
    assert isinstance(CliRunner().invoke(cli, ["status", str(tmp_path / "x")]).exception, UserError)
