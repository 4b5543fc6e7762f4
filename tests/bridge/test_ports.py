"""Ports to listen on: out of the way of outgoing connections."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from bridge_processes import Bridge

from edge_bridge.wire.ports import free_port, lasting_ports


@pytest.mark.parametrize(
    ("setting", "ports"),
    [
        ("32768\t60999\n", range(10_000, 32_768)),
        ("15000 65000", range(10_000, 15_000)),
        ("1024 65535", range(10_000, 10_000)),
        ("nonsense", range(10_000, 32_768)),
        ("", range(10_000, 32_768)),
    ],
)
def test_no_port_of_the_kernels_range(tmp_path: Path, setting: str, ports: range):
    (tmp_path / "range").write_text(setting)
    assert lasting_ports(tmp_path / "range") == ports


def test_a_system_without_the_setting(tmp_path: Path):
    assert lasting_ports(tmp_path / "none") == range(10_000, 32_768)


wanted = pytest.mark.skipif(not lasting_ports(), reason="every port here may be an outgoing connection's")


@wanted
def test_a_free_port_can_be_listened_on():
    with socket.create_server(("127.0.0.1", free_port())) as server:
        assert server.getsockname()[1] in lasting_ports()


@wanted
def test_the_relay_takes_lasting_ports_and_keeps_them(bridge: Bridge):
    bridge.relay().kill()
    first = bridge.connection
    for endpoint in (first.job_endpoint, first.device_endpoint):
        assert int(endpoint.rpartition(":")[2]) in lasting_ports()
    bridge.relay()
    assert bridge.connection == first
