"""The literature's way to a small network: compress the one that people designed. Structured pruning and narrowing.

Knows nothing about a network but that it is made of torch modules: it is run once with shapes alone, and the axes of
its tensors are followed (`axes`): factors that do not stay whole are widths that can be cut. Must not know data or
training.

Source: groups of channels that depend on each other are G. Fang et al., DepGraph, CVPR 2023; their importance by norm
H. Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017. Following axes as factors is ours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from mpinas.errors import UserError
from mpinas.models.axes import Axes, Factor, Followed, flat, keep_whole, leaves_of
from mpinas.models.protocol import Shape
from mpinas.search import Genome, SearchSpace

KEEPS = (0.75, 0.5, 0.25, 0.125)
_REFUSED = "the baseline cannot be compressed"
_LEFT = 'only method = "quantise" is left'
#: With what batch a network is followed: more than one, so that the axis is seen.
_BATCH = 2


class Compressed:
    """The space, as it is named. Its networks are made from a baseline: `Networks` calls `build` and `inherit`."""

    baseline = None

    def search_space(self, input_shape: Shape) -> SearchSpace:
        """The genes."""
        return space()

    def build(self, genome: Genome, input_shape: Shape, outputs: int) -> nn.Module:
        """Raises ValueError: a genome alone describes no network here."""
        raise ValueError("the networks of this space are made from a baseline")


def space() -> SearchSpace:
    """Genes `method` and `keep`, the share of channels that is left of each layer; all are trained as the baseline is.

    "prune" keeps the most important channels of the trained baseline, "distill" learns from it in a network of the
    same narrow shape, "quantise" keeps all of it.
    """
    methods = ["prune", "distill", "quantise"]
    return SearchSpace({"method": methods, "keep": [*KEEPS, 1.0]}, _repair)


def _repair(genome: Genome) -> Genome:
    """Quantised networks keep everything, all others less than that."""
    keep = 1.0 if genome["method"] == "quantise" else min(float(genome["keep"]), max(KEEPS))
    return {**genome, "keep": keep}


def build(genome: Genome, baseline: nn.Module, input_shape: Shape) -> nn.Module:
    """The compressed network with fresh weights; its shape depends on the genome and the baseline's shape alone.

    Parameters
    ----------
    baseline
        Freshly built, from uint8 (batch, frames, height, width) to (batch, outputs); it stays as it is. Where it is on
        the device "meta", so is the result.
    input_shape
        Frames, height, width of a sample.

    Raises
    ------
    UserError
        The network cannot be run with shapes alone, or no layer of it can be made narrower.
    """
    keep = float(genome["keep"])
    if keep == 1.0:
        return copy.deepcopy(baseline)
    network = _Widths(baseline, input_shape, keep).cut(baseline, _first)
    _rescale(network, baseline)
    return network


def inherit(genome: Genome, trained: nn.Module, baseline: nn.Module, input_shape: Shape) -> nn.Module:
    """The network that training starts from, of the shape that `build` gives; `trained` stays as it is.

    "prune": the trained baseline's most important channels, to be fine-tuned. "quantise": all of it. "distill": the
    fresh weights of `baseline`, a baseline that was not trained.

    Raises
    ------
    UserError
        As `build`.
    """
    if genome["method"] == "distill":
        return build(genome, baseline, input_shape)
    if float(genome["keep"]) == 1.0:
        return copy.deepcopy(trained)
    widths = _Widths(trained, input_shape, float(genome["keep"]))
    importance = widths.importance(trained)
    return widths.cut(trained, lambda width, left: importance[width].topk(left).indices.sort().values)


class _Widths:
    """What of a network can be cut, and how much of it is left.

    That is every width that has been found, if the network then still works. Where it does not (it may reckon with
    numbers that are nowhere in its tensors), widths are added one by one, as long as it does.
    """

    def __init__(self, network: nn.Module, input_shape: Shape, keep: float) -> None:
        self._keep = keep
        bare = _without_numbers(network)
        try:
            #: Of each tensor, by name.
            self._axes, self._output = _follow(bare, input_shape)
        except Exception as error:  # whatever a network does
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"{_REFUSED}: it does not run on torch's device meta: {why}; {_LEFT}") from None
        self._cut = found = _found(self._axes[name] for name, _, tensor in _tensors(bare) if _is_matrix(tensor))
        if not self._works(bare, input_shape):
            self._cut = []
            for width in found:
                self._cut.append(width)
                if not self._works(bare, input_shape):
                    self._cut.pop()
        if not self._cut:
            raise UserError(f"{_REFUSED}: none of its layers can be made narrower; {_LEFT}")

    def _works(self, bare: nn.Module, input_shape: Shape) -> bool:
        """Does the network with these cuts do what it did?

        It may run and do something else: what no longer fits is folded into the batch or into places. So it is followed
        once more, and has to have the same factors.
        """
        try:
            axes, output = _follow(self.cut(bare, _first), input_shape)
        except Exception:  # whatever a network does
            return False
        sizes = {name: [[factor.size for factor in axis] for axis in each] for name, each in axes.items()}
        left = {name: [[self._left(factor) for factor in axis] for axis in each] for name, each in self._axes.items()}
        expected = {name: [[size for size in axis if size > 1] for axis in each] for name, each in left.items()}
        return output == self._output and sizes == expected

    def _left(self, width: Factor) -> int:
        """How much there is of it after the cut."""
        return max(1, int(width.size * self._keep)) if width in self._cut else width.size

    def cut(self, network: nn.Module, choose: Callable[[Factor, int], torch.Tensor]) -> nn.Module:
        """A narrower copy of the network, of those places of each width that `choose` gives."""
        kept = {width: choose(width, self._left(width)) for width in self._cut}
        network = copy.deepcopy(network)
        done: dict[int, torch.Tensor] = {}
        for name, module, tensor in list(_tensors(network)):
            if id(tensor) not in done:  # or else two modules share it
                done[id(tensor)] = _selected(tensor, self._axes[name], kept)
            setattr(module, name.rpartition(".")[2], done[id(tensor)])
        for module in network.modules():
            _declare(module)
        return network

    def importance(self, network: nn.Module) -> dict[Factor, torch.Tensor]:
        """Of each place of a width: sum of squares of the weights that make it and of those that use it; no biases."""
        out = {width: torch.zeros(width.size, dtype=torch.float64, device="cpu") for width in self._cut}
        for name, _, tensor in _tensors(network):
            for at, axis in enumerate(self._axes[name] if _is_matrix(tensor) else []):
                squares = tensor.detach().cpu().double().square().movedim(at, 0).flatten(1).sum(1)
                squares = squares.reshape([factor.size for factor in axis])
                for place, factor in enumerate(axis):
                    if factor in out:
                        out[factor] += squares.movedim(place, 0).reshape(factor.size, -1).sum(1)
        return out


def _found(matrices: Iterable[Axes]) -> list[Factor]:
    """Widths that one layer gives and another takes, in the order of the layers."""
    matrices = list(matrices)
    given = {leaf: None for axes in matrices for leaf in axes[0]}
    taken = {leaf for axes in matrices for axis in axes[1:] for leaf in axis}
    return [leaf for leaf in given if leaf in taken and not leaf.whole]


def _is_matrix(tensor: torch.Tensor) -> bool:
    """Weights, of two axes or more."""
    return isinstance(tensor, nn.Parameter) and tensor.dim() > 1


def _first(width: Factor, left: int) -> torch.Tensor:
    return torch.arange(left, device="cpu")


def _selected(tensor: torch.Tensor, axes: Axes, kept: Mapping[Factor, torch.Tensor]) -> torch.Tensor:
    """Those places of a tensor that are kept; the tensor itself where that is all of it."""
    out = tensor.detach()
    for at, axis in enumerate(axes):
        if any(factor in kept for factor in axis):
            places = torch.arange(tensor.shape[at], device=tensor.device).reshape([factor.size for factor in axis])
            for place, factor in enumerate(axis):
                if factor in kept:
                    places = places.index_select(place, kept[factor].to(tensor.device))
            out = out.index_select(at, places.flatten())
    if out.shape == tensor.shape:
        return tensor
    return nn.Parameter(out, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else out


def _declare(module: nn.Module) -> None:
    """Make a module's own words about its size true."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        if module.groups > 1 and module.groups == module.in_channels:
            module.groups = module.weight.shape[0]
        module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
        module.num_features = len(module.running_mean)
    elif isinstance(module, nn.LayerNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def _rescale(narrow: nn.Module, wide: nn.Module) -> None:
    """Fresh weights are as large as those of a layer of so many inputs are: their variance goes with 1 / inputs."""
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    pairs = zip(narrow.modules(), wide.modules(), strict=True)
    weights = {mine.weight: theirs.get_parameter("weight") for mine, theirs in pairs if isinstance(mine, layers)}
    with torch.no_grad():
        for mine, theirs in weights.items():
            mine.mul_(math.sqrt(theirs[0].numel() / mine[0].numel()))


def _tensors(network: nn.Module) -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """(name, module, parameter or buffer), a shared one at each of its places, always in the same order."""
    for path, module in network.named_modules():
        for tensors in (module.named_parameters, module.named_buffers):
            for name, tensor in tensors(path, recurse=False, remove_duplicate=False):
                yield name, module, tensor


def _without_numbers(network: nn.Module) -> nn.Module:
    """A copy that has shapes alone."""
    bare: dict[int, Any] = {}
    for _, _, tensor in _tensors(network):
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        bare[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(network, bare).eval()


def _follow(bare: nn.Module, input_shape: Shape) -> tuple[dict[str, Axes], torch.Size]:
    """(axes of each tensor by name, shape of the output); the axes of the output stay whole."""
    tensors = {name: tensor for name, _, tensor in _tensors(bare)}
    seen = Followed(tensors.values())
    with torch.device("meta"), torch.no_grad(), seen:
        out = bare(torch.zeros((_BATCH, *input_shape), dtype=torch.uint8))
    keep_whole(flat(seen.axes(out)))
    return {name: [leaves_of(axis) for axis in seen.axes(tensor)] for name, tensor in tensors.items()}, out.shape
