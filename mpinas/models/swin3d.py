"""Search spaces `swin3d` and `swin3d-free`: video Swin transformers, the published one for melt pools among them.

Attention within windows of space and time, shifted from block to block; a quarter of the places after each stage.
Source: Z. Liu et al., Video Swin Transformer, CVPR 2022, and Swin Transformer, ICCV 2021. All sizes but the batch are
known when a network is built, and so is who sees whom.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from mpinas.models.protocol import MakeNetwork
from mpinas.search import Genome, SearchSpace

STAGES = 4
#: Frames, height, width.
Size = tuple[int, int, int]
#: What the published search keeps: the crop is enlarged to this side, and windows are so large.
SIDE, WINDOW_TIME, WINDOW_SPACE = 224, 8, 7
#: The learning rate in half decades, and falling in steps (of epochs) as published.
_TRAINING: dict[str, list[float] | list[int] | list[bool]] = {
    "learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0],
    "step_size": [10, 20, 40],
    "gamma": [0.1, 0.3, 0.5, 0.7, 0.9],
    "weight_decay": [0.0, 1e-3, 1e-2, 1e-1],
    "flips": [False, True],
}
#: Fully connected layers after the mean over all places, before the outputs.
_HEAD = (400, 200)


@dataclass(frozen=True, slots=True)
class Design:
    """All that decides a network's shape. `patch` and `window` as (time, height, width)."""

    frames: int
    side: int
    patch: Size
    embed: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: Size
    mlp_ratio: int


#: The network that people designed for laser speed and power.
BASELINE = Design(
    frames=16, side=SIDE, patch=(2, 4, 4), embed=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24),
    window=(WINDOW_TIME, WINDOW_SPACE, WINDOW_SPACE), mlp_ratio=4,
)  # fmt: skip


class Swin3d:
    """The published space: patch, width, depths, heads and MLP ratio, on the whole picture enlarged to 224 x 224."""

    baseline: str | MakeNetwork = "lpbf-swin"
    #: What the picture is enlarged to. A subclass may have another, and then its own baseline.
    side = SIDE

    def search_space(self, input_shape: Size) -> SearchSpace:
        """The genes."""
        return SearchSpace({**_genes(), **_TRAINING})

    def build(self, genome: Genome, input_shape: Size, outputs: int) -> nn.Module:
        """The network of a genome."""
        return Network(design_of({**genome, "side": self.side}, input_shape), outputs)


