"""`edge-bridge measure`."""

from __future__ import annotations

import select
import tempfile
from pathlib import Path

import click
import msgspec

from edge_bridge.cli.common import FILE, log, memory_limit_bytes
from edge_bridge.device.agent import describe_device
from edge_bridge.endings import Endings
from edge_bridge.errors import BridgeError
from edge_bridge.measuring.lines import FailureLine, MeasuredLine, PhaseLine
from edge_bridge.measuring.measurer import ChildLimits, Measurer
from edge_bridge.wire.quantities import Measurement, Percentile, Profile, Settings


@click.command()
@click.argument("model", type=FILE, metavar="MODEL.onnx")
@click.option("--percentile", type=click.Choice(["p90", "p95", "p99"]), default="p90", show_default=True)
@click.option("--samples", default=0, help="At least so many [default: what the percentile needs].")
@click.option("--min-seconds", default=0.2, show_default=True)
@click.option("--max-seconds", default=30.0, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--batch", "batches", multiple=True, default=(1,), show_default=True, help="Repeat for several.")
@click.option("--runtime", default="onnxruntime", show_default=True)
@click.option("--provider", default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def measure(model: Path, runtime: str, provider: str, as_json: bool, **wanted: Percentile | int | float) -> None:
    """Measure a model on this machine alone."""
    try:
        settings = msgspec.convert(wanted, Settings)
    except msgspec.ValidationError as error:
        raise BridgeError(f"settings: {error}") from None
    try:
        content = model.read_bytes()
    except OSError as error:
        raise BridgeError(f"model {model} cannot be read: {error.strerror}") from None
    measurement = _measure_here(content, settings, describe_device("", runtime, provider), model)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(measurement), indent=1).decode())
    else:
        click.echo(_table(measurement))


def _measure_here(content: bytes, settings: Settings, profile: Profile, path: Path) -> Measurement:
    with tempfile.TemporaryDirectory(prefix="edge-bridge-") as folder, Endings(with_stdin=False) as endings:
        measurer = Measurer(profile, Path(folder) / "models", ChildLimits(memory_limit_bytes(0)))
        try:
            measurer.begin(content, settings)
            while True:
                for line in measurer.advance():
                    match line:
                        case PhaseLine(phase=phase):
                            log.info("%s", phase)
                        case MeasuredLine(measurement=measurement):
                            return measurement
                        case FailureLine(reason=reason, detail=detail):
                            raise BridgeError(f"model {path} was not measured ({reason}): {detail}")
                for ready in select.select([*endings.descriptors(), *measurer.descriptors()], [], [], 1.0)[0]:
                    if asked := endings.asked_by(ready):
                        raise BridgeError(f"ended by {asked}")
        finally:
            measurer.close()


def _table(measurement: Measurement) -> str:
    rows = [(f"{name[:-2]} ms", f"{value * 1e3:.4f}") for name, value in _times(measurement)]
    rows += [
        (
            "samples",
            f"{measurement.samples}{'' if measurement.complete else ' (fewer than asked: time was over)'}",
        ),
        (
            "variation",
            f"{measurement.coefficient_of_variation:.1%}{', UNSTEADY' if measurement.unsteady else ''}",
        ),
        ("warm-up runs", f"{measurement.warmup_runs}"),
        ("load ms", f"{measurement.load_s * 1e3:.1f}"),
        ("input", f"{measurement.input_type} {measurement.input_shape}"),
        ("peak memory MB", f"{measurement.peak_memory_bytes / 1e6:.1f}"),
        ("runtime", f"{measurement.runtime} {measurement.provider}, {measurement.threads} thread(s)"),
        ("hardware", measurement.hardware),
    ]
    return "\n".join(f"{name:<15} {value}" for name, value in rows)


def _times(measurement: Measurement) -> list[tuple[str, float]]:
    return [(name, getattr(measurement, name)) for name in ("p50_s", "p90_s", "p95_s", "p99_s", "mean_s", "min_s")]
