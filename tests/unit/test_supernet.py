"""Training shared weights on one process: what a step draws and changes, stopping and going on, recalibration."""

import numpy as np
import pytest
import torch

from mpinas import config
from mpinas.models import cnn3d
from mpinas.models.elastic import Supernet, largest, smallest
from mpinas.tasks import Samples, make_task
from mpinas.tasks.kinds import Regression
from mpinas.training.checkpoint import Unusable, read_archive, unpack, write_checkpoint
from mpinas.training.collectives import SerialCollectives
from mpinas.training.loop import Abandoned, Callbacks, Diverged
from mpinas.training.recipe import Epochs, Recipe
from mpinas.training.supernet import (
    RECALIBRATION_BATCHES,
    Sandwich,
    adapt,
    begin_with_constant,
    checkpoint_of,
    draw_subnets,
    identity,
    judge_families,
    judge_subnet,
    make_supernet_optimizer,
    recalibrate,
    train_supernet,
)

ALONE = SerialCollectives()
CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
SPACE = cnn3d.space(SHAPE).narrowed(
    {
        "field": [8],
        "scale": [1],
        "stages": [1, 2],
        "depth1": [1, 2],
        "stem_width": [8, 12],
        "width1": [12, 16],
        "width2": [12, 16],
        "kernel_space": [3],
    }
)
ONCE, SILENT = Epochs.whole(1), Callbacks()


@pytest.fixture(scope="module")
def task():
    return make_task(config.Task(name="digits"), seed=0)


@pytest.fixture(scope="module")
def samples(task):
    training, validation = task.load()
    return Samples(training.inputs[:256], training.targets[:256]), validation


def fresh(space=SPACE):
    torch.manual_seed(0)
    return Supernet(space, SHAPE, 10)


def settings(epochs=ONCE, learning_rate=2e-3, flips=False, **others):
    return Sandwich(Recipe(epochs, 32, learning_rate, 0.01, flips, 5, CPU), **others)


def trained(task, samples, how, callbacks=SILENT, supernet=None, state=None):
    supernet = supernet or fresh()
    optimizer = make_supernet_optimizer(supernet, how, ALONE, state)
    done = train_supernet(supernet, optimizer, task, samples, how, ALONE, callbacks)
    return supernet, optimizer, done


def assert_equal(one, other):
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("block", ["plain", "inverted"])
def test_subnets_learn_together_and_are_judged_with_inherited_weights(task, samples, block):
    heard = []
    how = settings(Epochs.whole(8), learning_rate=8e-3)
    space = SPACE.narrowed({"block": [block], "head": ["grid"]})
    supernet, _, done = trained(task, samples, how, Callbacks(on_epoch=lambda *it: heard.append(it)), fresh(space))
    assert done == 8
    assert [epoch for epoch, _ in heard] == list(range(1, 9))
    extremes = [*largest(space), *smallest(space)]
    errors = [judge_subnet(supernet, genome, task, samples, ALONE, how.recipe)["error"] for genome in extremes]
    assert errors[0] == heard[-1][1]
    assert max(errors) < 0.4, errors
    untrained = [judge_subnet(fresh(space), genome, task, samples, ALONE, how.recipe)["error"] for genome in extremes]
    assert [a for a, b in zip(errors, untrained, strict=True) if a > 0.7 * b] == [], (errors, untrained)


def test_it_begins_with_the_answer_that_costs_least():
    targets = np.array([[0.9, 1.2], [1.3, 0.8], [1.1, 1.6]], np.float32)
    supernet = Supernet(SPACE, SHAPE, 2)
    begin_with_constant(supernet, Regression(), torch.from_numpy(targets))
    for genome in (*largest(SPACE), *smallest(SPACE)):
        answers = supernet.eval()(torch.zeros((2, 1, 8, 8), dtype=torch.uint8), genome).detach()
        np.testing.assert_allclose(answers.numpy(), np.tile(targets.mean(0), (2, 1)), atol=1e-4)


def test_it_begins_with_the_shares_of_classes(task):
    supernet = fresh()
    begin_with_constant(supernet, task, torch.tensor([0, 0, 1, 2, 2, 2, *range(10)]))
    answers = supernet.eval()(torch.zeros((1, 1, 8, 8), dtype=torch.uint8), smallest(SPACE)[0]).detach()
    expected = torch.tensor([3, 2, 4, 1, 1, 1, 1, 1, 1, 1]) / 16
    torch.testing.assert_close(answers.softmax(1)[0], expected, atol=1e-3, rtol=0)


