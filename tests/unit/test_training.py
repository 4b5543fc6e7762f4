"""Training on one process: batches, schedule, outcomes, weights, and real learning on real digits."""

import itertools

import numpy as np
import pytest
import torch

from mpinas import config
from mpinas.errors import UserError
from mpinas.history.shard import read_shard
from mpinas.models import baseline_genome, make_space
from mpinas.tasks import make_task
from mpinas.training.candidate import Dropped, Trainer, explain, load_weights, save_weights
from mpinas.training.collectives import SerialCollectives
from mpinas.training.deployed import Deployed
from mpinas.training.devices import local_device
from mpinas.training.loop import Abandoned, Diverged, batches, learning_rate_factor
from mpinas.training.shard import error_of


@pytest.fixture(scope="module")
def digits():
    task = make_task(config.Task(name="digits"), seed=0)
    return Trainer(task, task.load(), task.load_test(), SerialCollectives(), torch.device("cpu"), batch_size=32)


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
    files = [tmp_path / "a" / "weights.pt", tmp_path / "b" / "weights.pt"]
    results = []
    for path in files:
        metrics, seconds = digits.evaluate(genome, 3, 5, path, lambda *it: epochs.append(it), lambda: False)
        assert seconds > 0
        results.append(metrics)
    assert results[0] == results[1]
    assert results[0]["error"] < 0.1
    assert [epoch for epoch, _ in epochs] == [1, 2, 3] * 2
    a, b = (torch.load(path, weights_only=True) for path in files)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_assessing_gives_a_test_error_and_a_file_that_computes_the_same(digits, tmp_path):
    genome = make_space("cnn3d", (1, 8, 8)).sample(np.random.default_rng(1))
    weights, onnx = tmp_path / "weights.pt", tmp_path / "model.onnx"
    digits.evaluate(genome, 2, 0, weights, lambda *it: None, lambda: False)
    shard = tmp_path / "shard.bin"
    metrics, difference, expected = digits.assess(genome, weights, onnx, shard, {"genome": "{}"})
    assert 0 < metrics["error"] < 0.9
    assert difference < 1e-4
    deployed = Deployed(onnx)
    about, data = read_shard(shard)
    assert about.metric == "misclassified"
    assert about.error == expected
    assert about.input_shape == (64, *deployed.input_shape)
    inputs = np.frombuffer(data, np.uint8, 64 * 64).reshape(about.input_shape)
    classes = np.frombuffer(data, "<f4", offset=64 * 64)
    assert np.array_equal(classes, digits.test.targets[:64])
    assert (deployed.run(inputs).argmax(1) != classes).mean() == pytest.approx(expected)


def test_a_trained_model_that_is_gone_is_an_outcome(digits, tmp_path):
    paths = (tmp_path / "weights.pt", tmp_path / "model.onnx", tmp_path / "shard.bin")
    with pytest.raises(Dropped) as caught:
        digits.assess(baseline_genome("digits-cnn"), *paths, {})
    assert explain(caught.value).reason == "dropped"
    assert "brought it back" in explain(caught.value).detail


def test_the_error_on_samples_is_that_of_the_metric():
    outputs = np.array([[1.0, 2.0], [3.0, 0.0]], np.float32)
    assert error_of(outputs, np.array([[1.0, 2.0], [0.0, 4.0]]), "rmse") == pytest.approx(2.5)
    assert error_of(outputs, np.array([1, 1]), "misclassified") == 0.5


def test_divergence_and_stopping_are_outcomes(digits, tmp_path):
    genome = {**baseline_genome("digits-cnn"), "learning_rate": 1e38}
    with pytest.raises(Diverged) as caught:
        digits.evaluate(genome, 3, 0, tmp_path / "w.pt", lambda *it: None, lambda: False)
    assert explain(caught.value).reason == "diverged"
    with pytest.raises(Abandoned) as stopped:
        digits.evaluate(baseline_genome("digits-cnn"), 3, 0, tmp_path / "w.pt", lambda *it: None, lambda: True)
    assert explain(stopped.value).reason == "abandoned"
    assert not (tmp_path / "w.pt").exists()


def test_running_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)  # no machine has this
    assert explain(caught.value).reason == "memory"
    assert explain(MemoryError()).reason == "memory"
    failure = explain(ValueError("two\nlines"))
    assert (failure.reason, failure.detail) == ("error", "ValueError: two")


def test_weights_files_run_no_code(tmp_path):
    import pickle

    network = torch.nn.Linear(2, 2)
    save_weights(network, tmp_path / "w.pt")
    load_weights(torch.nn.Linear(2, 2), tmp_path / "w.pt")
    torch.save({"weight": print}, tmp_path / "evil.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_weights(network, tmp_path / "evil.pt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match="sees no GPU"):
        local_device("cuda", 1, 0, 1)


def test_tasks_are_checked():
    with pytest.raises(UserError, match="known are lpbf, digits"):
        make_task(config.Task(name="cifar"), 0)
    with pytest.raises(UserError, match="ships its data"):
        make_task(config.Task(name="digits", train=("x",)), 0)
