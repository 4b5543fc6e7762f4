"""What must be right on a device before it measures, or for a job to reach its relay, one thing at a time.

Each check returns findings and has a limit on its time; none changes anything. Must not print.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import msgspec
import zmq

from edge_bridge.device.drift import DriftPlan
from edge_bridge.device.profile import ProbeError, ask_runtime
from edge_bridge.device.reference import SETTINGS, reference_model
from edge_bridge.errors import BridgeError
from edge_bridge.measuring.lines import FailureLine, MeasuredLine
from edge_bridge.measuring.measurer import ChildLimits, Measurer
from edge_bridge.measuring.sensors import open_sensors
from edge_bridge.measuring.sysfs import governors, power_mode
from edge_bridge.wire.keys import KeyPair
from edge_bridge.wire.quantities import Profile, Readings
from edge_bridge.wire.sockets import Context, Link, LinkEvent

Level = Literal["OK", "WARN", "FAIL"]
#: Of the relay.
Side = Literal["job", "device"]
#: Longest wait for the relay's port, and for its handshake.
REACH_S, HANDSHAKE_S = 5.0, 5.0
#: Readings of the reference model, and how long they may take together.
READINGS = 5
READINGS_S = 180.0
SPACE_BYTES = 200 << 20
#: Of one core: other programs that take more than this disturb a measurement.
LOAD = 0.5
_PACKAGES = ("click", "msgspec", "numpy", "pyzmq", "rich")


class Finding(msgspec.Struct, frozen=True):
    """One line: what was looked at, how it is, and what to do if it is not well."""

    check: str
    level: Level
    text: str


def check_packages() -> Iterator[Finding]:
    """Python and the packages that the agent needs."""
    found, missing = [f"Python {platform.python_version()}"], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding("packages", "FAIL", f"missing: {', '.join(missing)}; pip install '.[device]'")
    else:
        yield Finding("packages", "OK", ", ".join(found))


def check_runtime(runtime: str, provider: str) -> Iterator[Finding]:
    """The runtime can be imported, in a process of its own, and has the provider."""
    try:
        precisions = ask_runtime(runtime, provider)
    except ProbeError as error:
        yield Finding("runtime", "FAIL", str(error))
    else:
        yield Finding("runtime", "OK", f"{runtime} has {provider}; precisions: {', '.join(precisions)}")


def check_sensors() -> Iterator[Finding]:
    """What the machine tells of its state."""
    sensors = open_sensors()
    start_s = time.monotonic()
    reading = sensors.read()
    took_ms = (time.monotonic() - start_s) * 1e3
    sensors.close()
    told, untold = _told(reading)
    if not told:
        yield Finding("sensors", "WARN", "this machine tells nothing of its state (a virtual one?): heat goes unseen")
        return
    text = f"{reading.sensor}: {', '.join(told)} ({took_ms:.1f} ms a reading)"
    if untold:
        text += f"; not told: {', '.join(untold)}"
        if "energy or power" in untold and Path("/sys/class/powercap/intel-rapl:0").exists():
            text += " (energy_uj of powercap is root's alone: allow it to be read, or run as root)"
    yield Finding("sensors", "WARN" if untold else "OK", text)


def _told(reading: Readings) -> tuple[list[str], list[str]]:
    kinds = {
        f"{len(reading.temperatures_c)} temperatures": bool(reading.temperatures_c),
        f"{len(reading.clocks_hz)} clocks": bool(reading.clocks_hz),
        "energy or power": reading.power_w is not None or reading.energy_j is not None,
        "throttling": reading.throttle_events is not None,
    }
    told = [name for name, is_told in kinds.items() if is_told]
    return told, [name.removeprefix("0 ") for name, is_told in kinds.items() if not is_told]


def check_power_mode(root: Path = Path("/")) -> Iterator[Finding]:
    """Clocks that stay where they are."""
    mode, used = power_mode(root), governors(root)
    if not mode:
        yield Finding("power mode", "WARN", "this machine does not tell its power mode or governor")
    elif (root / "var/lib/nvpmodel/status").exists():
        yield Finding("power mode", "OK", f"{mode}; `sudo jetson_clocks` keeps its clocks at their highest")
    elif used == ["performance"]:
        yield Finding("power mode", "OK", "governor performance")
    else:
        yield Finding(
            "power mode", "WARN",
            f"governor {', '.join(used)}: clocks will change; `sudo cpupower frequency-set -g performance`",
        )  # fmt: skip


def check_load() -> Iterator[Finding]:
    """Nobody else at work."""
    load = os.getloadavg()[0]
    text = f"{load:.2f} over the last minute on {os.cpu_count()} cores"
    if load > LOAD:
        yield Finding("load", "WARN", f"{text}: end what else runs here, it disturbs what is measured")
    else:
        yield Finding("load", "OK", text)


def check_state(folder: Path) -> Iterator[Finding]:
    """Results can be kept."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".edge-bridge-check-") as probe:
            probe.write(b"x" * 4096)
            probe.flush()
        free_bytes = shutil.disk_usage(existing).free
    except OSError as error:
        yield Finding("state folder", "FAIL", f"{existing} cannot be written ({error.strerror}): give --state")
        return
    text = f"{folder}: {free_bytes / 2**30:.1f} GiB free"
    if free_bytes < SPACE_BYTES:
        yield Finding("state folder", "WARN", f"{text}: results stay in memory once that is used up, make room")
    else:
        yield Finding("state folder", "OK", text)


