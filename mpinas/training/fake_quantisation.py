"""Quantisation-aware training: a network that computes in floats what its int8 file will compute.

Attached, the layers that `precision.convert` makes integer see their inputs and weights rounded as the file has them;
gradients go straight through the rounding. Detached, the network is what it was, with the weights that it has learned.

Sources: B. Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
CVPR 2018; a scale for each output channel: R. Krishnamoorthi, arXiv 1806.08342.

Batch normalisation needs no folding here. The exporter multiplies all weights of an output channel by one number, and
rounding with one scale an output channel, the same on both sides of zero, commutes with that: the file's integers are
those that training saw.

Must not know data, optimizers or files.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from mpinas.training.precision import WEIGHT_LIMIT

#: Highest of the integers of an activation; the lowest is 0.
_LEVEL_MAX = 255
#: Weight of the newest batch in the moving averages of ranges: as in batch normalisation.
_MOMENTUM = 0.1


class _Range(nn.Module):
    """Rounds activations to 256 levels over the range that it has seen: moving averages of each batch's ends.

    The ends are buffers, so that a group averages them as it does those of batch normalisation; they are no part of
    the state dict. As long as nothing has been seen nothing is rounded.
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        # zero is always within the range, and a range of nothing but zero is one that has not been seen
        self.register_buffer("low", torch.zeros((), device=device), persistent=False)
        self.register_buffer("high", torch.zeros((), device=device), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        if self.training:
            self._see(x.detach())
        span = self.high - self.low
        if span == 0:
            return x
        scale = span / _LEVEL_MAX
        zero = (-self.low / scale).round().to(torch.int32)
        out: torch.Tensor = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, _LEVEL_MAX)
        return out

    def _see(self, x: torch.Tensor) -> None:
        low, high = torch.aminmax(x)
        share = _MOMENTUM if self.high > self.low else 1.0
        self.low.lerp_(low.clamp(max=0).to(self.low.dtype), share)
        self.high.lerp_(high.clamp(min=0).to(self.high.dtype), share)


class _Conv2d(nn.Conv2d):
    """A convolution as the int8 file has it."""

    input_range: _Range

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `nn.Conv2d`."""
        out: torch.Tensor = self._conv_forward(self.input_range(input), _rounded(self.weight), self.bias)
        return out


class _Linear(nn.Linear):
    """A fully connected layer as the int8 file has it."""

    input_range: _Range

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`."""
        return functional.linear(self.input_range(input), _rounded(self.weight), self.bias)


class _LastLinear(nn.Linear):
    """The last fully connected layer, in floats; what the one before gives has been rounded."""

    input_range: _Range

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`."""
        return functional.linear(self.input_range(input), self.weight, self.bias)


#: Plain class -> the same, rounding.
_ROUNDING: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: _Conv2d, nn.Linear: _Linear}
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {_Conv2d: nn.Conv2d, _Linear: nn.Linear, _LastLinear: nn.Linear}


def attach(model: nn.Module) -> None:
    """Make `model` compute as its int8 file will: from now on in training and evaluation, until `detach`.

    Parameters and the keys of the state dict stay the same objects and names, so an optimizer made before or after
    works, and weights may be saved at any time. Layers become other classes; buffers are added to them. Train for some
    batches before evaluating: ranges of activations are learned in training mode.

    Raises
    ------
    ValueError
        No layer of `model` becomes integer in the file.
    """
    layers = [module for module in model.modules() if type(module) in _ROUNDING]
    last = [layer for layer in layers if type(layer) is nn.Linear][-1:]
    if layers == last:
        raise ValueError(f"{type(model).__name__} has no layer that becomes integer")
    for layer in layers:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        layer.add_module("input_range", _Range(weight.device).train(layer.training))
        layer.__class__ = _LastLinear if layer in last else _ROUNDING[type(layer)]


def detach(model: nn.Module) -> None:
    """Make of an attached `model` the plain network again, with the weights that it has now."""
    for layer in list(model.modules()):
        if type(layer) in _PLAIN:
            layer.__class__ = _PLAIN[type(layer)]
            del layer.input_range


def _rounded(weight: torch.Tensor) -> torch.Tensor:
    """`weight`, (outputs, …), in multiples of a scale for each output."""
    limits = weight.detach().abs().flatten(1).amax(1)  # (outputs, …) -> (outputs,)
    # an output without weights, or with tiny ones, must not divide by zero
    scales = (limits / WEIGHT_LIMIT).clamp(min=torch.finfo(weight.dtype).tiny)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -WEIGHT_LIMIT, WEIGHT_LIMIT)
