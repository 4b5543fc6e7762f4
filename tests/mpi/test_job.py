"""Whole jobs: real mpirun, real Horovod, a real relay and agent, real data. The same experiment at several sizes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from launching import ROOT, mpi_environment, mpirun_command

from mpinas.config import read_experiment
from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.budgets import Curves
from mpinas.coordination.front import dominates
from mpinas.coordination.teaching import Teaching
from mpinas.errors import UserError
from mpinas.history import journal
from mpinas.history.run_folder import RunFolder, plan_of
from mpinas.parallel.means import coordinator_of, space_of
from mpinas.report import results
from mpinas.tasks import make_task

EXPERIMENT = """
[task]
name = "digits"
[search]
evaluations = 4
seed = 3
population = 4
[training]
group_size = 2
epochs = 2
[edge]
exporters = 1
"""

#: Values of a test that are run apart: `pytest -m variant`.
variant = partial(pytest.param, marks=pytest.mark.variant)


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return path


def check_finished(run: Path, evaluations: int) -> dict:
    """What every finished run must be, whatever its size."""
    folder = RunFolder.existing(run)
    ledger = results.load(folder)
    found = results.as_dict(ledger, folder)
    assert ledger.finished
    evaluated = [c for c in found["candidates"] if c["state"] == "EVALUATED"]
    assert len(evaluated) == evaluations
    for candidate in evaluated:
        assert candidate["measurement"]["samples"] >= 64
        assert candidate["objectives"]["latency_s"] == candidate["measurements"]["any"]["p50_s"] > 0
        assert candidate["attempts"] >= 1
    assert found["baseline"] == 0
    kept = set(found["front"]) | {0}
    for candidate in found["candidates"]:
        if candidate["id"] in kept:
            assert candidate["test_error"] is not None
            assert candidate["onnx_difference"] < 1e-4
            assert Path(candidate["onnx"]).is_file()
            assert set(candidate["quality"]) == set(found["devices"])
            assert candidate["accepted"] is True, "fp32 on the same ONNX Runtime computes what torch did"
            for verdict in candidate["quality"].values():
                assert verdict["error"] == pytest.approx(verdict["expected"], rel=0.02, abs=1e-4)
    on_disk = {int(path.name) for path in folder.models.iterdir()}
    assert on_disk == kept, "weights of the front and the baseline, and no others"
    assert not folder.exports.exists()
    return found


def orders_of(run: Path) -> list[int]:
    history = journal.read(RunFolder(run).journal_file)
    return [event.candidate for _, event in history if type(event) is msg.Evaluated]


@pytest.mark.parametrize("ranks", [variant(1), 2, 3, 5])
def test_a_search_at_every_size(mpirun, experiment, tmp_path, ranks):
    done = mpirun(ranks, "-m", "mpinas", "search", str(experiment), "--run", "run")
    found = check_finished(tmp_path / "run", 4)
    assert 0 < found["trainer_utilisation"] <= 1
    first = done.stdout.splitlines()[0]
    expected = {
        1: "serially",
        2: "1 trainer(s) in groups of 1 (training.group_size = 2 asks for more than there are), formed for every order",
        3: "2 trainer(s) in groups of 2, formed for every order",
        5: "4 trainer(s) in groups of 2, up to 4 where that gains time, formed for every order",
    }
    assert expected[ranks] in first
    assert "finished: 4 of 4" in done.stdout


def test_settings_that_cannot_be_kept_are_told(mpirun, experiment, tmp_path):
    settings = ("--set", "training.group_size=3", "--set", "training.batch_size=5000", "--set", "search.evaluations=2")
    done = mpirun(2, "-m", "mpinas", "search", str(experiment), "--run", "run", *settings)
    assert "in groups of 1 (training.group_size = 3 asks for more than there are), formed" in done.stdout
    assert re.search(
        r"batch_size = 5000 is more than the \d+ training samples: every epoch is a single step", done.stdout
    )


def test_the_same_job_without_mpirun_and_with_nothing_but_a_file_named_experiment_toml(experiment, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mpinas"], cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "serially" in done.stdout.splitlines()[0]
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("experiment-")
    check_finished(run, 4)


def start(ranks: int, folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*mpirun_command(ranks), sys.executable, "-m", "mpinas", "search", *arguments],
        cwd=folder, env=mpi_environment(**environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def until(condition, job: subprocess.Popen[str], limit_s: float = 120.0):
    """Wait for a fact on disk; the job must be alive meanwhile."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if found := condition():
            return found
        assert job.poll() is None, f"the job ended early:\n{job.stdout.read()}"
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def evaluated_in(run: Path) -> list[int]:
    try:
        return orders_of(run)
    except UserError:
        return []


