"""`edge-bridge keygen`."""

from __future__ import annotations

from pathlib import Path

import click

from edge_bridge.wire.keys import write_key_pair


@click.command()
@click.argument("stem", type=click.Path(path_type=Path))
@click.option("--name", default="", help="Name beside the public key in an allow-list (default: that of the file).")
def keygen(stem: Path, name: str) -> None:
    """Make a key pair: STEM.key (secret, mode 0600) and STEM.pub (a line for an allow-list)."""
    secret, public = write_key_pair(stem, name or stem.name)
    click.echo(f"secret key: {secret} (keep it on this machine)")
    click.echo(f"public key: {public} (add its line to the relay's allow-list)")
