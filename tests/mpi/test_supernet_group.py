"""A supernet trained by real Horovod ranks: replicas stay equal, and a training goes on as if never stopped."""

import json
from pathlib import Path

import pytest

PROGRAM = str(Path(__file__).with_name("supernet_program.py"))


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_train_one_supernet(mpirun, ranks):
    done = mpirun(ranks, PROGRAM)
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))[6:])
    assert found == {
        "ranks": ranks,
        "started_apart": True,
        "learned": True,
        "equal_on_all_ranks": True,
        "same_error_on_all_ranks": True,
        "recalibrated_alike": True,
        "resumed_is_unbroken": True,
        "gradient_is_the_mean": True,
    }