def processes_of(folder: Path) -> list[int]:
    """Every process whose current folder is the job's: ranks, relay, agent, exporter."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "cwd") == str(folder):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def check_all_gone(folder: Path) -> None:
    """No process of a job is left soon after its end."""
    end = time.monotonic() + 30
    while processes_of(folder) and time.monotonic() < end:
        time.sleep(0.05)
    assert processes_of(folder) == [], "children outlived the job"


def kill_mpirun_and_all_ranks(job: subprocess.Popen, folder: Path) -> None:
    """Relay, agent and exporters must find out themselves."""
    for pid in [job.pid, *processes_of(folder)]:
        command = Path(f"/proc/{pid}/cmdline")
        if command.exists() and b"edge_bridge" not in command.read_bytes() and b"exporter" not in command.read_bytes():
            os.kill(pid, signal.SIGKILL)
    job.communicate(timeout=30)


@pytest.mark.parametrize(("ranks_after", "group_size"), [variant(3, 2), (2, 2), variant(3, 1)])
def test_killed_in_the_middle_and_resumed_nothing_is_lost_or_done_again(experiment, tmp_path, ranks_after, group_size):
    run = tmp_path / "run"
    job = start(3, tmp_path, str(experiment), "--run", "run")
    until(lambda: len(evaluated_in(run)) >= 2, job)
    kill_mpirun_and_all_ranks(job, tmp_path)
    check_all_gone(tmp_path)

    before = evaluated_in(run)
    resumed = start(ranks_after, tmp_path, "--resume", "--run", "run", "--set", f"training.group_size={group_size}")
    output, _ = resumed.communicate(timeout=500)
    assert resumed.returncode == 0, output
    assert f"resumed: {len(before)} candidates evaluated before" in output
    check_finished(run, 4)
    all_evaluated = orders_of(run)
    assert all_evaluated[: len(before)] == before
    assert len(set(all_evaluated)) == len(all_evaluated) == 4


def epoch_seen(run: Path) -> bool:
    return (run / "journal.jsonl").exists() and b"Progress" in (run / "journal.jsonl").read_bytes()


def paused_in(run: Path) -> dict[int, int]:
    """Epochs done by candidate that was put aside."""
    history = journal.read(RunFolder(run).journal_file)
    return {event.candidate: event.epochs_done for _, event in history if type(event) is msg.Paused}


def test_asked_to_stop_it_puts_trainings_aside_and_goes_on_later_from_there(experiment, tmp_path):
    run = tmp_path / "run"
    code = {"MPINAS_CODE_FILE": str(tmp_path / "code")}  # for a job script, should srun not end
    job = start(3, tmp_path, str(experiment), "--run", "run", "--set", "training.epochs=60", **code)
    until(lambda: epoch_seen(run), job)
    job.send_signal(signal.SIGUSR2)  # mpirun passes it on to the ranks
    output, _ = job.communicate(timeout=90)
    assert "SIGUSR2: stopping" in output
    assert job.returncode == 75, "not finished: the same job can go on"
    assert os.readlink(tmp_path / "code") == "75"
    (tmp_path / "code").unlink()
    assert results.load(RunFolder(run)).finished is None
    (candidate, epochs), *_ = paused_in(run).items()
    assert 0 < epochs < 60
    check_all_gone(tmp_path)
    again = start(3, tmp_path, "--resume", "--run", "run", "--set", "search.evaluations=2", **code)
    output, _ = again.communicate(timeout=500)
    assert again.returncode == 0, output
    assert os.readlink(tmp_path / "code") == "0"
    check_finished(run, 2)
    progress = [e.epoch for _, e in journal.read(RunFolder(run).journal_file)
                if type(e) is msg.Progress and e.candidate == candidate]  # fmt: skip
    assert progress == list(range(1, 61)), "no epoch twice, none left out"


def test_a_supernet_is_put_aside_too(tmp_path):
    (tmp_path / "e.toml").write_text(
        '[task]\nname = "digits"\n[search]\nevaluations = 3\nstrategy = "supernet"\n[training]\nepochs = 1\n'
        '[search.genes]\nstem = ["fold"]\nblock = ["plain"]\nhead = ["grid"]\nstages = [1]\ndepth1 = [1]\nscale = [1]\n'
        "width1 = [8, 16]\nstem_width = [8, 16]\nhead_width = [16, 32]\nkernel_space = [3]\n[supernet]\nepochs = 8\n"
    )
    run = tmp_path / "run"
    job = start(3, tmp_path, "e.toml", "--run", "run")
    until(lambda: epoch_seen(run), job)
    job.send_signal(signal.SIGUSR2)
    output, _ = job.communicate(timeout=90)
    assert job.returncode == 75, output
    ((who, epochs),) = paused_in(run).items()
    assert who == msg.SUPERNET
    assert 0 < epochs < 8
    again = start(3, tmp_path, "--resume", "--run", "run")
    output, _ = again.communicate(timeout=500)
    assert again.returncode == 0, output
    progress = [event.epoch for event in history_of(run) if type(event) is msg.Progress and event.candidate == who]
    assert progress == list(range(1, 9)), "no epoch twice, none left out"


def test_before_its_time_is_over_a_job_ends_by_itself_and_the_next_goes_on(mpirun, experiment, tmp_path):
    long = ("--set", "training.epochs=100000", "--set", "training.group_size=1")
    done = mpirun(3, "-m", "mpinas", "search", str(experiment), "--run", "run", *long, "--time-limit", "1:15",
                  check=False)  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert re.search(r"the job's time is over in \d+ s: stopping; `--resume` goes on", done.stdout)
    history = history_of(tmp_path / "run")
    (begun,) = [event for event in history if type(event) is ev.Begun]
    assert begun.ends_at is not None
    ended = [time for time, _ in journal.read(RunFolder(tmp_path / "run").journal_file)][-1]
    assert ended < begun.ends_at
    begun_with = {event.candidate for event in history if type(event) is ev.Ordered}
    seen = {event.candidate for event in history if type(event) is msg.Progress}
    assert paused_in(tmp_path / "run").keys() >= seen, "all that came to the end of an epoch was put aside"
    assert begun_with


SLOW = f"""
[task]
name = "{Path(__file__).with_name("slow_digits.py")}:SlowDigits"
options = {{step_seconds = 0.5}}
[search]
evaluations = 4
[training]
epochs = 1000
batch_size = 4
"""


def ordered(run: Path) -> bool:
    return (run / "journal.jsonl").exists() and b"Ordered" in (run / "journal.jsonl").read_bytes()


def test_a_job_leaves_in_time_though_no_epoch_ends_and_nothing_else_happens(tmp_path):
    """An epoch takes two minutes; of the signal only rank 0 hears."""
    (tmp_path / "slow.toml").write_text(SLOW)
    job = start(3, tmp_path, "slow.toml", "--run", "run")
    until(lambda: ordered(tmp_path / "run"), job)
    for pid in processes_of(tmp_path):
        if b"OMPI_COMM_WORLD_RANK=0" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGTERM)
    output, _ = job.communicate(timeout=100)
    assert job.returncode == 75, output
    assert "SIGTERM: stopping" in output
    assert not epoch_seen(tmp_path / "run")


def test_a_job_that_died_before_its_first_event_is_resumed(experiment, tmp_path):
    RunFolder.create(tmp_path / "run", read_experiment(experiment))
    done = subprocess.run(
        [sys.executable, "-m", "mpinas", "search", "--resume", "--run", "run", "--set", "search.evaluations=2"],
        cwd=tmp_path, env=mpi_environment(), capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    check_finished(tmp_path / "run", 2)


EARLY = """
import os, signal
from mpinas.examples.digits import DigitsTask

