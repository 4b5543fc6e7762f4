"""Journal and run folder: what is written is read back, what is broken is named."""

import contextlib
import errno
import fcntl
import math
import os
import re
import resource
import zlib

import msgspec
import pytest
from small_disk import can_mount, small_disk

from mpinas.config import Experiment
from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.errors import UserError
from mpinas.history import journal
from mpinas.history.run_folder import RunFolder

EVENTS = [
    ev.Begun("0.1", 3, "lpbf", True),
    ev.Proposed(0, {"width": 8, "kind": "plain", "lr": 1e-3, "fast": True}),
    ev.Exported(0, 1234, 99),
    ev.ExportFailed(1, "no"),
    ev.Measured(0, {"p50_s": 1e-3, "samples": 64, "versions": {"onnxruntime": "1"}}),
    ev.Measured(0, {"p50_s": 1e-3}, "agx", 1, ("unsteady", "throttled"), 0.98, "ab12"),
    ev.MeasurementFailed(2, "crashed", "signal 9"),
    ev.MeasurementFailed(2, "crashed", "signal 9", "agx", 2),
    ev.Predicted(2, {"agx": (1e-3, 1e-5)}),
    ev.Doubted(("ab12",), "drift"),
    ev.Judged(0, "agx", 0.25, 0.24, "fp16"),
    ev.JudgingFailed(0, "cpu", "no-answer", "no device"),
    ev.Rejected(3, "latency_s"),
    ev.GivenUp(3, "assess", "jobs died"),
    ev.Promoted(0, 1),
    ev.Ordered(0, 1, (2, 3), "evaluate", 1),
    ev.DeviceLost("gone"),
    ev.DeviceLost("gone", "agx"),
    ev.DeviceBack("agx"),
    ev.Enough("time"),
    ev.StopRequested("SIGTERM"),
    ev.Finished("done"),
    msg.Ready(1, "node", "cpu"),
    msg.Progress(0, 0, 1, 2, 3, 0.5),
    msg.Evaluated(0, 0, 1, {"error": 0.25}, 2.5),
    msg.Paused(0, 0, 1, 3, 1.5),
    msg.EvaluationFailed(0, 4, 1, "diverged", "nan", "trace"),
    msg.Assessed(0, 0, 1, {"error": 0.3}, 1e-6),
    msg.Assessed(0, 0, 1, {}, 1e-6, 0.25),
    msg.AssessmentFailed(0, 0, 1, "export", "why", ""),
    msg.Retrained(0, 0, 2, {"error": 0.25}, {}, 2.5),
    msg.RetrainingFailed(0, 0, 3, "memory", "why"),
    msg.SupernetTrained(1, msg.SUPERNET, 1, {"error": 0.5}, 60.0),
    msg.SupernetFailed(1, msg.SUPERNET, 2, "diverged", "nan"),
    msg.Withdrawn(2, "CUDA error"),
    msg.Stopped(1),
]


def append_all(book, events):
    for number, event in enumerate(events):
        book.append(10.0 + number, event)


def write(path, events=EVENTS):
    book = journal.Journal(path)
    append_all(book, events)
    book.close()
    return path


def test_every_kind_of_event_comes_back_as_it_was(tmp_path):
    assert {type(event).__name__ for event in EVENTS} == set(ev.EVENT_CLASSES)
    path = write(tmp_path / "journal.jsonl")
    assert journal.read(path) == [(10.0 + i, event) for i, event in enumerate(EVENTS)]


def test_the_bytes_are_those_of_the_format(tmp_path):
    """What another version, or another program, may rely on; the check values were reckoned with zlib by hand."""
    path = write(tmp_path / "journal.jsonl", [ev.Rejected(3, "latency_s"), ev.Finished("done")])
    assert path.read_bytes() == (
        b"mpinas-journal/3 1343bc4b\n"
        b'{"seq":0,"time":10.0,"event":"Rejected","candidate":3,"reason":"latency_s","crc":"88d6ed92"}\n'
        b'{"seq":1,"time":11.0,"event":"Finished","reason":"done","crc":"ff22c45f"}\n'
    )


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    path = tmp_path / "journal.jsonl"
    book = journal.Journal(path)
    for wrong in (math.inf, math.nan):
        with pytest.raises(ValueError, match="a number of the event is"):
            book.append(1.0, msg.Progress(1, 0, 1, 1, 2, wrong))
        with pytest.raises(ValueError, match="a number of the event is"):
            book.append(1.0, msg.Evaluated(1, 0, 1, {"error": wrong}, 1.0))
    book.append(1.0, ev.Finished("data of \udcff, ü"))
    book.close()
    assert journal.read(path) == [(1.0, ev.Finished("data of ?, ü"))]


