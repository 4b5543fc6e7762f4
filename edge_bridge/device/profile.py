"""What a device says of itself: hardware, runtime, power mode, versions.

Imports no runtime: what only the runtime knows is asked in a process of its own. Must not know sockets or the
store.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from edge_bridge.errors import BridgeError, ProtocolError
from edge_bridge.measuring.runtimes import runtime_versions
from edge_bridge.measuring.sysfs import power_mode
from edge_bridge.wire.protocol import DEVICE_TO_RELAY, MINOR, Register, decode, encode
from edge_bridge.wire.quantities import ANY_PROFILE, Profile

#: A runtime may take so long to be imported; from a slow SD card it takes its time.
PROBE_S = 60.0
#: A device's name is a folder's too.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PROBE = """
import json, os, sys
lines = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from edge_bridge.errors import RuntimeMissingError
from edge_bridge.measuring.runtimes import get_runtime
try:
    answer = {"precisions": list(get_runtime(sys.argv[1]).precisions(sys.argv[2]))}
except RuntimeMissingError as error:
    answer = {"missing": str(error)}
lines.write(json.dumps(answer))
lines.flush()
os._exit(0)
"""


class ProbeError(Exception):
    """The runtime could not be asked; the text says why."""


def describe_device(name: str, runtime: str, provider: str, ask: bool = False) -> Profile:
    """Profile of this machine.

    Parameters
    ----------
    name
        "" for the host's.
    ask
        Have the runtime say whether it is there and has the provider, which takes as long as its import.

    Raises
    ------
    BridgeError
        When the name will not do, the runtime says that it is not there, or no relay would take the profile.
    """
    if name and (name == ANY_PROFILE or not _NAME.fullmatch(name)):
        raise BridgeError(
            f"device name {name[:80]!r} will not do: give --name, at most 64 letters, digits and . _ -, "
            f"a letter or digit first, and not {ANY_PROFILE!r}"
        )
    profile = Profile(
        name=name or _host_name(),
        hardware=_hardware(),
        runtime=runtime,
        provider=provider,
        versions={
            **runtime_versions(runtime),
            "python": platform.python_version(),
            "kernel": platform.release(),
        },
        threads=len(os.sched_getaffinity(0)),
        power_mode=power_mode(),
        precisions=_asked(runtime, provider) if ask else _precisions(runtime, provider),
    )
    # As the agent will send it, its other fields as long as they can be.
    register = Register(profile=profile, instance="0" * 32, busy_with="0" * 64, device_id="0" * 32, minor=MINOR)
    try:
        decode(encode(register), DEVICE_TO_RELAY)
    except (ProtocolError, ValueError) as error:
        raise BridgeError(f"no relay would take this device, give another --provider: {error}") from None
    return profile


def ask_runtime(runtime: str, provider: str) -> tuple[str, ...]:
    """Import a runtime in a process of its own and return the precisions it takes.

    Raises
    ------
    ProbeError
        When it cannot be imported, crashes, or does not answer in time.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, runtime, provider],
            capture_output=True,
            timeout=PROBE_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        )
    except subprocess.TimeoutExpired:
        raise ProbeError(f"runtime {runtime} was not imported within {PROBE_S:g} s") from None
    try:
        answer = json.loads(done.stdout)
        if "missing" in answer:
            raise ProbeError(str(answer["missing"]))
        return tuple(str(each)[:100] for each in answer["precisions"])[:16]
    except (ValueError, KeyError, TypeError):
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ProbeError(
            f"runtime {runtime} ended its process with code {done.returncode}: {''.join(last)[:300]}"
        ) from None


def _host_name() -> str:
    """This host's name, as far as it can be a device's."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", platform.node()).lstrip("._-")[:64]
    return "device" if name in ("", ANY_PROFILE) else name


def _asked(runtime: str, provider: str) -> tuple[str, ...]:
    """Precisions as the runtime says; BridgeError where it is not there."""
    try:
        return ask_runtime(runtime, provider) or ("model",)
    except ProbeError as error:
        raise BridgeError(str(error)) from None


def _precisions(runtime: str, provider: str) -> tuple[str, ...]:
    if runtime == "onnxruntime":
        # As edge_bridge.measuring.onnx_runtime says; known here, for importing it would take half a second.
        return ("model", "fp16") if provider == "tensorrt" else ("model",)
    try:
        return ask_runtime(runtime, provider) or ("model",)
    except ProbeError:
        return ("model",)  # the measuring child says what is wrong with it


def _hardware() -> str:
    """Processor, number of cores and memory, as far as the machine tells."""
    model = platform.machine()
    for path, marker in (("/proc/device-tree/model", ""), ("/proc/cpuinfo", "model name")):
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        lines = [line for line in text.splitlines() if line.startswith(marker)]
        if lines:
            model = lines[0].partition(":")[2].strip() if marker else lines[0].strip("\0 ")
            break
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory_gib:.0f} GiB"[:200]
