"""How the axes of a network's tensors hang together: each is a product of factors, followed through one run of it.

What an operation ties together becomes one factor; what it mixes, reorders or does not say stays whole. Runs with
shapes alone. Must not know what the factors are wanted for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Factor:
    """A part of an axis. `whole`: it cannot be cut."""

    def __init__(self, size: int, *, whole: bool) -> None:
        self.size = size
        self.whole = whole
        self._same: Factor | None = None
        self._parts: tuple[Factor, ...] = ()

    def leaves(self) -> list[Factor]:
        """What it is made of now, the slowest part first."""
        if self._same is not None:
            return self._same.leaves()
        return [leaf for part in self._parts for leaf in part.leaves()] or [self]

    def become(self, other: Factor) -> None:
        """Be the same as another leaf of this size."""
        other.whole |= self.whole
        self._same = other

    def split(self, first: int) -> None:
        """Fall into `first` parts of equal size."""
        self._parts = tuple(Factor(size, whole=self.whole) for size in (first, self.size // first))


Axis = list[Factor]
Axes = list[Axis]


def leaves_of(factors: Iterable[Factor]) -> list[Factor]:
    """What they are made of now."""
    return [leaf for factor in factors for leaf in factor.leaves()]


def _fresh(sizes: Iterable[int], *, whole: bool) -> Axes:
    """New axes; one of size 1 has no factor."""
    return [[Factor(size, whole=whole)] if size > 1 else [] for size in sizes]


def keep_whole(factors: Iterable[Factor]) -> None:
    """None of them can be cut from now on."""
    for leaf in leaves_of(factors):
        leaf.whole = True


def _tie(one: Axis, other: Axis) -> None:
    """Make two axes of equal size the same; they stay whole where their factors do not fit together."""
    left, right = leaves_of(one), leaves_of(other)
    while left and right:
        a, b = left.pop(0), right.pop(0)
        if a.leaves() != [a] or b.leaves() != [b]:  # changed meanwhile: an axis may have the same factor twice
            left, right = a.leaves() + left, b.leaves() + right
        elif a is b:
            continue
        elif a.size == b.size:
            b.become(a)
        elif max(a.size, b.size) % min(a.size, b.size):
            return keep_whole([a, b, *left, *right])
        else:
            max(a, b, key=lambda factor: factor.size).split(min(a.size, b.size))
            left, right = [a, *left], [b, *right]
    return keep_whole([*left, *right])


def _regrouped(factors: Axis, sizes: Sequence[int]) -> Axes | None:
    """The same factors in axes of other sizes; None where a factor would have to lie in two of them.

    Of a factor that falls into several only the last can be cut: so heads of attention are narrower, but as many.
    """
    rest, out = leaves_of(factors), Axes()
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


class Followed(TorchDispatchMode):  # type: ignore[no-untyped-call]
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
        """Say what the axes of a tensor are."""
        self._known[id(tensor)] = (tensor, axes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs, outputs = _tensors_in((args, kwargs)), _tensors_in(out)
        rule = _RULES.get(func.overloadpacket.__name__, _elementwise if torch.Tag.pointwise in func.tags else _unknown)
        axes = rule(self, args, outputs[0]) if outputs and not _tensors_in(kwargs) else None
        if axes is None or [math.prod(factor.size for factor in axis) for axis in axes] != [*outputs[0].shape]:
            axes = None
            for tensor in inputs:
                keep_whole(flat(self.axes(tensor)))
        for tensor in outputs:
            known = axes is not None and tensor.shape == outputs[0].shape
            self.put(tensor, axes if axes is not None and known else _fresh(tensor.shape, whole=True))
        return out


def _tensors_in(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


#: Axes of the first output (and of those of its shape) from the arguments; None: nothing is known.
_Rule = Callable[["Followed", Sequence[Any], torch.Tensor], "Axes | None"]


def flat(axes: Axes) -> Axis:
    """All factors, one axis after the other."""
    return [factor for axis in axes for factor in axis]


def _unknown(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> None:
    """Nothing is known: all that goes in stays whole."""


def _elementwise(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    axes: Axes = [[] for _ in out.shape]
    for tensor in _tensors_in(args):
        for at, axis in enumerate(seen.axes(tensor), out.dim() - tensor.dim()):
            if axis and axes[at]:
                _tie(axes[at], axis)
            axes[at] = axes[at] or axis
    return axes


def _unchanged(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    return seen.axes(args[0])


def _viewed(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> Axes | None:
    return _regrouped(flat(seen.axes(args[0])), out.shape)


def _permuted(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    axes = seen.axes(args[0])
    return [axes[at] for at in args[1]]


def _transposed(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    axes = list(seen.axes(args[0]))
    one, other = args[1:3] if len(args) > 1 else (0, -1)
    axes[one], axes[other] = axes[other], axes[one]
    return axes


def _expanded(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    axes = seen.axes(args[0])
    added = out.dim() - len(axes)
    fresh = _fresh(out.shape, whole=True)
    return [(axes[at - added] if at >= added else []) or fresh[at] for at in range(out.dim())]


def _resized(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    """Padding, cropping: where the length changes, the axis stays whole."""
    axes = list(seen.axes(args[0]))
    for at, (before, after) in enumerate(zip(args[0].shape, out.shape, strict=True)):
        if before != after:
            keep_whole(axes[at])
            (axes[at],) = _fresh([after], whole=True)
    return axes


def _along(where: int, default: int | None = None) -> _Rule:
    """Places along the axes that argument `where` gives are mixed, or some taken out; by default along all."""

    def rule(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
        axes = list(seen.axes(args[0]))
        given = args[where] if len(args) > where else default
        mixed = [given] if isinstance(given, int) else given or range(len(axes))
        mixed = {at % len(axes) for at in mixed}
        keep_whole(flat([axes[at] for at in mixed]))
        if out.dim() < len(axes):
            return [axis for at, axis in enumerate(axes) if at not in mixed]
        return [axis if size > 1 else [] for axis, size in zip(axes, out.shape, strict=True)]

    return rule


def _split(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> Axes | None:
    """Into parts of equal size."""
    axes, at = list(seen.axes(args[0])), args[2] if len(args) > 2 else 0
    length, part = args[0].shape[at], out.shape[at]
    if length % part or (not isinstance(args[1], int) and set(args[1]) != {part}):
        return None
    parted = _regrouped(axes[at], [length // part, part])
    if parted is None:
        return None
    keep_whole(parted[0])
    axes[at] = parted[1]
    return axes


def _concatenated(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    """So many times the same axis, or else one that stays whole."""
    tensors, at = args[0], (args[1] if len(args) > 1 else 0) % out.dim()
    axes, *others = [list(seen.axes(tensor)) for tensor in tensors]
    same = all(leaves_of(other[at]) == leaves_of(axes[at]) for other in others)
    for other in others:
        for place in range(out.dim()):
            if place != at:
                _tie(axes[place], other[place])
    if same:
        axes[at] = [*_fresh([len(tensors)], whole=True)[0], *axes[at]]
        return axes
    for each in (axes, *others):
        keep_whole(each[at])
    (axes[at],) = _fresh([out.shape[at]], whole=True)
    return axes


def _pooled(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
    """(batch, channels, places …): all places stay whole."""
    axes = seen.axes(args[0])
    keep_whole(flat(axes[2:]))
    return [*axes[:2], *_fresh(out.shape[2:], whole=True)]


def _multiplied(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
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


def _convolved(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> Axes | None:
    x, weight, bias, *_, transposed, _, groups = args
    axes, kernel = seen.axes(x), seen.axes(weight)
    if transposed or groups not in {1, x.shape[1]} or (groups > 1 and weight.shape[0] != groups):
        return None
    _tie(axes[1], kernel[1] if groups == 1 else kernel[0])
    keep_whole(flat([*axes[2:], *kernel[2:]]))
    if bias is not None:
        _tie(kernel[0], seen.axes(bias)[0])
    return [axes[0], kernel[0], *_fresh(out.shape[2:], whole=True)]


def _layer_normalised(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> Axes | None:
    axes, scales = seen.axes(args[0]), [each for each in args[2:4] if each is not None]
    for scale in scales:
        for axis, other in zip(axes[-len(args[1]) :], seen.axes(scale), strict=True):
            _tie(axis, other)
    return axes if scales else None


def _batch_normalised(seen: Followed, args: Sequence[Any], out: torch.Tensor) -> Axes:
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
