"""Problems of the search benchmark: finite spaces with known fronts. They know no search and no rival.

NAS-Bench-Graph: 59,049 genotypes of graph networks, accuracy and latency of the trained networks (Y. Qin et al.,
NAS-Bench-Graph, NeurIPS 2022). ZDT (E. Zitzler et al., Evolutionary Computation 8(2), 2000), DTLZ2 (K. Deb et al.,
CEC 2002), and BNH, SRN and TNK (K. Deb, Multi-Objective Optimization using Evolutionary Algorithms, 2001), their
variables on a grid that is the same for all.
"""

from __future__ import annotations

import functools
import itertools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moocore
import numpy as np

from mpinas.search import Genome, SearchSpace

#: Tuned on; all others are for a verdict.
TUNED = ("citeseer", "computers", "cora", "cs")
UNSEEN = ("arxiv", "photo", "physics", "proteins", "pubmed")
GRID = 101


@dataclass(frozen=True)
class Problem:
    """Minimise `evaluate(genome) -> (objectives, constraints)`; a constraint holds at 0 or less."""

    name: str
    space: SearchSpace
    evaluate: Callable[[Genome], tuple[tuple[float, ...], dict[str, float]]]
    #: Hypervolume of feasible points as a share of the true front's.
    share: Callable[[list[tuple[float, ...]]], float]
    n_objectives: int


@functools.lru_cache(None)
def genotypes() -> tuple[list[Genome], list[str], dict[tuple[Any, ...], int]]:
    """All genotypes, their hash by the benchmark's own rules, and the number of each."""
    from nas_bench_graph.architecture import Arch, gnn_list, link_list

    links = ["".join(map(str, link)) for link in link_list]
    genomes: list[Genome] = []
    hashes = []
    for link, *operations in itertools.product(range(len(links)), *[range(len(gnn_list))] * 4):
        names = [gnn_list[at] for at in operations]
        genomes.append({"link": links[link], **{f"operation{at}": name for at, name in enumerate(names)}})
        hashes.append(Arch(list(link_list[link]), names).valid_hash())
    return genomes, hashes, {tuple(genome.values()): at for at, genome in enumerate(genomes)}


@functools.lru_cache(None)
def nas_bench_graph(name: str) -> Problem:
    """Error (minus validation accuracy) and latency in s. Genotypes of one hash are one genome, the first of them."""
    import nas_bench_graph as package

    genomes, hashes, number = genotypes()
    table = pickle.loads((Path(package.__file__).parent / "light" / f"{name}.bench").read_bytes())
    first: dict[str, int] = {}
    for at, hash_ in enumerate(hashes):
        first.setdefault(hash_, at)
    points = np.array([(-row["valid_perf"], row["latency"]) for row in table.values()], float)
    ideal, reference = points.min(0), np.percentile(points, 90, axis=0)
    full = _share((points - ideal) / (reference - ideal), np.ones(2), 1.0)

    def evaluate(genome: Genome) -> tuple[tuple[float, ...], dict[str, float]]:
        row = table.get(hashes[number[tuple(genome.values())]])
        return ((0.0, 1e3) if row is None else (-float(row["valid_perf"]), float(row["latency"]))), {}

    def repair(genome: Genome) -> Genome:
        return dict(genomes[first[hashes[number[tuple(genome.values())]]]])

    genes = {gene: list(dict.fromkeys(genome[gene] for genome in genomes)) for gene in genomes[0]}
    return Problem(
        name,
        SearchSpace(genes, repair),
        evaluate,
        lambda found: _share((np.array(found) - ideal) / (reference - ideal), np.ones(2), full),
        2,
    )


def _share(points: np.ndarray, reference: np.ndarray, full: float) -> float:
    inside = points[(points < reference).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=reference)) / full if len(inside) else 0.0


