"""Write recordings in the layouts of RAISE-LPBF-Laser that were computed, not measured.

Chooses what is scanned (speeds, powers, layers, nuisances) and writes the files; `scene` draws a line.
Every file says that it is simulated, by which version of the generator, from which seed and parameters.
"""

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import numpy.typing as npt

from mpinas.errors import UserError
from mpinas.tasks.lpbf.scene import Line, Setup, draw_line

#: Changes whenever the same plan gives other frames.
GENERATOR_VERSION = 1
#: Layers of an object, and lines of a layer: more than any build has.
MOST = 10_000
#: Room beyond the frames of a layer: their index, and what HDF5 writes as a file is closed.
ROOM_BYTES = 1 << 18

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Process:
    """The spread of what is set (speed, power) and of what nobody knows, line by line and layer by layer."""

    speed_mm_s: tuple[float, float] = (900.0, 400.0)  # mean, deviation before truncation
    speed_range_mm_s: tuple[float, float] = (100.0, 2200.0)
    power_w: tuple[float, float] = (215.0, 80.0)
    power_range_w: tuple[float, float] = (50.0, 450.0)
    #: Deviations of logarithms: powder and surface differ by line; the window gets dirty by layer and object.
    absorptivity_line: float = 0.08
    gain_line: float = 0.10
    gain_layer: float = 0.20
    gain_object: float = 0.15
    focus_px: tuple[float, float] = (0.9, 1.2)
    misalignment_px: float = 1.0
    rotation_deg: float = 90.0  # of the scan from layer to layer; lines of a layer go to and fro
    angle_deviation_deg: float = 4.0


@dataclass(frozen=True, slots=True)
class SimulationPlan:
    """What `simulate` writes; two equal plans give equal arrays."""

    layout: Literal["v1.0", "v1.1"] = "v1.0"
    objects: tuple[str, ...] = ("S001", "S002")
    layers: int = 5  # of each object
    lines_per_layer: int = 30
    seed: int = 0
    labelled: bool = True
    frame_size: tuple[int, int] = (48, 48)  # height, width
    #: Range of the number of frames with the laser on. It does not depend on the speed: a line's length in
    #: frames would give the speed away, and a window of fixed length cannot see it in long lines anyhow.
    lit_frames: tuple[int, int] = (18, 26)
    dark_frames: int = 2  # before and after
    first_layer: int = 1
    layer_step: int = 1
    process: Process = field(default_factory=Process)
    setup: Setup = field(default_factory=Setup)

    def __post_init__(self) -> None:
        """Refuse a plan that cannot be drawn."""
        wrong = None
        if self.layout not in {"v1.0", "v1.1"}:
            wrong = f"layout is {self.layout!r}; use 'v1.0' or 'v1.1'"
        elif not self.objects or len(set(self.objects)) < len(self.objects):
            wrong = f"objects are {self.objects!r}; give one or more different names"
        elif any(not name or "/" in name or name.startswith(".") for name in self.objects):
            wrong = f"objects are {self.objects!r}; a name has no '/' and does not begin with '.'"
        elif min(self.layers, self.lines_per_layer, self.layer_step) < 1:
            wrong = "layers, lines per layer and layer step must be 1 or more"
        elif max(self.layers, self.lines_per_layer) > MOST:
            wrong = f"layers and lines per layer must be {MOST:,} or fewer"
        elif min(self.frame_size) < 16:
            wrong = f"frame size is {self.frame_size}; a melt pool needs 16 x 16 pixels or more"
        elif not 1 <= self.lit_frames[0] <= self.lit_frames[1] or self.dark_frames < 0:
            wrong = f"lit frames are {self.lit_frames}; give a range such as (18, 26)"
        elif self.seed < 0 or self.first_layer < 0:
            wrong = "seed and first layer must be 0 or more"
        if wrong:
            raise UserError(f"cannot simulate: {wrong}")


