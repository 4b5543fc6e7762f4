"""Search space `cnn3d`: convolutional networks over space and time, small enough to keep up with a camera.

Must not know how networks are trained, nor that they may share weights.

Source of the inverted residual block: M. Sandler et al., MobileNetV2, CVPR 2018; with ReLU in place of ReLU6, as in
the other blocks.
"""

from __future__ import annotations

import torch
from torch import nn

from mpinas.search import Genome, SearchSpace

STAGES_MAX = 3
WIDTHS = (8, 12, 16, 24, 32, 48, 64)
#: Smallest side, in pixels, that is left after cropping and scaling down.
SIDE_MIN = 4


def space(input_shape: tuple[int, int, int]) -> SearchSpace:
    """The space for samples of (frames, height, width).

    Genes: `frames` taken from the middle of the window; `field`, side of the centre crop in pixels; `scale`, factor
    by which that is scaled down; `stem`: "fold" lays the frames into the channels of a 2D network, "conv3d" keeps
    time as an axis; stages with `depth` and `width` each, all but their first block residual; `kernel_time`,
    `kernel_space`; `block`: plain or depthwise-separable convolutions, or inverted residuals, `expansion` times wider
    inside than what they take in; `head`: fully connected layers on the mean over the picture, or on a coarse grid
    that keeps where things are, of `head_width`; and the training genes `learning_rate`, `weight_decay` and `flips`
    (mirrored training samples). Inactive genes have one canonical value.
    """
    frames, height, width = input_shape
    side = min(height, width)
    fields = sorted({max(SIDE_MIN, round(side * share)) for share in (0.5, 0.75, 1.0)})
    genes: dict[str, list[float] | list[int] | list[str] | list[bool]] = {
        "frames": [n for n in (1, 2, 4, 8, 16, 32, 64) if n < frames] + [frames],
        "field": fields,
        "scale": [n for n in (1, 2, 3) if side // n >= SIDE_MIN],
        "stem": ["fold", "conv3d"],
        "stem_width": list(WIDTHS[:5]),
        "stem_stride": [1, 2],
        "stages": list(range(1, STAGES_MAX + 1)),
        **{f"depth{i}": [1, 2, 3] for i in range(1, STAGES_MAX + 1)},
        **{f"width{i}": list(WIDTHS) for i in range(1, STAGES_MAX + 1)},
        "kernel_time": [1, 3, 5],
        "kernel_space": [3, 5],
        "block": ["plain", "separable", "inverted"],
        "expansion": [2, 3, 4],
        "head": ["mean", "grid"],
        "head_width": [16, 32, 64, 128],
        "learning_rate": [5e-4, 1e-3, 2e-3, 4e-3, 8e-3],
        "weight_decay": [0.0, 1e-3, 1e-2, 1e-1],
        "flips": [False, True],
    }
    smallest = {name: choices[0] for name, choices in genes.items()}

    def repair(genome: Genome) -> Genome:
        genome = dict(genome)
        while int(genome["field"]) // int(genome["scale"]) < SIDE_MIN:
            genome["scale"] = int(genome["scale"]) - 1
        if genome["frames"] == 1:
            genome["stem"] = "fold"
        if genome["stem"] == "fold":
            genome["kernel_time"] = 1
        if genome["block"] != "inverted":
            genome["expansion"] = smallest["expansion"]
        for stage in range(int(genome["stages"]) + 1, STAGES_MAX + 1):
            genome[f"depth{stage}"], genome[f"width{stage}"] = (
                smallest[f"depth{stage}"],
                smallest[f"width{stage}"],
            )
        return genome

    return SearchSpace(genes, repair)


class Cnn3d:
    """The space and its networks."""

    baseline = None

    def search_space(self, input_shape: tuple[int, int, int]) -> SearchSpace:
        """The genes."""
        return space(input_shape)

    def build(self, genome: Genome, input_shape: tuple[int, int, int], outputs: int) -> nn.Module:
        """The network of a genome."""
        return Network(genome, input_shape, outputs)

    def supernet(self, space: SearchSpace, input_shape: tuple[int, int, int], outputs: int) -> nn.Module:
        """The weights that all networks of a space share, be it narrowed or not."""
        from mpinas.models.elastic import Supernet  # which is made of what is here

        return Supernet(space, input_shape, outputs)


class Network(nn.Module):
    """The network of one genome. With the stem "fold" it is 2D, otherwise 3D throughout."""

    def __init__(self, genome: Genome, input_shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        frames, field = int(genome["frames"]), int(genome["field"])
        self._folded = genome["stem"] == "fold"
        self._top, self._left = (input_shape[1] - field) // 2, (input_shape[2] - field) // 2
        self._field = field
        self._scale = nn.AvgPool2d(int(genome["scale"])) if int(genome["scale"]) > 1 else nn.Identity()

        dims = 2 if self._folded else 3
        kernel_space, kernel_time = int(genome["kernel_space"]), int(genome["kernel_time"])
        kernel = (kernel_space,) * 2 if self._folded else (kernel_time, kernel_space, kernel_space)
        channels = int(genome["stem_width"])
        stem_stride = (1,) * (dims - 2) + (int(genome["stem_stride"]),) * 2
        layers: list[nn.Module] = [
            _conv(dims, frames if self._folded else 1, channels, kernel, stem_stride),
            nn.ReLU(),
        ]
        for stage in range(1, int(genome["stages"]) + 1):
            width = int(genome[f"width{stage}"])
            for block in range(int(genome[f"depth{stage}"])):
                stride = (2 if block == 0 else 1,) * dims
                layers.append(_block(genome, channels, width, kernel, stride))
                channels = width
        self.features = nn.Sequential(*layers)
        cell, cells = grid(genome) if genome["head"] == "grid" else (0, 1)
        self._pool = nn.AvgPool2d(cell) if cell else nn.AdaptiveAvgPool2d(1)
        head_width = int(genome["head_width"])
        self.head = nn.Sequential(
            nn.Flatten(1), nn.Linear(channels * cells**2, head_width), nn.ReLU(), nn.Linear(head_width, outputs)
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, frames, height, width) uint8 -> (batch, outputs)."""
        rows = slice(self._top, self._top + self._field)
        columns = slice(self._left, self._left + self._field)
        x = self._scale(frames[:, :, rows, columns].float() / 255)  # (b, t, h, w), frames as channels
        if not self._folded:
            x = x.unsqueeze(1)  # (b, 1, t, h, w)
        x = self.features(x)
        if not self._folded:
            x = x.mean(2)  # (b, c, t, h, w) -> (b, c, h, w)
        out: torch.Tensor = self.head(self._pool(x))
        return out


def grid(genome: Genome) -> tuple[int, int]:
    """Side of a cell in pixels of the last stage, and cells along a side: four to seven, fewer in small pictures."""
    side = int(genome["field"]) // int(genome["scale"])
    for stride in (int(genome["stem_stride"]), *(2 for _ in range(int(genome["stages"])))):
        side = -(-side // stride)
    cell = max(1, side // 4)
    return cell, side // cell


class _Block(nn.Module):
    """A body, with a way around it where shapes allow, and ReLU unless what it gives stays linear."""

    def __init__(self, body: nn.Module, *, residual: bool, linear: bool) -> None:
        super().__init__()
        self._residual = residual
        self.body = body
        self.activation = nn.Identity() if linear else nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        out: torch.Tensor = self.activation(x + y if self._residual else y)
        return out


def _block(genome: Genome, inputs: int, outputs: int, kernel: tuple[int, ...], stride: tuple[int, ...]) -> _Block:
    """The block of the genome's kind: each convolution with its normalisation, and ReLU between them."""
    dims, kind = len(kernel), genome["block"]
    point = (1,) * dims
    layers: list[nn.Module]
    if kind == "plain":
        layers = [_conv(dims, inputs, outputs, kernel, stride)]
    elif kind == "separable":
        layers = [
            _conv(dims, inputs, inputs, kernel, stride, groups=inputs),
            _conv(dims, inputs, outputs, point, point),
        ]
    else:
        wide = inputs * int(genome["expansion"])
        layers = [
            _conv(dims, inputs, wide, point, point),
            _conv(dims, wide, wide, kernel, stride, groups=wide),
            _conv(dims, wide, outputs, point, point),
        ]
    body = layers[0] if len(layers) == 1 else nn.Sequential(*_with_relu_between(layers))
    residual = inputs == outputs and set(stride) == {1}
    return _Block(body, residual=residual, linear=kind == "inverted")


def _with_relu_between(layers: list[nn.Module]) -> list[nn.Module]:
    return [each for layer in layers for each in (layer, nn.ReLU())][:-1]


def _conv(
    dims: int, inputs: int, outputs: int, kernel: tuple[int, ...], stride: tuple[int, ...], groups: int = 1
) -> nn.Sequential:
    """Convolution and batch normalisation in two or three dimensions, padded so that stride 1 keeps the size."""
    conv: type[nn.Module] = nn.Conv2d if dims == 2 else nn.Conv3d
    norm: type[nn.Module] = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
    padding = tuple(size // 2 for size in kernel)
    return nn.Sequential(
        conv(inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, bias=False),
        norm(outputs),
    )
