"""Files of the bridge: keys, allow-list, connection file, result store, and a runtime from somebody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from bridge_processes import LIMIT_S, ROOT

from edge_bridge.device.store import Store
from edge_bridge.errors import BridgeError, KeyFileError
from edge_bridge.measuring.child import UnmeasurableError, make_inputs
from edge_bridge.measuring.runtimes import InputSpec
from edge_bridge.relay.service import RelayPlan
from edge_bridge.wire.keys import (
    AllowList,
    Connection,
    check_private_folder,
    new_key_pair,
    read_connection,
    read_key_pair,
    write_connection,
    write_key_pair,
)

PUBLIC = new_key_pair().public


def test_a_key_pair_is_read_as_written(tmp_path):
    secret, public = write_key_pair(tmp_path / "mine", "me")
    pair = read_key_pair(secret)
    assert public.read_text() == f"{pair.public} me\n"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode):
    secret, _ = write_key_pair(tmp_path / "mine", "me")
    secret.chmod(mode)
    with pytest.raises(KeyFileError, match=f"has mode {mode:04o}, others may have read it: chmod 600"):
        read_key_pair(secret)


@pytest.mark.parametrize("content", ["", "{}", '{"public": "x", "secret": "y"}', "\xff"])
def test_what_is_no_key_is_refused(tmp_path, content):
    path = tmp_path / "mine.key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="is not a key"):
        read_key_pair(path)


def test_the_allow_list_is_reread(tmp_path):
    path = tmp_path / "allowed"
    path.write_text(f"# job keys\n\n{PUBLIC} the job\n")
    allowed = AllowList(path)
    other = new_key_pair().public
    assert (allowed.name_of(PUBLIC), allowed.name_of(other)) == ("the job", None)
    path.write_text(f"{other}\n")
    assert (allowed.name_of(PUBLIC), allowed.name_of(other)) == (None, other[:8])
    path.write_text("nonsense\n")
    assert allowed.name_of(other) is None
    path.unlink()
    assert allowed.name_of(other) is None


def test_a_folder_of_public_keys_is_an_allow_list(tmp_path):
    allowed = AllowList(tmp_path)
    assert allowed.name_of(PUBLIC) is None
    (tmp_path / "a.pub").write_text(f"{PUBLIC} a")
    assert allowed.name_of(PUBLIC) == "a"


def test_a_bad_allow_list_says_which_line(tmp_path):
    (tmp_path / "allowed").write_text(f"{PUBLIC} a\nrubbish b\n")
    with pytest.raises(KeyFileError, match="line 2: not a public key"):
        AllowList(tmp_path / "allowed")


def test_a_connection_file_is_read_as_written(tmp_path):
    connection = Connection(
        protocol="MPINAS-EDGE/1",
        job_endpoint="tcp://login:1",
        device_endpoint="tcp://login:2",
        relay_public_key=PUBLIC,
    )
    write_connection(tmp_path / "BRIDGE.json", connection)
    assert read_connection(tmp_path / "BRIDGE.json") == connection
    assert os.listdir(tmp_path) == ["BRIDGE.json"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"relay_public_key": None}, "names no relay_public_key, and its endpoints are not private"),
        ({"protocol": "MPINAS-EDGE/7"}, "speaks MPINAS-EDGE/7, this is MPINAS-EDGE/1"),
        ({"job_endpoint": "http://login"}, "not usable"),
        ({"relay_public_key": "short"}, "not usable"),
    ],
)
def test_a_connection_file_that_will_not_do_is_refused(tmp_path, change, says):
    content = {
        "protocol": "MPINAS-EDGE/1",
        "job_endpoint": "tcp://login:1",
        "device_endpoint": "tcp://login:2",
        "relay_public_key": PUBLIC,
    }
    (tmp_path / "BRIDGE.json").write_text(json.dumps(content | change))
    with pytest.raises(KeyFileError, match=says):
        read_connection(tmp_path / "BRIDGE.json")


def test_a_relay_on_a_network_without_keys_cannot_be_planned(tmp_path):
    with pytest.raises(BridgeError, match="needs a key and an allow-list"):
        RelayPlan("tcp://127.0.0.1:0", "ipc:///tmp/x", tmp_path / "BRIDGE.json", "")


def test_a_folder_for_private_sockets_must_be_private(tmp_path):
    tmp_path.chmod(0o755)
    with pytest.raises(KeyFileError, match="mode 0700"):
        check_private_folder(tmp_path)
    tmp_path.chmod(0o700)
    check_private_folder(tmp_path)


def test_the_store_keeps_results_by_request_and_profile(tmp_path):
    store = Store(tmp_path / "results.sqlite")
    store.put("request", "profile", b"1")
    store.close()
    store = Store(tmp_path / "results.sqlite")
    assert (store.get("request", "profile"), store.get("request", "other"), store.get("x", "profile")) == (
        b"1",
        None,
        None,
    )
    store.close()


def test_a_store_that_is_none_is_one_line(tmp_path):
    (tmp_path / "results.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(BridgeError, match=r"results\.sqlite cannot be used .*: move it away"):
        Store(tmp_path / "results.sqlite")


def test_inputs_are_made_by_type():
    specs = [
        InputSpec("f", (None, 3), np.dtype(np.float16)),
        InputSpec("u", (2, 1000), np.dtype(np.uint8)),
        InputSpec("i", (2,), np.dtype(np.int64)),
    ]
    inputs = make_inputs(specs, batch=2)
    assert [(name, each.shape, str(each.dtype)) for name, each in inputs.items()] == [
        ("f", (2, 3), "float16"),
        ("u", (2, 1000), "uint8"),
        ("i", (2,), "int64"),
    ]
    assert inputs["u"].max() > 200
    assert set(inputs["i"]) <= {0, 1}
    np.testing.assert_array_equal(inputs["f"], make_inputs(specs, batch=2)["f"])


@pytest.mark.parametrize(
    ("shape", "reason"), [((1, None), "unsupported"), ((4, 3), "unsupported"), ((None, 2**40), "too-large")]
)
def test_inputs_that_cannot_be_made_have_a_reason(shape, reason):
    with pytest.raises(UnmeasurableError) as caught:
        make_inputs([InputSpec("x", shape, np.dtype(np.float32))], batch=2)
    assert caught.value.reason == reason


THIRD_PARTY = """
import os
class Loaded:
    inputs = ()
    def bind(self, inputs):
        return os.abort if self.aborts else int