class Early(DigitsTask):
    def load(self):
        os.kill(os.getpid(), signal.SIGUSR2)
        return super().load()
"""


def test_a_signal_that_comes_while_data_are_read_ends_the_job_once_it_can(experiment, tmp_path):
    (tmp_path / "task.py").write_text(EARLY)
    done = subprocess.run(
        [sys.executable, "-m", "mpinas", "search", str(experiment), "--run", "run", "--set", "task.name=task.py:Early"],
        cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert "SIGUSR2: stopping" in done.stdout
    assert not ordered(tmp_path / "run")


HANGS = """
import threading
from pathlib import Path
from mpinas.examples.digits import DigitsTask

class Hangs(DigitsTask):
    def loss(self, outputs, targets):
        try:
            Path("hung").touch(exist_ok=False)  # one rank, once
        except FileExistsError:
            return super().loss(outputs, targets)
        threading.Event().wait()
"""


@pytest.mark.parametrize("ranks", [variant(1), 3])
def test_a_rank_that_trains_alone_and_hangs_ends_the_job_which_can_go_on(mpirun, experiment, tmp_path, ranks):
    """The process lives, and gives its signs of life. On a busy machine a first step takes 15 s: that is no hang."""
    (tmp_path / "task.py").write_text(HANGS)
    settings = ["--set", "training.group_size=1", "--set", "training.hang_seconds=60"]
    run = ["--run", "run", "--set", "task.name=task.py:Hangs", *settings]
    ended = mpirun(ranks, "-m", "mpinas", "search", str(experiment), *run, check=False)
    assert ended.returncode == 75, ended.stdout + ended.stderr
    assert (tmp_path / "hung").exists()
    who = r"rank \d on \S+, at work on candidate \d, has not got on for 60 s \(training.hang_seconds\)"
    assert re.search(who, ended.stderr)
    assert "has died" not in ended.stderr, "the others leave it at that"
    mpirun(ranks, "-m", "mpinas", "search", "--resume", "--run", "run", "--set", "training.hang_seconds=3600")
    check_finished(tmp_path / "run", 4)


def test_a_journal_is_replayed_before_the_ranks_count_signs_of_life(mpirun, experiment, tmp_path):
    """A long one takes longer than a rank may be silent. This one cannot be: all leave alike, before they are ready."""
    folder = RunFolder.create(tmp_path / "run", read_experiment(experiment, ()))
    with closing(journal.Journal(folder.journal_file)) as book:
        book.append(1.0, ev.Proposed(5, {}))
    code = {"MPINAS_CODE_FILE": str(tmp_path / "code")}
    done = mpirun(2, "-m", "mpinas", "search", "--resume", "--run", "run", check=False, env=code)
    assert done.returncode == 2
    assert os.readlink(tmp_path / "code") == "2"
    assert "the journal's event 0 (Proposed) cannot follow" in done.stderr
    assert "ranks ready" not in done.stdout


#: For rank 0 the disk is full: all the while, or as some file systems find only when all is to be made durable.
FULL = """
import errno, os, resource, sys
from mpi4py import MPI
if __name__ == "__main__":
    if MPI.COMM_WORLD.Get_rank() == 0:
        durable = os.fsync
        def fsync(file):
            if str(getattr(file, "name", "")).endswith("journal.jsonl"):
                raise OSError(errno.ENOSPC, "No space left on device")
            durable(file)
        if sys.argv.pop(1) == "at the end":
            os.fsync = fsync
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
    else:
        del sys.argv[1]
    from mpinas.__main__ import main
    main()
