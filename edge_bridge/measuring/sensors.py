"""What the machine says of its own state around a measurement: the sensors that this machine has.

Cheap to open and to read, for the measuring child does both beside the timed runs. Must not know
measurements or runtimes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from edge_bridge.measuring.sysfs import TEMPERATURES_C, LinuxSensors
from edge_bridge.wire.quantities import Readings

#: Socket of jtop's service. Without it the package is of no use, and importing it would only cost time.
JTOP_SOCKET = Path("/run/jtop.sock")
#: Seconds between updates asked of jtop's service: rarely, for each one wakes a thread of this process.
JTOP_INTERVAL_S = 1.0


class Sensors(Protocol):
    """A way to read the machine's state."""

    @property
    def name(self) -> str:
        """Name told with each reading."""

    def read(self) -> Readings:
        """Read once; what cannot be read is left out. Power and energy are read first: they are those of what has just
        been run."""

    def energy_j(self) -> float | None:
        """The counter of energy alone; see `edge_bridge.wire.quantities.Readings`."""

    def power_w(self) -> float | None:
        """The power of this very moment alone; None where the machine tells only what it was some time ago."""

    def close(self) -> None:
        """Let go of what is held."""


class NoSensors:
    """A machine that tells nothing."""

    name = "none"

    def read(self) -> Readings:
        """Nothing."""
        return Readings()

    def energy_j(self) -> float | None:
        """Nothing."""
        return None

    def power_w(self) -> float | None:
        """Nothing."""
        return None

    def close(self) -> None:
        """Nothing is held."""


class JtopSensors:
    """Temperatures, clocks and power of a Jetson as its jtop service tells them; throttling from /sys.

    Parameters
    ----------
    client
        A started `jtop.jtop` of version 4.
    linux
        For what jtop does not tell.
    """

    name = "jtop"

    def __init__(self, client: Any, linux: LinuxSensors) -> None:
        self._client = client
        self._linux = linux

    def read(self) -> Readings:
        """Read once: what the service told last."""
        below = self._linux.read()
        try:
            temperatures = {
                str(name)[:100]: float(each["temp"])
                for name, each in _mapping(self._client.temperature).items()
                if each.get("online", True) and TEMPERATURES_C[0] < each["temp"] < TEMPERATURES_C[1]
            }
            total = _mapping(_mapping(self._client.power).get("tot"))
            power_w = float(total["power"]) / 1e3 if "power" in total else None
            clocks = {
                str(name)[:100]: float(each["freq"]["cur"]) * 1e3
                for name, each in _mapping(self._client.gpu).items()
                if "cur" in _mapping(each.get("freq"))
            }
        except (AttributeError, KeyError, TypeError, ValueError):
            return below  # of another version, or its service has just gone
        return Readings(
            sensor=self.name,
            temperatures_c=temperatures or below.temperatures_c,
            clocks_hz={**below.clocks_hz, **clocks},
            power_w=power_w if power_w is not None else below.power_w,
            energy_j=below.energy_j,
            throttle_events=below.throttle_events,
        )

    def energy_j(self) -> float | None:
        """What /sys tells."""
        return self._linux.energy_j()

    def power_w(self) -> float | None:
        """What /sys tells: jtop's own may be as old as its interval."""
        return self._linux.power_w()

    def close(self) -> None:
        """Leave the service."""
        with contextlib.suppress(Exception):
            self._client.close()


def open_sensors(root: Path = Path("/")) -> Sensors:
    """Open the best sensors of this machine.

    /sys comes first: reading it disturbs nothing. jtop, which keeps a thread, is asked only where /sys does not tell
    the power (on a Jetson whose files this user may not read).
    """
    linux = LinuxSensors(root)
    if not linux.tells_power() and JTOP_SOCKET.exists() and find_spec("jtop") is not None:
        with contextlib.suppress(Exception):  # whatever is wrong with the service, a measurement goes without it
            client = import_module("jtop").jtop(interval=JTOP_INTERVAL_S)
            client.start()
            return JtopSensors(client, linux)
    read = linux.read()
    if read == Readings(sensor=read.sensor):
        return NoSensors()
    return linux


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
