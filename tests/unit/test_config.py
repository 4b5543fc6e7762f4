"""The experiment file: what is read, what is refused and how."""

import msgspec
import pytest

from mpinas.config import TEMPLATE, Experiment, check_resumable, read_experiment, write_experiment
from mpinas.errors import UserError
from mpinas.history.run_folder import plan_of, terms_of


def read(tmp_path, text, overrides=()):
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    return read_experiment(path, overrides)


def test_the_template_is_valid_and_its_comments_state_the_true_defaults(tmp_path):
    plain = read(tmp_path, TEMPLATE)
    lines = [line.removeprefix("# ") if " = " in line else line for line in TEMPLATE.splitlines()]
    not_default = ("latency_s", "size_bytes", "error = 0.1", "[search.target]", "frames = [", "[search.genes]")
    shown = read(tmp_path, "\n".join(line for line in lines if not line.startswith(not_default)))
    shown = msgspec.structs.replace(shown, edge=msgspec.structs.replace(shown.edge, bridge=plain.edge.bridge))
    assert shown == plain
    defaults = read(tmp_path, '[task]\nname = "lpbf"\ntrain = ["data/train.hdf5"]\ntest = ["data/test.hdf5"]\n')
    assert plain == defaults


def test_paths_are_relative_to_the_file_and_in_overrides_to_here(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    experiment = read(tmp_path, '[task]\nname = "lpbf"\ntrain = "a.hdf5"\n', ["task.test=b.hdf5"])
    assert experiment.task.train == (str(tmp_path / "a.hdf5"),)
    assert experiment.task.test == ("/b.hdf5",)


def test_overrides_reach_nested_keys_and_are_typed(tmp_path):
    overrides = ["search.evaluations=7", "search.limits.latency_s=0.002", "task.name=lpbf"]
    experiment = read(tmp_path, '[task]\nname = "digits"\n', overrides)
    assert (experiment.search.evaluations, experiment.search.limits) == (7, {"latency_s": 0.002})
    assert experiment.task.name == "lpbf"


def test_a_wrong_value_in_an_override_is_not_blamed_on_the_file_alone(tmp_path):
    with pytest.raises(
        UserError, match=r"experiment\.toml and the command line: search\.seed: expected `int`, got `str`"
    ):
        read(tmp_path, '[task]\nname = "digits"\n', ["search.seed=x"])


def test_written_and_read_back_the_same(tmp_path):
    experiment = read(tmp_path, '[task]\nname = "digits"\n', ["search.limits.size_bytes=1000"])
    write_experiment(experiment, tmp_path / "out.toml")
    assert read_experiment(tmp_path / "out.toml") == experiment


TASK = '[task]\nname = "digits"\n'


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("[task\n", [], "not valid TOML"),
        ("", [], "task.name is missing"),
        ("task = 3\n", [], "must be a section"),
        (TASK + "[serch]\nseed = 1\n", [], r"section \[serch\] is unknown; did you mean search\?"),
        (
            TASK + "[search]\nevaluation = 1\n",
            [],
            r"search.evaluation is unknown; did you mean evaluations\?",
        ),
        (TASK + "[search]\nzzz = 1\n", [], "known are evaluations"),
        (TASK + '[search]\nevaluations = "many"\n', [], "search.evaluations: expected `int`, got `str`"),
        (TASK + "[search]\nevaluations = 1\n", [], "search.evaluations: expected `int` >= 2"),
        (TASK + "[training]\nepochs = 0\n", [], "training.epochs"),
        (TASK + '[training]\ndevice = "tpu"\n', [], "training.device: 'tpu' is unknown; known are auto, cpu, cuda$"),
        (TASK + "[training]\ngroup_size = 20\n", [], "make it 40 or more"),
        (TASK + "[search.limits]\nlatency_s = -1.0\n", [], r"search.limits.latency_s: expected `float` > 0.0"),
        (TASK + "[search.limits]\nsize_bytes = 10\np90_s = 'x'\n", [], r"search.limits.p90_s: expected `float`"),
        (
            TASK + "[search]\nevaluations = 1\nlimits = {latency_s = 1.0, p90_s = -1.0}\n",
            [],
            "search.(limits.p90_s|ev)",
        ),
        (TASK + "[search]\nstart = [{a = [1]}]\n", [], r"search.start\[0\]\[...\]: expected `bool \| int \| float"),
        (TASK + """[search]\nstrategy = "a'b - at `$.c"\n""", [], "search.strategy: .*a'b.* known are scratch"),
        (TASK + "[search]\nstrategy = 3\n", [], "search.strategy: expected `str`"),
        (TASK + "[search]\nrungs = [2, 0]\n", [], r"search.rungs\[1\]: expected `int` >= 1"),
        (TASK + 'targets = [{name = "a"}, {name = "b", scale = 0.0}]\n', [], r"task.targets\[1\].scale: expected"),
        (TASK + "[search.limits]\nlatency = 1.0\n", [], r"limits.latency is unknown; did you mean latency_s\?"),
        (TASK + "[edge]\ndevices = []\n", [], "edge.devices"),
        (TASK + '[edge]\ndevices = [""]\n', [], r"edge.devices\[0\]: expected `str` of length >= 1"),
        (TASK + '[edge]\nbridge = "B.json"\ndevices = ["a", "b", "a"]\n', [], "named twice"),
        (TASK + '[edge]\nbridge = "B.json"\ndevices = ["any", "b"]\n', [], '"any" stands for whatever'),
        (TASK + '[edge]\ndevices = ["agx"]\n', [], 'the local bridge has one device, "local"'),
        (TASK + '[edge]\ncombine = "average"\n', [], "edge.combine: 'average' is unknown; known are each, worst"),
        (TASK + '[edge]\nprecision = "int4"\n', [], "edge.precision: 'int4' is unknown; known are model, fp16"),
        (
            TASK + '[search]\nalgorithm = "nsga4"\n',
            [],
            "search.algorithm: 'nsga4' is unknown; known are surrogate, nsga2, ",
        ),
        (
            TASK + '[search]\nprecision = ["fp32", "int4"]\n',
            [],
            r"search.precision\[1\]: 'int4' is unknown; known are fp32, fp16, int8",
        ),
        (TASK + "[search]\nrungs = [4, 2]\n", [], r"rungs = \[4, 2\]: write budgets that ascend, all below"),
        (TASK + "[search]\nrungs = [2, 10]\n", [], "all below training.epochs = 10"),
        (TASK + "[search.target]\nlatency = 1.0\n", [], r"target.latency is unknown; did you mean latency_s\?"),
        (TASK + "[training]\ngroup_size = 4\ngroup_size_max = 2\n", [], "is below training.group_size = 4"),
        (TASK + "[training]\ngroup_size_max = 17\n", [], "make it 16 or less"),
        (TASK, ["search"], "write section.key=value"),
        (TASK, ["search.evaluations=soon"], "search.evaluations: expected `int`"),
        (TASK, ["search.nope=1"], "search.nope is unknown"),
        (TASK, ["task.name.x=1"], "name is no section"),
        (TASK + "train = [1]\n", [], "task.train"),
    ],
)
def test_bad_files_get_one_line(tmp_path, text, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, text, overrides)
    assert "\n" not in str(caught.value)


