"""Job and device find their relay again, whatever answered on its port, and a job outlives what its relay does."""

from __future__ import annotations

import concurrent.futures
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import bridge_models as models
import msgspec
import pytest
import zmq
from bridge_processes import LIMIT_S, Bridge, until, until_true
from hand_relay import HandRelay

from edge_bridge.client import (
    BridgeClient,
    DevicesChanged,
    Measured,
    MeasurementFailed,
    Progressed,
    RelayBack,
    RelayLost,
)
from edge_bridge.device.uplink import FILES_S, Uplink
from edge_bridge.errors import BridgeUnreachableError, UnfitRequestError
from edge_bridge.wire.keys import Connection, read_connection, read_key_pair, write_key_pair
from edge_bridge.wire.protocol import (
    FRAME_LIMIT_BYTES,
    JOB_TO_RELAY,
    Error,
    Failed,
    Header,
    Hello,
    Measure,
    Pong,
    Progress,
    Welcome,
    decode,
    encode,
)
from edge_bridge.wire.quantities import QualitySettings, Settings, Shard
from edge_bridge.wire.sockets import BURST, REOPEN_S, LinkEvent

pytestmark = pytest.mark.timeout(120)
QUICK = Settings(min_seconds=0.01, max_seconds=5.0, warmup_max_seconds=0.2, attempts=1)
HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"
SSH = b"SSH-2.0-OpenSSH_9.9\r\n"
WELCOME = Welcome(devices=[], jobs=1, queued=0, running=0, uptime_s=1.0, versions={}, minor=1)
H = TypeVar("H", bound=Header)


class Impostor:
    """Another service on a port of the relay's: greets everybody in its own language and hangs up."""

    def __init__(self, endpoint: str, greeting: bytes) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._listener = socket.create_server((host, int(port)))
        self._greeting = greeting
        self.met = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(LIMIT_S)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            with caller, contextlib.suppress(OSError):
                caller.settimeout(LIMIT_S)
                caller.sendall(self._greeting)
                # Until the other side hangs up: it has read the greeting then.
                while caller.recv(4096):
                    pass
            self.met.set()


class JobSide:
    """A relay worked by hand, its job side; the client is in this process and polled while the relay waits."""

    def __init__(self, folder: Path) -> None:
        self.connection = Connection(
            protocol="MPINAS-EDGE/1", job_endpoint=f"ipc://{folder}/job", device_endpoint=f"ipc://{folder}/device"
        )
        self._socket = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(self.connection.job_endpoint)
        self._peer = b""

    def close(self) -> None:
        self._socket.close(0)

    def next(self, kind: type[H], poll: Callable[[], object] = lambda: None) -> H:
        """Next message of this kind; others before it are passed over."""
        end_s = time.monotonic() + LIMIT_S
        while time.monotonic() < end_s:
            poll()
            if self._socket.poll(20):
                self._peer, *frames = self._socket.recv_multipart()
                header = decode(frames, JOB_TO_RELAY).header
                if isinstance(header, kind):
                    return header
        raise AssertionError(f"no {kind.__name__} within {LIMIT_S} s")

    def say(self, header: Header) -> None:
        self.say_frames(encode(header))

    def say_frames(self, frames: list[bytes]) -> None:
        self._socket.send_multipart([self._peer, *frames])


@pytest.fixture
def job_side(tmp_path: Path) -> Iterator[JobSide]:
    made = JobSide(tmp_path)
    yield made
    made.close()


@pytest.fixture
def client(job_side: JobSide) -> Iterator[BridgeClient]:
    """A client that this relay has welcomed."""
    made = BridgeClient(job_side.connection, None)
    job_side.next(Hello, made.poll)
    job_side.say(WELCOME)
    until(made, lambda event: isinstance(event, DevicesChanged))
    yield made
    made.close()


@pytest.fixture
def hand_relay(tmp_path: Path) -> Iterator[HandRelay]:
    made = HandRelay(tmp_path)
    yield made
    made.destroy()


