"""Who does what: rank 0 is the coordinator, the others are trainers, grouped anew for every order. Pure."""

from __future__ import annotations


def trainers_of(world_size: int) -> tuple[int, ...]:
    """World ranks of the trainers. A world of one has one, rank 0: it coordinates and trains in turn."""
    return (0,) if world_size == 1 else tuple(range(1, world_size))


def largest_group(trainers: int, group_size: int, group_size_max: int) -> int:
    """Of how many trainers the largest group of a job may be; `group_size_max` 0: of all."""
    return min(trainers, max(group_size, group_size_max or trainers))


def describe(world_size: int, group_size: int, group_size_max: int) -> str:
    """One line for the start of the log."""
    if world_size == 1:
        return "1 rank: coordinator and trainer in one process, serially (start with mpirun -n N for more)"
    trainers = world_size - 1
    largest = largest_group(trainers, group_size, group_size_max)
    usual = min(group_size, trainers)
    sizes = f"of {usual}" if usual == largest else f"of {usual}, up to {largest} where that gains time"
    if usual < group_size:
        sizes += f" (training.group_size = {group_size} asks for more than there are)"
    return f"{world_size} ranks: rank 0 coordinates, {trainers} trainer(s) in groups {sizes}, formed for every order"
