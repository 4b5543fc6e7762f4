"""What the user can mend gets one line, exit code 2, and leaves nothing behind. Real command lines."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pytest

DIGITS = '[task]\nname = "digits"\n'
LPBF = '[task]\nname = "lpbf"\nframes = 8\n'


def write_recording(path, layers=3, *, labels=True, spoil=None):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for layer in range(layers):
            group = file.create_group(f"{layer + 1}")
            frames = rng.integers(0, 255, (20, 12, 12)).astype(np.uint8)
            data = {"frame": frames, "scan_line_index": np.repeat(np.arange(2), 10)}
            if labels:
                data["laser_params"] = np.full((2, 2), 200.0)
            if spoil:
                spoil(data)
            for name, values in data.items():
                group[name] = values
    return path


def nan_label(data):
    data["laser_params"][0, 0] = np.nan


def flat_frames(data):
    data["frame"] = data["frame"][:, 0]


def nan_frames(data):
    data["frame"] = data["frame"].astype(np.float32)
    data["frame"][3, 2, 2] = np.nan


def no_lines(data):
    for name in data:
        data[name] = data[name][:0]


OWN = """
from mpinas.examples.digits import DigitsTask
from mpinas.search import SearchSpace
from mpinas.tasks.kinds import Regression

class Lost(DigitsTask):
    def load(self):
        raise FileNotFoundError("sparks.npz")

class Flat(Regression, DigitsTask):
    pass

class Long:
    baseline = None

    def search_space(self, input_shape):
        return SearchSpace({"frames": [1, 2]})

    def build(self, genome, input_shape, outputs):
        raise NotImplementedError
