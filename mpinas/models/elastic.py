"""One set of weights for all networks of the space `cnn3d`: a supernet, and the subnets that are parts of it.

A subnet is a `cnn3d.Network` whose tensors are cut out of the shared ones, so what a genome means is said in `cnn3d`
alone. Its channels are the first of a layer, those that an inverted residual expands to as well; its kernel is the
centre of the largest kernel, its blocks are the first of a stage, its frames are those in the middle of the window;
resolution has no weights. Networks share no weights, or only some, where their features mean something else: see
`Supernet`.

Sources: H. Cai et al., Once-for-All, ICLR 2020; J. Yu et al., BigNAS, ECCV 2020.
Must not know how the weights are trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.func import functional_call

from mpinas.models import cnn3d
from mpinas.search import Genome, SearchSpace, Value

#: Genes whose choices divide the space into families, beside `frames`, on which the stem may depend.
_FAMILY = ("stem", "block", "head")
#: Where a network's head has its first fully connected layer.
_HIDDEN = 1
#: Genes whose larger values make a network do less.
_SHRINKING = ("scale", "stem_stride")


def largest(space: SearchSpace) -> tuple[Genome, ...]:
    """Of each family (stem, block and head) the network that does most: most weights, most pixels, most frames."""
    return _extremes(space, max, min)


def smallest(space: SearchSpace) -> tuple[Genome, ...]:
    """Of each family the network that does least, in the order of `largest`."""
    return _extremes(space, min, max)


class Supernet(nn.Module):
    """The weights of every network of `space`: those of the largest, and what these lack.

    Shared by all networks with the same stem ("fold" or "conv3d"): the stem; with the same stem and kind of block: the
    stages. The first fully connected layer reads what another stage found where there are fewer stages, so there is a
    head for each number of stages, kind of block and stem. A grid of cells reads the picture through the weights of the
    finest grid: it takes from each place's weights the share of the place that the cell covers, so that the same spot
    of the camera meets the same weights whatever the field, the scale and the strides.

    What the first fully connected layer gives is normalised over the batch, as convolutions are. Its inputs are not
    negative, so each channel, place or neuron that a subnet lacks would move all its sums by far more than what it
    has to tell, and shared weights would learn little but to answer the mean whatever the subnet. `cnn3d` has no such
    normalisation: `settle` makes it part of the layer's weights once its statistics are taken.

    Parameters
    ----------
    space
        `cnn3d.space(input_shape)`, narrowed or not: what its genomes cannot reach gets no weights.
    input_shape
        Frames, height, width of a sample.
    """

    def __init__(self, space: SearchSpace, input_shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        self.space = space
        self._input_shape, self.outputs = input_shape, outputs
        #: Side in camera pixels of the area that a head's finest grid divides.
        self._side = max(int(value) for value in _choices(space, "field"))
        #: Stem -> most frames, for "fold" the input channels of the stem.
        self._frames: dict[str, int] = {}
        #: Head -> cells along a side of its grid.
        self._cells: dict[str, int] = {}
        self.stems, self.stages, self.heads = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        #: Which of the largest genomes has turned out best, by its place; it goes with the weights.
        self.register_buffer("strongest", torch.zeros((), dtype=torch.int64))
        for genome in largest(space):
            self._allocate(genome)

    @property
    def teacher(self) -> Genome:
        """The network to learn from: of the largest, that which has turned out best."""
        return largest(self.space)[int(self.get_buffer("strongest"))]

    def answer(self, constant: torch.Tensor) -> None:
        """Make every subnet give `constant`, (outputs,), whatever it sees, until it learns."""
        with torch.no_grad():
            for head in self.heads.values():
                head.get_parameter("last.weight").zero_()
                head.get_parameter("last.bias").copy_(constant)

    def _allocate(self, genome: Genome) -> None:
        """Weights for the family of a largest genome, as fresh as those of a network by itself."""
        features = list(cnn3d.Network(genome, self._input_shape, self.outputs).features)
        stem, blocks = str(genome["stem"]), iter(features[2:])
        if stem not in self.stems:
            self.stems[stem] = features[0]
            self._frames[stem] = int(genome["frames"])
        if _trunk(genome) not in self.stages:
            self.stages[_trunk(genome)] = nn.ModuleList(
                nn.ModuleList(itertools.islice(blocks, int(genome[f"depth{stage}"])))
                for stage in range(1, int(genome["stages"]) + 1)
            )
        for stages in _choices(self.space, "stages"):
            shorter = {**genome, "stages": stages}
            cells, channels = self._finest(shorter), int(genome[f"width{stages}"])
            self._cells[_head(shorter)] = cells
            width = int(genome["head_width"])
            self.heads[_head(shorter)] = nn.ModuleDict(
                {"hidden": _normalised(channels * cells**2, width), "last": nn.Linear(width, self.outputs)}
            )

    def _finest(self, genome: Genome) -> int:
        """Most cells along a side among the networks that use the head of `genome`."""
        if genome["head"] != "grid":
            return 1
        names = ("field", "scale", "stem_stride")
        values = itertools.product(*(_choices(self.space, name) for name in names))
        reached = (self.space.repair({**genome, **dict(zip(names, each, strict=True))}) for each in values)
        return max(cnn3d.grid(each)[1] for each in reached)

    def forward(self, frames: torch.Tensor, genome: Genome) -> torch.Tensor:
        """What the subnet of `genome` makes of (batch, its frames, height, width) uint8: (batch, outputs).

        In training mode the subnet's part of the BatchNorm statistics moves. ValueError: no genome of the space.
        """
        network = self._empty(genome).train(self.training)
        out: torch.Tensor = functional_call(network, self._parts(genome, network), (frames,))
        return out

    def subnet(self, genome: Genome) -> cnn3d.Network:
        """The network of `genome` with its own copy of the weights, BatchNorm statistics as they are.

        It computes what `forward` does. Its head is normalised; `settle` makes it a network like any other of the
        space. ValueError: no genome of the space.
        """
        network = self._empty(genome)
        copies = {
            name: part.detach().clone(memory_format=torch.contiguous_format)
            for name, part in self._parts(genome, network).items()
        }
        network.load_state_dict(copies, assign=True)
        return network.train(self.training)

    def _empty(self, genome: Genome) -> cnn3d.Network:
        """The network of `genome`, its head normalised: shapes, no numbers, nothing drawn from torch's generator."""
        if self.space.repair(genome) != genome:
            raise ValueError(f"not of the supernet's space: {genome}")
        with torch.device("meta"):
            network = cnn3d.Network(genome, self._input_shape, self.outputs)
            hidden = network.head[_HIDDEN]
            assert isinstance(hidden, nn.Linear)
            network.head[_HIDDEN] = _normalised(hidden.in_features, hidden.out_features)
        return network

    def _parts(self, genome: Genome, network: cnn3d.Network) -> dict[str, torch.Tensor]:
        """Name of each tensor of `network` -> the part of the shared weights that it is; gradients flow back."""
        parts = self._head_parts(genome)
        for at, name in _places(genome):
            shared = self.get_submodule(name).state_dict(keep_vars=True)
            for tail, own in network.get_submodule(at).state_dict().items():
                parts[f"{at}.{tail}"] = _cut(shared[tail], own.shape)
        if genome["stem"] == "fold":
            weight = self.get_submodule("stems.fold.0").get_parameter("weight")
            first = self._first_frame(int(genome["frames"]))
            used = weight[:, first : first + int(genome["frames"])]  # (c, frames, h, w)
            at = "features.0.0.weight"
            parts[at] = _cut(used, network.get_parameter(at).shape)
        return parts

    def _first_frame(self, frames: int) -> int:
        """Which input channel of the folding stem sees the first of `frames` in the middle of the window."""
        window = self._input_shape[0]
        return (window - frames) // 2 - (window - self._frames["fold"]) // 2

    def _head_parts(self, genome: Genome) -> dict[str, torch.Tensor]:
        """The head's tensors: the first channels and neurons, and of a grid's places what the cells cover."""
        key, width = _head(genome), int(genome["head_width"])
        channels = int(genome[f"width{genome['stages']}"])
        head = self.heads.get_submodule(key)
        weight: torch.Tensor = head.get_parameter("hidden.0.weight")
        if (cells := self._cells[key]) > 1:
            weight = weight.view(weight.shape[0], -1, cells, cells)  # (h, c * y * x) -> (h, c, y, x)
            cover = self._cover(genome, cells).to(weight)
            weight = cover @ weight[:width, :channels] @ cover.T
        norm = head.get_submodule("hidden.1").state_dict(keep_vars=True)
        return {
            "head.1.0.weight": weight[:width, :channels].flatten(1),  # (h, c, y, x) -> (h, c * y * x)
            **{f"head.1.1.{name}": each[:width] if each.ndim else each for name, each in norm.items()},
            "head.3.weight": head.get_parameter("last.weight")[:, :width],
            "head.3.bias": head.get_parameter("last.bias"),
        }

    def _cover(self, genome: Genome, shared: int) -> torch.Tensor:
        """(cells, shared): which share of each of the `shared` places along a side a cell of the subnet covers."""
        cell, cells = cnn3d.grid(genome)
        pixels = cell * int(genome["scale"]) * int(genome["stem_stride"]) * 2 ** int(genome["stages"])
        field, place = int(genome["field"]), self._side / shared
        margin = (self._side - field) / 2
        edges = margin + (torch.arange(cells + 1) * pixels).clamp(max=field)
        places = torch.arange(shared + 1) * place
        low = torch.maximum(edges[:-1, None], places[None, :-1])
        high = torch.minimum(edges[1:, None], places[None, 1:])
        return (high - low).clamp(min=0) / place


