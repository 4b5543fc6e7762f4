"""A machine within the machine: namespaces in which everything dies with its first process. Knows nothing of Slurm.

The first process waits at a pipe that the tests hold. However they end, at Ctrl-C and SIGKILL too, the pipe closes,
the process ends, and with it the kernel ends all others of its PID namespace; network interfaces and mounts go with the
last process that saw them. Nothing is left that somebody would have to clean up, and no port or name is another's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

#: The first process: bash also takes care of orphans. It tells its PID as the outside sees it, then hides the outside.
#: An own /run for `ip netns`, an own /dev/shm because Open MPI names its files there by job and host.
#: When the tests let go, all others are killed, and the folder goes as soon as the last of them is dead.
FIRST = """
set -e
read -r pid rest < /proc/self/stat
mount -t proc proc /proc
mount -t tmpfs run /run
mount -t tmpfs shm /dev/shm
ip link set lo up
echo "$pid"
cat > /dev/null
kill -KILL -1 || true
for attempt in {1..100}; do
  rm -rf "$1" && break
  sleep 0.1
done
"""


class Machine:
    """Namespaces of an own (processes, network, host name, shared memory, mounts), with a folder of their own."""

    def __init__(self) -> None:
        #: Short, because sockets are made in it; as everybody sees it.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self._first = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--net", "--uts", "--ipc", "--mount",
             "bash", "-c", FIRST, "first", str(self.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,  # Ctrl-C is for the tests; the machine ends when they let go of it
        )  # fmt: skip
        assert self._first.stdout is not None
        self._pid = self._first.stdout.readline().strip()
        if not self._pid:
            _, error = self._first.communicate()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise OSError(f"no namespaces here: {' '.join(error.split())}")

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def command(self, *command: str, cwd: Path | str = "/") -> list[str]:
        """What runs `command` inside."""
        inside = ["--pid", "--net", "--uts", "--ipc", "--mount"]
        return ["nsenter", "--target", self._pid, *inside, "env", f"--chdir={cwd}", *command]

    def run(
        self,
        *command: str,
        cwd: Path | str = "/",
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` inside to its end; the finished process. With `check`, a failure is an AssertionError."""
        done = subprocess.run(
            self.command(*command, cwd=cwd), env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def close(self) -> None:
        """End all that runs inside; the folder is gone with it."""
        self._first.communicate()  # closes the pipe it waits at


def connect(machine: Machine, hosts: Mapping[str, str], address: str) -> None:
    """Give the machine hosts: a network namespace each, by name, all at one switch.

    Parameters
    ----------
    hosts
        Address of each, by name.
    address
        The machine's own on this network (a /24).
    """
    lines = [
        "set -e",
        "ip link add switch type bridge",
        f"ip addr add {address}/24 dev switch",
        "ip link set switch up",
    ]
    for name, own in hosts.items():
        lines += [
            f"ip netns add {name}",
            f"ip -n {name} link set lo up",
            f"ip link add to-{name} type veth peer name eth0 netns {name}",
            f"ip link set to-{name} master switch up",
            f"ip -n {name} addr add {own}/24 dev eth0",
            f"ip -n {name} link set eth0 up",
        ]
    machine.run("sh", "-c", "\n".join(lines))


def on_host(name: str, private: Path, script: str) -> Sequence[str]:
    """What runs a shell script as the first one on a host made by `connect`.

    It has the host's name, and shared memory and files under `private` that no other host sees.
    """
    begin = f"hostname {name}; mount -t tmpfs shm /dev/shm; mount -t tmpfs private {private}; "
    return ("nsenter", f"--net=/run/netns/{name}", "unshare", "--uts", "--ipc", "--mount", "sh", "-c", begin + script)


def why_no_machine() -> str | None:
    """Why no such machine can be made here, or None."""
    if os.geteuid() != 0:
        return "namespaces want root"
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"no `{program}` here (Debian: util-linux, iproute2)"
    try:
        with Machine():
            return None
    except OSError as error:
        return str(error)
