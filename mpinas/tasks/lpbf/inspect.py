"""Say what a recording holds, for `mpinas data inspect`: plain values first, then text.

Frames are read line by line to count the dark ones; nothing larger than a line is in memory.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mpinas.tasks.lpbf.layer import ScanLine
from mpinas.tasks.lpbf.recording import Recording, open_recording
from mpinas.tasks.lpbf.windows import LIT_COUNTS

Progress = Callable[[int, int], None]

#: Lines whose frames are read; of a recording with more, this many spread evenly over it.
SAMPLED_LINES = 2000


def describe(path: Path | str | Iterable[Path | str], progress: Progress | None = None) -> dict[str, Any]:
    """Return what a recording holds as plain values, fit for JSON; keys that do not apply are None."""
    with open_recording(path) as recording:
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
            "labelled": recording.labelled,
            "labelled_lines": sum(line.speed_mm_s is not None for line in recording.lines),
            "speed_mm_s": _spread([line.speed_mm_s for line in recording.lines]),
            "power_w": _spread([line.power_w for line in recording.lines]),
            **_light(recording, progress),
        }


def format_description(found: dict[str, Any]) -> str:
    """Return the description as lines of text."""
    rows = [
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
        (
            "dark frames",
            f"{100 * found['dark_share']:.1f} % (maximum below {LIT_COUNTS}); "
            f"lines with no bright frame: {found['dark_lines']} (of {found['sampled_lines']} lines read)",
        ),
        ("labels", _label_text(found)),
    ]
    for key, name, unit in (("speed_mm_s", "speed", "mm/s"), ("power_w", "power", "W")):
        if spread := found[key]:
            rows.append(
                (
                    name,
                    "mean {mean:.1f}, deviation {std:.1f}, {min:.1f} to {max:.1f} ".format(**spread) + unit,
                )
            )
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
    """Return the share of dark frames, from lines spread over the recording."""
    count = min(len(recording.lines), SAMPLED_LINES)
    positions = np.linspace(0, len(recording.lines) - 1, count).astype(int)
    sampled: list[ScanLine] = [recording.lines[i] for i in positions]
    frames = dark = dark_lines = 0
    for done, line in enumerate(sampled, 1):
        maxima = recording.read_line(line).max(axis=(1, 2))
        frames += len(maxima)
        dark += int((maxima < LIT_COUNTS).sum())
        dark_lines += bool((maxima < LIT_COUNTS).all())
        if progress:
            progress(done, count)
    return {"sampled_lines": count, "dark_share": dark / frames, "dark_lines": dark_lines}


def _spread(values: list[float | None]) -> dict[str, float] | None:
    """Return mean, deviation and range of the labels there are."""
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return None
    return {
        "mean": float(known.mean()),
        "std": float(known.std()),
        "min": float(known.min()),
        "max": float(known.max()),
    }


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


def _label_text(found: dict[str, Any]) -> str:
    if found["labelled"]:
        return "speed and power of every line"
    return (
        f"of {found['labelled_lines']} of {found['lines']} lines" if found["labelled_lines"] else "none (a test file)"
    )