"""
CASES = {
    "no such experiment": ("missing.toml", None, {}, "no such experiment file"),
    "unknown key": ("e.toml", DIGITS + "[search]\nevaluatoins = 3\n", {}, "did you mean evaluations?"),
    "wrong type": ("e.toml", DIGITS + '[training]\nepochs = "few"\n', {}, "training.epochs: expected `int`"),
    "unknown task": ("e.toml", '[task]\nname = "cifar"\n', {}, "known are digits, lpbf"),
    "unknown space": ("e.toml", DIGITS + '[search]\nspace = "x"\n', {}, "known are cnn3d"),
    "no such option": ("e.toml", DIGITS + "options = {a = 1}\n", {}, "task.options.a: the task digits has no options"),
    "no such option of lpbf": ("e.toml", LPBF + 'train = "good.hdf5"\noptions = {a = 1}\n', {}, "task.options.a: "),
    "no such teacher": ("e.toml", DIGITS + '[training]\nteacher = "no.onnx"\n', {}, "training.teacher = "),
    "empty validation": ("e.toml", DIGITS + "validation_fraction = 0.001\n", {}, "without some digit"),
    "unknown gene": ("e.toml", DIGITS + "[search.genes]\nwidht = [1]\n", {}, "no gene 'widht'"),
    "no training file": ("e.toml", LPBF, {}, "task.train is missing"),
    "missing file": ("e.toml", LPBF + 'train = "none.hdf5"\n', {}, "none.hdf5"),
    "unreadable file": ("e.toml", LPBF + 'train = "shut.hdf5"\n', {}, "shut.hdf5"),
    "below a file": ("e.toml", LPBF + 'train = "e.toml/none.hdf5"\n', {}, "e.toml/none.hdf5"),
    "experiment below a file": ("good.hdf5/e.toml", None, {}, "good.hdf5/e.toml"),
    "foreign file": ("e.toml", LPBF + 'train = "e.toml"\n', {}, "e.toml"),
    "NaN label": ("e.toml", LPBF + 'train = "nan.hdf5"\n', {}, "nan.hdf5"),
    "no labels": ("e.toml", LPBF + 'train = "unlabelled.hdf5"\n', {}, "unlabelled.hdf5"),
    "wrong shape": ("e.toml", LPBF + 'train = "flat.hdf5"\n', {}, "flat.hdf5"),
    "truncated": ("e.toml", LPBF + 'train = "cut.hdf5"\n', {}, "cut.hdf5"),
    "NaN frame": ("e.toml", LPBF + 'train = "nan_frame.hdf5"\n', {}, "`frame` is float32"),
    "no lines": ("e.toml", LPBF + 'train = "no_lines.hdf5"\n', {}, "no_lines.hdf5: no scan lines"),
    "file twice": ("e.toml", LPBF + 'train = ["good.hdf5", "good.hdf5"]\n', {}, "give each once"),
    "train is test": (
        "e.toml",
        LPBF + 'train = "good.hdf5"\ntest = "./good.hdf5"\n',
        {},
        "task.train and in task.test",
    ),
    "empty folder": ("e.toml", LPBF + 'train = "nothing"\n', {}, "no .hdf5 or .h5 file in this folder"),
    "one layer": ("e.toml", LPBF + 'train = "one.hdf5"\n', {}, "1 layer"),
    "bad test file": ("e.toml", LPBF + 'train = "good.hdf5"\ntest = "cut.hdf5"\n', {}, "cut.hdf5"),
    "a task without its data": (
        "e.toml",
        '[task]\nname = "own.py:Lost"\n',
        {},
        "own.py:Lost': its data cannot be loaded: FileNotFoundError: sparks.npz; look whether",
    ),
    "flat targets": (
        "e.toml",
        '[task]\nname = "own.py:Flat"\n',
        {},
        "own.py:Flat': training samples: targets are (958,) and must be (958, 10)",
    ),
    "too few frames for the baseline": (
        "e.toml",
        LPBF.replace("8", "6") + 'train = "good.hdf5"\n',
        {},
        "task.baseline = 'lpbf-cnn' cannot be made for samples of (6, ",
    ),
    "more frames than a sample has": (
        "e.toml",
        DIGITS + '[search]\nspace = "own.py:Long"\n',
        {},
        "its gene frames offers 2, but a sample has 1",
    ),
    "controller set": ("e.toml", DIGITS, {"HOROVOD_CONTROLLER": "gloo"}, "unset it"),
    "thread level": ("e.toml", DIGITS, {"MPI4PY_RC_THREAD_LEVEL": "funneled"}, "MPI_THREAD_MULTIPLE"),
    "bridge missing": ("e.toml", DIGITS + '[edge]\nbridge = "BRIDGE.json"\n', {}, "BRIDGE.json"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_exit_code_2(mpirun, tmp_path, case):
    name, text, environment, message = CASES[case]
    if text is not None:
        (tmp_path / name).write_text(text)
    good = write_recording(tmp_path / "good.hdf5")
    (tmp_path / "cut.hdf5").write_bytes(good.read_bytes()[:3000])
    write_recording(tmp_path / "nan.hdf5", spoil=nan_label)
    write_recording(tmp_path / "unlabelled.hdf5", labels=False)
    write_recording(tmp_path / "flat.hdf5", spoil=flat_frames)
    write_recording(tmp_path / "one.hdf5", layers=1)
    write_recording(tmp_path / "nan_frame.hdf5", spoil=nan_frames)
    write_recording(tmp_path / "no_lines.hdf5", spoil=no_lines)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "shut.hdf5").symlink_to("shut.hdf5")  # a loop: nobody can read it, root neither
    before = {path.name for path in tmp_path.iterdir()}
    done = mpirun(2, "-m", "mpinas", "search", name, "--run", "run", check=False, env=environment, timeout=200)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("mpinas: error: ")]
    assert len(lines) == 1, done.stdout + done.stderr
    assert message in lines[0]
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == before, "something was left behind"


def alone(tmp_path, *arguments, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-m", "mpinas", *arguments],
        cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "`mpinas init` writes one"),
        (["search", "--resume"], {}, "--resume needs the folder"),
        (["search", "--resume", "--run", "none"], {}, "no such run folder"),
        (["search", "e.toml", "--run", "there"], {}, "there: exists already and is no run folder"),
        (["search", "e.toml", "--set", "search"], {}, "write section.key=value"),
        (["search", "e.toml"], {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "srun --mpi=pmix"),
        (["init", "e.toml"], {}, "exists already"),
        (["results", "none"], {}, "no such run folder"),
        (["results", "there"], {}, "not a run folder"),
        (["results", "e.toml/run"], {}, "no such run folder"),
        (["search", "--resume", "--run", "e.toml/run"], {}, "no such run folder"),
        (["search", "e.toml", "--run", "e.toml/run"], {}, "e.toml/run"),
        (["search", "shut.toml"], {}, "shut.toml"),
        (["search", "e.toml", "--run", "shut.toml"], {}, "shut.toml"),
        (["data", "inspect", "shut.toml"], {}, "shut.toml"),
        (["predict", "none.onnx", "e.toml", "-o", "out.csv"], {}, "no such model file"),
        (["predict", "e.toml", "e.toml", "-o", "out.csv"], {}, "not a model"),
        (["data", "inspect", "none.hdf5"], {}, "none.hdf5"),
        (["data", "inspect", "e.toml"], {}, "e.toml"),
        (["data", "simulate", "e.toml"], {}, "e.toml"),
        (["data", "simulate", "o.hdf5", "--lines", "0"], {}, "must be 1 or more"),
        (["data", "simulate", "o.hdf5", "--layers", "9" * 20], {}, "must be 10,000 or fewer"),
        (["results", "e.toml"], {}, "e.toml: not a run folder, but a file"),
        (["doctor", "--key", "job.key"], {}, "--key is for the relay of --bridge"),
    ],
)
def test_the_other_commands(tmp_path, arguments, environment, message):
    (tmp_path / "there").mkdir()
    (tmp_path / "shut.toml").symlink_to("shut.toml")  # a loop: nobody can read it, root neither
    if arguments:
        (tmp_path / "e.toml").write_text(DIGITS)
    before = {path.name for path in tmp_path.iterdir()}
    done = alone(tmp_path, *arguments, **environment)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()[-1:]
    assert line.startswith("mpinas: error: ")
    assert message in line
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == before


def test_of_several_tasks_in_worlds_of_their_own_only_the_first_complains(tmp_path):
    (tmp_path / "e.toml").write_text(DIGITS)
    task = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}
    done = alone(tmp_path, "search", "e.toml", **task)
    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["serch"], "No such command 'serch'. Did you mean 'search'? (see `python -m mpinas --help`)"),
        (["results"], "Missing argument 'RUN' (see `python -m mpinas results --help`)"),
        (["data", "inspect", "-x"], "No such option '-x' (see `python -m mpinas data inspect --help`)"),
    ],
)
def test_a_call_that_is_wrong_is_one_line(tmp_path, words, says):
    done = alone(tmp_path, *words)
    assert (done.returncode, done.stderr) == (2, f"mpinas: error: {says}\n")


def test_init_writes_an_experiment_that_is_read(tmp_path):
    assert alone(tmp_path, "init").returncode == 0
    shown = alone(tmp_path, "init", "-").stdout
    assert (shown, (tmp_path / "-").exists()) == ((tmp_path / "experiment.toml").read_text(), False)
    done = alone(tmp_path, "search")
    assert done.returncode == 2
    assert "data/train.hdf5" in done.stderr


BROKEN = """
from torch import nn
from mpinas.examples.digits import DigitsTask

