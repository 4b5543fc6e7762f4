"""Read melt-pool recordings in both published layouts of RAISE-LPBF-Laser, one scan line at a time.

v1.0 is one file with `/<object>/<layer>/...`, v1.1 one file an object with `/<layer>/...`. Opening reads line
indices and labels, never frames: a recording may be larger than 100 GB. Knows nothing of windows or networks.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from mpinas.errors import UserError
from mpinas.tasks.lpbf.layer import Layer, LayerPlace, ScanLine, check_layer, label_tables
from mpinas.tasks.lpbf.targets import PUBLISHED, Labels

SUFFIXES = (".hdf5", ".h5")
#: Room for the chunks of several lines, so that neighbouring lines do not unpack a chunk twice.
CACHE_BYTES = 32 * 2**20

Result = TypeVar("Result")


class Recording:
    """Scan lines of one or more files; keeps the files open until `close`."""

    def __init__(self, paths: Sequence[Path], labels: Labels | None, need_labels: bool) -> None:
        self.files: tuple[Path, ...] = tuple(paths)
        self._handles: list[h5py.File] = []
        layers: list[Layer] = []
        lines: list[ScanLine] = []
        try:
            for position, path in enumerate(self.files):
                self._handles.append(_open(path))
                for layer, found in _read(path, partial(self._scan, position, labels, need_labels)):
                    layers.append(layer)
                    lines.extend(found)
            _refuse_duplicates(self.files, layers)
            if not lines:
                raise UserError(f"{self.files[0]}: no scan lines; give a recording with frames")
        except BaseException:
            self.close()
            raise
        #: Never empty; ordered by file, object, layer and number.
        self.lines: tuple[ScanLine, ...] = tuple(lines)
        self.layers: tuple[Layer, ...] = tuple(layers)

    @property
    def labelled(self) -> bool:
        """Whether every line has labels."""
        return all(line.labels is not None for line in self.lines)

    @property
    def frame_sizes(self) -> tuple[tuple[int, int], ...]:
        """The (height, width) that occur, each once."""
        return tuple(sorted({layer.shape[1:] for layer in self.layers}))

    def read_line(self, line: ScanLine) -> npt.NDArray[np.uint8]:
        """Return the frames of one line, [frames, height, width]."""
        path = self.files[line.file]

        def read() -> npt.NDArray[np.uint8]:
            frame = self._handles[line.file][f"{line.group}/frame"]
            return np.concatenate([frame[start:stop] for start, stop in line.runs])

        return _read(path, read, f"{path}, {line.group}, line {line.number}")

    def label_tables(self, layer: Layer) -> dict[str, npt.NDArray[np.float64]]:
        """Return whatever may be the labels of a layer, see `layer.label_tables`."""
        path = self.files[layer.place.file]
        return _read(path, lambda: label_tables(self._handles[layer.place.file][layer.group]), f"{path}, {layer.group}")

    @property
    def simulated(self) -> bool:
        """Whether any of its files says that it is simulated."""
        return any(self.attributes(file).get("simulated") for file in range(len(self.files)))

    def attributes(self, file: int) -> dict[str, object]:
        """Return the attributes of a file's root, as plain values."""
        path = self.files[file]
        return _read(path, lambda: {name: _plain(value) for name, value in self._handles[file].attrs.items()})

    def close(self) -> None:
        """Close the files; lines and layers stay."""
        for handle in self._handles:
            handle.close()
        self._handles = []

    def __enter__(self) -> "Recording":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scan(self, position: int, labels: Labels | None, need_labels: bool) -> list[tuple[Layer, list[ScanLine]]]:
        """Return the layers of one file with their lines."""
        handle, path = self._handles[position], self.files[position]
        return [
            check_layer(group, LayerPlace(path, position, name, number, layout), labels, need_labels)
            for name, parent, layout in _objects(handle, path)
            for number, group in _numbered(parent)
        ]


def open_recording(
    paths: Path | str | Iterable[Path | str], labels: Labels | None = PUBLISHED, need_labels: bool = False
) -> Recording:
    """Open a file, a folder of files, or several of these; where `labels` is None, none are read.

    With `need_labels` (training files) a layer without the labels' dataset, and labels that are not usable, are
    refused; without it such lines simply have no labels. Raises UserError, one line, for whatever is wrong.
    """
    return Recording(recording_files(paths), labels, need_labels)


