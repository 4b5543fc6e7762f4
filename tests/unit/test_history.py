"""Journal and run folder: what is written is read back, what is broken is named."""

import msgspec
import pytest

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
    msg.Stopped(1),
]


def write(path, events=EVENTS):
    book = journal.Journal(path)
    for number, event in enumerate(events):
        book.append(10.0 + number, event)
    book.close()
    return path


def test_every_kind_of_event_comes_back_as_it_was(tmp_path):
    assert {type(event).__name__ for event in EVENTS} == set(ev.EVENT_CLASSES)
    path = write(tmp_path / "journal.jsonl")
    assert journal.read(path) == [(10.0 + i, event) for i, event in enumerate(EVENTS)]


@pytest.mark.parametrize("cut", range(1, 40))
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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [b"hello\n", *lines[1:]], "not a journal"),
        (lambda lines: [*lines[:3], b"{}\n", *lines[4:]], "line 4 is damaged"),
        (lambda lines: [*lines[:3], *lines[4:]], "line 4 has number 3, 2 was due"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "line 2 has number 1, 0 was due"),
        (
            lambda lines: [*lines[:2], lines[2].replace(b'"candidate":0', b'"candidate":"x"'), *lines[3:]],
            "line 3",
        ),
    ],
)
def test_damage_is_refused_in_words(tmp_path, damage, message):
    path = write(tmp_path / "journal.jsonl")
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(UserError, match=message):
        journal.read(path)


def test_a_second_job_on_the_same_folder_is_refused(tmp_path):
    book = journal.Journal(tmp_path / "journal.jsonl")
    with pytest.raises(UserError, match="another job is running"):
        journal.Journal(tmp_path / "journal.jsonl")
    book.close()
    journal.Journal(tmp_path / "journal.jsonl").close()


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
