"""Who does what: rank 0 is the coordinator, the others are trainers, cut into groups. Pure."""

from __future__ import annotations

Groups = tuple[tuple[int, ...], ...]


def make_groups(world_size: int, group_size: int) -> Groups:
    """Consecutive world ranks from 1 on, `group_size` at a time, the leader first; the last group may be smaller.

    A world of one is a single group of rank 0: it coordinates and trains in turn.
    """
    if world_size == 1:
        return ((0,),)
    return tuple(tuple(range(first, min(first + group_size, world_size))) for first in range(1, world_size, group_size))


def describe(groups: Groups, group_size: int) -> str:
    """One line for the start of the log."""
    if groups == ((0,),):
        return "1 rank: coordinator and trainer in one process, serially (start with mpirun -n N for more)"
    trainers = sum(len(group) for group in groups)
    line = f"{trainers + 1} ranks: rank 0 coordinates, {trainers} trainers in {len(groups)} group(s) of {group_size}"
    if len(groups[-1]) < group_size:
        line += f", but the last of {len(groups[-1])} ({group_size} does not divide {trainers})"
    return line + ": " + " ".join(f"[{_span(group)}]" for group in groups[:8]) + (" …" if len(groups) > 8 else "")


def _span(group: tuple[int, ...]) -> str:
    return str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}"
