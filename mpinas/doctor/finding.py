"""One row of what `mpinas doctor` says. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "fault", "not checked"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, what was found; and what to do, where it is not well."""

    check: str
    level: Level
    found: str
    advice: str = ""

    def __post_init__(self) -> None:
        if self.level in ("fault", "warning") and not self.advice:
            raise ValueError(f"{self.check}: a {self.level} without a word on what to do")


def exit_code(findings: Iterable[Finding]) -> int:
    """2 if anything would not work, else 0."""
    return 2 if any(finding.level == "fault" for finding in findings) else 0


def counted(findings: Iterable[Finding]) -> str:
    """The last line: how many faults and warnings."""
    levels = [finding.level for finding in findings]
    faults, warnings = levels.count("fault"), levels.count("warning")
    parts = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in ((faults, "fault"), (warnings, "warning")) if n]
    return " and ".join(parts) or "nothing wrong"
