"""`edge-bridge device --ssh`: what ssh's words mean, and the bridge through a real sshd."""

from __future__ import annotations

import os
import random
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import bridge_models as models
import msgspec
import pytest
import sshd
from bridge_processes import LIMIT_S, Bridge, Process, children_of, is_alive, kill, until, until_true
from sshd import Sshd

from edge_bridge.client import Measured, Progressed
from edge_bridge.device import connection_file
from edge_bridge.device.connection_file import ConnectionFile
from edge_bridge.device.ssh import (
    Trouble,
    fetch_command,
    judge,
    split_endpoint,
    split_remote,
    ssh_options,
    tunnel_command,
)
from edge_bridge.device.tunnel import PAUSE_MOST_S, PAUSE_REFUSED_S, Tunnel, pause_s
from edge_bridge.device.uplink import Uplink
from edge_bridge.errors import TunnelError
from edge_bridge.wire.keys import Connection, write_connection
from edge_bridge.wire.quantities import Settings
from edge_bridge.wire.sockets import LinkEvent

pytestmark = pytest.mark.timeout(120)
QUICK = Settings(min_seconds=0.01, max_seconds=5.0, warmup_max_seconds=0.2, attempts=1)
LONG = Settings(min_seconds=3.0, max_seconds=3.0, warmup_max_seconds=0.1, attempts=1)


# What ssh is told


def test_the_users_options_come_first_and_win():
    words = ssh_options(["-p 2222", "ConnectTimeout=60", "-J 'a b'"])
    assert words[:6] == ["-p", "2222", "-o", "ConnectTimeout=60", "-J", "a b"]
    assert words.index("ConnectTimeout=60") < words.index("ConnectTimeout=8")
    assert "BatchMode=yes" in words


def test_an_option_with_an_open_quote_is_refused():
    with pytest.raises(TunnelError, match=r"--ssh-option .* cannot be split into words: No closing quotation"):
        ssh_options(["-p '2222"])


def test_a_tunnel_is_bound_to_this_machine_only():
    words = tunnel_command("me@login", 4000, "tcp://node7:5556", [])
    assert words[0] == "-N"
    assert words[words.index("-L") + 1] == "127.0.0.1:4000:node7:5556"
    assert "ExitOnForwardFailure=yes" in words
    assert words[-2:] == ["--", "me@login"]


def test_a_path_is_quoted_for_the_logins_shell():
    assert fetch_command("login", "~/my $(run)/B.json", [])[-1] == "cat < 'my $(run)/B.json'"
    assert fetch_command("login", "-rf", [])[-1] == "cat < -rf"


@pytest.mark.parametrize(
    ("endpoint", "parts"),
    [
        ("tcp://login:5556", ("login", 5556)),
        ("tcp://[::1]:5556", ("[::1]", 5556)),
        ("tcp://10.0.0.1:1", ("10.0.0.1", 1)),
    ],
)
def test_an_endpoint_has_host_and_port(endpoint, parts):
    assert split_endpoint(endpoint) == parts


@pytest.mark.parametrize(
    "endpoint", ["ipc:///tmp/x", "tcp://a:0", "tcp://a:70000", "tcp://a b:1", "tcp://a:1:b:2", "tcp://:1"]
)
def test_an_endpoint_that_ssh_cannot_lead_to_is_refused(endpoint):
    with pytest.raises(TunnelError, match="cannot be reached by ssh"):
        split_endpoint(endpoint)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("me@login:BRIDGE.json", ("me@login", "BRIDGE.json")),
        ("login:/a/b:c", ("login", "/a/b:c")),
        ("BRIDGE.json", None),
        ("runs/a:b", None),
        ("login:", None),
        (":x", None),
    ],
)
def test_a_file_of_the_logins_is_told_apart_as_scp_does(path, parts):
    assert split_remote(Path(path)) == parts


@pytest.mark.parametrize(
    ("said", "trouble", "says"),
    [
        ("me@login: Permission denied (publickey).", Trouble.REFUSED, "authorized_keys"),
        ("No ED25519 host key is known\r\nHost key verification failed.", Trouble.REFUSED, "run `ssh login` once"),
        ("@@@@\nWARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.", Trouble.REFUSED,
         "somebody may be in between"),
        ("ssh: Could not resolve hostname login: Name or service not known", Trouble.REFUSED, "check --ssh"),
        ("ssh: Could not resolve hostname x: Temporary failure in name resolution", Trouble.LOST, "Temporary"),
        ("bind [127.0.0.1]:4000: Address already in use\nCould not request forwarding.", Trouble.PORT_TAKEN, "port"),
        ("ssh: connect to host login port 22: Connection timed out", Trouble.LOST, "Connection timed out"),
        ("Timeout, server login not responding.", Trouble.LOST, "not responding"),
        ("", Trouble.LOST, "ended with status 255"),
        ("\x1b[2Jevil\x07", Trouble.LOST, "?[2Jevil?"),
    ],
)  # fmt: skip
def test_what_ssh_complains_of_is_one_line_with_what_to_do(said, trouble, says):
    verdict = judge("login", said, 255)
    assert verdict.trouble is trouble
    assert says in verdict.line
    assert verdict.line.startswith("ssh login: ")
    assert verdict.line.isprintable()


