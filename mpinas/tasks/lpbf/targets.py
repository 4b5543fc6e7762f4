"""What the labels of scan lines mean: which columns are learned, how they are normalised, and how to undo that.

Plain numbers and text: must not know files, windows or networks.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from mpinas.config import Target, Task
from mpinas.errors import UserError

Numbers = npt.NDArray[np.float64]

#: What else a layer holds, and what else a row of predictions says.
_DATASETS, _COLUMNS = ("frame", "scan_line_index"), ("object", "layer", "line")


@dataclass(frozen=True, slots=True)
class Labels:
    """Where labels stand in a layer, and which of them are wanted."""

    dataset: str
    targets: tuple[Target, ...]

    @property
    def columns(self) -> tuple[int, ...]:
        """The column of each target: the one that it names, or else its place among the targets."""
        return tuple(
            place if isinstance(target.column, msgspec.UnsetType) else target.column
            for place, target in enumerate(self.targets)
        )

    @property
    def all_columns(self) -> bool:
        """Whether the dataset may have no other columns: none is named, so that one more would shift their meaning."""
        return all(isinstance(target.column, msgspec.UnsetType) for target in self.targets)

    @property
    def lowest(self) -> float:
        """Labels below this are refused: nothing scans with a negative speed or power."""
        return 0.0 if self.targets == PUBLISHED.targets else -math.inf

    @property
    def named(self) -> str:
        """The targets for people: "speed in mm/s, power in W"."""
        return ", ".join(f"{each.name} in {each.unit}" if each.unit else each.name for each in self.targets)

    def usable(self, values: Sequence[float]) -> bool:
        """Whether one line's values, in the order of the targets, can be learned from."""
        return all(math.isfinite(value) and value >= self.lowest for value in values)

    def said(self, values: Sequence[float]) -> str:
        """Such values for people: "speed 900.0 mm/s and power nan W"."""
        return " and ".join(
            f"{target.name} {value} {target.unit}".rstrip() for target, value in zip(self.targets, values, strict=True)
        )


#: Laser speed and power, as in RAISE-LPBF-Laser.
PUBLISHED = Labels(Task(name="lpbf").labels, Task(name="lpbf").targets)


def labels_of(settings: Task) -> Labels:
    """The labels that [task] describes.

    Raises
    ------
    UserError
        A number is not finite, a column or a name is used twice, or a name is taken.
    """
    labels = Labels(settings.labels, settings.targets)
    if labels.dataset in _DATASETS:
        raise UserError(f"task.labels = {labels.dataset!r}: that dataset holds no labels; name the one that does")
    for target in labels.targets:
        if not (math.isfinite(target.scale) and math.isfinite(target.offset)):
            raise UserError(f"task.targets: {target.name} has scale {target.scale} and offset {target.offset}; "
                            "both must be finite")  # fmt: skip
        if not column_name(target) or column_name(target) in _COLUMNS:
            raise UserError(f"task.targets: {target.name!r} cannot name a column of a table; choose another name")
    seen: set[str] = set()
    for target, column in zip(labels.targets, labels.columns, strict=True):
        for what in (f"called {column_name(target)}", f"of column {column}"):
            if what in seen:
                raise UserError(f"task.targets: two targets are {what}; each needs its own")
            seen.add(what)
    return labels


def column_name(target: Target) -> str:
    """A name with the unit, fit for keys and tables: "speed_mm_s"."""
    words = (re.sub(r"\W+", "_", part.lower()).strip("_") for part in (target.name, target.unit))
    return "_".join(word for word in words if word)


def normalised(values: Numbers, targets: Sequence[Target]) -> npt.NDArray[np.float32]:
    """[n, targets] in their units -> what networks learn."""
    offset, scale = _of(targets)
    return ((values - offset) / scale).astype(np.float32)


def in_units(outputs: npt.NDArray[np.float32], targets: Sequence[Target]) -> Numbers:
    """[n, targets] as networks give them -> in their units."""
    offset, scale = _of(targets)
    found: Numbers = outputs * scale + offset
    return found


def formula(targets: Sequence[Target]) -> str:
    """What a network gives, for people: "speed / 900 mm/s, power / 215 W"."""
    return ", ".join(
        (f"({target.name} - {target.offset:g}{_unit(target)})" if target.offset else target.name)
        + f" / {target.scale:g}{_unit(target)}"
        for target in targets
    )


def to_metadata(targets: Sequence[Target]) -> str:
    """The same for programs: a JSON list with name, unit, scale and offset of each output."""
    keys = ("name", "unit", "scale", "offset")
    return msgspec.json.encode([{key: getattr(target, key) for key in keys} for target in targets]).decode()


def from_metadata(metadata: Mapping[str, str]) -> tuple[Target, ...]:
    """The targets of a model by its metadata; speed and power where an older one does not say.

    Raises
    ------
    UserError
        They are not to be understood.
    """
    if "targets" not in metadata:
        return PUBLISHED.targets
    try:
        return msgspec.json.decode(metadata["targets"], type=tuple[Target, ...])
    except msgspec.DecodeError as error:
        raise UserError(f"the model's metadata do not say what it predicts ({error}); export it again") from None


def _of(targets: Sequence[Target]) -> tuple[Numbers, Numbers]:
    return np.array([target.offset for target in targets]), np.array([target.scale for target in targets])


def _unit(target: Target) -> str:
    return f" {target.unit}" if target.unit else ""
