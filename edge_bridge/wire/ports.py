"""Ports to listen on that stay free while nobody listens on them.

A relay or tunnel that ends and begins again wants the port it had, because its peers know it. The kernel gives ports
of one range to outgoing connections, any of which may have taken it meanwhile; those below are left alone.
"""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_LINUX_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: Linux's own default, for other systems.
_FIRST_OUTGOING = 32_768
#: Well-known services are below.
_FIRST = 10_000


def lasting_ports(setting: Path = _LINUX_RANGE) -> range:
    """Ports above the well-known ones that no outgoing connection of this machine is given; may be empty."""
    try:
        first_outgoing = int(setting.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first_outgoing = _FIRST_OUTGOING
    return range(_FIRST, max(_FIRST, first_outgoing))


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens now: a lasting one where there is one."""
    lasting = lasting_ports()
    for port in [*random.sample(lasting, min(100, len(lasting))), 0]:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            free: int = probe.getsockname()[1]
            return free
    raise OSError("every port of 127.0.0.1 is taken")
