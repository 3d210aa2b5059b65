"""Rounded coordinates are told from stretched ones, and rounded numbers compared as such."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mano_op.data.rounded import TOLERANCE, agree, deviation, scatter_by_rounding, tolerance_between


@given(
    n=st.integers(8, 200),
    spacing=st.floats(0.2, 50.0),
    start=st.floats(-1e4, 1e4),
    decimals=st.integers(0, 3),
)
def test_points_rounded_to_decimals_scatter_by_at_most_their_unit(n, spacing, start, decimals):
    unit = 10.0**-decimals
    exact = start + spacing * np.arange(n)
    points = np.round(exact, decimals)
    scatter = scatter_by_rounding(points)
    assert np.abs(points - exact).max() <= max(scatter, TOLERANCE * spacing, 0.5 * unit) + 1e-9
    if unit <= spacing / 4 and deviation(points) > TOLERANCE * spacing:
        assert scatter == pytest.approx(unit, rel=1e-9)


@given(n=st.integers(8, 200), spacing=st.floats(2.5, 1e3), start=st.floats(4e6, 8e6))
def test_points_in_single_precision_scatter_by_at_most_two_of_its_units(n, spacing, start):
    exact = start + spacing * np.arange(n)
    points = exact.astype(np.float32)
    scatter = scatter_by_rounding(points)
    assert np.abs(points - exact).max() <= TOLERANCE * spacing + scatter
    assert scatter in (0.0, 2 * float(np.spacing(points.max())))
    assert scatter_by_rounding(points.astype(np.float64)) in (0.0, scatter)


@given(n=st.integers(8, 100), growth=st.floats(1.01, 1.3), decimals=st.integers(3, 8))
def test_stretched_points_are_not_taken_as_rounded(n, growth, decimals):
    points = np.cumsum(growth ** np.arange(n))
    for values in (points, np.round(points, decimals), points.astype(np.float32)):
        assert scatter_by_rounding(values) == 0.0
        assert deviation(values) > TOLERANCE * (values[-1] - values[0]) / (n - 1)


@given(n=st.integers(3, 200), spacing=st.floats(1e-6, 1e6), start=st.floats(-1e6, 1e6))
def test_uniform_points_do_not_scatter(n, spacing, start):
    assert scatter_by_rounding(np.arange(n) * 0.5) == 0.0
    exact = start + spacing * np.arange(n)
    if spacing > 1e-9 * abs(start):
        assert deviation(exact) <= 1e-6 * spacing + 4 * np.spacing(np.abs(exact).max())


def test_a_gaussian_latitude_is_not_a_rounded_one():
    latitudes = np.array([-87.864, -82.49, -77.04, -71.7, -66.1, -60.5, -54.9, -49.4, -43.9, -38.4])
    assert scatter_by_rounding(latitudes) == 0.0


@given(n=st.integers(2, 50), step=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_times_agree_within_a_fraction_of_their_step(n, step, seed):
    times = step * np.arange(n)
    noise = np.random.default_rng(seed).uniform(-1, 1, n)
    assert agree(times, times + 0.9 * TOLERANCE * step * noise).all()
    assert agree(times, times.astype(np.float32)).all()
    shifted = times.copy()
    shifted[-1] += 0.3 * step
    assert agree(times, shifted).tolist() == [True] * (n - 1) + [False]


def test_known_rounding_counts_only_below_a_quarter_of_the_step():
    times = np.arange(4) * 6.0
    assert tolerance_between(times, times, rounding=1.0) == pytest.approx(1.0)
    assert tolerance_between(times, times, rounding=5.0) == 1.5
    assert tolerance_between(times[:1], times[:1], rounding=5.0) == 5.0
