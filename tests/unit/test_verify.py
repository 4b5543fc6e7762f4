"""`mpinas verify`: a whole run folder is called whole, and each way to break it is found, with its remedy."""

import hashlib
import json
import os
import pickle
import time
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from test_lock import here, left_behind
from torch import nn
from virtual_time import World

from mpinas.cli import cli
from mpinas.config import Experiment, write_experiment
from mpinas.coordination import messages as msg
from mpinas.coordination.lifecycle import State
from mpinas.history.journal import Journal
from mpinas.history.run_folder import RunFolder
from mpinas.history.shard import write_shard
from mpinas.training.checkpoint import Checkpoint, write_checkpoint
from mpinas.training.weights import save_weights

EXPERIMENT = msgspec.convert(
    {"task": {"name": "digits"}, "search": {"evaluations": 6, "rungs": [1]}, "training": {"epochs": 2}}, Experiment
)


def onnx_of(candidate, genome):
    inputs, outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "toy", [inputs], [outputs])
    model = helper.make_model(graph)
    helper.set_model_props(model, {"candidate": str(candidate), "genome": msgspec.json.encode(genome).decode()})
    return model.SerializeToString()


def write_onnx(path, candidate, genome):
    path.write_bytes(onnx_of(candidate, genome))


def make_run(path, world, digests=True):
    """The folder that such a run leaves, with small files of the real kinds."""
    folder = RunFolder.create(path, EXPERIMENT)
    book = Journal(folder.journal_file)
    for when, event in world.journal:
        if isinstance(event, msg.Assessed) and digests:
            model = onnx_of(event.candidate, world.ledger.candidates[event.candidate].genome)
            book.append(when, replace(event, onnx_sha256=hashlib.sha256(model).hexdigest()))
        else:
            book.append(when, event)
    book.close()
    folder.clear_exports()
    ledger = world.ledger
    for it in ledger.candidates.values():
        if it.state is State.EVALUATED and ledger.is_kept(it.id):
            save_weights(nn.Linear(2, 1), folder.weights_file(it.id))
        if it.assessed and it.id in ledger.finalists():
            write_onnx(folder.onnx_file(it.id), it.id, it.genome)
            write_shard(folder.shard_file(it.id), np.zeros((3, 2, 4, 4), np.uint8), np.zeros((3, 2)), "rmse", 0.4)
        if ledger.finished is None and it.epochs_done == 1 and it.state is State.EVALUATED:
            write_checkpoint(
                Checkpoint(it.genome, 0, 1, nn.Linear(2, 1).state_dict(), {}), folder.checkpoint_file(it.id)
            )
    return folder


class Rungs(World):
    """Some dominate others: those stay at the first budget."""

    def __init__(self, **terms):
        super().__init__(groups=1, evaluations=6, rungs=(1, 2), **terms)
        self.objectives = lambda genome: (1.0 / genome["width"] + 0.05 * genome["depth"], 0.0)


@pytest.fixture(scope="module")
def finished():
    return Rungs().run()


@pytest.fixture(scope="module")
def unfinished():
    return Rungs().run(until=lambda world: len(world.ledger.evaluated) == 4)


def rows(folder):
    """(exit code, level and what of all rows but the good ones, the rows by what)."""
    told = CliRunner().invoke(cli, ["verify", str(folder.path), "--json"])
    found = json.loads(told.output)
    bad = [(each["level"], each["what"]) for each in found if each["level"] != "ok"]
    return told.exit_code, bad, {each["what"]: each for each in found}


def test_a_whole_run_is_called_whole_and_nothing_is_touched(tmp_path, finished):
    folder = make_run(tmp_path / "run", finished)
    before = {each: each.stat().st_mtime_ns for each in folder.path.rglob("*")}
    told = CliRunner().invoke(cli, ["verify", str(folder.path)])
    assert {each: each.stat().st_mtime_ns for each in folder.path.rglob("*")} == before
    assert told.exit_code == 0
    lines = told.output.splitlines()
    assert lines[0] == "ok    experiment.toml: can be read"
    assert lines[1] == f"ok    journal.jsonl: {len(finished.journal)} events, whole; 6 of 6 candidates evaluated"
    assert lines[2] == "ok    models/00000: baseline: weights, ONNX file, samples"
    assert len(lines) == 3 + len(finished.ledger.finalists())
    assert lines[-1] == "the run folder is whole"


