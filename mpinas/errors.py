"""The few exceptions that cross packages. Outcomes of candidates are messages, not exceptions."""

from __future__ import annotations


class UserError(Exception):
    """What the user can mend. One line: what, where, what to do. Ends the command with exit code 2."""


class ProtocolError(Exception):
    """A message that the control protocol does not allow here: a bug, never bad input."""
