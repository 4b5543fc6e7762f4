"""The device agent against a relay worked by hand: every word that a relay can say, and some that none should."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import bridge_models as models
import msgspec
import numpy as np
import pytest
from bridge_processes import LIMIT_S, Bridge, Process, children_of, until, until_true
from hand_relay import HandRelay, pong_of

from edge_bridge.client import Measured
from edge_bridge.device.profile import describe_device
from edge_bridge.device.reference import reference_model
from edge_bridge.device.store import Standing, Store
from edge_bridge.device.tasks import MOST_TASKS, Job, Refusal, Waiting, job_of
from edge_bridge.wire.protocol import (
    CHUNK_BYTES,
    Cancel,
    Doubt,
    Error,
    Failed,
    Measure,
    Message,
    Ping,
    Progress,
    Register,
    Registered,
    Result,
    cut,
    judge_of,
    measure_of,
    task_of,
)
from edge_bridge.wire.quantities import QualitySettings, Settings, Shard, request_id

pytestmark = pytest.mark.timeout(120)
QUICK = Settings(min_seconds=0.01, max_seconds=5.0, warmup_max_seconds=0.2, attempts=1)
#: Longer than any test waits; a small model would soon have the most samples there are.
LONG = Settings(min_seconds=3000.0, max_seconds=3000.0, warmup_max_seconds=0.1, attempts=1)
SLOW = models.linear(1536)


class Rig:
    """A hand relay and the agents of one device."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.relay = HandRelay(folder)
        self.agents: list[Process] = []

    def agent(self, *options: str) -> Process:
        arguments = ("device", str(self.relay.file), "--name", "dut", "--state", str(self.folder / "state"))
        self.agents.append(Process(self.folder, *arguments, *options))
        return self.agents[-1]

    def measure(self, model: bytes, settings: Settings = QUICK) -> str:
        return self.relay.give(measure_of(model, settings), model)

    def measuring(self, request_id: str) -> None:
        while True:
            progress = self.relay.next(Progress)
            if (progress.request_id, progress.phase) == (request_id, "measuring"):
                return


@pytest.fixture
def rig() -> Iterator[Rig]:
    # pytest's own folders are too long for a socket's path.
    with tempfile.TemporaryDirectory(prefix="eb-") as folder:
        made = Rig(Path(folder))
        yield made
        for agent in made.agents:
            agent.close()
        made.relay.destroy()


def profile_digest() -> str:
    return describe_device("dut", "onnxruntime", "cpu").digest()


def test_a_device_says_who_it_is_and_stays_the_same(rig: Rig):
    first = rig.agent("--no-reference")
    before = rig.relay.welcome()
    assert (before.profile.name, before.minor, before.busy_with) == ("dut", 1, None)
    assert before.profile.threads == len(os.sched_getaffinity(0))
    assert before.profile.precisions == ("model",)
    first.kill()
    rig.agent("--no-reference")
    after = rig.relay.welcome()
    assert after.instance != before.instance
    assert after.device_id == before.device_id is not None


def test_a_running_and_a_waiting_task_are_cancelled(rig: Rig):
    agent = rig.agent("--no-reference")
    rig.relay.welcome()
    running = rig.measure(SLOW, LONG)
    rig.measuring(running)
    waiting = rig.measure(models.linear(seed=2))
    rig.relay.say(Cancel(request_id=waiting))
    failed = rig.relay.next(Failed)
    assert (failed.request_id, failed.reason) == (waiting, "cancelled")
    (server,) = children_of(agent.popen.pid)
    rig.relay.say(Cancel(request_id=running))
    failed = rig.relay.next(Failed)
    assert (failed.request_id, failed.reason) == (running, "cancelled")
    again = rig.measure(models.linear(seed=3))
    assert rig.relay.next(Result).request_id == again
    assert children_of(agent.popen.pid) == [server]


def test_a_relay_that_cancels_what_is_not_there_is_told_so(rig: Rig):
    rig.agent("--no-reference")
    rig.relay.welcome()
    rig.relay.say(Cancel(request_id="0" * 64))
    nothing = rig.relay.next(Failed)
    assert (nothing.request_id, nothing.reason) == ("0" * 64, "cancelled")
    request_id = rig.measure(b"no model")
    failed = rig.relay.next(Failed)
    assert (failed.request_id, failed.reason) == (request_id, "bad-model")


