"""Whole jobs that break, each in one way: they end in time and say why, or go on; nothing is lost or done twice."""

from __future__ import annotations

import pytest
from job_faults import FAULTS, STALL_S, trial, why_not

#: With which codes the job ends by a fault, and within how many seconds; None: it goes on. A rank that was killed is
#: noticed by mpirun and by its neighbours: whoever is first. A stall is noticed in its own time.
ENDS = {
    "SIGKILL coordinator": ({137, 75}, 30.0),
    "SIGKILL leader": ({137, 75}, 30.0),
    "SIGKILL member": ({137, 75}, 30.0),
    "SIGKILL relay": None,
    "SIGKILL agent": None,
    "exception in training": None,
    "SIGSTOP a rank": ({75}, STALL_S + 30.0),
    "disk full": ({2}, 30.0),
}


def test_every_fault_is_expected_to_end_in_some_way():
    assert ENDS.keys() == FAULTS.keys()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_job_survives(fault, tmp_path):
    if why := why_not(fault):
        pytest.skip(why)
    outcome = trial(fault, 0, tmp_path)
    assert outcome.named, outcome.remark
    assert (outcome.twice, outcome.lost, outcome.again, outcome.finished) == (0, 0, 0, True), outcome.remark
    assert (outcome.hung, outcome.left) == (0, 0), outcome.remark
    if ENDS[fault] is None:
        assert outcome.code == 0
    else:
        codes, limit_s = ENDS[fault]
        assert outcome.code in codes
        assert outcome.ended_s <= limit_s