def truncated_normal(
    mean_deviation: tuple[float, float], limits: tuple[float, float], count: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return normal numbers inside limits, drawn anew where they fall outside."""
    values = rng.normal(*mean_deviation, count)
    while (outside := (values < limits[0]) | (values > limits[1])).any():
        values[outside] = rng.normal(*mean_deviation, int(outside.sum()))
    return values


def draw_layer(
    plan: SimulationPlan, name: str, position: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return frames, scan line index and laser parameters of one layer; the same whatever else is drawn."""
    key = zlib.crc32(name.encode())
    process, steel = plan.process, plan.setup.steel
    object_gain = np.random.default_rng([plan.seed, key]).normal(0.0, process.gain_object)
    rng = np.random.default_rng([plan.seed, key, position])
    layer_gain = object_gain + rng.normal(0.0, process.gain_layer)
    focus_px = rng.uniform(*process.focus_px)
    centre_px = tuple(rng.normal(0.0, process.misalignment_px, 2))
    lines = plan.lines_per_layer
    speeds = truncated_normal(process.speed_mm_s, process.speed_range_mm_s, lines, rng)
    powers = truncated_normal(process.power_w, process.power_range_w, lines, rng)
    frames, index = [], []
    for number in range(lines):
        angle_deg = process.rotation_deg * position + 180.0 * (number % 2)
        line = Line(
            speed_mm_s=float(speeds[number]),
            power_w=float(powers[number]),
            angle_rad=float(np.deg2rad(angle_deg + rng.normal(0.0, process.angle_deviation_deg))),
            absorptivity=min(steel.absorptivity * float(np.exp(rng.normal(0.0, process.absorptivity_line))), 0.95),
            gain=float(np.exp(layer_gain + rng.normal(0.0, process.gain_line))),
            focus_px=float(focus_px),
            lit_frames=int(rng.integers(plan.lit_frames[0], plan.lit_frames[1] + 1)),
            dark_frames=plan.dark_frames,
            centre_px=(float(centre_px[0]), float(centre_px[1])),
        )
        frames.append(draw_line(line, plan.frame_size, plan.setup, rng))
        index.append(np.full(len(frames[-1]), number, np.int64))
    return np.concatenate(frames), np.concatenate(index), np.stack([speeds, powers], axis=1)


def simulate(path: Path, plan: SimulationPlan, progress: Progress | None = None) -> tuple[Path, ...]:
    """Write the plan's recording and return the files.

    Layout v1.0 makes one file, `path`. Layout v1.1 makes one file an object: `path` itself for a single
    object, otherwise `path/<object>.hdf5`. A file appears under its name only when it is complete; none is
    overwritten.
    `progress` is told the layers done and their number.
    """
    path = Path(path)
    single = len(plan.objects) == 1 and path.suffix in {".hdf5", ".h5"}
    if plan.layout == "v1.0" or single:
        contents = {path: plan.objects}
    else:
        contents = {path / f"{name}.hdf5": (name,) for name in plan.objects}
    for target in contents:
        if target.exists():
            raise UserError(f"{target}: is there already; remove it or choose another name")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{target}: cannot make its folder ({error}); choose another place") from error
    total, done = len(plan.objects) * plan.layers, 0
    for target, names in contents.items():
        partial = target.with_name(target.name + ".partial")
        try:
            with h5py.File(partial, "w") as file:
                _describe(file, plan)
                for name in names:
                    group = file.create_group(name) if plan.layout == "v1.0" else file
                    for position in range(plan.layers):
                        _write_layer(group, plan, name, position)
                        done += 1
                        if progress:
                            progress(done, total)
            partial.replace(target)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)  # HDF5 says more, in two lines
            raise UserError(f"{target}: cannot write it ({why}); check the folder and the space left") from error
        finally:
            with suppress(OSError):  # on a file system that is read only it never was
                partial.unlink()
    return tuple(contents)


def _check_room(folder: Path, size_bytes: int) -> None:
    """Raise OSError before the disk is full: HDF5 cannot close a file there, and takes the whole process with it."""
    if shutil.disk_usage(folder).free < size_bytes + ROOM_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _describe(file: h5py.File, plan: SimulationPlan) -> None:
    """Say in the file's attributes that it is simulated, and from what."""
    file.attrs["simulated"] = True
    file.attrs["generator"] = "mpinas data simulate"
    file.attrs["generator_version"] = GENERATOR_VERSION
    file.attrs["seed"] = plan.seed
    file.attrs["parameters"] = json.dumps(asdict(plan), sort_keys=True)
    file.attrs["layout"] = plan.layout


def _write_layer(group: h5py.Group, plan: SimulationPlan, name: str, position: int) -> None:
    """Draw one layer and write it; a test file gets no `laser_params`."""
    frames, index, params = draw_layer(plan, name, position)
    _check_room(Path(group.file.filename).parent, frames.nbytes)
    layer = group.create_group(f"layer{plan.first_layer + position * plan.layer_step:04d}")
    chunk = (min(16, len(frames)), *plan.frame_size)
    layer.create_dataset("frame", data=frames, chunks=chunk, compression="gzip", compression_opts=1)
    layer.create_dataset("scan_line_index", data=index, chunks=(len(index),), compression="gzip")
    if plan.labelled:
        layer.create_dataset("laser_params", data=params)
