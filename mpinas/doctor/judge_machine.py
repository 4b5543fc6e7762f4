"""What this machine needs, whatever runs on it: facts in, findings out. Pure; must not look anything up itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mpinas.doctor.facts import FolderFacts
from mpinas.doctor.finding import Finding, Level
from mpinas.slurm.walltime import format_duration

GIB = 2**30
#: Less than this and a run of a few hundred candidates may not fit; or not even begin.
SPACE_WARNING_BYTES, SPACE_FAULT_BYTES = 5 * GIB, GIB // 10
INODES_WARNING, INODES_FAULT = 10_000, 500
#: An fsync of a few kB takes milliseconds.
SLOW_WRITE_S = 1.0
TIME_WARNING_S = 15 * 60.0
#: Horovod's groups would train alone and say nothing.
FORBIDDEN = ("HOROVOD_CONTROLLER", "HOROVOD_CPU_OPERATIONS")
#: Shorter names of what `edge-bridge check` looks at.
_BRIDGE_NAMES = {"connection file": "file", "key file": "key", "reach": "port"}
_INSTALL = "`pip install 'mpinas[job]'`, or `make setup`"


def architecture(machine: str, system: str) -> Finding:
    """x86-64 and Arm are known to work."""
    found = f"{machine}, {system}"
    if machine in ("x86_64", "aarch64") and system.startswith("Linux"):
        return Finding("architecture", "ok", found)
    return Finding("architecture", "warning", found, "nobody has tried this: run the tests first (`make test`)")


def requirements(lines: Sequence[str], extra: str = "job") -> list[str]:
    """Names of the packages that a job needs, of the requirements in this package's own metadata."""
    names = []
    for line in lines:
        name = re.match(r"[\w.-]+", line)
        wanted = re.search(r"extra == [\"'](\w+)[\"']", line)
        if name and (wanted is None or wanted[1] == extra):
            names.append(name[0])
    return names


def packages(python: str, versions: Mapping[str, str | None]) -> Finding:
    """`versions`: of each package that a job needs; None where it is missing."""
    missing = [name for name, version in versions.items() if version is None]
    if not versions:
        return Finding("packages", "warning", f"Python {python}; mpinas itself is not installed, only found",
                       "`pip install -e .`, or `make setup`")  # fmt: skip
    if missing:
        return Finding("packages", "fault", f"Python {python}; missing: {', '.join(missing)}", _INSTALL)
    shown = [f"{name} {versions[name]}" for name in ("torch", "mpi4py", "horovod", "pyzmq") if name in versions]
    rest = len(versions) - len(shown)
    return Finding("packages", "ok", f"Python {python}, {', '.join(shown)}, and {rest} others")


def imports(errors: Mapping[str, str | None], code: int | None, said: str) -> Finding:
    """`errors`: by module, in the order tried; "" where it went well, None where it did not come back from it."""
    last = next(reversed(list(errors)), "")
    if code != 0 and errors.get(last, "") is None:
        if code is None:
            return Finding("imports", "fault", f"importing {last} takes longer than the limit",
                           "allow more with --limit SECONDS; is the file system of this Python slow?")  # fmt: skip
        return Finding("imports", "fault", f"importing {last} ends Python ({ending(code)})",
                       f"install {last} anew, for this machine: {_INSTALL}")  # fmt: skip
    broken = {name: error for name, error in errors.items() if error}
    if broken:
        text = "; ".join(f"{name}: {error}" for name, error in broken.items())
        return Finding("imports", "fault", text, f"install {', '.join(broken)} anew: {_INSTALL}")
    if code != 0 or not errors:
        return Finding("imports", "fault", f"Python does not start ({ending(code)}): {last_line(said)}",
                       "see that this Python runs at all: `python -c 'import mpinas'`")  # fmt: skip
    return Finding("imports", "ok", f"{len(errors)} more modules")


def environment(variables: Mapping[str, str]) -> Finding:
    """Variables that would make a job silently wrong."""
    found = [f"{name}={variables[name]}" for name in FORBIDDEN if name in variables]
    if found:
        names = " ".join(text.partition("=")[0] for text in found)
        return Finding("environment", "fault", f"{', '.join(found)}: Horovod's groups would train alone",
                       f"`unset {names}`, in the job script too")  # fmt: skip
    return Finding("environment", "ok", f"{' and '.join(FORBIDDEN)} are unset")


