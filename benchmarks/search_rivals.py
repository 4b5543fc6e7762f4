"""Drives every search alike over a problem: only genomes that were never evaluated before count.

A rival that asks for a known genome, in whatever spelling, gets the known answer for nothing. Rivals are the published
ones with their own handling of kinds: a gene of names is a choice, one of numbers an integer.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from search_problems import Problem

from mpinas.search import Genome, SpaceExhaustedError, make_search

#: Populations of the rivals; their defaults of 50 and 100 are for budgets far greater.
POPULATION = 20
#: A rival that repeats itself so often per new genome is done.
REPEATS_MAX = 5


class EnoughError(Exception):
    """The budget is spent."""


class Evaluator:
    """Counts what is new and remembers the hypervolume's share at some budgets."""

    def __init__(self, problem: Problem, marks: tuple[int, ...]) -> None:
        self.problem, self.marks = problem, marks
        self.known: dict[tuple[Any, ...], tuple[tuple[float, ...], dict[str, float]]] = {}
        self.found: list[tuple[float, ...]] = []
        self.shares: list[float] = []
        self.calls = 0

    def __call__(self, genome: Genome) -> tuple[tuple[float, ...], dict[str, float]]:
        """Objectives and constraints."""
        self.calls += 1
        genome = self.problem.space.repair(genome)
        key = tuple(genome.values())
        if key not in self.known:
            objectives, constraints = self.known[key] = self.problem.evaluate(genome)
            if all(value <= 0 for value in constraints.values()):
                self.found.append(objectives)
            if len(self.known) in self.marks:
                self.shares.append(self.problem.share(self.found))
        if len(self.known) >= self.marks[-1] or self.calls > REPEATS_MAX * self.marks[-1]:
            raise EnoughError
        return self.known[key]

    def result(self) -> list[float]:
        """The share at each mark; where a rival ended before, what it had."""
        last = self.problem.share(self.found)
        return self.shares + [last] * (len(self.marks) - len(self.shares))


def ours(algorithm: str, running: int = 1) -> Callable[[Evaluator, int], None]:
    """One of the project's searches, `running` evaluations always under way and finishing in any order."""

    def drive(evaluate: Evaluator, seed: int) -> None:
        problem = evaluate.problem
        search = make_search(algorithm, problem.space, problem.n_objectives, seed)
        order = np.random.default_rng(seed)
        under_way: list[Genome] = []
        while True:
            try:
                while len(under_way) < running:
                    under_way.append(search.ask())
            except SpaceExhaustedError:
                if not under_way:
                    return
            genome = under_way.pop(int(order.integers(len(under_way))))
            objectives, constraints = evaluate(genome)
            if constraints:
                search.tell_constraints(genome, constraints)
            search.tell(genome, objectives)

    return drive


def pymoo(algorithm: str) -> Callable[[Evaluator, int], None]:
    """NSGA-II or NSGA-III with pymoo's mixed variables."""

    def drive(evaluate: Evaluator, seed: int) -> None:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.algorithms.moo.nsga3 import NSGA3
        from pymoo.core.mixed import MixedVariableDuplicateElimination, MixedVariableMating, MixedVariableSampling
        from pymoo.core.problem import ElementwiseProblem
        from pymoo.core.variable import Choice, Integer
        from pymoo.optimize import minimize
        from pymoo.util.ref_dirs import get_reference_directions

        problem = evaluate.problem
        genes = {gene.name: gene for gene in problem.space.genes}
        names = sorted(evaluate.problem.evaluate(problem.space.sample(np.random.default_rng(0)))[1])

        class Wrapped(ElementwiseProblem):  # type: ignore[misc]
            def __init__(self) -> None:
                variables = {
                    name: Integer(bounds=(0, len(gene.choices) - 1)) if gene.ordered else Choice(options=gene.choices)
                    for name, gene in genes.items()
                }
                super().__init__(vars=variables, n_obj=problem.n_objectives, n_ieq_constr=len(names))

            def _evaluate(self, x: dict[str, Any], out: dict[str, Any], *_: Any, **__: Any) -> None:
                genome = {n: g.choices[int(x[n])] if g.ordered else str(x[n]) for n, g in genes.items()}
                objectives, constraints = evaluate(genome)
                out["F"] = list(objectives)
                if names:
                    out["G"] = [constraints[name] for name in names]

        duplicates = MixedVariableDuplicateElimination()
        settings = {
            "pop_size": POPULATION,
            "sampling": MixedVariableSampling(),
            "mating": MixedVariableMating(eliminate_duplicates=duplicates),
            "eliminate_duplicates": duplicates,
        }
        if algorithm == "nsga2":
            method = NSGA2(**settings)
        else:
            directions = get_reference_directions("energy", problem.n_objectives, POPULATION, seed=1)
            method = NSGA3(directions, **settings)
        minimize(Wrapped(), method, ("n_eval", REPEATS_MAX * evaluate.marks[-1]), seed=seed, verbose=False)

    return drive


