"""Exporters as real child processes: what they answer, and what a dead one costs."""

from __future__ import annotations

import os
import select
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from torch.onnx._internal.exporter import _registration

from mpinas.errors import UserError
from mpinas.models import Networks, make_space
from mpinas.training.deployed import Deployed
from mpinas.training.export import export_onnx, get_ready
from mpinas.training.exporter import EXPORT_LIMIT_S, Exporters, Reply, Request

LIMIT_S = 120.0
SHAPE, OUTPUTS = (1, 8, 8), 10


@pytest.fixture
def exporters(tmp_path: Path) -> Iterator[Exporters]:
    made = Exporters(2, tmp_path / "exporter.log", os.environ)
    yield made
    made.close()


def request(folder: Path, candidate: int) -> Request:
    genome = make_space("cnn3d", SHAPE, {}).sample(np.random.default_rng(candidate))
    return Request(candidate, genome, "cnn3d", SHAPE, OUTPUTS, str(folder / f"{candidate}.onnx"))


def wait_for(exporters: Exporters, count: int) -> dict[int, Reply]:
    found: dict[int, Reply] = {}
    end_s = time.monotonic() + LIMIT_S
    while len(found) < count:
        assert time.monotonic() < end_s, f"not in time; came: {found}"
        with selectors.DefaultSelector() as selector:
            for descriptor in exporters.descriptors():
                selector.register(descriptor, selectors.EVENT_READ)
            selector.select(1.0)
        found |= {reply.candidate: reply for reply in exporters.poll()}
    return found


def children() -> list[int]:
    """Process ids of this process' exporters, the oldest first."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == os.getpid() and b"mpinas.training.exporter" in command:
            found.append(int(entry.name))
    return sorted(found)


def test_every_request_is_answered_by_a_file_that_runs(exporters: Exporters, tmp_path: Path):
    for candidate in range(3):
        exporters.submit(request(tmp_path, candidate))
    replies = wait_for(exporters, 3)
    for candidate in range(3):
        path = tmp_path / f"{candidate}.onnx"
        deployed = Deployed(path)
        assert deployed.run(np.zeros((2, *deployed.input_shape), np.uint8)).shape == (2, OUTPUTS)
        reply = replies[candidate]
        assert (reply.error, reply.size_bytes) == ("", path.stat().st_size)
        assert reply.parameters > 0
        assert 0 < reply.seconds < LIMIT_S
    assert len(children()) == 2


def test_a_killed_exporter_costs_no_candidate(exporters: Exporters, tmp_path: Path):
    for candidate in range(2):
        exporters.submit(request(tmp_path, candidate))
    wait_for(exporters, 2)  # both are ready
    for candidate in range(2, 6):  # 2 and 4 wait for the first, 3 and 5 for the second
        exporters.submit(request(tmp_path, candidate))
    os.kill(children()[0], signal.SIGKILL)
    assert [reply.error for reply in wait_for(exporters, 4).values()] == [""] * 4
    assert len(children()) == 2


class Jumping:
    """A clock of the job that goes on by leaps."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


