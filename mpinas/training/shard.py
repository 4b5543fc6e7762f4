"""The labelled samples that go to devices with a trained model, and the error that it makes on them here."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpinas.history.shard import Metric, write_shard
from mpinas.tasks import Samples

#: Samples, at most.
SHARD_SAMPLES = 64
#: Bytes of their inputs, at most; one sample goes in any case.
SHARD_BYTES = 8 << 20


def error_of(outputs: NDArray[np.float32], targets: NDArray[np.generic], metric: Metric) -> float:
    """Error over all samples and outputs, as a device computes it.

    `outputs` (n, outputs); `targets` the same, or (n,) classes for "misclassified": the share of samples whose largest
    output is not the class.
    """
    if metric == "misclassified":
        return float((outputs.argmax(1) != targets).mean())
    return float(np.sqrt(np.square(outputs.astype(np.float64) - np.asarray(targets, np.float64)).mean()))


def make_shard(
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]], samples: Samples, metric: Metric, path: Path
) -> float:
    """Write the first few of `samples`, which have labels, and return the error of what `run` gives for them.

    Raises ValueError, and writes nothing, where that is no finite number.
    """
    assert samples.targets is not None
    count = max(1, min(SHARD_SAMPLES, SHARD_BYTES // max(1, samples.inputs[0].nbytes)))
    inputs, targets = np.ascontiguousarray(samples.inputs[:count]), samples.targets[:count]
    error = error_of(run(inputs), targets, metric)
    if not math.isfinite(error):
        raise ValueError(f"the error on labelled samples is {error}")
    write_shard(path, inputs, targets, metric, error)
    return error
