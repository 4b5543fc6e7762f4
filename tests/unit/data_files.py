"""Small recordings for tests, in both layouts, with no physics in them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

DARK, BRIGHT = 20, 200


def line_frames(lit: Sequence[int], size: tuple[int, int] = (9, 11)) -> np.ndarray:
    """Frames of one line: 1 for the laser on (one bright pixel), 0 for off. Background 20."""
    frames = np.full((len(lit), *size), DARK, np.uint8)
    frames[np.flatnonzero(lit), 4, 5] = BRIGHT
    return frames


def layer_arrays(lines: Mapping[int, Sequence[int]], size: tuple[int, int] = (9, 11)) -> dict[str, np.ndarray]:
    """Datasets of a layer: line number -> the line's laser on/off; labels are 100 + number and 10 + number."""
    count = max(lines) + 1
    return {
        "frame": np.concatenate([line_frames(lit, size) for lit in lines.values()]),
        "scan_line_index": np.concatenate([np.full(len(lit), number) for number, lit in lines.items()]),
        "laser_params": np.stack([100.0 + np.arange(count), 10.0 + np.arange(count)], axis=1),
    }


def write_layers(path: Path, layers: Mapping[str, Mapping[str, np.ndarray]], **storage: object) -> Path:
    """Write datasets by layer path ("layer0001" or "C001/layer0001"); a dataset that is None is left out."""
    with h5py.File(path, "w") as file:
        for place, datasets in layers.items():
            group = file.create_group(place)
            for name, values in datasets.items():
                if values is not None:
                    group.create_dataset(name, data=values, **(storage if name == "frame" else {}))
    return path


def simple_file(path: Path, layers: int = 2, prefix: str = "", **storage: object) -> Path:
    """Write layers of three lines each: five lit frames, a dark one on both sides."""
    arrays = layer_arrays(dict.fromkeys(range(3), (0, 1, 1, 1, 1, 1, 0)))
    return write_layers(path, {f"{prefix}layer{i:04d}": arrays for i in range(layers)}, **storage)
