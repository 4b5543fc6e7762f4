"""An experiment turned into one on its human-designed network, made smaller in the usual ways.

What comes of it is a run as any other. Pure: must not know ranks or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from mpinas.config import Experiment
from mpinas.models.compressed import KEEPS
from mpinas.search import Genome

#: Share of the loss that comes from the trained baseline, where a narrower network learns from it.
DISTILLED = 0.5


def compressed(experiment: Experiment, methods: Sequence[str], baseline: str) -> Experiment:
    """The same task, training and devices; candidates are the network named `baseline`, compressed.

    There are no limits: all of them are to be seen beside each other.
    """
    genomes = tuple(genome for method in dict.fromkeys(methods) for genome in _genomes(method))
    replace = msgspec.structs.replace
    search = replace(
        experiment.search, space="compressed", strategy="scratch", algorithm="random",
        precision=("fp32", "fp16", "int8"), genes={}, limits={}, target={}, rungs=(), patience=0, start=genomes,
        evaluations=1 + len(genomes), proposals_max=1 + len(genomes),
    )  # fmt: skip
    task, training = replace(experiment.task, baseline=baseline), replace(experiment.training, teacher="baseline")
    return replace(experiment, task=task, search=search, training=training)


def _genomes(method: str) -> Iterator[Genome]:
    if method == "quantise":
        for precision in ("fp16", "int8"):
            yield {"method": method, "keep": 1.0, "precision": precision, "distillation": 0.0}
        return
    for keep in KEEPS:
        share = DISTILLED if method == "distill" else 0.0
        yield {"method": method, "keep": keep, "precision": "fp32", "distillation": share}
