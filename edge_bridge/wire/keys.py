"""Files that hold trust: CURVE key pairs, the allow-list of public keys, and the connection file BRIDGE.json.

Only files and their checks. Must not know sockets (but for zmq's key generator) or the protocol's messages.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated

import msgspec
import zmq

from edge_bridge.errors import KeyFileError
from edge_bridge.wire.protocol import VERSION

#: 40 characters of ZeroMQ's base 85 alphabet.
KEY_PATTERN = r"^[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}$"
PublicKey = Annotated[str, msgspec.Meta(pattern=KEY_PATTERN)]
Endpoint = Annotated[str, msgspec.Meta(pattern="^(tcp|ipc)://.{1,200}$")]


class KeyPair(msgspec.Struct, frozen=True, kw_only=True):
    """A CURVE key pair, as in a key file of mode 0600."""

    public: PublicKey
    secret: Annotated[str, msgspec.Meta(pattern=KEY_PATTERN)]


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
        endpoints = (self.job_endpoint, self.device_endpoint)
        if self.relay_public_key is None and not all(end.startswith("ipc://") for end in endpoints):
            raise ValueError("names no relay_public_key, and its endpoints are not private ipc sockets")


def new_key_pair() -> KeyPair:
    """Return a fresh CURVE key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public=public.decode(), secret=secret.decode())


def write_key_pair(stem: Path, name: str) -> tuple[Path, Path]:
    """Write a new pair: STEM.key (secret, mode 0600) and STEM.pub (a line for an allow-list).

    Raises
    ------
    KeyFileError
        When one of the files exists or cannot be written.
    """
    pair = new_key_pair()
    secret_path, public_path = _with_suffix(stem, ".key"), _with_suffix(stem, ".pub")
    for path in (secret_path, public_path):
        if path.exists():
            raise KeyFileError(f"key file {path} exists: choose another name, or move it away to replace the key")
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        _write_new(secret_path, msgspec.json.encode(pair) + b"\n", mode=0o600)
        _write_new(public_path, f"{pair.public} {name}\n".encode(), mode=0o644)
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
        mode = path.stat().st_mode
        if stat.S_IMODE(mode) & 0o077:
            raise KeyFileError(
                f"key file {path} has mode {stat.S_IMODE(mode):04o}, others may have read it: "
                f"chmod 600 {path}, or make a new key with `edge-bridge keygen`"
            )
        return msgspec.json.decode(path.read_bytes(), type=KeyPair)
    except OSError as error:
        raise KeyFileError(
            f"key file {path} cannot be read ({error.strerror}): make one with `edge-bridge keygen`"
        ) from None
    except (msgspec.MsgspecError, ValueError):
        raise KeyFileError(f"key file {path} is not a key made by `edge-bridge keygen`") from None


class AllowList:
    """Public keys that a relay lets in, from a file, or from the *.pub files of a folder.

    A line is a public key, then a name; an empty line or one that begins with ``# `` is skipped. Changes on
    disk count from the next question on, no restart needed: adding lets in, removing shuts out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[tuple[str, int, int], ...] = ()
        self._names: dict[str, str] = {}
        self._names = self._read(self._files())

    def name_of(self, public_key: str) -> str | None:
        """Name beside this key, or None when the key is not allowed."""
        try:
            files = self._files()
            stamp = tuple((str(file), (info := file.stat()).st_mtime_ns, info.st_size) for file in files)
            if stamp != self._stamp:
                self._names = self._read(files)
                self._stamp = stamp
        except (KeyFileError, OSError):
            # An unreadable list allows nobody: it may have been taken away to shut everybody out.
            self._names, self._stamp = {}, ()
        return self._names.get(public_key)

    def _files(self) -> list[Path]:
        try:
            files = sorted(self._path.glob("*.pub")) if self._path.is_dir() else [self._path]
            for file in files:
                file.stat()
        except OSError as error:
            raise KeyFileError(
                f"allow-list {self._path} cannot be read ({error.strerror}): it is a file of public keys, "
                "one a line, or a folder of .pub files"
            ) from None
        return files

    @staticmethod
    def _read(files: list[Path]) -> dict[str, str]:
        names: dict[str, str] = {}
        for file in files:
            try:
                lines = file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise KeyFileError(f"allow-list {file} cannot be read: {error}") from None
            for number, line in enumerate(lines, start=1):
                key, _, name = line.strip().partition(" ")
                if not key or key == "#":
                    continue
                try:
                    msgspec.convert(key, PublicKey)
                except msgspec.ValidationError:
                    raise KeyFileError(
                        f"allow-list {file} line {number}: not a public key (take it from a .pub file)"
                    ) from None
                names[key] = name.strip() or key[:8]
        return names


def read_connection(path: Path) -> Connection:
    """Read a connection file (BRIDGE.json).

    Raises
    ------
    KeyFileError
        When it is missing or not a connection file of this protocol.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Connection)
    except OSError as error:
        raise KeyFileError(
            f"connection file {path} cannot be read ({error.strerror}): "
            "copy the BRIDGE.json that `edge-bridge relay` wrote"
        ) from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise KeyFileError(f"connection file {path} is not usable: {error}") from None


def write_connection(path: Path, connection: Connection) -> None:
    """Write a connection file beside and rename it, so that a reader never sees half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)
        _write_new(beside, msgspec.json.format(msgspec.json.encode(connection), indent=1) + b"\n", mode=0o644)
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


def _write_new(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
