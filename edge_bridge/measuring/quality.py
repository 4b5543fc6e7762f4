"""A model's error on a labelled shard: the shard checked and read, the model run over it, the error by metric.

Pure but for calling the model. Must not know runtimes' own types, files or the protocol.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edge_bridge.measuring.inputs import UnmeasurableError
from edge_bridge.measuring.runtimes import Array, InputSpec
from edge_bridge.wire.quantities import Shard

#: Most outputs that are told one by one.
MOST_OUTPUTS = 4096


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs and targets of a shard, samples first; views on its bytes."""

    inputs: Array
    targets: Array


@dataclass(frozen=True, slots=True)
class ErrorFound:
    """See the fields of the same names of `edge_bridge.wire.quantities.Quality`."""

    error: float
    per_output: list[float]


def read_shard(data: bytes | memoryview, shard: Shard) -> Samples:
    """Check a shard's bytes against what was said of them, and view them as arrays.

    Raises
    ------
    UnmeasurableError
        "bad-digest" where they are not those bytes; "unsupported" where the description contradicts itself.
    """
    inputs_bytes, targets_bytes = shard.sizes_bytes()
    if len(data) != inputs_bytes + targets_bytes:
        raise UnmeasurableError(
            "bad-digest", f"shard of {len(data)} bytes, its shapes say {inputs_bytes + targets_bytes}"
        )
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise UnmeasurableError("bad-digest", "the shard's bytes do not match their SHA-256")
    samples = shard.input_shape[0]
    if shard.target_shape[0] != samples:
        raise UnmeasurableError("unsupported", f"shard of {samples} inputs and {shard.target_shape[0]} targets")
    kind = np.dtype(shard.input_type).newbyteorder("<")
    inputs = np.frombuffer(data, kind, math.prod(shard.input_shape)).reshape(shard.input_shape)
    targets = np.frombuffer(data, "<f4", math.prod(shard.target_shape), inputs_bytes).reshape(shard.target_shape)
    return Samples(inputs, targets)


def batch_for(specs: Sequence[InputSpec], samples: Array, wanted: int) -> int:
    """Batch size in which a model takes these samples: the one wanted, or the one that it is fixed to.

    Raises
    ------
    UnmeasurableError
        "unsupported" where the samples are not what the model takes.
    """
    if len(specs) != 1:
        raise UnmeasurableError("unsupported", f"the model has {len(specs)} inputs; one is judged")
    (spec,) = specs
    takes = f"input {spec.name} takes {spec.dtype} {_shown(spec.shape)}"
    if spec.dtype != samples.dtype:
        raise UnmeasurableError("unsupported", f"{takes}, the shard is {samples.dtype}")
    fits = len(spec.shape) == samples.ndim and all(
        size in (None, given) for size, given in zip(spec.shape[1:], samples.shape[1:], strict=True)
    )
    if not fits or spec.shape[0] == 0:
        raise UnmeasurableError("unsupported", f"{takes}, one sample of the shard is {_shown(samples.shape[1:])}")
    return spec.shape[0] or wanted


def outputs_over(run: Callable[[Array], Array], inputs: Array, batch: int, in_time: Callable[[], bool]) -> Array:
    """Outputs (samples, outputs) of a model that takes `batch` samples at a time; the last batch is filled up.

    Raises
    ------
    UnmeasurableError
        "time-out" as soon as `in_time` says no; "unsupported" where the outputs are not one for each sample.
    """
    pieces = []
    for start in range(0, len(inputs), batch):
        if not in_time():
            raise UnmeasurableError("time-out", f"{start} of {len(inputs)} samples were judged in time")
        piece = inputs[start : start + batch]
        missing = batch - len(piece)
        full = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)]) if missing else piece
        outputs = run(np.ascontiguousarray(full))
        if outputs.ndim == 0 or len(outputs) != batch:
            raise UnmeasurableError("unsupported", f"output {_shown(outputs.shape)} for a batch of {batch} samples")
        pieces.append(outputs[: len(piece)].reshape(len(piece), -1))  # (batch, outputs)
    return np.concatenate(pieces)  # (samples, outputs)


def error_of(outputs: Array, targets: Array, metric: str) -> ErrorFound:
    """Error of outputs (samples, outputs) against the targets of the same samples.

    "rmse": root of the mean square, for each output over samples, and over all. "mae": mean distance, likewise.
    "misclassified": share of samples whose largest output (the first of equals) is not the class.

    Raises
    ------
    UnmeasurableError
        "run-failed" for outputs that are not finite; "unsupported" for outputs that do not fit the targets.
    """
    outputs = outputs.astype(np.float64)
    if not np.isfinite(outputs).all():
        bad = int(np.count_nonzero(~np.isfinite(outputs).all(axis=1)))
        raise UnmeasurableError("run-failed", f"outputs are not finite for {bad} of {len(outputs)} samples")
    if metric == "misclassified":
        return _misclassified(outputs, targets)
    wanted = targets.reshape(len(targets), -1).astype(np.float64)  # (samples, outputs)
    if wanted.shape != outputs.shape:
        raise UnmeasurableError(
            "unsupported", f"{outputs.shape[1]} outputs for each sample, the shard has {wanted.shape[1]} targets"
        )
    if not np.isfinite(wanted).all():
        raise UnmeasurableError("unsupported", "the shard has targets that are not finite")
    if outputs.shape[1] > MOST_OUTPUTS:
        raise UnmeasurableError("too-large", f"{outputs.shape[1]} outputs, at most {MOST_OUTPUTS} are judged")
    distance = outputs - wanted
    if metric == "mae":
        each = np.abs(distance).mean(axis=0)
        return ErrorFound(float(np.abs(distance).mean()), each.tolist())
    each = np.sqrt(np.square(distance).mean(axis=0))
    return ErrorFound(float(np.sqrt(np.square(distance).mean())), each.tolist())


def _misclassified(outputs: Array, targets: Array) -> ErrorFound:
    classes = targets.reshape(-1)
    if len(classes) != len(outputs):
        raise UnmeasurableError("unsupported", f"{len(classes)} classes for {len(outputs)} samples; one each is wanted")
    if not ((classes == np.floor(classes)) & (classes >= 0) & (classes < outputs.shape[1])).all():
        raise UnmeasurableError("unsupported", f"the shard has classes that are not 0 to {outputs.shape[1] - 1}")
    share = float((outputs.argmax(axis=1) != classes).mean())
    return ErrorFound(share, [share])


def _shown(shape: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape) or "scalar"
