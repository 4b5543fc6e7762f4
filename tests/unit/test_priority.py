"""Sessions yield to the agent's while a job goes on: in a process that has a session of its own, as a terminal has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os
from pathlib import Path
from mpinas.priority import nice_process, nice_session, session_made_nice

def told():
    print(Path("/proc/self/autogroup").read_text().split()[-1], os.nice(0))

told()
with session_made_nice(7):
    told()
told()
nice_process(3)
nice_session(5)
told()
"""


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this Linux has no autogroups")
def test_a_session_yields_while_a_job_goes_on_and_not_afterwards():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60, start_new_session=True
    )
    start = int(done.stdout.split()[1])
    assert done.stdout.splitlines() == [f"0 {start}", f"7 {start}", f"0 {start}", f"5 {start + 3}"]
