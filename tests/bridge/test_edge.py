"""The search's client of the bridge, and the bridge that a job starts itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import bridge_models as models
import msgspec
import numpy as np
import pytest
from bridge_processes import LIMIT_S, ROOT, Bridge, children_of, is_alive, kill, until, until_true
from onnx import TensorProto, load_from_string, numpy_helper

from edge_bridge.errors import BridgeError
from edge_bridge.wire.protocol import MODEL_LIMIT_BYTES
from mpinas.children import child_environment, deaf_to_wishes
from mpinas.edge import (
    DeviceBack,
    DeviceLost,
    EdgeClient,
    EdgeEvent,
    Judged,
    JudgingFailed,
    Measured,
    MeasurementFailed,
    MeasurementSettings,
    open_edge,
)
from mpinas.edge.local import RESTARTS, LocalBridge
from mpinas.errors import UserError
from mpinas.history.shard import read_shard, write_shard

pytestmark = pytest.mark.timeout(120)
QUICK = MeasurementSettings(min_seconds=0.01, max_seconds=5.0, warmup_max_seconds=0.2)
LONG = MeasurementSettings(min_seconds=3.0, max_seconds=3.0, warmup_max_seconds=0.1)


@pytest.fixture
def opened() -> Iterator[Callable[..., EdgeClient]]:
    """`open_edge`, whose clients are closed with the test, however it ends."""
    with contextlib.ExitStack() as stack:

        def opened(*arguments: str, **settings: Any) -> EdgeClient:
            return stack.enter_context(contextlib.closing(open_edge(*arguments, **settings)))

        yield opened


def _answered(*candidates: int) -> Callable[[EdgeEvent], bool]:
    left = set(candidates)

    def done(event: EdgeEvent) -> bool:
        if isinstance(event, Measured | MeasurementFailed | Judged | JudgingFailed):
            left.discard(event.candidate)
        return not left

    return done


def test_a_local_bridge_measures_candidates(opened, tmp_path):
    client = opened("local", settings=QUICK, log_folder=tmp_path)
    model = models.linear()
    client.measure(1, model)
    client.measure(2, model)
    client.measure(3, b"no model")
    client.measure(4, models.linear(seed=4))
    client.cancel(4)
    assert client.outstanding == 3
    events = until(client, _answered(1, 2, 3))
    assert isinstance(events[0], DeviceBack)
    answers = {event.candidate: event for event in events[1:]}
    assert set(answers) == {1, 2, 3}
    assert answers[1].measurement == answers[2].measurement
    assert answers[1].measurement["p50_s"] > 0
    assert answers[1].measurement["device"] == "local"
    assert answers[3].reason == "bad-model"
    assert client.outstanding == 0
    processes = client.local.process_ids()
    client.close()
    assert not any(map(is_alive, processes.values()))
    assert sorted(os.listdir(tmp_path)) == ["edge-device.log", "edge-relay.log"]


def test_what_no_relay_would_take_has_failed_at_once_and_the_others_go_on(opened, tmp_path):
    write_shard(tmp_path / "shard.bin", np.zeros((2, 16), np.uint8), np.ones((2, 2)), "rmse", 1.0)
    about, data = read_shard(tmp_path / "shard.bin")
    client = opened("local", settings=QUICK, log_folder=tmp_path)
    client.measure(1, bytes(MODEL_LIMIT_BYTES + 1), repetition=2)
    client.judge(2, "any", models.linear(), msgspec.structs.replace(about, target_shape=(2, 9)), data)
    client.measure(3, b"")
    client.cancel(3)
    assert client.outstanding == 0
    first, second = [event for event in client.poll() if not isinstance(event, DeviceBack)]
    said = f"a payload of {MODEL_LIMIT_BYTES + 1} bytes; from 1 to {MODEL_LIMIT_BYTES} are taken"
    assert first == MeasurementFailed(1, "refused", said, "any", 2)
    assert isinstance(second, JudgingFailed)
    assert (second.candidate, second.device, second.reason) == (2, "any", "refused")
    client.measure(4, models.linear())
    assert isinstance(until(client, _answered(4))[-1], Measured)


def test_the_whole_local_bridge_may_be_killed(opened, tmp_path):
    client = opened("local", settings=LONG, log_folder=tmp_path)
    client.measure(1, models.linear(512))
    until(client, lambda event: isinstance(event, DeviceBack))
    kill(client.local.process_ids()["device"])
    events = until(client, lambda event: isinstance(event, DeviceBack))
    assert events[0] == DeviceLost("the local device ended with code -9 and was started again", "any")
    kill(client.local.process_ids()["relay"])
    events = until(client, _answered(1))
    assert any(isinstance(event, DeviceLost) for event in events)
    assert isinstance(events[-1], Measured)


def test_a_local_bridge_that_cannot_live_is_one_line(tmp_path):
    local = LocalBridge(tmp_path)

    def kill_device() -> None:
        pid = local.process_ids()["device"]
        kill(pid)
        until_true(lambda: not is_alive(pid))

    for _ in range(RESTARTS):
        kill_device()
        assert local.revive() == ["the local device ended with code -9 and was started again"]
    kill_device()
    says = rf"the local device ended {RESTARTS + 1} times in 60 s, .* see .*edge-device\.log"
    with pytest.raises(UserError, match=says):
        local.revive()
    local.close()


OWNER = """
import sys, time
from pathlib import Path
from mpinas.edge import MeasurementSettings, open_edge
if __name__ == "__main__":
    client = open_edge("local", settings=MeasurementSettings(), log_folder=Path(sys.argv[1]))
    print(*client.local.process_ids().values(), client.local.connection_file.parent, flush=True)
    time.sleep(600)
