"""The commands of `edge-bridge`, one module each: only readers of argv, only writers of standard output.

What the user can mend ends a command with one line on standard error and exit code 2. A service that is asked to end
has done its work: 0. A command with one answer that is ended before it has one: 130.
"""

from __future__ import annotations

import logging
import sys

import click

from edge_bridge.cli.check import check
from edge_bridge.cli.common import InterruptedCommandError
from edge_bridge.cli.device import device
from edge_bridge.cli.keygen import keygen
from edge_bridge.cli.measure import measure
from edge_bridge.cli.relay import relay
from edge_bridge.cli.status import status
from edge_bridge.cli.stream import stream
from edge_bridge.errors import BridgeError


def main() -> None:
    """Run the command line; errors of the user are one line and exit code 2."""
    try:
        sys.exit(cli.main(prog_name="edge-bridge", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        text = " ".join(error.format_message().split()).rstrip(".")
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        click.echo(f"edge-bridge: {text}" + (f" (see `{command} --help`)" if command else ""), err=True)
        sys.exit(2)
    except click.Abort:
        # What click makes of Ctrl-C.
        sys.exit(130)
    except InterruptedCommandError as error:
        click.echo(f"edge-bridge: {error}", err=True)
        sys.exit(130)
    except BridgeError as error:
        click.echo(f"edge-bridge: {error}", err=True)
        sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mpinas", prog_name="edge-bridge")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning"]), default="info", show_default=True)
def cli(log_level: str) -> None:
    """Latencies from a real edge device, over ZeroMQ.

    Exit codes: 0 done; 2 something that you can mend, in one line on standard error. Ended by Ctrl-C or SIGTERM, the
    services (relay, device, status --watch) end with 0 once they serve, all other commands with 130.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(name)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=log_level.upper())


class OneLine(logging.Formatter):
    """Writes a record's text as one line of printable characters: names and details come over the network."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Text of the record, what does not print written as an escape."""
        text = super().formatMessage(record)
        return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


for each in (keygen, relay, device, measure, status, check, stream):
    cli.add_command(each)
