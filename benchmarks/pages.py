"""Tables that benchmarks keep in pages of the documentation. Must not know what is in them."""

from __future__ import annotations

import sys
from pathlib import Path


def replace_table(page: Path, begin: str, end: str, text: str) -> None:
    """Put `text` between the lines `begin` and `end` of a page; exits with a line that says so where it lacks them."""
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found_too, after = rest.partition(end)
    if not found or not found_too:
        sys.exit(f"{page} lacks the lines {begin} and {end}: the table goes between them")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
