"""Search spaces and the networks that their genomes describe. Networks only: no data, no training, no search.

Every network takes uint8 frames (batch, frames, height, width) as the camera gives them and does its own scaling,
so that the exported model is all there is to run on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from mpinas.errors import UserError
from mpinas.models import baselines, cnn3d, swin3d
from mpinas.search import Genome, SearchSpace, Value

Shape = tuple[int, int, int]
SPACES: dict[str, Callable[[Shape], SearchSpace]] = {
    "cnn3d": cnn3d.space,
    "swin3d": swin3d.space,
    "swin3d-free": swin3d.space_free,
}
#: Space -> the human-designed baseline that it was made around, where it is not the task's own.
_AROUND = {"swin3d": "lpbf-swin"}


def make_space(name: str, input_shape: Shape, genes: Mapping[str, Sequence[Value]] | None = None) -> SearchSpace:
    """The search space of that name for samples of `input_shape` (frames, height, width), narrowed to `genes`.

    Raises
    ------
    UserError
        The space, a gene or a choice is unknown.
    """
    if name not in SPACES:
        raise UserError(f"search.space = {name!r} is unknown; known are {', '.join(SPACES)}")
    try:
        return SPACES[name](input_shape).narrowed(genes or {})
    except ValueError as error:
        raise UserError(f"search.genes: {error}") from None


def baseline_genome(name: str, space: str = "") -> Genome:
    """The genome of a human-designed baseline: the one that `space` was made around, if there is one, else `name`.

    It stands outside every search space.
    """
    return {"baseline": _AROUND.get(space, name), **baselines.TRAINING_GENES}


def build(genome: Genome, input_shape: Shape, outputs: int) -> nn.Module:
    """The network of a genome, with fresh weights from torch's generator.

    It takes (batch, input_frames(genome), height, width) uint8 and gives (batch, outputs).
    """
    if "baseline" in genome:
        return baselines.build(str(genome["baseline"]), input_shape, outputs)
    if "embed" in genome:
        return swin3d.Network(swin3d.design_of(genome, input_shape), outputs)
    return cnn3d.Network(genome, input_shape, outputs)


def input_frames(genome: Genome, input_shape: Shape) -> int:
    """How many of a sample's frames the network takes (those in the middle)."""
    return int(genome.get("frames", input_shape[0]))
