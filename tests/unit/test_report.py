"""Results and live lines: columns, marks and words follow from what is known of the run."""

import io
import json
import os
import termios
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from rich.console import Console
from virtual_time import World, deserted, latency_of

from mpinas.config import Experiment
from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.errors import UserError
from mpinas.history.journal import Journal
from mpinas.history.run_folder import RunFolder
from mpinas.report import results, results_table
from mpinas.report.live import LiveDisplay, line_of, open_display
from mpinas.report.live import latency_of as latency_of_on_screen
from mpinas.report.terminal import terminal_size
from mpinas.search.selection import hypervolume


class Mixed(World):
    """Finalists: 2's latency on "slow" stays unsteady, 3 is wrong on "slow", 4 crashes there."""

    def measure(self, candidate, device, repetition):
        doubts = ("unsteady",) if (candidate, device) == (2, "slow") else ()
        return super().measure(candidate, device, repetition, doubts=doubts)

    def judge(self, candidate, device):
        if (candidate, device) == (4, "slow"):
            return ev.JudgingFailed(4, "slow", "crashed", "signal 11")
        wrong = (candidate, device) == (3, "slow")
        return ev.Judged(candidate, device, 0.5 if wrong else 0.4, 0.4, "fp16", "nano" if candidate == 2 else "")


NOTES = [
    "~ candidate 2: latency on slow in doubt: unsteady (measured 3 times)",
    "candidate 2 on a: measured by agx, checked by nano",
    "candidate 2 on slow: measured by agx, checked by nano",
    "candidate 3 is not accepted on slow (fp16): error 0.5000 on its samples, 0.4000 expected",
    "candidate 4 is not accepted on slow: crashed: signal 11",
]


@pytest.fixture(scope="module")
def world():
    world = Mixed(groups=1, evaluations=6, devices=("a", "slow")).run()
    assert {2, 3, 4} <= set(world.ledger.front)
    return world


