"""What candidates begin with and learn from, and the error of the file that they become: on real digits, one rank."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mpinas import config
from mpinas.models import Networks, baseline_genome, make_space, make_supernet
from mpinas.models.elastic import largest
from mpinas.tasks import Samples, make_task
from mpinas.training.artifact import calibration_of
from mpinas.training.candidate import Files, Trainer
from mpinas.training.checkpoint import Checkpoint, read_archive, write_checkpoint
from mpinas.training.collectives import SerialCollectives
from mpinas.training.deployed import Deployed
from mpinas.training.export import export_onnx
from mpinas.training.heritage import Heritage
from mpinas.training.loop import Callbacks, Diverged, judge, take, train
from mpinas.training.outcome import Paused
from mpinas.training.recipe import Distillation, Epochs, Recipe, make_optimizer
from mpinas.training.shard import error_of
from mpinas.training.supernet import adapt
from mpinas.training.weights import Dropped, load_weights, save_weights

CPU, ALONE = torch.device("cpu"), SerialCollectives()
#: One family, so that little training is enough.
GENES = {"stem": ["fold"], "block": ["plain"], "head": ["grid"], "stages": [1], "width1": [8, 16], "depth1": [1, 2],
         "stem_width": [8, 16], "head_width": [16, 32], "kernel_space": [3], "scale": [1], "field": [8]}  # fmt: skip


@pytest.fixture(scope="module")
def task():
    return make_task(config.Task(name="digits"), seed=0)


@pytest.fixture(scope="module")
def few(task):
    """A third of the training samples, and all for validation."""
    training, validation = task.load()
    return Samples(training.inputs[::3], training.targets[::3]), validation


def trainer_with(task, samples, heritage: Heritage) -> Trainer:
    return Trainer(task, heritage, samples, task.load_test(), CPU, batch_size=32)


def recipe(**more) -> Recipe:
    return replace(Recipe(Epochs.whole(2), 32, 1e-3, 0.0, False, 0, CPU), **more)


def trained(task, samples, how: Recipe) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(1), Floats(), nn.Linear(64, 10))
    train(model, make_optimizer(model, how, ALONE), task, samples, how, ALONE, Callbacks())
    return model[2].weight.detach()


class Floats(nn.Module):
    def forward(self, x):
        return x.float() / 255


def test_a_share_of_the_loss_is_the_teachers(task, few):
    wrong = Samples(few[0].inputs, np.roll(few[0].targets, 1)), few[1]

    def answers(indices, mirrored):
        return torch.nn.functional.one_hot(torch.from_numpy(few[0].targets[indices]), 10).float()

    plain = trained(task, few, recipe())
    assert torch.equal(trained(task, few, recipe(distillation=Distillation(0.0, answers))), plain)
    of_teacher = trained(task, few, recipe(distillation=Distillation(1.0, answers)))
    assert torch.equal(trained(task, wrong, recipe(distillation=Distillation(1.0, answers))), of_teacher)
    assert not torch.equal(of_teacher, plain)


def test_a_teacher_sees_each_sample_as_its_pupil_does(task, few, tmp_path: Path):
    teacher = Networks("cnn3d", (1, 8, 8), 10).build(baseline_genome("digits-cnn"))
    export_onnx(teacher, (1, 8, 8), tmp_path / "teacher.onnx", {})
    heritage = Heritage(Networks("cnn3d", (1, 8, 8), 10), CPU, teacher_name=str(tmp_path / "teacher.onnx"))
    trainer = trainer_with(task, few, heritage)
    distillation = trainer._distillation({"distillation": 0.5})
    assert distillation is not None
    assert distillation.share == 0.5
    mirrored = np.array([[True, False, True], [False, False, True]])
    chosen = np.array([3, 1, 4])
    seen, _ = take(few[0], chosen, CPU, mirrored)
    assert not torch.equal(seen[0], torch.from_numpy(few[0].inputs[3]))
    torch.testing.assert_close(distillation.answers(chosen, mirrored), teacher(seen).detach(), atol=1e-4, rtol=1e-4)
    assert trainer._distillation({"distillation": 0.0}) is None


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_error_is_that_of_the_file_in_its_precision(task, few, tmp_path: Path, precision):
    genome = {**make_space("cnn3d", (1, 8, 8), GENES).sample(np.random.default_rng(0)), "precision": precision}
    trainer = trainer_with(task, few, Heritage(Networks("cnn3d", (1, 8, 8), 10), CPU))
    files = Files(tmp_path / "weights.pt", tmp_path / "checkpoint.pt")
    metrics, _ = trainer.evaluate(ALONE, genome, 0, Epochs.whole(2), files, Callbacks())
    onnx, shard = tmp_path / "model.onnx", tmp_path / "shard.bin"
    test_metrics, difference, expected, _ = trainer.assess(ALONE, genome, files.weights, onnx, shard, {})
    deployed, test = Deployed(onnx), task.load_test()
    assert deployed.metadata["precision"] == precision
    assert metrics["error"] == error_of(deployed.run(few[1].inputs), few[1].targets, "misclassified")
    assert test_metrics["error"] == error_of(deployed.run(test.inputs), test.targets, "misclassified")
    assert expected == error_of(deployed.run(test.inputs[:64]), test.targets[:64], "misclassified")
    assert 0 < difference < 1


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_file_whose_outputs_are_no_numbers_has_diverged(task, few):
    class Endless(nn.Module):
        def forward(self, frames):
            return frames.float().flatten(1)[:, :10] / 0.0 - torch.inf

    trainer = trainer_with(task, few, Heritage(Networks("cnn3d", (1, 8, 8), 10), CPU))
    with pytest.raises(Diverged, match="in fp32"):
        trainer._judge_deployed(Endless(), ALONE, {}, few[1])


def test_an_integer_network_is_rounded_at_the_end_of_its_schedule(task, few, tmp_path: Path):
    """And only there: what it is before equals what the float network is; cut in two it comes to the same."""
    genome = make_space("cnn3d", (1, 8, 8), GENES).sample(np.random.default_rng(0))
    trainer = trainer_with(task, few, Heritage(Networks("cnn3d", (1, 8, 8), 10), CPU))

    def weights(precision: str, *parts: Epochs) -> dict[str, torch.Tensor]:
        name = f"{precision}{len(parts)}{parts[-1].until}"
        files = Files(tmp_path / f"{name}.pt", tmp_path / f"{name}-checkpoint.pt")
        for part in parts:
            trainer.evaluate(ALONE, {**genome, "precision": precision}, 0, part, files, Callbacks())
        return torch.load(files.weights, weights_only=True)

    early, late = Epochs(0, 4, 6), Epochs(0, 6, 6)
    assert same(weights("int8", early), weights("fp32", early))
    whole = weights("int8", late)
    assert not same(whole, weights("fp32", late))
    assert same(whole, weights("int8", Epochs(0, 5, 6), Epochs(5, 6, 6)))


def test_without_epochs_a_candidate_is_judged_by_what_it_inherits(task, few, tmp_path: Path):
    networks, space = Networks("cnn3d", (1, 8, 8), 10), make_space("cnn3d", (1, 8, 8), GENES)
    heritage = Heritage(networks, CPU, tmp_path / "shared.pt", inherits=True,
                        make_supernet=lambda: make_supernet(networks, space))  # fmt: skip
    trainer = trainer_with(task, few, heritage)
    shared = Files(tmp_path / "shared.pt", tmp_path / "shared-checkpoint.pt")
    metrics, _ = trainer.train_supernet(ALONE, 0, 6, shared, Callbacks())
    assert metrics["error"] < 0.5, "it has learned something: chance is 0.9"
    assert {path.name for path in tmp_path.iterdir()} == {"shared.pt", "shared-checkpoint.pt"}
    again, _ = trainer.train_supernet(ALONE, 0, 6, shared, Callbacks(on_epoch=lambda *_: pytest.fail("it is trained")))
    assert again == metrics, "a job that died before it could say so only judges once more"

    files = Files(tmp_path / "weights.pt", tmp_path / "checkpoint.pt")
    genome = largest(space)[0]
    judged, _ = trainer.evaluate(ALONE, genome, 0, Epochs(0, 0, 2), files, Callbacks())
    assert judged == metrics
    assert not files.weights.exists(), "nothing is written"
    smaller = space.sample(np.random.default_rng(3))
    expected = judge(heritage.network(smaller, task, few[0], 32), task, few[1], ALONE, recipe())
    assert trainer.evaluate(ALONE, smaller, 0, Epochs(0, 0, 2), files, Callbacks())[0] == expected
    # and its training begins there
    whole, _ = trainer.evaluate(ALONE, smaller, 0, Epochs.whole(1), files, Callbacks())
    scratch = trainer_with(task, few, Heritage(networks, CPU)).evaluate(
        ALONE,
        smaller,
        0,
        Epochs.whole(1),
        Files(tmp_path / "scratch.pt", tmp_path / "scratch-checkpoint.pt"),
        Callbacks(),
    )
    assert whole["error"] < scratch[0]["error"]


def test_a_supernets_training_goes_on_from_its_checkpoint(task, few, tmp_path: Path):
    networks, space = Networks("cnn3d", (1, 8, 8), 10), make_space("cnn3d", (1, 8, 8), GENES)
    heritage = Heritage(networks, CPU, make_supernet=lambda: make_supernet(networks, space))
    trainer = trainer_with(task, few, heritage)

    def files(name: str) -> Files:
        return Files(tmp_path / f"{name}.pt", tmp_path / f"{name}-checkpoint.pt")

    class KilledError(Exception):
        pass

    def kill(epoch: int, error: float) -> None:
        if epoch == 2:
            raise KilledError

    trainer.train_supernet(ALONE, 0, 3, files("whole"), Callbacks())
    with pytest.raises(KilledError):
        trainer.train_supernet(ALONE, 0, 3, files("cut"), Callbacks(on_epoch=kill))
    seen: list[int] = []
    trainer.train_supernet(ALONE, 0, 3, files("cut"), Callbacks(on_epoch=lambda epoch, error: seen.append(epoch)))
    assert seen == [3], "it went on after two epochs"
    whole, cut = (torch.load(files(name).weights, weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_supernet_that_is_put_aside_goes_on_and_its_seconds_are_those_of_all_jobs(task, few, tmp_path: Path):
    networks, space = Networks("cnn3d", (1, 8, 8), 10), make_space("cnn3d", (1, 8, 8), GENES)
    trainer = trainer_with(task, few, Heritage(networks, CPU, make_supernet=lambda: make_supernet(networks, space)))
    files = Files(tmp_path / "shared.pt", tmp_path / "checkpoint.pt")
    paused = trainer.train_supernet(ALONE, 0, 2, files, Callbacks(should_pause=lambda: True))
    assert isinstance(paused, Paused)
    assert paused.epochs_done == 1
    assert not files.weights.exists()
    left = torch.load(io.BytesIO(read_archive(files.checkpoint)), weights_only=True)
    assert 0 < left["seconds"] <= paused.seconds
    write_checkpoint(Checkpoint(**{**left, "seconds": 1000.0}), files.checkpoint)
    _, seconds = trainer.train_supernet(ALONE, 0, 2, files, Callbacks(should_pause=lambda: True))
    assert 1000 < seconds < 1500
    assert files.weights.exists()


def test_a_damaged_checkpoint_of_a_supernet_counts_as_none(task, few, tmp_path: Path):
    networks, space = Networks("cnn3d", (1, 8, 8), 10), make_space("cnn3d", (1, 8, 8), GENES)
    trainer = trainer_with(task, few, Heritage(networks, CPU, make_supernet=lambda: make_supernet(networks, space)))
    files = Files(tmp_path / "shared.pt", tmp_path / "checkpoint.pt")
    trainer.train_supernet(ALONE, 0, 1, files, Callbacks())
    content = bytearray(files.checkpoint.read_bytes())
    content[-9] ^= 1
    files.checkpoint.write_bytes(content)
    seen: list[int] = []
    trainer.train_supernet(ALONE, 0, 1, files, Callbacks(on_epoch=lambda epoch, error: seen.append(epoch)))
    assert seen == [1]


def test_a_supernet_that_cannot_be_read_is_not_used_untrained(task, few, tmp_path: Path):
    networks, space = Networks("cnn3d", (1, 8, 8), 10), make_space("cnn3d", (1, 8, 8), GENES)
    heritage = Heritage(networks, CPU, tmp_path / "shared.pt", inherits=True,
                        make_supernet=lambda: make_supernet(networks, space))  # fmt: skip
    genome = space.sample(np.random.default_rng(0))
    for _ in range(2):
        with pytest.raises(Dropped):
            heritage.network(genome, task, few[0], 32)
    trained = make_supernet(networks, space)
    save_weights(trained, tmp_path / "shared.pt")
    model = adapt(trained.subnet(genome), task, few[0], 32, ALONE, CPU)
    inherited = heritage.network(genome, task, few[0], 32)
    inputs = torch.from_numpy(few[1].inputs)
    torch.testing.assert_close(inherited(inputs), model(inputs), atol=1e-4, rtol=1e-4)
    networks.build(genome).load_state_dict(inherited.state_dict())  # it is one of the space


@pytest.mark.parametrize("whose", ["baseline", "supernet"])
def test_a_teacher_of_the_run_answers_as_it_does_when_it_is_judged(task, few, tmp_path: Path, whose):
    networks, space = Networks("cnn3d", (1, 8, 8), 10), make_space("cnn3d", (1, 8, 8), GENES)
    baseline = baseline_genome("digits-cnn")
    heritage = Heritage(networks, CPU, tmp_path / "shared.pt", tmp_path / "baseline.pt", baseline, teacher_name=whose,
                        make_supernet=lambda: make_supernet(networks, space))  # fmt: skip
    trainer = trainer_with(task, few, heritage)
    if whose == "supernet":
        files = Files(tmp_path / "shared.pt", tmp_path / "checkpoint.pt")
        metrics, _ = trainer.train_supernet(ALONE, 0, 4, files, Callbacks())
    else:
        files = Files(tmp_path / "baseline.pt", tmp_path / "checkpoint.pt")
        metrics, _ = trainer.evaluate(ALONE, baseline, 0, Epochs.whole(2), files, Callbacks())
    teacher = heritage.teacher({"distillation": 0.5}, task, few[0], 32)
    assert teacher is not None
    answers = teacher.answer(torch.from_numpy(few[1].inputs))
    assert task.metrics(task.sums(answers, torch.from_numpy(few[1].targets))) == pytest.approx(metrics, rel=1e-5)
    assert metrics["error"] < 0.8, "it has learned something: chance is 0.9"


def test_compressed_networks_begin_as_the_trained_baseline(task, few, tmp_path: Path):
    networks = Networks("compressed", (1, 8, 8), 10, "digits-cnn")
    baseline = baseline_genome("digits-cnn")
    made = networks.build(baseline)
    save_weights(made, tmp_path / "weights.pt")
    heritage = Heritage(networks, CPU, baseline_file=tmp_path / "weights.pt", baseline=baseline)
    frames = torch.from_numpy(few[0].inputs[:5])
    whole = heritage.network({"method": "quantise", "keep": 1.0}, task, few[0], 32)
    assert torch.equal(whole(frames), made(frames))
    narrow = heritage.network({"method": "prune", "keep": 0.5}, task, few[0], 32)
    load_weights(networks.build({"method": "prune", "keep": 0.5}), _saved(narrow, tmp_path))
    assert sum(p.numel() for p in narrow.parameters()) < 0.3 * sum(p.numel() for p in made.parameters())


def test_compressed_networks_are_trained_as_the_baseline():
    swin = baseline_genome("lpbf-swin")
    assert swin["learning_rate"] == 1e-4
    compressed = Heritage(Networks("compressed", (16, 8, 8), 2, "lpbf-swin"), CPU, baseline=swin)
    assert compressed.training_genes["learning_rate"] == 1e-4
    assert (
        Heritage(Networks("cnn3d", (16, 8, 8), 2, "lpbf-swin"), CPU, baseline=swin).training_genes["learning_rate"]
        == 1e-3
    )


def _saved(model: nn.Module, folder: Path) -> Path:
    save_weights(model, folder / "narrow.pt")
    return folder / "narrow.pt"


def test_calibration_samples_are_spread_over_all(few):
    chosen = calibration_of(few[0])
    assert len(chosen) == 64
    assert np.array_equal(chosen[0], few[0].inputs[0])
    assert np.array_equal(chosen[-1], few[0].inputs[-1])
    assert len(calibration_of(Samples(few[0].inputs[:5], None))) == 5
