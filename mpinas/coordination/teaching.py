"""What the search is told of a run: it follows the ledger event by event, in a running job and in a replay alike.

Decides nothing. The baseline is none of the search's: its genome is of no space.
"""

from __future__ import annotations

from mpinas.coordination import events as ev
from mpinas.coordination import messages as msg
from mpinas.coordination.budgets import Curves
from mpinas.coordination.candidate import Candidate
from mpinas.coordination.ledger import BASELINE, ENDED, Ledger
from mpinas.coordination.lifecycle import State
from mpinas.coordination.limits import constraints
from mpinas.errors import UserError
from mpinas.search import Search


class Teaching:
    """Keeps search and learning curves in step with the ledger, which has taken every event in before."""

    def __init__(self, search: Search, ledger: Ledger, curves: Curves) -> None:
        self._search = search
        self._ledger = ledger
        self._curves = curves

    def follow(self, event: ev.Event, before: State | None, *, replayed: bool) -> None:
        """Tell what an event has brought; `before`: where its candidate stood, `replayed`: by an earlier job."""
        it = self._ledger.candidates.get(getattr(event, "candidate", BASELINE))
        if it is None or it.id == BASELINE:
            return
        match event:
            case ev.Proposed():
                if replayed:
                    self._restore(it)
            case ev.Exported() | ev.Measured() | ev.MeasurementFailed():
                self._tell_what_is_known(it, ended=before in ENDED)
                if it.rung_errors:
                    self._search.revise(it.genome, self._objectives(it))
            case msg.Evaluated():
                if it.rung == self._ledger.terms.last_rung > 0:
                    early = {rung: error for rung, error in it.rung_errors.items() if rung < it.rung}
                    self._curves.add(early, it.rung_errors[it.rung])
                tell = self._search.tell if len(it.rung_errors) == 1 else self._search.revise
                tell(it.genome, self._objectives(it))
            case msg.Retrained():
                self._search.revise(it.genome, self._objectives(it))
        if it.state in ENDED and before is not it.state and not it.rung_errors:
            self._search.tell_failed(it.genome)

    def _restore(self, it: Candidate) -> None:
        try:
            self._search.restore(it.genome)
        except ValueError as error:
            raise UserError(
                f"candidate {it.id} of the journal is none of the space ({error}): the space has changed since; begin "
                "a new run"
            ) from None

    def _tell_what_is_known(self, it: Candidate, *, ended: bool) -> None:
        """What can be learned before a candidate is trained: limits kept and broken, latencies.

        `ended`: it was given up before this came, which was on its way when the device was told to drop it.
        """
        if known := constraints(it, self._ledger.terms):
            self._search.tell_constraints(it.genome, known)
        if it.is_measured_on(self._ledger.terms.devices) and not it.rung_errors and not ended:
            _, *latencies = self._ledger.terms.values(0.0, it.latencies_s)
            self._search.tell_partial(it.genome, (None, *latencies))

    def _objectives(self, it: Candidate) -> tuple[float, ...]:
        """As the search is told them: the error is that to expect of the full budget."""
        reached = max(it.rung_errors)
        error = it.error if reached == self._ledger.terms.last_rung else self._curves.expected(reached, it.error)
        return self._ledger.terms.values(error, it.latencies_s)