def test_a_device_that_nobody_has_heard_of_yet_is_no_error(tmp_path):
    edge = read(tmp_path, TASK, ["edge.bridge=B.json", 'edge.devices=["agx-orin", "cpu"]', "edge.combine=worst"]).edge
    assert (edge.devices, edge.combine) == (("agx-orin", "cpu"), "worst")


def test_what_is_read_is_what_the_coordinator_decides_by(tmp_path):
    text = (
        TASK
        + """
        [search]
        evaluations = 12
        rungs = [2, 5]
        start = ["earlier", "genomes.json"]
        max_hours = 0.5
        target = {error = 0.1}
        [training]
        group_size = 2
    """
    )
    experiment = read(tmp_path, text)
    assert experiment.search.start == (str(tmp_path / "earlier"), str(tmp_path / "genomes.json"))
    assert terms_of(experiment).rungs == (2, 5, 10)
    plan = plan_of(experiment, ({"a": 1},))
    assert (plan.evaluations, plan.proposals_max, plan.limit_s, plan.start) == (12, 120, 1800.0, ({"a": 1},))
    assert (plan.group_size, plan.group_size_max) == (2, 16), "two samples of a batch for every rank"
    assert plan.target == {"error": 0.1}


def test_a_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(UserError, match="mpinas init"):
        read_experiment(tmp_path / "none.toml")


def test_resuming_refuses_what_would_not_compare():
    before = msgspec.convert({"task": {"name": "digits"}}, Experiment)
    more = msgspec.convert({"task": {"name": "digits"}, "search": {"evaluations": 99}}, Experiment)
    check_resumable(before, more)
    other = msgspec.convert({"task": {"name": "digits"}, "search": {"seed": 1}}, Experiment)
    with pytest.raises(UserError, match=r"search\.seed was 0 and is now 1"):
        check_resumable(before, other)
    other = msgspec.convert({"task": {"name": "digits", "validation_fraction": 0.3}}, Experiment)
    with pytest.raises(UserError, match=r"^--resume: task\.validation_fraction was 0\.\d+ and is now 0\.3; "):
        check_resumable(before, other)
    for edge in ({"devices": ["a", "b"]}, {"combine": "worst"}, {"normalise": True}, {"precision": "fp16"}):
        other = msgspec.convert({"task": {"name": "digits"}, "edge": edge}, Experiment)
        with pytest.raises(UserError, match=rf"edge\.{next(iter(edge))} was"):
            check_resumable(before, other)
