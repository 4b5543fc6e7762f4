"""Looks things up for the doctor: this process, its machine, and what child processes find out. It judges nothing.

Whatever may hang or crash is done by a child with a limit on its time.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from mpinas.doctor.child import KILL_S, Child, answer
from mpinas.doctor.facts import FolderFacts, JobFacts, Line
from mpinas.doctor.judge_machine import ending, requirements

#: Where the name of a module is not that of its package.
_MODULES = {"pyzmq": "zmq", "scikit-learn": "sklearn", "tomli-w": "tomli_w"}
#: Imported by the child that starts MPI.
_WITH_MPI = ("mpi4py", "horovod", "torch")
_TOOL_S = 15.0
#: Rank 0's child waits `limit_s` for the others: we wait longer for it.
_MARGIN_S = 10.0
#: How often that the other ranks wait for rank 0, which looks at its machine as well.
_PATIENCE = 10
#: A finished MPI leaves in this time, or is ended.
_FINALIZE_S = 10.0


def versions() -> dict[str, str | None]:
    """Installed version of each package that a job needs; empty where mpinas is not installed itself."""
    try:
        names = requirements(metadata.requires("mpinas") or ())
    except metadata.PackageNotFoundError:
        return {}
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def imports(packages: Sequence[str], limit_s: float) -> tuple[dict[str, str | None], int | None, str]:
    """How the import of each went, as `judge_machine.imports` takes it."""
    modules = [_MODULES.get(name, name) for name in packages if name not in _WITH_MPI]
    code, printed, said = answer([sys.executable, "-m", "mpinas.doctor.import_probe", *modules], limit_s)
    return {str(name): error for name, error in _json_lines(printed)}, code, said


def _json_lines(printed: str) -> list[Any]:
    """Lines of JSON; what a library prints between them is skipped."""
    found = []
    for line in printed.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [each for each in found if isinstance(each, list) and len(each) == 2]


def folder(path: Path, limit_s: float) -> FolderFacts | tuple[int | None, str]:
    """What the file system is like, or how the look at it ended."""
    code, printed, said = answer([sys.executable, "-m", "mpinas.doctor.folder_probe", str(path)], limit_s)
    try:
        return msgspec.json.decode(printed, type=FolderFacts)
    except msgspec.DecodeError:
        return code, said


def bridge_check(connection: Path, key: Path | None, limit_s: float) -> tuple[int | None, list[dict[str, str]], str]:
    """What `edge-bridge check` finds, as a job sees the relay."""
    code, printed, said = answer([*_edge_bridge("check", connection, key), "--as", "job"], limit_s)
    try:
        return code, msgspec.json.decode(printed, type=list[dict[str, str]]), said
    except msgspec.DecodeError:
        return code, [], said


def bridge_devices(connection: Path, key: Path | None, limit_s: float) -> tuple[int | None, list[str], str]:
    """Names of the devices that the relay knows."""
    code, printed, said = answer([*_edge_bridge("status", connection, key), "--timeout", f"{limit_s / 2:g}"], limit_s)
    try:
        told = msgspec.json.decode(printed)
        return code, [str(device["profile"]["name"]) for device in told["devices"]], said
    except (msgspec.DecodeError, KeyError, TypeError):
        return code or 1, [], said


def _edge_bridge(command: str, connection: Path, key: Path | None) -> list[str]:
    keyed = [] if key is None else ["--key", str(key)]
    return [sys.executable, "-m", "edge_bridge", command, str(connection), *keyed, "--json"]


def nvidia_smi() -> str | None:
    """What `nvidia-smi -L` prints; None where it is not there or fails."""
    code, printed, _ = answer(["nvidia-smi", "-L"], _TOOL_S)
    return printed if code == 0 else None


def mpirun() -> tuple[str, str]:
    """Path of mpirun, "" if there is none, and what it says of its version."""
    path = shutil.which("mpirun") or ""
    return path, answer([path, "--version"], _TOOL_S)[1] if path else ""


def rank_told(environment: Mapping[str, str]) -> int:
    """The rank that the launcher gave this process; 0 without one. MPI need not have started."""
    names = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
    told = next((environment[name] for name in names if name in environment), "0")
    return int(told) if told.isdigit() else 0


def mpi_child(run_folder: Path | None, try_horovod: bool, limit_s: float) -> Child:
    """This rank's child that starts MPI; every rank of the job makes one. What MPI and Horovod say, people see."""
    wish = {
        "folder": "" if run_folder is None else os.path.abspath(run_folder),
        "try_horovod": try_horovod,
        "limit_s": limit_s,
    }
    return Child([sys.executable, "-m", "mpinas.parallel.doctor", json.dumps(wish)], speaks=True)


def job(child: Child, limit_s: float) -> JobFacts:
    """What that child says; `limit_s` is for each step: start, imports, the other ranks, the sum."""
    facts = _heard(child, limit_s + _MARGIN_S)
    facts.code = child.ended(_FINALIZE_S if facts.whole else KILL_S)
    return facts


def accompany(child: Child, limit_s: float) -> str:
    """On the other ranks: wait for the child until rank 0 must be through. Why it failed; "" if it did not."""
    facts = _heard(child, _PATIENCE * (limit_s + _MARGIN_S))
    if facts.no_mpi:
        return f"mpi4py: {facts.no_mpi}"
    # it leaves MPI together with the others: rank 0 gives up first
    code = child.ended(_FINALIZE_S + limit_s)
    return "" if code == 0 else f"{ending(code)}: {facts.step}"


def _heard(child: Child, silence_s: float) -> JobFacts:
    facts = JobFacts()
    for line in child.lines(silence_s):
        try:
            facts.take(msgspec.json.decode(line, type=Line))
        except msgspec.DecodeError:
            continue
        if facts.whole:
            break
    return facts
