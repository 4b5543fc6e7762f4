"""`edge-bridge check`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click
import msgspec

from edge_bridge.cli.common import FILE, FOLDER, key_for, role_beside, state_folder
from edge_bridge.device.checks import (
    Finding,
    Side,
    check_handshake,
    check_load,
    check_packages,
    check_power_mode,
    check_reach,
    check_reference,
    check_runtime,
    check_sensors,
    check_state,
)
from edge_bridge.device.profile import describe_device
from edge_bridge.errors import BridgeError
from edge_bridge.wire.keys import read_connection, read_key_pair


@click.command()
@click.argument("connection", type=FILE, metavar="[BRIDGE.json]", required=False)
@click.option("--key", type=FILE, help="Key file of this device, or of a job.")
@click.option(
    "--as",
    "side",
    type=click.Choice(["device", "job"]),
    help="Whom to look for; of a job, packages and relay only [default: as the .pub file beside the key says].",
)
@click.option("--name", default="", help="As for `edge-bridge device`.")
@click.option("--state", type=FOLDER, help="As for `edge-bridge device`.")
@click.option("--runtime", default="onnxruntime", show_default=True)
@click.option("--provider", default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(  # noqa: PLR0913, PLR0917 - one parameter for each option, as click wants it
    connection: Path | None,
    key: Path | None,
    side: Side | None,
    name: str,
    state: Path | None,
    runtime: str,
    provider: str,
    as_json: bool,
) -> None:
    """Look at everything that a device, or a job, needs, a line each; exit code 2 if something would not work."""
    whose = side or _side_of(key)
    checks: list[Callable[[], Iterable[Finding]]] = [check_packages]
    if connection is not None:
        checks.append(lambda: _check_relay(connection, key, whose))
    elif key is not None:
        checks.append(lambda: _check_key(key))
    if whose == "device":
        profile = describe_device(name, runtime, provider)
        # The load first: what follows is load itself.
        checks[:1] = [
            check_load,
            check_packages,
            lambda: check_runtime(runtime, provider),
            check_sensors,
            check_power_mode,
            lambda: check_state(state_folder(state, profile)),
        ]
        checks.append(lambda: check_reference(profile))
    findings = []
    for each in checks:
        for finding in each():
            findings.append(finding)
            if not as_json:
                click.echo(f"{finding.level:<4} {finding.check:<15} {finding.text}")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(findings), indent=1).decode())
    if any(finding.level == "FAIL" for finding in findings):
        sys.exit(2)


def _side_of(key: Path | None) -> Side:
    """Side of the relay that a key is for, by the .pub file beside it."""
    try:
        role = "" if key is None else role_beside(key, read_key_pair(key))
    except BridgeError:
        role = ""  # looked at again later
    return "job" if role == "job" else "device"


def _check_key(path: Path) -> Iterator[Finding]:
    try:
        yield Finding("key file", "OK", f"{path}, public {read_key_pair(path).public}")
    except BridgeError as error:
        yield Finding("key file", "FAIL", str(error).removeprefix("key file "))


def _check_relay(path: Path, key: Path | None, side: Side) -> Iterator[Finding]:
    """Connection file, key file, and what answers there."""
    try:
        connection = read_connection(path)
    except BridgeError as error:
        yield Finding("connection file", "FAIL", str(error).removeprefix("connection file "))
        return
    endpoint = connection.job_endpoint if side == "job" else connection.device_endpoint
    yield Finding("connection file", "OK", f"{path}: relay at {endpoint}")
    try:
        pair = key_for(connection, key)
    except BridgeError as error:
        yield Finding("key file", "FAIL", str(error).removeprefix("key file "))
        return
    yield Finding(
        "key file", "OK", "none is needed on a local bridge" if pair is None else f"{key}, public {pair.public}"
    )
    reach = list(check_reach(endpoint, side))
    yield from reach
    if all(finding.level != "FAIL" for finding in reach):
        yield from check_handshake(endpoint, side, pair, connection.relay_public_key)