class Net(nn.Module):
    def __init__(self, input_shape, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, frames):
        return frames.float().flatten(1)[:, : self.outputs + 1]

class Task(DigitsTask):
    baseline = Net
"""


def test_a_search_whose_baseline_fails_ends_with_2(mpirun, tmp_path):
    (tmp_path / "own.py").write_text(BROKEN)
    (tmp_path / "e.toml").write_text('[task]\nname = "own.py:Task"\n[search]\nevaluations = 2\n')
    done = mpirun(2, "-m", "mpinas", "search", "e.toml", "--run", "run", check=False, timeout=200)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("mpinas: error: ") == 1, done.stdout + done.stderr
    line = next(line for line in done.stderr.splitlines() if "mpinas: error: " in line)
    assert line.endswith("the network gives 11 numbers for each sample, and the task has 10")
    shown = alone(tmp_path, "results", "run")
    assert "nobody has been trained to the end" in shown.stdout


@pytest.mark.parametrize("ranks", [0, 3])
def test_no_shared_memory_stays_behind(mpirun, tmp_path, ranks):
    """Open MPI leaves it where there is no launcher, and sometimes where there is one."""
    shared = tmp_path / "shared"
    shared.mkdir()
    environment = {"OMPI_MCA_btl_sm_backing_directory": str(shared)}
    if ranks:
        done = mpirun(ranks, "-m", "mpinas", "search", "none.toml", check=False, env=environment, timeout=200)
    else:
        done = alone(tmp_path, "search", "none.toml", **environment)
    assert done.returncode == 2, done.stderr
    assert not [*shared.iterdir()]