"""


@pytest.mark.parametrize("when", ["meanwhile", "at the end"])
def test_a_disk_that_is_full_for_rank_0_ends_the_job_and_the_run_folder_is_free(mpirun, experiment, tmp_path, when):
    (tmp_path / "full.py").write_text(FULL)
    done = mpirun(2, "full.py", when, "search", str(experiment), "--run", "run", "--set", "search.evaluations=2",
                  check=False)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert re.search(r"mpinas: error: .*cannot be written \((No space left on device|File too large)\)", done.stderr)
    assert "has died" not in done.stderr, "the others leave it at that"
    assert not (tmp_path / "run" / "running.json").exists(), "its end was announced: nobody takes it for dead"


@pytest.mark.parametrize("way", ["--time-limit", "SIGUSR2"])
def test_a_world_of_one_puts_its_training_aside_as_well(experiment, tmp_path, way):
    run, long = tmp_path / "run", ("--set", "training.epochs=100000")
    arguments = ["search", str(experiment), "--run", "run", *long, *(["--time-limit", "1:00"] if way[0] == "-" else [])]
    job = subprocess.Popen([sys.executable, "-m", "mpinas", *arguments], cwd=tmp_path, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)  # fmt: skip
    try:
        if way == "SIGUSR2":
            until(lambda: epoch_seen(run), job)  # written down as it comes, not when the order is done
            job.send_signal(signal.SIGUSR2)
        output, _ = job.communicate(timeout=120)
    finally:
        job.kill()
    assert job.returncode == 75, output
    ((candidate, epochs),) = paused_in(run).items()
    assert results.load(RunFolder(run)).candidates[candidate].epochs_done == epochs > 0


def test_a_world_of_one_leaves_the_training_of_its_supernet_as_well(experiment, tmp_path):
    long = ("supernet.epochs=100000", "search.strategy=supernet", "training.checkpoint_seconds=0")
    small = ('search.genes.stem=["fold"]', 'search.genes.block=["plain"]', 'search.genes.head=["grid"]',
             "search.genes.stages=[1]", "search.genes.width1=[8, 16]", "search.genes.depth1=[1]")  # fmt: skip
    settings = [part for each in (*long, *small) for part in ("--set", each)]
    job = subprocess.Popen(
        [sys.executable, "-m", "mpinas", "search", str(experiment), "--run", "run", *settings],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        until(lambda: epoch_seen(tmp_path / "run"), job)
        job.send_signal(signal.SIGUSR2)
        output, _ = job.communicate(timeout=120)
    finally:
        job.kill()
    assert job.returncode == 75, output
    assert RunFolder(tmp_path / "run").supernet_checkpoint_file.is_file()


def test_a_walltime_that_is_none_is_refused_in_one_line(mpirun, experiment, tmp_path):
    done = mpirun(2, "-m", "mpinas", "search", str(experiment), "--run", "run", "--time-limit", "soon", check=False)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("mpinas: error: --time-limit: 'soon' is no")]
    assert not (tmp_path / "run").exists()


def test_results_can_be_read_while_the_job_runs_and_a_finished_run_can_be_made_longer(experiment, tmp_path):
    run = tmp_path / "run"
    job = start(3, tmp_path, str(experiment), "--run", "run")
    until(lambda: len(evaluated_in(run)) >= 2, job)
    shown = subprocess.run(
        [sys.executable, "-m", "mpinas", "results", "run", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(shown.stdout)["counts"]["EVALUATED"] >= 2
    output, _ = job.communicate(timeout=500)
    assert job.returncode == 0, output
    shorter = start(3, tmp_path, "--resume", "--run", "run", "--set", "search.evaluations=3")
    output, _ = shorter.communicate(timeout=500)
    assert shorter.returncode == 2
    assert "search.evaluations = 3, but 4 are evaluated already" in output
    assert RunFolder(run).experiment().search.evaluations == 4
    longer = start(3, tmp_path, "--resume", "--run", "run", "--set", "search.evaluations=6")
    output, _ = longer.communicate(timeout=500)
    assert longer.returncode == 0, output
    check_finished(run, 6)


BUDGETS = ("--set", "search.rungs=[1]", "--set", "training.epochs=3", "--set", "training.group_size=1")


def history_of(run: Path) -> list:
    return [event for _, event in journal.read(RunFolder(run).journal_file)]


@pytest.mark.parametrize("ranks", [variant(1), variant(3), 5])
def test_small_budgets_first_and_finalists_once_more(mpirun, experiment, tmp_path, ranks):
    more = ("--set", "search.finalists=1", "--set", "search.finalist_seeds=2", "--set", "search.evaluations=6")
    mpirun(ranks, "-m", "mpinas", "search", str(experiment), "--run", "run", *BUDGETS, *more)
    check_finished(tmp_path / "run", 6)
    history = history_of(tmp_path / "run")
    assert not [event for event in history if type(event) in (msg.EvaluationFailed, msg.RetrainingFailed)]
    promoted = {event.candidate for event in history if type(event) is ev.Promoted}
    assert promoted
    epochs: dict[tuple[int, int], list[int]] = {}
    for event in history:
        if type(event) is msg.Progress:
            epochs.setdefault((event.candidate, event.attempt), []).append(event.epoch)
    for id_ in promoted:
        parts = [found for (candidate, _), found in sorted(epochs.items()) if candidate == id_]
        assert parts[:2] == [[1], [2, 3]], "progress counts epochs in all"
    retrained = [event for event in history if type(event) is msg.Retrained]
    best = {event.candidate for event in retrained}
    assert 0 in best, "the baseline, to compare with"
    assert len(retrained) == 2 * len(best)
    assert all(0 < event.test_metrics["error"] < 1 for event in retrained)
    orders = [event for event in history if type(event) is ev.Ordered]
    trainers = {1: {0}, 3: {1, 2}, 5: {1, 2, 3, 4}}[ranks]
    assert {rank for order in orders for rank in order.members} == trainers
    check_groups(history)


def check_groups(history: list) -> None:
    """No trainer has two orders at a time, and the leader of each answers."""
    at_work: dict[int, tuple[int, ...]] = {}
    for event in history:
        if type(event) is ev.Begun:
            at_work.clear()
        elif type(event) is ev.Ordered:
            assert not {rank for members in at_work.values() for rank in members} & set(event.members)
            at_work[event.members[0]] = event.members
        elif isinstance(event, msg.Answer):
            del at_work[event.group]


def promoted_at_work(run: Path) -> int:
    """A candidate that goes on from its checkpoint; 0, the baseline's number, where there is none."""
    try:
        orders = [event for event in history_of(run) if type(event) is ev.Ordered and event.work == "evaluate"]
    except UserError:
        return 0
    return next((order.candidate for order in orders if order.rung == 1 and order.candidate > 0), 0)


