"""Training on one process: batches, schedule, outcomes, weights, and real learning on real digits."""

import errno
import hashlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from mpinas import config
from mpinas.errors import UserError
from mpinas.history.shard import read_shard
from mpinas.models import Networks, baseline_genome, make_space
from mpinas.tasks import Samples, make_task
from mpinas.tasks.kinds import Classification
from mpinas.training.candidate import ONNX_TOLERANCE, Files, Paused, Trainer
from mpinas.training.checkpoint import Checkpoint, Unusable, read_archive, unpack, write_checkpoint
from mpinas.training.collectives import SerialCollectives
from mpinas.training.deployed import Deployed
from mpinas.training.devices import local_device
from mpinas.training.heritage import Heritage
from mpinas.training.loop import Abandoned, Callbacks, Diverged, flip, judge, train
from mpinas.training.outcome import explain
from mpinas.training.recipe import Epochs, Recipe, batches, draw_mirrored, learning_rate_factor, make_optimizer
from mpinas.training.shard import error_of, make_shard
from mpinas.training.weights import Dropped, load_weights, read_weights, save_weights

ALONE = SerialCollectives()
#: A network with BatchNorm, trained on mirrored samples: all that chance and buffers can spoil.
RESTLESS = {**make_space("cnn3d", (1, 8, 8)).sample(np.random.default_rng(1)), "flips": True, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def digits():
    task = make_task(config.Task(name="digits"), seed=0)
    heritage = Heritage(Networks("cnn3d", task.input_shape, task.outputs), torch.device("cpu"))
    return Trainer(task, heritage, task.load(), task.load_test(), torch.device("cpu"), batch_size=32)


def files_in(folder):
    return Files(folder / "weights.pt", folder / "checkpoint.pt")


def test_batches_cover_every_sample_once_and_differ_between_epochs():
    epoch = list(batches(64, 16, seed=(1, 1)))
    assert [len(b) for b in epoch] == [16] * 4
    assert sorted(np.concatenate(epoch)) == list(range(64))
    assert not np.array_equal(epoch[0], next(batches(64, 16, seed=(1, 2))))
    assert [len(b) for b in batches(70, 16, seed=(1, 1))] == [16] * 4
    assert [len(b) for b in batches(5, 16, seed=(1, 1))] == [5]


def test_learning_rate_rises_then_falls_to_zero():
    factors = [learning_rate_factor(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == 1.0
    assert factors[10] == 1.0
    assert factors[100] == pytest.approx(0.0)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))


def test_the_digits_split_is_fixed_for_the_test_and_seeded_for_validation(digits):
    train, validation = digits.samples
    assert (len(train), len(validation), len(digits.test)) == (958, 240, 599)
    other = make_task(config.Task(name="digits"), seed=1)
    assert np.array_equal(other.load_test().inputs, digits.test.inputs)
    assert not np.array_equal(other.load()[1].inputs, validation.inputs)
    assert train.inputs.dtype == np.uint8
    assert train.inputs.max() == 255


def test_the_baseline_learns_and_the_same_seed_gives_the_same_weights(digits, tmp_path):
    genome = baseline_genome("digits-cnn")
    epochs = []
    folders = [tmp_path / "a", tmp_path / "b"]
    results = []
    for folder in folders:
        callbacks = Callbacks(on_epoch=lambda *it: epochs.append(it))
        metrics, seconds = digits.evaluate(ALONE, genome, 5, Epochs.whole(3), files_in(folder), callbacks)
        assert seconds > 0
        results.append(metrics)
    assert results[0] == results[1]
    assert results[0]["error"] < 0.1
    assert [epoch for epoch, _ in epochs] == [1, 2, 3] * 2
    assert [error for _, error in epochs][2] == results[0]["error"]
    assert_equal_weights(*folders)
    assert [path.name for path in folders[0].iterdir()] == ["weights.pt"], "a finished training leaves no checkpoint"


def assert_equal_weights(one, other):
    a, b = (torch.load(folder / "weights.pt", weights_only=True) for folder in (one, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("genome", [baseline_genome("digits-cnn"), RESTLESS])
def test_a_training_put_aside_twice_is_bitwise_the_unbroken_one(digits, tmp_path, genome):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    unbroken, _ = digits.evaluate(ALONE, genome, 5, Epochs.whole(4), files_in(whole), Callbacks())
    seen = []
    for done, until in ((0, 1), (1, 3), (3, 4)):
        torch.rand(7)  # whatever else has drawn from torch's generator
        callbacks = Callbacks(on_epoch=lambda epoch, error: seen.append((epoch, error)))
        metrics, _ = digits.evaluate(ALONE, genome, 5, Epochs(done, until, 4), files_in(parts), callbacks)
        assert unpack(read_archive(files_in(parts).checkpoint), genome, 5).epochs_done == min(until, 3)
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4]
    assert metrics == unbroken
    assert_equal_weights(whole, parts)


@pytest.mark.parametrize("genome", [baseline_genome("digits-cnn"), RESTLESS, {**RESTLESS, "precision": "fp16"}])
def test_a_training_whose_result_was_lost_is_judged_from_its_checkpoint(digits, tmp_path, genome):
    files = files_in(tmp_path)
    first, _ = digits.evaluate(ALONE, genome, 5, Epochs(0, 2, 3), files, Callbacks())
    files.weights.unlink()
    seen = []
    again, _ = digits.evaluate(
        ALONE, genome, 5, Epochs(0, 2, 3), files, Callbacks(lambda epoch, error: seen.append(epoch))
    )  # fmt: skip
    assert (again, seen) == (first, [])
    assert files.weights.exists()


@pytest.mark.parametrize("genome", [baseline_genome("digits-cnn"), RESTLESS])
def test_a_training_that_is_paused_and_goes_on_is_bitwise_the_unbroken_one(digits, tmp_path, genome):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    unbroken, _ = digits.evaluate(ALONE, genome, 5, Epochs.whole(3), files_in(whole), Callbacks())
    seen, asked = [], []

    def pause_after_the_first():
        asked.append(len(seen))
        return True

    callbacks = Callbacks(lambda epoch, error: seen.append(epoch), should_pause=pause_after_the_first)
    paused = digits.evaluate(ALONE, genome, 5, Epochs.whole(3), files_in(parts), callbacks)
    assert isinstance(paused, Paused)
    assert paused.epochs_done == 1
    assert paused.seconds > 0
    assert (seen, asked) == ([1], [1]), "asked once the epoch has been told of"
    assert [path.name for path in parts.iterdir()] == ["checkpoint.pt"], "without a result there are no weights"
    torch.rand(7)  # whatever else has drawn from torch's generator
    metrics, _ = digits.evaluate(ALONE, genome, 5, Epochs(1, 3, 3), files_in(parts), Callbacks())
    assert metrics == unbroken
    assert_equal_weights(whole, parts)
    assert unpack(read_archive(files_in(parts).checkpoint), genome, 5).epochs_done == 1, "until the result is journaled"


def test_seconds_of_a_job_that_died_are_counted_once(digits, tmp_path):
    genome, files = baseline_genome("digits-cnn"), files_in(tmp_path)
    digits.evaluate(ALONE, genome, 5, Epochs(0, 2, 3), files, Callbacks())
    left = unpack(read_archive(files.checkpoint), genome, 5)
    assert left.seconds > 0
    write_checkpoint(replace(left, seconds=1000.0), files.checkpoint)
    _, reported = digits.evaluate(ALONE, genome, 5, Epochs(2, 3, 3), files, Callbacks())
    assert reported < 500, "the result before has told of them"
    _, unreported = digits.evaluate(ALONE, genome, 5, Epochs(0, 3, 3), files, Callbacks())
    assert 1000 < unreported < 1500, "a job died after the checkpoint and before it could tell"


def test_an_evaluation_is_not_paused_after_its_last_epoch_nor_before_it_is_told_to(digits, tmp_path):
    asked = []

    def never():
        asked.append(len(asked) + 1)
        return False

    genome = baseline_genome("digits-cnn")
    for epochs, questions in ((Epochs(0, 1, 3), []), (Epochs(1, 3, 3), [1])):
        asked.clear()
        metrics, _ = digits.evaluate(ALONE, genome, 5, epochs, files_in(tmp_path), Callbacks(should_pause=never))
        assert asked == questions
    assert metrics["error"] < 0.5


def test_pausing_leaves_the_weights_of_an_earlier_result(digits, tmp_path):
    genome, files = baseline_genome("digits-cnn"), files_in(tmp_path)
    digits.evaluate(ALONE, genome, 5, Epochs(0, 1, 4), files, Callbacks())
    before = files.weights.read_bytes()
    callbacks = Callbacks(should_pause=lambda: True)
    assert digits.evaluate(ALONE, genome, 5, Epochs(1, 4, 4), files, callbacks).epochs_done == 2
    assert files.weights.read_bytes() == before
    assert unpack(read_archive(files.checkpoint), genome, 5).epochs_done == 2


class Forgetful(torch.nn.Module):
    """Draws at random as it is trained."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 10))

    def forward(self, frames):
        return self.body(frames.float() / 255)


def test_what_a_network_draws_follows_from_seed_and_epoch_too(digits):
    def trained(*parts):
        torch.manual_seed(0)
        model, state = Forgetful(), None
        for done, until in parts:
            recipe = Recipe(Epochs(done, until, 2), 32, 1e-3, 0.0, False, 7, digits.device)
            optimizer = make_optimizer(model, recipe, ALONE, state)
            train(model, optimizer, digits.task, digits.samples, recipe, ALONE, Callbacks())
            state = optimizer.state_dict()["state"]
            torch.rand(3)
        return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])

    assert torch.equal(trained((0, 2)), trained((0, 1), (1, 2)))


def test_the_schedule_runs_over_the_largest_budget(digits, tmp_path):
    genome = baseline_genome("digits-cnn")
    short, _ = digits.evaluate(ALONE, genome, 5, Epochs.whole(2), files_in(tmp_path / "short"), Callbacks())
    begun, _ = digits.evaluate(ALONE, genome, 5, Epochs(0, 2, 20), files_in(tmp_path / "begun"), Callbacks())
    assert short != begun, "two epochs of twenty are not a training of two"


def test_mirrored_samples_are_the_same_however_many_ranks_share_the_batch():
    mirrored = draw_mirrored(1000, 3, 1)
    assert mirrored.shape == (2, 1000)
    assert mirrored.mean(1) == pytest.approx([0.5, 0.5], abs=0.05)
    assert not np.array_equal(mirrored, draw_mirrored(1000, 3, 2))
    picture = torch.tensor([[[[1, 2], [3, 4]]]]).repeat(4, 1, 1, 1)
    turned = flip(picture, np.array([[False, True, False, True], [False, False, True, True]]))
    assert turned[:, 0].tolist() == [[[1, 2], [3, 4]], [[3, 4], [1, 2]], [[2, 1], [4, 3]], [[4, 3], [2, 1]]]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def turn_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "changed", "detail"),
    [
        (lambda path: path.unlink(), {}, "No such file"),
        (lambda path: path.write_bytes(b""), {}, "digest is wrong"),
        (cut_short, {}, "digest is wrong"),
        (turn_a_bit, {}, "digest is wrong"),
        (lambda path: None, {"seed": 6}, "seed 5, not 6"),
        (lambda path: None, {"epochs": Epochs(2, 3, 3)}, "epochs 1, not 2"),
        (
            lambda path: None,
            {"genome": {**baseline_genome("digits-cnn"), "flips": True}},
            "of another training: genome",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_an_outcome(digits, tmp_path, spoil, changed, detail):
    files = files_in(tmp_path)
    genome = baseline_genome("digits-cnn")
    digits.evaluate(ALONE, genome, 5, Epochs(0, 1, 3), files, Callbacks())
    spoil(files.checkpoint)
    order = {"genome": genome, "seed": 5, "epochs": Epochs(1, 3, 3), **changed}
    with pytest.raises(Unusable) as caught:
        digits.evaluate(ALONE, **order, files=files, callbacks=Callbacks())
    assert explain(caught.value).reason == "checkpoint"
    assert detail in explain(caught.value).detail


def test_a_checkpoint_of_a_network_that_has_changed_is_an_outcome(digits, tmp_path):
    genome = baseline_genome("digits-cnn")
    files = files_in(tmp_path)
    write_checkpoint(Checkpoint(genome, 5, 1, torch.nn.Linear(2, 2).state_dict(), {}), files.checkpoint)
    with pytest.raises(Unusable, match="does not fit the network"):
        digits.evaluate(ALONE, genome, 5, Epochs(1, 2, 2), files, Callbacks())


def killed_after(epochs):
    """What a trainer looks like whose process ends at that moment."""

    def on_epoch(epoch, error):
        if epoch == epochs:
            raise KeyboardInterrupt

    return Callbacks(on_epoch)


def test_a_training_that_was_killed_goes_on_from_its_last_epoch_as_if_nothing_had_happened(digits, tmp_path):
    genome, whole, parts = baseline_genome("digits-cnn"), tmp_path / "whole", tmp_path / "parts"
    unbroken, _ = digits.evaluate(ALONE, genome, 5, Epochs.whole(4), files_in(whole), Callbacks())
    often = replace(digits, checkpoint_s=0.0)
    seen = []
    for epochs in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            often.evaluate(ALONE, genome, 5, Epochs.whole(4), files_in(parts), killed_after(epochs))
        assert unpack(read_archive(files_in(parts).checkpoint), genome, 5).epochs_done == epochs
        assert [path.name for path in parts.iterdir()] == ["checkpoint.pt"]
    metrics, _ = often.evaluate(
        ALONE, genome, 5, Epochs.whole(4), files_in(parts), Callbacks(lambda epoch, error: seen.append(epoch))
    )
    assert (metrics, seen) == (unbroken, [4])
    assert_equal_weights(whole, parts)


@pytest.mark.parametrize("spoil", [turn_a_bit, lambda path: path.write_bytes(b"")])
def test_a_checkpoint_that_need_not_be_there_is_left_alone_where_it_is_of_no_use(digits, tmp_path, spoil):
    genome, files = baseline_genome("digits-cnn"), files_in(tmp_path)
    fresh, _ = digits.evaluate(ALONE, genome, 6, Epochs.whole(1), files_in(tmp_path / "fresh"), Callbacks())
    digits.evaluate(ALONE, genome, 5, Epochs(0, 1, 3), files, Callbacks())
    another_seed, _ = digits.evaluate(ALONE, genome, 6, Epochs.whole(1), files, Callbacks())
    assert another_seed == fresh
    digits.evaluate(ALONE, genome, 6, Epochs(0, 1, 3), files, Callbacks())
    spoil(files.checkpoint)
    seen = []
    digits.evaluate(ALONE, genome, 6, Epochs.whole(2), files, Callbacks(lambda epoch, error: seen.append(epoch)))
    assert seen == [1, 2]


def test_a_checkpoint_that_does_not_fit_is_removed_so_that_the_next_attempt_is_from_scratch(digits, tmp_path):
    genome, files = baseline_genome("digits-cnn"), files_in(tmp_path)
    write_checkpoint(Checkpoint(genome, 5, 1, torch.nn.Linear(2, 2).state_dict(), {}), files.checkpoint)
    with pytest.raises(Unusable, match="does not fit the network"):
        digits.evaluate(ALONE, genome, 5, Epochs.whole(2), files, Callbacks())
    metrics, _ = digits.evaluate(ALONE, genome, 5, Epochs.whole(2), files, Callbacks())
    assert metrics["error"] < 0.5


def test_a_full_disk_is_the_jobs_affair():
    full = OSError(errno.ENOSPC, "No space left on device", "models/7")
    try:
        raise RuntimeError("while writing") from full
    except RuntimeError as error:
        with pytest.raises(UserError, match=r"models/7: cannot be written \(No space left on device\).*--resume"):
            explain(error)
    assert explain(OSError(errno.ENOENT, "No such file")).reason == "error"


def test_a_gpu_that_fails_is_told_from_a_network_that_does(monkeypatch):
    if hasattr(torch, "AcceleratorError"):
        assert explain(torch.AcceleratorError("CUDA error: unspecified launch failure")).reason == "device"
        monkeypatch.delattr(torch, "AcceleratorError")  # torch 2.6 and 2.7 have none
    assert explain(RuntimeError("CUDA error: unspecified launch failure\nCompile with ...")).reason == "device"
    assert explain(RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `f`")).reason == "error"
    assert explain(TypeError("CUDA error: no")).reason == "error"


def test_checkpoints_run_no_code_and_replace_each_other_whole(tmp_path):
    import io

    path = tmp_path / "new" / "checkpoint.pt"
    for done in (1, 2):
        write_checkpoint(Checkpoint({"a": 1}, 0, done, {"w": torch.ones(2)}, {}), path)
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]
    assert unpack(read_archive(path), {"a": 1}, 0).model["w"].tolist() == [1, 1]
    evil = io.BytesIO()
    torch.save({"genome": print}, evil)
    with pytest.raises(Unusable, match="no archive of ours"):
        unpack(evil.getvalue(), {"a": 1}, 0)


def test_a_finalist_trained_once_more_is_judged_on_both_files_and_writes_nothing(digits, tmp_path):
    genome = baseline_genome("digits-cnn")
    epochs = []
    callbacks = Callbacks(on_epoch=lambda epoch, error: epochs.append(epoch))
    metrics, test_metrics, seconds = digits.retrain(ALONE, genome, 5, 2, callbacks)
    evaluated, _ = digits.evaluate(ALONE, genome, 5, Epochs.whole(2), files_in(tmp_path), Callbacks())
    assert metrics == evaluated
    assert epochs == [1, 2]
    assert seconds > 0
    paths = (tmp_path / "weights.pt", tmp_path / "model.onnx", tmp_path / "shard.bin")
    assert test_metrics == digits.assess(ALONE, genome, *paths, {})[0]
    assert digits.retrain(ALONE, genome, 6, 2, Callbacks())[0] != metrics
    unlabelled = replace(digits.test, targets=None)
    for test in (None, unlabelled):
        assert replace(digits, test=test).retrain(ALONE, genome, 5, 1, Callbacks())[1] == {}


def test_assessing_gives_a_test_error_and_a_file_that_computes_the_same(digits, tmp_path):
    genome = make_space("cnn3d", (1, 8, 8)).sample(np.random.default_rng(1))
    weights, onnx = tmp_path / "weights.pt", tmp_path / "model.onnx"
    digits.evaluate(ALONE, genome, 0, Epochs.whole(2), files_in(tmp_path), Callbacks())
    shard = tmp_path / "shard.bin"
    metrics, difference, expected, digest = digits.assess(ALONE, genome, weights, onnx, shard, {"genome": "{}"})
    assert 0 < metrics["error"] < 0.9
    assert difference < 1e-4
    assert digest == hashlib.sha256(onnx.read_bytes()).hexdigest()
    deployed = Deployed(onnx)
    about, data = read_shard(shard)
    assert about.metric == "misclassified"
    assert about.error == expected
    assert about.input_shape == (64, *deployed.input_shape)
    inputs = np.frombuffer(data, np.uint8, 64 * 64).reshape(about.input_shape)
    classes = np.frombuffer(data, "<f4", offset=64 * 64)
    assert np.array_equal(classes, digits.test.targets[:64])
    assert (deployed.run(inputs).argmax(1) != classes).mean() == pytest.approx(expected)


def test_large_outputs_may_differ_by_what_their_digits_cannot_hold(digits, tmp_path):
    genome = baseline_genome("digits-cnn")
    paths = (tmp_path / "weights.pt", tmp_path / "model.onnx", tmp_path / "shard.bin")
    model = digits.networks.build(genome)
    with torch.no_grad():
        for parameter in [*model.parameters()][-2:]:
            parameter.mul_(1e6)
    save_weights(model, paths[0])
    _, difference, _, _ = digits.assess(ALONE, genome, *paths, {})
    assert ONNX_TOLERANCE < difference < 1e3


#: Its outputs are infinite wherever a pixel is not black.
BRIGHT = """
import torch

class Bright(torch.nn.Linear):
    def __init__(self, input_shape, outputs):
        super().__init__(64, outputs)

    def forward(self, frames):
        pixels = frames.float().flatten(1)
        return super().forward(pixels) / (pixels.amax(1, keepdim=True) == 0).float()
"""


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_outputs_that_are_no_numbers_are_an_outcome_in_every_precision(digits, tmp_path, precision):
    """On test samples without labels nothing else would tell; black training samples let the file be written."""
    (tmp_path / "own.py").write_text(BRIGHT)
    genome = {**baseline_genome(f"{tmp_path}/own.py:Bright"), "precision": precision}
    paths = (tmp_path / "weights.pt", tmp_path / "model.onnx", tmp_path / "shard.bin")
    save_weights(digits.networks.build(genome), paths[0])
    black = replace(digits.samples[0], inputs=np.zeros_like(digits.samples[0].inputs))
    test = replace(digits.test, targets=None)
    unlabelled = replace(digits, samples=(black, digits.samples[1]), test=test)
    with pytest.raises(ValueError, match=rf"outputs \({precision}\) differ from the model's by nan"):
        unlabelled.assess(ALONE, genome, *paths, {})
    assert not paths[1].exists()


def test_an_error_on_samples_that_is_no_number_is_not_written(tmp_path):
    few = Samples(np.zeros((2, 1, 8, 8), np.uint8), np.zeros((2, 1), np.float32))
    with pytest.raises(ValueError, match="the error on labelled samples is inf"):
        make_shard(lambda inputs: np.full((2, 1), np.inf, np.float32), few, "rmse", tmp_path / "shard.bin")
    assert not list(tmp_path.iterdir())


def test_a_task_may_give_its_metrics_as_numbers_of_numpy_or_torch(digits):
    class Own(type(digits.task)):
        def metrics(self, sums):
            found = super().metrics(sums)
            return {"error": np.float64(found["error"]), "cross_entropy": torch.tensor(found["cross_entropy"])}

    task, recipe = Own(config.Task(name="digits"), 0), Recipe(Epochs.whole(1), 32, 1e-3, 0.0, False, 7, digits.device)
    found = judge(digits.networks.build(baseline_genome("digits-cnn")), task, digits.test, ALONE, recipe)
    assert {type(value) for value in found.values()} == {float}


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_classes_are_integers_of_any_size(dtype):
    outputs, classes, kind = torch.eye(3), torch.tensor([0, 1, 1]), Classification()
    assert kind.loss(outputs, classes.to(dtype)) == kind.loss(outputs, classes)
    assert kind.metrics(kind.sums(outputs, classes.to(dtype))) == kind.metrics(kind.sums(outputs, classes))


def test_damaged_weights_are_told_from_whole_ones_wherever_the_damage_is(tmp_path):
    path, rng = tmp_path / "weights.pt", np.random.default_rng(0)
    save_weights(torch.nn.Linear(3, 2), path)
    whole, content = read_weights(path), path.read_bytes()
    for at in rng.permutation(8 * len(content))[:1500]:
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            read = read_weights(path)
        except ValueError:
            continue
        assert read.keys() == whole.keys()
        assert all(torch.equal(read[name], whole[name]) for name in whole)


def test_a_trained_model_that_is_gone_is_an_outcome(digits, tmp_path):
    paths = (tmp_path / "weights.pt", tmp_path / "model.onnx", tmp_path / "shard.bin")
    with pytest.raises(Dropped) as caught:
        digits.assess(ALONE, baseline_genome("digits-cnn"), *paths, {})
    assert explain(caught.value).reason == "dropped"
    assert "brought it back" in explain(caught.value).detail


def test_the_error_on_samples_is_that_of_the_metric():
    outputs = np.array([[1.0, 2.0], [3.0, 0.0]], np.float32)
    assert error_of(outputs, np.array([[1.0, 2.0], [0.0, 4.0]]), "rmse") == pytest.approx(2.5)
    assert error_of(outputs, np.array([1, 1]), "misclassified") == 0.5


def test_divergence_and_stopping_are_outcomes(digits, tmp_path):
    genome = {**baseline_genome("digits-cnn"), "learning_rate": 1e38}
    with pytest.raises(Diverged) as caught:
        digits.evaluate(ALONE, genome, 0, Epochs.whole(3), files_in(tmp_path), Callbacks())
    assert explain(caught.value).reason == "diverged"
    stop = Callbacks(should_stop=lambda: True)
    with pytest.raises(Abandoned) as stopped:
        digits.evaluate(ALONE, baseline_genome("digits-cnn"), 0, Epochs(0, 1, 3), files_in(tmp_path), stop)
    assert explain(stopped.value).reason == "abandoned"
    assert not list(tmp_path.iterdir())


def test_running_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)  # no machine has this
    assert explain(caught.value).reason == "memory"
    assert explain(MemoryError()).reason == "memory"
    failure = explain(ValueError("two\nlines"))
    assert (failure.reason, failure.detail) == ("error", "ValueError: two")


def test_weights_files_run_no_code(tmp_path):
    network = torch.nn.Linear(2, 2)
    save_weights(network, tmp_path / "w.pt")
    load_weights(torch.nn.Linear(2, 2), tmp_path / "w.pt")
    torch.save({"weight": print}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="not as it was written: UnpicklingError"):
        load_weights(network, tmp_path / "evil.pt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match="sees no GPU"):
        local_device("cuda", 1, 0, 1)


def test_tasks_are_checked():
    with pytest.raises(UserError, match="known are digits, lpbf"):
        make_task(config.Task(name="cifar"), 0)
    with pytest.raises(UserError, match="ships its data"):
        make_task(config.Task(name="digits", train=("x",)), 0)
