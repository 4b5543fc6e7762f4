"""What an on-axis camera sees of one simulated scan line: light of the melt pool, spatter, plume, noise.

Works in pixels and frames on top of `meltpool`; knows no files and no layers. Every random number comes from
the generator that is passed in.
"""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

from mpinas.tasks.lpbf.meltpool import Beam, Glow, Steel, capillary_hz, pool_width_m, temperature_rise_k

Image = npt.NDArray[np.float32]

#: Absorbed power over the root of the speed at the mean of both, W (m/s)^-1/2; vapour grows with it.
MEAN_ENERGY = 95.0


@dataclass(frozen=True, slots=True)
class Camera:
    """The camera and what disturbs it; the same for all lines of a recording."""

    frame_rate_hz: float = 20_000.0
    pixel_m: float = 14e-6
    #: Grey values that boiling steel gives at gain 1. Above 255: the core of a pool is saturated.
    boiling_counts: float = 420.0
    offset_counts: float = 16.0
    electrons_per_count: float = 12.0
    read_noise_counts: float = 2.0


@dataclass(frozen=True, slots=True)
class Line:
    """One scan line to draw: the labels, and what nobody tells the network."""

    speed_mm_s: float
    power_w: float
    angle_rad: float
    absorptivity: float
    gain: float
    focus_px: float
    lit_frames: int
    dark_frames: int = 2  # before and after
    centre_px: tuple[float, float] = (0.0, 0.0)  # (row, column) off the image's centre


@dataclass(frozen=True, slots=True)
class Turbulence:
    """How strongly a pool departs from the quasi-steady solution."""

    keyhole: float = 0.10  # relative deviation of the absorbed power
    keyhole_hz_per_w: float = 12.0  # keyhole fluctuation: 2.6 kHz at 215 W
    capillary: float = 0.08  # relative deviation of the tail's temperature rise
    texture: float = 0.5  # deviation of the logarithm of the tail's emissivity
    texture_length_m: float = 65e-6
    texture_life_s: float = 3e-3
    plume: float = 0.15
    spatter_per_frame: float = 0.35  # at the mean energy


@dataclass(frozen=True, slots=True)
class Setup:
    """What all lines of a recording share."""

    camera: Camera = field(default_factory=Camera)
    steel: Steel = field(default_factory=Steel)
    turbulence: Turbulence = field(default_factory=Turbulence)


@dataclass(frozen=True, slots=True)
class Texture:
    """Slag, oxide and ripples on the tail: how fast they pass, how large they are, how long they last."""

    travel_px: tuple[float, float]  # a frame, (columns, rows), against the scan
    length_px: float
    life_frames: float


glow_of = cache(Glow.of)  # a table per steel, made once


def oscillation(frequency_hz: float, damping: float, frames: int, rate_hz: float, rng: np.random.Generator) -> Image:
    """Return a randomly driven damped oscillator of unit variance, sampled each frame.

    `damping` is the decay rate over the angular frequency; frequencies above half the frame rate
    alias, as they do in a camera.
    """
    omega = 2.0 * np.pi * frequency_hz / rate_hz
    rotation = np.exp(-damping * omega + 1j * omega)
    drive = rng.standard_normal((frames, 2)) @ np.array([1.0, 1j])
    kick = np.sqrt(1.0 - abs(rotation) ** 2)
    state = np.empty(frames, np.complex128)
    current = rng.standard_normal() + 1j * rng.standard_normal()
    for i in range(frames):
        current = rotation * current + kick * drive[i]
        state[i] = current
    return state.real.astype(np.float32)


def advected_texture(texture: Texture, axes_px: tuple[Image, Image], frames: int, rng: np.random.Generator) -> Image:
    """Return a Gaussian random field of unit variance that the steel carries along: [frames, rows, columns].

    A sum of random plane waves. Each frame it has moved on by `travel_px`, by any fraction of a pixel; the
    phases wander, so that a patch is forgotten after about `life_frames`.
    """
    waves = 40
    k = rng.standard_normal((2, waves)) / texture.length_px  # radians a pixel
    wander = np.cumsum(rng.standard_normal((frames, waves)) * np.sqrt(2.0 / texture.life_frames), axis=0)
    time = np.arange(frames)[:, None]
    phase = (
        rng.uniform(0, 2 * np.pi, waves) + time * (k[0] * texture.travel_px[0] + k[1] * texture.travel_px[1]) + wander
    )
    in_time = np.exp(1j * phase).astype(np.complex64)  # [frames, waves]
    columns = np.exp(1j * axes_px[0][:, None] * k[0]).astype(np.complex64)
    rows = np.exp(1j * axes_px[1][:, None] * k[1]).astype(np.complex64)
    in_space = (rows[:, None, :] * columns[None, :, :]).reshape(-1, waves)  # [rows * columns, waves]
    field = in_time.real @ in_space.real.T - in_time.imag @ in_space.imag.T
    scaled: Image = field.reshape(frames, len(rows), len(columns)) * np.float32(np.sqrt(2.0 / waves))
    return scaled


