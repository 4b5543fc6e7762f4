"""What is known of a network without training or running it: built and traced with shapes alone, no numbers.

Takes tens of milliseconds a genome, whatever its size. Must not know data, devices or a search.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mpinas.errors import UserError
from mpinas.models import Networks, Shape, baseline_genome, make_space
from mpinas.plugins import in_one_line
from mpinas.search import Genome


class Facts(msgspec.Struct, frozen=True):
    """Of one window.

    Attributes
    ----------
    parameters
        Numbers that are learned.
    flops
        Floating-point operations as torch counts them: two for each multiplication and addition of matrix products and
        convolutions, nothing else.
    bytes
        Of all parameters and buffers.
    activation_bytes
        What the widest operation takes in and gives out, where each is run by itself, in the network's own precision.
    """

    parameters: int
    flops: int
    bytes: int
    activation_bytes: int


def facts_of(genome: Genome, networks: Networks) -> Facts:
    """Facts of the network of a genome."""
    with torch.device("meta"):
        network = networks.build(genome).eval()
        frames = torch.zeros((1, *networks.shape(genome)), dtype=torch.uint8)
    kept = [*network.parameters(), *network.buffers()]
    widest = _Widest(kept)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, widest:
        network(frames)
    return Facts(
        parameters=sum(each.numel() for each in network.parameters()),
        flops=int(counter.get_total_flops()),
        bytes=sum(each.nbytes for each in kept),
        activation_bytes=widest.bytes,
    )


def described(name: str, input_shape: Shape, outputs: int, baseline: str) -> dict[str, Any]:
    """A space as plain values: its genes and size, and its own baseline, or else the one named `baseline`.

    Raises
    ------
    UserError
        The space is unknown, or samples are too small for the baseline.
    """
    space = make_space(name, input_shape)
    genome = baseline_genome(baseline, name)
    try:
        facts = facts_of(genome, Networks(name, input_shape, outputs))
    except UserError:
        raise
    except Exception as error:  # of the user's own network
        why = str(error).partition("\n")[0] if isinstance(error, ValueError) else in_one_line(error)
        raise UserError(f"baseline {genome['baseline']}: {why}") from error
    return {
        "space": name,
        "input_shape": input_shape,
        "genes": {gene.name: gene.choices for gene in space.genes},
        "size": len(space),
        "baseline": {"name": genome["baseline"], **msgspec.structs.asdict(facts)},
    }


class _Widest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches every operation for the one with the most bytes of activations; `kept` is none."""

    def __init__(self, kept: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept = {_storage(each) for each in kept}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = (leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor))
        # views share memory: what has the same storage counts once
        sizes = {_storage(each): each.untyped_storage().nbytes() for each in tensors}
        self.bytes = max(self.bytes, sum(size for storage, size in sizes.items() if storage not in self._kept))
        return out


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