def test_an_export_that_takes_too_long_is_given_up_but_not_for_time_in_which_the_job_was_stopped(
    exporters: Exporters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for candidate in range(2):
        exporters.submit(request(tmp_path, candidate))
    wait_for(exporters, 2)  # both are ready
    clock = Jumping()
    monkeypatch.setattr("mpinas.training.exporter.time", clock)
    for pid in children():
        os.kill(pid, signal.SIGSTOP)
    exporters.submit(request(tmp_path, 2))
    clock.ahead_s += 100_000.0
    assert exporters.poll() == []
    for _ in range(int(EXPORT_LIMIT_S) // 5 - 1):
        clock.ahead_s += 5.0
        assert exporters.poll() == []
    clock.ahead_s += 9.0
    (reply,) = exporters.poll()
    assert reply.candidate == 2
    assert "took longer than 300 s" in reply.error


DEADLY = """
import os, signal

class Space:
    baseline = None

    def search_space(self, input_shape):
        raise NotImplementedError

    def build(self, genome, input_shape, outputs):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_candidates_that_kill_two_exporters_each_are_given_up_and_the_others_go_on(
    exporters: Exporters, tmp_path: Path
):
    (tmp_path / "own.py").write_text(DEADLY)
    for candidate in range(6):
        wanted = request(tmp_path, candidate)
        deadly = msgspec.structs.replace(wanted, space=f"{tmp_path / 'own.py'}:Space")
        exporters.submit(deadly if candidate in {0, 2} else wanted)  # both go to the first
    replies = wait_for(exporters, 6)
    told = {candidate for candidate, reply in replies.items() if "the exporter was killed twice" in reply.error}
    assert told == {0, 2}
    assert [replies[candidate].error for candidate in (1, 3, 4, 5)] == [""] * 4


def test_an_exporter_killed_at_its_start_costs_no_candidate(exporters: Exporters, tmp_path: Path):
    for candidate in range(2):
        exporters.submit(request(tmp_path, candidate))
    os.kill(children()[0], signal.SIGKILL)
    replies = wait_for(exporters, 2)
    assert [reply.error for reply in replies.values()] == ["", ""]


def test_a_signal_that_asks_the_job_to_end_costs_no_candidate(exporters: Exporters, tmp_path: Path):
    """Slurm sends it to every process of a step."""
    for candidate in range(2):
        exporters.submit(request(tmp_path, candidate))
    wait_for(exporters, 2)  # both are ready
    before = children()
    for candidate in range(2, 4):
        exporters.submit(request(tmp_path, candidate))
    for child in before:
        os.kill(child, signal.SIGTERM)
    assert [reply.error for reply in wait_for(exporters, 2).values()] == ["", ""]
    assert children() == before


ABANDONED = """
import os, sys, time
from pathlib import Path
from mpinas.training.exporter import Exporters, Request

exporters = Exporters(1, Path("exporter.log"), os.environ)
exporters.submit(Request(0, {}, "endless.py:Space", (1, 8, 8), 10, "0.onnx"))
while not Path("busy").exists():
    time.sleep(0.05)
print(Path("busy").read_text(), flush=True)
time.sleep(1000)
"""
ENDLESS = DEADLY.replace(
    "os.kill(os.getpid(), signal.SIGKILL)",
    """
        open("busy.part", "w").write(str(os.getpid()))
        os.rename("busy.part", "busy")
        signal.pause()""",
)


def test_a_busy_exporter_dies_with_its_job(tmp_path: Path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    job = subprocess.Popen([sys.executable, "-c", ABANDONED], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    exporter = int(job.stdout.readline())
    gone = os.pidfd_open(exporter)
    job.kill()
    job.wait()
    job.stdout.close()
    assert select.select([gone], [], [], LIMIT_S)[0], "it lives on"
    os.close(gone)


def test_exporters_that_never_begin_end_the_job(tmp_path: Path):
    (tmp_path / "torch.py").write_text("raise SystemExit('no torch')")
    exporters = Exporters(2, tmp_path / "exporter.log", os.environ | {"PYTHONPATH": str(tmp_path)})
    try:
        exporters.submit(request(tmp_path, 0))
        with pytest.raises(UserError, match="exporters ended 4 times in a row"):
            wait_for(exporters, 1)
    finally:
        exporters.close()
    assert "no torch" in (tmp_path / "exporter.log").read_text()


def test_what_cannot_be_exported_is_told(exporters: Exporters, tmp_path: Path):
    exporters.submit(Request(7, {"no": "gene"}, "cnn3d", SHAPE, OUTPUTS, str(tmp_path / "7.onnx")))
    assert wait_for(exporters, 1)[7].error.startswith("KeyError")


def test_a_process_that_got_ready_writes_the_same_files(tmp_path: Path):
    genome, networks = request(tmp_path, 0).genome, Networks("cnn3d", SHAPE, OUTPUTS)
    network, shape = networks.build(genome), networks.shape(genome)
    export_onnx(network, shape, tmp_path / "first.onnx", {})
    parse = _registration.onnxscript_apis.get_torchlib_ops
    parse.cache_clear()  # whatever else was exported here: the next file is made of operators that are parsed for it
    export_onnx(network, shape, tmp_path / "before.onnx", {})
    get_ready()
    export_onnx(network, shape, tmp_path / "after.onnx", {})
    assert (tmp_path / "before.onnx").read_bytes() == (tmp_path / "after.onnx").read_bytes()
    assert (parse.cache_info().misses, parse.cache_info().hits) == (1, 2), "operators are parsed once"


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("Misspelt", "AttributeError: 'Misspelt' object has no attribute 'conv'"),
        ("Wide", "ValueError: the network gives 64 numbers for each sample, and the task has 10"),
    ],
)
def test_a_network_is_told_by_what_is_wrong_with_it(exporters, tmp_path, kind, says):
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "class Space:\n    baseline = search_space = None\n"
        "    def build(self, genome, shape, outputs): return globals()[genome['kind']]()\n"
        "class Wide(nn.Module):\n    def forward(self, frames): return frames.float().flatten(1)\n"
        "class Misspelt(nn.Module):\n    def forward(self, frames): return self.conv(frames)\n"
    )
    file = tmp_path / "0.onnx"
    exporters.submit(Request(0, {"frames": 1, "kind": kind}, f"{tmp_path}/own.py:Space", SHAPE, OUTPUTS, str(file)))
    assert wait_for(exporters, 1)[0].error == says
    assert not file.exists()
