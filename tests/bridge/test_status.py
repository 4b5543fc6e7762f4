"""`edge-bridge status`: what is told while a real relay comes and goes, and who is counted."""

from __future__ import annotations

import json
import os
import pty
import selectors
import signal
import subprocess
import sys
import time

import pytest
from bridge_processes import LIMIT_S, ROOT, Bridge, Process

from edge_bridge.cli.status import without_asker
from edge_bridge.wire.protocol import JobState


def watch(bridge: Bridge, *options: str) -> Process:
    return bridge.run("status", str(bridge.file), "--key", str(bridge.folder / "job.key"), "--watch", *options)


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_as_json_there_is_a_line_each_time_and_nothing_old_again(bridge: Bridge, ended_by: signal.Signals):
    relay = bridge.relay()
    watching = watch(bridge, "--json")
    assert json.loads(watching.line())["queued"] == 0
    relay.kill()
    while "error" not in (said := json.loads(watching.line())):
        assert said["queued"] == 0  # asked before the relay was killed
    assert list(said) == ["error"]
    assert said["error"].startswith("relay does not answer since ")
    later = json.loads(watching.line())
    assert list(later) == ["error"]
    bridge.relay()
    while "error" in (said := json.loads(watching.line())):
        pass
    assert said["uptime_s"] < LIMIT_S
    watching.popen.send_signal(ended_by)
    assert watching.popen.wait(LIMIT_S) == 0
    assert "Traceback" not in watching.log.read_text()


def test_on_a_screen_an_outage_stands_there_alone(bridge: Bridge):
    relay = bridge.relay()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "edge_bridge", "status", str(bridge.file), "--key", str(bridge.folder / "job.key")]
    watching = subprocess.Popen(
        [*command, "--watch"], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "200"},
    )  # fmt: skip
    os.close(theirs)
    try:
        read_until(ours, "no device is registered")
        relay.kill()
        read_until(ours, "relay does not answer since")
        # Erased before it, and not drawn again.
        assert "no device is registered" not in read_until(ours, "relay does not answer since")
    finally:
        watching.send_signal(signal.SIGINT)
        assert watching.wait(LIMIT_S) == 0
        os.close(ours)


def read_until(terminal: int, wanted: str) -> str:
    shown, end_s = "", time.monotonic() + LIMIT_S
    with selectors.DefaultSelector() as selector:
        selector.register(terminal, selectors.EVENT_READ)
        while wanted not in shown:
            assert selector.select(end_s - time.monotonic()), shown
            shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


def test_a_devices_key_is_named_as_such(bridge: Bridge):
    bridge.relay()
    refused = bridge.run("status", str(bridge.file), "--key", str(bridge.folder / "device.key"))
    assert refused.popen.wait(LIMIT_S) == 2
    (line,) = refused.log.read_text().splitlines()
    assert "add its .pub line, of role job" in line
    assert line.endswith("device.key is a device key)")


def job(name: str, answered: int = 0) -> JobState:
    return JobState(name=name, queued=0, running=0, answered=answered)


def test_the_command_is_left_out_of_the_jobs_where_it_can_be_told():
    busy, mine, other = job("anna", answered=3), job("anna"), job("ben")
    assert without_asker([busy, mine]) == ([busy], "")
    assert without_asker([mine, busy, mine]) == ([busy, mine], "")
    jobs, note = without_asker([other, mine])
    assert (jobs, note) == ([other, mine], "one of the jobs without requests is this command")