def test_families_take_turns_and_a_step_is_the_same_whenever_it_is_drawn():
    supernet, how = fresh(), settings(subnets=5)
    steps = [draw_subnets(supernet, how, step) for step in range(12)]
    assert [(step[0], step[1]) for step in steps] == list(zip(largest(SPACE), smallest(SPACE), strict=True)) * 2
    assert all(len(step) == 5 for step in steps)
    assert len({str(genome) for step in steps for genome in step[2:]}) > 20
    assert draw_subnets(fresh(), how, 3) == steps[3]
    other = Sandwich(Recipe(Epochs.whole(1), 32, 1e-3, 0.0, False, 6, CPU), 5)
    assert draw_subnets(supernet, other, 3)[2:] != steps[3][2:]


def one_step(task, samples, **how):
    """The supernet after one step on 32 samples; largest and smallest of the first family alone."""
    few = Samples(samples[0].inputs[:32], samples[0].targets[:32])
    changed = Samples(few.inputs, (few.targets + 1) % 10)
    return [trained(task, (each, samples[1]), settings(**how, subnets=2))[0] for each in (few, changed)]


def test_the_smallest_learns_from_the_largest_and_from_targets(task, samples):
    stem, block, head = (largest(SPACE)[0][name] for name in ("stem", "block", "head"))
    only_small = f"heads.{stem}-{block}-{head}-1.last.weight"  # the head of one stage: the largest has two
    both = f"heads.{stem}-{block}-{head}-2.last.weight"
    weights = {
        d: [net.get_parameter(only_small) for net in one_step(task, samples, distillation=d)] for d in (0.0, 1.0)
    }
    assert torch.equal(*weights[1.0]), "with distillation alone, targets do not reach it"
    assert not torch.equal(*weights[0.0])
    assert not torch.equal(weights[0.0][0], weights[1.0][0])
    taught = [net.get_parameter(both) for net in one_step(task, samples, distillation=1.0)]
    assert not torch.equal(*taught), "the largest learns from targets in any case"


def test_what_no_subnet_of_a_step_used_stays_as_it_was(task, samples):
    before, after = fresh(), one_step(task, samples)[0]
    family = largest(SPACE)[0]
    own = f"{family['stem']}-{family['block']}"
    moved = {
        name.split(".")[1]
        for name, parameter in after.named_parameters()
        if not torch.equal(parameter, before.get_parameter(name))
    }
    assert moved == {"fold", own, f"{own}-{family['head']}-1", f"{own}-{family['head']}-2"}


@pytest.mark.parametrize("flips", [False, True])
def test_a_training_that_stops_and_goes_on_is_bitwise_the_unbroken_one(task, samples, tmp_path, flips):
    few = (Samples(samples[0].inputs[:96], samples[0].targets[:96]), samples[1])
    heard = []
    callbacks = Callbacks(on_epoch=lambda *it: heard.append(it))
    whole, _, _ = trained(task, few, settings(Epochs.whole(3), flips=flips), callbacks)
    unbroken, path = list(heard), tmp_path / "supernet.pt"
    heard.clear()

    begun, optimizer = fresh(), None
    how = settings(Epochs.whole(3), flips=flips)
    asked = Callbacks(callbacks.on_epoch, should_pause=lambda: True)
    begun, optimizer, done = trained(task, few, how, asked)
    assert done == 1
    write_checkpoint(checkpoint_of(begun, optimizer, how, done), path)

    torch.manual_seed(99)  # what the new process starts from must not matter
    rest = settings(Epochs(1, 3, 3), flips=flips)
    again = Supernet(SPACE, SHAPE, 10)
    checkpoint = unpack(read_archive(path), identity(again, rest), 5)
    again.load_state_dict(checkpoint.model)
    trained(task, few, rest, callbacks, again, checkpoint.optimizer)
    assert heard == unbroken
    assert_equal(again, whole)


def test_a_checkpoint_of_another_space_or_training_is_refused(task, samples, tmp_path):
    how, path = settings(), tmp_path / "supernet.pt"
    supernet = fresh()
    write_checkpoint(checkpoint_of(supernet, make_supernet_optimizer(supernet, how, ALONE), how, 1), path)
    archive = read_archive(path)
    assert unpack(archive, identity(supernet, how), 5).model.keys() == supernet.state_dict().keys()
    narrower = Supernet(SPACE.narrowed({"width1": [12]}), SHAPE, 10)
    for other in (identity(narrower, how), identity(supernet, settings(distillation=0.1))):
        with pytest.raises(Unusable, match="of another training"):
            unpack(archive, other, 5)


def test_mirrored_samples_are_learned_too(task, samples):
    few = (Samples(samples[0].inputs[:64], samples[0].targets[:64]), samples[1])
    plain, mirrored = (trained(task, few, settings(flips=flips))[0] for flips in (False, True))
    at = "stems.fold.0.weight"
    assert not torch.equal(plain.get_parameter(at), mirrored.get_parameter(at))


