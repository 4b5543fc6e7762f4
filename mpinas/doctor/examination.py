"""`mpinas doctor` from its options to its exit code. Of several ranks the first speaks, the others lend a hand."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mpinas.doctor import gather, judge_job, judge_machine, show
from mpinas.doctor.facts import FolderFacts, JobFacts
from mpinas.doctor.finding import Finding, exit_code
from mpinas.slurm.walltime import ask_scontrol, job_end


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line says."""

    bridge: Path | None = None
    key: Path | None = None
    run_folder: Path | None = None
    #: Only the table of ranks.
    ranks: bool = False
    as_json: bool = False
    #: Longest wait for each thing that is looked at.
    limit_s: float = 60.0


def run(request: Request, environment: Mapping[str, str]) -> int:
    """Examine, print, and give the exit code: 2 if there is a fault."""
    if gather.rank_told(environment) != 0:
        return _lend_a_rank(request, environment)
    return _show_ranks(request, environment) if request.ranks else _examine(request, environment)


def _lend_a_rank(request: Request, environment: Mapping[str, str]) -> int:
    """Always 0: with another code the launcher would end rank 0 before it has spoken."""
    with gather.mpi_child(request.run_folder, not request.ranks, request.limit_s) as child:
        if why := gather.accompany(child, request.limit_s):
            print(f"mpinas doctor: rank {gather.rank_told(environment)} on {platform.node()}: {why}", file=sys.stderr)
    return 0


def _show_ranks(request: Request, environment: Mapping[str, str]) -> int:
    with gather.mpi_child(request.run_folder, False, request.limit_s) as child:
        job = gather.job(child, request.limit_s)
        rows = show.rank_rows(job.ranks)
        out = show.console(environment)
        if request.as_json:
            print(json.dumps(rows, indent=1), flush=True)
        elif rows:
            show.rank_table(rows, out)
        findings = [it for it in (*judge_job.mpi(job), *judge_job.ranks(job)) if it.level == "fault"]
        sys.stdout.flush()
        for it in findings:
            print(f"mpinas doctor: {it.check}: {it.found}; {it.advice}", file=sys.stderr)
        return exit_code(findings)


def _examine(request: Request, environment: Mapping[str, str]) -> int:
    out = show.console(environment)
    findings: list[Finding] = []

    def say(title: str, found: list[Finding]) -> None:
        findings.extend(found)
        if not request.as_json:
            show.section(title, found, out)
            sys.stdout.flush()

    # first of all: some launchers end a job whose ranks do not start MPI together
    with gather.mpi_child(request.run_folder, True, request.limit_s) as child:
        say(f"This machine: {platform.node()}", _machine(request, environment))
        if request.bridge is not None:
            say("Bridge", _bridge(request.bridge, request.key, request.limit_s))
        job = gather.job(child, request.limit_s)
        say("MPI job", _job(job))
        if request.as_json:
            print(json.dumps(show.as_dict(findings, job.ranks), indent=1), flush=True)
            return exit_code(findings)
        show.end(findings, out)
        sys.stdout.flush()
    return exit_code(findings)


def _machine(request: Request, environment: Mapping[str, str]) -> list[Finding]:
    versions = gather.versions()
    job = environment.get("SLURM_JOB_ID", "")
    return [
        judge_machine.architecture(platform.machine(), f"{platform.system()} {platform.release()}"),
        judge_machine.packages(platform.python_version(), versions),
        *_imports(versions, request.limit_s),
        judge_machine.environment(environment),
        *_folder(request),
        judge_machine.time_left(time.time(), job, job_end(environment, ask_scontrol)),
    ]


def _imports(versions: Mapping[str, str | None], limit_s: float) -> list[Finding]:
    installed = [name for name, version in versions.items() if version is not None]
    return [judge_machine.imports(*gather.imports(installed, limit_s))] if installed else []


def _folder(request: Request) -> list[Finding]:
    if request.run_folder is None:
        return [Finding("file system", "not checked", "name the folder of the run: --run-folder DIR")]
    facts = gather.folder(request.run_folder, request.limit_s)
    if isinstance(facts, FolderFacts):
        return judge_machine.folder(facts)
    return judge_machine.no_folder(str(request.run_folder), *facts)


def _bridge(connection: Path, key: Path | None, limit_s: float) -> list[Finding]:
    found = judge_machine.bridge(*gather.bridge_check(connection, key, limit_s))
    if exit_code(found) == 0:
        found.append(judge_machine.devices(*gather.bridge_devices(connection, key, limit_s)))
    return found


def _job(job: JobFacts) -> list[Finding]:
    rows = judge_job.mpi(job)
    if job.mpi is not None:
        rows.append(judge_job.mpirun(job.mpi.library, *gather.mpirun()))
    rows += judge_job.ranks(job)
    if job.ranks:
        rows += [judge_job.torch(job.ranks[0]), judge_job.horovod_build(job.ranks[0]), judge_job.allreduce(job.sum)]
        rows += [judge_job.gpus(job.ranks, gather.nvidia_smi()), *judge_job.cores(job.ranks)]
    return rows
