"""The pure parts of benchmarks/headline.py and supernet.py: what they say of runs, by value."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from virtual_time import World

from mpinas import plugins
from mpinas.config import read_experiment
from mpinas.history.run_folder import RunFolder
from mpinas.models import baseline_genome, make_space
from mpinas.models.swin3d import Network, design_of
from mpinas.report.results import as_dict
from mpinas.training.export import export_onnx, onnx_difference

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import headline  # noqa: E402 - found through the path just set
import supernet  # noqa: E402
from headline_figures import of_compression, of_search  # noqa: E402
from headline_tables import (  # noqa: E402
    KINDS,
    compression_rows,
    headline_row,
    milliseconds,
    page,
    preface,
    ratio,
    spread,
    times,
)

SHAPE = (16, 41, 41)


def candidate(id_, faster, better, *, accepted=True, test_error=0.1, validation=None, genome=None):
    """`better`, on the test file, and `validation`: times better than the baseline, whose validation error is 0.4."""
    return {
        "id": id_,
        "genome": genome or {},
        "state": "EVALUATED",
        "times_faster": faster,
        "times_better": better,
        "accepted": accepted,
        "test_error": test_error,
        "objectives": {"error": 0.4 / (better if validation is None else validation), "latency_s": 0.008 / faster},
        "latencies_s": {"any": 0.008 / faster},
    }


def results(*candidates, front):
    baseline = candidate(0, 1.0, 1.0, test_error=0.3)
    return {
        "candidates": [baseline, *candidates],
        "front": front,
        "baseline": 0,
        "counts": {"EVALUATED": 1 + len(candidates)},
        "hypervolume": 0.75,
    }


def test_headline_figures_of_a_search():
    found = results(
        candidate(1, 40.0, 1.7, validation=0.99),
        candidate(2, 16.0, 0.97, validation=1.0),
        candidate(3, 10.0, 1.3, validation=1.36),
        candidate(4, 8.8, 1.42, validation=1.4),
        candidate(5, 8.7, 1.38, validation=1.5),
        candidate(6, 20.0, 1.45, accepted=False),
        candidate(7, 90.0, 1.6),
        candidate(8, 80.0, 1.8, test_error=None),
        front=[0, 1, 2, 3, 4, 5, 6, 8],
    )
    assert of_search(found, trainer_s=12.5, frames=16) == {
        "times_faster": 16.0,
        "its_times_better": 0.97,
        "times_better": 1.38,
        "times_faster_where_better": 10.0,
        "its_times_better_where_better": 1.3,
        "times_better_where_faster": 1.42,
        "latency_s": 0.0005,
        "window_s": 0.0008,
        "keeps_up": True,
        "hypervolume": 0.75,
        "trainer_s": 12.5,
        "evaluated": 9,
        "refused": 2,
        "baseline_latency_s": 0.008,
        "baseline_error": 0.3,
    }
    assert not of_search(found, trainer_s=12.5, frames=8)["keeps_up"], "8 frames are 0.4 ms"


def test_what_no_network_has_is_none():
    figures = of_search(results(candidate(1, 8.0, 0.9), front=[0, 1]), 1.0, 16)
    assert figures["times_better"] == 0.9
    for name in ("times_faster", "times_faster_where_better", "times_better_where_faster", "latency_s"):
        assert figures[name] is None, name
    assert not figures["keeps_up"]
    assert of_search(results(front=[0]), 1.0, 16)["times_better"] is None, "the baseline finds nothing"


def compressed(method, keep, precision):
    return {"method": method, "keep": keep, "precision": precision}


def test_compressed_networks_are_compared_on_both_parts_of_the_data():
    found = results(
        candidate(1, 3.0, 1.2, validation=0.8, genome=compressed("prune", 0.125, "fp32")),
        candidate(2, 2.0, 0.8, validation=0.8, test_error=None, genome=compressed("quantise", 1.0, "int8")),
        {**candidate(3, 9.0, 9.0), "state": "FAILED"},
        front=[1],
    )
    assert of_compression(found) == [
        compressed("prune", 0.125, "fp32") | {"times_faster": 3.0, "times_better": 1.2, "times_better_validation": 0.8},
        compressed("quantise", 1.0, "int8")
        | {"times_faster": 2.0, "times_better": None, "times_better_validation": 0.8},
    ]


@pytest.mark.parametrize(
    ("values", "form", "said"),
    [
        ([10.0, 12.0, 14.0], times, "12.0 ± 2.0"),
        ([120.0, 140.0], times, "130 ± 14.1"),
        ([1.4, None, 1.5], ratio, "1.45 ± 0.07 in 2 of 3"),
        ([None, 1.4], ratio, "1.40 in 1 of 2"),
        ([0.00031], milliseconds, "0.31 ms"),
        ([None, None], ratio, "none"),
        ([], ratio, "none"),
    ],
)
def test_mean_and_deviation_in_words(values, form, said):
    assert spread(values, form) == said


def told(kind, seed, figures, **more):
    name = f"{kind}-seed{seed}"
    return {
        "kind": kind, "seed": seed, "name": name, "command": f"make {name}", "machine": "a Z80, 1 cores",
        "experiment": headline.KINDS[kind].digest(), "simulated": True, "threads": 1, "figures": figures, **more,
    }  # fmt: skip


def searches():
    """The first is fast enough for both claims; the second never."""
    first = of_search(results(candidate(1, 10.0, 1.35), front=[1]), 100.0, 8)
    second = of_search(results(candidate(1, 20.0, 1.25), front=[1]), 300.0, 8)
    return [told("wide", 0, first), told("wide", 1, second)]


def test_a_row_of_the_headline():
    assert headline_row("wide", searches()) == [
        "`wide`", "2", "15.0 ± 7.1", "1.30 ± 0.07", "1.30 ± 0.07", "10.0 in 1 of 2", "1.35 in 1 of 2", "1.30 ± 0.07",
        "0.6 ms ± 0.283 ms", "0.4 ms", "1 of 2",
    ]  # fmt: skip


def test_rows_of_compression():
    prune, quantise = compressed("prune", 0.125, "fp32"), compressed("quantise", 1.0, "int8")
    figures = {"times_faster": 3.0, "times_better": None, "times_better_validation": 0.8}
    runs = [
        told("compress", 0, [prune | figures, quantise | figures]),
        told("compress", 1, [prune | figures | {"times_faster": 4.0, "times_better": 1.1}]),
    ]
    assert compression_rows(runs) == [
        ["prune", "12.5%", "fp32", "3.5 ± 0.7", "1.10 in 1 of 2", "0.80 ± 0.00"],
        ["quantise", "100%", "int8", "3.0", "none", "0.80"],
    ]


def test_the_page_says_what_it_stands_on():
    text = page(searches(), ["paper-seed0", "compress-seed0"])
    assert "**All data are simulated**" in text
    assert "Machine: a Z80, 1 cores. " in text
    assert "**Missing**, because not run or not ended: paper-seed0, compress-seed0." in text
    assert "| published (arXiv 2505.19995) |  | 8.8 |  | 1.35 |" in text
    assert "| `wide` | 0.750 ± 0.000 | 2 ± 0 | 200 ± 141 | 8 ms ± 0 ms | 0.300 ± 0.000 | 0 |" in text
    assert "make wide-seed0  # wide-seed0\nmake wide-seed1  # wide-seed1\n" in text
    assert KINDS["wide"] in text
    assert KINDS["paper"] not in text
    assert "Compression" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [line.count("|") for line in rows] == [12, 12, 12, 12, 8, 8, 8], "every row has all columns"


def test_real_data_are_not_called_simulated():
    real, *_ = searches()
    mixed = [real | {"simulated": False}, told("compress", 0, [])]
    assert preface(mixed, [])[0] == "Simulated data: compress."
    assert preface(mixed[:1], [])[0] == "Simulated data: none."


def test_runs_of_other_days_are_kept_and_those_made_anew_replaced(tmp_path):
    record = tmp_path / "results.json"
    earlier = [told("wide", 0, {"hypervolume": 0.5}), told("wide", 1, {"hypervolume": 0.6})]
    assert headline.added(record, earlier) == earlier
    anew = told("wide", 0, {"hypervolume": 0.7})
    assert headline.added(record, [anew, told("cnn", 0, {})]) == [told("cnn", 0, {}), anew, earlier[1]]
    assert headline.added(record, []) == [told("cnn", 0, {}), anew, earlier[1]]
    other = told("paper", 0, {}, experiment="as it was")
    assert headline.added(record, [other]) == [told("cnn", 0, {}), anew, earlier[1]], "another experiment by that name"


def test_without_runs_the_page_says_what_is_missing():
    assert page([], ["wide-seed0"]).splitlines()[-1] == "**Missing**, because not run or not ended: wide-seed0."


def test_a_run_is_begun_by_the_command_that_is_shown():
    job = headline.Job("random", 2, 3, ROOT / "runs" / "headline")
    assert job.record().command == (
        "mpirun --oversubscribe -n 3 python -m mpinas search examples/demo.toml --run runs/headline/random-seed2 "
        '--set search.evaluations=30 --set \'search.precision=["fp32", "int8"]\' --set training.epochs=30 '
        "--set search.algorithm=random --set search.seed=2"
    )
    assert headline.not_there([{"name": "wide-seed0"}], 1) == [
        "paper-seed0", "swin-free-seed0", "cnn-seed0", "random-seed0", "compress-seed0",
    ]  # fmt: skip
    assert list(headline.KINDS) == list(KINDS)


def test_experiments_of_all_kinds_can_be_read(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = {name: read_experiment(ROOT / kind.experiment, kind.settings) for name, kind in headline.KINDS.items()}
    assert found["random"].search.algorithm == "random"
    assert found["wide"].search.precision == ("fp32", "int8")
    assert found["swin-free"].search.space == "swin3d-free"
    baselines = {name: baseline_genome("lpbf-cnn", it.search.space, it.task.baseline) for name, it in found.items()}
    assert baselines["wide"] == baselines["swin-free"] == baselines["paper"], "the same network to beat"
    assert {tuple(Path(path).name for path in it.task.train) for it in found.values()} == {("train.hdf5",)}


def test_the_small_space_is_the_published_one_on_small_pictures():
    small = plugins.find("spaces", f"{ROOT}/examples/paper/small.py:Small", "here")()
    make = plugins.find("networks", f"{ROOT}/examples/paper/small.py:Baseline", "here")
    side = small.side
    assert f"at {side} x {side} instead of 224 x 224 pixels" in KINDS["paper"]
    published = make_space("swin3d", SHAPE)
    assert [(gene.name, gene.choices) for gene in small.search_space(SHAPE).genes] == [
        (gene.name, gene.choices) for gene in published.genes
    ]
    genome = {gene.name: gene.choices[0] for gene in published.genes}
    frames = torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    expected = Network(replace(design_of(genome, SHAPE), side=side), 2)(frames)
    torch.manual_seed(1)
    assert torch.equal(small.build(genome, SHAPE, 2)(frames), expected)
    with torch.device("meta"):
        assert sum(each.numel() for each in make(SHAPE, 2).parameters()) == 28_232_528


def test_a_network_of_the_small_space_runs_on_devices(tmp_path):
    """With windows of the published size: their tables of positions are large, which the exporter treats otherwise."""
    small = plugins.find("spaces", f"{ROOT}/examples/paper/small.py:Small", "here")()
    genome = {gene.name: gene.choices[0] for gene in small.search_space(SHAPE).genes}
    genome |= {"patch_height": 4, "patch_width": 4}
    network = small.build(genome, SHAPE, 2)
    export_onnx(network, SHAPE, tmp_path / "model.onnx", {})
    frames = np.random.default_rng(0).integers(0, 256, (1, *SHAPE), dtype=np.uint8)
    assert onnx_difference(network, tmp_path / "model.onnx", frames) < 1e-4


def test_the_full_size_is_as_published():
    experiment = read_experiment(ROOT / "examples" / "paper" / "paper.toml")
    assert (experiment.search.space, experiment.search.evaluations, experiment.training.epochs) == ("swin3d", 64, 2)
    assert (experiment.task.frames, experiment.search.limits, experiment.search.genes) == (16, {}, {})
    assert baseline_genome("", "swin3d", experiment.task.baseline)["baseline"] == "lpbf-swin"


def test_rank_correlation_of_inherited_errors():
    alone = [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0]]
    found = supernet.rank_correlation([0.5, 0.6, 0.7, 0.8], alone)
    # means 1, 2, 3.5, 3.5: five pairs agree, one is a tie
    assert found == pytest.approx({"tau": 5 / 30**0.5, "tau_of_one_seed": (1 + 4 / 6) / 2, "tau_between_seeds": 4 / 6})
    assert supernet.rank_correlation([4.0, 3.0, 2.0], [[1.0, 2.0, 3.0]]) == {"tau": -1.0, "tau_of_one_seed": -1.0}


def test_the_front_grows_with_trainer_seconds(tmp_path):
    world = World(groups=3, evaluations=20, rungs=(0, 10), supernet_epochs=30, ahead_min=4).run()
    points = supernet.curve(world.journal, world.ledger.terms)
    assert points[-1][0] == pytest.approx(world.ledger.occupation.busy_s)
    results = as_dict(world.ledger, RunFolder(tmp_path))
    assert points[-1][2] == pytest.approx(results["hypervolume"])
    assert points[0][2] == 0.0, "the supernet alone is no front"
    assert points[0][0] == pytest.approx(3 * world.ledger.supernet.train_seconds)
    spent = [point[0] for point in points]
    assert spent == sorted(spent)
    # trained by one rank each: training and test of the baseline
    assert points[-1][1] == pytest.approx(world.ledger.candidates[0].train_seconds + 1.0)


def test_who_wins_the_race():
    scratch = [(10.0, 10.0, 0.0), (50.0, 10.0, 0.6), (100.0, 10.0, 0.8), (200.0, 12.0, 0.8)]
    fast = [(30.0, 0.0, 0.0), (37.0, 10.0, 0.79), (40.0, 10.0, 0.85), (90.0, 12.0, 0.9)]
    found = supernet.verdict({"scratch": scratch, "supernet": fast})
    assert found["goal"] == 0.8
    assert found["reached"] == {"scratch": (100.0, 10.0, 0.8), "supernet": (40.0, 10.0, 0.85)}
    assert (found["ratio"], found["ratio_without_baseline"]) == (0.4, 30 / 90)
    lost = supernet.verdict({"scratch": scratch, "supernet": fast[:2]})
    assert (lost["ratio"], lost["reached"]["supernet"]) == (None, None)
    nothing = supernet.verdict({"scratch": scratch[:1], "supernet": fast})
    assert (nothing["goal"], nothing["ratio"]) == (0.0, None)


def test_trainings_by_themselves_are_kept_by_network_seed_and_settings(tmp_path: Path):
    experiment = supernet.read_experiment(ROOT / "examples" / "demo.toml")
    longer = supernet.read_experiment(ROOT / "examples" / "demo.toml", ["training.epochs=40"])
    file = tmp_path / "alone.jsonl"
    kept = supernet.Kept(file, experiment)
    assert kept.get({"a": 1}, 0) is None
    assert kept.add({"a": 1}, 0, (0.25, 3.0)) == (0.25, 3.0)
    kept.add({"a": 2}, 0, (0.5, 1.0))
    again = supernet.Kept(file, experiment)
    assert [again.get({"a": a}, 0) for a in (1, 2)] == [(0.25, 3.0), (0.5, 1.0)]
    assert again.get({"a": 1}, 1) is None
    assert supernet.Kept(file, longer).get({"a": 1}, 0) is None