class Theirs:
    def load(self, model, provider, threads):
        loaded = Loaded()
        loaded.aborts = model.read_bytes() == b"abort"
        return loaded
RUNTIME = Theirs()
"""


def test_a_runtime_of_somebody_else_is_found_by_entry_point(tmp_path):
    package = tmp_path / "theirs-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[edge_bridge.measuring.runtimes]\ntheirs = theirs:RUNTIME\n")
    (tmp_path / "theirs.py").write_text(THIRD_PARTY)

    def measure(content: bytes) -> subprocess.CompletedProcess[str]:
        (tmp_path / "model").write_bytes(content)
        options = ["--json", "--runtime", "theirs", "--min-seconds", "0"]
        return subprocess.run(
            [sys.executable, "-m", "edge_bridge", "--log-level", "warning", "measure", "model", *options],
            capture_output=True, text=True, timeout=LIMIT_S, cwd=tmp_path, check=False,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        )  # fmt: skip

    found = json.loads(measure(b"fine").stdout)
    assert (found["runtime"], found["versions"]["theirs"], found["samples"]) == ("theirs", "1.0", 64)
    crashed = measure(b"abort")
    assert crashed.returncode == 2
    assert "(crashed): the model's process was ended by SIGABRT" in crashed.stderr.splitlines()[-1]