def test_what_earlier_jobs_wrote_is_let_go_of_once_a_job_is_at_work(tmp_path):
    book = journal.Journal(write(tmp_path / "journal.jsonl"))
    assert len(book.history) == len(EVENTS)
    book.append(99.0, ev.Finished("again"))
    assert book.history == []
    book.close()


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_torn_last_line_is_left_out_and_the_next_job_writes_on(tmp_path, cut):
    path = write(tmp_path / "journal.jsonl")
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    path.write_bytes(whole[: max(last, len(whole) - cut)])
    book = journal.Journal(path)
    assert [event for _, event in book.history] == EVENTS[:-1]
    book.append(99.0, ev.Finished("again"))
    book.close()
    assert journal.read(path)[-1] == (99.0, ev.Finished("again"))


@pytest.mark.parametrize("start", [b"", b"mpinas-jour", b"mpinas-journal/3", b"\0" * 26, b"mpinas\0\0"])
def test_a_job_that_died_before_its_first_event_has_an_empty_journal(tmp_path, start):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(start)
    assert journal.read(path) == []
    assert journal.read(write(path)) == [(10.0 + i, event) for i, event in enumerate(EVENTS)]


def test_a_tail_of_zeros_as_a_power_cut_leaves_it_is_left_out(tmp_path):
    path = write(tmp_path / "journal.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 4096)
    assert len(journal.read(path)) == len(EVENTS)
    journal.Journal(path).close()
    assert path.read_bytes() == whole


def swapped(line, old, new):
    assert old in line
    return line.replace(old, new)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [b"hello\n", *lines[1:]], "not a journal"),
        (lambda lines: [b"hello, I am a text of somebody's"], "not a journal"),
        (lambda lines: [b"\0" * len(b"".join(lines))], "not a journal of this version"),
        (lambda lines: [b"\0" * (len(lines[0]) + 1)], "not a journal of this version"),
        (lambda lines: [b"mpinas-journal/4\n", *lines[1:]], "not a journal of this version"),
        (lambda lines: [b"mpinas-journal/3\n", *lines[1:]], "not a journal of this version"),
        (lambda lines: [*lines[:3], b"{}\n", *lines[4:]], "line 4 is damaged"),
        (lambda lines: [*lines[:3], *lines[4:]], "line 4 is damaged .*number 3, 2 was due"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "line 2 is damaged .*number 1, 0 was due"),
        (lambda lines: [*lines[:4], lines[3], *lines[4:]], "line 5 is damaged .*number 2, 3 was due"),
        (lambda lines: [*lines[:2], swapped(lines[2], b'"width":8', b'"width":9'), *lines[3:]], "line 3 .*check value"),
        (lambda lines: [*lines[:-1], swapped(lines[-1], b'"rank":1', b'"rank":2')], "check value is wrong"),
        (lambda lines: [*lines[:2], swapped(lines[2], b'"crc":"', b'"crd":"'), *lines[3:]], "line 3 .*check value"),
        (lambda lines: [*lines[:2], lines[2].rstrip() + b"\r\n", *lines[3:]], "line 3 .*check value"),
    ],
)
def test_damage_is_refused_in_words(tmp_path, damage, message):
    path = write(tmp_path / "journal.jsonl")
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    before = path.read_bytes()
    for take in (journal.read, journal.Journal):
        with pytest.raises(UserError, match=message) as caught:
            take(path)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == before, "nobody has written to it"


def test_what_stands_before_the_damage_is_kept_as_the_message_says(tmp_path):
    path = write(tmp_path / "journal.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:6], b"?\n", *lines[7:]]))
    with pytest.raises(UserError, match=r"line 7 is damaged .*\(head -n 6\)"):
        journal.read(path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:6]))
    assert [event for _, event in journal.read(path)] == EVENTS[:5]


def test_a_line_of_another_run_is_noticed(tmp_path):
    one = write(tmp_path / "one", EVENTS).read_bytes().splitlines(keepends=True)
    events = [ev.Begun("0.1", 3, "lpbf", False), *EVENTS[1:]]
    other = write(tmp_path / "other", events).read_bytes().splitlines(keepends=True)
    path = tmp_path / "joined"
    path.write_bytes(b"".join([*one[:5], *other[5:]]))
    with pytest.raises(UserError, match=r"line 6 is damaged .*of another run"):
        journal.read(path)


