"""Sensors of a Linux machine, read from /sys: temperatures, clocks, power, energy, throttling.

Reads files and nothing else; one that is missing or cannot be read is normal and counts as untold. Must not
know measurements or runtimes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from edge_bridge.wire.quantities import Readings

#: Most files of one kind, so that one reading stays well under 5 ms on a machine of many cores.
MOST_TEMPERATURES = 32
MOST_CLOCKS = 32
MOST_COUNTERS = 64
#: A sensor that is switched off says -256 °C; what is outside of these is no temperature of a running machine.
TEMPERATURES_C = (-60.0, 200.0)
#: Rails of Jetson boards that feed all the others: their power is the whole module's.
_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")
#: Cooling devices that slow a processor down; others are fans.
_SLOWING = re.compile(r"processor|cpu|gpu|devfreq|powerclamp|throttl", re.IGNORECASE)
_GPU = re.compile(r"\.(gpu|g[a-z]\d+b)$", re.IGNORECASE)


@dataclass(slots=True)
class _Zone:
    """One energy counter of powercap; it starts again from 0 after `range_uj`."""

    file: str
    range_uj: int
    last_uj: int | None = None
    total_uj: int = 0

    def read_j(self) -> float | None:
        now_uj = _number(self.file)
        if now_uj is None:
            return None
        if self.last_uj is not None:
            grown_uj = now_uj - self.last_uj
            self.total_uj += grown_uj if grown_uj >= 0 else grown_uj + self.range_uj
        self.last_uj = now_uj
        return self.total_uj / 1e6


@dataclass(slots=True)
class LinuxSensors:
    """What /sys tells; `root` is "/" but for tests.

    Which files there are is found out once; each reading opens and reads them anew. `energy_j` is kept whole
    over the wrap of a counter as long as it wraps at most once between two readings (minutes apart).
    `throttle_events` counts what the kernel counts, and one more for each reading at which, or before which, a
    cooling device was slowing a processor down.

    `power_w` is that of the rail that feeds all others, where there is one, else the sum of all rails, as jtop has it;
    `name` tells which.
    """

    root: Path = Path("/")
    name: str = "linux"
    _temperatures: dict[str, str] = field(default_factory=dict)
    _clocks: dict[str, str] = field(default_factory=dict)
    #: Voltage (mV) and current (mA) of each rail.
    _rails: dict[str, tuple[str, str]] = field(default_factory=dict)
    _zones: list[_Zone] = field(default_factory=list)
    _counters: list[str] = field(default_factory=list)
    _slowing: list[str] = field(default_factory=list)
    _slowed_before: bool = False
    _slowed_readings: int = 0

    def __post_init__(self) -> None:
        self._find_thermal()
        self._find_hwmon()
        self._find_clocks()
        self._find_energy()
        if self._rails:
            whole = [rail for rail in _TOTAL_RAILS if rail in self._rails]
            self.name = f"linux ({' + '.join(whole[:1] or self._rails)})"[:120]

    def read(self) -> Readings:
        """Read everything once."""
        # First: the power falls as soon as nothing runs.
        power_w, energy_j = self.power_w(), self.energy_j()
        temperatures = {name: _number(file) for name, file in self._temperatures.items()}
        clocks = {name: _number(file) for name, file in self._clocks.items()}
        return Readings(
            sensor=self.name,
            temperatures_c={
                name: value / 1e3
                for name, value in temperatures.items()
                if value is not None and TEMPERATURES_C[0] < value / 1e3 < TEMPERATURES_C[1]
            },
            # cpufreq tells kHz, devfreq Hz.
            clocks_hz={
                name: float(value * 1000 if name.startswith("cpu") else value)
                for name, value in clocks.items()
                if value is not None
            },
            power_w=power_w,
            energy_j=energy_j,
            throttle_events=self._throttle_events(),
        )

    def close(self) -> None:
        """Nothing is held open."""

    def tells_power(self) -> bool:
        """Whether power or energy can be read on this machine, by this user."""
        return self.power_w() is not None or self.energy_j() is not None

    def power_w(self) -> float | None:
        """Power of the rails, each read once."""
        watts: dict[str, float] = {}
        for name, (voltage, current) in self._rails.items():
            millivolts, milliamperes = _number(voltage), _number(current)
            if millivolts is not None and milliamperes is not None:
                watts[name] = millivolts * milliamperes / 1e6
        whole = [watts[name] for name in _TOTAL_RAILS if name in watts]
        return whole[0] if whole else sum(watts.values()) if watts else None

    def energy_j(self) -> float | None:
        """Energy that the counters have counted since this object was made."""
        joules = [zone.read_j() for zone in self._zones]
        known = [each for each in joules if each is not None]
        # A part of the sum would look like a drop: all or nothing.
        return sum(known) if known and len(known) == len(joules) else None

    def _throttle_events(self) -> int | None:
        counted = [count for file in self._counters if (count := _number(file)) is not None]
        states = [state for file in self._slowing if (state := _number(file)) is not None]
        if not counted and not states:
            return None
        slowed = any(state > 0 for state in states)
        self._slowed_readings += slowed or self._slowed_before
        self._slowed_before = slowed
        return sum(counted) + self._slowed_readings

    def _find_thermal(self) -> None:
        thermal = self.root / "sys/class/thermal"
        for zone in _sorted(thermal, "thermal_zone*"):
            self._add_temperature(_text(zone / "type") or zone.name, zone / "temp")
        for device in _sorted(thermal, "cooling_device*"):
            kind = _text(device / "type")
            if _SLOWING.search(kind) and "fan" not in kind.lower():
                self._slowing.append(str(device / "cur_state"))

    def _find_hwmon(self) -> None:
        for chip in _sorted(self.root / "sys/class/hwmon", "hwmon*"):
            kind = _text(chip / "name") or chip.name
            for file in _sorted(chip, "temp*_input"):
                label = _text(chip / file.name.replace("_input", "_label")) or file.name.removesuffix("_input")
                self._add_temperature(f"{kind} {label}", file)
            self._counters += [str(file) for file in _sorted(chip, "oc*_event_cnt")]
            if "ina3221" not in kind:
                continue
            # Channels 1 to 3 are rails; the others are sums and shunt voltages of the chip itself.
            for channel in (1, 2, 3):
                label = _text(chip / f"in{channel}_label")
                if label and label != "NC":
                    files = (str(chip / f"in{channel}_input"), str(chip / f"curr{channel}_input"))
                    self._rails[label if label not in self._rails else f"{label} {chip.name}"] = files

    def _find_clocks(self) -> None:
        cpus = self.root / "sys/devices/system/cpu"
        # One policy is a group of cores that share a clock, named after its first core.
        for policy in _sorted(cpus / "cpufreq", "policy*")[:MOST_CLOCKS]:
            self._clocks[f"cpu{policy.name.removeprefix('policy')}"] = str(policy / "scaling_cur_freq")
        for device in _sorted(self.root / "sys/class/devfreq", "*")[:MOST_CLOCKS]:
            name = "gpu" if _GPU.search(device.name) else device.name[:100]
            self._clocks[name] = str(device / "cur_freq")
        for cpu in _sorted(cpus, "cpu[0-9]*"):
            for kind in ("core_throttle_count", "package_throttle_count"):
                file = cpu / "thermal_throttle" / kind
                if len(self._counters) < MOST_COUNTERS and file.exists():
                    self._counters.append(str(file))

    def _find_energy(self) -> None:
        for zone in _sorted(self.root / "sys/class/powercap", "*rapl:*"):
            # Packages and their memory. "core" and "uncore" are parts of a package, "psys" contains it, and the
            # zones of "-mmio" are the same counters once more.
            if _text(zone / "name").startswith(("package", "dram")):
                found = _Zone(str(zone / "energy_uj"), _number(str(zone / "max_energy_range_uj")) or 1 << 32)
                if found.read_j() is not None:
                    self._zones.append(found)

    def _add_temperature(self, name: str, file: Path) -> None:
        if len(self._temperatures) < MOST_TEMPERATURES:
            unique = name[:100]
            number = 2
            while unique in self._temperatures:
                unique = f"{name[:100]} {number}"
                number += 1
            self._temperatures[unique] = str(file)


def governors(root: Path = Path("/")) -> list[str]:
    """CPU frequency governors in use, each once; empty where the machine does not tell."""
    policies = _sorted(root / "sys/devices/system/cpu/cpufreq", "policy*")
    return sorted({name for policy in policies if (name := _text(policy / "scaling_governor"))})


def power_mode(root: Path = Path("/")) -> str:
    """Power mode by its own name: of nvpmodel on a Jetson, else the CPU governor; "" where nothing tells."""
    mode = _text(root / "var/lib/nvpmodel/status").partition(":")[2].strip()
    if mode.isdigit():
        names = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", _text(root / "etc/nvpmodel.conf", 1 << 20))
        return next((name for number, name in names if int(number) == int(mode)), f"nvpmodel {int(mode)}")[:100]
    return ", ".join(governors(root))[:100]


def _sorted(folder: Path, pattern: str) -> list[Path]:
    """Entries by number, then name; none where the folder is missing."""

    def order(path: Path) -> tuple[int, str]:
        digits = re.findall(r"\d+", path.name)
        return (int(digits[0]) if digits else -1, path.name)

    try:
        return sorted(folder.glob(pattern), key=order)
    except OSError:
        return []


def _text(path: Path, most_bytes: int = 4096) -> str:
    """First bytes of a file without white space around; "" where it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        return os.read(descriptor, most_bytes).decode("utf-8", "replace").strip("\0 \t\n")
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def _number(file: str) -> int | None:
    """Whole number in a file; None where there is none."""
    try:
        return int(_text(Path(file), 64))
    except ValueError:
        return None
