"""The simulator: physics by value, files that the reader takes, and `inspect` on them."""

import json
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
from data_files import BRIGHT, DARK, layer_arrays, simple_file, write_layers
from small_disk import can_mount, small_disk

from mpinas.errors import UserError
from mpinas.tasks.lpbf.inspect import describe, format_description
from mpinas.tasks.lpbf.meltpool import Beam, Glow, Steel, band_radiance, temperature_rise_k
from mpinas.tasks.lpbf.recording import open_recording
from mpinas.tasks.lpbf.scene import Line, Setup, Texture, Turbulence, advected_texture, draw_line, oscillation
from mpinas.tasks.lpbf.simulate import Process, SimulationPlan, draw_layer, simulate, truncated_normal

STEEL = Steel()
SMALL = SimulationPlan(objects=("A", "B"), layers=2, lines_per_layer=3, frame_size=(24, 32), lit_frames=(3, 5))


def test_far_from_a_small_beam_the_temperature_is_rosenthals():
    """On the track behind a point source: absorbed power / (2 pi k distance), whatever the speed."""
    behind_m = np.linspace(-400e-6, -100e-6, 7)
    rise_k = temperature_rise_k(
        STEEL,
        Beam(absorbed_w=90.0, speed_m_s=0.9, direction=(1.0, 0.0), sigma_m=1e-6),
        (np.concatenate([behind_m, [3e-3]]), np.array([0.0])),  # the last column only widens the reach
        (np.array([0.0]), np.array([1.0])),
        nodes=4000,
    )
    expected_k = 90.0 / (2 * np.pi * STEEL.conductivity_w_m_k * np.abs(behind_m))
    np.testing.assert_allclose(rise_k[0, 0, :-1], expected_k, rtol=0.01)


def test_the_surface_heats_up_and_cools_down():
    """No heat at first; heat younger and heat older than 0.2 ms add up to the steady state."""
    axis_m = np.linspace(-200e-6, 200e-6, 9)
    beam = Beam(90.0, 0.9, (0.0, 1.0))
    first, late, off, steady = temperature_rise_k(
        STEEL,
        beam,
        (axis_m, axis_m),
        (np.array([0.0, 0.0, 2e-4, 0.0]), np.array([0.0, 2e-4, 1.0, 1.0])),
        2000,
    )
    assert not first.any()
    np.testing.assert_allclose(late + off, steady, rtol=1e-6)
    assert 0 < off.max() < steady.max() / 5


def test_the_tail_points_against_the_scan():
    axis_m = np.array([-150e-6, 0.0, 150e-6])
    for direction, hot in (((1, 0), (1, 0)), ((-1, 0), (1, 2)), ((0, 1), (0, 1)), ((0, -1), (2, 1))):
        (rise_k,) = temperature_rise_k(
            STEEL, Beam(90.0, 0.9, direction), (axis_m, axis_m), (np.array([0.0]), np.array([1.0]))
        )
        rise_k[1, 1] = 0  # the beam itself
        assert np.unravel_index(rise_k.argmax(), rise_k.shape) == hot


def test_radiance_follows_wien_where_the_exponent_is_large():
    """The logarithm of a ratio is c2 / wavelength * (1/T1 - 1/T2), but for exp(-9) at 800 nm and 2000 K."""
    low, high = band_radiance(np.array([1700.0, 2000.0]), (799.9e-9, 800.1e-9))
    assert np.log(high / low) == pytest.approx(1.438777e-2 / 800e-9 * (1 / 1700 - 1 / 2000), rel=1e-3)


def test_what_boils_is_as_bright_as_boiling():
    glow = Glow.of(STEEL)(np.array([-5.0, 0.0, 2790.0, 9000.0]))
    assert glow == pytest.approx([0.0, 0.0, 1.0, 1.0], abs=1e-6)