def shard_of(inputs: np.ndarray, targets: np.ndarray) -> tuple[bytes, Shard]:
    content = inputs.tobytes() + targets.tobytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return content, Shard(sha256=sha256, input_shape=inputs.shape, input_type="float32", target_shape=targets.shape)


def test_a_model_is_judged_on_a_shard_and_remembered(rig: Rig):
    rig.agent("--no-reference")
    rig.relay.welcome()
    model = models.affine(np.array([[2.0], [0.0]], dtype=np.float32))
    inputs = np.array([[1, 9], [2, 9], [3, 9]], dtype=np.float32)
    content, shard = shard_of(inputs, np.array([[2], [4], [9]], dtype=np.float32))
    measure = judge_of(model, content, QualitySettings(shard=shard))
    for _ in range(2):
        rig.relay.give(measure, model + content)
        quality = rig.relay.next(Result).decoded_quality()
        assert (quality.metric, quality.samples, quality.device) == ("rmse", 3, "dut")
        assert quality.error == pytest.approx(np.sqrt(9 / 3))
    rig.relay.give(measure, model + content[:-1] + b"?")
    # The store answers before the bytes are looked at: they would not change the answer to this request.
    assert rig.relay.next(Result).decoded_quality().samples == 3


def test_what_does_not_belong_together_is_not_measured(rig: Rig):
    rig.agent("--no-reference")
    rig.relay.welcome()
    model = models.linear()
    content, shard = shard_of(np.zeros((2, 16), np.float32), np.zeros((2, 16), np.float32))
    judge = judge_of(model, content, QualitySettings(shard=shard))
    good = measure_of(model, QUICK)
    for measure, payload, says in (
        (good, model[:-1] + b"?", "do not match their SHA-256"),
        (msgspec.structs.replace(good, request_id="0" * 64), model, "request_id"),
        (judge, model + content[:-1] + b"?", "the shard's bytes"),
        (msgspec.structs.replace(judge, model_bytes=len(model) - 1), model + content, "the model's bytes"),
    ):
        rig.relay.give(measure, payload)
        failed = rig.relay.next(Failed)
        assert (failed.request_id, failed.reason) == (measure.request_id, "bad-digest")
        assert says in failed.detail


def test_a_relay_that_gives_too_much_is_refused(rig: Rig):
    rig.agent("--no-reference")
    rig.relay.welcome()
    running = rig.measure(SLOW, LONG)
    rig.measuring(running)
    given = [rig.measure(models.linear(seed=seed)) for seed in range(1, MOST_TASKS + 2)]
    failed = rig.relay.next(Failed)
    assert (failed.request_id, failed.reason) == (given[-1], "busy")
    # The same task twice is one task.
    rig.measure(models.linear(seed=1))
    rig.relay.say(Cancel(request_id=running))
    assert [rig.relay.next(Result).request_id for _ in given[:-1]] == given[:-1]


def test_a_result_waits_in_the_store_for_a_relay_that_was_away(rig: Rig):
    agent = rig.agent("--no-reference")
    rig.relay.welcome()
    settings = Settings(min_seconds=1.0, max_seconds=1.0, warmup_max_seconds=0.1, attempts=1)
    request_id = rig.measure(models.linear(), settings)
    rig.measuring(request_id)
    rig.relay.close()
    until_true(lambda: f"request {request_id[:8]}: p50" in agent.log.read_text())
    rig.relay.open()
    assert rig.relay.welcome().busy_with is None
    rig.measure(models.linear(), settings)
    assert rig.relay.next(Result).request_id == request_id
    assert agent.log.read_text().count(": p50") == 1


def test_a_device_at_work_says_so_to_a_relay_that_comes_back(rig: Rig):
    rig.agent("--no-reference")
    rig.relay.welcome()
    running = rig.measure(SLOW, LONG)
    rig.measuring(running)
    rig.relay.close()
    rig.relay.open()
    assert rig.relay.welcome().busy_with == running


HOSTILE = [
    [],
    [b""],
    [b"hello", b"TASK", b"{}"],
    [b"MPINAS-EDGE/1", b"TASK", b"{}"],
    [b"MPINAS-EDGE/1", b"TASK", b"[" * 100_000],
    [b"MPINAS-EDGE/1", b"REGISTERED", b'{"versions": {"x": 1}}'],
    [b"MPINAS-EDGE/1", b"RESULT", b"{}"],
    [b"MPINAS-EDGE/1", b"PING", b"{}", b"payload"],
    [b"MPINAS-EDGE/1", b"PING", b"\xff\xfe"],
    [b"MPINAS-EDGE/1", b"CANCEL", b'{"request_id": "x"}'],
    [b"MPINAS-EDGE/1", b"x" * 1000, b"{}"] + [b""] * 1000,
]


