"""Files of the bridge: the result store."""

from __future__ import annotations

import pytest

from edge_bridge.device.store import Store
from edge_bridge.errors import BridgeError


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
