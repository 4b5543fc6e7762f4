"""What an on-axis camera sees of one simulated scan line: light of the melt pool, spatter, plume, noise.

Works in pixels and frames on top of `meltpool`; knows no files and no layers. Every random number comes from the
generator that is passed in.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from mpinas.tasks.lpbf.meltpool import Beam, Glow, Steel, capillary_hz, pool_width_m, temperature_rise_k

Image = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Camera:
    """The camera and what disturbs it; the same for all lines of a recording."""

    frame_rate_hz: float = 20_000.0
    pixel_m: float = 20e-6
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
    texture: float = 0.45  # deviation of the logarithm of the tail's emissivity
    texture_length_m: float = 55e-6
    texture_life_s: float = 1.2e-3
    plume: float = 0.15
    spatter_per_frame: float = 0.35  # at the mean energy


glow_of = cache(Glow.of)  # a table per steel, made once


def oscillation(frequency_hz: float, damping: float, frames: int, rate_hz: float, rng: np.random.Generator) -> Image:
    """Return a randomly driven damped oscillator of unit variance, sampled each frame.

    `damping` is the decay rate over the angular frequency; frequencies above half the frame rate alias, as they do
    in a camera.
    """
    omega = 2.0 * np.pi * frequency_hz / rate_hz
    rotation = np.exp(-damping * omega + 1j * omega)
    drive = rng.standard_normal((frames, 2)) @ np.array([1.0, 1j])
    kick = np.sqrt(1.0 - abs(rotation) ** 2)
    state = np.empty(frames, complex)
    current = rng.standard_normal() + 1j * rng.standard_normal()
    for i in range(frames):
        current = rotation * current + kick * drive[i]
        state[i] = current
    return state.real.astype(np.float32)


def advected_texture(
    travel_px: tuple[float, float], axes_px: tuple[Image, Image], length_px: float, life_frames: float,
    frames: int, rng: np.random.Generator,
) -> Image:  # fmt: skip
    """Return a Gaussian random field of unit variance that the steel carries along: [frames, rows, columns].

    A sum of random plane waves. Each frame it has moved by `travel_px` (columns, rows) against the scan, exactly and
    by any fraction of a pixel; the phases wander, so that a patch is forgotten after about `life_frames`.
    """
    waves = 40
    k = rng.standard_normal((2, waves)) / length_px  # radians a pixel
    wander = np.cumsum(rng.standard_normal((frames, waves)) * np.sqrt(2.0 / life_frames), axis=0)
    time = np.arange(frames)[:, None]
    phase = rng.uniform(0, 2 * np.pi, waves) + time * (k[0] * travel_px[0] + k[1] * travel_px[1]) + wander
    in_time = np.exp(1j * phase).astype(np.complex64)  # [frames, waves]
    columns = np.exp(1j * axes_px[0][:, None] * k[0]).astype(np.complex64)
    rows = np.exp(1j * axes_px[1][:, None] * k[1]).astype(np.complex64)
    in_space = (rows[:, None, :] * columns[None, :, :]).reshape(-1, waves)  # [rows * columns, waves]
    field = in_time.real @ in_space.real.T - in_time.imag @ in_space.imag.T
    scaled: Image = field.reshape(frames, len(rows), len(columns)) * np.float32(np.sqrt(2.0 / waves))
    return scaled


def add_spatter(light: Image, starts: npt.NDArray[np.int64], angle_rad: float, rng: np.random.Generator) -> None:
    """Add hot particles that fly off from the pool, mostly backwards, and cool; `starts` are their first frames."""
    frames, height, width = light.shape
    reach = 3
    grid = np.arange(-reach, reach + 1)
    heading = angle_rad + np.pi + rng.normal(0.0, 0.9, len(starts))
    speed_px = rng.gamma(3.0, 1.2, len(starts))  # 1 m/s is 2.5 pixels a frame
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
        return (kernel / (sigma_px * np.sqrt(2.0 * np.pi))).astype(np.float32)

    blurred: Image = band(light.shape[1]) @ light @ band(light.shape[2])
    return blurred


def draw_line(
    line: Line, size: tuple[int, int], camera: Camera, steel: Steel, turbulence: Turbulence,
    rng: np.random.Generator,
) -> npt.NDArray[np.uint8]:  # fmt: skip
    """Return the frames of one scan line: dark, lit, cooling down; [frames, height, width]."""
    height, width = size
    frames = line.lit_frames + 2 * line.dark_frames
    rows_px = (np.arange(height) - (height - 1) / 2 - line.centre_px[0]).astype(np.float32)
    columns_px = (np.arange(width) - (width - 1) / 2 - line.centre_px[1]).astype(np.float32)
    direction = (float(np.cos(line.angle_rad)), float(np.sin(line.angle_rad)))
    speed_m_s = line.speed_mm_s * 1e-3
    time_s = (np.arange(frames) + 0.5 - line.dark_frames) / camera.frame_rate_hz  # since the laser went on
    off_s = line.lit_frames / camera.frame_rate_hz
    beam = Beam(line.absorptivity * line.power_w, speed_m_s, direction)
    axes_m = (columns_px.astype(float) * camera.pixel_m, rows_px.astype(float) * camera.pixel_m)
    rise_k = temperature_rise_k(
        steel, beam, axes_m, (np.maximum(time_s - off_s, 0.0), np.maximum(time_s, 0.0))
    ).astype(np.float32)  # [frames, height, width]

    # 1 behind the beam, 0 ahead of it: the tail, where the surface is not pushed down by vapour.
    along_px = columns_px[None, :] * direction[0] + rows_px[:, None] * direction[1]
    tail = (1.0 / (1.0 + np.exp((along_px + 3.0) / 1.0))).astype(np.float32)
    steady = rise_k[line.dark_frames + line.lit_frames - 1]
    capillary_rate_hz = capillary_hz(pool_width_m(steady.astype(float), steel, camera.pixel_m), steel)
    keyhole_hz = turbulence.keyhole_hz_per_w * line.power_w
    keyhole = oscillation(keyhole_hz, 0.15, frames, camera.frame_rate_hz, rng)
    capillary = oscillation(capillary_rate_hz, 0.15, frames, camera.frame_rate_hz, rng)
    factor = 1.0 + turbulence.keyhole * keyhole[:, None, None]
    factor = factor + turbulence.capillary * capillary[:, None, None] * tail
    light = glow_of(steel)(rise_k * factor)

    step_px = speed_m_s / camera.frame_rate_hz / camera.pixel_m
    texture = advected_texture(
        (direction[0] * step_px, direction[1] * step_px), (columns_px, rows_px),
        turbulence.texture_length_m / camera.pixel_m, turbulence.texture_life_s * camera.frame_rate_hz, frames, rng,
    )  # fmt: skip
    light *= np.exp(turbulence.texture * texture * tail)

    lit = (time_s > 0) & (time_s < off_s)
    energy = line.absorptivity * line.power_w / np.sqrt(speed_m_s)  # grows with the pool's depth
    vapour = np.clip(energy / 95.0, 0.2, 3.0)
    count = rng.poisson(turbulence.spatter_per_frame * vapour * line.lit_frames)
    add_spatter(light, rng.integers(line.dark_frames, line.dark_frames + line.lit_frames, count), line.angle_rad, rng)
    density = np.exp(0.5 * oscillation(800.0, 0.6, frames, camera.frame_rate_hz, rng) + 0.25 * keyhole)
    density = (turbulence.plume * vapour * density * lit).astype(np.float32)
    puff = np.exp(-((columns_px[None, :] / 7.0) ** 2 + (rows_px[:, None] / 7.0) ** 2) / 2.0).astype(np.float32)
    light = light * np.exp(-density)[:, None, None] + 0.35 * density[:, None, None] * puff

    counts = blur(light, line.focus_px) * (line.gain * camera.boiling_counts)
    noise = rng.standard_normal(counts.shape, dtype=np.float32)
    noise *= np.sqrt(counts / camera.electrons_per_count + camera.read_noise_counts**2)
    return np.clip(counts + camera.offset_counts + noise + 0.5, 0, 255).astype(np.uint8)

