"""Whole jobs that do not train every candidate from scratch: a supernet in one Horovod world, and compression."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import Launch

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.history import journal
from mpinas.training.deployed import Deployed

EXPERIMENT = """
[task]
name = "digits"
[search]
evaluations = 5
strategy = "supernet"
precision = ["fp32", "int8"]
[search.genes]
stem = ["fold"]
block = ["plain"]
head = ["grid"]
stages = [1]
[training]
epochs = 2
teacher = "supernet"
[supernet]
epochs = 2
[edge]
exporters = 1
"""


def results_of(mpirun: Launch, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(mpirun(1, "-m", "mpinas", "results", run, "--json").stdout)
    return found


def test_a_supernet_is_trained_by_all_and_candidates_inherit(tmp_path: Path, mpirun: Launch):
    (tmp_path / "e.toml").write_text(EXPERIMENT)
    done = mpirun(3, "-m", "mpinas", "search", "e.toml", "--run", "run")
    assert "supernet: epoch 2 of 2" in done.stdout
    history = [event for _, event in journal.read(tmp_path / "run" / "journal.jsonl")]
    first = next(event for event in history if isinstance(event, ev.Ordered))
    assert (first.work, first.members) == ("supernet", (1, 2))
    judged = [
        event for event in history if isinstance(event, ev.Ordered) and event.work == "evaluate" and not event.rung
    ]
    assert {event.candidate for event in judged} == {1, 2, 3, 4}
    found = results_of(mpirun, "run")
    assert found["counts"]["EVALUATED"] == 5
    assert set(found["front"]) <= {each["id"] for each in found["candidates"] if each["epochs"] == 2}
    for each in found["candidates"][1:]:
        assert {"precision", "distillation"} <= set(each["genome"])
        assert (each["onnx"] is not None) == (each["id"] in found["front"])
    kept = {path.name for path in (tmp_path / "run" / "models").iterdir()}
    assert kept == {"supernet", "00000", *(f"{id_:05d}" for id_ in found["front"])}
    # more candidates: the supernet is there, and trained once
    mpirun(2, "-m", "mpinas", "search", "--resume", "--run", "run", "--set", "search.evaluations=7")
    again = [event for _, event in journal.read(tmp_path / "run" / "journal.jsonl")]
    assert sum(isinstance(event, msg.SupernetTrained) for event in again) == 1
    assert results_of(mpirun, "run")["counts"]["EVALUATED"] == 7


def test_the_baseline_is_compressed_in_the_usual_ways(tmp_path: Path, mpirun: Launch):
    (tmp_path / "e.toml").write_text('[task]\nname = "digits"\n[training]\nepochs = 2\n')
    compress = ("-m", "mpinas", "compress", "e.toml", "--method", "prune", "--method", "quantise", "--run", "run")
    nowhere = mpirun(3, *compress, "--edge", "none.json", check=False)
    assert (nowhere.returncode, "none.json" in nowhere.stderr) == (2, True)
    short = mpirun(3, *compress, "--time-limit", "soon", check=False)
    assert (short.returncode, "--time-limit: " in short.stderr) == (2, True)
    mpirun(3, *compress, "--edge", "local", "--time-limit", "1:00:00", "--set", "search.rungs=[50]")
    found = results_of(mpirun, "run")
    assert found["counts"]["EVALUATED"] == 7
    others = found["candidates"][1:]
    assert [(each["genome"]["method"], each["genome"]["keep"], each["genome"]["precision"]) for each in others] == [
        *(("prune", keep, "fp32") for keep in (0.75, 0.5, 0.25, 0.125)),
        ("quantise", 1, "fp16"),
        ("quantise", 1, "int8"),
    ]
    assert [each["parameters"] for each in others[:4]] == sorted((e["parameters"] for e in others[:4]), reverse=True)
    history = [event for _, event in journal.read(tmp_path / "run" / "journal.jsonl")]
    ended = next(i for i, e in enumerate(history) if isinstance(e, msg.Evaluated) and e.candidate == 0)
    assert all(e.candidate == 0 for e in history[:ended] if isinstance(e, ev.Ordered)), "they start from it"
    for each in others:  # all of them are results, on the front or not
        assert each["test_error"] is not None
        assert each["accepted"]
        assert Deployed(tmp_path / each["onnx"]).metadata.get("precision", "fp32") == each["genome"]["precision"]
    shown = mpirun(1, "-m", "mpinas", "results", "run").stdout
    assert "prune 0.25 fp32" in shown
    assert "quantise 1 int8" in shown
    refused = mpirun(1, "-m", "mpinas", "search", "e.toml", "--set", "search.space=compressed", check=False)
    assert refused.returncode == 2
    assert "mpinas compress EXPERIMENT" in refused.stderr
