"""`edge-bridge keygen`."""

from __future__ import annotations

from pathlib import Path

import click

from edge_bridge.cli.common import check_parent
from edge_bridge.wire.files import Role
from edge_bridge.wire.keys import write_key_pair

_NEXT = {
    "job": "add its line to the relay's allow-list",
    "device": "add its line to the relay's allow-list",
    "relay": "it travels in BRIDGE.json, nothing to do",
}


@click.command()
@click.argument("stem", type=click.Path(path_type=Path))
@click.option(
    "--role", type=click.Choice(["job", "device", "relay"]), required=True, help="Whose key this is: what it may do."
)
@click.option("--name", default="", help="Name beside the public key in an allow-list (default: that of the file).")
def keygen(stem: Path, role: Role, name: str) -> None:
    """Make a key pair: STEM.key (secret, mode 0600) and STEM.pub (a line for an allow-list)."""
    check_parent(stem, "key files")
    secret, public = write_key_pair(stem, name or stem.name, role)
    click.echo(f"secret key: {secret} (keep it on this machine)")
    click.echo(f"public key: {public} ({_NEXT[role]})")