class Swin3dFree:
    """The same with fewer frames, smaller pictures and other windows to choose from."""

    baseline = None

    def search_space(self, input_shape: Size) -> SearchSpace:
        """The genes. `side`: of the picture after scaling; more than the camera gave adds no information."""
        frames, height, width = input_shape
        seen = min(height, width)
        genes: dict[str, list[float] | list[int] | list[bool]] = {
            "frames": [n for n in (1, 2, 4, 8, 16, 32) if n < frames] + [frames],
            "side": sorted({max(8, int(seen * share) // 8 * 8) for share in (0.25, 0.5, 0.75, 1.0)}),
            "window_time": [1, 2, 4, 8],
            "window_space": [2, 4, 7],
        }
        return SearchSpace({**genes, **_genes(), **_TRAINING}, _repair_free)

    def build(self, genome: Genome, input_shape: Size, outputs: int) -> nn.Module:
        """The network of a genome."""
        return Network(design_of(genome, input_shape), outputs)


def _genes() -> dict[str, list[int]]:
    return {
        "patch_time": [2, 4], "patch_height": [2, 4], "patch_width": [2, 4],
        "embed": [24, 48],
        **{f"depth{stage}": [1, 2, 4] for stage in range(1, STAGES + 1)},
        **{f"heads{stage}": [3, 6, 12, 24][:stage] for stage in range(1, STAGES + 1)},
        "mlp_ratio": [1, 2, 3, 4],
    }  # fmt: skip


def _repair_free(genome: Genome) -> Genome:
    """Windows of time no longer than there are patches in time."""
    genome = dict(genome)
    if int(genome["frames"]) < int(genome["patch_time"]):
        genome["patch_time"] = 2
    tokens = math.ceil(int(genome["frames"]) / int(genome["patch_time"]))
    while int(genome["window_time"]) > tokens:
        genome["window_time"] = int(genome["window_time"]) // 2
    return genome


def design_of(genome: Genome, input_shape: Size) -> Design:
    """What a genome of either space describes."""
    return Design(
        frames=int(genome.get("frames", input_shape[0])),
        side=int(genome.get("side", SIDE)),
        patch=(int(genome["patch_time"]), int(genome["patch_height"]), int(genome["patch_width"])),
        embed=int(genome["embed"]),
        depths=tuple(int(genome[f"depth{stage}"]) for stage in range(1, STAGES + 1)),
        heads=tuple(int(genome[f"heads{stage}"]) for stage in range(1, STAGES + 1)),
        window=(
            int(genome.get("window_time", WINDOW_TIME)),
            int(genome.get("window_space", WINDOW_SPACE)),
            int(genome.get("window_space", WINDOW_SPACE)),
        ),
        mlp_ratio=int(genome["mlp_ratio"]),
    )


class Network(nn.Module):
    """A video Swin transformer for one channel, and fully connected layers on the mean over all places."""

    def __init__(self, design: Design, outputs: int) -> None:
        super().__init__()
        self._side = design.side
        self.embed = nn.Conv3d(1, design.embed, design.patch, stride=design.patch)
        self._padding = _padding((design.frames, design.side, design.side), design.patch)
        self.embed_norm = nn.LayerNorm(design.embed)
        size = _divided((design.frames, design.side, design.side), design.patch)
        channels = design.embed
        stages: list[nn.Module] = []
        for stage, (depth, heads) in enumerate(zip(design.depths, design.heads, strict=True)):
            if stage:
                stages.append(_Merging(size, channels))
                size, channels = (size[0], -(-size[1] // 2), -(-size[2] // 2)), 2 * channels
            for block in range(depth):
                stages.append(_Block(size, channels, heads, design.window, design.mlp_ratio, shifted=block % 2 == 1))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(channels)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((channels, *_HEAD)):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(_HEAD[-1], outputs))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, frames, height, width) uint8 -> (batch, outputs)."""
        x = frames.float() / 255
        if x.shape[2:] != (self._side, self._side):
            x = functional.interpolate(x, size=(self._side, self._side), mode="bilinear", align_corners=False)
        x = functional.pad(x.unsqueeze(1), self._padding)
        x = self.embed_norm(self.embed(x).permute(0, 2, 3, 4, 1))  # (b, 1, t, h, w) -> (b, t, h, w, c)
        x = self.norm(self.stages(x)).mean((1, 2, 3))
        out: torch.Tensor = self.head(x)
        return out


class _Merging(nn.Module):
    """Four neighbours in space become one, of twice the channels."""

    def __init__(self, size: Size, channels: int) -> None:
        super().__init__()
        self._padding = _padding(size, (1, 2, 2))
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.pad(x, (0, 0, *self._padding))
        corners = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        out: torch.Tensor = self.reduction(self.norm(torch.cat(corners, -1)))
        return out


class _Block(nn.Module):
    """Attention within windows, then a network of two layers for each place; both beside a way around."""

    def __init__(
        self, size: Size, channels: int, heads: int, window: Size, mlp_ratio: int, *, shifted: bool
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = _WindowAttention(size, channels, heads, window, shifted=shifted)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp_ratio * channels), nn.GELU(), nn.Linear(mlp_ratio * channels, channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


class _WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for each relative position.

    A window is never larger than the picture, and where it is as large it is not shifted.
    """

    index: torch.Tensor
    regions: torch.Tensor | None

    def __init__(self, size: Size, channels: int, heads: int, window: Size, *, shifted: bool) -> None:
        super().__init__()
        self._heads = heads
        fitting = tuple(min(each, limit) for each, limit in zip(window, size, strict=True))
        self._window: Size = (fitting[0], fitting[1], fitting[2])
        self._shift = tuple(
            each // 2 if shifted and each < limit else 0 for each, limit in zip(window, size, strict=True)
        )
        self._size, self._padding = size, _padding(size, self._window)
        self._counts = _divided(size, self._window)
        self.bias = nn.Parameter(torch.empty(math.prod(2 * each - 1 for each in window), heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.projection = nn.Linear(channels, channels)
        self.register_buffer("index", _relative_positions(self._window, window), persistent=False)
        self.register_buffer("regions", self._regions() if any(self._shift) else None, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, time, height, width, channels) -> the same."""
        channels = x.shape[-1]
        x = functional.pad(x, (0, 0, *self._padding))
        if self.regions is not None:
            x = torch.roll(x, [-each for each in self._shift], (1, 2, 3))
        (nt, nh, nw), (wt, wh, ww) = self._counts, self._window
        windows, places = nt * nh * nw, wt * wh * ww
        x = x.reshape(-1, nt, wt, nh, wh, nw, ww, channels).permute(0, 1, 3, 5, 2, 4, 6, 7)
        x = x.reshape(-1, windows, places, channels)
        qkv = self.qkv(x).reshape(-1, windows, places, 3, self._heads, channels // self._heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (b, windows, heads, places, channels of a head)
        scores = (q * (channels // self._heads) ** -0.5) @ k.transpose(-2, -1)
        # by index_select: exported, `[]` becomes an operator that takes no 32-bit indices
        bias = self.bias.index_select(0, self.index.flatten()).reshape(places, places, self._heads).permute(2, 0, 1)
        scores = scores + bias
        if self.regions is not None:
            apart = self.regions[:, None, :, None] != self.regions[:, None, None, :]  # (windows, 1, places, places)
            scores = scores.masked_fill(apart, -100.0)
        x = (scores.softmax(-1) @ v).transpose(2, 3).reshape(-1, nt, nh, nw, wt, wh, ww, channels)
        x = x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, nt * wt, nh * wh, nw * ww, channels)
        if self.regions is not None:
            x = torch.roll(x, list(self._shift), (1, 2, 3))
        t, h, w = self._size
        out: torch.Tensor = self.projection(x[:, :t, :h, :w])
        return out

    def _regions(self) -> torch.Tensor:
        """(windows, places): what a place was next to before the picture was rolled round; others do not attend."""
        padded = [count * each for count, each in zip(self._counts, self._window, strict=True)]
        numbers = torch.zeros(padded, dtype=torch.int64)
        for at, (length, each, shift) in enumerate(zip(padded, self._window, self._shift, strict=True)):
            place = torch.arange(length)
            part = (place >= length - each).long() + (place >= length - shift).long() if shift else 0 * place
            numbers = 3 * numbers + part.reshape([-1 if axis == at else 1 for axis in range(3)])
        (nt, nh, nw), (wt, wh, ww) = self._counts, self._window
        windows = numbers.reshape(nt, wt, nh, wh, nw, ww).permute(0, 2, 4, 1, 3, 5)
        return windows.reshape(nt * nh * nw, wt * wh * ww).to(torch.uint8)


def _relative_positions(fitting: Size, window: Size) -> torch.Tensor:
    """(places, places): the row of the bias table of a window of full size for each pair of places."""
    places = torch.stack(torch.meshgrid(*[torch.arange(each) for each in fitting], indexing="ij")).flatten(1)
    apart = places[:, :, None] - places[:, None, :]  # (3, places, places)
    rows = torch.zeros(apart.shape[1:], dtype=torch.int64)
    for axis, each in enumerate(window):
        rows = rows * (2 * each - 1) + apart[axis] + each - 1
    return rows.to(torch.int32)


def _divided(size: Size, by: Size) -> Size:
    """How many parts of `by` cover `size`."""
    return -(-size[0] // by[0]), -(-size[1] // by[1]), -(-size[2] // by[2])


def _padding(size: Size, by: Size) -> tuple[int, ...]:
    """What `functional.pad` wants to make (…, time, height, width) divisible, at the far ends."""
    missing = [-length % each for length, each in zip(size, by, strict=True)]
    return (0, missing[2], 0, missing[1], 0, missing[0])