def test_a_relay_that_breaks_the_protocol_is_left_alone_for_a_while(rig: Rig):
    agent = rig.agent("--no-reference")
    first = rig.relay.welcome()
    for frames in HOSTILE[:9]:
        rig.relay.say_frames(frames)
    rig.relay.say(Ping())
    pong_of(rig.relay)
    assert "left alone" not in agent.log.read_text()
    for frames in HOSTILE[9:]:
        rig.relay.say_frames(frames)
    # It comes back over a new connection, as the same agent.
    assert rig.relay.welcome().instance == first.instance
    assert "broke the protocol 10 times: left alone for" in agent.log.read_text()
    request_id = rig.measure(models.linear())
    assert rig.relay.next(Result).request_id == request_id


def test_errors_of_the_relay_end_nothing(rig: Rig):
    agent = rig.agent("--no-reference")
    rig.relay.next(Register)
    # Not taken yet: it asks again.
    rig.relay.say(Error(code="full", detail="no room"))
    rig.relay.welcome()
    for code in ("version", "malformed", "full"):
        rig.relay.say(Error(code=code, detail="\N{SNOWMAN}" * 2000))
    rig.relay.say(Error(code="unregistered", detail=""))
    rig.relay.welcome()
    # Taken before, and refused now: the key may be back on the list in a moment.
    rig.relay.say(Error(code="refused", detail="off the list"))
    rig.relay.welcome()
    rig.relay.say(Ping())
    pong_of(rig.relay)
    assert agent.popen.poll() is None


def test_a_device_that_is_refused_from_the_start_ends(rig: Rig):
    agent = rig.agent("--no-reference")
    rig.relay.next(Register)
    rig.relay.say(Error(code="refused", detail="not on the list"))
    assert agent.popen.wait(LIMIT_S) == 2
    assert "does not know this device's key" in agent.log.read_text().splitlines()[-1]


def test_a_relay_that_floods_does_not_keep_the_device_from_its_work(rig: Rig):
    rig.agent("--no-reference")
    rig.relay.welcome()
    request_id = rig.measure(models.linear())
    for _ in range(20_000):
        rig.relay.say(Registered(versions={}, minor=1))
    assert rig.relay.next(Result).request_id == request_id


def test_a_frozen_agent_is_back_when_it_goes_on(rig: Rig):
    agent = rig.agent("--no-reference")
    rig.relay.welcome()
    agent.popen.send_signal(signal.SIGSTOP)
    request_id = rig.measure(models.linear())
    rig.relay.close()
    rig.relay.open()
    agent.popen.send_signal(signal.SIGCONT)
    rig.relay.welcome()
    rig.measure(models.linear())
    assert rig.relay.next(Result).request_id == request_id


# The reference model


def learned_key() -> str:
    return hashlib.sha256(profile_digest().encode() + reference_model()).hexdigest()


def test_each_measurement_tells_of_the_last_reading(rig: Rig):
    # A wide band: this is not about how steady the machine of the test is.
    agent = rig.agent("--reference-band", "0.95")
    rig.relay.welcome()
    rig.measure(models.linear())
    reference = rig.relay.next(Result).decoded_measurement().reference
    assert reference is not None
    assert 0 < reference.age_s < LIMIT_S
    store = Store(rig.folder / "state/results.sqlite")
    assert sorted(store.readings(learned_key()))[2] == reference.expected_s
    assert reference.in_band == (abs(reference.p50_s / reference.expected_s - 1) <= 0.95)
    store.close()
    agent.kill()


def test_readings_are_taken_every_few_requests(rig: Rig):
    agent = rig.agent("--reference-band", "0.95", "--reference-every", "2")
    rig.relay.welcome()
    for seed in range(5):
        rig.measure(models.linear(seed=seed))
        rig.relay.next(Result)
    said = agent.log.read_text()
    assert (said.count("expected from now on"), said.count("expected: in band")) == (1, 2)