def test_pauses_grow_to_a_bound_and_are_long_where_a_person_must_act():
    rng = random.Random(1)
    assert max(pause_s(failures, Trouble.LOST, rng) for failures in range(2000)) <= PAUSE_MOST_S
    assert pause_s(0, Trouble.LOST, rng) <= 0.2
    assert pause_s(0, Trouble.REFUSED, rng) >= PAUSE_REFUSED_S * 0.75
    assert len({pause_s(20, Trouble.LOST, rng) for _ in range(10)}) == 10


# Through a real sshd


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    made = Sshd(tmp_path / "sshd")
    yield made
    made.stop()


def given(options: list[str]) -> list[str]:
    return [word for each in options for word in ("--ssh-option", each)]


def start(bridge: Bridge, server: Sshd, *more: str, options: list[str] | None = None) -> Process:
    wanted = server.options() if options is None else options
    return bridge.device("--ssh", server.login, *given(wanted), *more)


def ssh_of(device: Process) -> list[int]:
    found = []
    for pid in children_of(device.popen.pid):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if command[0].endswith(b"/ssh"):
            found.append(pid)
    return found


def last_line(process: Process) -> str:
    return process.log.read_text().splitlines()[-1]


@sshd.wanted
def test_a_model_is_measured_through_ssh(bridge: Bridge, server: Sshd, monkeypatch):
    bridge.relay()
    # As the user of a system service: with a shell that runs nothing.
    monkeypatch.setenv("SHELL", "/bin/false")
    device = start(bridge, server)
    assert device.line() == "registered dut"
    client = bridge.client()
    client.submit(models.linear(), QUICK)
    assert until(client, lambda event: isinstance(event, Measured))[-1].measurement.device == "dut"
    client.close()
    (ssh,) = ssh_of(device)
    log = device.log.read_text()
    assert f"leads to {bridge.connection.device_endpoint.removeprefix('tcp://')} as {server.login} sees it" in log
    # What it speaks to is the near end of the tunnel.
    assert f"registered with relay {bridge.connection.device_endpoint}" not in log
    assert device.terminate() == 0
    assert not is_alive(ssh)


@sshd.wanted
def test_a_key_that_may_do_nothing_but_forward_is_enough(bridge: Bridge, server: Sshd):
    bridge.relay()
    far_end = bridge.connection.device_endpoint.removeprefix("tcp://")
    # The line of docs/login-node.md.
    only = f'restrict,port-forwarding,permitopen="{far_end}",from="127.0.0.0/8",command="/bin/false"'
    keys = server.folder / "authorized_keys"
    keys.write_text(f"{only} {keys.read_text()}")
    assert start(bridge, server).line() == "registered dut"


@sshd.wanted
def test_the_users_own_control_socket_is_taken_where_it_is_given(bridge: Bridge, server: Sshd):
    bridge.relay()
    control = server.folder / "control"
    words = [word for each in server.options() for word in (each.split() if each[0] == "-" else ("-o", each))]
    with subprocess.Popen(["ssh", *words, "-M", "-S", str(control), "-N", server.login]) as master:
        until_true(control.exists)
        # A login that asks for a second factor takes no other connection.
        server.stop()
        assert start(bridge, server, options=["-F none", f"ControlPath={control}"]).line() == "registered dut"
        master.terminate()


@sshd.wanted
def test_an_ssh_that_is_killed_is_started_again_and_nothing_is_lost(bridge: Bridge, server: Sshd):
    bridge.relay()
    device = start(bridge, server)
    device.line()
    client = bridge.client()
    first = client.submit(models.linear(512), LONG)
    second = client.submit(models.linear(seed=2), QUICK)
    until(client, lambda event: isinstance(event, Progressed) and event.phase == "measuring")
    (ssh,) = ssh_of(device)
    kill(ssh)
    assert device.line() == "registered dut"
    events = until(client, lambda event: isinstance(event, Measured) and event.request_id == second)
    assert [event.request_id for event in events if isinstance(event, Measured)] == [first, second]
    client.close()
    rows = sqlite3.connect(bridge.folder / "state" / "results.sqlite").execute("SELECT count(*) FROM results")
    assert rows.fetchone() == (2,)


