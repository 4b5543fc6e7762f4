"""Say what a recording holds, for `mpinas data inspect`: plain values first, then text.

Frames are read line by line to count the dark ones; nothing larger than a line is in memory.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpinas.tasks.lpbf.layer import ScanLine
from mpinas.tasks.lpbf.recording import Recording, open_recording
from mpinas.tasks.lpbf.targets import PUBLISHED as PUBLISHED_LABELS
from mpinas.tasks.lpbf.windows import PUBLISHED as PUBLISHED_VIEW

Progress = Callable[[int, int], None]
Numbers = npt.NDArray[np.float64]

#: Lines whose frames are read; of a recording with more, this many spread evenly over it.
SAMPLED_LINES = 2000


def describe(path: Path | str | Iterable[Path | str], progress: Progress | None = None) -> dict[str, Any]:
    """Return what a recording holds as plain values, fit for JSON; keys that do not apply are None."""
    with open_recording(path, labels=None) as recording:
        lengths = np.array([line.frames for line in recording.lines])
        return {
            "files": [str(file) for file in recording.files],
            "size_bytes": sum(file.stat().st_size for file in recording.files),
            "layout": sorted({layer.place.layout for layer in recording.layers}),
            "simulated": _simulated(recording),
            "objects": _objects(recording),
            "lines": len(recording.lines),
            "frames": int(sum(layer.shape[0] for layer in recording.layers)),
            "frame_sizes": [list(size) for size in recording.frame_sizes],
            "line_frames": {
                "min": int(lengths.min()),
                "median": float(np.median(lengths)),
                "max": int(lengths.max()),
            },
            "compression": sorted({layer.storage for layer in recording.layers}),
            "labels": _labels(recording),
            **_light(recording, progress),
        }


def format_description(found: dict[str, Any]) -> str:
    """Return the description as lines of text."""
    rows: list[tuple[str, str]] = [
        ("files", ", ".join(found["files"])),
        ("size", f"{found['size_bytes'] / 1e6:.1f} MB, {', '.join(found['compression'])}"),
        ("layout", ", ".join(found["layout"])),
        *[("simulated", _simulation_text(one)) for one in found["simulated"]],
        *[
            ("object", f"{name}: {one['lines']} lines in layers {_ranges(one['layers'])}")
            for name, one in found["objects"].items()
        ],
        ("lines", f"{found['lines']}, of {_three(found['line_frames'])} frames (min, median, max)"),
        ("frames", f"{found['frames']} of {', '.join(f'{h} x {w}' for h, w in found['frame_sizes'])} pixels"),
        ("brightness", f"brightest pixel of a frame: {_three(found['brightest_pixel'])} (min, median, max)"),
        (
            "dark frames",
            f"{100 * found['dark_share']:.1f} % (maximum below {PUBLISHED_VIEW.lit}); "
            f"lines with no bright frame: {found['dark_lines']} (of {found['sampled_lines']} lines read)",
        ),
        *([] if found["labels"] else [("labels", "none (a test file)")]),
    ]
    for dataset, table in found["labels"].items():
        rows.append(("labels", f"`{dataset}`, {_of_lines(table['lines'], found['lines'])}"))
        rows.extend(_column_texts(dataset, table["columns"]))
    return "\n".join(f"{name:<12} {text}" for name, text in rows)


def _objects(recording: Recording) -> dict[str, dict[str, Any]]:
    """Return layers, missing layers and lines of each object."""
    objects: dict[str, dict[str, Any]] = {}
    for layer in recording.layers:
        one = objects.setdefault(layer.place.object, {"layers": [], "missing_layers": [], "lines": 0})
        one["layers"].append(layer.place.number)
    for line in recording.lines:
        objects[line.object]["lines"] += 1
    for one in objects.values():
        there = set(one["layers"])
        one["missing_layers"] = _ranges(set(range(min(there), max(there))) - there)
    return objects


def _simulated(recording: Recording) -> list[dict[str, Any]]:
    """Return what each simulated file says about its making."""
    found = []
    for position, path in enumerate(recording.files):
        attributes = recording.attributes(position)
        if attributes.get("simulated"):
            keys = ("generator", "generator_version", "seed", "parameters")
            found.append({"file": str(path), **{key: attributes.get(key) for key in keys}})
    return found


def _light(recording: Recording, progress: Progress | None) -> dict[str, Any]:
    """Return how bright frames are and how many are dark, from lines spread over the recording."""
    count = min(len(recording.lines), SAMPLED_LINES)
    positions = np.linspace(0, len(recording.lines) - 1, count).astype(int)
    sampled: list[ScanLine] = [recording.lines[i] for i in positions]
    maxima = []  # of each line, (frames,)
    for done, line in enumerate(sampled, 1):
        maxima.append(recording.read_line(line).max(axis=(1, 2)))
        if progress:
            progress(done, count)
    every = np.concatenate(maxima)
    return {
        "sampled_lines": count,
        "brightest_pixel": {
            "min": int(every.min()),
            "median": float(np.median(every)),
            "max": int(every.max()),
        },
        "dark_share": float((every < PUBLISHED_VIEW.lit).mean()),
        "dark_lines": sum(bool((line < PUBLISHED_VIEW.lit).all()) for line in maxima),
    }


def _labels(recording: Recording) -> dict[str, dict[str, Any]]:
    """Return for each dataset that may be labels how many lines have all of them, and what its columns hold."""
    numbers: dict[tuple[int, str], list[int]] = {}
    for line in recording.lines:
        numbers.setdefault((line.file, line.group), []).append(line.number)
    tables: dict[str, list[Numbers]] = {}
    for layer in recording.layers:
        lines = np.array(numbers.get((layer.place.file, layer.group), []), int)
        for name, table in recording.label_tables(layer).items():
            tables.setdefault(name, []).append(table[lines[lines < len(table)]])
    found = {}
    for name, parts in tables.items():
        width = max(part.shape[1] for part in parts)
        whole = np.concatenate([_widened(part, width) for part in parts])  # (lines, columns)
        complete = int(np.isfinite(whole).all(axis=1).sum())
        found[name] = {"lines": complete, "columns": [_spread(column) for column in whole.T]}
    return found


def _widened(table: Numbers, width: int) -> Numbers:
    """Return the table with columns of NaN, where other layers have more columns."""
    return np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=np.nan)


def _spread(values: Numbers) -> dict[str, float | None]:
    """Return mean, deviation and range of the finite numbers, and of how many lines they are."""
    known = values[np.isfinite(values)]
    names = ("mean", "std", "min", "max")
    spread = [float(getattr(known, name)()) if len(known) else None for name in names]
    return {"lines": len(known), **dict(zip(names, spread, strict=True))}


def _ranges(numbers: Iterable[int]) -> str:
    """Return 1, 2, 3, 7 as "1-3, 7"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _three(values: dict[str, float]) -> str:
    return f"{values['min']:g}, {values['median']:g}, {values['max']:g}"


def _simulation_text(one: dict[str, Any]) -> str:
    made = f"{one['generator']} version {one['generator_version']}, seed {one['seed']}"
    return f"yes, computed and not measured: {made} ({one['file']})"


def _of_lines(some: int, every: int) -> str:
    return "of every line" if some == every else f"complete for {some} of {every} lines"


def _column_texts(dataset: str, columns: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return a row of text for each column; those of the published labels are named."""
    published = PUBLISHED_LABELS.targets if dataset == PUBLISHED_LABELS.dataset else ()
    names = [f", {target.name} in {target.unit}" for target in published]
    names = names if len(names) == len(columns) else [""] * len(columns)
    return [
        (
            f"  column {number}",
            "mean {mean:.6g}, deviation {std:.6g}, {min:.6g} to {max:.6g}".format(**column) + name
            if column["lines"]
            else "no finite number",
        )
        for number, (column, name) in enumerate(zip(columns, names, strict=True))
    ]
