"""Candidates to requests and back: what the coordinator's loop knows of the bridge.

Never blocks once it is open. Must not know how a measurement is decided on or what becomes of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zmq

from edge_bridge import client as bridge
from edge_bridge.errors import BridgeError, UnfitRequestError
from edge_bridge.wire.keys import Connection, KeyPair, read_connection, read_key_pair
from edge_bridge.wire.quantities import ANY_PROFILE, Measurement, Profile, Quality, QualitySettings, Settings, Shard
from mpinas.coordination.events import (
    DeviceBack,
    DeviceLost,
    Doubted,
    Judged,
    JudgingFailed,
    Measured,
    MeasurementFailed,
)
from mpinas.edge.local import LocalBridge
from mpinas.errors import UserError
from mpinas.history import shard as shards

#: A device that has not come so long after the start is reported as lost.
FIRST_DEVICE_S = 15.0
#: Longest text of a doubt that is kept.
DOUBT_CHARACTERS = 200

EdgeEvent = Measured | MeasurementFailed | Doubted | Judged | JudgingFailed | DeviceLost | DeviceBack


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request was sent for: a latency, or the error of a trained model if one is `expected`."""

    candidate: int
    device: str
    repetition: int = 0
    expected: float | None = None


class EdgeClient:
    """Measures and judges candidates over a bridge. Made by `open_edge`.

    Parameters
    ----------
    client
        An open client of the bridge.
    settings
        How every candidate is measured.
    devices
        The device profiles that may be asked for; their coming and going is reported.
    normalise
        Whether latencies are to be used as the device's reference model says they usually are.
    local
        The bridge that this job has started, if it has; closed with the client.
    """

    def __init__(
        self,
        client: bridge.BridgeClient,
        settings: Settings,
        devices: Sequence[str],
        *,
        normalise: bool = False,
        local: LocalBridge | None = None,
    ) -> None:
        self._client = client
        self._settings = settings
        self._normalise = normalise
        self._local = local
        #: What waits for each request; two candidates with the same model share one.
        self._waiting: dict[str, list[_Asked]] = {}
        #: What no relay would have taken, to be told by `poll`.
        self._refused: list[MeasurementFailed | JudgingFailed] = []
        #: By profile; None until a device, or the lack of one, has been reported.
        self._there: dict[str, bool | None] = dict.fromkeys(devices)
        self._opened_s = time.monotonic()

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """Sockets for a zmq.Poller: when one is readable, `poll` has something to do."""
        return self._client.sockets

    @property
    def outstanding(self) -> int:
        """Number of questions without an answer."""
        return sum(map(len, self._waiting.values()))

    @property
    def local(self) -> LocalBridge | None:
        """The bridge that this job has started, if it has."""
        return self._local

    def measure(self, candidate: int, model: bytes, device: str = ANY_PROFILE, repetition: int = 0) -> None:
        """Ask for a candidate's latency on a device; `poll` brings the answer.

        Parameters
        ----------
        model
            The ONNX file's bytes.
        repetition
            Another number asks for another measurement of the same model.
        """
        settings = msgspec.structs.replace(self._settings, repetition=repetition)
        self._ask(lambda: self._client.submit(model, settings, device), _Asked(candidate, device, repetition))

    def judge(self, candidate: int, device: str, model: bytes, about: shards.Shard, data: bytes) -> None:
        """Ask for a trained model's error on labelled samples, in the precision that latencies are measured in.

        Parameters
        ----------
        about, data
            The samples, as `history.shard` keeps them.
        """
        settings = QualitySettings(
            shard=Shard(
                sha256=about.sha256,
                input_shape=about.input_shape,
                input_type=about.input_type,
                target_shape=about.target_shape,
            ),
            metric=about.metric,
            threads=self._settings.threads,
            precision=self._settings.precision,
        )
        asked = _Asked(candidate, device, 0, about.error)
        self._ask(lambda: self._client.judge(model, data, settings, device), asked)

    def cancel(self, candidate: int) -> None:
        """Forget a candidate; no answer for it follows."""
        self._refused = [event for event in self._refused if event.candidate != candidate]
        for request_id, waiting in list(self._waiting.items()):
            left = [asked for asked in waiting if asked.candidate != candidate]
            if left:
                self._waiting[request_id] = left
            else:
                del self._waiting[request_id]
                self._client.cancel(request_id)

    def poll(self) -> list[EdgeEvent]:
        """Do what is due without blocking, and return what has happened.

        Raises
        ------
        UserError
            When the local bridge cannot be kept alive.
        """
        events: list[EdgeEvent] = [*self._refused]
        self._refused.clear()
        if None in self._there.values():
            events += self._compare(self._client.devices, "")
        for told in self._local.revive() if self._local is not None else []:
            events += self._all_lost(told)
        for event in self._client.poll():
            events += self._translate(event)
        if self._local is not None and self._local.device_registered():
            # started again fast enough, it is to the relay the device that it knows
            events += self._compare(self._client.devices, "")
        if None in self._there.values() and time.monotonic() - self._opened_s > FIRST_DEVICE_S:
            for profile, there in self._there.items():
                if there is None:
                    events += self._device_is(profile, False, "no device has registered with the relay yet")
        return events

    def close(self) -> None:
        """Close the connection, and end the local bridge if there is one."""
        self._client.close()
        if self._local is not None:
            self._local.close()

    def _ask(self, send: Callable[[], str], asked: _Asked) -> None:
        try:
            request_id = send()
        except UnfitRequestError as error:  # as of a model that is larger than any relay takes
            self._refused.append(_failed(asked, "refused", str(error)))
            return
        waiting = self._waiting.setdefault(request_id, [])
        if asked not in waiting:
            waiting.append(asked)

    def _translate(self, event: bridge.ClientEvent) -> list[EdgeEvent]:  # noqa: PLR0911 - one case an event
        match event:
            case bridge.Measured(request_id, measurement):
                return [self._measured(each, request_id, measurement) for each in self._waiting.pop(request_id, [])]
            case bridge.Judged(request_id, quality):
                return [_judged(each, quality) for each in self._waiting.pop(request_id, [])]
            case bridge.MeasurementFailed(request_id, reason, detail):
                return [_failed(each, reason, detail) for each in self._waiting.pop(request_id, [])]
            case bridge.Doubted(request_ids, detail):
                return [Doubted(tuple(request_ids), detail[:DOUBT_CHARACTERS])]
            case bridge.DevicesChanged(devices):
                return self._compare(devices, "the device has gone away")
            case bridge.RelayLost(detail):
                return self._all_lost(detail)
            case bridge.RelayBack():
                return self._compare(self._client.devices, "")
            case bridge.Progressed():
                return []

    def _measured(self, asked: _Asked, request_id: str, measurement: Measurement) -> Measured:
        values: dict[str, Any] = msgspec.to_builtins(measurement)
        return Measured(
            asked.candidate,
            values,
            asked.device,
            asked.repetition,
            tuple(doubt[:DOUBT_CHARACTERS] for doubt in measurement.doubts()),
            measurement.normalised(1.0) if self._normalise else 1.0,
            request_id,
        )

    def _compare(self, devices: Iterable[Profile], gone: str) -> list[EdgeEvent]:
        """Report whose device has come and, if `gone` says how to put it, whose has gone."""
        devices = list(devices)
        events: list[EdgeEvent] = []
        for profile, there in self._there.items():
            if fitting := [each for each in devices if profile in (ANY_PROFILE, each.name)]:
                events += self._device_is(profile, True, _names(fitting))
            elif gone and there:
                events += self._device_is(profile, False, gone)
        return events

    def _all_lost(self, detail: str) -> list[EdgeEvent]:
        return [event for profile in self._there for event in self._device_is(profile, False, detail)]

    def _device_is(self, profile: str, there: bool, detail: str) -> list[EdgeEvent]:
        """Report a change, once."""
        if self._there[profile] is there:
            return []
        self._there[profile] = there
        return [DeviceBack(detail, profile) if there else DeviceLost(detail, profile)]


