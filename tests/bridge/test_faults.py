"""Each fault once, on real processes. `benchmarks/bridge_faults.py` tries each twenty times and keeps the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from faults import FAULTS, Fault, cut, try_fault

pytestmark = pytest.mark.timeout(200)
#: Short, and none that only takes longer: a cut of 3 s is longer than the heartbeats bear.
SHORT = {"stop-agent": (2.0, 2.0), "stop-tree": (2.0, 2.0), "full-disk": (0.5, 1.0), "clock": (0.5, 1.0)}
QUICK: dict[str, Fault] = {
    **{name: FAULTS[name] for name in ("kill-relay", "kill-device", "kill-model", "kill-job")},
    **{name: replace(FAULTS[name], lasts_s=lasts_s) for name, lasts_s in SHORT.items()},
    "cut": cut(3.0),
}
#: Not the five seconds of the judged figure: a test does not depend on speed. Long waits are found all the same.
BACK_S = 25.0


@pytest.mark.parametrize("name", QUICK)
def test_nothing_is_lost_nor_measured_twice(name: str, tmp_path: Path):
    fault = QUICK[name]
    obstacle = fault.obstacle()
    if obstacle is not None:
        pytest.skip(obstacle)
    outcome = try_fault(replace(fault, models=min(fault.models, 8)), tmp_path, seed=7)
    assert (outcome.lost, outcome.twice, outcome.hung) == (0, 0, 0), outcome
    assert outcome.errors <= fault.errors, outcome
    assert outcome.back_s < BACK_S, outcome
