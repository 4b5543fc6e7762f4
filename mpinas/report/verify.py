"""Is a run folder whole? Everything that a later job, or whoever uses its models, will rely on. Reads only.

Must not know how a file is written, nor torch: whoever asks says how weights and checkpoints are opened.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from mpinas.coordination.candidate import Candidate
from mpinas.coordination.ledger import ENDED, Ledger
from mpinas.coordination.lifecycle import State
from mpinas.errors import UserError
from mpinas.history.journal import Reader
from mpinas.history.lock import look
from mpinas.history.run_folder import RunFolder, terms_of
from mpinas.history.shard import read_shard
from mpinas.report.live import name_of
from mpinas.report.status import is_alive

#: Opens a file; raises an exception, whichever, if it is not as it was written.
Open = Callable[[Path], object]
OK, NOTE, FAULT = "ok", "note", "fault"
#: What else belongs into a run folder, and into that of a candidate.
_IN_RUN = frozenset({"models", "exports", "logs", "calibration.npy"})
_IN_MODEL = frozenset({"weights.pt", "checkpoint.pt", "model.onnx", "shard.bin", "shard.json"})
_LOST = "restore it from a copy; else its genome can be trained anew, as search.start of another run"


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: what was looked at, how it is ("ok", "note" or "fault"), and what to do about a fault."""

    what: str
    level: str
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Openers:
    """How files of torch are opened."""

    weights: Open
    checkpoint: Open


def verify(folder: RunFolder, openers: Openers, now: float) -> list[Finding]:
    """All findings. `now`: Unix time."""
    found: list[Finding] = []
    alive = _lock(folder, now, found)
    ledger = _ledger(folder, found)
    if ledger is None:
        found.append(Finding("models", NOTE, "not looked at: what has to be there stands in experiment and journal"))
    else:
        for it in ledger.candidates.values():
            found += _candidate(it, ledger, folder, openers)
        found += _supernet(ledger, folder, openers)
        found += _left_over(ledger, folder)
    found += _calibration(folder)
    if not alive:
        found += _strange(folder)
    return found


def lines_of(found: Sequence[Finding]) -> list[str]:
    """One line a finding, and how it all is."""
    faults = sum(each.level == FAULT for each in found)
    rows = [f"{each.level:<5} {each.what}: {each.detail}{f'; {each.remedy}' if each.remedy else ''}" for each in found]
    return [*rows, f"{faults} fault{'' if faults == 1 else 's'}" if faults else "the run folder is whole"]


def _lock(folder: RunFolder, now: float, found: list[Finding]) -> bool:
    """Whether a job is at work."""
    name = folder.lock_file.name
    try:
        sight = look(folder.lock_file)
    except UserError as error:
        found.append(Finding(name, FAULT, str(error), "make it readable"))
        return False
    if sight is None:
        return False
    who = sight.owner.described if sight.owner else "nobody knows who"
    alive = is_alive(sight, now)
    if alive:
        found.append(
            Finding(name, NOTE, f"a job is at work here ({who}): what it is just writing may look like a fault")
        )
    else:
        found.append(Finding(name, NOTE, f"left by a job that died ({who})", "nothing: the next job takes it over"))
    return alive


def _ledger(folder: RunFolder, found: list[Finding]) -> Ledger | None:
    """What the journal tells; None if it cannot be told."""
    try:
        terms = terms_of(folder.experiment())
    except UserError as error:
        found.append(Finding(folder.experiment_file.name, FAULT, str(error), "restore it from a copy"))
        return None
    found.append(Finding(folder.experiment_file.name, OK, "can be read"))
    name, reader, ledger = folder.journal_file.name, Reader(folder.journal_file), Ledger(terms)
    try:
        events = reader.more()
        ledger.apply_all(events)
        folder.check_journal(begun=bool(events))
    except UserError as error:
        found.append(Finding(name, FAULT, str(error)))
        return None
    found.append(Finding(name, OK, f"{len(events)} events, whole; {ledger.finished or 'not finished'}"))
    if reader.check is None:
        found.append(Finding(name, NOTE, "of format 2, without check values", "nothing: the next job rewrites it"))
    torn = folder.journal_file.stat().st_size - reader.length
    if torn > 0:
        found.append(Finding(name, NOTE, f"its last {torn} bytes are half a line", "nothing: it is left out"))
    return ledger


def _candidate(it: Candidate, ledger: Ledger, folder: RunFolder, openers: Openers) -> list[Finding]:
    """The files of one candidate, where it has any: faults, or one row that says that all is well."""
    who = name_of(it.id)
    seen: list[str] = []
    faults: list[Finding] = []

    def check(what: str, path: Path, open_: Open, remedy: str) -> None:
        why = _trouble(path, open_)
        if why is None:
            seen.append(what)
        else:
            faults.append(Finding(str(path.relative_to(folder.path)), FAULT, f"{who}: {why}", remedy))

    if _was_dropped(it) and not folder.weights_file(it.id).exists():
        return [Finding(_place(folder, it), NOTE, f"{who}: no files, as the journal says: {it.reason}")]
    if it.state is State.EVALUATED and it.epochs_done > 0 and ledger.is_kept(it.id):
        check("weights", folder.weights_file(it.id), openers.weights, _LOST)
    if it.assessed and it.onnx_difference is not None and it.id in ledger.finalists():
        check("ONNX file", folder.onnx_file(it.id), lambda path: _open_onnx(path, it), _LOST)
        if it.expected is not None:
            check("samples", folder.shard_file(it.id), _open_shard, _LOST)
    if folder.checkpoint_file(it.id).exists():
        anew = "remove it: the candidate is then trained from the beginning"
        check("checkpoint", folder.checkpoint_file(it.id), openers.checkpoint, anew)
    elif _goes_on(it, ledger):
        detail = f"{who}: no checkpoint to go on from"
        faults.append(Finding(_place(folder, it), NOTE, detail, "nothing: it is trained from the beginning"))
    return faults or ([Finding(_place(folder, it), OK, f"{who}: {', '.join(seen)}")] if seen else [])


