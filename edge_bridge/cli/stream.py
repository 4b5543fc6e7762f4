"""`edge-bridge stream`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from edge_bridge.cli.common import (
    FILE,
    LIMIT_SECONDS,
    MEGABYTES,
    AnswerEndings,
    log,
    memory_limit_bytes,
    option_text,
)
from edge_bridge.device.profile import describe_device
from edge_bridge.errors import BridgeError
from edge_bridge.measuring.stream_lines import StreamOrder, StreamReport
from edge_bridge.measuring.streamer import run_stream

_OPTIONS = {
    "rate_hz": "--rate", "camera_s": "--seconds", "deadline_s": "--deadline-ms", "preload_bytes": "--preload-mb",
}  # fmt: skip
#: Below this many windows a p99 is the worst of a few.
FEW_WINDOWS = 100


@click.command()
@click.argument("model", type=FILE, metavar="MODEL.onnx")
@click.argument("recording", type=FILE, metavar="FRAMES.hdf5")
@click.option("--rate", "rate_hz", default=20_000.0, show_default=True, help="Frames a second of the camera.")
@click.option("--layer", default="", metavar="PATH", help="One layer of the recording, /LAYER or /OBJECT/LAYER.")
@click.option("--seconds", "camera_s", default=10.0, show_default=True, help="Most camera time.")
@click.option("--frames", default=0, help="Most frames [default: as --seconds allows].")
@click.option("--repeat", is_flag=True, help="Begin the recording again until --seconds or --frames are reached.")
@click.option("--stride", default=0, help="Frames from one window to the next [default: a window's frames].")
@click.option("--deadline-ms", type=float, help="From last frame to result [default: stride / rate].")
@click.option("--queue", default=64, show_default=True, help="Windows that may wait; one more drops the oldest.")
@click.option("--batch", default=1, show_default=True, help="Most waiting windows that one run takes.")
@click.option("--allowed-misses", default=0.0, show_default=True, help="Share that may be late or dropped.")
@click.option("--threads", default=1, show_default=True, help="Threads inside one operator.")
@click.option("--runtime", default="onnxruntime", show_default=True)
@click.option("--provider", default="cpu", show_default=True, help="For onnxruntime: cpu, cuda or tensorrt.")
@click.option("--precision", type=click.Choice(["model", "fp16"]), default="model", show_default=True)
@click.option("--preload-mb", default=1024, show_default=True, help="Most memory for frames.")
@click.option(
    "--memory-limit-mb",
    default=0,
    callback=MEGABYTES,
    help="Address space of model and frames [default: half of the memory].",
)
@click.option(
    "--load-seconds",
    default=120.0,
    show_default=True,
    callback=LIMIT_SECONDS,
    help="Longest time to load model or recording; of first runs too.",
)
@click.option(
    "--stall-seconds",
    default=30.0,
    show_default=True,
    callback=LIMIT_SECONDS,
    help="Longest time of one run of the model.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stream(  # noqa: PLR0913, PLR0917 - one parameter for each option that is not passed on as it is
    model: Path,
    recording: Path,
    deadline_ms: float | None,
    preload_mb: int,
    memory_limit_mb: int,
    load_seconds: float,
    stall_seconds: float,
    as_json: bool,
    **wanted: str | float | bool,
) -> None:
    """Replay a recording at the camera's rate: does the model keep up?

    Windows come as the camera would send them and wait in a queue, the oldest is taken first. Frames are in memory
    before the replay begins. On a machine that does other work at the same time the answer is worse than need be.
    """
    try:
        order = msgspec.convert(
            {
                **wanted,
                "model_path": str(model),
                "recording_path": str(recording),
                "deadline_s": None if deadline_ms is None else deadline_ms / 1e3,
                "preload_bytes": preload_mb << 20,
                "hardware": describe_device("", str(wanted["runtime"]), str(wanted["provider"])).hardware,
                "memory_limit_bytes": memory_limit_bytes(memory_limit_mb) if wanted["provider"] == "cpu" else 0,
            },
            StreamOrder,
        )
    except msgspec.ValidationError as error:
        raise BridgeError(option_text(error, _OPTIONS)) from None
    if not model.exists():
        raise BridgeError(f"model {model}: no such file; check the path")
    if not model.is_file():
        raise BridgeError(f"model {model}: not a plain file; give an ONNX file")
    with AnswerEndings() as endings:
        report = run_stream(order, endings, lambda phase: log.info("%s", phase), load_seconds, stall_seconds)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=1).decode())
    else:
        click.echo(table(report))


def table(report: StreamReport) -> str:
    """Return the report as lines of text; the last one is the answer."""
    rows = [(name, text) for name, text in _rows(report) if text]
    return "\n".join([*(f"{name:<16} {text}" for name, text in rows), verdict(report)])


def verdict(report: StreamReport) -> str:
    """Return the answer in one line."""
    said = [
        f"{_percent(count, report.windows)} of the windows {what}"
        for count, what in ((report.late, "late"), (report.dropped, "dropped"))
        if count
    ]
    answer = "yes" if report.keeps_up else "no"
    if report.keeps_up and report.windows < FEW_WINDOWS:
        answer += f", but only {report.windows} windows"
    if not report.keeps_up:
        # What is fast enough as a rule was held up now and then.
        slow = report.service_p50_s > min(report.stride / report.rate_hz, report.deadline_s)
        said.insert(0, "the model is too slow" if slow else "the machine stalled")
    of = " (simulated recording)" if report.simulated else ""
    return f"keeps up with {report.rate_hz:.10g} frames/s: {answer}{': ' if said else ''}{', '.join(said)}{of}"


def _percent(count: int, of: int) -> str:
    """Share in percent; never "0%" for what is there and never "100%" for what is not all."""
    share = count / of
    for digits in (0, 1, 2, 3):
        text = f"{share:.{digits}%}"
        if (float(text[:-1]) > 0 or not count) and (float(text[:-1]) < 100 or count == of):
            return text
    return f"{count} of {of}"


def _rows(report: StreamReport) -> list[tuple[str, str]]:
    size = " x ".join(map(str, report.frame_shape))
    window = " x ".join(map(str, report.window_shape))
    few = " (few: the longest times say little; see --repeat)" if report.windows < FEW_WINDOWS else ""
    return [
        ("recording", "SIMULATED, not measured on a machine" if report.simulated else ""),
        (
            "camera",
            f"{report.frames} frames of {size} in {report.camera_s:.3g} s; {report.layers} layer(s)"
            f"{f', {report.recording_frames} frames repeated' if report.repeated else ''}",
        ),
        ("cut short", "more frames than --preload-mb lets into memory" if report.preload_cut else ""),
        (
            "windows",
            f"{report.windows} of {window}, one every {report.stride} frames"
            f"{', cropped around the brightest pixel' if report.cropped else ''}{few}",
        ),
        (
            "kept up with",
            f"{report.kept} ({_percent(report.kept, report.windows)}); deadline {report.deadline_s * 1e3:.4g} ms",
        ),
        ("missed", f"{report.late} late, {report.dropped} dropped (queue full, or left at the end)"),
        (
            "response ms",
            f"p50 {_ms(report.response_p50_s)}, p99 {_ms(report.response_p99_s)}, max {_ms(report.response_max_s)}"
            " (last frame in to result out)",
        ),
        ("queue depth", f"max {report.queue_max}, mean {report.queue_mean:.3f}, at most {report.queue}"),
        ("service ms", f"p50 {_ms(report.service_p50_s)}, p99 {_ms(report.service_p99_s)} (a window cut and run)"),
        (
            "model ms",
            f"p50 {_ms(report.model_p50_s)}; cutting {_ms(report.cut_p50_s)}"
            f"{f'; {report.mean_batch:.2f} windows a run' if report.batch > 1 else ''}",
        ),
        ("noticed late ms", f"p99 {_ms(report.wake_p99_s)} (a window, by the idle loop: the machine's part)"),
        ("busy", f"{report.busy_share:.1%} of the time"),
        ("highest rate", f"about {_rounded(report.highest_rate_hz)} frames/s (estimate, from service p99)"),
        (
            "load ms",
            f"{report.load_s * 1e3:.1f}, then {report.warmup_runs} warm-up runs"
            f"{' (cut short: not every batch size)' if report.warmup_cut else ''}",
        ),
        ("runtime", f"{report.runtime} {report.provider}, {report.threads} thread(s), precision {report.precision}"),
        ("hardware", report.hardware),
    ]


def _rounded(number: float) -> str:
    """Three digits, without an exponent: 42,800."""
    return f"{float(f'{number:.3g}'):,.10g}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"
