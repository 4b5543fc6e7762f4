"""`edge-bridge status --watch`: what is told while the relay comes and goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edge_bridge.errors import BridgeUnreachableError
from edge_bridge.wire.protocol import State

#: By its name, for the package calls the command itself so.
command = import_module("edge_bridge.cli.status")
AWAY = "the relay has not answered within 10 s: is it running?"


class Client:
    def close(self) -> None:
        pass


def state(answered: int) -> State:
    return State(
        devices=[], jobs=[], queued=0, running=0, bytes_held=0, answered_per_minute=answered, uptime_s=1.0,
        last_error="", last_error_ago_s=None,
    )  # fmt: skip


@pytest.fixture
def watch(monkeypatch, tmp_path):
    """Watch a relay that answers, is away twice, answers again; then the user ends it."""

    def run(*options: str) -> Result:
        said: Iterator[State | BaseException] = iter(
            [state(1), BridgeUnreachableError(AWAY), BridgeUnreachableError(AWAY), state(2), KeyboardInterrupt()]
        )

        def ask(client: object, timeout_s: float) -> State:
            found = next(said)
            if isinstance(found, BaseException):
                raise found
            return found

        monkeypatch.setattr(command, "EVERY_S", 0.0)
        monkeypatch.setattr(command, "_ask", ask)
        monkeypatch.setattr(command.BridgeClient, "open", lambda *_: Client())
        path: Path = tmp_path / "BRIDGE.json"
        path.write_text(json.dumps({
            "protocol": "MPINAS-EDGE/1", "job_endpoint": "ipc:///a", "device_endpoint": "ipc:///b",
            "relay_public_key": None,
        }))  # fmt: skip
        return CliRunner().invoke(command.status, [str(path), "--watch", *options])

    return run


def test_as_json_there_is_a_line_each_time_and_nothing_else(watch):
    done = watch("--json")
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each.get("answered_per_minute") for each in lines] == [1, None, None, 2]
    assert lines[1] == lines[2] == {"error": AWAY}


def test_on_a_screen_an_outage_stands_there_until_it_is_over(watch):
    done = watch()
    assert done.exit_code == 0, done.output
    assert "2 answered in the last minute" in done.stdout