def _was_dropped(it: Candidate) -> bool:
    """Its model had been removed before it was to be assessed."""
    return it.assessed and it.onnx_difference is None and (it.reason or "").startswith("assessment: dropped")


def _goes_on(it: Candidate, ledger: Ledger) -> bool:
    """Is it to be trained on from a checkpoint?"""
    return ledger.finished is None and 0 < it.epochs_done < ledger.terms.rungs[-1] and it.state not in ENDED


def _place(folder: RunFolder, it: Candidate) -> str:
    return str(folder.weights_file(it.id).parent.relative_to(folder.path))


def _supernet(ledger: Ledger, folder: RunFolder, openers: Openers) -> Iterator[Finding]:
    """What all subnets share."""
    files = [(folder.supernet_checkpoint_file, openers.checkpoint, "remove it: it is then trained from the beginning")]
    if ledger.supernet.metrics:
        files = [(folder.supernet_file, openers.weights, "restore it from a copy, or begin a new run")]
    for path, open_, remedy in files:
        if path.exists() or ledger.supernet.metrics:
            why = _trouble(path, open_)
            name = str(path.relative_to(folder.path))
            yield Finding(name, FAULT, why, remedy) if why else Finding(name, OK, "supernet: can be read")


def _calibration(folder: RunFolder) -> Iterator[Finding]:
    """By which integer networks find their ranges, where there are any."""
    path = folder.calibration_file
    if path.exists():
        why = _trouble(path, _open_calibration)
        remedy = "remove it: the next job writes it anew" if why else ""
        yield Finding(path.name, FAULT if why else OK, why or "can be read", remedy)


def _left_over(ledger: Ledger, folder: RunFolder) -> Iterator[Finding]:
    """Models that nobody needs: of no candidate, or of one that is out."""
    for path in _children(folder.models):
        if not path.name.isdigit():
            continue
        it = ledger.candidates.get(int(path.name))
        if it is None:
            detail = "of no candidate of this run"
        elif ledger.is_kept(it.id) or it.state in (State.READY, State.TRAINING) or _goes_on(it, ledger):
            continue
        else:
            detail = f"of {name_of(it.id)}, which is out"
        yield Finding(str(path.relative_to(folder.path)), NOTE, detail, "nothing: the next job removes it")


def _strange(folder: RunFolder) -> Iterator[Finding]:
    """What no job leaves here."""
    ours = {folder.experiment_file.name, folder.journal_file.name, folder.lock_file.name, *_IN_RUN}
    places = [(path, path.name in ours) for path in _children(folder.path)]
    for model in _children(folder.models):
        is_ours = (model.name.isdigit() or model.name == "supernet") and model.is_dir()
        places += [(path, path.name in _IN_MODEL) for path in _children(model)] if is_ours else [(model, False)]
    for path, expected in places:
        if expected:
            continue
        cut = path.name.endswith((".part", ".full"))
        detail = "half written by a job that was killed" if cut else "no file of a run; nothing reads it"
        yield Finding(str(path.relative_to(folder.path)), NOTE, detail, "it may be removed")


def _children(folder: Path) -> Iterable[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else ()


def _trouble(path: Path, open_: Open) -> str | None:
    """What is wrong with a file, in one line; None if it can be opened."""
    if not path.is_file():
        return "is missing"
    try:
        open_(path)
    except Exception as error:  # every library has its own for a file that is broken
        said = (str(error) or type(error).__name__).partition("\n")[0][:200]
        return f"is damaged ({said})"
    return None


def _open_onnx(path: Path, it: Candidate) -> None:
    """Raises an exception unless it is a whole ONNX file of this candidate."""
    import onnx

    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    told = {entry.key: entry.value for entry in model.metadata_props}
    if told.get("candidate") != str(it.id):
        raise ValueError(f"it is of candidate {told.get('candidate', 'unknown')}")
    if msgspec.json.decode(told.get("genome", "null")) != it.genome:
        raise ValueError(f"it is of another genome: {told.get('genome', 'unknown')}")
    if it.onnx_sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != it.onnx_sha256:
        raise ValueError("its digest is not the one in the journal")


def _open_calibration(path: Path) -> None:
    """Raises an exception unless it is an array of samples."""
    samples = np.load(path, allow_pickle=False)
    if samples.ndim != 4 or samples.dtype != np.uint8:
        raise ValueError(f"it holds {samples.dtype} of shape {samples.shape}")


def _open_shard(path: Path) -> None:
    """Raises an exception unless both files are whole and say the same."""
    about, data = read_shard(path)
    size = math.prod(about.input_shape) + 4 * math.prod(about.target_shape)
    if len(data) != size or about.input_shape[0] != about.target_shape[0]:
        raise ValueError(f"{len(data)} bytes, where {size} were written")