def settle(network: cnn3d.Network) -> cnn3d.Network:
    """The same network, in place, with the normalisation of its head made part of the head's weights.

    In evaluation mode it computes what it did, by the statistics that it has: take them before. A network without that
    normalisation is left as it is.
    """
    hidden = network.head[_HIDDEN]
    if not isinstance(hidden, nn.Sequential):
        return network
    linear, norm = hidden
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()  # (h,)
        plain = nn.Linear(linear.in_features, linear.out_features, device="meta")
        weights = {"weight": linear.weight * scale[:, None], "bias": norm.bias - norm.running_mean * scale}
    plain.load_state_dict(weights, assign=True)
    network.head[_HIDDEN] = plain.train(network.training)
    return network


def readout(network: cnn3d.Network) -> nn.Linear:
    """The layer that makes the outputs out of what the others have found."""
    last = network.head[-1]
    assert isinstance(last, nn.Linear)
    return last


def _normalised(inputs: int, outputs: int) -> nn.Sequential:
    """A fully connected layer and its normalisation, whose bias is the layer's."""
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs))


def _extremes(
    space: SearchSpace, most: Callable[[Iterable[Value]], Value], least: Callable[[Iterable[Value]], Value]
) -> tuple[Genome, ...]:
    """One genome of each family, with the `most` of what makes a network large and the `least` of what makes it small.

    Families in the reverse order of their names, so that cheap ones come first. What a genome becomes by repair counts:
    one frame has no time axis.
    """
    extreme = {
        gene.name: (least if gene.name in _SHRINKING else most)(gene.choices) if gene.ordered else gene.choices[0]
        for gene in space.genes
    }
    frames = sorted(_choices(space, "frames"), key=int, reverse=most is max)
    found: dict[tuple[Value, ...], Genome] = {}
    for each in itertools.product(frames, *(_choices(space, name) for name in _FAMILY)):
        genome = space.repair({**extreme, **dict(zip(("frames", *_FAMILY), each, strict=True))})
        found.setdefault(tuple(genome[name] for name in _FAMILY), genome)
    return tuple(found[family] for family in sorted(found, key=repr, reverse=True))


def _choices(space: SearchSpace, name: str) -> tuple[Value, ...]:
    return next(gene.choices for gene in space.genes if gene.name == name)


def _trunk(genome: Genome) -> str:
    return f"{genome['stem']}-{genome['block']}"


def _head(genome: Genome) -> str:
    return f"{_trunk(genome)}-{genome['head']}-{genome['stages']}"


def _places(genome: Genome) -> list[tuple[str, str]]:
    """(name in the network, name in the supernet) of the stem and of each block."""
    blocks = [(i, j) for i in range(int(genome["stages"])) for j in range(int(genome[f"depth{i + 1}"]))]
    return [
        ("features.0", f"stems.{genome['stem']}"),
        *((f"features.{2 + at}", f"stages.{_trunk(genome)}.{i}.{j}") for at, (i, j) in enumerate(blocks)),
    ]


def _cut(shared: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The first channels of the first two axes, the centre of the others, which are those of a kernel."""
    for axis, (length, wanted) in enumerate(zip(shared.shape, shape, strict=True)):
        start = (length - wanted) // 2 if axis >= 2 else 0
        shared = shared.narrow(axis, start, wanted)
    return shared