@sshd.wanted
def test_a_login_node_that_goes_away_is_waited_for(bridge: Bridge, server: Sshd):
    bridge.relay()
    device = start(bridge, server)
    device.line()
    server.stop()
    kill(*ssh_of(device))
    until_true(lambda: "Connection refused" in device.log.read_text())
    server.start()
    assert device.line() == "registered dut"


@sshd.wanted
def test_a_device_that_starts_before_its_network_waits_and_can_be_ended(bridge: Bridge, server: Sshd):
    bridge.relay()
    server.stop()
    device = start(bridge, server)
    until_true(lambda: "tunnel is down, it will be tried again" in device.log.read_text())
    server.start()
    assert device.line() == "registered dut"
    server.stop()
    kill(*ssh_of(device))
    until_true(lambda: device.log.read_text().count("Connection refused") >= 2)
    assert device.terminate() == 0


@sshd.wanted
def test_the_ssh_ends_with_an_agent_that_is_killed(bridge: Bridge, server: Sshd):
    bridge.relay()
    device = start(bridge, server)
    device.line()
    (ssh,) = ssh_of(device)
    device.kill()
    until_true(lambda: not is_alive(ssh))


@sshd.wanted
@pytest.mark.parametrize("case", ["key", "host key", "option", "quote", "login", "name"])
def test_a_login_that_refuses_is_one_line_and_the_end(bridge: Bridge, server: Sshd, case):
    bridge.relay()
    options, more, says = server.options(), (), ""
    if case == "key":
        options, says = server.options(key="stranger"), "does not take this device's ssh key"
    elif case == "host key":
        options, says = server.options(known_hosts="none"), "its host key is not known here"
    elif case == "option":
        options, says = ["Bogus=1"], "check --ssh-option"
    elif case == "quote":
        options, says = ["-p '2222"], "cannot be split into words"
    elif case == "login":
        more, says = ("--ssh", "-oProxyCommand=touch x"), "login '-oProxyCommand=touch x' for ssh: give HOST"
    else:
        more, says = ("--ssh", "no-such-host.invalid"), "check --ssh"
    device = start(bridge, server, *more, options=options)
    if case == "name" and device.popen.wait(LIMIT_S) == 0:
        pytest.skip("this machine's resolver answers for every name")
    assert device.popen.wait(LIMIT_S) == 2
    assert last_line(device).startswith("edge-bridge: ")
    assert says in last_line(device)


@sshd.wanted
def test_no_ssh_is_one_line(bridge: Bridge, server: Sshd, monkeypatch):
    bridge.relay()
    monkeypatch.setenv("PATH", str(bridge.folder))
    device = start(bridge, server)
    assert device.popen.wait(LIMIT_S) == 2
    assert last_line(device) == (
        "edge-bridge: there is no ssh on this machine: install openssh-client, or leave --ssh away"
    )


@sshd.wanted
def test_a_login_that_forbids_forwarding_is_told(bridge: Bridge, server: Sshd):
    bridge.relay()
    server.stop()
    config = server.folder / "config"
    config.write_text(config.read_text().replace("AllowTcpForwarding yes", "AllowTcpForwarding no"))
    server.start()
    device = start(bridge, server)
    until_true(lambda: "forbids the way to" in device.log.read_text())
    assert device.terminate() == 0


@sshd.wanted
def test_a_relay_that_is_not_there_is_told(bridge: Bridge, server: Sshd):
    relay = bridge.relay()
    relay.kill()
    device = start(bridge, server)
    until_true(lambda: "is the relay running there?" in device.log.read_text())
    bridge.relay()
    assert device.line() == "registered dut"


@sshd.wanted
@pytest.mark.parametrize("form", ["LOGIN:PATH", "absent here"])
def test_the_connection_file_is_fetched(bridge: Bridge, server: Sshd, form):
    bridge.relay()
    there = bridge.folder / "only there.json"
    bridge.file.rename(there)
    bridge.file = Path(f"{server.login}:{there}")
    more: tuple[str, ...] = ()
    if form == "absent here":
        # The login's shell begins elsewhere than this process: a path that is relative is there, not here.
        bridge.file = Path(os.path.relpath(there, Path.home()))
        more = ("--ssh", server.login)
    device = bridge.device(*given(server.options()), *more)
    assert device.line() == "registered dut"
    assert ("tunnel is up" in device.log.read_text()) == bool(more)


@sshd.wanted
def test_a_fetched_file_is_fetched_again_after_a_while_and_stays_if_it_cannot_be(
    bridge: Bridge, server: Sshd, monkeypatch, caplog
):
    bridge.relay()
    old = bridge.connection
    source = ConnectionFile(Path(f"{server.login}:{bridge.file}"), "", server.options())
    assert source.read() == old
    assert source.watched == ()
    new = msgspec.structs.replace(old, relay_public_key=bridge.key("stranger").public)
    write_connection(bridge.file, new)
    assert source.read() == old
    monkeypatch.setattr(connection_file, "REFETCH_S", 0.0)
    # Not waited for: the agent has other things to do.
    assert source.read() == old
    until_true(lambda: source.read() == new)
    server.stop()
    until_true(lambda: source.read() == new and "not fetched again, the old one stays" in caplog.text)
    server.start()
    bridge.file.write_bytes(b"{}")
    until_true(lambda: source.read() == new and "is not usable" in caplog.text)


