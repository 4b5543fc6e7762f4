"""Divide scan lines into training and validation by whole layers.

Lines of one layer share its powder, window and focus: beside training lines of its own layer, a validation
line would be half known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpinas.errors import UserError
from mpinas.tasks.lpbf.layer import ScanLine


@dataclass(frozen=True, slots=True)
class Split:
    """Lines to learn from and lines to judge by; no layer has lines in both, and neither is empty."""

    training: tuple[ScanLine, ...]
    validation: tuple[ScanLine, ...]


def split_layers(lines: Sequence[ScanLine], fraction: float, seed: int) -> Split:
    """Choose about `fraction` of the (object, layer) pairs for validation: at least one, and not all.

    The same seed chooses the same layers in whatever order files and lines come; both sides are returned
    ordered by object, layer and line.
    """
    if not 0 < fraction < 1:
        raise UserError(f"validation fraction is {fraction}; it must lie between 0 and 1, for example 0.2")
    layers = sorted({(line.object, line.layer) for line in lines})
    if len(layers) < 2:
        raise UserError(
            f"the training data hold lines of {len(layers)} layer(s); validation takes whole layers,"
            " so give recordings with 2 or more"
        )
    count = min(max(round(fraction * len(layers)), 1), len(layers) - 1)
    chosen = np.random.default_rng(seed).permutation(len(layers))[:count]
    held_out = {layers[i] for i in chosen}
    ordered = sorted(lines, key=lambda line: (line.object, line.layer, line.number))
    return Split(
        tuple(line for line in ordered if (line.object, line.layer) not in held_out),
        tuple(line for line in ordered if (line.object, line.layer) in held_out),
    )