def out_of_band(rig: Rig, expected_s: float = 1e-6) -> None:
    """Make the device expect what no machine gives, and remember two measurements since the last good reading."""
    store = Store(rig.folder / "state/results.sqlite")
    store.keep_readings(learned_key(), [expected_s] * 5)
    for each in ("a" * 64, "b" * 64):
        store.put(each, profile_digest(), b"{}", Standing.OPEN)
    store.close()


def test_a_device_out_of_its_band_waits_doubts_and_says_so(rig: Rig):
    out_of_band(rig)
    agent = rig.agent("--cooling-seconds", "3")
    rig.relay.welcome()
    request_id = rig.measure(models.linear())
    found: list[object] = []
    while not any(isinstance(each, Result) for each in found):
        found.append(rig.relay.next((Progress, Doubt, Result)))  # type: ignore[arg-type]
    (doubt,) = (each for each in found if isinstance(each, Doubt))
    assert doubt.request_ids == ["a" * 64, "b" * 64]
    assert "from the 0.001 ms expected" in doubt.detail
    phases = [each.phase for each in found if isinstance(each, Progress)]
    assert phases[0] == "cooling"
    assert "measuring" in phases
    measurement = found[-1].decoded_measurement()
    assert measurement.reference.in_band is False
    assert "reference model out of its band" in measurement.doubts()
    # What was measured out of band says so itself, and is answered from the store.
    rig.measure(models.linear())
    again = rig.relay.next(Result)
    assert (again.request_id, again.decoded_measurement()) == (request_id, measurement)
    assert "waiting 3 s for it to come back" in agent.log.read_text()


def test_a_device_that_is_faster_than_it_was_doubts_and_learns_anew_without_waiting(rig: Rig):
    out_of_band(rig, expected_s=3600.0)
    agent = rig.agent("--reference-band", "0.95")
    rig.relay.welcome()
    rig.measure(models.linear())
    found: list[object] = []
    while not any(isinstance(each, Result) for each in found):
        found.append(rig.relay.next((Progress, Doubt, Result)))  # type: ignore[arg-type]
    (doubt,) = (each for each in found if isinstance(each, Doubt))
    assert doubt.request_ids == ["a" * 64, "b" * 64]
    assert "-100% from the 3600000.000 ms expected" in doubt.detail
    assert all(each.phase != "cooling" for each in found if isinstance(each, Progress))
    reference = found[-1].decoded_measurement().reference
    assert (reference.in_band, reference.expected_s < 1) == (True, True)
    assert "learning it anew" in agent.log.read_text()


def test_an_older_relay_is_told_nothing_that_it_does_not_know(rig: Rig):
    out_of_band(rig)
    agent = rig.agent("--cooling-seconds", "3")
    rig.relay.welcome(minor=0)
    rig.measure(models.linear())
    found = []
    while not found or not isinstance(found[-1], Result):
        found.append(rig.relay.next((Progress, Doubt, Result)))
    assert [each.phase for each in found[:-1]] == ["loading", "loading", "warming", "measuring"]
    # The next relay, which knows, is told.
    rig.relay.close()
    rig.relay.open()
    rig.relay.welcome(minor=1)
    assert rig.relay.next(Doubt).request_ids == ["a" * 64, "b" * 64]
    assert agent.popen.poll() is None


def test_a_task_is_cancelled_while_the_device_cools_down(rig: Rig):
    out_of_band(rig)
    rig.agent("--cooling-seconds", "60")
    rig.relay.welcome()
    request_id = rig.measure(models.linear())
    assert rig.relay.next(Progress).phase == "cooling"
    rig.relay.say(Cancel(request_id=request_id))
    assert rig.relay.next(Failed).reason == "cancelled"


def test_the_reference_can_be_learned_anew(rig: Rig):
    out_of_band(rig)
    rig.agent("--new-reference", "--reference-band", "0.95")
    rig.relay.welcome()
    rig.measure(models.linear())
    reference = rig.relay.next(Result).decoded_measurement().reference
    assert reference is not None
    assert reference.expected_s < 1


def test_a_provider_that_is_not_there_ends_the_agent_with_one_line(rig: Rig):
    agent = rig.agent("--provider", "cuda")
    assert agent.popen.wait(LIMIT_S) == 2
    assert "edge-bridge: provider cuda is not in this onnxruntime" in agent.log.read_text().splitlines()[-1]