def add_spatter(light: Image, starts: npt.NDArray[np.int64], angle_rad: float, rng: np.random.Generator) -> None:
    """Add hot particles that fly off from the pool, mostly backwards, and cool.

    `starts` holds the first frame of each; a particle lives for six frames at most.
    """
    frames, height, width = light.shape
    reach = 3
    grid = np.arange(-reach, reach + 1)
    heading = angle_rad + np.pi + rng.normal(0.0, 0.9, len(starts))
    speed_px = rng.gamma(3.0, 1.7, len(starts))  # 1 m/s is 3.6 pixels a frame of 14 um pixels
    heat = rng.uniform(0.15, 1.0, len(starts))
    size_px = rng.uniform(0.5, 1.0, len(starts))
    for age in range(6):
        row = height / 2 + np.sin(heading) * (3.0 + speed_px * (age + 0.5))
        column = width / 2 + np.cos(heading) * (3.0 + speed_px * (age + 0.5))
        seen = (starts + age < frames) & (row >= reach) & (row < height - reach - 1)
        seen &= (column >= reach) & (column < width - reach - 1)
        for i in np.flatnonzero(seen):
            r, c = int(row[i]), int(column[i])
            blob = np.exp(
                -((grid[:, None] - (row[i] - r)) ** 2 + (grid[None, :] - (column[i] - c)) ** 2) / (2 * size_px[i] ** 2)
            )
            patch = light[starts[i] + age, r - reach : r + reach + 1, c - reach : c + reach + 1]
            patch += (heat[i] * 0.75**age * blob).astype(np.float32)


def blur(light: Image, sigma_px: float) -> Image:
    """Return the frames behind a Gaussian point spread, as two products with a band matrix."""

    def band(size: int) -> Image:
        at = np.arange(size)
        kernel = np.exp(-((at[:, None] - at[None, :]) ** 2) / (2.0 * sigma_px**2))
        scaled: Image = (kernel / (sigma_px * np.sqrt(2.0 * np.pi))).astype(np.float32)
        return scaled

    blurred: Image = np.matmul(np.matmul(band(light.shape[1]), light), band(light.shape[2]))
    return blurred


def draw_line(line: Line, size: tuple[int, int], setup: Setup, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return the frames of one scan line: dark, lit, cooling down; [frames, height, width]."""
    camera, steel, turbulence = setup.camera, setup.steel, setup.turbulence
    rate_hz = camera.frame_rate_hz
    frames = line.lit_frames + 2 * line.dark_frames
    rows_px = _axis(size[0], line.centre_px[0])
    columns_px = _axis(size[1], line.centre_px[1])
    direction = (float(np.cos(line.angle_rad)), float(np.sin(line.angle_rad)))
    speed_m_s = line.speed_mm_s * 1e-3
    time_s = (np.arange(frames) + 0.5 - line.dark_frames) / rate_hz  # since the laser went on
    off_s = line.lit_frames / rate_hz
    rise_k = temperature_rise_k(
        steel,
        Beam(line.absorptivity * line.power_w, speed_m_s, direction),
        (columns_px.astype(float) * camera.pixel_m, rows_px.astype(float) * camera.pixel_m),
        (np.maximum(time_s - off_s, 0.0), np.maximum(time_s, 0.0)),
    )  # [frames, height, width]

    # 1 behind the beam, 0 ahead of it: the tail, where no vapour pushes the surface down.
    along_px = columns_px[None, :] * direction[0] + rows_px[:, None] * direction[1]
    tail = (1.0 / (1.0 + np.exp(along_px + 3.0))).astype(np.float32)
    width_m = pool_width_m(rise_k[line.dark_frames + line.lit_frames - 1], steel, camera.pixel_m)
    keyhole = oscillation(turbulence.keyhole_hz_per_w * line.power_w, 0.15, frames, rate_hz, rng)
    capillary = oscillation(capillary_hz(width_m, steel), 0.15, frames, rate_hz, rng)
    unsteady = 1.0 + turbulence.keyhole * keyhole[:, None, None]
    unsteady = unsteady + turbulence.capillary * capillary[:, None, None] * tail
    light = glow_of(steel)(rise_k.astype(np.float32) * unsteady)

    step_px = speed_m_s / rate_hz / camera.pixel_m
    patches = Texture(
        (direction[0] * step_px, direction[1] * step_px),
        turbulence.texture_length_m / camera.pixel_m,
        turbulence.texture_life_s * rate_hz,
    )
    light *= np.exp(turbulence.texture * tail * advected_texture(patches, (columns_px, rows_px), frames, rng))

    vapour = float(np.clip(line.absorptivity * line.power_w / np.sqrt(speed_m_s) / MEAN_ENERGY, 0.2, 3.0))
    count = rng.poisson(turbulence.spatter_per_frame * vapour * line.lit_frames)
    add_spatter(light, line.dark_frames + rng.integers(0, line.lit_frames, count), line.angle_rad, rng)
    puffs = np.exp(0.5 * oscillation(800.0, 0.6, frames, rate_hz, rng) + 0.25 * keyhole)
    plume = (turbulence.plume * vapour * puffs * ((time_s > 0) & (time_s < off_s))).astype(np.float32)
    cloud = np.exp(-(columns_px[None, :] ** 2 + rows_px[:, None] ** 2) / 100.0).astype(np.float32)
    light = light * np.exp(-plume)[:, None, None] + 0.35 * plume[:, None, None] * cloud
    return expose(light, line, camera, rng)


def expose(light: Image, line: Line, camera: Camera, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return grey values: blur, gain, offset, shot noise (as a Gaussian), read noise, saturation at 255."""
    counts = blur(light, line.focus_px) * (line.gain * camera.boiling_counts)
    noise = rng.standard_normal(counts.shape, dtype=np.float32)
    noise *= np.sqrt(counts / camera.electrons_per_count + camera.read_noise_counts**2)
    grey: npt.NDArray[np.uint8] = np.clip(counts + camera.offset_counts + noise + 0.5, 0, 255).astype(np.uint8)
    return grey


def _axis(size: int, shift: float) -> Image:
    """Return pixel positions from a centre that lies `shift` off the middle."""
    axis: Image = (np.arange(size) - (size - 1) / 2 - shift).astype(np.float32)
    return axis
