"""What every search offers to who drives it: ask and tell, never evaluate.

It says nothing of how a search decides, and knows no clock, file, network or MPI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from mpinas.search.space import Genome, SearchSpace


class Search(Protocol):
    """Proposes genomes and is told what became of them.

    Its state is a fold over the calls made: the k-th `ask` draws from a generator seeded by (seed, k), and whatever is
    fitted is a function of what was told. So a search to which the same genomes were given back with `restore`, and
    the same told in the same order, asks next what the first would have asked. All objectives are minimised.
    """

    space: SearchSpace
    n_objectives: int

    @property
    def asked(self) -> int:
        """How many genomes have been asked for, the restored among them."""

    def ask(self) -> Genome:
        """A genome that was never asked for before.

        Raises
        ------
        SpaceExhaustedError
            There is none left.
        """

    def restore(self, genome: Genome) -> Genome:
        """Count `genome` as asked for: what an earlier run was given by `ask`, or what the user starts from."""

    def tell_constraints(self, genome: Genome, values: Mapping[str, float]) -> None:
        """Give values that must not pass 0 to be feasible; again with other names, or with better-known values.

        Values that are not finite are left out: they say nothing. It may come before `tell`, after it, or instead.
        """

    def tell_partial(self, genome: Genome, objectives: Sequence[float | None]) -> None:
        """Give the objectives that are known before the evaluation (None: not yet). It may come again."""

    def tell(self, genome: Genome, objectives: Sequence[float]) -> None:
        """Give the objectives of a genome that was asked for, once; all finite."""

    def tell_failed(self, genome: Genome) -> None:
        """Say that a genome that was asked for has no objectives and never will.

        It breeds nothing. What was said of it with `tell_constraints` and `tell_partial` stays known.
        """

    def revise(self, genome: Genome, objectives: Sequence[float]) -> None:
        """Give better-known objectives of a genome that was told of already."""

    def rank(self, genomes: Sequence[Genome]) -> list[int]:
        """Indices into `genomes`, all asked for and not told of, the most promising first."""
