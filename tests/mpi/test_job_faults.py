"""Whole jobs that break, each in one way: they end in time and say why, or go on; nothing is lost or done twice."""

from __future__ import annotations

import pytest
from job_faults import FAULTS, limit_s, trial, why_not

#: With which codes the job ends by a fault; None: it goes on. A rank that was killed is noticed by mpirun and by its
#: neighbours: whoever is first.
ENDS = {
    "SIGKILL coordinator": {137, 75},
    "SIGKILL leader": {137, 75},
    "SIGKILL member": {137, 75},
    "SIGKILL relay": None,
    "SIGKILL agent": None,
    "exception in training": None,
    "SIGSTOP a rank": {75},
    "out of memory": {137, 75},
    "disk full": {2},
}


#: Run apart: the leader is a trainer as the member is, and the agent a helper as the relay is.
VARIANTS = {"SIGKILL leader", "SIGKILL agent"}


def test_every_fault_is_expected_to_end_in_some_way():
    assert ENDS.keys() == FAULTS.keys()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[pytest.mark.variant] * (fault in VARIANTS)) for fault in FAULTS]
)
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
        assert outcome.code in ENDS[fault]
        assert outcome.ended_s <= limit_s(fault)
