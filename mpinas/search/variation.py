"""Operators that make new genomes from old ones. Small, seeded from outside, composable."""

from __future__ import annotations

import numpy as np

from mpinas.search.space import Gene, Genome, SearchSpace, Value


def uniform_crossover(a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
    """Each gene from one parent or the other with equal chance.

    Source: G. Syswerda, Uniform crossover in genetic algorithms, ICGA 1989.
    """
    return {name: (a if rng.random() < 0.5 else b)[name] for name in a}


def mutate(space: SearchSpace, genome: Genome, rng: np.random.Generator) -> Genome:
    """Change at least one gene: each with probability 1 / genes, and one drawn at random for certain.

    Ordered genes take a geometric step to either side, so that neighbours are likelier than far values (a discrete
    form of polynomial mutation: K. Deb and M. Goyal, Computer Science and Informatics 26, 1996); categorical genes
    take any other choice.
    """
    certain = int(rng.integers(len(space.genes)))
    mutant = dict(genome)
    for index, gene in enumerate(space.genes):
        if index == certain or rng.random() < 1 / len(space.genes):
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