def test_a_run_of_a_version_that_kept_no_digests_is_whole(tmp_path, finished):
    code, bad, _ = rows(make_run(tmp_path / "run", finished, digests=False))
    assert (code, bad) == (0, [])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: None, "can be read"),
        (lambda file: turn_a_bit(file, b"NUMPY"), "is damaged"),
        (lambda file: turn_a_bit(file, b"1', 'fortran"), "is damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "is damaged"),
        (lambda file: np.save(file, np.zeros(3)), "is damaged (it holds float64 of shape (3,))"),
    ],
)
def test_what_integer_networks_are_calibrated_with_is_opened(tmp_path, finished, damage, says):
    folder = make_run(tmp_path / "run", finished)
    np.save(folder.calibration_file, np.zeros((3, 2, 4, 4), np.uint8))
    damage(folder.calibration_file)
    code, bad, found = rows(folder)
    assert (code, bad) == ((0, []) if says == "can be read" else (2, [("fault", "calibration.npy")]))
    assert says in found["calibration.npy"]["detail"]


def test_an_unfinished_run_has_checkpoints(tmp_path, unfinished):
    folder = make_run(tmp_path / "run", unfinished)
    code, bad, found = rows(folder)
    assert (code, bad) == (0, [])
    waiting = [id_ for id_ in unfinished.ledger.evaluated if unfinished.ledger.candidates[id_].epochs_done == 1]
    assert [found[f"models/{id_:05d}"]["detail"].split(": ")[1] for id_ in waiting] == ["checkpoint"] * len(waiting)
    file = folder.checkpoint_file(waiting[0])
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    folder.checkpoint_file(waiting[1]).unlink()
    code, bad, found = rows(folder)
    broken, missing = f"models/{waiting[0]:05d}/checkpoint.pt", f"models/{waiting[1]:05d}"
    assert (code, bad) == (2, [("fault", broken), ("note", missing)])
    assert "its digest is wrong" in found[broken]["detail"]
    assert found[broken]["remedy"] == "remove it: the candidate is then trained from the beginning"
    assert found[missing]["detail"].endswith("no checkpoint to go on from")


class RunsCode:
    def __reduce__(self):
        return (os.abort, ())


CODE = pickle.dumps(RunsCode())


def spoil(file, change):
    data = bytearray(file.read_bytes())
    change(data)
    file.write_bytes(data)


def turn_a_bit(file, of):
    """Of the first byte of the last such bytes in the file."""
    data = bytearray(file.read_bytes())
    data[data.rindex(of)] ^= 1
    file.write_bytes(data)


def turn_a_bit_of_weights(file):
    turn_a_bit(file, torch.load(file, weights_only=True)["weight"].numpy().tobytes())


def more_samples(file):
    file.write_bytes(file.read_bytes().replace(b"[3,", b"[4,"))


@pytest.mark.parametrize(
    ("damage", "what", "says"),
    [
        (lambda folder, id_: folder.weights_file(id_).unlink(), "weights.pt", "is missing"),
        (lambda folder, id_: folder.weights_file(id_).write_bytes(b"PK"), "weights.pt", "is damaged"),
        (lambda folder, id_: folder.weights_file(id_).write_bytes(CODE), "weights.pt", "is damaged"),
        (lambda folder, id_: turn_a_bit_of_weights(folder.weights_file(id_)), "weights.pt", "Bad CRC-32 "),
        (lambda folder, id_: turn_a_bit(folder.onnx_file(id_), b"toy"), "model.onnx", "its digest is not"),
        (lambda folder, id_: turn_a_bit(folder.shard_file(id_), b"\0"), "shard.bin", "not the bytes"),
        (lambda folder, id_: folder.onnx_file(id_).unlink(), "model.onnx", "is missing"),
        (lambda folder, id_: folder.onnx_file(id_).write_bytes(b""), "model.onnx", "is damaged"),
        (lambda folder, id_: spoil(folder.onnx_file(id_), lambda data: data.__delitem__(slice(30, 60))), "model.onnx",
         "is damaged"),
        (lambda folder, id_: write_onnx(folder.onnx_file(id_), 99, {}), "model.onnx", "it is of candidate 99"),
        (lambda folder, id_: write_onnx(folder.onnx_file(id_), id_, {"width": 1}), "model.onnx", "of another genome"),
        (lambda folder, id_: spoil(folder.shard_file(id_), lambda data: data.append(0)), "shard.bin", "not the bytes"),
        (lambda folder, id_: folder.shard_file(id_).with_suffix(".json").unlink(), "shard.bin", "No such file"),
        (lambda folder, id_: write_shard(folder.shard_file(id_), np.zeros((3, 1), np.uint8), np.zeros(2), "rmse", 0.4),
         "shard.bin", "is damaged (11 bytes, where 11 were written"),
        (lambda folder, id_: more_samples(folder.shard_file(id_).with_suffix(".json")), "shard.bin",
         "is damaged (120 bytes, where 160 were written"),
    ],
)  # fmt: skip
def test_what_is_broken_of_a_finalist_is_found(tmp_path, finished, damage, what, says):
    folder = make_run(tmp_path / "run", finished)
    id_ = finished.ledger.front[0]
    damage(folder, id_)
    code, bad, found = rows(folder)
    name = f"models/{id_:05d}/{what}"
    assert (code, bad) == (2, [("fault", name)])
    assert says in found[name]["detail"]
    assert found[name]["remedy"]
    assert "\n" not in found[name]["detail"]