def time_left(now: float, job: str, end: float | None) -> Finding:
    """`job`: id of the Slurm job, "" outside of one; `end`: seconds since the epoch."""
    if not job:
        return Finding("time left", "not checked", "not in a Slurm job; `mpinas search --time-limit` sets a limit")
    if end is None:
        return Finding("time left", "not checked", f"Slurm tells no end of job {job} (no limit, or no scontrol)")
    left = end - now
    found = f"{format_duration(left)} of Slurm job {job}"
    if left < TIME_WARNING_S:
        return Finding("time left", "warning", found, "ask for more: `#SBATCH --time`; the next job goes on with it")
    return Finding("time left", "ok", found)


def no_folder(path: str, code: int | None, said: str) -> list[Finding]:
    """The file system was not told about: the process that looks at it hangs or died."""
    if code is None:
        return [Finding("file system", "fault", f"{path}: does not answer",
                        "use another file system, and tell the machine's support")]  # fmt: skip
    return [Finding("file system", "fault", f"{path}: {last_line(said) or ending(code)}",
                    "name a folder that can be read: --run-folder DIR")]  # fmt: skip


def folder(facts: FolderFacts) -> list[Finding]:
    """The file system of a run folder."""
    return [_kind(facts), _space(facts), _write(facts), _lock(facts)]


def _kind(facts: FolderFacts) -> Finding:
    found = f"{facts.path}: {facts.kind or 'of unknown type'}"
    if facts.kind in ("tmpfs", "ramfs"):
        return Finding("file system", "warning", f"{found}, in memory: gone with the node",
                       "put the run folder on a file system that all nodes share and that lasts")  # fmt: skip
    return Finding("file system", "ok", found)


def _space(facts: FolderFacts) -> Finding:
    inodes = facts.free_inodes
    found = f"{facts.free_bytes / GIB:,.1f} GiB free"
    if inodes is not None:
        found += f", {inodes:,} files"
    levels: tuple[tuple[Level, float, int], ...] = (
        ("fault", SPACE_FAULT_BYTES, INODES_FAULT),
        ("warning", SPACE_WARNING_BYTES, INODES_WARNING),
    )
    for level, least_bytes, least_inodes in levels:
        if facts.free_bytes < least_bytes or (inodes is not None and inodes < least_inodes):
            return Finding("space", level, found, "make room, or use another --run-folder; a full disk ends a job")
    return Finding("space", "ok", found)


def _write(facts: FolderFacts) -> Finding:
    tried = facts.write
    if tried.error:
        return Finding("write", "fault", f"{facts.path}: {tried.error}",
                       "use a folder that you may write to (compute nodes often see the home read-only)")  # fmt: skip
    found = f"write, fsync, rename in {tried.took_s * 1e3:.1f} ms"
    if tried.took_s > SLOW_WRITE_S:
        return Finding("write", "warning", found, "use a faster file system: rank 0 waits for what it writes")
    return Finding("write", "ok", found)


def _lock(facts: FolderFacts) -> Finding:
    if facts.write.error:
        return Finding("lock", "not checked", "nothing can be written there")
    if facts.lock.error:
        return Finding("lock", "warning", f"flock: {facts.lock.error}",
                       "nothing: running.json alone keeps a second job out")  # fmt: skip
    return Finding("lock", "ok", "flock and running.json keep a second job out")


def bridge(code: int | None, findings: Sequence[Mapping[str, str]], said: str) -> list[Finding]:
    """`findings`: what `edge-bridge check --json` printed."""
    levels: dict[str, Level] = {"OK": "ok", "WARN": "warning", "FAIL": "fault"}
    rows = []
    for each in findings:
        name, level = each["check"], levels[each["level"]]
        if name != "packages":
            advice = "" if level == "ok" else "docs/login-node.md says how job and relay find each other"
            rows.append(Finding(f"bridge {_BRIDGE_NAMES.get(name, name)}", level, each["text"], advice))
    if code is None or not rows:
        why = "no answer in time" if code is None else last_line(said) or ending(code)
        rows.append(Finding("bridge", "fault", why, "is the relay running? `edge-bridge status BRIDGE.json --key …`"))
    return rows


def devices(code: int | None, names: Sequence[str], said: str) -> Finding:
    """`names`: of the devices that `edge-bridge status` told of."""
    if code != 0:
        why = "no answer in time" if code is None else last_line(said) or ending(code)
        return Finding("bridge devices", "fault", why, "is the relay running? `edge-bridge status BRIDGE.json`")
    if not names:
        return Finding("bridge devices", "warning", "the relay knows no device: a search would wait for one",
                       "start `edge-bridge device` on the device")  # fmt: skip
    return Finding("bridge devices", "ok", f"{len(names)}: {', '.join(names)}")


def ending(code: int | None) -> str:
    """How a child process ended, in words."""
    if code is None:
        return "no answer in time"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def last_line(said: str) -> str:
    """Of what a child wrote to its standard error: the line that usually names the cause."""
    return said.splitlines()[-1].strip() if said.strip() else ""
