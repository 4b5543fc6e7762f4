"""Operators that make new genomes from old ones. Small, seeded from outside, composable."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpinas.search.space import Gene, Genome, SearchSpace, Value

#: How often a child has two parents rather than one.
_CROSSOVER_PROBABILITY = 0.9


def child_of(space: SearchSpace, parents: Sequence[Genome], rng: np.random.Generator) -> Genome:
    """A valid genome from one or two parents, each the better of two drawn. `parents` stand best first."""

    def tournament() -> Genome:
        # the smaller index wins
        return parents[int(len(parents) * min(rng.random(), rng.random()))]

    child = tournament()
    if len(parents) > 1 and rng.random() < _CROSSOVER_PROBABILITY:
        child = uniform_crossover(child, tournament(), rng)
    return space.repair(mutate(space, child, rng))


def uniform_crossover(a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
    """Each gene from one parent or the other with equal chance.

    Source: G. Syswerda, Uniform crossover in genetic algorithms, ICGA 1989.
    """
    from_a = (rng.random(len(a)) < 0.5).tolist()
    return {name: (a if first else b)[name] for name, first in zip(a, from_a, strict=True)}


def mutate(space: SearchSpace, genome: Genome, rng: np.random.Generator) -> Genome:
    """Change at least one gene: each with probability 1 / genes, and one drawn at random for certain.

    Ordered genes take a geometric step to either side, so that neighbours are likelier than far values (a discrete
    form of polynomial mutation: K. Deb and M. Goyal, Computer Science and Informatics 26, 1996); categorical genes
    take any other choice.
    """
    change = rng.random(len(space.genes)) < 1 / len(space.genes)
    change[rng.integers(len(space.genes))] = True
    mutant = dict(genome)
    for index in np.flatnonzero(change):
        gene = space.genes[index]
        mutant[gene.name] = _other_choice(gene, genome[gene.name], rng)
    return mutant


def _other_choice(gene: Gene, value: Value, rng: np.random.Generator) -> Value:
    if value not in gene.choices:  # a repaired value outside a narrowed gene
        return gene.choices[int(rng.integers(len(gene.choices)))]
    if len(gene.choices) == 1:
        return value
    at = gene.choices.index(value)
    if not gene.ordered:
        return gene.choices[(at + 1 + int(rng.integers(len(gene.choices) - 1))) % len(gene.choices)]
    step = int(rng.geometric(0.6)) * (1 if rng.random() < 0.5 else -1)
    to = min(max(at + step, 0), len(gene.choices) - 1)
    if to == at:  # stood at the end: step inwards
        to = at + 1 if at == 0 else at - 1
    return gene.choices[to]
