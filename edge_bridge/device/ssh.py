"""The system's ssh as the bridge calls it: its command lines, and what its complaints mean.

Pure text in, text out, but for `fetch`, which runs one ssh with limits. Must not know agents or relays.
"""

from __future__ import annotations

import enum
import os
import re
import selectors
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edge_bridge.device import with_parent
from edge_bridge.errors import TunnelError

#: ssh prints this when the login has taken it and the local port listens.
UP_MARK = b"edge-bridge-tunnel-is-up"
#: A connection file is a few hundred bytes.
FETCH_LIMIT_BYTES = 64 << 10
FETCH_LIMIT_S = 40.0
_ENDPOINT = re.compile(r"tcp://(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,200}):([0-9]{1,5})")
#: Given after the user's own options: ssh takes the first value it meets.
_ALWAYS = (
    "BatchMode=yes",
    # A dead link is noticed after 9 to 12 s, a login that does not answer is given up after 8 s.
    "ServerAliveInterval=3",
    "ServerAliveCountMax=3",
    "ConnectTimeout=8",
    # This ssh is one process that can be watched and ended; nothing else rides on it.
    "ControlMaster=no",
    "ControlPath=none",
    "ForwardAgent=no",
    "ForwardX11=no",
    "RemoteCommand=none",
    "LogLevel=INFO",
)


class Trouble(enum.Enum):
    """What follows from the end of an ssh."""

    #: The user must do something; trying again soon is of no use.
    REFUSED = "refused"
    #: The local port belongs to somebody else.
    PORT_TAKEN = "port taken"
    #: The network, or the login: try again.
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why an ssh ended, in one line that says what to do."""

    trouble: Trouble
    line: str


#: What ssh says, in lower case; what follows; what to do.
_COMPLAINTS: tuple[tuple[str, Trouble, str], ...] = (
    ("remote host identification has changed", Trouble.REFUSED, "somebody may be in between, or the login node was "
     "installed anew: ask its operator for its host key, then `ssh-keygen -R` the old one"),
    ("host key verification failed", Trouble.REFUSED, "its host key is not known here: run `ssh {login}` once by hand, "
     "as the user of this agent, and compare the fingerprint"),
    ("permission denied", Trouble.REFUSED, "the login does not take this device's ssh key: add the .pub of "
     "`ssh-keygen` to the login's authorized_keys (no passphrase, or an agent: nobody is asked)"),
    ("too many authentication failures", Trouble.REFUSED, "name one key: --ssh-option IdentitiesOnly=yes "
     "--ssh-option IdentityFile=…"),
    ("name or service not known", Trouble.REFUSED, "there is no such host: check --ssh"),
    ("bad configuration option", Trouble.REFUSED, "check --ssh-option and ~/.ssh/config"),
    ("command-line:", Trouble.REFUSED, "check --ssh-option"),
    ("unknown option --", Trouble.REFUSED, "check --ssh-option"),
    ("bad permissions", Trouble.REFUSED, "chmod 600 the ssh key"),
    ("address already in use", Trouble.PORT_TAKEN, "another program has the local port"),
)  # fmt: skip


def judge(login: str, complaints: str, status: int | None) -> Verdict:
    """Say what the end of an ssh means, from what it wrote to standard error and its exit status."""
    lines = [line.strip() for line in complaints.splitlines() if line.strip(" @\t\r")]
    for marker, trouble, advice in _COMPLAINTS:
        said = next((line for line in lines if marker in line.lower()), None)
        if said is not None:
            return Verdict(trouble, f"ssh {login}: {_shown(said)}: {advice.format(login=login)}")
    why = _shown(lines[-1]) if lines else f"ended with status {status}"
    return Verdict(Trouble.LOST, f"ssh {login}: {why}")


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Host and port of a tcp endpoint; an IPv6 address keeps its brackets.

    Raises
    ------
    TunnelError
        When it is none.
    """
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or not 0 < int(match[2]) < 65536:
        raise TunnelError(f"relay endpoint {endpoint} cannot be reached by ssh: a tunnel leads to tcp://HOST:PORT only")
    return match[1], int(match[2])


def split_remote(path: Path) -> tuple[str, str] | None:
    """LOGIN and PATH of ``LOGIN:PATH``, or None for a path on this machine (as scp decides)."""
    login, colon, there = str(path).partition(":")
    if not colon or not login or not there or "/" in login:
        return None
    return login, there


