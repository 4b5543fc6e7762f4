"""Files of the bridge: result store, and a runtime from somebody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from bridge_processes import LIMIT_S, ROOT

from edge_bridge.device.store import Store
from edge_bridge.errors import BridgeError
from edge_bridge.measuring.child import UnmeasurableError, make_inputs
from edge_bridge.measuring.runtimes import InputSpec


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
