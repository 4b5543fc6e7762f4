"""Sensors: folder trees that look like a PC's and a Jetson's /sys."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from edge_bridge.measuring.sensors import JtopSensors, NoSensors, open_sensors
from edge_bridge.measuring.sysfs import LinuxSensors, governors, power_mode
from edge_bridge.wire.quantities import Readings


def tree(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


PC = {
    "sys/class/thermal/thermal_zone0/type": "acpitz",
    "sys/class/thermal/thermal_zone0/temp": 27800,
    "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone1/temp": 51000,
    "sys/class/thermal/thermal_zone2/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone2/temp": 53000,
    "sys/class/thermal/cooling_device0/type": "Processor",
    "sys/class/thermal/cooling_device0/cur_state": 0,
    "sys/class/thermal/cooling_device1/type": "intel_powerclamp",
    "sys/class/thermal/cooling_device1/cur_state": -1,
    "sys/class/thermal/cooling_device2/type": "Fan",
    "sys/class/thermal/cooling_device2/cur_state": 3,
    "sys/class/hwmon/hwmon0/name": "k10temp",
    "sys/class/hwmon/hwmon0/temp1_label": "Tctl",
    "sys/class/hwmon/hwmon0/temp1_input": 44500,
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": 3600000,
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "performance",
    "sys/devices/system/cpu/cpufreq/policy10/scaling_cur_freq": 800000,
    "sys/devices/system/cpu/cpufreq/policy10/scaling_governor": "performance",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": 2,
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": 5,
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": 1,
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0/energy_uj": 900_000_000,
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": 1_000_000_000,
    "sys/class/powercap/intel-rapl:0:0/name": "core",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": 800_000_000,
    "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": 1_000_000_000,
    "sys/class/powercap/intel-rapl:0:1/name": "dram",
    "sys/class/powercap/intel-rapl:0:1/energy_uj": 100,
    "sys/class/powercap/intel-rapl:0:1/max_energy_range_uj": 1_000_000_000,
    "sys/class/powercap/intel-rapl:1/name": "psys",
    "sys/class/powercap/intel-rapl:1/energy_uj": 1,
}

JETSON = {
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": 48312,
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": -256000,
    "sys/class/thermal/cooling_device0/type": "pwm-fan",
    "sys/class/thermal/cooling_device0/cur_state": 1,
    "sys/class/thermal/cooling_device1/type": "cpu-throttle-alert",
    "sys/class/thermal/cooling_device1/cur_state": 0,
    "sys/class/hwmon/hwmon3/name": "ina3221",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_IN",
    "sys/class/hwmon/hwmon3/in1_input": 5000,
    "sys/class/hwmon/hwmon3/curr1_input": 1500,
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_GPU_CV",
    "sys/class/hwmon/hwmon3/in2_input": 5000,
    "sys/class/hwmon/hwmon3/curr2_input": 400,
    "sys/class/hwmon/hwmon3/in3_label": "NC",
    "sys/class/hwmon/hwmon3/in7_label": "sum of shunt voltages",
    "sys/class/hwmon/hwmon3/in7_input": 99,
    "sys/class/hwmon/hwmon4/name": "soctherm_oc",
    "sys/class/hwmon/hwmon4/oc1_event_cnt": 4,
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": 1510400,
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil",
    "sys/class/devfreq/17000000.ga10b/cur_freq": 624750000,
    "sys/class/devfreq/15340000.vic/cur_freq": 115200000,
    "var/lib/nvpmodel/status": "pmode:0002",
    "etc/nvpmodel.conf": "# modes\n< POWER_MODEL ID=0 NAME=MAXN >\nCPU CORE_0 1\n< POWER_MODEL ID=2 NAME=MODE_15W >",
}


def test_a_pc_is_read(tmp_path):
    tree(tmp_path, PC)
    sensors = open_sensors(tmp_path)
    found = sensors.read()
    assert found == Readings(
        sensor="linux",
        temperatures_c={"acpitz": 27.8, "x86_pkg_temp": 51.0, "x86_pkg_temp 2": 53.0, "k10temp Tctl": 44.5},
        clocks_hz={"cpu0": 3.6e9, "cpu10": 8e8},
        power_w=None,
        energy_j=0.0,
        throttle_events=8,
    )
    assert msgspec.json.decode(msgspec.json.encode(found), type=Readings) == found
    assert power_mode(tmp_path) == "performance"


def test_energy_goes_on_over_the_wrap_of_its_counter(tmp_path):
    tree(tmp_path, PC)
    sensors = LinuxSensors(tmp_path)
    sensors.read()
    tree(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": 100_000_000})
    tree(tmp_path, {"sys/class/powercap/intel-rapl:0:1/energy_uj": 1_000_100})
    assert sensors.read().energy_j == pytest.approx(200.0 + 1.0)
    tree(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": 150_000_000})
    assert sensors.read().energy_j == pytest.approx(251.0)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    assert sensors.read().energy_j is None


def test_throttling_is_counted(tmp_path):
    tree(tmp_path, PC)
    sensors = LinuxSensors(tmp_path)
    state = "sys/class/thermal/cooling_device0/cur_state"
    assert sensors.read().throttle_events == 8
    tree(tmp_path, {"sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": 3})
    assert sensors.read().throttle_events == 10
    # A cooling device that was at work before or after the timed runs shows as a difference between the two.
    tree(tmp_path, {state: 2})
    assert sensors.read().throttle_events == 11
    tree(tmp_path, {state: 0})
    assert sensors.read().throttle_events == 12
    assert sensors.read().throttle_events == 12


def test_a_jetson_is_read(tmp_path):
    tree(tmp_path, JETSON)
    found = open_sensors(tmp_path).read()
    assert found == Readings(
        sensor="linux (VDD_IN)",
        temperatures_c={"cpu-thermal": 48.312},
        clocks_hz={"cpu0": 1.5104e9, "gpu": 624.75e6, "15340000.vic": 115.2e6},
        power_w=7.5,
        energy_j=None,
        throttle_events=4,
    )
    assert power_mode(tmp_path) == "MODE_15W"


def test_power_is_the_sum_of_the_rails_where_none_feeds_all(tmp_path):
    rails = {
        "hwmon1/name": "ina3221", "hwmon1/in1_label": "VDD_GPU_SOC", "hwmon1/in1_input": 20000,
        "hwmon1/curr1_input": 200, "hwmon1/in2_label": "VDD_CPU_CV", "hwmon1/in2_input": 20000,
        "hwmon1/curr2_input": 50, "hwmon2/name": "ina3221", "hwmon2/in2_label": "VDDQ", "hwmon2/in2_input": 5000,
        "hwmon2/curr2_input": 100,
    }  # fmt: skip
    tree(tmp_path / "sys/class/hwmon", rails)
    found = LinuxSensors(tmp_path).read()
    assert found.power_w == pytest.approx(4.0 + 1.0 + 0.5)
    assert found.sensor == "linux (VDD_GPU_SOC + VDD_CPU_CV + VDDQ)"


@pytest.mark.parametrize(("machine", "first"), [(PC, "energy_uj"), (JETSON, "hwmon3/in1_input")])
def test_power_and_energy_are_read_before_the_rest(tmp_path, machine, first, monkeypatch):
    tree(tmp_path, machine)
    sensors = LinuxSensors(tmp_path)
    files: list[str] = []
    monkeypatch.setattr("edge_bridge.measuring.sysfs._number", files.append)
    sensors.read()
    assert files[0].endswith(first)
    assert any("thermal_zone" in each for each in files)


def test_power_and_energy_are_read_alone(tmp_path):
    tree(tmp_path / "pc", PC)
    tree(tmp_path / "jetson", JETSON)
    pc, jetson = open_sensors(tmp_path / "pc"), open_sensors(tmp_path / "jetson")
    tree(tmp_path / "pc", {"sys/class/powercap/intel-rapl:0/energy_uj": 907_000_000})
    assert (pc.energy_j(), pc.power_w()) == (7.0, None)
    assert (jetson.energy_j(), jetson.power_w()) == (None, 7.5)


def test_a_machine_that_tells_nothing(tmp_path):
    sensors = open_sensors(tmp_path)
    assert isinstance(sensors, NoSensors)
    assert sensors.read() == Readings(sensor="none")
    assert (sensors.energy_j(), sensors.power_w()) == (None, None)
    assert (power_mode(tmp_path), governors(tmp_path)) == ("", [])
    sensors.close()


def test_nonsense_in_files_is_left_out(tmp_path):
    tree(tmp_path, PC)
    tree(tmp_path, {"sys/class/thermal/thermal_zone0/temp": "N/A", "sys/class/powercap/intel-rapl:0/energy_uj": "x"})
    tree(tmp_path, {"sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "<unknown>"})
    found = LinuxSensors(tmp_path).read()
    assert "acpitz" not in found.temperatures_c
    assert found.clocks_hz == {"cpu10": 8e8}
    assert found.energy_j == 0.0


@pytest.mark.parametrize(
    ("status", "conf", "mode"),
    [
        ("pmode:0007", "< POWER_MODEL ID=0 NAME=MAXN >", "nvpmodel 7"),
        ("pmode:x", "", "schedutil"),
        ("", "", "schedutil"),
    ],
)
def test_a_power_mode_without_a_name(tmp_path, status, conf, mode):
    tree(tmp_path, JETSON)
    tree(tmp_path, {"var/lib/nvpmodel/status": status, "etc/nvpmodel.conf": conf})
    assert power_mode(tmp_path) == mode


class JtopOfVersion4:
    """Stands for jtop's client, which needs a Jetson: its attributes as version 4 documents them."""

    temperature: ClassVar = {"cpu": {"temp": 47.5, "online": True}, "gpu": {"temp": -256, "online": False}}
    power: ClassVar = {"rail": {"VDD_SOC": {"power": 1800}}, "tot": {"power": 7250, "name": "VDD_IN"}}
    gpu: ClassVar = {"gpu": {"freq": {"cur": 306000, "max": 918000}}}

    def close(self) -> None:
        raise ConnectionError


