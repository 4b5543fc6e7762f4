"""Small searches as jobs: their experiment and job script, and what their run folder must hold in the end."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.history import journal
from mpinas.history.run_folder import RunFolder
from mpinas.report import results
from mpinas.slurm.jobscript import Request, render
from mpinas.slurm.system import load_system

EXPERIMENT = """
[task]
{task}
[search]
evaluations = {evaluations}
seed = 3
population = 4
[training]
group_size = 1
epochs = {epochs}
stall_seconds = {stall_s}
[edge]
exporters = 1
"""

#: Sooner than the tests' Slurm gives up a node that is cut off (SlurmdTimeout): the ranks there have then let go of
#: the run folder before the next job wants it, as with both defaults (60 and 300 s).
STALL_S = 25

#: A user's own machine, small enough for these tests; further keys follow.
SYSTEM = """
title = "a small machine of the tests"
architecture = "x86_64"
account = false
cpu_bind = "cores"
"""


@dataclass(frozen=True)
class Submission:
    """A folder as a user would prepare it: experiment.toml, the environment, and job scripts to submit from there."""

    folder: Path

    @property
    def run(self) -> Path:
        """The run folder of all job scripts made here."""
        return self.folder / "runs" / "experiment"

    def prepare(self, evaluations: int = 4, epochs: int = 2, epoch_s: float = 0.0) -> None:
        """Write the experiment. `epoch_s`: how long an epoch lasts at least, whatever the machine."""
        task = 'name = "digits"'
        if epoch_s:
            shutil.copy(Path(__file__).parents[1] / "mpi" / "slow_digits.py", self.folder)
            task = f'name = "slow_digits.py:SlowDigits"\noptions = {{epoch_seconds = {epoch_s}}}'
        text = EXPERIMENT.format(task=task, evaluations=evaluations, epochs=epochs, stall_s=STALL_S)
        (self.folder / "experiment.toml").write_text(text)

    def script(self, system: str, nodes: int, time: str = "0:10:00", **more: str) -> Path:
        """The job script for a shipped system, or for the text of an own one."""
        if "\n" in system:
            own = self.folder / "own.toml"
            own.write_text(SYSTEM + system)
            system = str(own)
        environment = self.folder / ".venv"  # as the script has it
        if not environment.exists():
            environment.symlink_to(sys.prefix)
        path = self.folder / "job.sh"
        path.write_text(render(load_system(system), Request(nodes=nodes, time=time, **more)))
        return path

    def output(self) -> str:
        """What the jobs from here printed."""
        return "".join(file.read_text() for file in sorted(self.folder.glob("mpinas-*.out")))


def events(run: Path) -> list[ev.Event]:
    """The journal of a run, oldest first; none if it has not begun."""
    file = RunFolder(run).journal_file
    return [event for _, event in journal.read(file)] if file.is_file() else []


def evaluations(run: Path) -> Counter[int]:
    """How often each candidate was evaluated."""
    return Counter(event.candidate for event in events(run) if isinstance(event, msg.Evaluated))


def epochs_trained(run: Path) -> Counter[tuple[int, int]]:
    """How often each epoch of each candidate was trained."""
    return Counter((event.candidate, event.epoch) for event in events(run) if isinstance(event, msg.Progress))


def begun(run: Path) -> list[int]:
    """With how many trainers each job on this run folder began."""
    return [event.trainers for event in events(run) if isinstance(event, ev.Begun)]


def check_finished(run: Path, wanted: int) -> None:
    """The search has evaluated `wanted` candidates, each once, and holds what it should."""
    folder = RunFolder.existing(run)
    found = results.as_dict(results.load(folder), folder)
    assert found["finished"]
    complete = {candidate["id"] for candidate in found["candidates"] if candidate["state"] == "EVALUATED"}
    assert len(complete) == wanted
    assert evaluations(run) == dict.fromkeys(complete, 1)
    for candidate in {*found["front"], found["baseline"]}:
        assert folder.onnx_file(candidate).is_file()
