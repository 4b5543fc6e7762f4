"""What puts the agent on a device: installer, service unit. `make check-device` installs for real."""

from __future__ import annotations

import getpass
import shutil
import subprocess
from pathlib import Path

import pytest
from bridge_processes import LIMIT_S, ROOT

DEPLOY = ROOT / "edge_bridge" / "deploy"
INSTALLER = DEPLOY / "install-device.sh"
UNIT = DEPLOY / "edge-bridge-device.service"
SCRIPTS = [INSTALLER, ROOT / "tools" / "check_device_install.sh", ROOT / ".ci" / "run"]


def install(*options: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(INSTALLER), "--dry-run", *options], capture_output=True, text=True, timeout=LIMIT_S, check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(home)},
    )  # fmt: skip


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path):
    (tmp_path / "BRIDGE.json").write_text("{}")
    done = install("--no-systemd", "--prefix", str(tmp_path / "x"), "--name", "agx", "--bridge",
                   str(tmp_path / "BRIDGE.json"), home=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    x = tmp_path / "x"
    steps = [line for line in done.stdout.splitlines() if line.startswith("+")]
    assert steps == [
        f"+ mkdir -p {x} {x}/etc",
        f"+ python3 -m venv {x}/venv",
        f"+ {x}/venv/bin/python -m pip install -q --upgrade --only-binary=:all: {ROOT}\\[device\\]",
        f"+ {x}/venv/bin/edge-bridge keygen {x}/etc/device --role device --name agx",
        f"+ install -m 644 {tmp_path}/BRIDGE.json {x}/etc/BRIDGE.json",
        f"+ write {x}/etc/device.conf (mode 644)",
        f"+ mkdir -p {x}/state",
        f"+ chmod 700 {x}/state",
        f"+ mkdir -p {x}",
        f"+ write {x}/edge-bridge-device.service (mode 644)",
    ]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["BRIDGE.json"]


def pip_steps(tmp_path: Path, has: str, *options: str) -> list[str]:
    """What pip would do in an environment that is there already and has this package in it."""
    python = tmp_path / "x" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n[ "$*" = "-m pip show -q {has}" ]\n')
    python.chmod(0o755)
    done = install("--no-systemd", "--prefix", str(tmp_path / "x"), *options, home=tmp_path)
    assert done.returncode == 0, done.stderr
    return [line.partition("-m pip ")[2] for line in done.stdout.splitlines() if "-m pip " in line]


def test_an_update_leaves_the_runtime_for_the_gpu_alone(tmp_path):
    assert pip_steps(tmp_path, "onnxruntime-gpu") == [f"install -q --upgrade --only-binary=:all: {ROOT} h5py"]


def test_an_update_upgrades_the_runtime_for_the_cpu(tmp_path):
    assert pip_steps(tmp_path, "onnxruntime") == [f"install -q --upgrade --only-binary=:all: {ROOT}\\[device\\]"]


def test_another_runtime_takes_the_place_of_both(tmp_path):
    assert pip_steps(tmp_path, "onnxruntime", "--onnxruntime", "gpu.whl") == [
        "uninstall -q -y onnxruntime onnxruntime-gpu",
        f"install -q --upgrade {ROOT} h5py gpu.whl",
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--bogus", "x"], "--bogus is no option"),
        (["--name"], "--name wants a value"),
        (["--name", "my device"], "name 'my device': letters, digits"),
        (["--options", "--name $(id)"], "must not hold quotes"),
        (["--bridge", "nothing.json"], "nothing.json is not there: copy the BRIDGE.json"),
        (["--prefix", "/tmp/a b"], "holds blanks"),
        (["--python", "/bin/false"], "/bin/false is not a Python 3.10 or later"),
    ],
)
def test_what_cannot_be_installed_is_one_line(tmp_path, options, says):
    done = install("--no-systemd", "--prefix", str(tmp_path / "x"), *options, home=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("install-device: ")
    assert says in line


def test_the_service_is_one_that_lives_on():
    lines = UNIT.read_text().splitlines()
    for wanted in (
        "Restart=always", "RestartSec=2", "StartLimitIntervalSec=0", "OOMPolicy=continue", "NoNewPrivileges=yes",
        "ProtectSystem=strict", "StateDirectory=edge-bridge", "User=edge-bridge", "#MemoryMax=80%",
    ):  # fmt: skip
        assert wanted in lines
    # These would hide the accelerator.
    assert not [each for each in lines if each.startswith(("PrivateDevices", "ProtectClock", "DevicePolicy"))]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here: systemd is not installed")
def test_systemd_understands_the_service(tmp_path):
    # The same unit with a program and a user that are here.
    text = UNIT.read_text().replace("/opt/edge-bridge/venv/bin/edge-bridge", "/bin/true")
    (tmp_path / UNIT.name).write_text(text.replace("User=edge-bridge", f"User={getpass.getuser()}"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / UNIT.name)],
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, complaints) == (0, [])


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here: apt-get install shellcheck")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda each: each.name)
def test_scripts_pass_shellcheck(script):
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stdout) == (0, "")
