"""The search's side of the edge bridge: candidates in, latencies out, and the bridge that a job starts
itself.

May import `edge_bridge` (client, protocol, keys) and zmq; must not know torch, MPI, Horovod or how the
coordinator decides: it speaks in the events of `coordination`.
"""

from __future__ import annotations

from edge_bridge.wire.quantities import Settings as MeasurementSettings
from mpinas.coordination.events import (
    DeviceBack,
    DeviceLost,
    Doubted,
    Judged,
    JudgingFailed,
    Measured,
    MeasurementFailed,
)
from mpinas.edge.client import EdgeClient, EdgeEvent, open_edge

__all__ = [
    "DeviceBack",
    "DeviceLost",
    "Doubted",
    "EdgeClient",
    "EdgeEvent",
    "Judged",
    "JudgingFailed",
    "Measured",
    "MeasurementFailed",
    "MeasurementSettings",
    "open_edge",
]