def test_a_runtime_that_cannot_load_the_reference_is_served_without(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    runtimes = Path(__file__).parent / "fake_runtime"
    # A runtime that loads nothing at all.
    (rig.folder / "picky.py").write_text(
        "import sys\n"
        "from edge_bridge.measuring.runtimes import BadModelError\n"
        "class Runtime:\n"
        "    def precisions(self, provider): return ('model', 'int3')\n"
        "    def load(self, *_): raise BadModelError('not of mine')\n"
        "RUNTIME = Runtime()\n"
    )
    info = rig.folder / "picky-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: picky\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edge_bridge.runtimes]\npicky = picky:RUNTIME\n")
    assert runtimes.is_dir()
    monkeypatch.setenv("PYTHONPATH", str(rig.folder))
    arguments = [
        sys.executable,
        "-m",
        "edge_bridge",
        "device",
        str(rig.relay.file),
        "--name",
        "dut",
        "--runtime",
        "picky",
    ]
    log = rig.folder / "log"
    with open(log, "wb") as stream:
        agent = subprocess.Popen(
            [*arguments, "--state", str(rig.folder / "state")],
            stderr=stream,
            env={**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}:{rig.folder}"},
        )
    try:
        assert rig.relay.welcome().profile.precisions == ("model", "int3")
        request_id = rig.measure(b"anything")
        failed = rig.relay.next(Failed)
        assert (failed.request_id, failed.reason, failed.detail) == (request_id, "bad-model", "not of mine")
        assert log.read_text().count("the reference model was not measured, bad-model: not of mine") == 3
        assert "drift is not watched" in log.read_text()
    finally:
        agent.kill()
        agent.wait(LIMIT_S)


# Keys and files


def test_keys_are_rolled_over_without_a_restart(bridge: Bridge):
    bridge.relay()
    device = bridge.device("--no-reference")
    device.line()
    key = bridge.folder / "device.key"
    # Another pair takes the place of the first; on the list the device keeps its name.
    public = (bridge.folder / "stranger.pub").read_text().split()[0]
    (bridge.allowed / "new.pub").write_text(f"{public} device device\n")
    os.replace(bridge.folder / "stranger.key", key)
    assert device.line() == "registered dut"
    (bridge.allowed / "device.pub").unlink()
    client = bridge.client()
    client.submit(models.linear(), QUICK)
    until(client, lambda event: isinstance(event, Measured))
    client.close()


def test_a_device_whose_key_is_taken_off_the_list_comes_back_with_it(bridge: Bridge):
    bridge.relay()
    device = bridge.device("--no-reference")
    device.line()
    (bridge.allowed / "device.pub").unlink()
    until_true(lambda: "trying again until it does" in device.log.read_text())
    assert device.popen.poll() is None
    bridge.allow("device")
    assert device.line() == "registered dut"


def test_a_relay_that_moves_is_followed(bridge: Bridge):
    relay = bridge.relay()
    device = bridge.device("--no-reference")
    device.line()
    relay.kill()
    # Ports are taken from the old file where there is one.
    bridge.file.unlink()
    bridge.relay()
    assert device.line() == "registered dut"
    assert "connecting to relay" in device.log.read_text()


def test_a_key_file_that_is_broken_in_mid_run_changes_nothing(bridge: Bridge):
    bridge.relay()
    device = bridge.device("--no-reference")
    device.line()
    key = bridge.folder / "device.key"
    content = key.read_bytes()
    key.write_bytes(b"")
    until_true(lambda: "going on with what it said before" in device.log.read_text())
    client = bridge.client()
    client.submit(models.linear(), QUICK)
    until(client, lambda event: isinstance(event, Measured))
    client.close()
    key.write_bytes(content)


# Tasks, without processes


def test_a_payload_in_pieces_is_put_together():
    model = bytes(CHUNK_BYTES) + b"end"
    measure = measure_of(model, QUICK)
    job = job_of(task_of(measure), Message(task_of(measure), cut(model)))
    assert job == Job(measure.request_id, model, QUICK)


@pytest.mark.parametrize("settings", [b"[]", b'{"percentile": "p12"}', b'{"batches": []}'])
def test_settings_that_are_none_are_unsupported(settings):
    model = b"model"
    honest = measure_of(model, QUICK)
    measure: Measure = msgspec.structs.replace(
        honest, settings=msgspec.Raw(settings), request_id=request_id(honest.model_sha256, "any", settings)
    )
    job = job_of(task_of(measure), Message(task_of(measure), (model,)))
    assert isinstance(job, Refusal)
    assert job.reason == "unsupported"


