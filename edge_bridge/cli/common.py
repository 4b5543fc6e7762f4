"""What several commands share: option types, keys, announcements."""

from __future__ import annotations

import logging
import os
import re
import select
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from edge_bridge.endings import Endings
from edge_bridge.errors import BridgeError
from edge_bridge.wire.files import read_small
from edge_bridge.wire.keys import Connection, KeyPair, read_key_pair
from edge_bridge.wire.quantities import Profile

log = logging.getLogger("edge-bridge")
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
DAY_S = 86_400.0
Number = TypeVar("Number", int, float)


def within(
    most: Number, *, least: Number | None = None, above: Number | None = None
) -> Callable[[click.Context, click.Parameter, Number], Number]:
    """Callback of an option: its number must lie here; anything else, "nan" too, is one line and exit code 2."""

    def checked(context: click.Context, option: click.Parameter, number: Number) -> Number:
        fits = number <= most and (least is None or number >= least) and (above is None or number > above)
        if not fits:
            bounds = {"at least": least, "above": above, "at most": most}
            words = " and ".join(f"{word} {bound:.10g}" for word, bound in bounds.items() if bound is not None)
            raise BridgeError(f"{option.opts[0]} must be {words}, not {number:.10g}")
        return number

    return checked


class InterruptedCommandError(BridgeError):
    """A command with one answer was asked to end before it had one."""


class AnswerEndings(Endings):
    """Endings of a command with one answer: to be asked to end is an error."""

    def __init__(self) -> None:
        super().__init__(with_stdin=False)

    def asked_by(self, readable: int) -> None:
        """Raise if what became readable is a wish to end."""
        if asked := super().asked_by(readable):
            raise InterruptedCommandError(f"ended by {asked}")


#: Limits on what a model may take.
LIMIT_SECONDS = within(DAY_S, above=0.0)
MEGABYTES = within(1 << 24, least=0)


def option_text(error: msgspec.ValidationError, names: Mapping[str, str]) -> str:
    """Text of an error in which options stand for fields; `names` are those that differ."""
    what, at, field = str(error).partition(" - at `$.")
    name = re.sub(r"(\[.*)?`$", "", field)
    what = re.sub(r"^Expected `(int|float|array)` ", "must be ", what)
    return f"{names.get(name, '--' + name.replace('_', '-'))} {what}" if at else what


def key_for(connection: Connection, path: Path | None) -> KeyPair | None:
    """Key pair for this relay; None where a private bridge wants none."""
    if connection.relay_public_key is None:
        return None
    if path is None:
        raise BridgeError(
            "the relay of this connection file takes known keys only: give --key, see `edge-bridge keygen`"
        )
    return read_key_pair(path)


def role_beside(path: Path, pair: KeyPair) -> str:
    """Role of a key by the .pub file beside it, as `edge-bridge keygen` wrote it; "" where none tells."""
    try:
        words = read_small(path.with_suffix(".pub"))[0].decode(errors="replace").split()
    except OSError:
        return ""
    return words[2] if len(words) == 3 and words[0] == pair.public else ""


def check_parent(path: Path, what: str) -> None:
    """Refuse a file to be written in a folder that is not there: a misspelt path, as a rule."""
    if not path.parent.is_dir():
        raise BridgeError(f"{what} {path}: there is no folder {path.parent}, make it first")


def state_folder(given: Path | None, profile: Profile) -> Path:
    """Folder of a device's results."""
    return given or Path.home() / ".local/state/edge-bridge" / profile.name


def memory_limit_bytes(megabytes: int) -> int:
    """Bytes of so many MB; 0 stands for half of this machine's memory."""
    return megabytes * 2**20 or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def announce(line: str) -> None:
    """Print a line at once, if somebody reads; whoever started this may have gone, or look elsewhere."""
    # A full pipe would hold up the service for ever.
    if not select.select([], [sys.stdout], [], 0)[1]:
        log.debug("standard output is full")
        return
    try:
        click.echo(line)
        sys.stdout.flush()
    except BrokenPipeError:
        log.debug("nobody reads standard output")
