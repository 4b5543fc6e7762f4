"""`edge-bridge measure`."""

from __future__ import annotations

import select
from pathlib import Path

import click
import msgspec

from edge_bridge.cli.common import FILE, LIMIT_SECONDS, AnswerEndings, log, memory_limit_bytes, option_text
from edge_bridge.cli.timing_table import timing_table
from edge_bridge.device.profile import describe_device
from edge_bridge.errors import BridgeError
from edge_bridge.measuring.lines import FailureLine, MeasuredLine, PhaseLine
from edge_bridge.measuring.measurer import ChildLimits, Measurer
from edge_bridge.measuring.runtimes import in_short
from edge_bridge.wire.files import read_small
from edge_bridge.wire.protocol import MODEL_LIMIT_BYTES
from edge_bridge.wire.quantities import Measurement, Percentile, Profile, Settings


@click.command()
@click.argument("model", type=FILE, metavar="MODEL.onnx")
@click.option("--percentile", type=click.Choice(["p90", "p95", "p99"]), default="p90", show_default=True)
@click.option("--samples", default=0, help="At least so many [default: what the percentile needs].")
@click.option("--min-seconds", default=0.2, show_default=True)
@click.option("--max-seconds", default=30.0, show_default=True)
@click.option("--attempts", default=3, show_default=True, help="Measure an unsteady model so often at most.")
@click.option("--threads", default=1, show_default=True)
@click.option("--batch", "batches", multiple=True, default=(1,), show_default=True, help="Repeat for several.")
@click.option("--precision", type=click.Choice(["model", "fp16"]), default="model", show_default=True)
@click.option("--runtime", default="onnxruntime", show_default=True)
@click.option("--provider", default="cpu", show_default=True, help="For onnxruntime: cpu, cuda or tensorrt.")
@click.option(
    "--load-seconds",
    default=600.0,
    show_default=True,
    callback=LIMIT_SECONDS,
    help="Longest time to load the model; of its first run too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def measure(
    model: Path,
    runtime: str,
    provider: str,
    load_seconds: float,
    as_json: bool,
    **wanted: Percentile | int | float,
) -> None:
    """Measure a model on this machine alone."""
    try:
        settings = msgspec.convert(wanted, Settings)
    except msgspec.ValidationError as error:
        raise BridgeError(f"settings: {option_text(error, {'batches': '--batch'})}") from None
    if settings.min_seconds > settings.max_seconds:
        raise BridgeError(
            f"settings: --min-seconds {settings.min_seconds:g} is more than --max-seconds {settings.max_seconds:g}"
        )
    try:
        content, _ = read_small(model, MODEL_LIMIT_BYTES)
    except OSError as error:
        raise BridgeError(f"model {model} cannot be read: {error.strerror}") from None
    profile = describe_device("", runtime, provider)
    if settings.precision not in profile.precisions:
        raise BridgeError(
            f"--precision {settings.precision}: {runtime} with {provider} runs a model in its own precision only, "
            f"not in {settings.precision}"
        )
    limits = ChildLimits(memory_limit_bytes(0), load_seconds)
    measurement = _measure_here(content, settings, profile, limits, model)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(measurement), indent=1).decode())
    else:
        click.echo(timing_table(measurement))


def _measure_here(content: bytes, settings: Settings, profile: Profile, limits: ChildLimits, path: Path) -> Measurement:
    measurer = Measurer(profile, limits)
    try:
        with AnswerEndings() as endings:
            measurer.begin(content, settings)
            while True:
                for line in measurer.advance():
                    match line:
                        case PhaseLine():
                            log.info("%s", _phase_text(line, len(settings.batches)))
                        case MeasuredLine(measurement=measurement):
                            return measurement
                        case FailureLine(reason=reason, detail=detail):
                            raise BridgeError(f"model {path} was not measured ({reason}): {in_short(detail)}")
                for ready in select.select([*endings.descriptors(), *measurer.descriptors()], [], [], 1.0)[0]:
                    endings.asked_by(ready)
    finally:
        measurer.close()


def _phase_text(line: PhaseLine, batches: int) -> str:
    words: list[str] = [line.phase]
    if line.phase == "loading" and line.batch is not None:
        words.append("first run")
    if line.batch is not None and batches > 1:
        words.append(f"batch {line.batch}")
    if line.attempt > 1 or line.phase == "cooling":
        words.append(f"attempt {line.attempt}")
    if line.elapsed_s:
        words.append(f"for {line.elapsed_s:.0f} s")
    return ", ".join(words)
