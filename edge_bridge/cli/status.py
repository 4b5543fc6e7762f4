"""`edge-bridge status`: the relay, its devices and jobs, once or again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from edge_bridge.cli.common import FILE, LIMIT_SECONDS, key_for, role_beside
from edge_bridge.client import BridgeClient, RelayLost
from edge_bridge.errors import BridgeError, BridgeUnreachableError, KeyRefusedError
from edge_bridge.wire.keys import Connection, read_connection
from edge_bridge.wire.protocol import DeviceState, JobState, State

EVERY_S = 1.0
#: With --watch a relay that has not answered for so long is said not to.
PATIENCE_S = 2.0


@click.command()
@click.argument("connection", type=FILE, metavar="BRIDGE.json")
@click.option("--key", type=FILE, help="Key file of a job.")
@click.option(
    "--timeout",
    "timeout_s",
    default=10.0,
    show_default=True,
    callback=LIMIT_SECONDS,
    help="Seconds to wait for the relay.",
)
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
@click.option(
    "--json", "as_json", is_flag=True, help='Print JSON; with --watch a line each time, {"error": …} without the relay.'
)
def status(connection: Path, key: Path | None, timeout_s: float, watch: bool, as_json: bool) -> None:
    """Show a relay's devices, jobs, queue, rate and last error."""
    if connection.suffix in (".pub", ".key"):
        raise BridgeError(f"{connection} is no connection file: give the BRIDGE.json that `edge-bridge relay` wrote")
    found = read_connection(connection)
    pair = key_for(found, key)
    try:
        client = BridgeClient.open(found, pair, timeout_s)
    except KeyRefusedError as error:
        role = "" if key is None or pair is None else role_beside(key, pair)
        raise KeyRefusedError(f"{error}{f' ({key} is a {role} key)' if role not in ('', 'job') else ''}") from None
    questions = _Questions(client)
    try:
        if watch and as_json:
            _watch(questions, lambda told: click.echo(json_line(told)))
        elif watch:
            with Live(console=_console(), auto_refresh=False, screen=False) as live:
                _watch(questions, lambda told: live.update(_shown(found, told), refresh=True))
        elif as_json:
            click.echo(msgspec.json.format(msgspec.json.encode(questions.state(timeout_s)), indent=1).decode())
        else:
            _console().print(show(found, questions.state(timeout_s)))
    finally:
        client.close()


class _Questions:
    """Asks a relay how it is, and keeps in mind why it was last lost."""

    def __init__(self, client: BridgeClient) -> None:
        self._client = client
        self._lost = "is it running?"

    def state(self, timeout_s: float) -> State:
        """The relay's state; asked again after a reconnection."""
        client = self._client
        if client.welcome is not None and client.welcome.minor < 1:
            raise BridgeError("the relay speaks version 1.0 of the protocol and does not tell its state: update it")
        end_s = time.monotonic() + timeout_s
        while (now_s := time.monotonic()) < end_s:
            client.ask_state()
            ask_again_s = min(end_s, now_s + 1.0)
            while client.state is None and time.monotonic() < ask_again_s:
                client.wait(100)
                for event in client.poll():
                    if isinstance(event, RelayLost):
                        self._lost = event.detail
            if client.state is not None:
                return client.state
        raise BridgeUnreachableError(f"the relay has not answered within {timeout_s:g} s: {self._lost}")


def _watch(questions: _Questions, tell: Callable[[State | str], None]) -> None:
    """Tell the state, or in words that it is not to be had, until Ctrl-C or SIGTERM."""
    answered_s = time.monotonic()
    try:
        while True:
            try:
                state = questions.state(PATIENCE_S)
            except BridgeUnreachableError as error:
                why = str(error).partition(": ")[2]
                tell(f"relay does not answer since {duration(time.monotonic() - answered_s)}: {why}")
                continue
            answered_s = time.monotonic()
            tell(state)
            time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return


def _shown(found: Connection, told: State | str) -> RenderableType:
    return told if isinstance(told, str) else show(found, told)


def json_line(told: State | str) -> str:
    """One line of JSON: the state, or an object with nothing but `error`."""
    return msgspec.json.encode({"error": told} if isinstance(told, str) else told).decode()


def show(found: Connection, state: State) -> RenderableType:
    """State as a screen full of text."""
    error = "none"
    if state.last_error_ago_s is not None:
        error = f"{state.last_error} ({duration(state.last_error_ago_s)} ago)"
    head = Table.grid(padding=(0, 2))
    for name, value in (
        ("relay", f"{found.job_endpoint}, up {duration(state.uptime_s)}"),
        ("requests", f"{state.running} running, {state.queued} queued, {state.bytes_held / 1e6:.1f} MB held"),
        ("rate", f"{state.answered_per_minute} answered in the last minute"),
        ("last error", error),
    ):
        head.add_row(name, value)
    return Group(head, _devices(state.devices), _jobs(state))


def _devices(devices: list[DeviceState]) -> RenderableType:
    if not devices:
        return "no device is registered"
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("device", "doing", "for", "heard", "measured", "failed", "runtime", "hardware"):
        table.add_column(title, justify="right" if title in ("for", "heard", "measured", "failed") else "left")
    for each in devices:
        table.add_row(
            each.profile.name,
            each.doing,
            duration(each.doing_for_s),
            duration(each.heard_ago_s),
            str(each.measured),
            str(each.failed),
            f"{each.profile.runtime} {each.profile.provider}",
            each.profile.hardware + (f", {each.profile.power_mode}" if each.profile.power_mode else ""),
        )
    return table


def _jobs(state: State) -> RenderableType:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("job")
    for title in ("running", "queued", "answered"):
        table.add_column(title, justify="right")
    others, note = without_asker(state.jobs)
    for each in others:
        table.add_row(each.name, str(each.running), str(each.queued), str(each.answered))
    return Group(table, note) if note else table


def without_asker(jobs: list[JobState]) -> tuple[list[JobState], str]:
    """The jobs but for this command, which the relay counts among them; where it cannot be told, all and a note."""
    idle = [each for each in jobs if not (each.running or each.queued or each.answered)]
    if len({each.name for each in idle}) > 1:
        return jobs, "one of the jobs without requests is this command"
    others = list(jobs)
    if idle:
        others.remove(idle[0])
    return others, ""


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3 min, 5.1 h, 2.0 d."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 86_400 else f"{seconds / 86_400:.1f} d"


def _console() -> Console:
    # Device and peer names come over the network: no markup in them.
    return Console(markup=False, highlight=False, soft_wrap=False)
