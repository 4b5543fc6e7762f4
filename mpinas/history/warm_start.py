"""Genomes to begin a search with: the fronts of earlier runs, a list in a JSON file, or as they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from mpinas.coordination.ledger import BASELINE, Ledger
from mpinas.errors import UserError
from mpinas.history.journal import read
from mpinas.history.run_folder import RunFolder, terms_of
from mpinas.search import Genome, SearchSpace, Value


def start_genomes(sources: Sequence[str | Mapping[str, Value]], space: SearchSpace) -> tuple[Genome, ...]:
    """The genomes that `sources` are or name, in their order, each once, as this space writes them.

    Raises
    ------
    UserError
        A source is neither a run folder nor a list of genomes, or a genome is none of this space.
    """
    found: list[Genome] = []
    for source in sources:
        for genome in [source] if isinstance(source, Mapping) else _of(Path(source)):
            try:
                repaired = space.repair(genome)
            except ValueError as error:
                where = "" if isinstance(source, Mapping) else f"{source}: "
                raise UserError(f"search.start: {where}no genome of this space: {error}") from None
            if repaired not in found:
                found.append(repaired)
    return tuple(found)


def _of(path: Path) -> list[Genome]:
    return _front_of(path) if path.is_dir() else _listed_in(path)


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
