"""Inputs for a model that is to be timed, made beforehand from what the model says of them.

Pure. Must not know runtimes' own types or the protocol.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_bridge.measuring.runtimes import Array, InputSpec
from edge_bridge.wire.protocol import Reason

#: Most bytes of one model's inputs.
INPUT_LIMIT_BYTES = 1 << 30
INPUT_SEED = 0


class UnmeasurableError(Exception):
    """Work that ends with this reason; outcome of the model, never an error of the child."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason


def make_inputs(specs: Sequence[InputSpec], batch: int) -> dict[str, Array]:
    """Seeded inputs: floats uniform in [0, 1), uint8 over its range, other integers and booleans 0 or 1.

    A free first dimension becomes `batch`; a fixed one must equal it unless `batch` is 1; no other may be
    free.
    """
    rng = np.random.default_rng(INPUT_SEED)
    inputs: dict[str, Array] = {}
    total_bytes = 0
    for spec in specs:
        shape = tuple(batch if size is None and axis == 0 else size for axis, size in enumerate(spec.shape))
        if any(size is None for size in shape):
            raise UnmeasurableError(
                "unsupported", f"input {spec.name} {spec.shape}: only the first dimension may be free"
            )
        sizes = tuple(size for size in shape if size is not None)
        if batch != 1 and sizes and sizes[0] != batch:
            raise UnmeasurableError(
                "unsupported", f"input {spec.name} has a fixed batch of {sizes[0]}, asked was {batch}"
            )
        count = int(np.prod(sizes, dtype=object)) if sizes else 1
        total_bytes += count * spec.dtype.itemsize
        if total_bytes > INPUT_LIMIT_BYTES:
            raise UnmeasurableError("too-large", f"inputs of more than {INPUT_LIMIT_BYTES} bytes ({spec.name} {sizes})")
        if spec.dtype.kind == "f":
            values: Array = rng.random(sizes, dtype=np.float32)
        else:
            values = rng.integers(0, 256 if spec.dtype == np.uint8 else 2, sizes)
        inputs[spec.name] = np.ascontiguousarray(np.asarray(values).astype(spec.dtype))
    return inputs
