"""A link that can be cut: the device in a network namespace of its own, a router between it and this machine.

A cut makes the router drop every packet without a word, as a broken line in the middle does: no end sees its
own interface go down, no packet is refused. Wants root; removes what it made.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from types import TracebackType


def why_no_link() -> str | None:
    """Why no link can be made here, or None."""
    if os.geteuid() != 0:
        return "a cut link wants root, for network namespaces"
    if shutil.which("ip") is None:
        return "a cut link wants `ip` (Debian: iproute2)"
    try:
        with CutLink():
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        return f"no network namespaces here: {' '.join(str(detail).split())}"


class CutLink:
    """This machine (`host`) -- router -- device; `prefix` goes before a command that is to run on the device's side."""

    def __init__(self) -> None:
        # Another link's interface of the same name makes this one fail: so the numbers are claimed.
        for self._number in itertools.islice(itertools.cycle(range(250)), os.getpid() % 250, 250 + os.getpid() % 250):
            self._near = f"mpcut{self._number}"
            if _try("ip", "link", "add", self._near, "type", "veth", "peer", "name", f"{self._near}p"):
                break
        else:
            raise OSError("no free name for an interface")
        self._router, self._device = f"mpinas-router{self._number}", f"mpinas-device{self._number}"
        net = f"198.18.{self._number}"
        self.host = f"{net}.1"
        self.prefix = ("ip", "netns", "exec", self._device)
        try:
            for namespace in (self._router, self._device):
                _run("ip", "netns", "add", namespace)
            router, device = ("ip", "-n", self._router), ("ip", "-n", self._device)
            _run("ip", "link", "set", f"{self._near}p", "netns", self._router, "name", "near")
            _run(*router, "link", "add", "far", "type", "veth", "peer", "name", "eth0", "netns", self._device)
            _run("ip", "addr", "add", f"{net}.1/30", "dev", self._near)
            _run(*router, "addr", "add", f"{net}.2/30", "dev", "near")
            _run(*router, "addr", "add", f"{net}.5/30", "dev", "far")
            _run(*device, "addr", "add", f"{net}.6/30", "dev", "eth0")
            _run("ip", "link", "set", self._near, "up")
            for command, name in ((router, "near"), (router, "far"), (device, "eth0"), (device, "lo")):
                _run(*command, "link", "set", name, "up")
            _run(*device, "route", "add", "default", "via", f"{net}.5")
            _run("ip", "route", "add", f"{net}.4/30", "via", f"{net}.2")
            self.mend()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> CutLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def cut(self) -> None:
        """From now on nothing gets through, and nobody is told."""
        self._forward("0")

    def mend(self) -> None:
        self._forward("1")

    def close(self) -> None:
        for namespace in (self._router, self._device):
            _try("ip", "netns", "del", namespace)
        _try("ip", "link", "del", self._near)

    def _forward(self, value: str) -> None:
        _run("ip", "netns", "exec", self._router, "sh", "-c", f"echo {value} > /proc/sys/net/ipv4/ip_forward")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)


def _try(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True, timeout=20).returncode == 0
