"""An order on its way to the measuring child: what is to be done, and the files that go with it.

The files have no name and lie in memory: nothing touches the disk, and they are gone with the last process that has
them open. Must not know processes.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from edge_bridge.measuring.lines import JudgeOrder, MeasureOrder, Order, encode_order
from edge_bridge.wire.quantities import Profile, QualitySettings, Settings


@dataclass(slots=True)
class Parcel:
    """An order, and open files with the model and the shard; to be closed by whoever holds it last."""

    data: bytes
    files: tuple[int, int]

    def send(self, to: socket.socket) -> None:
        """Hand the order and its files over at once, or raise OSError; closes this parcel in any case."""
        try:
            socket.send_fds(to, [self.data], list(self.files), socket.MSG_DONTWAIT)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the files."""
        for each in self.files:
            os.close(each)


def order_of(settings: Settings | QualitySettings, profile: Profile, memory_bytes: int) -> Order:
    """Return the order for these settings."""
    if isinstance(settings, QualitySettings):
        return JudgeOrder(settings=settings, profile=profile, memory_limit_bytes=memory_bytes)
    return MeasureOrder(settings=settings, profile=profile, memory_limit_bytes=memory_bytes)


def parcel_of(order: Order, model: bytes, shard: bytes) -> Parcel:
    """Copy model and shard into files without a name; OSError when there is no memory for them."""
    files: list[int] = []
    try:
        for name, content in (("model", model), ("shard", shard)):
            files.append(os.memfd_create(name, os.MFD_CLOEXEC))
            left = memoryview(content)
            while left:
                left = left[os.write(files[-1], left) :]
    except OSError:
        for each in files:
            os.close(each)
        raise
    return Parcel(encode_order(order), (files[0], files[1]))
