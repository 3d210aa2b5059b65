import itertools

import numpy as np
import pytest
from helpers import rates
from hypothesis import given
from hypothesis import strategies as st

from mano_op.errors import InputError
from mano_op.grid import Axis, Grid
from mano_op.problems.random_field import GaussianRandomField

registrations = st.sampled_from(["node", "node_both", "cell"])
axes = st.builds(
    Axis,
    name=st.uuids().map(str),
    n=st.integers(2, 6),
    start=st.sampled_from([0.0, -1.5]),
    stop=st.sampled_from([1.0, 3.25]),
    registration=registrations,
)


def eigenfunction(mode, grid):
    """The orthonormal Neumann eigenfunction of the box with wavenumbers `mode`, at the grid's points."""
    values = np.ones(())
    for k, axis in zip(mode, grid, strict=True):
        norm = np.sqrt((1 if k == 0 else 2) / axis.length)
        values = np.multiply.outer(
            values, norm * np.cos(np.pi * k * (axis.points - axis.start) / axis.length)
        )
    return values


def standard_deviation(mode, lengths, tau, alpha):
    laplacian = sum((np.pi * k / length) ** 2 for k, length in zip(mode, lengths, strict=True))
    return tau ** (alpha - len(lengths) / 2) * (laplacian + tau**2) ** (-alpha / 2)


@given(st.lists(axes, min_size=1, max_size=3, unique_by=lambda axis: axis.name), st.integers(0, 2**40))
def test_is_the_direct_sum_of_eigenfunctions(grid_axes, seed):
    grid = Grid(tuple(grid_axes))
    random_field = GaussianRandomField(tau=2.0, alpha=2.5, n_modes=4)
    coefficients = random_field.coefficients(seed, 3, [axis.length for axis in grid])
    expected = sum(
        coefficients[mode] * eigenfunction(mode, grid)
        for mode in itertools.product(range(4), repeat=grid.n_dim)
    )
    np.testing.assert_allclose(random_field.sample(seed, 3, grid), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("coarse", "fine", "shared"),
    [
        (("node", (15, 16)), ("node", (45, 32)), np.s_[::3, ::2]),
        (("node_both", (9, 12)), ("node_both", (17, 34)), np.s_[::2, ::3]),
        (("cell", (10, 7)), ("cell", (30, 21)), np.s_[1::3, 1::3]),
        (("cell", (10, 7)), ("node_both", (21, 15)), np.s_[1::2, 1::2]),
        (("node", (10, 7)), ("node_both", (11, 15)), np.s_[:-1, :-1:2]),
    ],
)
def test_grids_that_share_points_see_the_same_function(coarse, fine, shared):
    domain = [(0.0, 1.0), (-1.0, 2.0)]
    random_field = GaussianRandomField()
    on_coarse, on_fine = (
        random_field.sample(5, 11, Grid.uniform(shape, registration=registration, domain=domain))
        for registration, shape in (coarse, fine)
    )
    np.testing.assert_allclose(on_coarse, on_fine[shared], rtol=0, atol=1e-12)
    assert on_coarse.std() > 0.05


def test_more_modes_refine_the_same_function():
    few, many = (GaussianRandomField(n_modes=n).coefficients(0, 0, [1.0, 2.0]) for n in (8, 24))
    np.testing.assert_array_equal(few, many[:8, :8])
    # The coefficients that were added are those of independent draws, not repetitions of the first.
    assert np.unique(many / GaussianRandomField(n_modes=24).amplitudes([1.0, 2.0]).clip(1e-300)).size == 24**2


def test_truncation_falls_at_the_rate_of_the_spectrum():
    # In one dimension the variance beyond n modes is sum_{k >= n} (pi k)^(-2 alpha) ~ n^(1 - 2 alpha).
    sigma = GaussianRandomField(alpha=2.0, n_modes=4096).amplitudes([1.0])
    tail = [np.sqrt(np.sum(sigma[n:] ** 2)) for n in (32, 64, 128)]
    np.testing.assert_allclose(rates(tail), 1.5, atol=0.05)


