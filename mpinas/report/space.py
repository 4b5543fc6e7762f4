"""A search space as a table, from plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(described: Mapping[str, Any], console: Console) -> None:
    """`described`: as `models.facts.described` gives it."""
    frames, height, width = described["input_shape"]
    table = Table(
        title=f"{described['space']}: {described['size']:.2g} genomes for {frames} frames of {height} x {width}"
    )
    table.add_column("gene")
    table.add_column("choices", overflow="fold")
    for gene, choices in described["genes"].items():
        table.add_row(gene, ", ".join(map(str, choices)))
    console.print(table)
    baseline = described["baseline"]
    megabytes, widest = baseline["bytes"] / 1e6, baseline["activation_bytes"] / 1e6
    console.print(
        f"baseline {baseline['name']}: {baseline['parameters']:,} parameters, {megabytes:.1f} MB with buffers, "
        f"{baseline['flops'] / 1e9:.3g} GFLOP, activations of the widest operation {widest:.1f} MB",
        soft_wrap=True,
    )
