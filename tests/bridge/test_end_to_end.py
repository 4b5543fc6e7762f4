"""The bridge as its users see it: real processes, CURVE over loopback, faults and all."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import bridge_models as models
import pytest
import zmq
from bridge_processes import LIMIT_S, Bridge, children_of, is_alive, kill, until, until_true

from edge_bridge.cli import OneLine
from edge_bridge.client import (
    BridgeClient,
    DevicesChanged,
    Measured,
    MeasurementFailed,
    Progressed,
    RelayBack,
    RelayLost,
)
from edge_bridge.errors import BridgeUnreachableError, KeyRefusedError
from edge_bridge.wire.protocol import RELAY_TO_JOB, Error, decode, encode, measure_of
from edge_bridge.wire.quantities import Settings

pytestmark = pytest.mark.timeout(120)
QUICK = Settings(min_seconds=0.01, max_seconds=5.0, warmup_max_seconds=0.2, attempts=1)
#: Long enough that a fault in the middle of it is in the middle of it.
LONG = Settings(min_seconds=3.0, max_seconds=3.0, warmup_max_seconds=0.1, attempts=1)


def _measured(event) -> bool:
    return isinstance(event, Measured)


def _ended(event) -> bool:
    return isinstance(event, Measured | MeasurementFailed)


def _measuring(event) -> bool:
    return isinstance(event, Progressed) and event.phase == "measuring"


def test_a_model_is_measured_over_curve(bridge: Bridge):
    bridge.relay()
    device = bridge.device()
    assert device.line() == "registered dut"
    client = bridge.client()
    request_id = client.submit(models.linear(), QUICK)
    events = until(client, _measured)
    phases = [event.phase for event in events if isinstance(event, Progressed)]
    assert phases == ["loading", "loading", "warming", "measuring"]
    found = events[-1]
    assert found.request_id == request_id
    measurement = found.measurement
    assert 0 < measurement.min_s <= measurement.p50_s <= measurement.p90_s <= measurement.p95_s <= measurement.p99_s
    assert measurement.samples >= 64
    assert measurement.complete
    assert (measurement.device, measurement.batch, measurement.input_shape) == ("dut", 1, [1, 16])
    assert (measurement.input_type, measurement.threads) == ("float32", 1)
    assert measurement.peak_memory_bytes > 0
    assert "onnxruntime" in measurement.versions
    assert client.outstanding == 0
    assert [each.name for each in client.devices] == ["dut"]
    assert device.terminate() == 0
    until(client, lambda event: isinstance(event, DevicesChanged) and not event.devices)
    client.close()


def test_a_repeated_request_is_answered_from_the_store(bridge: Bridge):
    bridge.relay()
    device = bridge.device()
    client = bridge.client()
    client.submit(models.linear(), QUICK)
    first = until(client, _measured)[-1]
    device.kill()
    bridge.device()
    client.submit(models.linear(), QUICK)
    second = until(client, _measured)[-1]
    assert second.measurement == first.measurement
    client.close()
    rows = sqlite3.connect(bridge.folder / "state" / "results.sqlite").execute("SELECT count(*) FROM results")
    assert rows.fetchone() == (1,)


def test_an_unknown_job_key_is_refused(bridge: Bridge):
    bridge.relay()
    with pytest.raises(KeyRefusedError, match=r"does not know this job's key: add its \.pub line"):
        bridge.client("stranger")
    bridge.allow("stranger")
    bridge.client("stranger").close()


def test_a_key_taken_off_the_list_is_shut_out_at_once(bridge: Bridge):
    bridge.relay()
    client = bridge.client()
    (bridge.allowed / "job.pub").unlink()
    client.submit(models.linear(), QUICK)
    until(client, lambda event: isinstance(event, RelayLost))
    with pytest.raises(KeyRefusedError):
        bridge.client()
    client.close()


def test_a_device_with_an_unknown_key_ends_with_one_line(bridge: Bridge):
    bridge.relay()
    device = bridge.device(key="stranger")
    assert device.popen.wait(LIMIT_S) == 2
    last = device.log.read_text().splitlines()[-1]
    assert last.startswith("edge-bridge: relay tcp://127.0.0.1:")
    assert "does not know this device's key" in last


def test_a_plain_client_gets_nothing(bridge: Bridge):
    bridge.relay()
    plain = zmq.Context.instance().socket(zmq.DEALER)
    plain.linger = 0
    monitor = plain.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
    plain.connect(bridge.connection.job_endpoint)
    assert monitor.poll(LIMIT_S * 1000)
    assert int.from_bytes(monitor.recv_multipart()[0][:2], "little") == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    plain.disable_monitor()
    monitor.close()
    plain.close()
    bridge.client().close()


def test_no_relay_is_one_line(bridge: Bridge):
    bridge.relay().kill()
    with pytest.raises(BridgeUnreachableError, match=r"no relay at tcp://127\.0\.0\.1:\d+ within 0\.5 s"):
        BridgeClient.open(bridge.connection, bridge.key(), timeout_s=0.5)


def test_a_device_killed_while_it_measures_costs_a_delay(bridge: Bridge):
    bridge.relay()
    device = bridge.device()
    client = bridge.client()
    client.submit(models.linear(512), LONG)
    until(client, _measuring)
    (server,) = children_of(device.popen.pid)
    (model_process,) = children_of(server)
    device.kill()
    until(client, lambda event: isinstance(event, DevicesChanged) and not event.devices)
    until_true(lambda: not is_alive(server) and not is_alive(model_process))
    bridge.device()
    events = until(client, _measured)
    assert any(isinstance(event, DevicesChanged) and event.devices for event in events)
    client.close()


def test_a_relay_killed_and_started_again_loses_nothing(bridge: Bridge):
    relay = bridge.relay()
    bridge.device()
    client = bridge.client()
    in_flight = client.submit(models.linear(512), LONG)
    queued = client.submit(models.linear(seed=2), QUICK)
    until(client, _measuring)
    relay.kill()
    until(client, lambda event: isinstance(event, RelayLost))
    bridge.relay()
    events = until(client, lambda event: _measured(event) and event.request_id == queued)
    assert any(isinstance(event, RelayBack) for event in events)
    assert [event.request_id for event in events if _measured(event)] == [in_flight, queued]
    client.close()
    rows = sqlite3.connect(bridge.folder / "state" / "results.sqlite").execute("SELECT count(*) FROM results")
    assert rows.fetchone() == (2,)


def test_a_job_that_vanishes_is_forgotten(bridge: Bridge):
    bridge.relay()
    first, second = bridge.client(), bridge.client()
    first.submit(models.linear(seed=1), QUICK)
    first.submit(models.linear(seed=2), QUICK)
    wanted = second.submit(models.linear(seed=3), QUICK)
    first.close()

    def queued() -> int:
        watcher = bridge.client()
        watcher.close()
        assert watcher.welcome is not None
        return watcher.welcome.queued

    until_true(lambda: queued() == 1)
    bridge.device()
    assert until(second, _measured)[-1].request_id == wanted
    second.close()


BAD_MODELS = {
    "not ONNX": (b"import os; os.abort()", "bad-model"),
    "truncated": (models.linear()[:200], "bad-model"),
    "no input of ours": (models.free_second_dimension(), "unsupported"),
    "wants 16 TB": (models.greedy(), "out-of-memory"),
    "never returns": (models.endless(), "time-out"),
}


def test_a_bad_model_fails_and_the_service_goes_on(bridge: Bridge):
    bridge.relay()
    device = bridge.device()
    client = bridge.client()
    for model, reason in BAD_MODELS.values():
        client.submit(model, QUICK)
        failed = until(client, _ended)[-1]
        assert isinstance(failed, MeasurementFailed), failed
        assert failed.reason == reason, failed
    client.submit(models.linear(), QUICK)
    assert isinstance(until(client, _ended)[-1], Measured)
    assert device.popen.poll() is None
    client.close()


def test_a_model_that_crashes_its_process_fails_and_the_service_goes_on(bridge: Bridge):
    bridge.relay()
    device = bridge.device()
    client = bridge.client()
    for whose in ("the model's process", "the measuring child"):
        client.submit(models.linear(512), LONG)
        until(client, _measuring)
        (server,) = children_of(device.popen.pid)
        kill(server if whose == "the measuring child" else children_of(server)[0])
        failed = until(client, _ended)[-1]
        assert (failed.reason, whose in failed.detail) == ("crashed", True)
    client.submit(models.linear(), QUICK)
    assert isinstance(until(client, _ended)[-1], Measured)
    client.close()


def test_wrong_bytes_are_not_measured(bridge: Bridge):
    bridge.relay()
    bridge.device()
    client = bridge.client()
    model = models.linear()
    client.sockets[0].send_multipart(encode(measure_of(model, QUICK), [model[:-1] + b"?"]))
    request_id = client.submit(model, QUICK)
    failed = until(client, _ended)[-1]
    assert (failed.request_id, failed.reason) == (request_id, "bad-digest")
    client.close()


def test_a_job_that_breaks_the_protocol_is_told_and_the_service_goes_on(bridge: Bridge):
    relay = bridge.relay()
    bridge.device()
    client = bridge.client()
    rude = bridge.client()
    for frames in ([b"hello"], [b"MPINAS-EDGE/9", b"HELLO", b"{}"], [b"MPINAS-EDGE/1", b"TASK", b"{}"]):
        rude.sockets[0].send_multipart(frames)
        while True:
            assert rude.sockets[0].poll(LIMIT_S * 1000)
            header = decode(rude.sockets[0].recv_multipart(), RELAY_TO_JOB).header
            if isinstance(header, Error):
                break
        assert header.code in ("malformed", "version")
    client.submit(models.linear(), QUICK)
    assert isinstance(until(client, _ended)[-1], Measured)
    assert bridge.key().public in relay.log.read_text()
    client.close()
    rude.close()


def test_two_agents_do_not_share_a_state_folder(bridge: Bridge):
    bridge.relay()
    bridge.device().line()
    second = bridge.device()
    assert second.popen.wait(LIMIT_S) == 2
    assert "another agent uses state folder" in second.log.read_text().splitlines()[-1]


def test_services_end_with_their_standard_input(bridge: Bridge):
    bridge.relay()
    device = bridge.device("--exit-with-stdin")
    device.line()
    device.popen.stdin.close()
    assert device.popen.wait(LIMIT_S) == 0


def test_measure_prints_json(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(models.linear(element=2))
    command = [sys.executable, "-m", "edge_bridge", "measure", str(path), "--json", "--batch", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    found = json.loads(done.stdout)
    assert (found["input_shape"], found["input_type"]) == ([3, 16], "uint8")
    assert found["samples"] >= 64


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["measure", "nothing.onnx"], "model nothing.onnx cannot be read"),
        (["status", "nothing.json"], "connection file nothing.json cannot be read"),
        (["relay"], "a relay on a network needs --key and --allow"),
        (["relay", "--local", "nothing"], "folder nothing for a local bridge"),
        (["measure", __file__, "--runtime", "unheard-of"], "no runtime unheard-of"),
        (["measure", __file__, "--batch", "0"], "settings: "),
        (["keygen", ".", "--role", "job", "--name", "me"], "give a file's name, not a folder"),
        (["keygen", "x" * 300, "--role", "job", "--name", "me"], "File name too long"),
        (["device", "nothing.json", "--name", "x" * 200], "will not do: give --name, at most 64 letters"),
        (["device", "nothing.json", "--name", "../../x"], "device name '../../x' will not do"),
        (["device", "nothing.json", "--name", "any"], "device name 'any' will not do"),
        (["device", "nothing.json", "--name", "a b"], "device name 'a b' will not do"),
        (["device", "nothing.json", "--provider", "abacus"], "provider abacus is not in this onnxruntime"),
        (["device", "nothing.json", "--runtime", "unheard-of"], "no runtime unheard-of"),
        (["device", "nothing.json", "--memory-limit-mb", "5"], "--memory-limit-mb must be 0 or at least 256, not 5"),
        (["check", "--name", "..", "nothing.json"], "device name '..' will not do"),
        (["measure", "/dev/zero"], "model /dev/zero cannot be read: not a plain file"),
        (["measure", __file__], "(bad-model): it is not an ONNX model"),
        (["measure", __file__, "--precision", "fp16"], "onnxruntime with cpu runs a model in its own precision only"),
        (["status", "device.pub"], "device.pub is no connection file: give the BRIDGE.json that"),
        (["keygen", "nowhere/me", "--role", "job"], "there is no folder nowhere"),
        (["relay", "--job-port", "99999"], "--job-port must be at least 0 and at most 65535, not 99999"),
        (["relay", "--device-port", "-1"], "--device-port must be at least 0 and at most 65535, not -1"),
        (["device", "login:B.json", "--ssh-option", "-p '2222"], '--ssh-option "-p \'2222" cannot be split'),
    ],
)
def test_what_the_user_can_mend_is_one_line(tmp_path, arguments, says):
    command = [sys.executable, "-m", "edge_bridge", "--log-level", "warning", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=tmp_path, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert says in line
    assert done.stdout == ""


def test_keygen_writes_a_secret_that_nobody_else_reads(tmp_path):
    (tmp_path / "keys").mkdir()
    command = [sys.executable, "-m", "edge_bridge", "keygen", "keys/mine", "--role", "job"]
    subprocess.run(command, timeout=LIMIT_S, cwd=tmp_path, check=True, capture_output=True)
    assert stat.S_IMODE((tmp_path / "keys/mine.key").stat().st_mode) == 0o600
    again = subprocess.run(command, timeout=LIMIT_S, cwd=tmp_path, check=False, capture_output=True)
    assert again.returncode == 2


def test_a_log_line_is_one_line_whatever_a_peer_calls_itself():
    record = logging.LogRecord("relay", logging.INFO, "", 0, "device %s", ("a\nb\x1b[2J",), None)
    assert OneLine("%(message)s").format(record) == r"device a\nb\x1b[2J"


def test_status_shows_devices_jobs_and_the_last_error(bridge: Bridge):
    relay = bridge.relay()
    bridge.device().line()
    client = bridge.client()
    client.submit(b"no model", QUICK)
    until(client, _ended)
    command = [sys.executable, "-m", "edge_bridge", "status", str(bridge.file), "--key", str(bridge.folder / "job.key")]
    run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    state = json.loads(run([*command, "--json"]).stdout)
    (device,) = state["devices"]
    assert (device["profile"]["name"], device["doing"], device["measured"], device["failed"]) == ("dut", "idle", 0, 1)
    assert "bad-model" in state["last_error"]
    # The relay counts whoever has left until its next ping.
    until_true(lambda: "job job is gone" in relay.log.read_text())
    shown = run(command, env={**os.environ, "COLUMNS": "200"}).stdout
    assert "0 running, 0 queued" in shown
    assert "dut     idle" in shown
    assert "bad-model" in shown
    # The command itself is no job.
    jobs = [line.split() for line in shown.splitlines() if line.startswith("job ")]
    assert jobs == [["job", "running", "queued", "answered"], ["job", "0", "0", "1"]]
    client.close()


def relay_ends(bridge: Bridge, key: str, *options: str) -> str:
    """The one line of a relay that does not start."""
    paths = ("--connection", str(bridge.file), "--key", str(bridge.folder / f"{key}.key"))
    relay = bridge.run("relay", *paths, "--allow", str(bridge.allowed), *options)
    assert relay.popen.wait(LIMIT_S) == 2
    (line,) = relay.log.read_text().splitlines()
    return line


def test_a_relay_that_cannot_start_says_what_to_do(bridge: Bridge):
    assert "a job's, says" in relay_ends(bridge, "job")
    assert "is it an address of this machine? see --bind" in relay_ends(bridge, "relay", "--bind", "300.1.1.1")
    assert not bridge.file.exists()
    missing = bridge.folder / "missing" / "B.json"
    assert "there is no folder" in relay_ends(bridge, "relay", "--connection", str(missing))
    assert not missing.parent.exists()
    bridge.relay()
    assert "is a relay already running there?" in relay_ends(bridge, "relay")


def test_a_relay_says_what_is_odd_about_its_list(bridge: Bridge):
    for name in ("job", "device"):
        (bridge.allowed / f"{name}.pub").unlink()
    relay = bridge.relay()
    assert "nobody is on the allow-list yet" in relay.log.read_text()
    relay.kill()
    bridge.allow("relay")
    relay = bridge.relay()
    assert "role relay, which lets nobody in" in relay.log.read_text()
    relay.kill()
    (bridge.allowed / "relay.pub").unlink()
    bridge.allow("job")
    assert "allow-list" not in bridge.relay().log.read_text()


def test_the_last_word_on_a_revoked_key_is_the_refusal(bridge: Bridge):
    relay = bridge.relay()
    device = bridge.device("--no-reference")
    device.line()
    (bridge.allowed / "device.pub").unlink()
    # Turned away at the door a second time: by then all that follows a first time has been logged.
    until_true(lambda: relay.log.read_text().count("refused device key") == 2)
    assert "does not know this device's key" in device.log.read_text().splitlines()[-1]
    bridge.allow("device")
    device.line()


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_ended_while_it_starts_says_nothing(tmp_path, ended_by):
    codes = []
    for wait_s in (0.0, 0.05, 0.1, 0.2, 0.3):
        command = [sys.executable, "-m", "edge_bridge", "device", "--help"]
        started = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        until_true(functools.partial(is_caught, started.pid, ended_by))
        time.sleep(wait_s)
        started.send_signal(ended_by)
        assert "Traceback" not in started.communicate(timeout=LIMIT_S)[1].decode()
        codes.append(started.returncode)
    assert codes[0] == 130
    # A late one may find the command done, or Python, without handlers by then, on its way out.
    assert set(codes) <= {130, 0, -ended_by}


def is_caught(pid: int, number: signal.Signals) -> bool:
    """Whether the process handles this signal; Python itself takes SIGINT, but not SIGTERM, from its beginning."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1) and bool(caught >> (number - 1) & 1)


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_services_end_with_0_and_commands_without_an_answer_with_130(bridge: Bridge, ended_by):
    relay = bridge.relay()
    device = bridge.device("--no-reference")
    device.line()
    (bridge.folder / "m.onnx").write_bytes(models.linear(512))
    measure = bridge.run("measure", str(bridge.folder / "m.onnx"), "--min-seconds", "30")
    until_true(lambda: "measuring" in measure.log.read_text())
    for process, code in ((measure, 130), (device, 0), (relay, 0)):
        process.popen.send_signal(ended_by)
        assert process.popen.wait(LIMIT_S) == code, process.log.read_text()
    assert measure.log.read_text().splitlines()[-1] == f"edge-bridge: ended by {ended_by.name}"


def test_the_version_is_told():
    command = [sys.executable, "-m", "edge_bridge", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert done.stdout.startswith("edge-bridge, version ")
