"""A group of real Horovod ranks: it computes what one process with the whole batch computes."""

import json
from pathlib import Path

import pytest

PROGRAM = str(Path(__file__).with_name("group_program.py"))


def found(done):
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))[6:])


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_gradient_is_that_of_the_whole_batch(mpirun, ranks):
    result = found(mpirun(ranks, PROGRAM, "gradient"))
    assert result["ranks"] == ranks
    assert result["equal_on_all_ranks"]
    assert result["difference_to_one_process"] < 1e-3 * result["moved"]
    assert result["errors"][0] == pytest.approx(result["errors"][1], abs=0.01)
    assert result["entropies"][0] == pytest.approx(result["entropies"][1], rel=1e-3)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_batchnorm_statistics_are_equal_and_validation_is_that_of_one_process(mpirun, ranks):
    result = found(mpirun(ranks, PROGRAM, "buffers"))
    assert result["equal_on_all_ranks"]
    assert result["errors"][0] == result["errors"][1]
    assert result["entropies"][0] == pytest.approx(result["entropies"][1], rel=1e-5)


def test_the_leader_says_for_all_whose_device_is_lost_before_its_answer(mpirun):
    said = found(mpirun(3, PROGRAM, "lose"))
    assert said == [[["Withdrawn", 2], ["EvaluationFailed", None]], [], []]


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_that_hangs_ends_the_job_instead_of_hanging_it(mpirun, ranks):
    limits = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "1", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "2"}
    done = mpirun(ranks, PROGRAM, "hang", check=False, env=limits)
    assert done.returncode == 75, done.stdout + done.stderr
    assert f"a rank of a group of {ranks}" in done.stderr
    assert "has hung: the others have waited 2 s for it" in done.stderr
