"""What can go wrong for a user of the bridge, as exceptions whose text is one line: what, where, what to do.

Outcomes of a measurement are messages (`protocol.Failed`), never exceptions.
"""

from __future__ import annotations


class BridgeError(Exception):
    """Base of all errors of the bridge; the text is one line for the user."""


class ProtocolError(BridgeError):
    """A peer sent frames that `docs/bridge-protocol.md` does not allow."""


class UnfitRequestError(BridgeError):
    """No relay would take this request; it was not sent."""


class BridgeUnreachableError(BridgeError):
    """Nothing answers at the relay's endpoint, or what answers is not this relay."""


class KeyRefusedError(BridgeError):
    """The relay answered, and does not know (or no longer allows) this key."""


class KeyFileError(BridgeError):
    """A key, allow-list or connection file is missing, unreadable, malformed or too widely readable."""


class RuntimeMissingError(BridgeError):
    """The runtime or provider asked for is not installed on this machine."""


class TunnelError(BridgeError):
    """There is no ssh on this machine, or the login refuses it, or what it should fetch is not there."""