def optuna(sampler: str) -> Callable[[Evaluator, int], None]:
    """Optuna's NSGA-II or TPE. A trial is given up by an exception when the budget is spent."""

    def drive(evaluate: Evaluator, seed: int) -> None:
        import optuna as package

        package.logging.set_verbosity(package.logging.ERROR)
        samplers = package.samplers
        chosen = (
            samplers.TPESampler(seed=seed)
            if sampler == "tpe"
            else samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
        )
        study = package.create_study(directions=["minimize"] * evaluate.problem.n_objectives, sampler=chosen)

        def objective(trial: Any) -> tuple[float, ...]:
            genome = {
                gene.name: gene.choices[trial.suggest_int(gene.name, 0, len(gene.choices) - 1)]
                if gene.ordered
                else trial.suggest_categorical(gene.name, gene.choices)
                for gene in evaluate.problem.space.genes
            }
            return evaluate(genome)[0]

        study.optimize(objective, n_trials=None)

    return drive


def nevergrad(optimiser: str) -> Callable[[Evaluator, int], None]:
    """One of Nevergrad's optimisers, several objectives by its own hypervolume loss."""

    def drive(evaluate: Evaluator, seed: int) -> None:
        import nevergrad as package

        genes = {
            gene.name: (package.p.TransitionChoice if gene.ordered else package.p.Choice)(gene.choices)
            for gene in evaluate.problem.space.genes
        }
        parametrization = package.p.Dict(**genes)
        parametrization.random_state = np.random.RandomState(seed)
        method = package.optimizers.registry[optimiser](parametrization, budget=evaluate.marks[-1], num_workers=1)
        while True:
            candidate = method.ask()
            method.tell(candidate, list(evaluate(dict(candidate.value))[0]))

    return drive


#: Name in the tables -> driver.
OURS = {"mpinas surrogate": ours("surrogate")}
OURS_ASYNC = {"mpinas surrogate, 16 running": ours("surrogate", running=16)}
OURS_OTHER = {f"mpinas {name}": ours(name) for name in ("nsga2", "nsga3", "regularized-evolution")}
PEERS = {
    "pymoo NSGA-II": pymoo("nsga2"),
    "Optuna NSGA-II": optuna("nsga2"),
    "Optuna TPE": optuna("tpe"),
    "Nevergrad NGOpt": nevergrad("NGOpt"),
    "Nevergrad OnePlusOne": nevergrad("OnePlusOne"),
    "random": ours("random"),
}
PYMOO = {"pymoo NSGA-II": pymoo("nsga2"), "pymoo NSGA-III": pymoo("nsga3"), "random": ours("random")}
RIVALS = {**OURS, **OURS_ASYNC, **OURS_OTHER, **PEERS, **PYMOO}


def shares(problem: Problem, rival: str, seed: int, marks: tuple[int, ...]) -> list[float]:
    """The share of the true front's hypervolume that `rival` has found at each of the budgets `marks`."""
    evaluate = Evaluator(problem, marks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the rivals' own: deprecated and experimental parts of theirs
        with contextlib.suppress(EnoughError):
            RIVALS[rival](evaluate, seed)
    return evaluate.result()
