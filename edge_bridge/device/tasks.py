"""The tasks that wait on the device: checked when they come, few, first come first served.

Must not know sockets, the store or how a model is measured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from edge_bridge.errors import ProtocolError
from edge_bridge.wire.protocol import Message, Reason, Task, broken_identity
from edge_bridge.wire.quantities import QualitySettings, Settings

#: A relay gives a device one task at a time; one that goes on giving is refused beyond these.
MOST_TASKS = 16
MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Job:
    """A task whose parts belong together: what the measurer is to be given."""

    request_id: str
    model: bytes
    settings: Settings | QualitySettings
    shard: bytes = b""

    @property
    def size_bytes(self) -> int:
        """Bytes of model and shard."""
        return len(self.model) + len(self.shard)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a task is not taken."""

    reason: Reason
    detail: str


def job_of(task: Task, message: Message) -> Job | Refusal:
    """Check a task and take it apart."""
    broken = broken_identity(task, message.payload)
    if broken is not None:
        return Refusal("bad-digest", broken)
    try:
        settings = task.decoded_settings() if task.work == "latency" else task.decoded_quality_settings()
    except ProtocolError as error:
        return Refusal("unsupported", str(error))
    payload = message.joined()
    if isinstance(settings, Settings):
        return Job(task.request_id, payload, settings)
    model_bytes = task.size_bytes if task.model_bytes is None else task.model_bytes
    return Job(task.request_id, payload[:model_bytes], settings, payload[model_bytes:])


@dataclass(slots=True)
class Waiting:
    """The jobs that wait for the measurer."""

    _jobs: deque[Job] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def __contains__(self, request_id: str) -> bool:
        return any(job.request_id == request_id for job in self._jobs)

    def has_room(self, size_bytes: int) -> bool:
        """Whether a job of this size may wait too; the first may always."""
        held_bytes = sum(job.size_bytes for job in self._jobs)
        return not self._jobs or (len(self._jobs) < MOST_TASKS and held_bytes + size_bytes <= MOST_BYTES)

    def add(self, job: Job) -> None:
        """Put a job last."""
        self._jobs.append(job)

    def take(self) -> Job:
        """Remove and return the first."""
        return self._jobs.popleft()

    def cancel(self, request_id: str) -> None:
        """Remove a job, if it is here."""
        self._jobs = deque(job for job in self._jobs if job.request_id != request_id)
