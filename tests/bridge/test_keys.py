"""Files of trust: key pairs, the allow-list and its roles, the connection file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zmq
from bridge_processes import LIMIT_S
from zmq.utils import z85

from edge_bridge.errors import BridgeError, KeyFileError
from edge_bridge.relay.service import RelayPlan
from edge_bridge.wire.allow_list import LOOK_S, SETTLE_S, AllowList
from edge_bridge.wire.keys import (
    Connection,
    check_private_folder,
    new_key_pair,
    read_connection,
    read_key_pair,
    write_connection,
    write_key_pair,
)

#: Always the same two: they are in the names of tests, which processes that share the tests must agree on.
PUBLIC, OTHER = (zmq.curve_public(z85.encode(bytes([number] * 32))).decode() for number in (1, 2))
#: 40 characters of base 85, but numbers too large for a key.
NO_KEY = "#" * 40


class Clock:
    """Monotonic time that passes when the test says so."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def write(path: Path, text: str, changed_ns: int | None = None) -> None:
    path.write_text(text)
    if changed_ns is not None:
        os.utime(path, ns=(changed_ns, changed_ns))


def test_a_key_pair_is_read_as_written(tmp_path):
    secret, public = write_key_pair(tmp_path / "mine", "me", "job")
    pair = read_key_pair(secret)
    assert public.read_text() == f"{pair.public} me job\n"
    assert AllowList(public).name_of(pair.public, "job") == "me"


@pytest.mark.parametrize("name", ["", "my job", "a\nb", "a\tb", "x" * 65])
def test_a_name_that_would_break_the_list_is_refused(tmp_path, name):
    with pytest.raises(KeyFileError, match="will not do: give --name, at most 64 printable characters"):
        write_key_pair(tmp_path / "mine", name, "job")
    assert os.listdir(tmp_path) == []


def test_a_key_whose_public_half_cannot_be_written_is_not_left_behind(tmp_path):
    (tmp_path / "mine.pub").symlink_to(tmp_path / "nowhere" / "x")
    with pytest.raises(KeyFileError, match="cannot be written"):
        write_key_pair(tmp_path / "mine", "me", "job")
    assert os.listdir(tmp_path) == ["mine.pub"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode):
    secret, _ = write_key_pair(tmp_path / "mine", "me", "job")
    secret.chmod(mode)
    with pytest.raises(KeyFileError, match=f"has mode {mode:04o}, others may have read it: chmod 600"):
        read_key_pair(secret)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        '{"public": "x", "secret": "y"}',
        "\xff",
        "[" * 100_000,
        json.dumps({"public": PUBLIC, "secret": NO_KEY}),
        json.dumps({"public": NO_KEY, "secret": PUBLIC}),
    ],
)
def test_what_is_no_key_is_refused(tmp_path, content):
    path = tmp_path / "mine.key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="is no secret key"):
        read_key_pair(path)


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    for read in (read_key_pair, read_connection, AllowList):
        with pytest.raises(KeyFileError, match="not a plain file"):
            read(tmp_path / "pipe")


def test_a_folder_in_place_of_a_file_is_refused_and_not_held_open(tmp_path):
    before = os.listdir("/proc/self/fd")
    for read in (read_key_pair, read_connection):
        with pytest.raises(KeyFileError, match="not a plain file"):
            read(tmp_path)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("stem", [".", "/", "..", "folder/.."])
def test_key_files_need_a_name_of_their_own(tmp_path, monkeypatch, stem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyFileError, match="give a file's name, not a folder"):
        write_key_pair(Path(stem), "me", "job")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_no_half_a_key(tmp_path, files_up_to):
    with files_up_to(10), pytest.raises(KeyFileError, match="cannot be written: File too large"):
        write_key_pair(tmp_path / "mine", "me", "job")
    assert os.listdir(tmp_path) == []


def test_a_huge_file_is_refused(tmp_path):
    (tmp_path / "huge").write_bytes(b" " * ((1 << 20) + 1))
    (tmp_path / "huge").chmod(0o600)
    for read in (read_key_pair, read_connection, AllowList):
        with pytest.raises(KeyFileError, match="larger than 1048576 bytes"):
            read(tmp_path / "huge")


def test_a_key_opens_the_side_of_its_role_only(tmp_path):
    relay_key, both = new_key_pair().public, new_key_pair().public
    lines = [f"{PUBLIC} search job", f"{OTHER} agx device", f"{relay_key} relay relay", f"{both} me job"]
    (tmp_path / "allowed").write_text("\n".join([*lines, f"{both} mine device"]))
    allowed = AllowList(tmp_path / "allowed")
    names = {key: (allowed.name_of(key, "job"), allowed.name_of(key, "device")) for key in (PUBLIC, OTHER, both)}
    assert names == {PUBLIC: ("search", None), OTHER: (None, "agx"), both: ("me", "mine")}
    assert (allowed.name_of(relay_key, "job"), allowed.name_of(relay_key, "device")) == (None, None)