def test_an_event_that_this_version_does_not_know_is_said_to_be_one(tmp_path):
    path = write(tmp_path / "journal.jsonl", EVENTS[:1])
    before = int(path.read_bytes()[-11:-3], 16)
    content = b'{"seq":1,"time":12.0,"event":"Newer"'
    path.write_bytes(path.read_bytes() + content + b',"crc":"%08x"}\n' % zlib.crc32(content, before))
    with pytest.raises(UserError, match=r"line 3 is damaged .*'Newer' is none that this version knows"):
        journal.read(path)


def test_a_journal_of_format_2_is_read_and_written_on_in_format_3(tmp_path):
    path = write(tmp_path / "journal.jsonl")
    new = path.read_bytes()
    old = re.sub(rb'("crc":"[0-9a-f]{8}"|^mpinas-journal/3 [0-9a-f]{8})', b"", new).replace(b",}\n", b"}\n")
    old = b"mpinas-journal/2" + old
    assert old.splitlines()[2].startswith(b'{"seq":1,"time":11.0,"event":"Proposed","candidate":0,"genome":{"width":8,')
    path.write_bytes(old + b'{"seq":36,"ti')
    assert journal.read(path) == [(10.0 + i, event) for i, event in enumerate(EVENTS)]
    assert path.read_bytes().startswith(b"mpinas-journal/2\n"), "reading changes nothing"
    before = path.read_bytes()
    journal.Journal(path).close()
    assert path.read_bytes() == before, "the version that wrote it can go on, as long as this one has not"
    book = journal.Journal(path)
    for seq, event in ((36, ev.Enough("time")), (37, ev.Finished("again"))):
        with pytest.raises(UserError, match="another job is running"):
            journal.Journal(path)
        book.append(99.0, event)
        assert len(journal.read(path)) == seq + 1
    book.close()
    assert path.read_bytes().startswith(new)
    assert journal.read(path)[-1] == (99.0, ev.Finished("again"))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "line", [b'{"seq":0,"time":1.0,"event":[1]}', b'{"seq":0,"time":"x","event":"Finished"}', b"[" * 100_000, b"\xff"]
)
def test_nonsense_in_a_journal_without_check_values_is_refused_too(tmp_path, line):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"mpinas-journal/2\n" + line + b"\n")
    with pytest.raises(UserError, match="line 2 is damaged"):
        journal.read(path)


def test_a_reader_gives_what_has_been_added_since(tmp_path):
    path = tmp_path / "journal.jsonl"
    book = journal.Journal(path)
    reader = journal.Reader(path)
    assert reader.more() == []
    book.append(1.0, EVENTS[0])
    book.append(2.0, EVENTS[1])
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])  # as if half of the line had been written
    assert reader.more() == [(1.0, EVENTS[0])]
    assert reader.more() == []
    path.write_bytes(whole)
    assert reader.more() == [(2.0, EVENTS[1])]
    book.close()


@contextlib.contextmanager
def small_files(folder, size):
    """No file may be longer than `size` bytes; everywhere, and without root."""
    folder.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("full", "why"),
    [
        pytest.param(
            small_disk, "No space left on device",
            marks=pytest.mark.skipif(not can_mount(), reason="a file system of its own wants the right to mount"),
        ),
        (small_files, "File too large"),
    ],
)  # fmt: skip
def test_a_full_disk_ends_the_job_in_words_and_the_run_goes_on_when_there_is_room(tmp_path, full, why):
    folder = tmp_path / "run"
    with full(folder, 6000) as filler:
        path = folder / "journal.jsonl"
        book = journal.Journal(path)
        events = [ev.Rejected(number, "latency_s") for number in range(1000)]
        with pytest.raises(UserError) as caught:
            append_all(book, events)
        assert str(caught.value) == (
            f"{path}: cannot be written ({why}): the run is whole up to here; free some space, "
            f"then go on with --resume --run {folder}"
        )
        kept = len(journal.read(path))
        assert 40 < kept < 100
        if filler:
            filler.unlink()
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with pytest.raises(UserError, match="whole up to here"):  # an event is missing: none may follow
            book.append(1.0, ev.StopRequested("SIGTERM"))
        book.close()
        assert path.read_bytes().endswith(b'"}\n'), "half a line was taken back"
        assert [event for _, event in journal.read(path)] == events[:kept]
        book = journal.Journal(path)
        book.append(1.0, ev.Finished("done"))
        book.close()
        assert len(journal.read(path)) == kept + 1


