"""`edge-bridge device`."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO

import click

from edge_bridge.cli.common import FILE, FOLDER, announce, key_for, log, memory_limit_bytes
from edge_bridge.device.agent import Agent, DevicePlan, describe_device
from edge_bridge.device.tunnel import Tunnel, obtain_connection
from edge_bridge.endings import Endings
from edge_bridge.errors import BridgeError
from edge_bridge.measuring.measurer import ChildLimits


@click.command()
@click.argument("connection", type=FILE, metavar="BRIDGE.json")
@click.option("--key", type=FILE, help="This device's key file.")
@click.option("--name", default="", help="Name of the device profile (default: the host's).")
@click.option("--state", type=FOLDER, help="Folder for results [default: ~/.local/state/edge-bridge/NAME].")
@click.option("--runtime", default="onnxruntime", show_default=True)
@click.option("--provider", default="cpu", show_default=True, help="For onnxruntime: cpu, cuda or tensorrt.")
@click.option("--memory-limit-mb", default=0, help="Address space of a model [default: half of the memory].")
@click.option("--load-seconds", default=120.0, show_default=True, help="Longest time to load a model.")
@click.option("--stall-seconds", default=30.0, show_default=True, help="Longest time of one run of a model.")
@click.option("--ssh", "login", default="", help="LOGIN: reach the relay, and a file that is not here, through ssh.")
@click.option("--ssh-option", "ssh_given", multiple=True, help="For ssh: NAME=VALUE, or '-p 2222'. Repeat for several.")
@click.option("--any-core", is_flag=True, help="Leave the cores that whoever started this is bound to.")
@click.option("--exit-with-stdin", is_flag=True, help="End when standard input ends.")
def device(  # noqa: PLR0913, PLR0917 - one parameter for each option, as click wants it
    connection: Path,
    key: Path | None,
    name: str,
    state: Path | None,
    runtime: str,
    provider: str,
    memory_limit_mb: int,
    load_seconds: float,
    stall_seconds: float,
    login: str,
    ssh_given: tuple[str, ...],
    any_core: bool,
    exit_with_stdin: bool,
) -> None:
    """Measure for the relay of BRIDGE.json until SIGTERM. Prints a line each time the relay has taken it."""
    profile = describe_device(name, runtime, provider)
    found = obtain_connection(connection, login, ssh_given)
    pair = key_for(found, key)
    if any_core:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    with contextlib.ExitStack() as stack:
        if login:
            # Where the connection file is read anew, `Tunnel.through` leads there.
            found = stack.enter_context(Tunnel(login, found, ssh_given)).connection
        plan = DevicePlan(
            connection=found,
            key=pair,
            profile=profile,
            state=state or Path.home() / ".local/state/edge-bridge" / profile.name,
            limits=ChildLimits(memory_limit_bytes(memory_limit_mb), load_seconds, stall_seconds),
        )
        endings = stack.enter_context(Endings(exit_with_stdin))
        stack.enter_context(_only_one(plan.state))
        agent = Agent(plan, on_registered=lambda: announce(f"registered {profile.name}"))
        log.info("device %s (%s), relay %s", profile.name, profile.hardware, found.device_endpoint)
        log.info("device ends: %s", agent.serve(endings))


def _only_one(state: Path) -> IO[bytes]:
    """Lock the state folder for as long as the returned file is open."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(state / "lock", "wb")  # noqa: SIM115 - the caller holds it open
    except OSError as error:
        raise BridgeError(f"state folder {state} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise BridgeError(f"another agent uses state folder {state}: end it, or give --name or --state") from None
    return lock