def test_killed_after_a_promotion_the_training_goes_on_from_the_checkpoint(experiment, tmp_path):
    run = tmp_path / "run"
    job = start(3, tmp_path, str(experiment), "--run", "run", *BUDGETS, "--set", "training.epochs=9")
    candidate = until(lambda: promoted_at_work(run), job)
    for pid in processes_of(tmp_path):
        os.kill(pid, signal.SIGKILL)
    job.communicate(timeout=30)
    resumed = start(3, tmp_path, "--resume", "--run", "run")
    output, _ = resumed.communicate(timeout=500)
    assert resumed.returncode == 0, output
    check_finished(run, 4)
    history = history_of(run)
    assert not [event for event in history if type(event) is msg.EvaluationFailed]
    resumed_at = max(number for number, event in enumerate(history) if type(event) is ev.Begun)
    later = [event for event in history[resumed_at:] if type(event) is msg.Progress and event.candidate == candidate]
    assert [event.epoch for event in later] == list(range(2, 10))


def test_limits_reject_before_training(mpirun, experiment, tmp_path):
    mpirun(3, "-m", "mpinas", "search", str(experiment), "--run", "run", "--set", "search.limits.parameters=8000")
    found = check_finished(tmp_path / "run", 4)
    rejected = [c for c in found["candidates"] if c["state"] == "REJECTED"]
    assert rejected
    assert all(c["attempts"] == 0 and "parameters" in c["reason"] for c in rejected)
    assert all(c["parameters"] <= 8000 for c in found["candidates"] if c["id"] in found["front"])