def test_a_second_job_on_the_same_folder_is_refused(tmp_path):
    book = journal.Journal(tmp_path / "journal.jsonl")
    with pytest.raises(UserError, match="another job is running"):
        journal.Journal(tmp_path / "journal.jsonl")
    book.close()
    journal.Journal(tmp_path / "journal.jsonl").close()


def test_a_job_that_had_opened_the_journal_as_another_rewrote_it_locks_the_new_one(tmp_path, monkeypatch):
    path = write(tmp_path / "journal.jsonl")
    flock, rewritten = fcntl.flock, []

    def rewrite_and_lock(file, operation):
        if not rewritten:
            rewritten.append(path.rename(tmp_path / "old"))
            path.write_bytes((tmp_path / "old").read_bytes())
        flock(file, operation)

    monkeypatch.setattr(journal.fcntl, "flock", rewrite_and_lock)
    book = journal.Journal(path)
    with pytest.raises(UserError, match="another job is running"):
        journal.Journal(path)
    book.append(99.0, ev.Finished("again"))
    book.close()
    assert len(journal.read(path)) == len(EVENTS) + 1


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch, number):
    """As Lustre without `-o flock`: the kernel's call fails; there is `RunLock` besides."""

    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(journal.fcntl, "flock", flock)
    assert len(journal.read(write(tmp_path / "journal.jsonl"))) == len(EVENTS)


def test_run_folder_keeps_the_complete_experiment(tmp_path):
    experiment = msgspec.convert({"task": {"name": "digits"}}, Experiment)
    folder = RunFolder.create(tmp_path / "runs" / "a", experiment)
    assert folder.experiment() == experiment
    assert "evaluations = 64" in folder.experiment_file.read_text()
    with pytest.raises(UserError, match="--resume"):
        RunFolder.create(folder.path, experiment)
    with pytest.raises(UserError, match="no such run folder"):
        RunFolder.existing(tmp_path / "b")
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.existing(tmp_path)


def test_models_without_a_journal_that_knows_of_them_are_not_touched(tmp_path):
    folder = RunFolder.create(tmp_path / "a", msgspec.convert({"task": {"name": "digits"}}, Experiment))
    folder.check_journal(begun=False)  # a job that died before its first event
    folder.weights_file(3).parent.mkdir()
    folder.check_journal(begun=True)
    with pytest.raises(UserError, match=r"journal\.jsonl: is not there or empty, but models/ holds"):
        folder.check_journal(begun=False)


def test_models_of_use_are_kept_and_checkpoints_to_go_on_from(tmp_path):
    folder = RunFolder.create(tmp_path / "a", msgspec.convert({"task": {"name": "digits"}}, Experiment))
    files = [make(id_) for id_ in (1, 2, 3, 4) for make in (folder.weights_file, folder.checkpoint_file)]
    for file in (*files, folder.supernet_file):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    folder.keep_only({1, 2}, {2, 3})
    left = [path.relative_to(folder.models).as_posix() for path in folder.models.glob("*/*")]
    assert sorted(left) == ["00001/weights.pt", "00002/checkpoint.pt", "00002/weights.pt", "00003/checkpoint.pt",
                            "00003/weights.pt", "supernet/weights.pt"]  # fmt: skip


def test_a_run_folder_is_complete_or_not_there(tmp_path, monkeypatch):
    """Killed at any moment of its making, a run leaves no folder of its name."""
    seen = []

    def look_and_fail(self):
        seen.append(sorted(each.name for each in tmp_path.iterdir()))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    experiment = msgspec.convert({"task": {"name": "digits"}}, Experiment)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "prepare", look_and_fail)
        with pytest.raises(UserError, match="cannot be made: No space left on device"):
            RunFolder.create(tmp_path / "a", experiment)
    assert seen == [[f".a.part-{os.getpid()}"]]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / f".a.part-{os.getpid()}").mkdir()  # left by a process that was killed
    folder = RunFolder.create(tmp_path / "a", experiment)
    assert sorted(each.name for each in folder.path.iterdir()) == ["experiment.toml", "exports", "logs", "models"]
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
