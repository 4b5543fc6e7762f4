"""Hard limits: what is known of a candidate beside what it may be. Pure; changes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mpinas.coordination.candidate import Candidate
from mpinas.coordination.terms import Terms


def broken_limit(candidate: Candidate, terms: Terms, *, settled_only: bool = False) -> str | None:
    """The first limit that what is known of `candidate` breaks, in words; None if it breaks none.

    With `settled_only`, measurements that are going to be made again do not count, nor do predictions.
    """
    for name, (value, limit) in _limited(candidate, terms, settled_only=settled_only).items():
        if value > limit:
            return f"{name.replace('@', ' on ')} = {value:.4g} is above the limit {limit:.4g}"
    return None


def constraints(candidate: Candidate, terms: Terms) -> dict[str, float]:
    """log(value / limit) of every limited quantity that is settled: at most zero where the limit is kept."""
    return {
        name: math.log(max(value, 1e-30) / limit)
        for name, (value, limit) in _limited(candidate, terms, settled_only=True).items()
    }


def would_break_limit(latencies_s: Mapping[str, float], terms: Terms) -> bool:
    """Would a network with these median latencies, by device, break a limit?"""
    limits = [limit for name, limit in terms.limits.items() if name in ("latency_s", "p50_s")]
    return any(latency_s > limit for limit in limits for latency_s in latencies_s.values())


def _limited(candidate: Candidate, terms: Terms, *, settled_only: bool) -> dict[str, tuple[float, float]]:
    """(value, limit) of what is known of a candidate and limited, in the order of the limits."""
    of_itself: dict[str, float] = {}
    if terms.last_rung in candidate.rung_errors:  # what a small budget gives is not what counts
        of_itself = {**candidate.metrics, "error": candidate.error}
    for name in ("size_bytes", "parameters"):
        if (value := getattr(candidate, name)) is not None:
            of_itself[name] = value
    found = {}
    for name, limit in terms.limits.items():
        if name in of_itself:
            found[name] = (of_itself[name], limit)
        for device, reading in candidate.readings.items():
            if settled_only and (reading.predicted or not reading.settled):
                continue
            if (quantity := reading.quantities().get(name)) is not None:
                found[f"{name}@{device}" if len(terms.devices) > 1 else name] = (quantity, limit)
    return found
