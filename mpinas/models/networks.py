"""The networks of a run, by genome: those of its search space, and the human-designed baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mpinas import plugins
from mpinas.errors import UserError
from mpinas.models import compressed
from mpinas.models.elastic import Supernet
from mpinas.models.protocol import TRAINING_GENES, MakeNetwork, NetworkSpace, Shape
from mpinas.search import Genome, SearchSpace, Value

#: Names of genes that are not a space's to give.
RESERVED = frozenset({"baseline", "precision", "distillation", "method", "keep"})


@dataclass(frozen=True, slots=True)
class Networks:
    """Networks of the space named `space`, for samples of `input_shape` (frames, height, width)."""

    space: str
    input_shape: Shape
    outputs: int
    #: The human-designed network, by name: for spaces of networks that are made from it.
    baseline: str = ""

    def build(self, genome: Genome) -> nn.Module:
        """The network of a genome, with fresh weights from torch's generator.

        It takes (batch, *shape(genome)) uint8 and gives (batch, outputs).
        """
        if "baseline" in genome:
            return self._human_designed(str(genome["baseline"]))
        if self.compressed:
            return compressed.build(genome, self._human_designed(self.baseline), self.input_shape)
        return _open(self.space).build(genome, self.input_shape, self.outputs)

    def inherit(self, genome: Genome, trained: nn.Module) -> nn.Module:
        """The network of a genome of the space "compressed", from the trained baseline."""
        return compressed.inherit(genome, trained, self._human_designed(self.baseline), self.input_shape)

    @property
    def compressed(self) -> bool:
        """Are they the baseline, made smaller?"""
        return self.space == "compressed"

    def _human_designed(self, name: str) -> nn.Module:
        make: MakeNetwork = plugins.find("networks", name, "task.baseline")
        return make(self.input_shape, self.outputs)

    def shape(self, genome: Genome) -> Shape:
        """What the network takes of a sample: the frames in the middle, all their pixels."""
        return (int(genome.get("frames", self.input_shape[0])), *self.input_shape[1:])


def make_space(
    name: str,
    input_shape: Shape,
    choices: Mapping[str, Sequence[Value]] | None = None,
    added: Mapping[str, Sequence[Value]] | None = None,
) -> SearchSpace:
    """The search space of that name for samples of `input_shape`, with the genes `added`, narrowed to `choices`.

    Raises
    ------
    UserError
        The space, a gene or a choice is unknown.
    """
    opened = _open(name)
    try:
        space = opened.search_space(input_shape)
    except UserError:
        raise
    except Exception as error:  # the user's own code
        raise UserError(
            f"search.space = {name!r} has no genes for samples of {input_shape}: {plugins.in_one_line(error)}"
        ) from error
    for gene in space.genes:
        if strange := [each for each in gene.choices if type(each) not in (str, int, float, bool)]:
            raise UserError(
                f"search.space = {name!r}: gene {gene.name!r} offers {strange[0]!r}: choices are plain numbers, texts "
                "or truth values, such as NumPy's `tolist()` makes"
            )
    genes = {gene.name for gene in space.genes}
    if name != "compressed" and (taken := sorted(genes & RESERVED)):
        raise UserError(f"search.space = {name!r}: a gene must not be called {taken[0]!r}: it has a meaning of its own")
    _check_steps(genes, f"search.space = {name!r}")
    try:
        space = space.extended(added or {}).narrowed(choices or {})
        most = max((int(each) for gene in space.genes if gene.name == "frames" for each in gene.choices), default=0)
    except ValueError as error:
        raise UserError(f"search.genes: {error}") from None
    if most > input_shape[0]:
        raise UserError(
            f"search.space = {name!r}: its gene frames offers {most}, but a sample has {input_shape[0]}: raise "
            "task.frames, or leave choices out by search.genes.frames"
        )
    return space


def _check_steps(genes: set[str], where: str) -> None:
    if len(genes & {"step_size", "gamma"}) == 1:
        raise UserError(f"{where}: the genes step_size and gamma go together")


def check_baseline(networks: Networks, genome: Genome) -> None:
    """Raise UserError where the network that the baseline's genome names cannot be made for these samples."""
    name = str(genome["baseline"])
    if not callable(plugins.find("networks", name, "task.baseline")):
        raise UserError(f"task.baseline = {name!r}: not a class; see docs/extending.md")
    _check_steps(set(genome), f"task.baseline = {name!r}")
    try:
        networks.build(genome)
    except Exception as error:  # a user's code, or ours where the samples are too small
        raise UserError(
            f"task.baseline = {name!r} cannot be made for samples of {networks.input_shape}: "
            f"{plugins.in_one_line(error)}; larger samples, or another baseline"
        ) from error


def make_supernet(networks: Networks, space: SearchSpace) -> Supernet:
    """The weights that all networks of `space` share, fresh from torch's generator."""
    make = getattr(_open(networks.space), "supernet", None)
    if make is None:
        raise UserError(
            f"search.space = {networks.space!r} has no supernet: use the space cnn3d, or leave search.strategy and "
            'training.teacher without "supernet"'
        )
    supernet = make(space, networks.input_shape, networks.outputs)
    if not isinstance(supernet, Supernet):
        raise UserError(f"search.space = {networks.space!r}: its supernet is none of mpinas.models.elastic")
    return supernet


def check_supernet(networks: Networks, space: SearchSpace) -> None:
    """Raise UserError where the space has no supernet. Allocates nothing."""
    with torch.device("meta"):
        make_supernet(networks, space)


def check_compressible(networks: Networks) -> None:
    """Raise UserError where the human-designed network cannot be made narrower. Allocates nothing."""
    with torch.device("meta"):
        networks.build({"method": "prune", "keep": 0.5})


def baseline_genome(baseline: str | MakeNetwork, space: str = "", chosen: str = "") -> Genome:
    """The genome of a human-designed baseline: `chosen`, or that which `space` was made around, or else `baseline`.

    It stands outside every search space.
    """
    found = chosen or (_open(space).baseline if space else None) or baseline
    name = found if isinstance(found, str) else plugins.reference(found)
    own = getattr(plugins.find("networks", name, "task.baseline"), "training_genes", {})
    return {"baseline": name, **TRAINING_GENES, **own}


def _open(name: str) -> NetworkSpace:
    make = plugins.find("spaces", name, "search.space")
    try:
        space: NetworkSpace = make()
    except Exception as error:  # a user's code
        raise UserError(f"search.space = {name!r} cannot be made: {plugins.in_one_line(error)}") from error
    missing = [each for each in ("baseline", "search_space", "build") if not hasattr(space, each)]
    if missing:
        raise UserError(f"search.space = {name!r} has no {missing[0]!r}: see docs/extending.md")
    return space
