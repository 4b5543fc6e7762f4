"""The commands of `edge-bridge`: only reader of argv, only writer of standard output.

What the user can mend ends a command with one line on standard error and exit code 2.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import sys
import tempfile
from pathlib import Path
from typing import IO

import click
import msgspec

from edge_bridge.client import BridgeClient
from edge_bridge.device import Agent, DevicePlan, describe_device
from edge_bridge.endings import Endings
from edge_bridge.errors import BridgeError
from edge_bridge.keys import (
    AllowList,
    Connection,
    KeyPair,
    check_private_folder,
    read_connection,
    read_key_pair,
    write_key_pair,
)
from edge_bridge.lines import FailureLine, MeasuredLine, PhaseLine
from edge_bridge.measurer import ChildLimits, Measurer
from edge_bridge.quantities import Measurement, Percentile, Profile, Settings
from edge_bridge.relay_service import RelayPlan, RelayService

log = logging.getLogger("edge-bridge")
_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


def main() -> None:
    """Run the command line; errors of the user are one line and exit code 2."""
    try:
        cli.main(prog_name="edge-bridge", standalone_mode=True)
    except BridgeError as error:
        click.echo(f"edge-bridge: {error}", err=True)
        sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--log-level", type=click.Choice(["debug", "info", "warning"]), default="info", show_default=True)
def cli(log_level: str) -> None:
    """Latencies from a real edge device, over ZeroMQ."""
    logging.basicConfig(
        stream=sys.stderr,
        level=log_level.upper(),
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )


@cli.command()
@click.argument("stem", type=click.Path(path_type=Path))
@click.option("--name", default="", help="Name beside the public key in an allow-list (default: that of the file).")
def keygen(stem: Path, name: str) -> None:
    """Make a key pair: STEM.key (secret, mode 0600) and STEM.pub (a line for an allow-list)."""
    secret, public = write_key_pair(stem, name or stem.name)
    click.echo(f"secret key: {secret} (keep it on this machine)")
    click.echo(f"public key: {public} (add its line to the relay's allow-list)")


@cli.command()
@click.option("--connection", type=_FILE, default=Path("BRIDGE.json"), show_default=True, help="File to write.")
@click.option("--key", type=_FILE, help="The relay's own key file.")
@click.option("--allow", type=click.Path(path_type=Path), help="Allow-list: a file, or a folder of .pub files.")
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address to listen on; * for all.")
@click.option("--public-host", default="", help="Host name for the connection file (default: --bind).")
@click.option("--job-port", default=0, help="Port for jobs; 0: the one of an earlier connection file, or a free one.")
@click.option("--device-port", default=0, help="Port for devices; likewise.")
@click.option("--local", type=_FOLDER, help="Private bridge of one job: ipc sockets in this folder of mode 0700.")
@click.option("--exit-with-stdin", is_flag=True, help="End when standard input ends.")
def relay(
    connection: Path,
    key: Path | None,
    allow: Path | None,
    local: Path | None,
    exit_with_stdin: bool,
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
        pair = read_key_pair(key)
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
        _announce(str(plan.connection_file.resolve()))
        log.info("relay ends: %s", service.serve(endings))


@cli.command()
@click.argument("connection", type=_FILE, metavar="BRIDGE.json")
@click.option("--key", type=_FILE, help="This device's key file.")
@click.option("--name", default="", help="Name of the device profile (default: the host's).")
@click.option("--state", type=_FOLDER, help="Folder for results [default: ~/.local/state/edge-bridge/NAME].")
@click.option("--runtime", default="onnxruntime", show_default=True)
@click.option("--provider", default="cpu", show_default=True, help="For onnxruntime: cpu, cuda or tensorrt.")
@click.option("--memory-limit-mb", default=0, help="Address space of a model [default: half of the memory].")
@click.option("--load-seconds", default=120.0, show_default=True, help="Longest time to load a model.")
@click.option("--stall-seconds", default=30.0, show_default=True, help="Longest time of one run of a model.")
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
    any_core: bool,
    exit_with_stdin: bool,
) -> None:
    """Measure for the relay of BRIDGE.json until SIGTERM. Prints a line each time the relay has taken it."""
    profile = describe_device(name, runtime, provider)
    found = read_connection(connection)
    plan = DevicePlan(
        connection=found,
        key=_key_for(found, key),
        profile=profile,
        state=state or Path.home() / ".local/state/edge-bridge" / profile.name,
        limits=ChildLimits(_memory_limit_bytes(memory_limit_mb), load_seconds, stall_seconds),
    )
    if any_core:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    with Endings(exit_with_stdin) as endings, _only_one(plan.state):
        agent = Agent(plan, on_registered=lambda: _announce(f"registered {profile.name}"))
        log.info("device %s (%s), relay %s", profile.name, profile.hardware, found.device_endpoint)
        log.info("device ends: %s", agent.serve(endings))


@cli.command()
@click.argument("model", type=_FILE, metavar="MODEL.onnx")
@click.option("--percentile", type=click.Choice(["p90", "p95", "p99"]), default="p90", show_default=True)
@click.option("--samples", default=0, help="At least so many [default: what the percentile needs].")
@click.option("--min-seconds", default=0.2, show_default=True)
@click.option("--max-seconds", default=30.0, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--runtime", default="onnxruntime", show_default=True)
@click.option("--provider", default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def measure(model: Path, runtime: str, provider: str, as_json: bool, **wanted: Percentile | int | float) -> None:
    """Measure a model on this machine alone."""
    try:
        settings = msgspec.convert(wanted, Settings)
    except msgspec.ValidationError as error:
        raise BridgeError(f"settings: {error}") from None
    try:
        content = model.read_bytes()
    except OSError as error:
        raise BridgeError(f"model {model} cannot be read: {error.strerror}") from None
    measurement = _measure_here(content, settings, describe_device("", runtime, provider), model)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(measurement), indent=1).decode())
    else:
        click.echo(_table(measurement))


@cli.command()
@click.argument("connection", type=_FILE, metavar="BRIDGE.json")
@click.option("--key", type=_FILE, help="Key file of a job.")
@click.option("--timeout", "timeout_s", default=10.0, show_default=True, help="Seconds to wait for the relay.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(connection: Path, key: Path | None, timeout_s: float, as_json: bool) -> None:
    """Show a relay's devices and queue."""
    found = read_connection(connection)
    client = BridgeClient.open(found, _key_for(found, key), timeout_s)
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


