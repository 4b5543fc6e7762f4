"""The surrogate's models and its acquisition by value: what is expected, what is doubted, what is exact."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpinas.search import SearchSpace, Surrogate
from mpinas.search.acquisition import expected_hypervolume_gain, expected_improvement, normal_cdf
from mpinas.search.encoding import Encoder
from mpinas.search.forest import grown, milestone, worth_learning
from mpinas.search.gaussian import GaussianProcess, Parameters, _likelihood, likeliest
from mpinas.search.regression import Regression
from mpinas.search.scale import Prediction, Scale
from mpinas.search.selection import hypervolume

SPACE = SearchSpace({"width": [8, 16, 32, 64], "depth": [1, 2, 3], "a": ["x", "y", "z"], "b": ["x", "y", "z"]})


def latency_s(genome):
    return 1e-4 * genome["width"] ** 2 * genome["depth"] * {"x": 1.0, "y": 2.0, "z": 0.5}[genome["a"]]


def test_genes_become_columns_by_kind_and_alike_genes_are_counted():
    rows = Encoder(SPACE)([{"width": 16, "depth": 3, "a": "x", "b": "x"}, {"width": 8, "depth": 1, "a": "y", "b": "z"}])
    half = math.sqrt(0.5)
    assert rows[0].tolist() == pytest.approx([1 / 3, 1.0, half, 0, 0, half, 0, 0, 2 * half, 0, 0])
    assert rows[1].tolist() == pytest.approx([0, 0, 0, half, 0, 0, 0, half, 0, half, half])


def test_facts_are_columns_by_logarithm_and_asked_for_once():
    asked = []

    def facts(genome):
        asked.append(genome)
        return {"parameters": math.e**2 - 1}

    encode = Encoder(SearchSpace({"a": [1, 2]}, facts=facts))
    assert encode([{"a": 2}, {"a": 2}]).tolist() == [[1.0, pytest.approx(2.0)]] * 2
    assert asked == [{"a": 2}]


def test_a_narrowed_space_still_encodes_what_repair_may_set():
    narrow = SPACE.narrowed({"width": [32, 64], "a": ["z"]})
    rows = Encoder(narrow)(
        [{"width": 8, "depth": 1, "a": "x", "b": "x"}, {"width": 64, "depth": 1, "a": "z", "b": "x"}]
    )
    assert rows[:, 0].tolist() == [0.0, 1.0]
    assert (rows[0] != rows[1]).any()


def test_it_predicts_in_the_unit_of_the_values_over_decades_with_honest_doubt():
    genomes = list(SPACE.every())
    rng = np.random.default_rng(0)
    rng.shuffle(genomes)
    known, new = genomes[:70], genomes[70:]
    means, stds = Surrogate(SPACE, seed=0).fit(known, [latency_s(g) for g in known]).predict(new)
    assert isinstance(means, list)
    assert isinstance(stds[0], float)
    ratios = [mean / latency_s(genome) for mean, genome in zip(means, new, strict=True)]
    assert 0.7 < np.median(ratios) < 1.4
    errors = [abs(mean - latency_s(g)) / std for mean, std, g in zip(means, stds, new, strict=True)]
    assert np.mean(np.array(errors) < 3) > 0.9


def test_one_wild_value_does_not_spoil_the_others():
    genomes = list(SPACE.every())
    values = [float(genome["depth"]) for genome in genomes]
    values[50] = 1e9
    means, _ = Surrogate(SPACE, seed=0).fit(genomes, values).predict([genomes[3], genomes[-1]])
    assert means == pytest.approx([genomes[3]["depth"], genomes[-1]["depth"]], abs=0.5)


def test_a_surrogate_needs_examples_and_gives_the_same_for_the_same():
    model = Surrogate(SPACE, seed=0)
    genomes = list(SPACE.every())[:20]
    with pytest.raises(ValueError, match="before predict"):
        model.predict(genomes)
    with pytest.raises(ValueError, match="two or more"):
        model.fit(genomes[:1], [1.0])
    with pytest.raises(ValueError, match="finite"):
        model.fit(genomes[:2], [1.0, math.nan])
    values = [latency_s(genome) for genome in genomes]
    first = model.fit(genomes, values).predict(genomes)
    assert Surrogate(SPACE, seed=0).fit(genomes, values).predict(genomes) == first
    assert model.predict([]) == ([], [])
    constant, _ = model.fit(genomes, [3.0] * 20).predict(genomes[:2])
    assert constant == pytest.approx([3.0, 3.0], abs=0.1)


@given(st.floats(-30, 30))
def test_the_normal_distribution_by_value(z):
    exact = 0.5 * math.erfc(-z / math.sqrt(2))
    assert float(normal_cdf(np.array([z]))[0]) == pytest.approx(exact, rel=3e-7)


@settings(max_examples=20, deadline=None)
@given(st.floats(-1, 1), st.floats(0.1, 1.5), st.booleans(), st.integers(0, 99))
def test_expected_improvement_agrees_with_drawing(mean, std, log, seed):
    drawn = np.random.default_rng(seed).normal(mean, std, 100_000)
    values = np.exp(drawn) if log else drawn
    bounds = np.array([0.5, 1.5])
    got = expected_improvement(bounds, Prediction(np.array([mean]), np.array([std]), log))[0]
    wanted = np.maximum(bounds - values[:, None], 0).mean(axis=0)
    np.testing.assert_allclose(got, wanted, atol=0.02)


@pytest.mark.parametrize("log", [False, True])
def test_expected_hypervolume_gain_of_two_objectives_is_exact(log):
    front, reference = np.array([[0.2, 0.9], [0.5, 0.4], [0.8, 0.3]]), np.array([1.0, 1.0])
    rng = np.random.default_rng(0)
    predictions = [Prediction(np.array([m]), np.array([s]), log) for m, s in ((-0.6, 0.3), (-0.9, 0.4))]
    drawn = np.column_stack([rng.normal(p.means[0], p.stds[0], 4000) for p in predictions])
    points = np.exp(drawn) if log else drawn
    before = hypervolume(front, reference)
    wanted = np.mean([hypervolume(np.vstack([front, point]), reference) - before for point in points])
    got = expected_hypervolume_gain(front, reference, predictions, rng)
    assert float(got[0]) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("count", [3, 4])
def test_by_sampling_a_sure_gain_beats_a_dominated_one_and_more_gain_beats_less(count):
    front, reference = np.full((1, count), 0.5), np.ones(count)
    means = np.array([[0.3] * count, [0.45] * count, [0.9] * count])
    predictions = [Prediction(means[:, i], np.full(3, 0.01), False) for i in range(count)]
    much, little, none = expected_hypervolume_gain(front, reference, predictions, np.random.default_rng(0))
    assert much > little > none >= 0


def test_without_a_front_all_within_the_reference_is_gain():
    sure = [Prediction(np.array([0.25]), np.array([1e-9]), False)] * 2
    got = expected_hypervolume_gain(np.zeros((0, 2)), np.ones(2), sure, np.random.default_rng(0))
    assert float(got[0]) == pytest.approx(0.75**2)


def test_scale_there_and_back():
    values = np.array([1e-4, 2e-4, 5e-3, 1e-2])
    scale = Scale(values)
    assert scale.log
    np.testing.assert_allclose(scale.back(scale.forward(values), np.zeros(4)).median(), values)
    assert not Scale(np.array([1.0, 2.0])).log
    assert not Scale(np.array([-1.0, 1000.0])).log
    wild = Scale(np.array([1.0, 2.0, 3.0, 4.0, -1e9]))
    assert wild.forward(np.array([-1e12])) == wild.forward(np.array([-1e9]))


def test_parameters_tell_noise_from_signal():
    rng = np.random.default_rng(0)
    x = rng.random((100, 2)) * 4
    smooth, groups = np.sin(x.sum(axis=1)), np.arange(2)
    assert likeliest(x, smooth, groups).noise < 0.01
    assert likeliest(x, rng.normal(size=100), groups).noise >= 0.3


def test_a_group_of_columns_that_says_nothing_gets_a_long_length():
    rng = np.random.default_rng(0)
    x = rng.random((60, 4))
    weights = likeliest(x, np.sin(4 * x[:, 0]) + x[:, 1], np.array([0, 1, 2, 2])).weights
    assert weights[0] > 1.5 * weights[2]
    assert weights[2] == weights[3]


def test_the_slope_of_the_likelihood_is_its_slope():
    rng = np.random.default_rng(1)
    x, y = rng.random((20, 2)), rng.normal(size=20)
    distances = np.stack([(x[:, None, i] - x[None, :, i]) ** 2 for i in range(2)])
    at = np.array([0.3, -0.2, -1.5])
    _, slope, _ = _likelihood(distances, y, at)
    for i in range(3):
        step = 1e-5 * np.eye(3)[i]
        ahead, behind = (_likelihood(distances, y, at + sign * step)[0] for sign in (1, -1))
        assert slope[i] == pytest.approx((ahead - behind) / 2e-5, rel=1e-3)


def test_a_process_repeats_its_examples_and_doubts_what_is_far():
    x, y = np.linspace(0, 1, 6)[:, None], np.sin(6 * np.linspace(0, 1, 6))
    model = GaussianProcess(Parameters(np.array([3.0]), 1e-4, 2.0)).fit(x, y)
    means, variances, left = model.predict(np.vstack([x, [[9.0]]]))
    assert left.tolist() == [1.0] * 7
    assert means[:6] == pytest.approx(y, abs=1e-2)
    assert variances[:6].max() < 1e-3
    assert means[6] == pytest.approx(0.0, abs=1e-6)
    assert variances[6] == pytest.approx(2.0 * (1 + 1e-4))


def test_fancying_takes_as_much_doubt_as_telling_what_was_predicted_and_leaves_the_means():
    rng = np.random.default_rng(2)
    x, y, new, probe = rng.random((12, 2)), rng.normal(size=12), rng.random((3, 2)), rng.random((9, 2))
    parameters = Parameters(np.array([2.0, 2.0]), 0.01, 1.5)
    model = GaussianProcess(parameters).fit(x, y)
    told = GaussianProcess(parameters).fit(np.vstack([x, new]), np.append(y, model.predict(new)[0]))
    means, variances, left = model.fancying(new).predict(probe)
    wanted_means, wanted, _ = told.predict(probe)
    assert means == pytest.approx(wanted_means, abs=1e-8)
    noise = 0.01 * 1.5
    assert (variances - noise) * left == pytest.approx(wanted - noise, abs=1e-8)


def test_a_fit_learns_from_the_last_and_a_spread_of_the_others_whatever_the_number():
    assert worth_learning(5, 8).tolist() == [0, 1, 2, 3, 4]
    assert worth_learning(100, 8).tolist() == [0, 93, *range(94, 100)]
    space = SearchSpace({"a": list(range(1000))})
    genomes = [{"a": at % 1000} for at in range(20_000)]
    model = Surrogate(space, seed=0).fit(genomes, [float(at) for at in range(20_000)])
    assert model._model is not None
    assert len(model._model._x) == 384


@given(st.integers(4, 100_000), st.floats(0, 0.99))
def test_milestones_are_never_ahead_and_never_far_behind(count, phase):
    value = milestone(count, 4, 1.12, phase)
    assert value <= count
    assert value == 4 or value * 1.12 + 2 >= count
    assert milestone(value, 4, 1.12, phase) == value


def test_a_smooth_function_is_left_to_the_process_and_a_rough_one_shared_with_the_trees():
    rng = np.random.default_rng(3)
    x = rng.random((40, 2))
    for noise, share in ((1e-4, 0.0025), (0.02, 0.5), (0.5, 0.5)):
        parameters = Parameters(np.array([1.0, 1.0]), noise, 1.0)
        trees = [grown(x, x[:, 0], None, seed) for seed in range(3)]
        model = Regression(x, x[:, 0], parameters, trees, log=False)
        process = model._scale.outward(model._process.predict(x)[0])
        votes = np.mean([tree.predict(x.astype(np.float32)) for tree in trees], axis=0)
        assert model.predict(x).means == pytest.approx((1 - share) * process + share * votes)