def test_a_training_that_blows_up_or_is_stopped_is_an_outcome(task, samples):
    with pytest.raises(Diverged):
        trained(task, samples, settings(learning_rate=1e38))
    with pytest.raises(Abandoned):
        trained(task, samples, settings(), Callbacks(should_stop=lambda: True))


def test_a_family_that_has_blown_up_leaves_the_others(task, samples):
    supernet, how = fresh(SPACE.narrowed({"block": ["plain", "inverted"], "head": ["grid"]})), settings()

    def spoil(block):
        for name, weights in supernet.named_parameters():
            if f"-{block}." in name:
                weights.data.fill_(float("nan"))

    def judged():
        return [number for number, _ in judge_families(supernet, task, samples, ALONE, how.recipe)]

    assert judged() == [0, 1]
    first, second = (genome["block"] for genome in largest(supernet.space))
    spoil(first)
    assert judged() == [1]
    spoil(second)
    with pytest.raises(Diverged, match="no subnet's error is finite"):
        judged()


def loss_of(network, task, samples):
    with torch.no_grad():
        return task.loss(network.eval()(torch.from_numpy(samples.inputs)), torch.from_numpy(samples.targets)).item()


def adapted(supernet, task, samples, genome):
    return adapt(supernet.subnet(genome), task, samples, 32, ALONE, CPU)


@pytest.mark.parametrize("spoilt", [0.0, 1.0])
def test_the_last_layer_is_fitted_to_what_the_others_find(task, samples, spoilt):
    few = Samples(samples[0].inputs[:96], samples[0].targets[:96])
    supernet, _, _ = trained(task, samples, settings(Epochs.whole(4)))
    genome = smallest(SPACE)[0]
    plain = supernet.subnet(genome)
    recalibrate(plain, few, 32, ALONE, CPU)
    before = loss_of(plain, task, few)
    for head in supernet.heads.values():  # as one that serves too many others
        head.get_parameter("last.weight").data += spoilt * torch.randn_like(head.get_parameter("last.weight"))
    fitted = adapted(supernet, task, few, genome)
    after = loss_of(fitted, task, few)
    assert after < 0.9 * before
    last = fitted.head[-1]
    last.bias.data += 0.1 * torch.arange(10)
    assert loss_of(fitted, task, few) > after, "the bias costs nothing: it was where it is best"


def test_a_last_layer_is_left_alone_where_nothing_can_be_learned_from_the_others(task, samples):
    supernet = fresh()
    for name, weights in supernet.named_parameters():
        if name.startswith("stems"):
            weights.data.fill_(float("nan"))
    genome = smallest(SPACE)[0]
    network = adapted(supernet, task, samples[0], genome)
    assert torch.equal(network.head[-1].weight, supernet.subnet(genome).head[-1].weight)


class Plain(torch.nn.Module):
    """One normalisation of the brightness of samples of one pixel."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(1)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, frames):
        return self.norm(self.dropout(frames.float().flatten(1)))


def test_recalibrated_statistics_are_the_mean_over_batches_from_all_over_the_samples():
    samples = Samples(np.array([0, 2, 10, 14, 100], np.uint8).reshape(5, 1, 1, 1), None)
    model = Plain()
    model.norm.running_mean.fill_(77)
    recalibrate(model, samples, 2, ALONE, CPU)  # 0 and 10, 2 and 14; the last sample fills no batch
    assert model.norm.running_mean.item() == pytest.approx((5 + 8) / 2)
    assert model.norm.running_var.item() == pytest.approx((50 + 72) / 2)
    assert model.norm.momentum == 0.1
    assert not model.training
    assert not model.norm.training
    recalibrate(model, samples, 64, ALONE, CPU)
    assert model.norm.running_mean.item() == pytest.approx(126 / 5)


def test_recalibration_takes_no_more_batches_than_it_needs():
    pixels = np.repeat(np.arange(100, dtype=np.uint8), 2).reshape(200, 1, 1, 1)
    model = Plain()
    recalibrate(model, Samples(pixels, None), 2, ALONE, CPU)
    # batch k of 100 would be samples k and k + 100: pixels k // 2 and k // 2 + 50
    expected = np.mean([k // 2 + 25 for k in range(RECALIBRATION_BATCHES)])
    assert model.norm.running_mean.item() == pytest.approx(expected)
    assert model.norm.num_batches_tracked.item() == RECALIBRATION_BATCHES


@pytest.mark.parametrize("block", ["separable", "inverted"])
def test_recalibration_changes_statistics_only(task, samples, block):
    genome = next(each for each in smallest(SPACE) if each["block"] == block)
    network = fresh().subnet(genome)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    recalibrate(network, samples[0], 32, ALONE, CPU)
    after = network.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name, _ in network.named_parameters()}


def test_a_model_without_batchnorm_is_left_as_it_is(samples):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5))
    recalibrate(model, samples[0], 32, ALONE, CPU)  # it could not even take these uint8 samples
    assert not model.training