def recording_files(paths: Path | str | Iterable[Path | str]) -> list[Path]:
    """The files that these name, folders looked into. Raises UserError where there is none."""
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise UserError("no recording given; name an HDF5 file or a folder of them")
    files: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            try:
                inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}; check its permissions") from None
            if not inside:
                raise UserError(f"{path}: no .hdf5 or .h5 file in this folder; give a folder of recordings")
            files.extend(inside)
        elif not path.exists():
            raise UserError(f"{path}: no such file; check the path")
        else:
            files.append(path)
    return files


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES)
    except OSError as error:
        reason = " ".join(str(error).split())
        if "truncated" in reason:
            raise UserError(f"{path}: the file is truncated; copy it again") from error
        if "signature not found" in reason:
            raise UserError(f"{path}: not an HDF5 file; give a RAISE-LPBF-Laser recording") from error
        raise UserError(f"{path}: cannot be opened ({reason}); check the file and its permissions") from error


def _read(path: Path, action: Callable[[], Result], where: str | None = None) -> Result:
    """Run an action on an open file; what HDF5 raises on damaged content becomes one line."""
    try:
        return action()
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where or path}: cannot be read ({reason}); copy the file again") from error


def _plain(value: object) -> object:
    """Return an attribute without numpy types."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _groups(parent: h5py.Group) -> list[h5py.Group]:
    """Return the groups inside; a link that leads nowhere would hide a layer, so it is refused."""
    found = []
    for name, child in parent.items():
        if child is None:
            damaged = isinstance(parent.get(name, getlink=True), h5py.HardLink)
            raise UserError(
                f"{parent.file.filename}, {parent.name}: `{name}` "
                + ("is damaged; copy the file again" if damaged else
                   "links to what is not there; put the linked file beside it or remove the link")
            )  # fmt: skip
        if isinstance(child, h5py.Group):
            found.append(child)
    return found


def _is_layer(group: h5py.Group) -> bool:
    return "frame" in group or "scan_line_index" in group


def _objects(handle: h5py.File, path: Path) -> list[tuple[str, h5py.Group, str]]:
    """Return (object, group of its layers, layout) of a file in either layout."""
    top = _groups(handle)
    flat = any(_is_layer(group) for group in top)
    nested = [group for group in top if not _is_layer(group) and any(map(_is_layer, _groups(group)))]
    if flat and nested:
        raise UserError(f"{path}: layers at the top and inside {nested[0].name}; keep to one layout")
    if flat:
        return [(path.stem, handle, "v1.1")]
    if nested:
        return [(group.name.strip("/"), group, "v1.0") for group in nested]
    raise UserError(
        f"{path}: no group with `frame` and `scan_line_index`; give a recording in a RAISE-LPBF-Laser layout"
    )


def _numbered(parent: h5py.Group) -> list[tuple[int, h5py.Group]]:
    """Return the layers by the number that ends their names; by position where one has no number."""
    groups = [group for group in _groups(parent) if _is_layer(group)]
    numbers = [re.search(r"(\d+)\D*$", group.name.rsplit("/", 1)[-1]) for group in groups]
    if not all(numbers):
        return list(enumerate(groups))
    found = [(int(number[1]), group) for number, group in zip(numbers, groups, strict=True) if number]
    return sorted(found, key=lambda pair: pair[0])


def _refuse_duplicates(files: Sequence[Path], layers: Iterable[Layer]) -> None:
    """Refuse an object that two files hold, and a layer number that an object has twice."""
    owner: dict[str, int] = {}
    seen: dict[tuple[str, int], str] = {}
    for layer in layers:
        place = layer.place
        first = owner.setdefault(place.object, place.file)
        if first != place.file:
            raise UserError(f"{place.path}: object {place.object} is also in {files[first]}; give each once")
        other = seen.setdefault((place.object, place.number), layer.group)
        if other != layer.group:
            raise UserError(f"{place.path}: {layer.group} and {other} have the same layer number; rename one")