@sshd.wanted
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "nothing.json cannot be read ("),
        (b"{}", "is not usable"),
        (b"x" * 70_000, "larger than 65536 bytes"),
    ],
)
def test_what_is_no_connection_file_on_the_login_is_refused(bridge: Bridge, server: Sshd, content, says):
    path = bridge.folder / "nothing.json"
    if content is not None:
        path.write_bytes(content)
    bridge.file = Path(f"{server.login}:{path}")
    device = bridge.device(*given(server.options()))
    assert device.popen.wait(LIMIT_S) == 2
    assert says in last_line(device)


@sshd.wanted
def test_a_local_port_that_somebody_took_meanwhile_is_waited_for(bridge: Bridge, server: Sshd):
    bridge.relay()
    device = start(bridge, server)
    device.line()
    (line,) = [each for each in device.log.read_text().splitlines() if "tunnel is up" in each]
    port = int(line.partition("127.0.0.1:")[2].split()[0])
    server.stop()
    kill(*ssh_of(device))
    until_true(lambda: "Connection refused" in device.log.read_text())
    with _listener(port):
        server.start()
        until_true(lambda: "another program has the local port" in device.log.read_text())
    assert device.line() == "registered dut"


@sshd.wanted
def test_a_local_port_that_is_taken_at_the_start_is_given_up_for_another(bridge: Bridge, server: Sshd):
    bridge.relay()
    tunnel = Tunnel(server.login, bridge.connection, server.options())
    first = tunnel.connection.device_endpoint
    with _listener(int(first.rpartition(":")[2])), tunnel:
        assert tunnel.connection.device_endpoint != first
        assert _greeting(tunnel.connection) == b"\xff"


@sshd.wanted
def test_a_tunnel_follows_a_relay_that_moves(bridge: Bridge, server: Sshd):
    bridge.relay()
    with _listener(0) as other, Tunnel(server.login, bridge.connection, server.options()) as tunnel:
        assert _greeting(tunnel.connection) == b"\xff"
        moved = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        found = tunnel.through(msgspec.structs.replace(bridge.connection, device_endpoint=moved))
        assert found == tunnel.connection
        # The old way ends and the new one opens, on the same local port.
        other.settimeout(0.2)
        until_true(lambda: _reaches(tunnel.connection, other))


@sshd.wanted
def test_a_running_device_finds_a_moved_relay_by_the_file_that_it_fetched(bridge: Bridge, server: Sshd, monkeypatch):
    monkeypatch.setattr(connection_file, "REFETCH_S", 1.0)
    relay = bridge.relay()
    source = ConnectionFile(Path(f"{server.login}:{bridge.file}"), "", server.options())
    uplink = Uplink(lambda: (source.read(), bridge.key("device")), source.watched)
    before = uplink.endpoint
    until_true(lambda: LinkEvent.UP in uplink.advance(time.monotonic()))
    relay.kill()
    # The next one takes other ports; at the old ones nobody answers.
    bridge.file.unlink()
    bridge.relay()
    until_true(lambda: LinkEvent.UP in uplink.advance(time.monotonic()))
    assert uplink.endpoint == bridge.connection.device_endpoint != before
    uplink.close()


@sshd.wanted
def test_a_running_device_follows_its_tunnel_to_another_port(bridge: Bridge, server: Sshd):
    bridge.relay()
    tunnel = Tunnel(server.login, bridge.connection, server.options())
    uplink = Uplink(lambda: (tunnel.through(bridge.connection), bridge.key("device")), ())
    before = uplink.endpoint
    with _listener(int(before.rpartition(":")[2])), tunnel:
        until_true(lambda: LinkEvent.UP in uplink.advance(time.monotonic()))
        assert uplink.endpoint == tunnel.connection.device_endpoint != before
    uplink.close()


def _listener(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def _near_end(connection: Connection) -> tuple[str, int]:
    return "127.0.0.1", int(connection.device_endpoint.rpartition(":")[2])


def _greeting(connection: Connection) -> bytes:
    """First byte of what answers at the near end: ZeroMQ's is FF."""
    with socket.create_connection(_near_end(connection), LIMIT_S) as stream:
        return stream.recv(1)


def _reaches(connection: Connection, listener: socket.socket) -> bool:
    try:
        with socket.create_connection(_near_end(connection), LIMIT_S):
            listener.accept()[0].close()
    except OSError:
        return False
    return True
