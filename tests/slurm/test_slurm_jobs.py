"""Searches as jobs of a real Slurm: started by srun, and by the job scripts as `mpinas jobscript` writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from submissions import Submission, begun, check_finished

SEATS = Path(__file__).with_name("seats_program.py")
#: What stands in the job scripts for the search.
SEARCH = "python -m mpinas search"


@pytest.fixture
def submission(tmp_path):
    made = Submission(tmp_path)
    made.prepare()
    return made


def test_a_search_started_by_srun(one_node, submission):
    done = one_node.run(
        "srun", "--mpi=pmix", "-n", "3", "python", "-m", "mpinas", "search", "experiment.toml",
        "--run", "runs/experiment", cwd=submission.folder, timeout=280,
    )  # fmt: skip
    assert "3 ranks: rank 0 coordinates, 2 trainer(s)" in done.stdout
    check_finished(submission.run, 4)
    assert begun(submission.run) == [2]


def finished(slurm, submission, script, limit_s=280):
    number = slurm.submit(script, cwd=submission.folder)
    job = slurm.wait(number, limit_s)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "0"), submission.output()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("system", "layout", "trainers"),
    [
        ("generic-cpu", "extra-task", 7),
        pytest.param("generic-gpu", "extra-task", 4, marks=pytest.mark.variant),
        ("generic-gpu", "heterogeneous", 4),
    ],
)
def test_a_search_by_a_shipped_job_script(three_nodes, submission, system, layout, trainers):
    script = submission.script(system, 1, layout=layout)
    finished(three_nodes, submission, script, limit_s=500)
    check_finished(submission.run, 4)
    assert begun(submission.run) == [trainers]


def seats(submission):
    """What seats_program.py printed in the place of the search."""
    (line,) = [line for line in submission.output().splitlines() if line.startswith("SEATS")]
    return json.loads(line.removeprefix("SEATS"))


def in_place_of_the_search(script):
    """Let a rendered script start seats_program.py as it would start the search."""
    text = script.read_text()
    assert SEARCH in text
    script.write_text(text.replace(SEARCH, f"python {SEATS}"))
    return script


def trainers(hosts, threads):
    """Seats of four trainers on each host, which see one GPU each."""
    places = [(host, str(gpu)) for host in hosts for gpu in range(4)]
    return [{"rank": rank, "host": host, "gpus": gpu, "threads": threads} for rank, (host, gpu) in enumerate(places, 1)]


@pytest.mark.parametrize(
    ("layout", "place", "threads"),
    [("extra-task", ("gpu1", "6"), "6"), ("heterogeneous", ("cpu1", "4"), "8")],
)
def test_one_world_where_each_trainer_has_its_own_gpu_and_rank_0_none(three_nodes, submission, layout, place, threads):
    script = submission.script("generic-gpu", 2, layout=layout)
    finished(three_nodes, submission, in_place_of_the_search(script))
    first, *others = seats(submission)
    assert first == {"rank": 0, "host": place[0], "gpus": "", "threads": place[1]}
    assert others == trainers(["gpu1", "gpu2"], threads)


def test_a_world_of_cores(three_nodes, submission):
    script = submission.script("generic-cpu", 1)
    finished(three_nodes, submission, in_place_of_the_search(script))
    expected = [{"rank": rank, "host": "cpu1", "gpus": None, "threads": "4"} for rank in range(8)]
    assert seats(submission) == expected
