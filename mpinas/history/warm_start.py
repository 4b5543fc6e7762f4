"""Genomes to begin a search with: the fronts of earlier runs, or a list in a JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from mpinas.coordination.ledger import BASELINE, Ledger
from mpinas.errors import UserError
from mpinas.history.journal import read
from mpinas.history.run_folder import RunFolder, terms_of
from mpinas.search import Genome, SearchSpace, Value


def start_genomes(sources: Sequence[str], space: SearchSpace) -> tuple[Genome, ...]:
    """The genomes that `sources` name, in their order, each once, as this space writes them.

    Raises
    ------
    UserError
        A source is neither a run folder nor a list of genomes, or a genome is none of this space.
    """
    found: list[Genome] = []
    for source in sources:
        path = Path(source)
        for genome in _front_of(path) if path.is_dir() else _listed_in(path):
            try:
                repaired = space.repair(genome)
            except ValueError as error:
                raise UserError(f"search.start: {path}: no genome of this space: {error}") from None
            if repaired not in found:
                found.append(repaired)
    return tuple(found)


def _front_of(path: Path) -> list[Genome]:
    """The front of a run; the baseline is proposed by every run."""
    folder = RunFolder.existing(path)
    ledger = Ledger(terms_of(folder.experiment())).apply_all(read(folder.journal_file))
    return [ledger.candidates[id_].genome for id_ in ledger.front if id_ != BASELINE]


def _listed_in(path: Path) -> list[Genome]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[dict[str, Value]])
    except OSError as error:
        raise UserError(f"search.start: {path}: cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise UserError(f"search.start: {path}: not a JSON list of genomes ({error})") from None
