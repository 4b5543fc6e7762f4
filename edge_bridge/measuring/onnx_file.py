"""What an ONNX file may not ask for: other files of the machine that it is run on.

A model may name files with its weights, or with an engine built elsewhere; a model from the network names none.
Looks at bytes only, a piece at a time, so that it costs no memory. Must not know runtimes.
"""

from __future__ import annotations

from pathlib import Path

from edge_bridge.measuring.runtimes import BadModelError

PIECE_BYTES = 1 << 20
#: The key under which ONNX keeps the name of a file with weights, and the operator that wraps a foreign engine.
_LOCATION = b"location"
_ENGINE = b"EPContext"
_MOST_PATTERN_BYTES = 16


def refuse_foreign_files(model: Path) -> None:
    """Raise BadModelError for a model that could make a runtime read something else than itself.

    A text in protobuf stands whole behind its length: without the 8 characters of the key, and 8 before them (0 where
    the length is written longer than need be), no tensor names a file. The rare model with such a text elsewhere
    is refused too.
    """
    with open(model, "rb") as stream:
        tail = b""
        first = True
        while piece := stream.read(PIECE_BYTES):
            if first and piece[4:8] == b"ORTM":
                raise BadModelError("this is a file in ONNX Runtime's own format, not ONNX")
            first = False
            window = tail + piece
            if _ENGINE in window:
                raise BadModelError("the model wraps an engine built elsewhere (EPContext): send plain ONNX")
            _refuse_locations(window)
            tail = window[-_MOST_PATTERN_BYTES:]
    if first:
        raise BadModelError("the model is empty")


def _refuse_locations(window: bytes) -> None:
    at = window.find(_LOCATION, 1)
    while at > 0:
        if window[at - 1] in (len(_LOCATION), 0):
            raise BadModelError("the model names files with its weights (external data): send it as one file")
        at = window.find(_LOCATION, at + 1)
