"""Who goes by predicted latencies, and when: so that trainers do not wait for a device that is slow or gone.

Must not know commands or how anything is predicted. Why it is so: docs/adr/0008.
"""

from __future__ import annotations

from mpinas.coordination import events as ev
from mpinas.coordination.agenda import Agenda
from mpinas.coordination.ledger import BASELINE
from mpinas.coordination.lifecycle import State
from mpinas.coordination.limits import would_break_limit
from mpinas.coordination.pipeline import Pipeline
from mpinas.coordination.predictor import LatencyPredictor
from mpinas.search import SearchSpace


class Forecast:
    """Of one job. `watch` what trainers do after every event; `due` says who is to go by predictions now."""

    def __init__(self, agenda: Agenda, pipeline: Pipeline, space: SearchSpace) -> None:
        self._agenda = agenda
        self._plan, self._ledger = agenda.plan, agenda.ledger
        self._pipeline = pipeline
        self._predictor = LatencyPredictor(space, self._ledger.terms.devices, self._plan.seed)
        #: Since when trainers have had nothing to do though there is work on its way to them.
        self._starved_since: float | None = None
        #: Exporter and devices cannot keep up: some candidates are predicted ahead of need.
        self._ahead = False

    def watch(self, time: float) -> None:
        """Note since when trainers wait for candidates that are on their way."""
        waits = self._ledger.idle and not self._ledger.standing[State.READY] and self._agenda.to_begin() > 0
        if not waits:
            self._starved_since = None
        elif self._starved_since is None:
            self._starved_since = time

    def next_s(self) -> float | None:
        """When trainers will have waited long enough, if they wait."""
        return None if self._starved_since is None else self._starved_since + self._patience_s()

    def due(self, time: float) -> list[ev.Predicted]:
        """Who goes by predictions from now on; whoever would break a limit by them waits for the device to say so."""
        wanted = self._wanted(time)
        if wanted <= 0:
            return []
        standing, candidates = self._ledger.standing, self._ledger.candidates
        # Those that a device will come to last: the others are measured in time, most of them.
        waiting = [
            id_ for id_ in (*reversed(standing[State.PROPOSED]), *reversed(standing[State.MEASURING]))
            if id_ not in self._agenda.set_aside and id_ != BASELINE
        ]  # fmt: skip
        if waiting:
            self._learn()
        found: list[ev.Predicted] = []
        while self._predictor.ready and waiting and len(found) < wanted:
            missing = wanted - len(found)
            some, waiting = waiting[:missing], waiting[missing:]
            predicted = self._predictor.predict([candidates[each].genome for each in some])
            for id_, latencies_s in zip(some, predicted, strict=True):
                medians_s = {device: median_s for device, (median_s, _) in latencies_s.items()}
                if would_break_limit(medians_s, self._ledger.terms):
                    self._agenda.set_aside.add(id_)
                else:
                    found.append(ev.Predicted(id_, latencies_s))
        self._ahead = self._ahead or bool(found)
        return found

    def _wanted(self, time: float) -> int:
        """How many: for trainers that have waited long enough, and, where devices have proved too slow for them, for
        those that will be free next."""
        self.watch(time)
        self._ahead = self._ahead and self._pipeline.behind
        since, group_size = self._starved_since, self._plan.group_size
        if since is not None and (self._ahead or time - since >= self._patience_s()):
            return max(1, len(self._ledger.idle) // group_size)
        if self._ahead and self._agenda.to_begin() > 0:
            groups = max(1, self._ledger.trainers_able // group_size)
            return 1 + groups // 16 - self._ledger.count(State.READY)
        return 0

    def _learn(self) -> None:
        if not self._predictor.wants(self._ledger.measured):
            return
        devices = self._ledger.terms.devices
        # the baseline's genome is of no space
        measured = [it for it in self._ledger.candidates.values() if it.id != BASELINE and it.is_measured_on(devices)]
        self._predictor.learn(
            [it.genome for it in measured],
            {device: [it.readings[device].latency_s for it in measured] for device in devices},
        )

    def _patience_s(self) -> float:
        """How long trainers wait: not at all for a device that is gone."""
        return 0.0 if self._ledger.devices_lost else self._plan.starved_s
