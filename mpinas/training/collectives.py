"""What the ranks of a group do together; Horovod's implementation is in `parallel`, that for one process here."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn


class Collectives(Protocol):
    """Every method is called by all ranks of the group in the same order; rank 0 is the leader."""

    rank: int
    size: int

    def distribute(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
        """An optimizer whose step uses the mean of all ranks' gradients; parameters and buffers become the leader's."""
        ...

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over the ranks."""
        ...

    def average_buffers(self, model: nn.Module) -> None:
        """Make all floating-point buffers (BatchNorm statistics) the mean over the ranks."""
        ...

    def broadcast(self, model: nn.Module) -> None:
        """Make parameters and buffers those of the leader."""
        ...

    def broadcast_bytes(self, data: bytes) -> bytes:
        """The leader's `data`, some bytes at least; what the others pass is ignored."""
        ...


class SerialCollectives:
    """A group of one."""

    rank = 0
    size = 1

    def distribute(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
        """Nothing to share."""
        return optimizer

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tensor

    def average_buffers(self, model: nn.Module) -> None:
        """Nothing to average."""

    def broadcast(self, model: nn.Module) -> None:
        """Nothing to share."""

    def broadcast_bytes(self, data: bytes) -> bytes:
        """The data themselves."""
        return data
