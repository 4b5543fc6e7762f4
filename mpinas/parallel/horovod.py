"""The collectives of a group as a Horovod world, made on a sub-communicator that rank 0 of the job is no part of."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from mpinas.errors import UserError


def check() -> None:
    """Raise UserError where Horovod cannot be used."""
    try:
        import horovod.torch as hvd
    except ImportError as error:
        raise UserError(f"Horovod cannot be used ({str(error).splitlines()[0]}): run `make setup`") from None
    if not hvd.mpi_built():
        raise UserError("this Horovod was built without MPI: remove it and run `make setup`")


class HorovodCollectives:
    """`comm`: the mpi4py communicator of the group. To be used between `open` and `close`.

    Every collective has a name, by which Horovod remembers it: it would number those without one, each a new one.
    """

    def __init__(self, comm: Any) -> None:
        import horovod.torch as hvd

        self._hvd = hvd
        self._comm = comm
        self._is_open = False
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    def open(self) -> None:
        """Make the Horovod world; all members together."""
        self._hvd.init(comm=self._comm)
        self._is_open = True
        if self._hvd.size() != self.size:
            raise RuntimeError(f"Horovod made a world of {self._hvd.size()}, the group has {self.size}")

    def close(self) -> None:
        """Leave the Horovod world. Peers that wait in a collective get a HorovodInternalError at once."""
        if self._is_open:
            self._hvd.shutdown()
            self._is_open = False

    def distribute(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
        """DistributedOptimizer over the group, parameters and buffers broadcast from the leader.

        All gradients travel as one message: left to itself, Horovod joins those that happen to be ready at the same
        time, and with three ranks or more the sums then differ in their last bits from one training to the next.
        """
        self.broadcast(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Horovod 0.28.1 calls torch in ways that are deprecated
            distributed: torch.optim.Optimizer = self._hvd.DistributedOptimizer(
                optimizer, named_parameters=model.named_parameters(), op=self._hvd.Average, groups=1
            )
        return distributed

    def broadcast(self, model: nn.Module) -> None:
        """Make parameters and buffers those of the leader."""
        self._hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    def broadcast_bytes(self, data: bytes) -> bytes:
        """The leader's `data`; what the others pass is ignored."""
        mine = data if self.rank == 0 else b""
        length = self._hvd.broadcast(torch.tensor([len(mine)]), root_rank=0, name="length")
        buffer = torch.frombuffer(bytearray(mine or int(length)), dtype=torch.uint8)
        return self._hvd.broadcast(buffer, root_rank=0, name="bytes").numpy().tobytes()  # type: ignore[no-any-return]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over the group."""
        total: torch.Tensor = self._hvd.allreduce(tensor, op=self._hvd.Sum, name=f"sum.{tensor.numel()}")
        return total

    def average_buffers(self, model: nn.Module) -> None:
        """Make all floating-point buffers the mean over the group, in one message."""
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        if not buffers:
            return
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        mean = self._hvd.allreduce(flat, op=self._hvd.Average, name="buffers")
        for buffer, part in zip(buffers, mean.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))