def test_on_recordings_of_both_layouts_and_the_models_predict(mpirun, tmp_path):
    from mpinas.tasks.lpbf.simulate import SimulationPlan, simulate

    simulate(tmp_path / "old.hdf5", SimulationPlan(objects=("A", "B"), layers=2, lines_per_layer=8, seed=1))
    simulate(tmp_path / "new", SimulationPlan(layout="v1.1", objects=("C", "D"), layers=2, lines_per_layer=6, seed=2))
    simulate(tmp_path / "test", SimulationPlan(layout="v1.1", objects=("E", "F"), layers=1, lines_per_layer=7, seed=3))
    (tmp_path / "lpbf.toml").write_text(
        '[task]\nname = "lpbf"\nframes = 8\ntrain = ["old.hdf5", "new"]\ntest = "test"\n'
        "[search]\nevaluations = 3\n[training]\nepochs = 1\nbatch_size = 8\ngroup_size = 2\n"
    )
    done = mpirun(3, "-m", "mpinas", "search", "lpbf.toml", "--run", "run")
    assert "SIMULATED" in done.stdout
    found = check_finished(tmp_path / "run", 3)
    assert found["simulated_data"] is True
    best = found["candidates"][found["front"][0]]
    assert set(best["metrics"]) == {"error", "rmse_speed_mm_s", "rmse_power_w"}
    told = subprocess.run(
        [sys.executable, "-m", "mpinas", "predict", best["onnx"], "test", "-o", "out.csv"],
        cwd=tmp_path, timeout=60, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert told.stdout == "out.csv: 14 scan lines of SIMULATED data\n"
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert rows[0] == "object,layer,line,speed_mm_s,power_w"
    assert len(rows) == 1 + 14
    # the deployed file, read by itself, makes the test error that the job reported
    from mpinas.tasks.lpbf.recording import open_recording

    with open_recording(tmp_path / "test") as recording:
        truth = [(line.labels[0] / 900, line.labels[1] / 215) for line in recording.lines]
    squares = []
    for row, (speed, power) in zip(rows[1:], truth, strict=True):
        got_speed, got_power = (float(value) for value in row.split(",")[3:])
        squares += [(got_speed / 900 - speed) ** 2, (got_power / 215 - power) ** 2]
    assert (sum(squares) / len(squares)) ** 0.5 == pytest.approx(best["test_error"], rel=1e-3)


@pytest.mark.skipif(not (ROOT.parent / "shared" / "data").is_dir(), reason="the shared sample files are not here")
def test_on_the_shared_sample_files_with_a_test_file_without_labels(mpirun, tmp_path):
    data = ROOT.parent / "shared" / "data"
    (tmp_path / "lpbf.toml").write_text(
        f'[task]\nname = "lpbf"\nframes = 7\ntrain = ["{data}/raise_v1.0.hdf5", "{data}/C028.hdf5"]\n'
        f'test = "{data}/C029_test.hdf5"\n'
        "[search]\nevaluations = 3\n[training]\nepochs = 1\nbatch_size = 8\n"
    )
    mpirun(3, "-m", "mpinas", "search", "lpbf.toml", "--run", "run")
    folder = RunFolder.existing(tmp_path / "run")
    found = results.as_dict(results.load(folder), folder)
    assert found["counts"]["EVALUATED"] == 3
    assert found["simulated_data"] is False
    assert all(found["candidates"][i]["test_error"] is None for i in found["front"])
    assert all(Path(found["candidates"][i]["onnx"]).is_file() for i in found["front"])


@pytest.fixture
def private_bridge(request):
    """A relay on private sockets with two devices, "a" and "b", with the options that are its parameter; its
    connection file."""
    options = getattr(request, "param", ())
    folder = Path(tempfile.mkdtemp(prefix="two-", dir="/tmp"))  # a socket's path must be short
    file = folder / "BRIDGE.json"
    processes = []

    def run(*arguments: str) -> None:
        command = [sys.executable, "-m", "edge_bridge", *arguments, "--exit-with-stdin"]
        with open(folder / f"{len(processes)}.log", "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT)
        processes.append(process)
        assert process.stdout.readline(), (folder / f"{len(processes) - 1}.log").read_text()

    run("relay", "--local", str(folder))
    for name in ("a", "b"):
        run("device", str(file), "--name", name, "--state", str(folder / f"state-{name}"), *options)
    yield file
    for process in processes:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("combine", ["each", variant("worst")])
def test_two_devices_in_one_search(mpirun, experiment, tmp_path, private_bridge, combine):
    devices = ("--edge", str(private_bridge), "--set", 'edge.devices=["a", "b"]', "--set", f"edge.combine={combine}")
    mpirun(3, "-m", "mpinas", "search", str(experiment), "--run", "run", *devices)
    folder = RunFolder.existing(tmp_path / "run")
    found = results.as_dict(results.load(folder), folder)
    assert found["objectives"] == ["error", *(["latency_s@a", "latency_s@b"] if combine == "each" else ["latency_s"])]
    assert found["finished"] == "4 of 4 candidates evaluated"
    for candidate in found["candidates"]:
        assert {name: one["device"] for name, one in candidate["measurements"].items()} == {"a": "a", "b": "b"}
        latencies = {name: one["p50_s"] for name, one in candidate["measurements"].items()}
        if combine == "each":
            assert candidate["objectives"] == {
                "error": candidate["metrics"]["error"], "latency_s@a": latencies["a"], "latency_s@b": latencies["b"]
            }  # fmt: skip
        else:
            assert candidate["objectives"]["latency_s"] == max(latencies.values())
        if candidate["id"] in {*found["front"], 0}:
            assert {name: verdict["accepted"] for name, verdict in candidate["quality"].items()} == dict.fromkeys(
                "ab", True
            )


def outcome(run: Path) -> tuple[list[int], dict[int, dict], dict[int, float]]:
    """All that a killed and an unbroken run must agree in: the front, and of each candidate what is known, and its test
    error if it was a finalist at the end."""
    found = results.as_dict(results.load(RunFolder(run)), RunFolder(run))
    told = ("genome", "state", "metrics", "objectives")
    candidates = {it["id"]: {what: it[what] for what in told} for it in found["candidates"]}
    tested = {it["id"]: it["test_error"] for it in found["candidates"] if it["test_error"] is not None}
    return found["front"], candidates, tested


def check_asks_as_if_unbroken(run: Path) -> None:
    """Each proposal of the journal is what a search that nothing has interrupted asks, told the same in that order."""
    folder = RunFolder(run)
    experiment = folder.experiment()
    task = make_task(experiment.task, experiment.search.seed)
    coordinator = coordinator_of(task, experiment, plan_of(experiment), space_of(task, experiment))
    search, ledger = coordinator.search, coordinator.ledger
    teaching = Teaching(search, ledger, Curves())
    for time_, event in journal.read(folder.journal_file):
        it = ledger.candidates.get(getattr(event, "candidate", -1))
        before = None if it is None else it.state
        ledger.apply(event, time_)
        if isinstance(event, ev.Proposed) and event.candidate:
            assert search.ask() == event.genome, f"candidate {event.candidate}"
        teaching.follow(event, before, replayed=False)


@pytest.mark.parametrize("private_bridge", [("--no-reference",)], indirect=True)  # what it knows it does not doubt
def test_with_one_group_a_search_that_is_killed_and_resumed_finds_what_the_unbroken_one_finds(
    experiment, tmp_path, private_bridge
):
    """The device remembers, so that latencies, too, are the same. Where the kill strikes is not in the test's hands,
    nor in which order exports and trainings end: those that are bred depend on it, and are asked for as if unbroken.
    """
    settings = ("--set", "search.evaluations=8", "--set", "search.algorithm=nsga2")
    search = (str(experiment), "--edge", str(private_bridge), "--set", 'edge.devices=["a"]', *settings, "--run")
    whole = start(3, tmp_path, *search, "whole")
    output, _ = whole.communicate(timeout=500)
    assert whole.returncode == 0, output
    run = tmp_path / "killed"
    job = start(3, tmp_path, *search, "killed")
    until(lambda: len(evaluated_in(run)) >= 5, job)
    kill_mpirun_and_all_ranks(job, tmp_path)
    resumed = start(3, tmp_path, "--resume", "--run", "killed", "--edge", str(private_bridge))
    output, _ = resumed.communicate(timeout=500)
    assert resumed.returncode == 0, output
    check_asks_as_if_unbroken(tmp_path / "whole")
    check_asks_as_if_unbroken(run)
    (_, unbroken, its_tested), (front, found, tested) = outcome(tmp_path / "whole"), outcome(run)
    assert found.keys() == unbroken.keys()
    same = [id_ for id_ in found if found[id_]["genome"] == unbroken[id_]["genome"]]
    assert same[:5] == [0, 1, 2, 3, 4], "the baseline, and those that are drawn, not bred"
    assert {id_: found[id_] for id_ in same} == {id_: unbroken[id_] for id_ in same}
    both = [id_ for id_ in same if id_ in tested and id_ in its_tested]
    assert 0 in both
    assert {id_: tested[id_] for id_ in both} == {id_: its_tested[id_] for id_ in both}
    points = {id_: tuple(it["objectives"].values()) for id_, it in found.items()}
    assert front == [id_ for id_, it in points.items() if not any(dominates(other, it) for other in points.values())]
