"""A few labelled samples beside a trained model, for devices to run it on: the two files, written and read here.

`shard.bin` holds the inputs and then the targets (float32, classes too), C-contiguous and little-endian; `shard.json`
says what they are. Plain bytes: nothing that is read runs code. Must not know who made them or where they go.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpinas.files import write_whole

Metric = Literal["rmse", "misclassified"]


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """What the bytes are.

    Attributes
    ----------
    metric, error
        How the outputs of a model are compared with the targets, and the error of the trained network.
    sha256
        Of all the bytes.
    input_shape, target_shape
        Samples first.
    """

    metric: Metric
    error: float
    sha256: str
    input_shape: tuple[int, ...]
    input_type: Literal["uint8"]
    target_shape: tuple[int, ...]


def write_shard(
    path: Path, inputs: NDArray[np.uint8], targets: NDArray[np.generic], metric: Metric, error: float
) -> None:
    """Write both files; each is complete or not there."""
    data = np.ascontiguousarray(inputs).tobytes() + np.ascontiguousarray(targets.astype("<f4")).tobytes()
    about = Shard(
        metric=metric,
        error=error,
        sha256=hashlib.sha256(data).hexdigest(),
        input_shape=inputs.shape,
        input_type="uint8",
        target_shape=targets.shape,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, content in ((path, data), (_about(path), msgspec.json.encode(about))):
        write_whole(file, content)


def read_shard(path: Path) -> tuple[Shard, bytes]:
    """What `write_shard` wrote.

    Raises
    ------
    OSError, ValueError
        A file cannot be read, or is not what was written.
    """
    data = path.read_bytes()
    about = msgspec.json.decode(_about(path).read_bytes(), type=Shard)
    if hashlib.sha256(data).hexdigest() != about.sha256:
        raise ValueError(f"{path}: not the bytes that {_about(path).name} describes")
    return about, data


def _about(path: Path) -> Path:
    return path.with_suffix(".json")
