"""Is every network of a search space sound? Random genomes are built, learn, are exported, and are as their facts say.

``python benchmarks/spaces.py SPACE [--genomes 1000] [--exports 100] [--json]``, SPACE as in an experiment file:
``cnn3d``, or ``path/to/file.py:Name``. Exit code 1, and the genomes, where one is not.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from mpinas.errors import UserError  # noqa: E402 - found through the path just set
from mpinas.models import Networks, make_space  # noqa: E402
from mpinas.models.facts import facts_of  # noqa: E402
from mpinas.search import Genome  # noqa: E402
from mpinas.training.export import export_onnx, onnx_difference  # noqa: E402

#: Samples of a forward pass; passes in training mode before an export, so that statistics of batches count.
BATCH, PASSES = 2, 5
#: Largest difference from ONNX Runtime, absolute, and of a fact, as a share.
ONNX_TOLERANCE, FACTS_TOLERANCE = 1e-4, 0.01
OUTPUTS = 2
Figures = dict[str, Any]


class Unsound(Exception):  # noqa: N818 - what is found, not an error of the program
    """A network that is not as it should be."""


@dataclass
class Check:
    """What was found by one way of looking."""

    name: str
    #: Largest difference, where something is compared.
    worst: float | None = None
    seconds: list[float] = field(default_factory=list)
    failures: list[Figures] = field(default_factory=list)

    @contextmanager
    def of(self, number: int, genome: Genome) -> Iterator[None]:
        """Time it, and note whatever is raised."""
        began_s = time.perf_counter()
        try:
            yield
        except Exception as error:  # anything may be wrong with a network, and all of it is to be seen
            why = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
            self.failures.append({"number": number, "genome": genome, "why": why})
        self.seconds.append(time.perf_counter() - began_s)

    def compare(self, difference: float, tolerance: float, what: str) -> None:
        """Note a difference. Raises Unsound where it is too large, or no number."""
        self.worst = max(self.worst or 0.0, difference)
        if not difference <= tolerance:
            raise Unsound(f"{what} by {difference:.3g}")

    def as_dict(self) -> Figures:
        return {
            "networks": len(self.seconds),
            "worst": self.worst,
            "median_s": statistics.median(self.seconds) if self.seconds else None,
            "total_s": sum(self.seconds),
            "failures": self.failures,
        }


def random_frames(networks: Networks, genome: Genome, batch: int, rng: np.random.Generator) -> torch.Tensor:
    """(batch, frames, height, width) uint8."""
    return torch.from_numpy(rng.integers(0, 256, (batch, *networks.shape(genome)), dtype=np.uint8))


def learn(network: nn.Module, frames: torch.Tensor, outputs: int) -> int:
    """One pass forward and one back, as in training; floating-point operations of a sample, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        found = network.train()(frames)
    if found.shape != (len(frames), outputs) or not torch.isfinite(found).all():
        raise Unsound(f"the outputs are not {len(frames)} x {outputs} finite numbers")
    found.square().sum().backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is None or not torch.isfinite(parameter.grad).all():
            raise Unsound(f"{name} has no finite gradient")
    return int(counter.get_total_flops()) // len(frames)


def export(check: Check, networks: Networks, genome: Genome, network: nn.Module, rng: np.random.Generator) -> None:
    """Write the ONNX file and run it, one sample and several, after statistics of batches that mean something."""
    network.train()
    with torch.no_grad():
        for _ in range(PASSES):
            network(random_frames(networks, genome, BATCH, rng))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(network, networks.shape(genome), path, {})
        for batch in (1, BATCH + 1):
            inputs = random_frames(networks, genome, batch, rng).numpy()
            check.compare(onnx_difference(network, path, inputs), ONNX_TOLERANCE, "ONNX Runtime and torch differ")


def look(networks: Networks, genomes: list[Genome], exports: int, seed: int, tell: Callable[[], None]) -> list[Check]:
    """All checks of all genomes; one that fails hides the later ones of its genome."""
    trains = Check("learns: outputs and gradients")
    known = Check("facts are as torch counts")
    exported = Check("ONNX computes the same")
    for number, genome in enumerate(genomes):
        torch.manual_seed(number)
        rng = np.random.default_rng((seed, number))
        network = None
        with trains.of(number, genome):
            network = networks.build(genome)
            flops = learn(network, random_frames(networks, genome, BATCH, rng), networks.outputs)
        if network is not None and not (trains.failures and trains.failures[-1]["number"] == number):
            with known.of(number, genome):
                facts = facts_of(genome, networks)
                parameters = sum(each.numel() for each in network.parameters())
                for name, said, counted in (
                    ("FLOPs", facts.flops, flops),
                    ("parameters", facts.parameters, parameters),
                ):
                    known.compare(abs(said - counted) / max(1, counted), FACTS_TOLERANCE, f"{name} differ")
            if number < exports:
                with exported.of(number, genome):
                    export(exported, networks, genome, network, rng)
        tell()
    return [trains, known, exported]


def show(figures: Figures) -> None:
    console = Console()
    frames, height, width = figures["input_shape"]
    table = Table(title=f"{figures['space']}, {frames} frames of {height} x {width}, seed {figures['seed']}",
                  box=None, pad_edge=False, padding=(0, 2, 0, 0))  # fmt: skip
    for heading in ("check", "networks", "failures", "worst", "median", "in all"):
        table.add_column(heading, justify="left" if heading == "check" else "right", no_wrap=True)
    for name, check in figures["checks"].items():
        median, worst = check["median_s"], check["worst"]
        table.add_row(
            name, str(check["networks"]), str(len(check["failures"])), "" if worst is None else f"{worst:.2g}",
            "" if median is None else f"{1000 * median:.0f} ms", f"{check['total_s']:.0f} s",
        )  # fmt: skip
    console.print(table)
    for name, check in figures["checks"].items():
        for failure in check["failures"]:
            console.print(f"{name}: {failure['why']}: {json.dumps(failure['genome'])}", soft_wrap=True, markup=False)


@click.command(help=__doc__)
@click.argument("space")
@click.option("--genomes", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--exports", type=click.IntRange(0), default=100, show_default=True, help="Of the first ones.")
@click.option("--frames", type=click.IntRange(1), default=16, show_default=True, help="Of a sample.")
@click.option("--side", type=click.IntRange(4), default=41, show_default=True, help="Of a frame, in pixels.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(space: str, genomes: int, exports: int, frames: int, side: int, seed: int, as_json: bool) -> None:
    try:
        networks = Networks(space, (frames, side, side), OUTPUTS)
        searched = make_space(space, networks.input_shape)
    except UserError as error:
        raise click.ClickException(str(error)) from None
    rng = np.random.default_rng(seed)
    drawn = [searched.sample(rng) for _ in range(genomes)]
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(space, total=genomes)
        checks = look(networks, drawn, exports, seed, lambda: bar.advance(task))
    figures = {
        "space": space,
        "input_shape": networks.input_shape,
        "seed": seed,
        "size": len(searched),
        "checks": {check.name: check.as_dict() for check in checks},
    }
    if as_json:
        click.echo(json.dumps(figures, indent=1))
    else:
        show(figures)
    sys.exit(any(check.failures for check in checks))


if __name__ == "__main__":
    main()