def test_comments_and_empty_lines_are_passed_over(tmp_path):
    (tmp_path / "allowed").write_text(f"# {PUBLIC} was job\n\n#\n{OTHER} is job\n")
    allowed = AllowList(tmp_path / "allowed")
    assert (allowed.name_of(OTHER, "job"), allowed.name_of(PUBLIC, "job")) == ("is", None)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("rubbish b job", "line 2: not a public key"),
        (f"{NO_KEY} b job", "line 2: not a public key"),
        (PUBLIC, f"line 2: key {PUBLIC[:8]}… has no role: write KEY NAME job, or KEY NAME device"),
        (f"{PUBLIC} b", "has no role"),
        (f"{PUBLIC} the job job", "'the job job' is not NAME ROLE"),
        (f"{PUBLIC} b boss", "role 'boss' is none of job, device, relay"),
        (f"{PUBLIC} {'b' * 65} job", "is not NAME ROLE"),
    ],
)
def test_a_relay_does_not_start_with_a_line_that_is_none(tmp_path, line, says):
    (tmp_path / "allowed").write_text(f"{OTHER} a job\n{line}\n")
    with pytest.raises(KeyFileError) as caught:
        AllowList(tmp_path / "allowed")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_line_that_is_none_and_comes_later_lets_nobody_in_and_leaves_the_others(tmp_path, caplog):
    path, clock = tmp_path / "allowed", Clock()
    path.write_text(f"{PUBLIC} a job\n{OTHER} b job\n")
    allowed = AllowList(path, clock)
    path.write_text(f"{PUBLIC} a job\n{OTHER} b jo\n")
    for _ in range(3):
        clock.now_s += LOOK_S
        assert (allowed.name_of(PUBLIC, "job"), allowed.name_of(OTHER, "job")) == ("a", None)
    # Logged once, and removing works while the broken line is there.
    assert [each.message for each in caplog.records] == [
        f"allow-list {path} line 2: role 'jo' is none of job, device, relay"
    ]
    path.write_text("rubbish\n")
    clock.now_s += LOOK_S
    assert allowed.name_of(PUBLIC, "job") is None


def test_what_is_removed_is_shut_out_at_the_next_look(tmp_path):
    path, clock = tmp_path / "allowed", Clock()
    write(path, f"{PUBLIC} a job\n")
    allowed = AllowList(path, clock)
    write(path, "")
    clock.now_s += LOOK_S * 0.9
    assert allowed.name_of(PUBLIC, "job") == "a", "the disk is not asked at each message"
    clock.now_s += LOOK_S * 0.2
    assert allowed.name_of(PUBLIC, "job") is None


def test_who_is_added_need_not_wait(tmp_path):
    path, clock = tmp_path / "allowed", Clock()
    write(path, f"{OTHER} b job\n", changed_ns=10**9)
    allowed = AllowList(path, clock)
    assert allowed.name_of(PUBLIC, "job") is None
    write(path, f"{OTHER} b job\n{PUBLIC} a job\n", changed_ns=2 * 10**9)
    assert allowed.name_of(PUBLIC, "job") == "a"


def test_a_second_change_within_the_files_clock_is_seen(tmp_path):
    path, clock = tmp_path / "allowed", Clock()
    write(path, f"{PUBLIC} a job\n", changed_ns=10**9)
    allowed = AllowList(path, clock)
    # Same size, same time, same inode: nothing but the content tells.
    write(path, f"{OTHER} a job\n", changed_ns=10**9)
    clock.now_s += LOOK_S
    assert (allowed.name_of(PUBLIC, "job"), allowed.name_of(OTHER, "job")) == (None, "a")
    clock.now_s += SETTLE_S
    assert allowed.name_of(OTHER, "job") == "a"


def test_what_would_not_do_is_read_again_until_it_does(tmp_path):
    path, clock = tmp_path / "allowed", Clock()
    write(path, f"{PUBLIC} a job\n")
    allowed = AllowList(path, clock)
    write(path, f"{PUBLIC} a jab\n", changed_ns=10**9)
    clock.now_s += LOOK_S
    assert allowed.name_of(PUBLIC, "job") is None
    clock.now_s += 2 * SETTLE_S
    assert allowed.name_of(PUBLIC, "job") is None
    # As after an owner that has changed, or a file system's error that is over: nothing but the content tells.
    write(path, f"{PUBLIC} a job\n", changed_ns=10**9)
    clock.now_s += LOOK_S
    assert allowed.name_of(PUBLIC, "job") == "a"