def _zdt(x: np.ndarray, kind: int) -> np.ndarray:
    f, g = x[..., 0], 1 + 9 * x[..., 1:].mean(-1)
    ratio = f / g
    h = {1: 1 - np.sqrt(ratio), 2: 1 - ratio**2, 3: 1 - np.sqrt(ratio) - ratio * np.sin(10 * np.pi * f)}[kind]
    return np.stack([f, g * h], -1)


def _dtlz2(x: np.ndarray) -> np.ndarray:
    radius = 1 + ((x[..., 2:] - 0.5) ** 2).sum(-1)
    a, b = x[..., 0] * np.pi / 2, x[..., 1] * np.pi / 2
    return np.stack([radius * np.cos(a) * np.cos(b), radius * np.cos(a) * np.sin(b), radius * np.sin(a)], -1)


def _bnh(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = 5 * x[..., 0], 3 * x[..., 1]
    objectives = np.stack([4 * a**2 + 4 * b**2, (a - 5) ** 2 + (b - 5) ** 2], -1)
    return objectives, np.stack([(a - 5) ** 2 + b**2 - 25, 7.7 - (a - 8) ** 2 - (b + 3) ** 2], -1)


def _srn(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = 40 * x[..., 0] - 20, 40 * x[..., 1] - 20
    objectives = np.stack([2 + (a - 2) ** 2 + (b - 1) ** 2, 9 * a - (b - 1) ** 2], -1)
    return objectives, np.stack([a**2 + b**2 - 225, a - 3 * b + 10], -1)


def _tnk(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = 1e-6 + np.pi * x[..., 0], 1e-6 + np.pi * x[..., 1]
    constraints = [1 + 0.1 * np.cos(16 * np.arctan2(a, b)) - a**2 - b**2, (a - 0.5) ** 2 + (b - 0.5) ** 2 - 0.5]
    return np.stack([a, b], -1), np.stack(constraints, -1)


def _free(f: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    return lambda x: (f(x), np.zeros((*x.shape[:-1], 0)))


#: Name -> function of variables in 0..1, how many variables, how many of them span the front, value of the others.
_FUNCTIONS: dict[str, tuple[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], int, int, float]] = {
    "zdt1": (_free(lambda x: _zdt(x, 1)), 10, 1, 0.0),
    "zdt2": (_free(lambda x: _zdt(x, 2)), 10, 1, 0.0),
    "zdt3": (_free(lambda x: _zdt(x, 3)), 10, 1, 0.0),
    "dtlz2": (_free(_dtlz2), 7, 2, 0.5),
    "bnh": (_bnh, 2, 2, 0.0),
    "srn": (_srn, 2, 2, 0.0),
    "tnk": (_tnk, 2, 2, 0.0),
}
FUNCTIONS = tuple(_FUNCTIONS)


@functools.lru_cache(None)
def function(name: str) -> Problem:
    """A test function; its true front is the best of the grid, and the reference 1.1 of the way to its nadir."""
    f, variables, spanning, rest = _FUNCTIONS[name]
    grid = np.linspace(0, 1, GRID)
    front_x = np.full((GRID**spanning, variables), rest)
    front_x[:, :spanning] = np.stack(np.meshgrid(*[grid] * spanning), -1).reshape(-1, spanning)
    points, constraints = f(front_x)
    points = points[(constraints <= 0).all(axis=1)]
    front = points[moocore.is_nondominated(points)]
    ideal, nadir = front.min(0), front.max(0)
    reference = np.full(front.shape[1], 1.1)
    full = _share((front - ideal) / (nadir - ideal), reference, 1.0)

    def evaluate(genome: Genome) -> tuple[tuple[float, ...], dict[str, float]]:
        objectives, constraints = f(np.array(list(genome.values()), float) / (GRID - 1))
        return tuple(objectives.tolist()), {f"g{at}": value for at, value in enumerate(constraints.tolist())}

    return Problem(
        name,
        SearchSpace({f"x{at}": list(range(GRID)) for at in range(variables)}),
        evaluate,
        lambda found: _share((np.array(found).reshape(-1, len(ideal)) - ideal) / (nadir - ideal), reference, full),
        front.shape[1],
    )