def _until_up(uplink: Uplink) -> None:
    end_s = time.monotonic() + LIMIT_S
    while LinkEvent.UP not in uplink.advance(time.monotonic()):
        assert time.monotonic() < end_s, "the relay was not found"
        poller = zmq.Poller()
        for source in uplink.sockets:
            poller.register(source, zmq.POLLIN)
        poller.poll(round(1000 * min(0.1, uplink.wait_s(time.monotonic()))))


def _ended(event: object) -> bool:
    return isinstance(event, Measured | MeasurementFailed)


# What answers is no relay


@pytest.mark.parametrize("greeting", [HTTP, SSH])
def test_another_service_on_the_relays_ports_is_outlived_by_job_and_device(bridge: Bridge, greeting):
    relay = bridge.relay()
    device = bridge.device()
    device.line()
    client = bridge.client()
    relay.kill()
    impostors = _impostors(bridge.connection, greeting)
    until(client, lambda event: isinstance(event, RelayLost))
    for impostor in impostors:
        until_true(lambda met=impostor.met: client.poll() == [] and met.is_set())
        impostor.close()
    bridge.relay()
    until(client, lambda event: isinstance(event, RelayBack))
    assert device.line() == "registered dut"
    client.close()


def test_another_service_on_the_relays_ports_at_the_start_is_outlived_by_job_and_device(bridge: Bridge):
    bridge.relay().kill()
    impostors = _impostors(bridge.connection, HTTP)
    device = bridge.device()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        opening = pool.submit(bridge.client)
        for impostor in impostors:
            assert impostor.met.wait(LIMIT_S)
            impostor.close()
        bridge.relay()
        opening.result(LIMIT_S).close()
    assert device.line() == "registered dut"


def _impostors(connection: Connection, greeting: bytes) -> list[Impostor]:
    return [Impostor(endpoint, greeting) for endpoint in (connection.job_endpoint, connection.device_endpoint)]


def test_a_frame_beyond_the_limit_from_the_relay_costs_the_job_a_connection(job_side: JobSide, client: BridgeClient):
    request_id = client.submit(b"model", QUICK)
    job_side.next(Measure)
    job_side.say_frames([bytes(FRAME_LIMIT_BYTES + 1)])
    until(client, lambda event: isinstance(event, RelayLost))
    # Not waited for: what will be due is done now.
    client.poll(time.monotonic() + REOPEN_S)
    job_side.next(Hello, client.poll)
    job_side.say(WELCOME)
    until(client, lambda event: isinstance(event, RelayBack))
    assert job_side.next(Measure, client.poll).request_id == request_id


def test_a_frame_beyond_the_limit_from_the_relay_costs_the_device_a_connection(hand_relay: HandRelay):
    uplink = Uplink(lambda: (read_connection(hand_relay.file), None), (hand_relay.file,))
    _until_up(uplink)
    assert uplink.send(Pong())
    hand_relay.next(Pong)
    hand_relay.say_frames([bytes(FRAME_LIMIT_BYTES + 1)])
    until_true(lambda: LinkEvent.DOWN in uplink.advance(time.monotonic()))
    uplink.advance(time.monotonic() + REOPEN_S)
    _until_up(uplink)
    uplink.close()


# The relay is elsewhere, or has another key


