"""Findings and ranks on a screen of 80 columns, or as JSON. Must not decide anything."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpinas.doctor.facts import RankFacts
from mpinas.doctor.finding import Finding, counted
from mpinas.doctor.judge_job import gpu_of, library_name, places, span
from mpinas.report.terminal import terminal_size

_STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red", "not checked": "dim"}
#: Of a UUID, in a table.
_UUID_CHARACTERS = 12


def console(environment: Mapping[str, str]) -> Console:
    """As wide as the person's terminal, 80 columns without one. No markup: names and paths come from outside."""
    size = terminal_size(sys.stdout, environment)
    if size is None:
        return Console(markup=False, highlight=False, width=80, color_system=None, force_terminal=False)
    return Console(markup=False, highlight=False, width=size[0])


def section(title: str, findings: Sequence[Finding], out: Console) -> None:
    """One part of the examination."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.add_column(width=16, overflow="fold")
    table.add_column(width=11)
    table.add_column(overflow="fold")
    for it in findings:
        text = Text(it.found)
        if it.advice:
            text.append(f"\n-> {it.advice}", style="bold" if it.level == "fault" else "")
        table.add_row(it.check, Text(it.level, style=_STYLES[it.level]), text)
    out.print(table)


def end(findings: Sequence[Finding], out: Console) -> None:
    """The last line."""
    out.print(f"mpinas doctor: {counted(findings)}")


def rank_rows(found: Sequence[RankFacts]) -> list[dict[str, Any]]:
    """Who is where, as JSON."""
    where = places(found)
    rows = []
    for it in found:
        local, place = where[it.rank]
        alone = len(found) == 1
        gpu = gpu_of(it, 0 if alone else place)
        rows.append({
            "rank": it.rank, "host": it.host, "pid": it.pid, "local_rank": local,
            "role": "both" if alone else "trainer" if it.trains else "coordinator",
            "cores": list(it.cores), "OMP_NUM_THREADS": it.threads, "CUDA_VISIBLE_DEVICES": it.visible,
            "gpu": None if gpu is None else msgspec.to_builtins(gpu), "mpi": library_name(it.mpi),
        })  # fmt: skip
    return rows


def rank_table(rows: Sequence[dict[str, Any]], out: Console) -> None:
    """Who is where, a line each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("rank", "host", "pid", "role", "local", "cores", "GPU"):
        table.add_column(title, justify="right" if title in ("rank", "pid", "local") else "left", overflow="fold")
    for it in rows:
        table.add_row(
            str(it["rank"]), it["host"], str(it["pid"]), it["role"], str(it["local_rank"]), span(it["cores"]), _gpu(it)
        )
    out.print(table)
    for library in sorted({it["mpi"] for it in rows}):
        out.print(f"MPI of rank {span(it['rank'] for it in rows if it['mpi'] == library)}: {library}")


def _gpu(row: dict[str, Any]) -> str:
    """The GPU that it would train on; where torch sees none, what the launcher shows it."""
    if row["gpu"] is not None:
        return f"{row['gpu']['index']} {row['gpu']['uuid'][:_UUID_CHARACTERS]}".strip()
    visible = row["CUDA_VISIBLE_DEVICES"]
    return "-" if visible is None else f"- (CUDA_VISIBLE_DEVICES={visible})"


def as_dict(findings: Sequence[Finding], found: Sequence[RankFacts]) -> dict[str, Any]:
    """Everything, for JSON."""
    return {"findings": [asdict(it) for it in findings], "ranks": rank_rows(found)}
