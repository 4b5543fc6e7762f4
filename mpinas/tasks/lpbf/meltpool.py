"""Heat and light of a laser track in 316L steel: temperature on the surface, radiance in the camera's band.

Knows physics in SI units only: no camera, no noise, no files. The temperature is the solution of Eagar and
Tsai (Welding Journal 62, 1983, 346s-355s) for a Gaussian source that moves over a half-space; far from the
beam it becomes Rosenthal's point source (Trans. ASME 68, 1946, 849-866).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Second radiation constant h c / k_B in m K.
SECOND_RADIATION_M_K = 1.438777e-2


@dataclass(frozen=True, slots=True)
class Steel:
    """Constants of 316L near its melting point, taken as independent of temperature.

    From C. S. Kim, Thermophysical properties of stainless steels, ANL-75-55 (1975), and K. C. Mills,
    Recommended values of thermophysical properties for selected commercial alloys (2002), rounded.
    """

    conductivity_w_m_k: float = 30.0
    density_kg_m3: float = 7200.0
    specific_heat_j_kg_k: float = 775.0
    melting_k: float = 1690.0  # between solidus 1658 K and liquidus 1723 K
    boiling_k: float = 3090.0
    ambient_k: float = 300.0
    surface_tension_n_m: float = 1.6
    #: Share of the laser's power that heats the steel. Trapp et al., Applied Materials Today 9 (2017)
    #: 341-349, measured 0.3 to 0.7 in 316L, conduction to keyhole mode.
    absorptivity: float = 0.42

    @property
    def diffusivity_m2_s(self) -> float:
        """Thermal diffusivity."""
        return self.conductivity_w_m_k / (self.density_kg_m3 * self.specific_heat_j_kg_k)


@dataclass(frozen=True, slots=True)
class Beam:
    """A Gaussian laser beam that moves in a straight line over the image."""

    absorbed_w: float
    speed_m_s: float
    #: Unit vector (along columns, along rows) of the scan.
    direction: tuple[float, float]
    #: Standard deviation of the intensity; a 1/e^2 diameter of 90 um is 4 of them.
    sigma_m: float = 22.5e-6


def temperature_rise_k(
    steel: Steel, beam: Beam, axes_m: tuple[Floats, Floats], window_s: tuple[Floats, Floats], nodes: int = 128
) -> Floats:
    """Return the surface's temperature above ambient, in the frame that moves with the beam.

    Parameters
    ----------
    axes_m
        Columns' and rows' coordinates from the beam's centre.
    window_s
        For each frame, how long ago the laser was switched off (0 while on) and on. A frame sees the heat
        given off between the two, so switching on and cooling down are part of the same integral.
    nodes
        Nodes of the quadrature in the square root of the heat's age, which removes the singularity at age 0.

    Returns
    -------
    Floats
        [frames, rows, columns]
    """
    columns_m, rows_m = axes_m
    youngest_s, oldest_s = window_s
    alpha = steel.diffusivity_m2_s
    # Heat older than this has left the image by ten widths or more.
    reach_m = 2.0 * (np.ptp(columns_m) + np.ptp(rows_m))
    limit_s = min(float(np.max(oldest_s, initial=0.0)), reach_m / beam.speed_m_s)
    width = np.sqrt(max(limit_s, 1e-9)) / nodes
    root_age = (np.arange(nodes) + 0.5) * width
    age_s = root_age**2
    spread_m2 = 2.0 * alpha * age_s + beam.sigma_m**2

    def gaussian(axis_m: Floats, along: float) -> Floats:
        offset_m = axis_m[None, :] + beam.speed_m_s * along * age_s[:, None]
        shape: Floats = np.exp(-(offset_m**2) / (2.0 * spread_m2[:, None]))  # [nodes, axis]
        return shape

    # The share of each quadrature cell that lies in the frame's window.
    low = np.sqrt(np.maximum(youngest_s, 0.0))[:, None]
    high = np.sqrt(np.maximum(oldest_s, 0.0))[:, None]
    upper = np.minimum(root_age + width / 2, high)
    lower = np.maximum(root_age - width / 2, low)
    share = np.clip(upper - lower, 0.0, None) / width  # [frames, nodes]
    strength = beam.absorbed_w / (
        np.pi * steel.density_kg_m3 * steel.specific_heat_j_kg_k * np.sqrt(4.0 * np.pi * alpha)
    )
    weight = share * (strength * 2.0 * width / spread_m2)  # [frames, nodes]
    over_columns = gaussian(columns_m, beam.direction[0])
    over_rows = gaussian(rows_m, beam.direction[1])
    left = weight[:, None, :] * over_rows.T[None, :, :]  # [frames, rows, nodes]
    rise: Floats = left @ over_columns  # [frames, rows, columns]
    return rise


def band_radiance(temperature_k: Floats, band_m: tuple[float, float] = (700e-9, 950e-9)) -> Floats:
    """Return Planck's radiance summed over a band of wavelengths, up to a constant factor."""
    wavelengths_m = np.linspace(*band_m, 33)
    flat_k = np.asarray(temperature_k, float).ravel()
    exponent = SECOND_RADIATION_M_K / (wavelengths_m[:, None] * flat_k[None, :])
    spectral = wavelengths_m[:, None] ** -5 / np.expm1(exponent)
    summed: Floats = np.trapezoid(spectral, wavelengths_m, axis=0).reshape(np.shape(temperature_k))
    return summed


@dataclass(frozen=True, slots=True)
class Glow:
    """A table of relative radiance against temperature: 1 at boiling, where temperature is capped."""

    table: npt.NDArray[np.float32]
    start_k: float
    step_k: float

    @classmethod
    def of(cls, steel: Steel, step_k: float = 2.0) -> "Glow":
        """Tabulate the band's radiance from ambient to boiling."""
        grid_k = np.arange(steel.ambient_k, steel.boiling_k + step_k, step_k)
        radiance = band_radiance(np.minimum(grid_k, steel.boiling_k))
        relative = radiance / radiance[-1]
        return cls(relative.astype(np.float32), steel.ambient_k, step_k)

    def __call__(self, rise_k: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Look the relative radiance up for a temperature above ambient; what boils stays at boiling."""
        index = np.minimum(rise_k * (1.0 / self.step_k), len(self.table) - 1).astype(np.int32)
        found: npt.NDArray[np.float32] = self.table[np.maximum(index, 0)]
        return found


def pool_width_m(rise_k: Floats, steel: Steel, pixel_m: float) -> float:
    """Return the diameter of the circle that has the molten surface's area (one pixel at least)."""
    molten = int(np.count_nonzero(rise_k >= steel.melting_k - steel.ambient_k))
    return float(2.0 * np.sqrt(max(molten, 1) / np.pi) * pixel_m)


def capillary_hz(width_m: float, steel: Steel) -> float:
    """Return the frequency of the lowest capillary wave in a deep pool: half a wavelength across."""
    wavenumber = np.pi / width_m
    return float(np.sqrt(steel.surface_tension_n_m * wavenumber**3 / steel.density_kg_m3) / (2.0 * np.pi))