def test_a_running_job_finds_a_relay_that_has_moved_and_has_a_new_key(bridge: Bridge, caplog):
    relay = bridge.relay()
    before = bridge.connection

    def access():
        return bridge.connection, bridge.key()

    client = BridgeClient.open(*access(), LIMIT_S, access)
    request_id = client.submit(models.linear(), QUICK)
    relay.kill()
    until(client, lambda event: isinstance(event, RelayLost))
    # 40 characters of base 85, and no key.
    damaged = msgspec.json.encode(before).replace(str(before.relay_public_key).encode(), b"#" * 40)
    bridge.file.write_bytes(damaged)
    client.poll(time.monotonic() + REOPEN_S)
    assert "its relay_public_key is no key; going on with what it said before" in caplog.text
    for path in (bridge.file, bridge.folder / "relay.key", bridge.folder / "relay.pub"):
        path.unlink()
    write_key_pair(bridge.folder / "relay", "relay", "relay")
    bridge.relay()
    assert bridge.connection.job_endpoint != before.job_endpoint
    client.poll(time.monotonic() + 2 * REOPEN_S)
    bridge.device()
    assert until(client, _ended)[-1].request_id == request_id
    client.close()


def test_a_running_device_finds_a_relay_that_has_moved_without_a_word(hand_relay: HandRelay, tmp_path: Path):
    # As with a file that is fetched, or a tunnel that took another port: no file of this machine changes.
    here = read_connection(hand_relay.file)
    says = [msgspec.structs.replace(here, device_endpoint=f"ipc://{tmp_path}/elsewhere")]
    uplink = Uplink(lambda: (says[-1], None), ())
    says.append(here)
    assert uplink.endpoint != here.device_endpoint
    _until_up(uplink)
    assert uplink.endpoint == here.device_endpoint
    uplink.close()


def test_a_running_device_keeps_what_it_has_when_a_file_is_damaged(hand_relay: HandRelay, caplog):
    uplink = Uplink(lambda: (read_connection(hand_relay.file), None), (hand_relay.file,))
    _until_up(uplink)
    good = hand_relay.file.read_bytes()
    hand_relay.file.write_bytes(good.replace(b'"relay_public_key": null', b'"relay_public_key": "%s"' % (b"#" * 40)))
    assert hand_relay.file.read_bytes() != good
    assert uplink.advance(time.monotonic() + FILES_S) == []
    assert "its relay_public_key is no key; going on with what it said before" in caplog.text
    assert uplink.send(Pong())
    hand_relay.next(Pong)
    uplink.close()


def test_a_job_whose_key_was_off_the_list_for_a_moment_gets_its_answer(bridge: Bridge):
    bridge.relay()
    client = bridge.client()
    request_id = client.submit(models.linear(), QUICK)
    (bridge.allowed / "job.pub").unlink()
    until(client, lambda event: isinstance(event, RelayLost))
    bridge.allow("job")
    bridge.device()
    assert until(client, _ended)[-1].request_id == request_id
    client.close()


# What a relay does with a job


def test_a_job_says_hello_again_until_the_relay_has_room(job_side: JobSide):
    client = BridgeClient(job_side.connection, None)
    job_side.next(Hello, client.poll)  # lost
    job_side.next(Hello, client.poll)
    job_side.say(Error(code="full", detail="the relay serves 64 jobs, come back later"))
    job_side.next(Hello, client.poll)
    job_side.say(WELCOME)
    until(client, lambda event: isinstance(event, DevicesChanged))
    assert client.welcome == WELCOME
    client.close()


def test_a_relay_that_is_full_is_not_taken_for_none(job_side: JobSide):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        opening = pool.submit(BridgeClient.open, job_side.connection, None, 1.0)
        job_side.next(Hello)
        job_side.say(Error(code="full", detail="the relay serves 64 jobs, come back later"))
        with pytest.raises(BridgeUnreachableError, match="takes no more jobs: the relay serves 64 jobs"):
            opening.result(LIMIT_S)


def test_a_deadline_is_its_own_requests(job_side: JobSide, client: BridgeClient):
    request_id = client.submit(b"model", QUICK, deadline_s=100.0)
    job_side.next(Measure)
    job_side.say(Failed(request_id=request_id, reason="bad-model", detail="it is none"))
    until(client, _ended)
    assert client.submit(b"model", QUICK) == request_id
    assert client.poll(time.monotonic() + 200.0) == []
    assert client.outstanding == 1
    client.cancel(request_id)
    client.submit(b"model", QUICK, deadline_s=300.0)
    assert client.poll(time.monotonic() + 200.0) == []
    (failed,) = client.poll(time.monotonic() + 400.0)
    assert (failed.request_id, failed.reason) == (request_id, "deadline")


