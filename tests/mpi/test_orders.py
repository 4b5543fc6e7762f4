"""Orders to trainers through the real channel, real Horovod worlds: groups come and go, fail, continue and stop.

One job of each size plays all scenes (order_program.py); each test looks at one of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launching import run_mpi

#: A busy machine takes minutes to start five ranks.
pytestmark = pytest.mark.timeout(600)
PROGRAM = str(Path(__file__).with_name("order_program.py"))


@pytest.fixture(scope="module", params=[2, 3, 5])
def played(request, tmp_path_factory):
    """(world size, what came of each scene)."""
    folder = tmp_path_factory.mktemp(f"orders{request.param}")
    done = run_mpi(request.param, PROGRAM, "run", cwd=folder, timeout=500)
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    return request.param, json.loads(line[6:])


def test_every_trainer_says_that_it_is_there(played):
    ranks, found = played
    assert found["ready"] == list(range(1, ranks))


def test_regrouped_again_and_again_members_have_equal_parameters_and_nothing_is_left(played):
    ranks, found = played
    regrouped = found["regroup"]
    assert regrouped["wrong"] == []
    assert regrouped["orders"] == 200
    assert regrouped["sizes"] == list(range(1, ranks)), "groups of every size"
    assert found["communicators_left"] == [0] * ranks


def test_a_rank_that_fails_costs_one_order_and_neither_its_group_nor_others(played):
    ranks, found = played
    assert [reason for reason, _, _ in found["fail"]["failed"]] == ["error", "memory", "diverged"]
    assert found["fail"]["failed"][0][1] == "ValueError: treason", "the cause, not that a peer had left"
    assert all(others_went_on for _, _, others_went_on in found["fail"]["failed"])
    assert found["fail"]["next"] == ["Evaluated"] * min(2, ranks - 1)


def test_continued_with_as_many_other_ranks_it_is_bitwise_the_unbroken_training(played):
    ranks, found = played
    sizes = {2: [1], 3: [1, 2], 5: [1, 2, 3]}[ranks]
    expected = [[size, flips, True] for flips in (False, True) for size in sizes]
    assert found["continue"]["bitwise"] == expected
    assert found["continue"]["epochs"] == [1, 2, 3, 4] * len(expected), "progress counts epochs in all"


def test_continued_in_a_group_of_another_size_it_is_close(played):
    _, found = played
    assert len(found["continue"]["close"]) == 2
    assert max(found["continue"]["close"]) < 1e-4


def test_a_trainer_pauses_the_order_that_a_pause_names_and_no_other(played):
    _, found = played
    assert found["alone"] == {
        "paused": [1, 2, "Paused 1001.1 after 2"],
        "stale when idle and at work": [3, 4, 5, "Evaluated 1001.2"],
        "crossed the answer": [1, 2, "Evaluated 1002.1"],
        "in the last epoch": [3, "Evaluated 1002.2"],
        "after that": [4, 5, "Evaluated 1002.3"],
        "before work begins": [1, "Paused 1004.4 after 1"],
        "named after others": [2, "Paused 1004.5 after 2"],
        "retrained": [1, 2, "Retrained 1001.3"],
        "stopped at work": [[], ["Stopped"]],
        "stopped once paused": [[1, "Paused 1003.7 after 1"], ["Stopped"]],
        "stopped when idle": ["Stopped"],
        "in a world of one": [],
    }


def test_paused_and_continued_with_as_many_other_ranks_it_is_bitwise_the_unbroken_training(played):
    ranks, found = played
    sizes = {2: [1], 3: [1, 2], 5: [1, 2, 3]}[ranks]
    assert found["pause"]["bitwise"] == [[size, flips, True, [1, 2]] for flips in (False, True) for size in sizes]


def test_paused_by_one_all_go_on_from_there(played):
    _, found = played
    difference, epochs = found["pause"]["larger"]
    assert difference < 1e-6
    assert epochs == [1, 2]


def test_a_group_pauses_only_when_its_own_order_is_named(played):
    _, found = played
    assert found["pause"]["stale"] == ["Progress"] * 5 + ["Paused"]


def test_a_lost_checkpoint_is_reported_as_such(played):
    _, found = played
    kind, reason, detail = found["continue"]["lost"]
    assert (kind, reason) == ("EvaluationFailed", "checkpoint")
    assert "No such file" in detail


def test_a_finalist_is_trained_once_more_from_another_seed_and_no_file_changes(played):
    _, found = played
    (_, _, same, test, _), (_, _, other, other_test, _) = again = found["retrain"]["again"]
    assert [(kind, attempt, untouched) for kind, attempt, _, _, untouched in again] == [
        ("Retrained", 2, True),
        ("Retrained", 3, True),
    ]
    assert same == found["retrain"]["first"], "the same seed, the same training"
    assert other != same
    assert 0 < test["error"] < 0.6
    assert test != other_test
    assert found["retrain"]["bad"] == ["RetrainingFailed", "diverged"]


def test_told_to_stop_at_work_all_leave_and_nothing_is_reported_of_the_order(played):
    ranks, found = played
    assert sorted(found["stop"], key=lambda it: it[1]) == [["Stopped", rank] for rank in range(1, ranks)]
