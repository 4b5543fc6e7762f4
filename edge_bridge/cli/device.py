"""`edge-bridge device`."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO

import click

from edge_bridge.cli.common import (
    DAY_S,
    FILE,
    FOLDER,
    LIMIT_SECONDS,
    MEGABYTES,
    announce,
    key_for,
    log,
    memory_limit_bytes,
    state_folder,
    within,
)
from edge_bridge.device.agent import Agent, DevicePlan
from edge_bridge.device.connection_file import ConnectionFile
from edge_bridge.device.drift import DriftPlan
from edge_bridge.device.profile import describe_device
from edge_bridge.device.tunnel import Tunnel
from edge_bridge.endings import Endings
from edge_bridge.errors import BridgeError
from edge_bridge.measuring.measurer import ChildLimits
from edge_bridge.wire.keys import Connection, KeyPair

#: A runtime alone takes more address space than this.
_LEAST_MEMORY_MB = 256


def _model_memory(context: click.Context, option: click.Parameter, megabytes: int) -> int:
    """Refuse a limit under which no model at all could be measured."""
    if 0 < megabytes < _LEAST_MEMORY_MB:
        raise BridgeError(
            f"{option.opts[0]} must be 0 or at least {_LEAST_MEMORY_MB}, not {megabytes}: the runtime needs as much"
        )
    return MEGABYTES(context, option, megabytes)


@click.command()
@click.argument("connection", type=FILE, metavar="BRIDGE.json")
@click.option("--key", type=FILE, help="This device's key file.")
@click.option("--name", default="", help="Name of the device profile: letters, digits, . _ - [default: the host's].")
@click.option("--state", type=FOLDER, help="Folder for results [default: ~/.local/state/edge-bridge/NAME].")
@click.option("--runtime", default="onnxruntime", show_default=True)
@click.option("--provider", default="cpu", show_default=True, help="For onnxruntime: cpu, cuda or tensorrt.")
@click.option(
    "--memory-limit-mb", default=0, callback=_model_memory, help="Memory of a model [default: half of the memory]."
)
@click.option(
    "--load-seconds",
    default=120.0,
    show_default=True,
    callback=LIMIT_SECONDS,
    help="Longest time to load a model; of its first run too.",
)
@click.option(
    "--stall-seconds",
    default=30.0,
    show_default=True,
    callback=LIMIT_SECONDS,
    help="Longest time of one run of a model.",
)
@click.option("--ssh", "login", default="", help="LOGIN: reach the relay, and a file that is not here, through ssh.")
@click.option("--ssh-option", "ssh_given", multiple=True, help="For ssh: NAME=VALUE, or '-p 2222'. Repeat for several.")
@click.option("--no-reference", is_flag=True, help="Do not watch the device's drift by the reference model.")
@click.option("--new-reference", is_flag=True, help="Learn anew what the reference model takes on this device.")
@click.option(
    "--reference-every",
    default=20,
    show_default=True,
    callback=within(10**9, least=1),
    help="Requests between two readings of it.",
)
@click.option(
    "--reference-minutes",
    default=10.0,
    show_default=True,
    callback=within(DAY_S, above=0.0),
    help="Longest time between two readings.",
)
@click.option(
    "--reference-band",
    default=0.10,
    show_default=True,
    callback=within(0.99, above=0.0),
    help="Share by which a reading may be off.",
)
@click.option(
    "--cooling-seconds",
    default=120.0,
    show_default=True,
    callback=within(DAY_S, least=0.0),
    help="Longest wait for the device to cool down.",
)
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
    no_reference: bool,
    new_reference: bool,
    reference_every: int,
    reference_minutes: float,
    reference_band: float,
    cooling_seconds: float,
) -> None:
    """Measure for the relay of BRIDGE.json until SIGTERM. Prints a line each time the relay has taken it."""
    if any_core:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    drift = DriftPlan(
        every_requests=reference_every,
        every_s=reference_minutes * 60,
        band=reference_band,
        first_wait_s=min(5.0, cooling_seconds),
        most_wait_s=cooling_seconds,
    )
    # Asked before the relay is: a device whose runtime is not there must not be given anything.
    profile = describe_device(name, runtime, provider, ask=True)
    source = ConnectionFile(connection, login, ssh_given)
    found = source.read()
    key_for(found, key)
    with contextlib.ExitStack() as stack:
        tunnel = stack.enter_context(Tunnel(login, found, ssh_given)) if login else None

        def access() -> tuple[Connection, KeyPair | None]:
            fresh = source.read()
            return tunnel.through(fresh) if tunnel is not None else fresh, key_for(fresh, key)

        plan = DevicePlan(
            access=access,
            watched=source.watched if key is None else (*source.watched, key),
            profile=profile,
            state=state_folder(state, profile),
            limits=ChildLimits(memory_limit_bytes(memory_limit_mb), load_seconds, stall_seconds),
            drift=None if no_reference else drift,
            forget_reference=new_reference,
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