def test_a_relay_that_never_stops_talking_does_not_hold_the_job(job_side: JobSide, client: BridgeClient):
    request_id = client.submit(b"model", QUICK)
    job_side.next(Measure)
    told = 10 * BURST
    for number in range(told):
        job_side.say(Progress(request_id=request_id, phase="measuring", elapsed_s=float(number)))
    came: list[float] = []
    while len(came) < told:
        assert client.sockets[0].poll(LIMIT_S * 1000), "what was left over is not announced"
        fresh = [event.elapsed_s for event in client.poll() if isinstance(event, Progressed)]
        assert len(fresh) <= BURST
        came += fresh
    assert came == [float(number) for number in range(told)]


ONE = {"input_type": "float32", "target_shape": (1, 1)}


@pytest.mark.parametrize(
    ("settings", "more", "says"),
    [
        (QUICK, {"profile": "x" * 121}, "length <= 120"),
        (QUICK, {"profile": ""}, "length >= 1"),
        (QUICK, {"priority": 10}, "<= 9"),
        (QUICK, {"priority": -1}, ">= 0"),
        (Settings(batches=(1,) * 40_000), {}, "at most 65536 are taken"),
        (Settings(threads=0), {}, ">= 1"),
        (QualitySettings(shard=Shard(sha256="no digest", input_shape=(1, 1), **ONE)), {}, "matching regex"),
        (QualitySettings(shard=Shard(sha256="0" * 64, input_shape=(1,) * 50_000, **ONE)), {}, "at most 65536"),
    ],
)
def test_a_request_that_no_relay_would_take_is_not_sent(job_side: JobSide, client: BridgeClient, settings, more, says):
    arguments = (settings,) if isinstance(settings, Settings) else (b"\0" * 8, settings)
    ask = client.submit if isinstance(settings, Settings) else client.judge
    with pytest.raises(UnfitRequestError, match=says):
        ask(b"model", *arguments, **more)
    assert client.outstanding == 0
    # The first that comes is the good one, and the job is still there.
    request_id = client.submit(b"model", QUICK)
    assert job_side.next(Header, client.poll).request_id == request_id


def test_a_key_that_is_rolled_over_badly_is_logged_and_the_old_one_stays(bridge: Bridge, caplog):
    bridge.relay()
    file = bridge.folder / "mine.key"
    file.write_bytes((bridge.folder / "job.key").read_bytes())
    file.chmod(0o600)

    def access():
        return bridge.connection, read_key_pair(file)

    client = BridgeClient.open(*access(), LIMIT_S, access)
    file.write_bytes(file.read_bytes().replace(bridge.key().secret.encode(), b"#" * 40))
    (bridge.allowed / "job.pub").unlink()
    until(client, lambda event: isinstance(event, RelayLost))
    bridge.allow("job")
    until(client, lambda event: isinstance(event, RelayBack))
    assert (
        f"key file {file} is no secret key made by `edge-bridge keygen`: those are called NAME.key; going on"
        in caplog.text
    )
    client.close()


def test_a_connection_that_wants_a_key_is_not_opened_without_one(job_side: JobSide, bridge: Bridge, caplog):
    bridge.relay()
    nowhere = msgspec.structs.replace(job_side.connection, job_endpoint=f"ipc://{bridge.folder}/nowhere")
    says = [bridge.connection]
    client = BridgeClient(nowhere, None, lambda: (says[-1], None))
    client.poll(time.monotonic() + REOPEN_S)
    assert "takes known keys only" in caplog.text
    says.append(job_side.connection)
    client.poll(time.monotonic() + 2 * REOPEN_S)
    job_side.next(Hello, client.poll)
    client.close()