def ssh_options(given: Sequence[str]) -> list[str]:
    """Options of ssh: what begins with ``-`` as it stands (``-p 2222``), all else as ``-o``.

    Raises
    ------
    TunnelError
        When one has a quote that is not closed.
    """
    words = []
    for each in given:
        try:
            words += shlex.split(each) if each.startswith("-") else ["-o", each]
        except ValueError as error:
            raise TunnelError(f"--ssh-option {each!r} cannot be split into words: {error}") from None
    for each in _ALWAYS:
        words += ["-o", each]
    return words


def tunnel_command(login: str, local_port: int, endpoint: str, given: Sequence[str]) -> list[str]:
    """Command that forwards a local port of this machine to an endpoint as the login sees it."""
    host, port = split_endpoint(endpoint)
    mark = f"LocalCommand=echo {UP_MARK.decode()}"
    forward = ["-L", f"127.0.0.1:{local_port}:{host}:{port}", "-o", "ExitOnForwardFailure=yes"]
    return ["-N", "-T", *ssh_options(given), *forward, "-o", "PermitLocalCommand=yes", "-o", mark, "--", login]


def fetch_command(login: str, path: str, given: Sequence[str]) -> list[str]:
    """Command that prints a file of the login's; a relative path (or ``~/``) begins at its home."""
    return ["-T", *ssh_options(given), "--", login, f"cat < {shlex.quote(path.removeprefix('~/'))}"]


def start_ssh(login: str, arguments: Sequence[str], parent: int) -> subprocess.Popen[bytes]:
    """Start an ssh that ends with the thread that called this, or with its process.

    Raises
    ------
    TunnelError
        When there is no ssh on this machine, or the login would be read as an option.
    """
    if not re.fullmatch(r"[^-\s\x00-\x1f][^\s\x00-\x1f]*", login):
        raise TunnelError(f"login {login!r} for ssh: give HOST, USER@HOST, or a Host of ~/.ssh/config")
    ssh = shutil.which("ssh")
    if ssh is None:
        raise TunnelError("there is no ssh on this machine: install openssh-client, or leave --ssh away")
    assert with_parent.__file__ is not None
    return subprocess.Popen(
        [sys.executable, "-I", "-S", with_parent.__file__, str(parent), ssh, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        # ssh runs its local command by this shell; a service's user often has none that runs anything.
        env={**os.environ, "SHELL": "/bin/sh"},
        # Ctrl-C is for the agent, which ends its ssh itself.
        start_new_session=True,
    )


def end_ssh(process: subprocess.Popen[bytes]) -> None:
    """End it, and wait for that, for a short while."""
    process.terminate()
    try:
        process.wait(2.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5.0)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()


def fetch(login: str, path: str, given: Sequence[str], parent: int, limit_s: float = FETCH_LIMIT_S) -> bytes:
    """Content of a small file of the login's.

    Raises
    ------
    TunnelError
        When ssh is refused, the file is not there or too large, or it takes too long.
    """
    process = start_ssh(login, fetch_command(login, path, given), parent)
    assert process.stdout is not None
    assert process.stderr is not None
    got: dict[IO[bytes], bytes] = {process.stdout: b"", process.stderr: b""}
    end_s = time.monotonic() + limit_s
    try:
        with selectors.DefaultSelector() as selector:
            for stream in got:
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(max(0.0, end_s - time.monotonic()))
                if not ready:
                    raise TunnelError(f"ssh {login} has not sent {path} within {limit_s:.0f} s: try it by hand")
                for key, _ in ready:
                    stream = next(each for each in got if each is key.fileobj)
                    chunk = stream.read(65536)
                    got[stream] += chunk or b""
                    if len(got[stream]) > FETCH_LIMIT_BYTES:
                        raise TunnelError(
                            f"{login}:{path} is larger than {FETCH_LIMIT_BYTES} bytes: no connection file"
                        )
                    if not chunk:
                        selector.unregister(stream)
        status = process.wait(5.0)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        end_ssh(process)
    if status == 0:
        return got[process.stdout]
    said = got[process.stderr].decode(errors="replace")
    if status == 255 or status is None:
        raise TunnelError(judge(login, said, status).line)
    raise TunnelError(
        f"{login}:{path} cannot be read ({_shown(said.strip().splitlines()[-1] if said.strip() else '')})"
    )


def _shown(line: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in line).removeprefix("ssh: ").rstrip(".")[:200]
