"""How long each phase of a model's work may take, and when to say again that it is still going on.

Pure: times come in, lines come out. Must not know processes or clocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_bridge.measuring.benchmark import MOST_PAUSE_S
from edge_bridge.measuring.lines import FailureLine, PhaseLine
from edge_bridge.wire.protocol import Phase
from edge_bridge.wire.quantities import QualitySettings, Settings

#: A phase that goes on is told again after so long, except "measuring", which is left in peace.
HEARTBEAT_S = 2.0
#: Who looked away for so long may have been stopped itself, the model's process too: that time is held against nobody.
LOOKED_AWAY_S = 10.0


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What a model may take.

    Attributes
    ----------
    memory_bytes
        On the CPU, address space of the model's process; elsewhere (CUDA reserves more than there is) its resident
        memory. 0 for no limit.
    load_s
        Building the session; and once more for the first run at each batch size, in which engines are built.
    stall_s
        Beyond the time that the settings give to warm-up, measuring or judging: one run may take so long.
    """

    memory_bytes: int = 0
    load_s: float = 120.0
    stall_s: float = 30.0


def phase_limit_s(phase: Phase, settings: Settings | QualitySettings, limits: ChildLimits) -> float:
    """How long a phase may last before its model is given up."""
    if phase in ("queued", "loading"):
        return limits.load_s
    if isinstance(settings, QualitySettings):
        return settings.max_seconds + limits.stall_s
    if phase == "warming":
        return settings.warmup_max_seconds + limits.stall_s
    if phase == "cooling":
        return min(settings.pause_seconds * 2.0 ** (settings.attempts - 1), MOST_PAUSE_S) + limits.stall_s
    return settings.max_seconds + limits.stall_s


def work_limit_s(settings: Settings | QualitySettings, limits: ChildLimits) -> float:
    """How long all phases together may last: a process that goes from phase to phase for ever is given up too."""
    batches = 1 if isinstance(settings, QualitySettings) else len(settings.batches)
    # The session, and the first run at each batch size.
    beginning_s = phase_limit_s("queued", settings, limits) + (1 + batches) * limits.load_s
    if isinstance(settings, QualitySettings):
        return beginning_s + phase_limit_s("judging", settings, limits)
    phases: tuple[Phase, ...] = ("warming", "measuring", "cooling")
    attempt_s = sum(phase_limit_s(phase, settings, limits) for phase in phases)
    return beginning_s + batches * settings.attempts * attempt_s


class Watch:
    """Follows one model's work; to be looked at often. Times in seconds of any monotonic clock."""

    def __init__(self, settings: Settings | QualitySettings, limits: ChildLimits, now_s: float) -> None:
        self._settings = settings
        self._limits = limits
        self._start_s = self._looked_s = now_s
        self._line = PhaseLine("queued")
        self._since_s = now_s
        self._told_s = now_s

    def enter(self, line: PhaseLine, now_s: float) -> None:
        """The work is in this phase from now on."""
        self._look(now_s)
        self._line, self._since_s, self._told_s = line, now_s, now_s

    def due(self, now_s: float) -> PhaseLine | FailureLine | None:
        """Return what is to be said now: that the phase goes on, or that it took too long."""
        self._look(now_s)
        phase = self._line.phase
        limit_s = phase_limit_s(phase, self._settings, self._limits)
        if now_s > self._since_s + limit_s:
            return FailureLine("time-out", f"{phase} took more than {limit_s:g} s")
        whole_s = work_limit_s(self._settings, self._limits)
        if now_s > self._start_s + whole_s:
            return FailureLine("time-out", f"the work took more than {whole_s:g} s in all")
        if phase == "measuring" or now_s < self._told_s + HEARTBEAT_S:
            return None
        self._told_s = now_s
        return PhaseLine(phase, now_s - self._since_s, self._line.batch, self._line.attempt)

    def _look(self, now_s: float) -> None:
        away_s, self._looked_s = now_s - self._looked_s, now_s
        if away_s > LOOKED_AWAY_S:
            self._start_s += away_s
            self._since_s += away_s