def _key_for(connection: Connection, path: Path | None) -> KeyPair | None:
    if connection.relay_public_key is None:
        return None
    if path is None:
        raise BridgeError(
            f"relay {connection.job_endpoint} takes known keys only: give --key, from `edge-bridge keygen`"
        )
    return read_key_pair(path)


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


def _memory_limit_bytes(megabytes: int) -> int:
    return megabytes * 2**20 or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _measure_here(content: bytes, settings: Settings, profile: Profile, path: Path) -> Measurement:
    with tempfile.TemporaryDirectory(prefix="edge-bridge-") as folder, Endings(with_stdin=False) as endings:
        measurer = Measurer(profile, Path(folder) / "models", ChildLimits(_memory_limit_bytes(0)))
        try:
            measurer.begin(content, settings)
            while True:
                for line in measurer.advance():
                    match line:
                        case PhaseLine(phase=phase):
                            log.info("%s", phase)
                        case MeasuredLine(measurement=measurement):
                            return measurement
                        case FailureLine(reason=reason, detail=detail):
                            raise BridgeError(f"model {path} was not measured ({reason}): {detail}")
                for ready in select.select([*endings.descriptors(), *measurer.descriptors()], [], [], 1.0)[0]:
                    if asked := endings.asked_by(ready):
                        raise BridgeError(f"ended by {asked}")
        finally:
            measurer.close()


def _table(measurement: Measurement) -> str:
    rows = [(f"{name[:-2]} ms", f"{value * 1e3:.4f}") for name, value in _times(measurement)]
    rows += [
        (
            "samples",
            f"{measurement.samples}{'' if measurement.complete else ' (fewer than asked: time was over)'}",
        ),
        (
            "variation",
            f"{measurement.coefficient_of_variation:.1%}{', UNSTEADY' if measurement.unsteady else ''}",
        ),
        ("warm-up runs", f"{measurement.warmup_runs}"),
        ("load ms", f"{measurement.load_s * 1e3:.1f}"),
        ("input", f"{measurement.input_type} {measurement.input_shape}"),
        ("peak memory MB", f"{measurement.peak_memory_bytes / 1e6:.1f}"),
        ("runtime", f"{measurement.runtime} {measurement.provider}, {measurement.threads} thread(s)"),
        ("hardware", measurement.hardware),
    ]
    return "\n".join(f"{name:<15} {value}" for name, value in rows)


def _times(measurement: Measurement) -> list[tuple[str, float]]:
    return [(name, getattr(measurement, name)) for name in ("p50_s", "p90_s", "p95_s", "p99_s", "mean_s", "min_s")]


def _announce(line: str) -> None:
    try:
        click.echo(line)
        sys.stdout.flush()
    except BrokenPipeError:
        log.debug("nobody reads standard output")