"""


def test_a_local_bridge_dies_with_a_killed_job(tmp_path):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert owner.stdout is not None
    *pids, folder = owner.stdout.readline().decode().split()
    relay, device = map(int, pids)
    until_true(lambda: bool(children_of(device)))
    (measurer,) = children_of(device)
    owner.kill()
    owner.wait(LIMIT_S)
    owner.stdout.close()
    until_true(lambda: not any(map(is_alive, (relay, device, measurer))))
    assert not os.path.exists(folder)


def test_children_do_not_take_themselves_for_ranks():
    launched = {
        "OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0", "PMI_RANK": "0", "SLURM_PROCID": "0", "PRTE_X": "1",
        "HOROVOD_RANK": "0",
    }  # fmt: skip
    kept = {"PATH": "/bin", "PYTHONPATH": "x", "OMP_NUM_THREADS": "1"}
    assert child_environment(launched | kept) == kept


@pytest.mark.parametrize("wish", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_children_never_hear_what_a_launcher_sends_to_all_processes(wish):
    program = "import sys; print('here', flush=True); sys.stdin.read(); print('still here')"
    with deaf_to_wishes():
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )  # fmt: skip
    assert child.stdout.readline() == "here\n"
    child.send_signal(wish)
    assert child.communicate("", timeout=LIMIT_S)[0] == "still here\n"
    assert child.returncode == 0
    assert wish not in signal.pthread_sigmask(signal.SIG_BLOCK, ()), "this process still does"


def test_a_device_that_goes_away_and_comes_back_is_reported(opened, bridge: Bridge, tmp_path):
    bridge.relay()
    device = bridge.device()
    key = str(bridge.folder / "job.key")
    client = opened(str(bridge.file), settings=LONG, log_folder=tmp_path, key_file=key)
    until(client, lambda event: isinstance(event, DeviceBack))
    client.measure(7, models.linear(512))
    device.popen.send_signal(signal.SIGSTOP)
    assert until(client, lambda event: isinstance(event, DeviceLost)) == [DeviceLost("the device has gone away", "any")]
    device.popen.send_signal(signal.SIGCONT)
    events = until(client, _answered(7))
    assert [type(event) for event in events] == [DeviceBack, Measured]


@pytest.mark.parametrize("case", ["no file", "no key", "unknown key", "open key", "no relay"])
def test_a_bridge_that_cannot_be_used_is_one_line(bridge: Bridge, tmp_path, case):
    relay = bridge.relay()
    where, key_file, says = str(bridge.file), str(bridge.folder / "job.key"), ""
    if case == "no file":
        where, says = "nothing.json", "connection file nothing.json cannot be read"
    elif case == "no key":
        key_file, says = None, "takes known keys only: name a key file"
    elif case == "unknown key":
        key_file, says = str(bridge.folder / "stranger.key"), "does not know this job's key"
    elif case == "open key":
        (bridge.folder / "job.key").chmod(0o644)
        says = "has mode 0644"
    else:
        relay.kill()
        says = "no relay at tcp://"
    with pytest.raises(UserError) as caught:
        open_edge(where, settings=QUICK, log_folder=tmp_path, key_file=key_file, timeout_s=2.0)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, BridgeError)


def test_a_device_that_was_there_before_the_job_is_reported_at_once(opened, bridge: Bridge, tmp_path):
    bridge.relay()
    bridge.device()
    key = str(bridge.folder / "job.key")
    first = opened(str(bridge.file), settings=LONG, log_folder=tmp_path, key_file=key)
    until(first, lambda event: isinstance(event, DeviceBack))
    first.close()
    second = opened(str(bridge.file), settings=LONG, log_folder=tmp_path, key_file=key)
    assert [type(event) for event in second.poll()] == [DeviceBack]


def test_several_devices_of_one_job_each_answers_for_itself_and_one_may_come_later(opened, bridge: Bridge, tmp_path):
    bridge.relay()
    bridge.device()
    key = str(bridge.folder / "job.key")
    client = opened(str(bridge.file), settings=QUICK, log_folder=tmp_path, key_file=key, devices=("dut", "late"))
    client.measure(1, models.linear(), "dut")
    client.measure(1, models.linear(), "dut", repetition=1)
    client.measure(2, models.linear(), "late")
    events = until(client, _answered(1))
    until_second = events if len(_measured(events)) == 2 else events + until(client, _answered(1))
    assert [type(event) for event in until_second] == [DeviceBack, Measured, Measured]
    assert until_second[0].device == "dut"
    first, again = _measured(until_second)
    assert (first.device, first.measurement["device"], first.repetition) == ("dut", "dut", 0)
    assert (again.device, again.measurement["device"], again.repetition) == ("dut", "dut", 1)
    assert first.request_id != again.request_id, "another measurement, not the answer to the first"
    assert client.outstanding == 1
    bridge.device("--name", "late", state="late-state")
    back, answer = until(client, _answered(2))
    assert isinstance(back, DeviceBack)
    assert back.device == "late"
    assert (answer.candidate, answer.device, answer.measurement["device"]) == (2, "late", "late")


def _measured(events: list[EdgeEvent]) -> list[Measured]:
    return [event for event in events if isinstance(event, Measured)]


def test_a_trained_model_is_judged_on_its_samples_by_the_device(opened, tmp_path):
    model = models.linear(16, element=TensorProto.UINT8)
    (initializer,) = load_from_string(model).graph.initializer
    inputs = np.random.default_rng(1).integers(0, 256, (10, 16), dtype=np.uint8)
    outputs = inputs.astype(np.float32) @ numpy_helper.to_array(initializer)
    write_shard(tmp_path / "good.bin", inputs, outputs + 3.0, "rmse", 2.9)
    write_shard(tmp_path / "classes.bin", inputs, outputs.argmax(1), "misclassified", 0.0)
    about, data = read_shard(tmp_path / "good.bin")
    client = opened("local", settings=QUICK, log_folder=tmp_path)
    client.judge(1, "any", model, about, data)
    client.judge(2, "any", model, *read_shard(tmp_path / "classes.bin"))
    client.judge(3, "any", model, msgspec.structs.replace(about, sha256="0" * 64), data)
    answers = {
        event.candidate: event
        for event in until(client, _answered(1, 2, 3))
        if isinstance(event, Judged | JudgingFailed)
    }
    assert answers[1].error == pytest.approx(3.0, rel=1e-4)
    assert (answers[1].device, answers[1].expected) == ("any", 2.9)
    assert (answers[2].error, answers[2].expected) == (0.0, 0.0)
    assert isinstance(answers[3], JudgingFailed)
    assert answers[3].reason == "bad-digest"


def test_a_shard_that_was_changed_on_disk_is_refused(tmp_path):
    file = tmp_path / "shard.bin"
    write_shard(file, np.zeros((2, 1, 3, 3), np.uint8), np.ones((2, 2), np.float32), "rmse", 1.0)
    about, data = read_shard(file)
    assert (about.input_shape, about.target_shape, len(data)) == ((2, 1, 3, 3), (2, 2), 18 + 16)
    file.write_bytes(data[:-1] + b"x")
    with pytest.raises(ValueError, match=r"not the bytes that shard\.json describes"):
        read_shard(file)
