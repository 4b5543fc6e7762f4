"""`edge-bridge relay`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

from edge_bridge.cli.common import FILE, FOLDER, announce, check_parent, log, role_beside, within
from edge_bridge.endings import END_OF_STDIN, Endings
from edge_bridge.errors import BridgeError
from edge_bridge.relay.service import RelayPlan, RelayService
from edge_bridge.wire.allow_list import AllowList
from edge_bridge.wire.keys import KeyPair, check_private_folder, read_connection, read_key_pair

PORT = within(65_535, least=0)


@click.command()
@click.option("--connection", type=FILE, default=Path("BRIDGE.json"), show_default=True, help="File to write.")
@click.option("--key", type=FILE, help="The relay's own key file.")
@click.option("--allow", type=click.Path(path_type=Path), help="Allow-list: a file, or a folder of .pub files.")
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address to listen on; * for all.")
@click.option("--public-host", default="", help="Host name for the connection file (default: --bind).")
@click.option(
    "--job-port",
    default=0,
    callback=PORT,
    help="Port for jobs; 0: the one of an earlier connection file, or a free one.",
)
@click.option("--device-port", default=0, callback=PORT, help="Port for devices; likewise.")
@click.option("--local", type=FOLDER, help="Private bridge of one job: ipc sockets in this folder of mode 0700.")
@click.option("--exit-with-stdin", is_flag=True, help="End when standard input ends.")
@click.option("--remove-folder", is_flag=True, help="With both: remove the folder DIR when standard input ends.")
def relay(
    connection: Path,
    key: Path | None,
    allow: Path | None,
    local: Path | None,
    exit_with_stdin: bool,
    remove_folder: bool,
    **where: str | int,
) -> None:
    """Serve jobs and devices until SIGTERM. Prints the connection file's path once it listens."""
    if local is not None:
        if key or allow:
            raise BridgeError("--local has no keys: leave --key and --allow away")
        plan = _local_plan(local)
    elif key is None or allow is None:
        raise BridgeError("a relay on a network needs --key and --allow (make keys with `edge-bridge keygen`)")
    else:
        check_parent(connection, "connection file")
        pair = read_key_pair(key)
        role = role_beside(key, pair)
        if role not in ("", "relay"):
            raise BridgeError(
                f"key file {key} is a {role}'s, says {key.with_suffix('.pub')}: a relay has a key of its own, "
                "`edge-bridge keygen relay --role relay`"
            )
        job_port, device_port = _ports(connection, pair, int(where["job_port"]), int(where["device_port"]))
        bind = str(where["bind"])
        plan = RelayPlan(
            job_endpoint=f"tcp://{bind}:{job_port}",
            device_endpoint=f"tcp://{bind}:{device_port}",
            connection_file=connection,
            public_host=str(where["public_host"]) or (os.uname().nodename if bind in ("*", "0.0.0.0") else bind),
            key=pair,
            allowed=AllowList(allow),
        )
    with Endings(exit_with_stdin) as endings:
        service = RelayService(plan)
        found = service.connection
        log.info("relay listens: jobs %s, devices %s", found.job_endpoint, found.device_endpoint)
        announce(str(plan.connection_file.resolve()))
        ended_by = service.serve(endings)
        log.info("relay ends: %s", ended_by)
        if local is not None and remove_folder and ended_by == END_OF_STDIN:
            # Its owner made the folder and may have been killed: nobody else is left to remove it.
            shutil.rmtree(local, ignore_errors=True)


def _local_plan(folder: Path) -> RelayPlan:
    check_private_folder(folder)
    return RelayPlan(
        job_endpoint=f"ipc://{folder.resolve()}/job",
        device_endpoint=f"ipc://{folder.resolve()}/device",
        connection_file=folder / "BRIDGE.json",
        public_host="",
    )


def _ports(path: Path, key: KeyPair, job_port: int, device_port: int) -> tuple[int, int]:
    """Fill in ports that were not given: a restarted relay takes those it had, so that its peers find it."""
    try:
        old = read_connection(path) if path.exists() else None
    except BridgeError as error:
        raise BridgeError(f"{error}; it would be overwritten: move it away") from None
    if old is None or old.relay_public_key != key.public:
        return job_port, device_port
    job_old, device_old = (int(end.rpartition(":")[2]) for end in (old.job_endpoint, old.device_endpoint))
    return job_port or job_old, device_port or device_old