def test_oscillation_has_its_frequency_and_unit_variance():
    signal = oscillation(2000.0, 0.05, 20_000, 20_000.0, np.random.default_rng(0))
    assert signal.std() == pytest.approx(1.0, abs=0.1)
    assert np.abs(np.fft.rfft(signal))[1:].argmax() == pytest.approx(2000, rel=0.1)


def test_the_texture_travels_against_the_scan_by_its_step():
    axis = np.arange(30, dtype=np.float32)
    field = advected_texture(
        Texture(
            (2.0, 0.0),
            3.0,
            1e12,
        ),
        (axis, axis),
        4,
        np.random.default_rng(0),
    )
    np.testing.assert_allclose(field[1:, :, :-2], field[:-1, :, 2:], atol=1e-3)


def test_a_line_is_dark_lit_and_dark_again():
    line = Line(900.0, 215.0, 0.0, 0.42, 1.0, 1.0, lit_frames=6, dark_frames=5)
    frames = draw_line(line, (48, 48), Setup(), np.random.default_rng(0))
    lit = frames.max(axis=(1, 2)) >= 100
    assert frames.shape == (16, 48, 48)
    assert not lit[:5].any()
    assert lit[5:11].all()
    assert not lit[13:].any()  # two frames after switching off may still glow
    assert frames[10].max() == 255
    quiet = replace(Setup(), turbulence=Turbulence(keyhole=0, capillary=0, texture=0, plume=0, spatter_per_frame=0))
    calm = draw_line(line, (48, 48), quiet, np.random.default_rng(0)).astype(int)
    ahead, behind = calm[10, 20:28, 32:].sum(), calm[10, 20:28, :16].sum()
    assert behind > 1.5 * ahead


def test_labels_are_spread_as_in_the_data_set():
    process, rng = Process(), np.random.default_rng(0)
    speed = truncated_normal(process.speed_mm_s, process.speed_range_mm_s, 20_000, rng)
    power = truncated_normal(process.power_w, process.power_range_w, 20_000, rng)
    assert (speed.mean(), speed.std()) == (pytest.approx(900, rel=0.05), pytest.approx(400, rel=0.1))
    assert (power.mean(), power.std()) == (pytest.approx(215, rel=0.05), pytest.approx(80, rel=0.1))
    assert 100 <= speed.min() <= speed.max() <= 2200


@pytest.mark.parametrize("layout", ["v1.0", "v1.1"])
def test_what_is_written_is_read_back(tmp_path, layout):
    plan = replace(SMALL, layout=layout, first_layer=4, layer_step=3)
    target = tmp_path / ("all.hdf5" if layout == "v1.0" else "all")
    calls = []
    files = simulate(target, plan, lambda *at: calls.append(at))
    names = ["all.hdf5"] if layout == "v1.0" else ["A.hdf5", "B.hdf5"]
    assert [file.name for file in files] == names
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with open_recording(target, need_labels=True) as recording:
        assert len(recording.lines) == 12
        assert {line.layer for line in recording.lines} == {4, 7}
        frames, index, params = draw_layer(plan, "B", 1)
        line = recording.lines[-1]
        assert (line.object, line.number, line.labels) == ("B", 2, tuple(params[2]))
        np.testing.assert_array_equal(recording.read_line(line), frames[index == 2])


def test_one_object_of_v11_is_one_file_and_test_files_have_no_labels(tmp_path):
    (file,) = simulate(tmp_path / "C029.hdf5", replace(SMALL, layout="v1.1", objects=("x",), labelled=False))
    with open_recording(file) as recording:
        assert {line.object for line in recording.lines} == {"C029"}
        assert not recording.labelled


def test_the_same_plan_gives_the_same_arrays_and_another_seed_others(tmp_path):
    first, again, other = (
        draw_layer(plan, "A", 1) for plan in (SMALL, replace(SMALL, objects=("A",), layers=9), replace(SMALL, seed=1))
    )
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[2], other[2])
    assert not np.array_equal(first[2], draw_layer(SMALL, "A", 0)[2])
    assert not np.array_equal(first[2], draw_layer(SMALL, "B", 1)[2])


