"""Plug-ins: found by name, by module and in files; whatever is wrong is one line that says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpinas import config, plugins
from mpinas.errors import UserError
from mpinas.models import Networks, baseline_genome, check_baseline, make_space
from mpinas.models.baselines import LpbfCnn
from mpinas.search import SearchSpace
from mpinas.tasks import make_task


def test_installed_ones_have_names():
    assert {"cnn3d", "swin3d", "swin3d-free"} <= set(plugins.names("spaces"))
    assert plugins.find("networks", "lpbf-cnn", "here") is LpbfCnn
    assert plugins.find("networks", "mpinas.models.baselines:LpbfCnn", "here") is LpbfCnn


def test_a_class_of_a_file_is_the_same_class_by_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own.py").write_text("class Own:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    found = plugins.find("networks", "own.py:Own", "here")
    assert plugins.find("networks", f"{tmp_path}/own.py:Own", "here") is found
    assert plugins.find("networks", plugins.reference(found), "here") is found
    assert plugins.reference(LpbfCnn) == "mpinas.models.baselines:LpbfCnn"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cnn3", r"here = 'cnn3' is unknown, did you mean cnn3d\?; known are cnn3d, .*, or \"file.py:Name\""),
        ("no.py:X", r"here = 'no.py:X': no.py cannot be loaded: FileNotFoundError: .*relative to the experiment file"),
        ("nothing.at.all:X", r"nothing.at.all cannot be loaded: ModuleNotFoundError: No module named 'nothing'"),
        ("broken.py:X", r"broken.py cannot be loaded: ZeroDivisionError: division by zero"),
        ("whole.py:Howe", r"whole.py has no 'Howe', did you mean Hole\?"),
    ],
)
def test_what_cannot_be_found_is_said_in_one_line(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "whole.py").write_text("class Hole:\n    pass\n")
    with pytest.raises(UserError, match=said) as caught:
        plugins.find("spaces", name, "here")
    assert "\n" not in str(caught.value)


def test_files_are_found_from_where_the_experiment_file_is(tmp_path: Path):
    (tmp_path / "e.toml").write_text('[task]\nname = "own.py:T"\n[search]\nspace = "sub/own.py:S"\n')
    read = config.read_experiment(tmp_path / "e.toml")
    assert (read.task.name, read.search.space) == (f"{tmp_path}/own.py:T", f"{tmp_path}/sub/own.py:S")


def test_what_is_no_task_and_no_space_is_refused(tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "class T:\n    def __init__(self, settings, seed): pass\n    name = 'x'\n"
        "class Bad:\n    def __init__(self, settings, seed): raise ValueError('out of sparks')\n"
        "class S:\n    baseline = None\n"
        "class N(S):\n    def build(self, genome, shape, outputs): pass\n    def search_space(self, shape): 1 / 0\n"
        "from mpinas.search import SearchSpace\nimport numpy as np\n"
        "class A(N):\n    def search_space(self, shape): return SearchSpace({'width': np.array([4, 8])})\n"
    )
    with pytest.raises(UserError, match=r"own.py:T' has no 'input_shape': see docs/extending.md"):
        make_task(config.Task(name=f"{tmp_path}/own.py:T"), 0)
    with pytest.raises(UserError, match=r"own.py:Bad' cannot be made: ValueError: out of sparks"):
        make_task(config.Task(name=f"{tmp_path}/own.py:Bad"), 0)
    with pytest.raises(UserError, match=r"own.py:S' has no 'search_space': see docs/extending.md"):
        make_space(f"{tmp_path}/own.py:S", (8, 8, 8))
    with pytest.raises(UserError, match=r"own.py:N' has no genes for samples of \(8, 8, 8\): ZeroDivisionError"):
        make_space(f"{tmp_path}/own.py:N", (8, 8, 8))
    with pytest.raises(UserError, match=r"own.py:A': gene 'width' offers np.int64\(4\): choices are plain numbers"):
        make_space(f"{tmp_path}/own.py:A", (8, 8, 8))
    with pytest.raises(UserError, match=r"cnn3d' has no genes for samples of \(16, 1, 64\)"):
        make_space("cnn3d", (16, 1, 64))


def test_names_of_genes_with_a_meaning_of_their_own_are_refused(tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "from mpinas.search import SearchSpace\n"
        "class S:\n    baseline = None\n    def build(self, genome, shape, outputs): pass\n"
        "    def search_space(self, shape): return SearchSpace({'precision': [16, 32]})\n"
        "class G(S):\n    def search_space(self, shape): return SearchSpace({'gamma': [0.1, 0.5]})\n"
    )
    with pytest.raises(UserError, match=r"own.py:S': a gene must not be called 'precision'"):
        make_space(f"{tmp_path}/own.py:S", (8, 8, 8))
    with pytest.raises(UserError, match=r"own.py:G': the genes step_size and gamma go together"):
        make_space(f"{tmp_path}/own.py:G", (8, 8, 8))


def test_a_baseline_that_names_half_of_a_schedule_is_refused_before_it_is_trained(tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "from mpinas.models.baselines import LpbfCnn\nclass N(LpbfCnn):\n    training_genes = {'step_size': 10}\n"
    )
    networks = Networks("cnn3d", (8, 9, 9), 2)
    with pytest.raises(UserError, match=r"own.py:N': the genes step_size and gamma go together"):
        check_baseline(networks, baseline_genome(f"{tmp_path}/own.py:N"))


def test_a_task_says_its_sizes_in_whole_numbers(tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "import numpy as np\nfrom mpinas.examples.digits import DigitsTask\n"
        "class T(DigitsTask):\n    outputs = np.int64(10)\n"
    )
    with pytest.raises(UserError, match=r"own.py:T': .*must be three whole numbers"):
        make_task(config.Task(name=f"{tmp_path}/own.py:T"), 0)


def test_a_task_that_names_its_options_refuses_others(tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "from mpinas.examples.digits import DigitsTask\nclass T(DigitsTask):\n    option_names = ('pace', 'size')\n"
    )
    make_task(config.Task(name=f"{tmp_path}/own.py:T", options={"pace": 1}), 0)
    with pytest.raises(UserError, match=r"task\.options\.pase: the task .*own.py:T has the options pace, size$"):
        make_task(config.Task(name=f"{tmp_path}/own.py:T", options={"pase": 1}), 0)
    with pytest.raises(UserError, match=r"task\.options\.pace: the task digits has no options$"):
        make_task(config.Task(name="digits", options={"pace": 1}), 0)


def test_what_has_no_name_of_its_own_is_no_baseline():
    with pytest.raises(UserError, match="cannot be found by a name: define it as a class"):
        baseline_genome(lambda shape, outputs: None)


def test_a_space_may_bring_its_own_baseline():
    assert baseline_genome("digits-cnn", "cnn3d")["baseline"] == "digits-cnn"
    swin = baseline_genome("digits-cnn", "swin3d")
    assert (swin["baseline"], swin["learning_rate"]) == ("lpbf-swin", 1e-4), "trained with what it learns with"
    genome = baseline_genome(LpbfCnn, "cnn3d")
    assert genome["baseline"] == "mpinas.models.baselines:LpbfCnn"
    assert isinstance(Networks("cnn3d", (8, 9, 9), 2).build(genome), LpbfCnn)


def test_genes_can_be_added_to_any_space():
    def repair(genome):
        assert set(genome) == {"a", "b"}, "its own genes are all that a space's repair sees"
        return genome | {"b": 1} if genome["a"] == 1 else genome

    space = SearchSpace({"a": [1, 2], "b": [1, 2]}, repair, lambda genome: {"sum": genome["a"] + genome["b"]})
    more = space.extended({"precision": ["fp32", "int8"]})
    assert more.repair({"a": 1, "b": 2, "precision": "int8"}) == {"a": 1, "b": 1, "precision": "int8"}
    assert more.facts({"a": 1, "b": 1, "precision": "int8"}) == {"sum": 2}
    assert len(list(more.every())) == 6
    narrowed = space.narrowed({"b": [2]}).extended({"precision": ["fp32"]})
    assert narrowed.repair({"a": 1, "b": 2, "precision": "fp32"})["b"] == 1, "repair may set what was left out"
    with pytest.raises(ValueError, match="there is a gene 'a' already"):
        space.extended({"a": [1]})
