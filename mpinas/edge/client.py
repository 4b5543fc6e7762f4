"""Candidates to requests and back: what the coordinator's loop knows of the bridge.

Never blocks once it is open. Must not know how a measurement is decided on or what becomes of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from edge_bridge import client as bridge
from edge_bridge.errors import BridgeError
from edge_bridge.wire.keys import read_connection, read_key_pair
from edge_bridge.wire.quantities import ANY_PROFILE, Profile, Settings
from mpinas.coordination.events import DeviceBack, DeviceLost, Measured, MeasurementFailed
from mpinas.edge.local import LocalBridge
from mpinas.errors import UserError

#: A device that has not come so long after the start is reported as lost.
FIRST_DEVICE_S = 15.0


__all__ = ["DeviceBack", "DeviceLost", "EdgeClient", "EdgeEvent", "Measured", "MeasurementFailed", "open_edge"]

EdgeEvent = Measured | MeasurementFailed | DeviceLost | DeviceBack


class EdgeClient:
    """Measures candidates over a bridge. Made by `open_edge`.

    Parameters
    ----------
    client
        An open client of the bridge.
    settings, profile
        How, and on which device, every candidate is measured.
    local
        The bridge that this job has started, if it has; closed with the client.
    """

    def __init__(
        self, client: bridge.BridgeClient, settings: Settings, profile: str, local: LocalBridge | None = None
    ) -> None:
        self._client = client
        self._settings = settings
        self._profile = profile
        self._local = local
        #: Candidates that wait for each request; two with the same model share one.
        self._waiting: dict[str, list[int]] = {}
        #: None until a device, or the lack of one, has been reported.
        self._device_there: bool | None = None
        self._opened_s = time.monotonic()

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """Sockets for a zmq.Poller: when one is readable, `poll` has something to do."""
        return self._client.sockets

    @property
    def outstanding(self) -> int:
        """Number of candidates without an answer."""
        return sum(map(len, self._waiting.values()))

    @property
    def local(self) -> LocalBridge | None:
        """The bridge that this job has started, if it has."""
        return self._local

    def measure(self, candidate: int, model: bytes) -> None:
        """Ask for a candidate's latency; `poll` brings the answer.

        Parameters
        ----------
        model
            The ONNX file's bytes.
        """
        request_id = self._client.submit(model, self._settings, self._profile)
        waiting = self._waiting.setdefault(request_id, [])
        if candidate not in waiting:
            waiting.append(candidate)

    def cancel(self, candidate: int) -> None:
        """Forget a candidate; no answer for it follows."""
        for request_id, waiting in list(self._waiting.items()):
            if candidate in waiting:
                waiting.remove(candidate)
                if not waiting:
                    del self._waiting[request_id]
                    self._client.cancel(request_id)

    def poll(self) -> list[EdgeEvent]:
        """Do what is due without blocking, and return what has happened.

        Raises
        ------
        UserError
            When the local bridge cannot be kept alive.
        """
        events: list[EdgeEvent] = []
        if self._device_there is None and (there := self._fitting(self._client.devices)):
            events += self._device_is(True, _names(there))
        for told in self._local.revive() if self._local is not None else []:
            events += self._device_is(False, told)
        for event in self._client.poll():
            events += self._translate(event)
        if self._device_there is None and time.monotonic() - self._opened_s > FIRST_DEVICE_S:
            events += self._device_is(False, "no device has registered with the relay yet")
        return events

    def close(self) -> None:
        """Close the connection, and end the local bridge if there is one."""
        self._client.close()
        if self._local is not None:
            self._local.close()

    def _translate(self, event: bridge.ClientEvent) -> list[EdgeEvent]:  # noqa: PLR0911 - one case an event
        match event:
            case bridge.Measured(request_id, measurement):
                values: dict[str, Any] = msgspec.to_builtins(measurement)
                return [Measured(each, dict(values)) for each in self._waiting.pop(request_id, [])]
            case bridge.MeasurementFailed(request_id, reason, detail):
                return [MeasurementFailed(each, reason, detail) for each in self._waiting.pop(request_id, [])]
            case bridge.DevicesChanged(devices):
                if fitting := self._fitting(devices):
                    return self._device_is(True, _names(fitting))
                return self._device_is(False, "the device has gone away") if self._device_there else []
            case bridge.RelayLost(detail):
                return self._device_is(False, detail)
            case bridge.RelayBack():
                there = self._fitting(self._client.devices)
                return self._device_is(True, "the relay is back") if there else []
            case bridge.Progressed():
                return []

    def _fitting(self, devices: Iterable[Profile]) -> list[Profile]:
        return [each for each in devices if self._profile in (ANY_PROFILE, each.name)]

    def _device_is(self, there: bool, detail: str) -> list[EdgeEvent]:
        """Report a change, once."""
        if self._device_there is there:
            return []
        self._device_there = there
        return [DeviceBack(detail) if there else DeviceLost(detail)]


def _names(devices: Iterable[Profile]) -> str:
    return ", ".join(f"{each.name} ({each.hardware})" for each in devices)


def open_edge(
    where: str,
    *,
    settings: Settings,
    log_folder: Path,
    key_file: str | None = None,
    profile: str = ANY_PROFILE,
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
    profile
        Name of the device to measure on, or "any".
    timeout_s
        How long the relay may take to answer.

    Raises
    ------
    UserError
        When the bridge cannot be reached, a file is missing or unfit, or the relay does not know the key.
    """
    local = LocalBridge(log_folder) if where == "local" else None
    try:
        connection = read_connection(local.connection_file if local else Path(where))
        if connection.relay_public_key is not None and key_file is None:
            raise UserError(
                f"bridge {where} takes known keys only: name a key file made by `edge-bridge keygen`, "
                "as in --set edge.key=job.key"
            )
        key = read_key_pair(Path(key_file)) if key_file and connection.relay_public_key else None
        client = bridge.BridgeClient.open(connection, key, timeout_s)
    except BaseException as error:
        if local is not None:
            local.close()
        if isinstance(error, BridgeError):
            raise UserError(str(error)) from None
        raise
    return EdgeClient(client, settings, profile, local)
