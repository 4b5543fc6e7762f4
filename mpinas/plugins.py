"""Tasks, search spaces and networks by name: those that are installed, and those that stand in a user's own file.

Nothing here knows what a plug-in does, and nothing in the core names one: what is installed says so itself, as an
entry point. docs/extending.md shows how to write one.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from mpinas.errors import UserError

#: What can be plugged in: each has its group of entry points.
Kind = Literal["tasks", "spaces", "networks"]


def names(kind: Kind) -> list[str]:
    """Names of all that is installed."""
    return sorted({point.name for point in entry_points(group=f"mpinas.{kind}")})


def find(kind: Kind, name: str, where: str) -> Any:
    """What `name` stands for: an installed one's name, "module:object", or "path/to/file.py:object".

    `where`: who asks, for messages: "task.name".

    Raises
    ------
    UserError
        There is no such thing, or its code cannot be loaded.
    """
    source, colon, attribute = name.rpartition(":")
    if not colon:
        return _installed(kind, name, where)
    try:
        module = _of_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except Exception as error:  # whatever the code of a user does when it is loaded
        raise UserError(
            f"{where} = {name!r}: {source} cannot be loaded: {in_one_line(error)}; name a file as "
            '"path/to/file.py:Name", relative to the experiment file, or an installed module as "module:Name"'
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise UserError(f"{where} = {name!r}: {source} has no {attribute!r}{_near(attribute, dir(module))}") from None


def reference(plugin: Any) -> str:
    """A name by which `find` finds a class or function again, in any process."""
    module, name = getattr(plugin, "__module__", ""), getattr(plugin, "__qualname__", "")
    if not name.isidentifier() or module not in sys.modules:
        raise UserError(f"{plugin!r} cannot be found by a name: define it as a class or function of its file")
    return f"{getattr(sys.modules[module], '__mpinas_file__', module)}:{name}"


def absolute(name: str, folder: Path) -> str:
    """The same name; a file's path made absolute, where it is relative to `folder`."""
    source, colon, attribute = name.rpartition(":")
    return f"{folder / source}:{attribute}" if colon and source.endswith(".py") else name


def _installed(kind: Kind, name: str, where: str) -> Any:
    found = next(iter(entry_points(group=f"mpinas.{kind}", name=name)), None)
    if found is None:
        known = names(kind)
        installed = f"known are {', '.join(known)}" if known else "none is installed: install mpinas again"
        raise UserError(f'{where} = {name!r} is unknown{_near(name, known)}; {installed}, or "file.py:Name"')
    try:
        return found.load()
    except Exception as error:  # whatever the code of a package does when it is loaded
        raise UserError(
            f"{where} = {name!r}: {found.value} cannot be loaded: {in_one_line(error)}; install it again"
        ) from error


def _of_file(path: Path) -> ModuleType:
    """The module of a file, loaded once in a process, by whatever path it is named."""
    path = path.resolve(strict=True)
    name = f"mpinas_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__mpinas_file__ = str(path)  # type: ignore[attr-defined]
    sys.modules[name] = module  # before it runs: dataclasses look for their module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def in_one_line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0] or 'no message'}"


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f", did you mean {near[0]}?" if near else ""
