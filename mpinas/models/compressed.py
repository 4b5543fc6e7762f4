"""The literature's way to a small network: compress the one that people designed. Structured pruning and narrowing.

Knows nothing about a network but that it is made of torch modules: it is run once with shapes alone, and every axis of
every tensor is followed as a product of factors. What an operation ties together becomes one factor; what it mixes,
reorders or does not say stays whole. Factors that are left are widths that can be cut. Must not know data or training.

Source: groups of channels that depend on each other are G. Fang et al., DepGraph, CVPR 2023; their importance by norm
H. Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017. Following axes as factors is ours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpinas.errors import UserError
from mpinas.models.protocol import TRAINING_GENES, Shape
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
    """Genes `method` and `keep`, the share of channels that is left of each layer; trained as the baseline is.

    "prune" keeps the most important channels of the trained baseline, "distill" learns from it in a network of the
    same narrow shape, "quantise" keeps all of it.
    """
    methods = ["prune", "distill", "quantise"]
    return SearchSpace(
        {"method": methods, "keep": [*KEEPS, 1.0], **{name: [value] for name, value in TRAINING_GENES.items()}}, _repair
    )


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

    def _left(self, width: _Factor) -> int:
        """How much there is of it after the cut."""
        return max(1, int(width.size * self._keep)) if width in self._cut else width.size

    def cut(self, network: nn.Module, choose: Callable[[_Factor, int], torch.Tensor]) -> nn.Module:
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

    def importance(self, network: nn.Module) -> dict[_Factor, torch.Tensor]:
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


def _found(matrices: Iterable[Axes]) -> list[_Factor]:
    """Widths that one layer gives and another takes, in the order of the layers."""
    matrices = list(matrices)
    given = {leaf: None for axes in matrices for leaf in axes[0]}
    taken = {leaf for axes in matrices for axis in axes[1:] for leaf in axis}
    return [leaf for leaf in given if leaf in taken and not leaf.whole]


def _is_matrix(tensor: torch.Tensor) -> bool:
    """Weights, of two axes or more."""
    return isinstance(tensor, nn.Parameter) and tensor.dim() > 1


def _first(width: _Factor, left: int) -> torch.Tensor:
    return torch.arange(left, device="cpu")


def _selected(tensor: torch.Tensor, axes: Axes, kept: Mapping[_Factor, torch.Tensor]) -> torch.Tensor:
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
    seen = _Followed(tensors.values())
    with torch.device("meta"), torch.no_grad(), seen:
        out = bare(torch.zeros((_BATCH, *input_shape), dtype=torch.uint8))
    _keep_whole(_flat(seen.axes(out)))
    return {name: [_leaves(axis) for axis in seen.axes(tensor)] for name, tensor in tensors.items()}, out.shape


class _Factor:
    """A part of an axis. `whole`: it cannot be cut."""

    def __init__(self, size: int, *, whole: bool) -> None:
        self.size = size
        self.whole = whole
        self._same: _Factor | None = None
        self._parts: tuple[_Factor, ...] = ()

    def leaves(self) -> list[_Factor]:
        """What it is made of now, the slowest part first."""
        if self._same is not None:
            return self._same.leaves()
        return [leaf for part in self._parts for leaf in part.leaves()] or [self]

    def become(self, other: _Factor) -> None:
        """Be the same as another leaf of this size."""
        other.whole |= self.whole
        self._same = other

    def split(self, first: int) -> None:
        """Fall into `first` parts of equal size."""
        self._parts = tuple(_Factor(size, whole=self.whole) for size in (first, self.size // first))


Axis = list[_Factor]
Axes = list[Axis]


def _leaves(factors: Iterable[_Factor]) -> list[_Factor]:
    return [leaf for factor in factors for leaf in factor.leaves()]


def _fresh(sizes: Iterable[int], *, whole: bool) -> Axes:
    """New axes; one of size 1 has no factor."""
    return [[_Factor(size, whole=whole)] if size > 1 else [] for size in sizes]


def _keep_whole(factors: Iterable[_Factor]) -> None:
    for leaf in _leaves(factors):
        leaf.whole = True


def _tie(one: Axis, other: Axis) -> None:
    """Make two axes of equal size the same; they stay whole where their factors do not fit together."""
    left, right = _leaves(one), _leaves(other)
    while left and right:
        a, b = left.pop(0), right.pop(0)
        if a.leaves() != [a] or b.leaves() != [b]:  # changed meanwhile: an axis may have the same factor twice
            left, right = a.leaves() + left, b.leaves() + right
        elif a is b:
            continue
        elif a.size == b.size:
            b.become(a)
        elif max(a.size, b.size) % min(a.size, b.size):
            return _keep_whole([a, b, *left, *right])
        else:
            max(a, b, key=lambda factor: factor.size).split(min(a.size, b.size))
            left, right = [a, *left], [b, *right]
    return _keep_whole([*left, *right])


def _regrouped(factors: Axis, sizes: Sequence[int]) -> Axes | None:
    """The same factors in axes of other sizes; None where a factor would have to lie in two of them.

    Of a factor that falls into several only the last can be cut: so heads of attention are narrower, but as many.
    """
    rest, out = _leaves(factors), Axes()
    for size in sizes:
        axis, missing = Axis(), size
        while missing > 1:
            if not rest:
                return None
            leaf = rest.pop(0)
            if leaf.size > missing:
                if leaf.size % missing:
                    return None
                leaf.split(missing)
                leaf, *others = leaf.leaves()
                leaf.whole = True
                rest = others + rest
            if missing % leaf.size:
                return None
            axis.append(leaf)
            missing //= leaf.size
        out.append(axis)
    return out


class _Followed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows the axes of all tensors of one forward pass."""

    def __init__(self, learned: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        #: By identity; the tensors are kept so that an identity is never given twice.
        self._known: dict[int, tuple[torch.Tensor, Axes]] = {}
        for tensor in learned:
            self.put(tensor, _fresh(tensor.shape, whole=False))

    def axes(self, tensor: torch.Tensor) -> Axes:
        """Of a tensor; one that comes from outside is whole."""
        if id(tensor) not in self._known:
            self.put(tensor, _fresh(tensor.shape, whole=True))
        return self._known[id(tensor)][1]

    def put(self, tensor: torch.Tensor, axes: Axes) -> None:
        self._known[id(tensor)] = (tensor, axes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs, outputs = _tensors_in((args, kwargs)), _tensors_in(out)
        rule = _RULES.get(func.overloadpacket.__name__, _elementwise if torch.Tag.pointwise in func.tags else _unknown)
        axes = rule(self, args, outputs[0]) if outputs and not _tensors_in(kwargs) else None
        if axes is None or [math.prod(factor.size for factor in axis) for axis in axes] != [*outputs[0].shape]:
            axes = None
            for tensor in inputs:
                _keep_whole(_flat(self.axes(tensor)))
        for tensor in outputs:
            known = axes is not None and tensor.shape == outputs[0].shape
            self.put(tensor, axes if axes is not None and known else _fresh(tensor.shape, whole=True))
        return out


def _tensors_in(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


#: Axes of the first output (and of those of its shape) from the arguments; None: nothing is known.
_Rule = Callable[["_Followed", Sequence[Any], torch.Tensor], "Axes | None"]


def _flat(axes: Axes) -> Axis:
    return [factor for axis in axes for factor in axis]


def _unknown(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> None:
    """Nothing is known: all that goes in stays whole."""


def _elementwise(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    axes: Axes = [[] for _ in out.shape]
    for tensor in _tensors_in(args):
        for at, axis in enumerate(seen.axes(tensor), out.dim() - tensor.dim()):
            if axis and axes[at]:
                _tie(axes[at], axis)
            axes[at] = axes[at] or axis
    return axes


def _unchanged(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    return seen.axes(args[0])


def _viewed(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> Axes | None:
    return _regrouped(_flat(seen.axes(args[0])), out.shape)


def _permuted(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    axes = seen.axes(args[0])
    return [axes[at] for at in args[1]]


def _transposed(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    axes = list(seen.axes(args[0]))
    one, other = args[1:3] if len(args) > 1 else (0, -1)
    axes[one], axes[other] = axes[other], axes[one]
    return axes


def _expanded(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    axes = seen.axes(args[0])
    added = out.dim() - len(axes)
    fresh = _fresh(out.shape, whole=True)
    return [(axes[at - added] if at >= added else []) or fresh[at] for at in range(out.dim())]


def _resized(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    """Padding, cropping: where the length changes, the axis stays whole."""
    axes = list(seen.axes(args[0]))
    for at, (before, after) in enumerate(zip(args[0].shape, out.shape, strict=True)):
        if before != after:
            _keep_whole(axes[at])
            (axes[at],) = _fresh([after], whole=True)
    return axes


def _along(where: int, default: int | None = None) -> _Rule:
    """Places along the axes that argument `where` gives are mixed, or some taken out; by default along all."""

    def rule(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
        axes = list(seen.axes(args[0]))
        given = args[where] if len(args) > where else default
        mixed = [given] if isinstance(given, int) else given or range(len(axes))
        mixed = {at % len(axes) for at in mixed}
        _keep_whole(_flat([axes[at] for at in mixed]))
        if out.dim() < len(axes):
            return [axis for at, axis in enumerate(axes) if at not in mixed]
        return [axis if size > 1 else [] for axis, size in zip(axes, out.shape, strict=True)]

    return rule


def _split(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> Axes | None:
    """Into parts of equal size."""
    axes, at = list(seen.axes(args[0])), args[2] if len(args) > 2 else 0
    length, part = args[0].shape[at], out.shape[at]
    if length % part or (not isinstance(args[1], int) and set(args[1]) != {part}):
        return None
    parted = _regrouped(axes[at], [length // part, part])
    if parted is None:
        return None
    _keep_whole(parted[0])
    axes[at] = parted[1]
    return axes


def _concatenated(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    """So many times the same axis, or else one that stays whole."""
    tensors, at = args[0], (args[1] if len(args) > 1 else 0) % out.dim()
    axes, *others = [list(seen.axes(tensor)) for tensor in tensors]
    same = all(_leaves(other[at]) == _leaves(axes[at]) for other in others)
    for other in others:
        for place in range(out.dim()):
            if place != at:
                _tie(axes[place], other[place])
    if same:
        axes[at] = [*_fresh([len(tensors)], whole=True)[0], *axes[at]]
        return axes
    for each in (axes, *others):
        _keep_whole(each[at])
    (axes[at],) = _fresh([out.shape[at]], whole=True)
    return axes


def _pooled(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    """(batch, channels, places …): all places stay whole."""
    axes = seen.axes(args[0])
    _keep_whole(_flat(axes[2:]))
    return [*axes[:2], *_fresh(out.shape[2:], whole=True)]


def _multiplied(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    """Matrix products, of a whole batch of matrices or of one, with something added or not."""
    *added, left, right = args
    a, b = seen.axes(left), seen.axes(right)
    _tie(a[-1], b[-2])
    for one, other in zip(a[:-2], b[:-2], strict=True):
        _tie(one, other)
    axes = [*a[:-1], b[-1]]
    for tensor in added:
        for axis, other in zip(axes[::-1], seen.axes(tensor)[::-1], strict=False):
            if other:
                _tie(axis, other)
    return axes


def _convolved(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> Axes | None:
    x, weight, bias, *_, transposed, _, groups = args
    axes, kernel = seen.axes(x), seen.axes(weight)
    if transposed or groups not in {1, x.shape[1]} or (groups > 1 and weight.shape[0] != groups):
        return None
    _tie(axes[1], kernel[1] if groups == 1 else kernel[0])
    _keep_whole(_flat([*axes[2:], *kernel[2:]]))
    if bias is not None:
        _tie(kernel[0], seen.axes(bias)[0])
    return [axes[0], kernel[0], *_fresh(out.shape[2:], whole=True)]


def _layer_normalised(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> Axes | None:
    axes, scales = seen.axes(args[0]), [each for each in args[2:4] if each is not None]
    for scale in scales:
        for axis, other in zip(axes[-len(args[1]) :], seen.axes(scale), strict=True):
            _tie(axis, other)
    return axes if scales else None


def _batch_normalised(seen: _Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    axes = seen.axes(args[0])
    for each in args[1:5]:
        if isinstance(each, torch.Tensor):
            _tie(axes[1], seen.axes(each)[0])
    return axes


_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(("clone", "_to_copy", "alias", "detach"), _unchanged),
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "unsqueeze", "squeeze"), _viewed),
    "_prelu_kernel": _elementwise,
    "permute": _permuted,
    **dict.fromkeys(("t", "transpose"), _transposed),
    "expand": _expanded,
    **dict.fromkeys(("slice", "constant_pad_nd"), _resized),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax", "mean", "sum", "amax", "select"), _along(1)),
    "unbind": _along(1, default=0),
    "roll": _along(2),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    "cat": _concatenated,
    **{f"{kind}_pool{dims}d": _pooled for kind in ("avg", "_adaptive_avg") for dims in (2, 3)},
    **{f"max_pool{dims}d_with_indices": _pooled for dims in (2, 3)},
    **dict.fromkeys(("upsample_bilinear2d", "upsample_nearest2d", "upsample_trilinear3d"), _pooled),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _multiplied),
    "convolution": _convolved,
    "native_layer_norm": _layer_normalised,
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit_no_training"), _batch_normalised),
}