def test_a_list_that_is_taken_away_lets_nobody_in_until_it_is_back(tmp_path, caplog):
    path, clock = tmp_path / "allowed", Clock()
    path.write_text(f"{PUBLIC} a job\n")
    allowed = AllowList(path, clock)
    path.rename(tmp_path / "away")
    clock.now_s += LOOK_S
    assert allowed.name_of(PUBLIC, "job") is None
    assert "cannot be read (No such file or directory) and lets nobody in" in caplog.text
    (tmp_path / "away").rename(path)
    assert allowed.name_of(PUBLIC, "job") == "a"


def test_a_list_that_everybody_could_write_is_refused(tmp_path):
    (tmp_path / "a.pub").write_text(f"{PUBLIC} a job\n")
    for path in (tmp_path / "a.pub", tmp_path):
        AllowList(tmp_path)
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        with pytest.raises(KeyFileError, match=r"everybody could write it, chmod o-w"):
            AllowList(tmp_path)
        path.chmod(mode)


def test_a_folder_of_public_keys_is_an_allow_list(tmp_path):
    clock = Clock()
    allowed = AllowList(tmp_path, clock)
    assert allowed.name_of(PUBLIC, "job") is None
    (tmp_path / "a.pub").write_text(f"{PUBLIC} a job")
    (tmp_path / "b.txt").write_text(f"{OTHER} b job")
    clock.now_s += LOOK_S
    assert (allowed.name_of(PUBLIC, "job"), allowed.name_of(OTHER, "job")) == ("a", None)
    (tmp_path / "a.pub").unlink()
    clock.now_s += LOOK_S
    assert allowed.name_of(PUBLIC, "job") is None


def test_a_file_of_a_folder_that_cannot_be_read_is_named_and_the_others_count(tmp_path, caplog):
    clock = Clock()
    (tmp_path / "a.pub").write_text(f"{PUBLIC} a job")
    allowed = AllowList(tmp_path, clock)
    (tmp_path / "b.pub").symlink_to(tmp_path / "nowhere")
    (tmp_path / "c.pub").mkdir()
    (tmp_path / "z.pub").write_text(f"{OTHER} z job")
    for _ in range(3):
        clock.now_s += LOOK_S
        assert (allowed.name_of(PUBLIC, "job"), allowed.name_of(OTHER, "job")) == ("a", "z")
    assert [each.message for each in caplog.records] == [
        f"allow-list {tmp_path}/b.pub cannot be read (No such file or directory) and lets nobody in",
        f"allow-list {tmp_path}/c.pub cannot be read (not a plain file) and lets nobody in",
    ]
    with pytest.raises(KeyFileError, match=rf"{tmp_path}/b\.pub cannot be read"):
        AllowList(tmp_path)


def test_a_list_that_everybody_could_write_for_a_while_lets_nobody_in_for_that_while(tmp_path, caplog):
    path, clock = tmp_path / "allowed", Clock()
    write(path, f"{PUBLIC} a job\n")
    allowed = AllowList(path, clock)
    # Long unchanged; a mode leaves the file's time as it is.
    clock.now_s += SETTLE_S
    assert allowed.name_of(PUBLIC, "job") == "a"
    path.chmod(0o666)
    clock.now_s += LOOK_S
    assert allowed.name_of(PUBLIC, "job") is None
    assert "everybody could write it" in caplog.text
    clock.now_s += SETTLE_S
    assert allowed.name_of(PUBLIC, "job") is None
    path.chmod(0o644)
    clock.now_s += LOOK_S
    assert allowed.name_of(PUBLIC, "job") == "a"


def test_a_missing_list_is_one_line(tmp_path):
    with pytest.raises(KeyFileError, match=r"allowed cannot be read \(No such file"):
        AllowList(tmp_path / "allowed")


def test_keygen_wants_a_role_and_writes_a_line_of_an_allow_list(tmp_path):
    def keygen(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edge_bridge", "keygen", *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    wrong = keygen("mine")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "Missing option '--role'" in wrong.stderr
    assert wrong.stderr.endswith(" (see `edge-bridge keygen --help`)\n")
    assert keygen("mine", "--role", "device", "--name", "agx-1").returncode == 0
    key, name, role = (tmp_path / "mine.pub").read_text().split()
    assert (key, name, role) == (read_key_pair(tmp_path / "mine.key").public, "agx-1", "device")
    again = keygen("mine", "--role", "device")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)


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
        ({"relay_public_key": NO_KEY}, "not usable: its relay_public_key is no key"),
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