def _judged(asked: _Asked, quality: Quality) -> Judged:
    assert asked.expected is not None
    return Judged(asked.candidate, asked.device, quality.error, asked.expected, quality.precision, quality.device)


def _failed(asked: _Asked, reason: str, detail: str) -> MeasurementFailed | JudgingFailed:
    if asked.expected is not None:
        return JudgingFailed(asked.candidate, asked.device, reason, detail)
    return MeasurementFailed(asked.candidate, reason, detail, asked.device, asked.repetition)


def _names(devices: Iterable[Profile]) -> str:
    return ", ".join(f"{each.name} ({each.hardware})" for each in devices)


def open_edge(
    where: str,
    *,
    settings: Settings,
    log_folder: Path,
    key_file: str | None = None,
    devices: Sequence[str] = (ANY_PROFILE,),
    normalise: bool = False,
    timeout_s: float = 30.0,
) -> EdgeClient:
    """Open the bridge to the device.

    Parameters
    ----------
    where
        "local" to start relay and agent on this machine, or the path of a relay's connection file.
    settings
        How to measure; for a percentile `MeasurementSettings(percentile="p90")` takes the samples it needs.
    log_folder
        For the logs of a local bridge.
    key_file
        This job's key, for a relay on a network.
    devices
        Names of the device profiles to measure on, or "any" alone.
    normalise
        As in `EdgeClient`.
    timeout_s
        How long the relay may take to answer.

    Raises
    ------
    UserError
        When the bridge cannot be reached, a file is missing or unfit, or the relay does not know the key.
    """
    local = LocalBridge(log_folder) if where == "local" else None
    try:
        connection_file = local.connection_file if local else Path(where)
        connection = read_connection(connection_file)
        if connection.relay_public_key is not None and key_file is None:
            raise UserError(
                f"bridge {where} takes known keys only: name a key file made by `edge-bridge keygen`, "
                "as in --set edge.key=job.key"
            )

        def access() -> tuple[Connection, KeyPair | None]:
            now = read_connection(connection_file)
            return now, read_key_pair(Path(key_file)) if key_file and now.relay_public_key else None

        client = bridge.BridgeClient.open(*access(), timeout_s, access)
    except BaseException as error:
        if local is not None:
            local.close()
        if isinstance(error, BridgeError):
            raise UserError(str(error)) from None
        raise
    return EdgeClient(client, settings, devices, normalise=normalise, local=local)