def test_what_waits_is_bounded_by_bytes_too():
    waiting = Waiting()
    assert waiting.has_room(1 << 40)
    waiting.add(Job("a", b"x" * 10, QUICK))
    assert waiting.has_room((1 << 30) - 10)
    assert not waiting.has_room((1 << 30) - 9)
    waiting.cancel("a")
    waiting.cancel("a")
    assert "a" not in waiting
    assert len(waiting) == 0


# `edge-bridge check`


def check(*arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    command = [sys.executable, "-m", "edge_bridge", "check", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    return done.returncode, {each["check"]: each for each in json.loads(done.stdout)}


def test_check_finds_a_device_that_will_do(bridge: Bridge):
    bridge.relay()
    code, found = check(
        str(bridge.file), "--key", str(bridge.folder / "device.key"), "--state", str(bridge.folder / "s")
    )
    assert code == 0
    assert list(found) == [
        "load", "packages", "runtime", "sensors", "power mode", "state folder",
        "connection file", "key file", "reach", "handshake", "reference model",
    ]  # fmt: skip
    for name in ("packages", "runtime", "state folder", "connection file", "key file", "reach", "handshake"):
        assert found[name]["level"] == "OK", found[name]
    assert "5 readings within" in found["reference model"]["text"]
    assert not (bridge.folder / "s").exists()


def test_check_looks_at_a_key_without_a_relay_too(bridge: Bridge):
    key = bridge.folder / "job.key"
    assert check("--as", "job", "--key", str(key))[1]["key file"]["level"] == "OK"
    code, found = check("--as", "job", "--key", str(key.with_suffix(".pub")))
    assert (code, found["key file"]["level"]) == (2, "FAIL")
    assert "is no secret key" in found["key file"]["text"]


def test_check_says_what_is_wrong_and_what_to_do(bridge: Bridge):
    relay = bridge.relay()
    code, found = check(
        str(bridge.file), "--key", str(bridge.folder / "stranger.key"), "--as", "device", "--runtime", "unheard-of"
    )
    assert code == 2
    assert found["handshake"]["level"] == "FAIL"
    assert "add its .pub line" in found["handshake"]["text"]
    assert "no runtime unheard-of" in found["runtime"]["text"]
    relay.kill()
    (bridge.folder / "device.key").chmod(0o644)
    code, found = check(str(bridge.file), "--key", str(bridge.folder / "device.key"), "--provider", "cuda")
    assert (code, found["key file"]["level"]) == (2, "FAIL")
    assert "chmod 600" in found["key file"]["text"]
    assert "provider cuda is not in this onnxruntime" in found["reference model"]["text"]
    (bridge.folder / "device.key").chmod(0o600)
    code, found = check(str(bridge.file), "--key", str(bridge.folder / "device.key"))
    assert (code, found["reach"]["level"], "handshake" in found) == (2, "FAIL", False)
    assert "is the relay running" in found["reach"]["text"]


def test_check_with_a_jobs_key_looks_at_the_jobs_side(bridge: Bridge):
    bridge.relay()
    code, found = check(str(bridge.file), "--key", str(bridge.folder / "job.key"))
    assert code == 0
    assert list(found) == ["packages", "connection file", "key file", "reach", "handshake"]
    assert bridge.connection.job_endpoint in found["connection file"]["text"]
    assert "let this key in as a job" in found["handshake"]["text"]
    code, found = check(str(bridge.file), "--key", str(bridge.folder / "stranger.key"))
    assert (code, "of role job" in found["handshake"]["text"]) == (2, True)
    code, found = check(str(bridge.file), "--key", str(bridge.folder / "device.key"), "--as", "job")
    assert (code, "of role job" in found["handshake"]["text"]) == (2, True)


def test_check_says_each_thing_once(bridge: Bridge):
    bridge.relay()
    code, found = check(str(bridge.folder / "nothing.json"), "--as", "job")
    assert (code, found["connection file"]["text"].count("connection file")) == (2, 0)
    code, found = check(str(bridge.file), "--as", "job")
    assert (code, found["key file"]["text"]) == (
        2, "the relay of this connection file takes known keys only: give --key, see `edge-bridge keygen`"
    )  # fmt: skip