def test_jtop_fills_what_the_files_do_not_tell(tmp_path):
    tree(tmp_path, {name: value for name, value in JETSON.items() if "ina3221" not in str(value)})
    sensors = JtopSensors(JtopOfVersion4(), LinuxSensors(tmp_path))
    found = sensors.read()
    assert (found.sensor, found.temperatures_c, found.power_w) == ("jtop", {"cpu": 47.5}, 7.25)
    assert found.clocks_hz == {"cpu0": 1.5104e9, "gpu": 306e6, "15340000.vic": 115.2e6}
    assert found.throttle_events == 4
    # Its power may be a second old: of no use for the runs of this moment.
    assert (sensors.energy_j(), sensors.power_w()) == (None, None)
    sensors.close()


def test_beside_jtop_the_power_of_this_moment_is_that_of_the_rails(tmp_path):
    tree(tmp_path, JETSON)
    assert JtopSensors(JtopOfVersion4(), LinuxSensors(tmp_path)).power_w() == 7.5


def test_jtop_of_another_version_is_left_alone(tmp_path):
    tree(tmp_path, JETSON)
    assert JtopSensors(object(), LinuxSensors(tmp_path)).read() == LinuxSensors(tmp_path).read()


def test_a_reading_of_this_machine_is_valid_and_within_reason():
    sensors = open_sensors()
    found = sensors.read()
    assert msgspec.json.decode(msgspec.json.encode(found), type=Readings) == found
    assert all(-60 < each < 200 for each in found.temperatures_c.values())
    start_s = time.perf_counter()
    sensors.read()
    print(f"one reading: {(time.perf_counter() - start_s) * 1e3:.2f} ms")
    sensors.close()