@pytest.mark.parametrize("lengths", [(1.0,), (1.0, 2.0)])
def test_spectrum(lengths):
    """The mean square of each mode, recovered from the values on a grid, is its variance."""
    n_draws, random_field = 3000, GaussianRandomField(tau=3.0, alpha=2.0, n_modes=5)
    grid = Grid.uniform(
        (6,) * len(lengths), domain=[(0.0, length) for length in lengths], registration="cell"
    )
    modes = list(itertools.product(range(5), repeat=len(lengths)))
    # The midpoint rule integrates products of these cosines exactly while their modes sum to less than 2 * 6.
    project = np.stack([(grid.weights * eigenfunction(mode, grid)).ravel() for mode in modes])
    draws = np.stack([random_field.sample(1, i, grid).ravel() for i in range(n_draws)])
    measured = np.mean((draws @ project.T) ** 2, axis=0)
    expected = np.array([standard_deviation(mode, lengths, 3.0, 2.0) ** 2 for mode in modes])
    assert measured[0] == pytest.approx(0.0, abs=1e-25)  # the constant is left out
    # chi^2 with n degrees of freedom: a relative standard deviation of sqrt(2 / n), here 2.6 %.
    np.testing.assert_allclose(measured[1:], expected[1:], rtol=4.5 * np.sqrt(2 / n_draws))


def test_covariance_between_points():
    """The sample covariance against the series, within five of its standard deviations at every pair."""
    n_draws, random_field = 4000, GaussianRandomField(tau=3.0, alpha=2.0, n_modes=6)
    grid = Grid.uniform((4, 3), registration="node_both")
    expected = np.zeros((12, 12))
    for mode in itertools.product(range(6), repeat=2):
        if any(mode):
            phi = eigenfunction(mode, grid).ravel()
            expected += standard_deviation(mode, (1.0, 1.0), 3.0, 2.0) ** 2 * np.outer(phi, phi)
    draws = np.stack([random_field.sample(2, i, grid).ravel() for i in range(n_draws)])
    variance = np.diag(expected)
    deviation = np.sqrt((np.outer(variance, variance) + expected**2) / n_draws)  # Isserlis
    assert np.all(np.abs(draws.T @ draws / n_draws - expected) < 5 * deviation)
    assert np.all(np.abs(draws.mean(axis=0)) < 5 * np.sqrt(variance / n_draws))


@pytest.mark.parametrize("end", [0, -1])
@pytest.mark.parametrize("axis", [0, 1])
def test_slope_vanishes_at_the_ends(axis, end):
    # With zero slope at an end the first difference there falls as h^2; with any other slope, as h.
    def difference(n):
        grid = Grid.uniform((n + 1, n + 1), registration="node_both", domain=[(0.0, 1.0), (1.0, 3.0)])
        field = np.moveaxis(GaussianRandomField(n_modes=6).sample(0, 0, grid), axis, 0)
        return np.abs(field[end] - field[1 if end == 0 else -2]).max()

    np.testing.assert_allclose(rates([difference(512), difference(1024)]), 2.0, atol=0.02)


def test_a_draw_depends_on_seed_and_number_alone():
    grid, random_field = Grid.uniform((8, 8)), GaussianRandomField(n_modes=16)
    forwards = [random_field.sample(3, i, grid) for i in range(4)]
    backwards = [random_field.sample(3, i, grid) for i in reversed(range(4))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    others = [random_field.sample(seed, i, grid) for seed in (3, 4, (3, 1), (3, 2)) for i in range(3)]
    assert len({field.tobytes() for field in others}) == 12
    np.testing.assert_array_equal(random_field.sample((3,), 0, grid), forwards[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.0}, "tau=0.0"),
        ({"tau": float("nan")}, "tau=nan"),
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"n_modes": 1}, "n_modes=1"),
        ({"n_modes": 8.0}, "n_modes=8.0"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        GaussianRandomField(**options)


def test_refuses_what_it_cannot_sample():
    random_field, grid = GaussianRandomField(n_modes=4), Grid.uniform((4, 4))
    with pytest.raises(InputError, match=r"alpha=1.0 in 2 dimensions.*> 1"):
        GaussianRandomField(alpha=1.0).sample(0, 0, grid)
    with pytest.raises(InputError, match="axis 'y' is periodic"):
        random_field.sample(0, 0, Grid.uniform((4, 4), periodic=[True, False]))
    for seed in (-1, 0.5, (), (1, -2), "7"):
        with pytest.raises(InputError, match="seed="):
            random_field.sample(seed, 0, grid)
    with pytest.raises(InputError, match="index=-1"):
        random_field.sample(0, -1, grid)