def shown(renderable):
    console = Console(width=160, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def rows(text, name):
    (row,) = [line.split() for line in text.splitlines() if line.split()[:1] == [name]]
    return row


def test_the_table_has_a_column_for_each_device_and_marks_what_is_in_doubt(world):
    text = shown(results_table.table(world.ledger))
    head = text.splitlines()[0]
    assert "p50 a" in head
    assert "p50 slow" in head
    latency = latency_of(world.genomes[2]) * 1e3
    assert f" {latency:.3f} ms {3 * latency:.3f} ms ~ " in " ".join(rows(text, "2"))
    assert "accepted" in rows(text, "2")
    assert [word for word in rows(text, "3") if word.isupper()] == ["NOT", "ACCEPTED"]
    assert results.notes(world.ledger) == NOTES


@pytest.mark.parametrize(("columns", "expected"), [(200, ["parameters", "trained"]), (112, ["parameters"]), (60, [])])
def test_a_narrow_terminal_goes_without_columns_and_no_number_is_cut(world, columns, expected):
    console = Console(width=columns, force_terminal=True, color_system=None, file=io.StringIO())
    results_table.show(world.ledger, console)
    text = console.file.getvalue()
    assert "…" not in text
    assert [word for word in ("parameters", "trained") if word in text.splitlines()[1]] == expected
    assert f"{world.ledger.candidates[2].metrics['error']:.4f}" in rows(text, "2")
    pipe = Console(file=io.StringIO(), force_terminal=False)
    results_table.show(world.ledger, pipe)
    assert "trained in" in pipe.file.getvalue()
    assert all(note in pipe.file.getvalue().splitlines() for note in NOTES)


def test_a_run_beside_another_is_compared_with_the_same_baseline():
    one, other = (World(groups=1, evaluations=4, seed=seed).run().ledger for seed in (0, 1))
    for it in other.candidates.values():
        if it.id != 0:
            it.genome = {**it.genome, "method": "prune", "keep": 0.25, "precision": "int8"}
    text = shown(results_table.table(one, beside=other, label="small"))
    names = [line.split()[0] for line in text.splitlines()[1:]]
    assert "baseline" in names
    assert "small/baseline" not in names
    assert {name for name in names if name.startswith("small/")} == {"small/1", "small/2", "small/3"}, "all of them"
    assert all("prune 0.25 int8" in line for line in text.splitlines() if line.startswith("small/"))
    faster = results.ratios(other.candidates[1], one)["times_faster"]
    assert faster == one.candidates[0].latency_s / other.candidates[1].latency_s
    assert f" {faster:.1f} " in next(line for line in text.splitlines() if line.startswith("small/1"))
    assert results.baselines_differ(one, other) == []
    reading = other.candidates[0].readings["any"]
    other.candidates[0].readings["any"] = replace(reading, factor=2.0)
    (said,) = results.baselines_differ(one, other)
    assert said.startswith("the baselines of the two runs differ in latency on any in ms: 10 and 20")


def test_runs_that_do_not_compare_are_not_shown_beside_each_other(tmp_path):
    def run(name, **task):
        experiment = msgspec.convert({"task": {"name": "digits", **task}}, Experiment)
        folder = RunFolder.create(tmp_path / name, experiment)
        Journal(folder.journal_file).close()
        return folder

    one = run("one")
    assert results.load_beside(one, run("two", baseline="mpinas.examples.digits:DigitsCnn")).candidates == {}
    with pytest.raises(UserError, match=r"--beside .*three: its task is not that of .*one: they do not compare"):
        results.load_beside(one, run("three", validation_fraction=0.5))


def test_one_device_or_the_worst_of_them_is_one_latency_objective():
    one = World(groups=1, evaluations=3).run().ledger
    assert "latency p50" in shown(results_table.table(one))
    worst = World(groups=1, evaluations=3, devices=("a", "slow"), worst=True).run().ledger
    assert worst.terms.objectives == ("error", "latency_s")
    assert "p50 slow" in shown(results_table.table(worst))


def test_the_json_says_it_by_device(world, tmp_path):
    experiment = msgspec.convert(
        {"task": {"name": "digits"}, "edge": {"bridge": "B.json", "devices": ["a", "slow"]}}, Experiment
    )
    folder = RunFolder.create(tmp_path / "run", experiment)
    journal = Journal(folder.journal_file)
    for time, event in world.journal:
        journal.append(time, event)
    journal.close()
    ledger = results.load(folder)
    found = json.loads(json.dumps(results.as_dict(ledger, folder)))
    assert found["objectives"] == ["error", "latency_s@a", "latency_s@slow"]
    assert found["notes"] == NOTES
    by_id = {candidate["id"]: candidate for candidate in found["candidates"]}
    two, three, four = (by_id[id_] for id_ in (2, 3, 4))
    assert two["doubts"] == {"slow": ["unsteady"]}
    assert two["objectives"]["latency_s@slow"] == two["measurements"]["slow"]["p50_s"] == two["latencies_s"]["slow"]
    assert two["measurement"] == two["measurements"]["slow"]
    assert (two["accepted"], three["accepted"], four["accepted"]) == (True, False, False)
    assert three["quality"]["slow"] == {
        "accepted": False, "expected": 0.4, "error": 0.5, "precision": "fp16", "reason": "", "detail": "", "device": ""
    }  # fmt: skip
    assert four["quality"]["slow"]["reason"] == "crashed"
    baseline = by_id[0]["objectives"]
    points = [[by_id[i]["objectives"][name] / baseline[name] for name in baseline] for i in found["front"]]
    assert found["hypervolume"] == pytest.approx(hypervolume(np.array(points), np.ones(3)))


def test_an_empty_journal_beside_trained_models_is_damage(tmp_path):
    folder = RunFolder.create(tmp_path / "run", msgspec.convert({"task": {"name": "digits"}}, Experiment))
    Journal(folder.journal_file).close()
    assert not results.load(folder).candidates
    (folder.models / "00003").mkdir()
    with pytest.raises(UserError, match="restore it from a copy"):
        results.load(folder)


def test_a_journal_that_contradicts_the_experiment_is_one_line(world, tmp_path):
    folder = RunFolder.create(tmp_path / "run", msgspec.convert({"task": {"name": "digits"}}, Experiment))
    journal = Journal(folder.journal_file)
    for time, event in world.journal:
        journal.append(time, event)
    journal.close()
    with pytest.raises(UserError, match=r"cannot follow .*the devices of this run are any") as caught:
        results.load(folder)
    assert "\n" not in str(caught.value)


def test_lines_say_what_devices_said(world):
    said = [line for _, event in world.journal if (line := line_of(event, world.ledger))]
    assert "candidate 4 NOT ACCEPTED on slow: crashed: signal 11" in said
    assert "candidate 3 NOT ACCEPTED on slow: error 0.5000 on its samples, 0.4000 expected" in said
    assert "baseline accepted on a: error 0.4000 on its samples, 0.4000 expected" in said
    latency = f"{latency_of(world.genomes[2]) * 3e3:.3f} ms"
    assert f"candidate 2 measured on slow: p50 {latency}; unsteady: ~ used, in doubt" in said
    assert any(line.startswith("candidate 2 evaluated") and line.endswith(f", {latency} ~ *front*") for line in said)
    lost = line_of(ev.DeviceLost("gone", "slow"), world.ledger)
    assert lost == "device slow lost: gone; measurements wait, training goes on"


def test_the_live_display_marks_doubts_and_refusals(world):
    display = LiveDisplay(Console(width=120, file=open("/dev/null", "w")), 6)  # noqa: SIM115 - closed below
    text = shown(display.render(1.0, world.ledger))
    display.close()
    display._live.console.file.close()
    assert "p50 slow" in text
    assert "ms ~" in text
    assert "~ = measurement in doubt" in text
    assert "NOT ACCEPTED" in text


def test_without_a_terminal_lines_go_to_the_output_and_no_file_is_made(world, tmp_path):
    out = io.StringIO()
    display = open_display(out, 6, tmp_path / "search.log")
    for time, event in world.journal:
        display.show(event, time, world.ledger)
    display.close()
    assert "finished: 6 of 6 candidates evaluated" in out.getvalue()
    assert list(tmp_path.iterdir()) == []


def test_what_is_predicted_is_said_wherever_a_latency_is_shown(tmp_path):
    world = deserted()
    ledger = world.ledger
    out = sorted({*ledger.hoped} - {*ledger.front})
    assert out
    assert results.notes(ledger)[: len(out)] == [
        f"candidate {id_} is not on the front: its latency is predicted, no device has measured it" for id_ in out
    ]
    assert latency_of_on_screen(ledger.candidates[out[0]], "any").endswith(" ms predicted")
    (event,) = [e for _, e in world.journal if isinstance(e, ev.Predicted) and e.candidate == out[0]]
    assert line_of(event, ledger).endswith(" ms, predicted")
    folder = RunFolder(tmp_path)
    found = results.as_dict(ledger, folder)
    assert found["predicted_front"] == out
    assert not set(found["front"]) & set(out)
    assert found["candidates"][out[0]]["predicted"] == ["any"]


def test_finalists_are_shown_with_mean_and_deviation(tmp_path):
    class Unsure(World):
        def retrain(self, group, order):
            test_error = [0.2, 0.3, 0.4][len(self.ledger.candidates[order.candidate].retrainings)]
            metrics = {"error": test_error + 1}
            return 1.0, msg.Retrained(group, order.candidate, order.attempt, metrics, {"error": test_error}, 1.0)

    ledger = Unsure(groups=1, evaluations=4, finalists=1).run().ledger
    (best,) = ledger.fronts.best(1)
    found = results.as_dict(ledger, RunFolder(tmp_path))["candidates"][best]["retrained"]
    assert found["times"] == 3
    assert found["test_error"] == pytest.approx((0.3, 0.1))
    assert found["error"] == pytest.approx((1.3, 0.1))
    text = shown(results_table.table(ledger))
    assert "trained again" in text.splitlines()[0]
    assert "0.3000 ± 0.1000 (3)" in " ".join(rows(text, "baseline" if best == 0 else str(best)))


def test_lines_of_budgets_and_of_the_end():
    ledger = World(groups=1, evaluations=4, rungs=(2, 6)).run().ledger
    assert line_of(ev.Promoted(3, 1), ledger) == "candidate 3 goes on to 6 epochs"
    assert line_of(ev.Enough("the job's 50 s are over"), ledger) == "the job's 50 s are over: nothing new is begun"
    evaluated = msg.Evaluated(1, 0, 1, {"error": 0.1}, 2.0)
    assert line_of(evaluated, ledger).startswith("baseline evaluated in 2.0 s (6 epochs): error 0.1000, ")
    assert (
        line_of(msg.RetrainingFailed(1, 0, 1, "memory", "x"), ledger)
        == "baseline could not be trained again: memory: x"
    )
    again = msg.Retrained(1, 2, 1, {"error": 0.5}, {"error": 0.25}, 3.0)
    assert line_of(again, ledger) == "candidate 2 trained again in 3.0 s: error 0.5000, test error 0.2500"


def test_a_terminal_that_nobody_has_told_its_size_is_none():
    _, inner = os.openpty()
    with open(inner, "w") as out:
        assert terminal_size(out, {}) is None
        termios.tcsetwinsize(inner, (24, 80))
        assert terminal_size(out, {}) == (80, 24)
