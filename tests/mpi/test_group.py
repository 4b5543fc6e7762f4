"""A group of real Horovod ranks: it computes what one process with the whole batch computes, and survives failures."""

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


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_that_fails_costs_one_candidate_not_the_group(mpirun, ranks, tmp_path):
    (tmp_path / "experiment.toml").write_text('[task]\nname = "digits"\n')
    result = found(mpirun(ranks, PROGRAM, "failures", str(tmp_path)))
    kinds = [(kind, candidate, reason) for kind, candidate, reason, _ in result]
    assert kinds == [
        ("EvaluationFailed", 0, "error"),
        ("EvaluationFailed", 1, "memory"),
        ("EvaluationFailed", 2, "diverged"),
        ("Evaluated", 3, ""),
    ]
    assert result[0][3] == "ValueError: treason"
