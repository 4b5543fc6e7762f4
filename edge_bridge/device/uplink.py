"""The device's way to its relay: connected, checked, opened anew when it breaks or when its files change.

Hands out what the connection did and the messages that are messages; a relay that sends anything else too often is
left alone for a while. Must not know tasks or measurements.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
from pathlib import Path

import zmq

from edge_bridge.errors import BridgeError, KeyRefusedError, ProtocolError
from edge_bridge.wire.keys import Access
from edge_bridge.wire.protocol import RELAY_TO_DEVICE, Header, Message, decode, encode
from edge_bridge.wire.sockets import BURST, REOPEN_S, Context, Link, LinkEvent, Socket, reopen_at

log = logging.getLogger("device")

#: How often the same trouble with the relay is mentioned in the log.
COMPLAIN_S = 30.0
#: Key and connection file are looked at this often.
FILES_S = 1.0
#: After a refused key or a failed handshake, both files are read and the relay is tried again this often; while
#: nothing tells why there is no relay, every REOPEN_S.
RETRY_S = 2.0
#: A relay that breaks the protocol this often on one connection is left alone: so long at first, then longer.
OFFENCES = 10
OFFENDED_S, OFFENDED_MOST_S = 1.0, 30.0
#: A relay that has kept to the protocol for so long has made up for it.
FORGIVEN_S = 120.0

_Stamp = tuple[tuple[int, int, int] | None, ...]


class Uplink:
    """One connection to the relay at a time.

    Parameters
    ----------
    access
        Reads connection and key; called at once, and whenever they may have changed.
    watched
        The files that it reads.

    Raises
    ------
    BridgeError
        When they cannot be read now.
    """

    def __init__(self, access: Access, watched: tuple[Path, ...]) -> None:
        self._access, self._watched = access, watched
        self._stamp = self._stamps()
        self._context: Context = zmq.Context.instance()
        self._connection, self._key = access()
        self._link: Link | None = self._open()
        #: The relay has taken this device at least once: from then on, nothing it says ends the agent.
        self._trusted = False
        #: The relay has said that it does not want this key, and has not let it in since.
        self._is_refused = False
        #: When to read both files and to connect anew; None while the relay is there.
        self._reopen_at_s: float | None = None
        self._files_at_s = time.monotonic() + FILES_S
        self._offences = self._drops = 0
        self._dropped_at_s = 0.0
        self._complaints: dict[str, float] = {}
        self._jitter = random.Random()
        self._reopen_in(REOPEN_S, time.monotonic())

    @property
    def endpoint(self) -> str:
        """Where the relay is, for the log."""
        return self._connection.device_endpoint

    @property
    def sockets(self) -> list[Socket]:
        """Sockets to poll for reading."""
        return [] if self._link is None else [self._link.socket, self._link.monitor]

    def wait_s(self, now_s: float) -> float:
        """Longest time until `advance` must be called again."""
        return FILES_S if self._reopen_at_s is None else max(0.0, min(FILES_S, self._reopen_at_s - now_s))

    def trust(self) -> None:
        """The relay has taken this device."""
        self._trusted = True

    def advance(self, now_s: float) -> list[LinkEvent]:
        """Do what is due and return what has happened to the connection.

        Raises
        ------
        KeyRefusedError
            When the relay does not know this device's key and never did.
        """
        if now_s >= self._files_at_s:
            self._files_at_s = now_s + FILES_S
            stamp = self._stamps()
            if stamp != self._stamp:
                self._stamp = stamp
                self._reread(now_s)
        events = [] if self._link is None else self._link.events()
        for event in events:
            self._heard(event, now_s)
        # After the events: a relay that is back by itself is left in peace.
        if self._reopen_at_s is not None and now_s >= self._reopen_at_s:
            self._reread(now_s, even_if_same=True)
        return events

    def receive(self, now_s: float) -> list[Message]:
        """Messages that have come; what is none is counted against the relay."""
        messages: list[Message] = []
        for _ in range(BURST):
            frames = None if self._link is None else self._link.receive()
            if frames is None:
                break
            try:
                messages.append(decode(frames, RELAY_TO_DEVICE))
            except ProtocolError as error:
                self._offend(str(error), now_s)
        return messages

    def send(self, header: Header) -> bool:
        """Send if the connection stands and has room; say whether it did."""
        return self._link is not None and self._link.send(encode(header))

    def refused(self, detail: str, now_s: float) -> None:
        """The relay says that this key may not (or no longer) be here.

        Raises
        ------
        KeyRefusedError
            When it has never taken this device.
        """
        line = f"relay {self.endpoint} does not know this device's key: add its .pub line to the relay's allow-list"
        self._is_refused = True
        if not self._trusted:
            raise KeyRefusedError(f"{line}, then start the device again{f' ({detail})' if detail else ''}")
        self.complain(f"{line}; trying again until it does", now_s)
        # Without a link it is left alone for breaking the protocol: what it said before shortens nothing.
        if self._link is not None:
            self._reopen_in(RETRY_S, now_s)

    def complain(self, line: str, now_s: float, detail: str = "") -> None:
        """Log a line, unless the same, but for its detail, was logged just now."""
        if now_s - self._complaints.get(line, -COMPLAIN_S) >= COMPLAIN_S:
            if len(self._complaints) > 64:
                self._complaints.clear()
            self._complaints[line] = now_s
            log.warning("%s%s", line, f": {detail}" if detail else "")

    def close(self) -> None:
        """Close the connection."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _heard(self, event: LinkEvent, now_s: float) -> None:
        match event:
            case LinkEvent.UP:
                self._offences = 0
                self._reopen_at_s = None
                self._is_refused = False
            case LinkEvent.DOWN:
                if not self._is_refused:
                    self.complain(f"relay {self.endpoint} is gone, waiting for it", now_s)
                self._reopen_in(REOPEN_S, now_s)
            case LinkEvent.KEY_REFUSED:
                self.refused("", now_s)
            case LinkEvent.NO_HANDSHAKE:
                self.complain(
                    f"relay {self.endpoint} answers but the handshake fails: is the connection file its latest?", now_s
                )
                self._reopen_in(RETRY_S, now_s)

    def _offend(self, detail: str, now_s: float) -> None:
        self._offences += 1
        if self._offences <= 3:
            log.warning("relay %s broke the protocol (%d): %s", self.endpoint, self._offences, detail)
        if self._offences < OFFENCES:
            return
        if now_s - self._dropped_at_s > FORGIVEN_S:
            self._drops = 0
        pause_s = min(OFFENDED_MOST_S, OFFENDED_S * 2.0**self._drops) * self._jitter.uniform(0.5, 1.0)
        self._drops = min(self._drops + 1, 16)
        self._dropped_at_s = now_s
        log.warning(
            "relay %s broke the protocol %d times: left alone for %.1f s", self.endpoint, self._offences, pause_s
        )
        self._offences = 0
        self.close()
        self._reopen_at_s = now_s + pause_s

    def _reopen_in(self, seconds: float, now_s: float) -> None:
        self._reopen_at_s = reopen_at(self._reopen_at_s, seconds, now_s, self._jitter)

    def _reread(self, now_s: float, even_if_same: bool = False) -> None:
        """Read connection and key anew; connect anew where they differ, or where that is wanted anyway."""
        before = (self._connection, self._key)
        try:
            self._connection, self._key = self._access()
        except BridgeError as error:
            # The file may be in the middle of its replacement: what was good goes on.
            self.complain(f"{error}; going on with what it said before", now_s)
        if before != (self._connection, self._key):
            log.info("connection or key file has changed, connecting to relay %s anew", self.endpoint)
        elif not even_if_same:
            return
        self._reopen_at_s = None
        self.close()
        try:
            self._link = self._open()
            self._reopen_in(REOPEN_S, now_s)
        except BridgeError as error:
            self.complain(str(error), now_s)
            self._reopen_in(RETRY_S, now_s)

    def _open(self) -> Link:
        return Link(self._context, self._connection.device_endpoint, self._key, self._connection.relay_public_key)

    def _stamps(self) -> _Stamp:
        found: list[tuple[int, int, int] | None] = []
        for path in self._watched:
            stamp = None
            with contextlib.suppress(OSError):
                info = os.stat(path)
                stamp = (info.st_mtime_ns, info.st_size, info.st_ino)
            found.append(stamp)
        return tuple(found)
