"""What may be varied: genes, genomes and the space they span."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Value = str | int | float | bool
#: Gene name -> chosen value, in the order of the space's genes.
Genome = dict[str, Value]


class SpaceExhaustedError(Exception):
    """Every genome of the space has been asked for already."""


@dataclass(frozen=True, slots=True)
class Gene:
    """One choice. `ordered`: neighbours in `choices` are alike (numbers); otherwise any two differ equally."""

    name: str
    choices: tuple[Value, ...]
    ordered: bool

    def __post_init__(self) -> None:
        if not self.choices:
            raise ValueError(f"gene {self.name!r} has no choices")
        if len(set(self.choices)) != len(self.choices):
            raise ValueError(f"gene {self.name!r} has a choice twice: {list(self.choices)}")


def _ordered(choices: Sequence[Value]) -> bool:
    return all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in choices)


class SearchSpace:
    """A finite space: the product of its genes' choices, folded by `repair`.

    Parameters
    ----------
    genes
        Gene name -> choices. A gene whose choices are all numbers is ordered: mutation prefers neighbours.
    repair
        Maps any member of the product to a valid genome, and a valid genome to itself. It also gives inactive
        genes one canonical value, so that two genomes that mean the same network are equal.
    facts
        Numbers that are cheaply known of a valid genome, the same names each time (parameters, FLOPs, bytes): models
        learn from them beside the genes.
    """

    def __init__(
        self,
        genes: Mapping[str, Sequence[Value]],
        repair: Callable[[Genome], Genome] | None = None,
        facts: Callable[[Genome], Mapping[str, float]] | None = None,
    ) -> None:
        if not genes:
            raise ValueError("a search space needs at least one gene")
        self.genes = tuple(Gene(name, tuple(choices), _ordered(choices)) for name, choices in genes.items())
        self._repair = repair
        self._facts = facts
        #: Every value that a valid genome may have; more than the choices where the space was narrowed.
        self._valid = {gene.name: frozenset(gene.choices) for gene in self.genes}

    def narrowed(self, choices: Mapping[str, Sequence[Value]]) -> SearchSpace:
        """The same space with fewer choices for some genes. Only `repair` may still set the values left out.

        Raises
        ------
        ValueError
            A gene is unknown, or a value is none of its choices.
        """
        all_choices: dict[str, Sequence[Value]] = {gene.name: gene.choices for gene in self.genes}
        for name, values in choices.items():
            if name not in all_choices:
                raise ValueError(f"there is no gene {name!r}; there are {', '.join(all_choices)}")
            if strange := [value for value in values if value not in all_choices[name]]:
                raise ValueError(f"gene {name!r} cannot be {strange[0]!r}; it may be {list(all_choices[name])}")
        out = SearchSpace({**all_choices, **choices}, self._repair, self._facts)
        out._valid = self._valid
        return out

    def extended(self, genes: Mapping[str, Sequence[Value]]) -> SearchSpace:
        """The same space with more genes, which neither `repair` nor `facts` looks at.

        Raises
        ------
        ValueError
            It has a gene of that name.
        """
        own = {gene.name: gene.choices for gene in self.genes}
        if double := [name for name in genes if name in own]:
            raise ValueError(f"there is a gene {double[0]!r} already; give yours another name")
        repair, facts = self._repair, self._facts

        def own_part(genome: Genome) -> Genome:
            return {name: genome[name] for name in own}

        def repaired(genome: Genome) -> Genome:
            part = repair(own_part(genome)) if repair else own_part(genome)
            return part | {name: genome[name] for name in genes}

        out = SearchSpace({**own, **genes}, repaired, facts and (lambda genome: facts(own_part(genome))))
        out._valid |= self._valid
        return out

    def __len__(self) -> int:
        """Size of the product of all choices (an upper bound where `repair` folds it)."""
        return math.prod(len(gene.choices) for gene in self.genes)

    def repair(self, genome: Mapping[str, Value]) -> Genome:
        """The valid genome nearest in meaning.

        Raises
        ------
        ValueError
            A gene is missing, unknown, or has a value that is none of its choices.
        """
        if genome.keys() != {gene.name for gene in self.genes}:
            raise ValueError(f"genome has genes {sorted(genome)}, the space {sorted(g.name for g in self.genes)}")
        for gene in self.genes:
            if genome[gene.name] not in self._valid[gene.name]:
                raise ValueError(f"gene {gene.name!r} = {genome[gene.name]!r} is none of {list(gene.choices)}")
        ordered = {g.name: v if (v := genome[g.name]) in g.choices else g.choices[0] for g in self.genes}
        return self._repair(ordered) if self._repair else ordered

    @property
    def has_facts(self) -> bool:
        """Does the space know any cheap numbers about its genomes?"""
        return self._facts is not None

    def facts(self, genome: Genome) -> Mapping[str, float]:
        """Cheap numbers about a valid genome; none if the space has none to give."""
        return self._facts(genome) if self._facts else {}

    def values(self, gene: Gene) -> list[Value]:
        """All that a gene may be in a valid genome: its choices, then what only `repair` may set where narrowed."""
        return [*gene.choices, *sorted(self._valid[gene.name] - {*gene.choices}, key=repr)]

    def sample(self, rng: np.random.Generator) -> Genome:
        """A genome drawn uniformly from the product, then repaired."""
        shares = rng.random(len(self.genes)).tolist()
        return self.repair(
            {g.name: g.choices[int(share * len(g.choices))] for g, share in zip(self.genes, shares, strict=True)}
        )

    def every(self) -> Iterator[Genome]:
        """All genomes, repaired, each once. For small spaces only."""
        seen = set()
        for values in itertools.product(*(gene.choices for gene in self.genes)):
            genome = self.repair(dict(zip((g.name for g in self.genes), values, strict=True)))
            if (key := genome_key(genome)) not in seen:
                seen.add(key)
                yield genome


def genome_key(genome: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    """A hashable identity, the same for equal genomes whatever their order."""
    return tuple(sorted(genome.items()))
