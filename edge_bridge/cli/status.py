"""`edge-bridge status`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from edge_bridge.cli.common import FILE, key_for
from edge_bridge.client import BridgeClient
from edge_bridge.wire.keys import read_connection


@click.command()
@click.argument("connection", type=FILE, metavar="BRIDGE.json")
@click.option("--key", type=FILE, help="Key file of a job.")
@click.option("--timeout", "timeout_s", default=10.0, show_default=True, help="Seconds to wait for the relay.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(connection: Path, key: Path | None, timeout_s: float, as_json: bool) -> None:
    """Show a relay's devices and queue."""
    found = read_connection(connection)
    client = BridgeClient.open(found, key_for(found, key), timeout_s)
    welcome = client.welcome
    client.close()
    assert welcome is not None
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(welcome), indent=1).decode())
        return
    click.echo(f"relay {found.job_endpoint}, up {welcome.uptime_s:.0f} s, jobs {welcome.jobs}")
    click.echo(f"requests: {welcome.running} running, {welcome.queued} queued")
    for each in welcome.devices:
        click.echo(f"device {each.name}: {each.hardware}; {each.runtime} {each.provider}")
    if not welcome.devices:
        click.echo("no device is registered")
