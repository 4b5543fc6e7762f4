"""Files that hold trust: CURVE key pairs, and the connection file BRIDGE.json (the allow-list is beside).

Only files and their checks. Must not know sockets (but for zmq's key generator) or the protocol's messages.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import zmq

from edge_bridge.errors import KeyFileError
from edge_bridge.wire.files import (
    FILE_LIMIT_BYTES,
    KEY_PATTERN,
    NAME_RULE,
    PublicKey,
    Role,
    is_key,
    is_name,
    read_small,
    write_new,
)
from edge_bridge.wire.protocol import VERSION

Endpoint = Annotated[str, msgspec.Meta(pattern="^(tcp|ipc)://.{1,200}$")]


class KeyPair(msgspec.Struct, frozen=True, kw_only=True):
    """A CURVE key pair, as in a key file of mode 0600."""

    public: PublicKey
    secret: Annotated[str, msgspec.Meta(pattern=KEY_PATTERN)]

    def __post_init__(self) -> None:
        if not is_key(self.public) or not is_key(self.secret):
            raise ValueError("no key pair")


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """What a client or a device must know to reach a relay: the content of BRIDGE.json.

    `relay_public_key` is None only for a private bridge on ipc sockets: without CURVE no other way is opened.
    """

    protocol: str
    job_endpoint: Endpoint
    device_endpoint: Endpoint
    relay_public_key: PublicKey | None = None

    def __post_init__(self) -> None:
        if self.protocol != VERSION.decode():
            raise ValueError(f"speaks {self.protocol}, this is {VERSION.decode()}")
        if self.relay_public_key is not None and not is_key(self.relay_public_key):
            raise ValueError("its relay_public_key is no key")
        endpoints = (self.job_endpoint, self.device_endpoint)
        if self.relay_public_key is None and not all(end.startswith("ipc://") for end in endpoints):
            raise ValueError("names no relay_public_key, and its endpoints are not private ipc sockets")


#: Connection and key as the files have them now; BridgeError where they cannot be read.
Access = Callable[[], tuple[Connection, KeyPair | None]]


def new_key_pair() -> KeyPair:
    """Return a fresh CURVE key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public=public.decode(), secret=secret.decode())


def write_key_pair(stem: Path, name: str, role: Role) -> tuple[Path, Path]:
    """Write a new pair: STEM.key (secret, mode 0600) and STEM.pub (a line for an allow-list).

    Raises
    ------
    KeyFileError
        When STEM is no file's name, the name will not do in an allow-list, or one of the files exists or cannot be
        written.
    """
    if stem.name in ("", ".."):
        raise KeyFileError(f"key files {stem}.key and {stem}.pub: give a file's name, not a folder")
    if not is_name(name):
        raise KeyFileError(f"key name {name!r} will not do: give --name, {NAME_RULE}")
    pair = new_key_pair()
    secret_path, public_path = _with_suffix(stem, ".key"), _with_suffix(stem, ".pub")
    try:
        for path in (secret_path, public_path):
            if path.exists():
                raise KeyFileError(f"key file {path} exists: choose another name, or move it away to replace the key")
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_new(secret_path, msgspec.json.encode(pair) + b"\n", mode=0o600)
        try:
            write_new(public_path, f"{pair.public} {name} {role}\n".encode(), mode=0o644)
        except OSError:
            secret_path.unlink()
            raise
    except OSError as error:
        raise KeyFileError(f"key file {error.filename or stem} cannot be written: {error.strerror}") from None
    return secret_path, public_path


def read_key_pair(path: Path) -> KeyPair:
    """Read a key file; refuse one that others could have read.

    Raises
    ------
    KeyFileError
        When it is missing, malformed, or readable by group or others.
    """
    try:
        content, mode = read_small(path)
        pair = msgspec.json.decode(content, type=KeyPair)
    except OSError as error:
        raise KeyFileError(
            f"key file {path} cannot be read ({error.strerror}): make one with `edge-bridge keygen`"
        ) from None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise KeyFileError(
            f"key file {path} is no secret key made by `edge-bridge keygen`: those are called NAME.key"
        ) from None
    if mode & 0o077:
        raise KeyFileError(
            f"key file {path} has mode {mode:04o}, others may have read it: "
            f"chmod 600 {path}, or make a new key with `edge-bridge keygen`"
        )
    return pair


def read_connection(path: Path) -> Connection:
    """Read a connection file (BRIDGE.json).

    Raises
    ------
    KeyFileError
        When it is missing or not a connection file of this protocol.
    """
    try:
        content, _ = read_small(path)
    except OSError as error:
        raise KeyFileError(
            f"connection file {path} cannot be read ({error.strerror}): "
            "copy the BRIDGE.json that `edge-bridge relay` wrote"
        ) from None
    return decode_connection(content, str(path))


def decode_connection(content: bytes, where: str) -> Connection:
    """Check the content of a connection file that came from `where`.

    Raises
    ------
    KeyFileError
        When it is not a connection file of this protocol.
    """
    try:
        if len(content) > FILE_LIMIT_BYTES:
            raise ValueError(f"it is larger than {FILE_LIMIT_BYTES} bytes")
        return msgspec.json.decode(content, type=Connection)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise KeyFileError(f"connection file {where} is not usable: {error}") from None


def write_connection(path: Path, connection: Connection) -> None:
    """Write a connection file beside and rename it, so that a reader never sees half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)
        write_new(beside, msgspec.json.format(msgspec.json.encode(connection), indent=1) + b"\n", mode=0o644)
        beside.rename(path)
    except OSError as error:
        raise KeyFileError(f"connection file {path} cannot be written: {error.strerror}") from None


def check_private_folder(folder: Path) -> None:
    """Refuse a folder for ipc sockets that anybody else could reach into.

    Raises
    ------
    KeyFileError
        When it is missing, belongs to somebody else, or its mode is not 0700.
    """
    try:
        info = folder.stat()
    except OSError as error:
        raise KeyFileError(f"folder {folder} for a local bridge: {error.strerror}") from None
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o077:
        raise KeyFileError(f"folder {folder} for a local bridge must be your own with mode 0700")


def _with_suffix(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)
