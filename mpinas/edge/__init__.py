"""The search's side of the edge bridge: candidates in, latencies out, and the bridge that a job starts
itself.

May import `edge_bridge` (client, protocol, keys) and zmq; must not know torch, MPI, Horovod or how the
coordinator decides: it speaks in the events of `coordination`.
"""

from __future__ import annotations

from edge_bridge.wire.quantities import Settings as MeasurementSettings
from mpinas.edge.client import (
    DeviceBack,
    DeviceLost,
    EdgeClient,
    EdgeEvent,
    Measured,
    MeasurementFailed,
    open_edge,
)

__all__ = [
    "DeviceBack",
    "DeviceLost",
    "EdgeClient",
    "EdgeEvent",
    "Measured",
    "MeasurementFailed",
    "MeasurementSettings",
    "open_edge",
]
