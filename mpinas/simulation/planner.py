"""From an experiment and what is known of a machine to the figures of a search on it, in virtual time.

Must not know the command line, or what a network is: space and baseline are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from mpinas.config import Experiment
from mpinas.coordination.coordinator import Coordinator
from mpinas.coordination.ledger import Ledger
from mpinas.coordination.lifecycle import State
from mpinas.history.run_folder import plan_of, terms_of
from mpinas.search import Genome, SearchSpace, make_search
from mpinas.simulation.ask import Question, machine_for
from mpinas.simulation.figures import Figures
from mpinas.simulation.landscape import Landscape, limit_for
from mpinas.simulation.meter import Metered, percentile_ms
from mpinas.simulation.world import World

#: Progress is told after so many steps of the simulation.
STEPS = 1000


def simulate(
    experiment: Experiment,
    space: SearchSpace,
    baseline: Genome,
    question: Question,
    clock: Callable[[], float],
    progress: Callable[[int, float], None] = lambda evaluated, time: None,
) -> Figures:
    """Run the search of `experiment` in virtual time.

    Parameters
    ----------
    clock
        Real seconds, to take what the coordinator costs.
    progress
        Told now and then: how many candidates are evaluated, and the virtual time.

    Raises
    ------
    UserError
        A number of the question makes no sense.
    """
    # What candidates are worth is made up here, so that targets on it mean nothing.
    plan = replace(plan_of(experiment), target={}, exporters=question.exporters)
    machine = machine_for(question, experiment.training.epochs)
    landscape = Landscape(space, question.seed)
    rejected = question.rejected_share
    if rejected is None:
        rejected = question.seen.rejected_share if question.seen else 0.0
    limits = {"latency_s": limit_for(landscape, space, rejected)} if rejected else {}
    ledger = Ledger(replace(terms_of(experiment), limits=limits))
    search = make_search(
        question.algorithm or experiment.search.algorithm,
        space,
        len(ledger.terms.objectives),
        experiment.search.seed,
        experiment.search.population,
    )
    coordinator = Metered(Coordinator(plan, search, ledger, baseline), clock)
    world = World(coordinator, machine, landscape, seed=question.seed, task=experiment.task.name)
    steps = 0

    def left(world: World) -> bool:
        nonlocal steps
        steps += 1
        if steps % STEPS == 0:
            progress(ledger.count(State.EVALUATED), world.time)
        return world.left

    world.run(left)
    return figures_of(world, coordinator, question.ranks)


def figures_of(world: World, coordinator: Metered, ranks: int) -> Figures:
    """What a simulated run that has ended came to."""
    ledger, machine = world.ledger, world.machine
    nodes = math.ceil(ranks / machine.ranks_per_node)
    until = world.last_training
    evaluated = ledger.count(State.EVALUATED)
    # a proposal costs what it cost here, or what the user says that it costs there
    proposals = coordinator.proposed_s
    deciding_s = coordinator.total_s + max(0.0, len(proposals) * machine.proposal_s - sum(proposals))
    return Figures(
        ranks=ranks,
        trainers=machine.trainers,
        nodes=nodes,
        devices=machine.devices,
        exporters=machine.exporters,
        seconds_to_finish=world.time,
        node_hours=nodes * world.time / 3600,
        evaluated=evaluated,
        rejected=ledger.count(State.REJECTED),
        failed=ledger.count(State.FAILED),
        proposed=len(ledger.candidates),
        predicted=world.trained_predicted,
        front=len(ledger.front),
        trainings=world.trainings,
        evaluations_per_hour=evaluated / world.time * 3600,
        trainer_utilisation=ledger.occupation.utilisation or 0.0,
        trainer_utilisation_search=until.trainers,
        device_utilisation=until.devices,
        exporter_utilisation=until.exporters,
        coordinator_utilisation=deciding_s / world.time,
        events=len(coordinator.handled_s),
        handle_p99_ms=percentile_ms(coordinator.handled_s, 99),
        handle_mean_ms=1e3 * sum(coordinator.handled_s) / len(coordinator.handled_s),
        proposal_mean_ms=1e3 * sum(proposals) / max(1, len(proposals)),
        finished=ledger.finished or "",
    )