def check_reach(endpoint: str, side: Side) -> Iterator[Finding]:
    """Something listens where the relay should."""
    kind, _, place = endpoint.partition("://")
    try:
        if kind == "ipc":
            with socket.socket(socket.AF_UNIX) as unix:
                unix.settimeout(REACH_S)
                unix.connect(place)
        else:
            host, _, port = place.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        yield Finding(
            "reach", "FAIL",
            f"{endpoint}: {reason}; is the relay running, and the way open?"
            f"{' else `edge-bridge device --ssh LOGIN`' if side == 'device' else ''}",
        )  # fmt: skip
    else:
        yield Finding("reach", "OK", f"{endpoint} answers")


def check_handshake(endpoint: str, side: Side, key: KeyPair | None, relay_key: str | None) -> Iterator[Finding]:
    """The relay is the right one, and lets this key in on this side."""
    context: Context = zmq.Context()
    try:
        link = Link(context, endpoint, key, relay_key)
        start_s = time.monotonic()
        try:
            outcome = _first_event(link, start_s + HANDSHAKE_S)
        finally:
            link.close()
    except BridgeError as error:
        yield Finding("handshake", "FAIL", str(error))
        return
    finally:
        context.destroy(linger=0)
    took_ms = (time.monotonic() - start_s) * 1e3
    match outcome:
        case LinkEvent.UP:
            yield Finding("handshake", "OK", f"the relay has let this key in as a {side} after {took_ms:.0f} ms")
        case LinkEvent.KEY_REFUSED:
            text = f"the relay does not know this key: add its .pub line, of role {side}, to the relay's allow-list"
            yield Finding("handshake", "FAIL", text)
        case LinkEvent.NO_HANDSHAKE:
            text = "what answers is not the relay of this connection file: copy the relay's latest"
            yield Finding("handshake", "FAIL", text)
        case _:
            yield Finding("handshake", "FAIL", f"no handshake within {HANDSHAKE_S:g} s: is the relay alive?")


def _first_event(link: Link, end_s: float) -> LinkEvent | None:
    while (left_s := end_s - time.monotonic()) > 0:
        link.monitor.poll(round(left_s * 1000))
        for event in link.events():
            if event is not LinkEvent.DOWN:
                return event
    return None


def check_reference(profile: Profile) -> Iterator[Finding]:
    """The runtime loads and runs a model, the same way each time."""
    readings: list[float] = []
    for measured in _measure_reference(profile):
        if isinstance(measured, str):
            yield Finding("reference model", "FAIL", measured)
            return
        readings.append(measured)
    median_s = statistics.median(readings)
    spread = (max(readings) - min(readings)) / median_s
    text = f"p50 {median_s * 1e3:.3f} ms, {len(readings)} readings within {spread:.1%}"
    if spread > DriftPlan().band:
        yield Finding("reference model", "WARN", f"{text}: not steady; look at load, power mode and cooling")
    else:
        yield Finding("reference model", "OK", text)


def _measure_reference(profile: Profile) -> Iterator[float | str]:
    """Readings in seconds; or, as the last, what went wrong."""
    model, end_s = reference_model(), time.monotonic() + READINGS_S
    measurer = Measurer(profile, ChildLimits())
    poller_ms = 100
    try:
        for _ in range(READINGS):
            measurer.begin(model, SETTINGS)
            while measurer.busy:
                poller = zmq.Poller()
                for descriptor in measurer.descriptors():
                    poller.register(descriptor, zmq.POLLIN)
                poller.poll(poller_ms)
                for line in measurer.advance():
                    if isinstance(line, MeasuredLine):
                        yield line.measurement.p50_s
                    elif isinstance(line, FailureLine):
                        yield f"{line.reason}: {line.detail}"
                        return
                if time.monotonic() > end_s:
                    yield f"not measured within {READINGS_S:g} s"
                    return
    finally:
        measurer.close()
