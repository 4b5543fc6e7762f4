"""Genomes as rows of numbers that a model can learn from. It knows no objective and no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpinas.search.selection import Floats
from mpinas.search.space import Gene, Genome, SearchSpace, Value, genome_key

#: Two different choices of a categorical gene are 1 apart.
_ONE_HOT = 2**-0.5
#: Facts are kept for so many genomes, then asked for again.
_FACTS_MAX = 50_000


class Encoder:
    """Columns: genes, then what genes with the same choices have in common, then facts.

    An ordered gene is its place among its values, from 0 to 1 (choices are often spaced by a factor, and the place is
    right for any spacing); a categorical gene is one-hot. Genes with the same choices (the operations of a cell, the
    widths of stages) say much by how often a choice occurs among them, whatever the place: one column for each choice,
    or the sum for ordered ones.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._values = [_values(space, gene) for gene in space.genes]
        self._index = [{value: at for at, value in enumerate(values)} for values in self._values]
        alike: dict[tuple[Value, ...], list[int]] = {}
        for at, gene in enumerate(space.genes):
            if len(gene.choices) > 1:
                alike.setdefault(gene.choices, []).append(at)
        self._alike = [members for members in alike.values() if len(members) > 1]
        self._facts: dict[object, list[float]] = {}

    def groups(self, x: Floats) -> NDArray[np.int64]:
        """The group of each column of encoded rows: those of a gene go together, those of alike genes, each fact."""
        sizes = [1 if gene.ordered else len(v) for gene, v in zip(self._space.genes, self._values, strict=True)]
        sizes += [sizes[members[0]] for members in self._alike]
        sizes += [1] * (x.shape[1] - sum(sizes))
        return np.repeat(np.arange(len(sizes)), sizes)

    def __call__(self, genomes: Sequence[Genome]) -> Floats:
        """Shape (genomes, columns)."""
        index = np.array(
            [
                [places[genome[gene.name]] for gene, places in zip(self._space.genes, self._index, strict=True)]
                for genome in genomes
            ],
            np.int64,
        ).reshape(len(genomes), len(self._space.genes))
        genes = [self._gene(at, index[:, at]) for at in range(len(self._space.genes))]
        shared = [np.sum([genes[at] for at in members], axis=0) for members in self._alike]
        columns = [*genes, *shared]
        if self._space.has_facts and len(genomes):
            columns.append(np.array([self._facts_of(genome) for genome in genomes], float))
        return np.column_stack(columns)

    def _gene(self, at: int, index: np.ndarray) -> Floats:
        """(genomes, 1) if ordered, else (genomes, values)."""
        count = len(self._values[at])
        if self._space.genes[at].ordered:
            return index[:, None] / max(count - 1, 1)
        return np.asarray(np.eye(count)[index] * _ONE_HOT)

    def _facts_of(self, genome: Genome) -> list[float]:
        """Large numbers by their logarithm: bytes and FLOPs span decades."""
        key = genome_key(genome)
        if key not in self._facts:
            if len(self._facts) >= _FACTS_MAX:
                self._facts.clear()
            facts = self._space.facts(genome)
            self._facts[key] = [float(np.sign(v) * np.log1p(abs(v))) for _, v in sorted(facts.items())]
        return self._facts[key]


def _values(space: SearchSpace, gene: Gene) -> list[Value]:
    values = space.values(gene)
    return sorted(values, key=float) if gene.ordered else values
