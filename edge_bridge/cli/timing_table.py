"""A measurement as a table: pure text, one column for each batch size."""

from __future__ import annotations

from collections.abc import Callable

from edge_bridge.wire.quantities import Measurement, Readings, Timing

_TIMES = ("p50_s", "p90_s", "p95_s", "p99_s", "mean_s", "min_s")
#: Temperatures and clocks shown; a machine with many cores has very many.
_MOST_SHOWN = 4


def timing_table(measurement: Measurement) -> str:
    """Return the table; what the machine does not tell is left out, and doubts stand in the last line."""
    timings = [measurement, *measurement.other_batches]
    rows = [("batch", [str(each.batch) for each in timings])]
    rows += [(f"{name[:-2]} ms", [_ms(getattr(each, name)) for each in timings]) for name in _TIMES]
    asked = measurement.percentile
    columns: list[tuple[str, Callable[[Timing], str]]] = [
        (f"99% interval of {asked} ms", _interval),
        # A model may have a batch of its own, which nobody tells: of runs alone one can be sure.
        ("runs/s", lambda each: f"{1 / each.mean_s:,.0f}" if each.mean_s else "-"),
        ("samples", lambda each: f"{each.samples}{'' if each.complete else ' (too few)'}"),
        ("variation", lambda each: f"{each.coefficient_of_variation:.1%}"),
        ("attempts", lambda each: f"{each.attempts}{' UNSTEADY' if each.unsteady else ''}"),
        ("warm-up runs", lambda each: f"{each.warmup_runs}{'' if each.warmup_settled else ' (not settled)'}"),
    ]
    if any(each.batch > 1 for each in timings):
        per_s = ("inferences/s", lambda each: f"{each.batch / each.mean_s:,.0f}" if each.mean_s else "-")
        columns.insert(2, per_s)
    rows += [(name, [show(each) for each in timings]) for name, show in columns]
    width = max(len(name) for name, _ in rows)
    wide = max(len(cell) for _, cells in rows for cell in cells)
    lines = ["  ".join([f"{name:<{width}}", *(f"{cell:>{wide}}" for cell in cells)]) for name, cells in rows]
    lines += [f"{name:<{width}}  {text}" for name, text in _facts(measurement)]
    if doubts := measurement.doubts():
        lines.append(f"{'NOT TO BE RELIED ON':<{width}}  {', '.join(doubts)}")
    return "\n".join(lines)


def _facts(measurement: Measurement) -> list[tuple[str, str]]:
    """What belongs to all batch sizes."""
    # A build for a GPU has a name of its own.
    names = (measurement.runtime, f"{measurement.runtime}-gpu")
    version = next((measurement.versions[name] for name in names if name in measurement.versions), "")
    facts = [
        ("load ms", f"{measurement.load_s * 1e3:.1f}"),
        ("input", f"{measurement.input_type} {'x'.join(map(str, measurement.input_shape))}"),
        ("peak memory MB", f"{measurement.peak_memory_bytes / 1e6:.1f}"),
    ]
    before, after = measurement.before, measurement.after
    if before is not None and after is not None:
        facts += _state("temperature C", before, after, lambda each: each.temperatures_c, "{:.0f}", 1.0)
        facts += _state("clock GHz", before, after, lambda each: each.clocks_hz, "{:.2f}", 1e-9)
    if measurement.power_w is not None:
        facts.append(("power W", f"{measurement.power_w:.2f}"))
    if measurement.joules_per_inference is not None:
        facts.append(("energy of a run mJ", f"{measurement.joules_per_inference * measurement.batch * 1e3:.3f}"))
    if measurement.throttled is not None:
        facts.append(("throttled", "yes" if measurement.throttled else "no"))
    threads = f"{measurement.threads} thread{'s' if measurement.threads > 1 else ''}"
    facts += [
        ("runtime", f"{measurement.runtime} {version}, {measurement.provider}, {threads}".replace(" ,", ",")),
        ("precision", "as the model says" if measurement.precision == "model" else measurement.precision),
        ("hardware", measurement.hardware),
    ]
    return facts


def _state(
    name: str,
    before: Readings,
    after: Readings,
    which: Callable[[Readings], dict[str, float]],
    form: str,
    unit: float,
) -> list[tuple[str, str]]:
    """Return one row: the highest values before, each with the one after."""
    old, new = which(before), which(after)
    highest = sorted(old, key=lambda each: -old[each])
    shown = [
        f"{each} {form.format(old[each] * unit)} > {form.format(new.get(each, old[each]) * unit)}"
        for each in highest[:_MOST_SHOWN]
    ]
    more = f" and {len(old) - _MOST_SHOWN} more" if len(old) > _MOST_SHOWN else ""
    return [(name, ", ".join(shown) + more)] if shown else []


def _interval(timing: Timing) -> str:
    if timing.interval_s is None:
        return "-"
    return f"{_ms(timing.interval_s[0])} to {_ms(timing.interval_s[1])}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.4f}"
