"""The life of a candidate: its states, as a table of the steps between them."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a candidate stands."""

    PROPOSED = "PROPOSED"
    MEASURING = "MEASURING"
    READY = "READY"
    TRAINING = "TRAINING"
    EVALUATED = "EVALUATED"
    REJECTED = "REJECTED"
    FAILED = "FAILED"


#: What may follow what. A candidate is READY with a latency on every device, measured or predicted, until its limits
#: are judged. EVALUATED to READY: it is trained on, up to the next budget. Other steps back mean that the job ended in
#: between, or that a checkpoint was lost, and it is taken up again.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.PROPOSED: frozenset({State.MEASURING, State.READY, State.REJECTED, State.FAILED}),
    State.MEASURING: frozenset({State.READY, State.REJECTED, State.FAILED, State.PROPOSED}),
    State.READY: frozenset({State.TRAINING, State.REJECTED, State.FAILED}),
    State.TRAINING: frozenset({State.EVALUATED, State.FAILED, State.READY}),
    State.EVALUATED: frozenset({State.READY}),
    State.REJECTED: frozenset(),
    State.FAILED: frozenset(),
}


class IllegalTransitionError(Exception):
    """A candidate was to take a step that the table does not have. Nothing was changed."""


def step(candidate: int, history: list[State], to: State) -> None:
    """Append `to` to a candidate's `history`, or raise and change nothing."""
    if to not in TRANSITIONS[history[-1]]:
        story = " -> ".join(history)
        raise IllegalTransitionError(f"candidate {candidate} cannot become {to}: so far it was {story}")
    history.append(to)
