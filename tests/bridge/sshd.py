"""A real sshd on loopback for the tests of the tunnel, with keys and a configuration of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from edge_bridge.wire.ports import free_port

PROGRAM = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
LIMIT_S = 20.0
#: For tests that need the real thing.
wanted = pytest.mark.skipif(
    PROGRAM is None or shutil.which("ssh") is None,
    reason="no OpenSSH server and client here: apt-get install openssh-server",
)


class Sshd:
    """One sshd that takes one key, and the options with which ssh finds it."""

    def __init__(self, folder: Path) -> None:
        assert PROGRAM is not None
        self.folder = folder
        folder.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # as the package's service does
        for name in ("host", "mine", "stranger"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, timeout=LIMIT_S)
        shutil.copy(folder / "mine.pub", folder / "authorized_keys")
        self.port = free_port()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {(folder / 'host.pub').read_text()}")
        (folder / "config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
            f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nAllowTcpForwarding yes\n"
        )
        self.login = f"{getpass.getuser()}@127.0.0.1"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def options(self, key: str = "mine", known_hosts: str = "known_hosts") -> list[str]:
        """For `--ssh-option`, one after the other."""
        return [
            "-F none",
            f"-p {self.port}",
            f"IdentityFile={self.folder / key}",
            "IdentitiesOnly=yes",
            f"UserKnownHostsFile={self.folder / known_hosts}",
            "GlobalKnownHostsFile=/dev/null",
        ]

    def start(self) -> None:
        assert PROGRAM is not None
        with open(self.folder / "log", "ab") as log:
            command = [PROGRAM, "-D", "-e", "-f", str(self.folder / "config")]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end_s = time.monotonic() + LIMIT_S
        while time.monotonic() < end_s:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.02)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        """End the server that listens; its sessions live on."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(LIMIT_S)