def test_a_file_says_that_it_is_simulated(tmp_path):
    (file,) = simulate(tmp_path / "a.hdf5", SMALL)
    with h5py.File(file) as opened:
        assert opened.attrs["simulated"]
        assert opened.attrs["seed"] == 0
        assert json.loads(opened.attrs["parameters"])["setup"]["steel"]["boiling_k"] == 3090.0
    found = describe(file)
    assert found["simulated"][0]["generator_version"] == 1
    assert "computed and not measured" in format_description(found)


def test_nothing_is_overwritten_or_left_half_written(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "a.hdf5", SMALL, stop)
    assert not list(tmp_path.iterdir())
    simple_file(tmp_path / "a.hdf5")
    with pytest.raises(UserError, match="is there already"):
        simulate(tmp_path / "a.hdf5", SMALL)
    with pytest.raises(UserError, match="cannot make its folder"):
        simulate(tmp_path / "a.hdf5" / "b.hdf5", SMALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "v2"}, "use 'v1.0' or 'v1.1'"),
        ({"objects": ()}, "give one or more different names"),
        ({"objects": ("A", "A")}, "different names"),
        ({"objects": ("../A",)}, "has no '/'"),
        ({"layers": 0}, "1 or more"),
        ({"layers": 10_001}, "10,000 or fewer"),
        ({"lines_per_layer": 10_001}, "10,000 or fewer"),
        ({"frame_size": (4, 48)}, "16 x 16"),
        ({"lit_frames": (9, 3)}, "give a range"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_impossible_plans(changes, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **changes)


def test_describe(tmp_path):
    arrays = layer_arrays({0: [0, 1, 1, 0], 1: [0, 0]})
    layers = {f"C1/layer{n}": arrays for n in (1, 2, 5)}
    found = describe(write_layers(tmp_path / "a.hdf5", layers, chunks=(2, 9, 11), compression="gzip"))
    assert found["size_bytes"] == (tmp_path / "a.hdf5").stat().st_size
    assert found["objects"] == {"C1": {"layers": [1, 2, 5], "missing_layers": "3-4", "lines": 6}}
    assert found["line_frames"] == {"min": 2, "median": 3.0, "max": 4}
    assert (found["dark_share"], found["dark_lines"]) == (12 / 18, 3)
    assert found["brightest_pixel"] == {"min": DARK, "median": DARK, "max": BRIGHT}
    speed = {"lines": 6, "mean": 100.5, "std": 0.5, "min": 100.0, "max": 101.0}
    assert (found["labels"]["laser_params"]["lines"], found["labels"]["laser_params"]["columns"][0]) == (6, speed)
    assert (found["layout"], found["compression"], found["frame_sizes"]) == (["v1.0"], ["gzip"], [[9, 11]])
    json.dumps(found)
    text = format_description(found)
    assert "C1: 6 lines in layers 1-2, 5" in text
    assert "`laser_params`, of every line" in text
    assert "column 1   mean 10.5, deviation 0.5, 10 to 11, power in W" in text


def test_describe_a_test_file(tmp_path):
    found = describe(write_layers(tmp_path / "a.hdf5", {"layer0": layer_arrays({0: [1]}) | {"laser_params": None}}))
    assert found["labels"] == {}
    assert "none (a test file)" in format_description(found)


@pytest.mark.skipif(not can_mount(), reason="a small file system wants root")
@pytest.mark.parametrize(("options", "says"), [("size=1m", "No space left"), ("size=1m,ro", "Read-only")])
def test_a_disk_that_takes_no_more_is_one_line(tmp_path, options, says):
    with small_disk(tmp_path / "small", options=options):
        command = [sys.executable, "-m", "mpinas", "data", "simulate", str(tmp_path / "small" / "a.hdf5")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 2, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("mpinas: error: ")]
        assert says in line
        assert "Traceback" not in done.stderr
        assert not [*(tmp_path / "small").iterdir()]