@pytest.mark.parametrize(
    ("damage", "what", "says"),
    [
        (lambda folder: folder.experiment_file.write_text("task = 3"), "experiment.toml", "task"),
        (lambda folder: folder.journal_file.unlink(), "journal.jsonl", "no journal here"),
        (lambda folder: folder.journal_file.write_bytes(b""), "journal.jsonl", "is not there or empty, but models/"),
        (lambda folder: spoil(folder.journal_file, lambda data: data.__delitem__(100)), "journal.jsonl", "line 2 is"),
        (
            lambda folder: write_experiment(
                msgspec.convert({"task": {"name": "digits"}}, Experiment), folder.experiment_file
            ),
            "journal.jsonl",
            "cannot follow those before it",
        ),
    ],
)
def test_a_run_that_cannot_be_folded_is_a_fault(tmp_path, finished, damage, what, says):
    folder = make_run(tmp_path / "run", finished)
    damage(folder)
    code, bad, found = rows(folder)
    assert (code, bad) == (2, [("fault", what), ("note", "models")])
    assert says in found[what]["detail"]
    assert "not looked at" in found["models"]["detail"]


def test_what_is_not_a_runs_is_noted(tmp_path, finished):
    folder = make_run(tmp_path / "run", finished)
    ledger = finished.ledger
    out = next(id_ for id_ in ledger.candidates if not ledger.is_kept(id_))
    strange = ["mine.txt", "journal.jsonl.part", "models/README", "models/00000/weights.part"]
    left = [folder.weights_file(out), folder.weights_file(777)]
    for file in (*(folder.path / each for each in strange), *left):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"")
    with open(folder.journal_file, "ab") as file:
        file.write(b"half a line")
    left_behind(folder.lock_file, here(started=1))
    code, bad, found = rows(folder)
    assert code == 0
    models = [f"models/{out:05d}", "models/00777"]
    assert sorted(what for _, what in bad) == sorted([*strange, *models, "journal.jsonl", "running.json"])
    assert {level for level, _ in bad} == {"note"}
    assert found["running.json"]["detail"].startswith("left by a job that died (process ")
    assert found["journal.jsonl"]["detail"] == "its last 11 bytes are half a line"
    assert found["journal.jsonl.part"]["detail"] == "half written by a job that was killed"


def test_while_a_job_is_at_work_half_written_files_are_nothing_strange(tmp_path, unfinished):
    folder = make_run(tmp_path / "run", unfinished)
    (folder.models / "00000" / "weights.part").write_bytes(b"")
    left_behind(folder.lock_file, here(since=time.time()))
    code, bad, found = rows(folder)
    assert (code, bad) == (0, [("note", "running.json")])
    assert found["running.json"]["detail"].startswith("a job is at work here (process ")


def test_a_model_that_the_journal_calls_dropped_is_no_fault(tmp_path, finished):
    world = Rungs().run()
    last = max(i for i, (_, event) in enumerate(world.journal) if isinstance(event, msg.Assessed) and event.candidate)
    when, event = world.journal[last]
    dropped = msg.AssessmentFailed(event.group, event.candidate, event.attempt, "dropped", "it was removed")
    world.journal = [each for each in world.journal if getattr(each[1], "candidate", None) != event.candidate
                     or type(each[1]).__name__ not in ("Judged", "Assessed")]  # fmt: skip
    world.journal.insert(last, (when, dropped))
    folder = make_run(tmp_path / "run", world)
    folder.discard(event.candidate)
    code, bad, found = rows(folder)
    assert (code, bad) == (0, [("note", f"models/{event.candidate:05d}")])
    assert found[bad[0][1]]["detail"].endswith("as the journal says: assessment: dropped: it was removed")
