"""Random fields against their series, mode by mode, and against their law."""

import itertools

import numpy as np
import pytest
from helpers import grids
from hypothesis import given
from hypothesis import strategies as st

from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.problems.random_field import GaussianRandomField, PeriodicRandomField, normal_coefficients


def waves(periodic, index, axis):
    """The orthonormal function with that index on an axis, at its points, and its angular wavenumber."""
    x = axis.points - axis.start
    angular = np.pi / axis.length * (2 * ((index + 1) // 2) if periodic else index)
    wave = np.sin(angular * x) if periodic and index % 2 == 0 and index else np.cos(angular * x)
    return np.sqrt((2 if index else 1) / axis.length) * wave, angular


def eigenfunction(periodic, mode, grid):
    values = np.ones(())
    for index, axis in zip(mode, grid, strict=True):
        values = np.multiply.outer(values, waves(periodic, index, axis)[0])
    return values


def variance(field, mode, grid):
    n_dim, periodic = grid.n_dim, field.periodic
    laplacian = sum(waves(periodic, m, axis)[1] ** 2 for m, axis in zip(mode, grid, strict=True))
    factor = field.scale if periodic else field.tau ** (field.alpha - n_dim / 2)
    return factor**2 * (laplacian + field.tau**2) ** -field.alpha if any(mode) else 0.0


laws = pytest.mark.parametrize(
    "field",
    [
        GaussianRandomField(tau=2.0, alpha=2.5, n_modes=5),
        PeriodicRandomField(scale=3.0, tau=2.0, alpha=2.5, n_modes=2),
    ],
    ids=["cosines", "periodic"],
)


@laws
@given(st.data(), st.integers(0, 2**40))
def test_draw_is_the_direct_sum_of_eigenfunctions(field, data, seed):
    grid = data.draw(grids(field.periodic, 6))
    coefficients = field.coefficients(seed, 3, [axis.length for axis in grid])
    modes = itertools.product(range(5), repeat=grid.n_dim)
    expected = sum(coefficients[mode] * eigenfunction(field.periodic, mode, grid) for mode in modes)
    np.testing.assert_allclose(field.sample(seed, 3, grid), expected, rtol=0, atol=1e-13)


@laws
@pytest.mark.parametrize("lengths", [(1.0,), (1.0, 2.0), (0.5, 1.0, 2.0)])
def test_amplitudes_are_those_of_the_covariance_operator(field, lengths):
    grid = Grid.uniform((6,) * len(lengths), domain=[(0, length) for length in lengths])
    expected = [variance(field, mode, grid) for mode in np.ndindex((5,) * len(lengths))]
    np.testing.assert_allclose(field.amplitudes(lengths).ravel() ** 2, expected, rtol=1e-13)


@laws
def test_spectrum_of_draws_is_that_of_the_covariance(field):
    """The mean square of each mode, recovered from the values on a grid, is its variance."""
    n_draws = 3000
    grid = Grid.uniform((6, 6), domain=[(0, 1), (0, 2)], registration="cell", periodic=field.periodic)
    modes = list(itertools.product(range(5), repeat=2))
    # The midpoint rule integrates products of these waves exactly.
    project = np.stack([(grid.weights * eigenfunction(field.periodic, m, grid)).ravel() for m in modes])
    draws = np.stack([field.sample(1, i, grid).ravel() for i in range(n_draws)])
    measured = np.mean((draws @ project.T) ** 2, axis=0)
    expected = np.array([variance(field, mode, grid) for mode in modes])
    assert measured[0] == pytest.approx(0.0, abs=1e-25)  # the constant is left out
    # chi^2 with n degrees of freedom: a relative standard deviation of sqrt(2 / n), here 2.6 %.
    np.testing.assert_allclose(measured[1:], expected[1:], rtol=4.5 * np.sqrt(2 / n_draws))


@pytest.mark.parametrize(("law", "kept"), [(GaussianRandomField, 8), (PeriodicRandomField, 17)])
def test_more_modes_refine_the_same_function(law, kept):
    few, many = (law(n_modes=n).coefficients(0, 0, [1.0, 2.0]) for n in (8, 24))
    np.testing.assert_array_equal(few, many[:kept, :kept])
    # The added coefficients are independent draws, not repetitions of the first.
    assert np.unique(many / law(n_modes=24).amplitudes([1.0, 2.0]).clip(1e-300)).size == many.size


@pytest.mark.parametrize(("n_modes", "n_dim"), [(7, 1), (5, 2), (4, 3)])
def test_coefficients_are_dealt_shell_by_shell(n_modes, n_dim):
    sequence = np.random.SeedSequence([3, 1], spawn_key=(4,))
    stream = iter(np.random.default_rng(sequence).standard_normal(n_modes**n_dim))
    xi = normal_coefficients((3, 1), 4, n_modes, n_dim)
    for shell in range(n_modes):
        for mode in itertools.product(range(shell + 1), repeat=n_dim):
            if max(mode) == shell:
                assert xi[mode] == next(stream)


def test_coefficients_depend_on_seed_and_index_alone():
    draws = [normal_coefficients(seed, i, 4, 2) for seed in (3, 4, (3, 1), (3, 2)) for i in range(3)]
    assert np.unique(draws).size == 12 * 16
    np.testing.assert_array_equal(normal_coefficients((3,), 1, 4, 2), draws[1])
    np.testing.assert_array_equal(normal_coefficients(np.int64(3), np.int64(1), 4, 2), draws[1])


def test_grids_seeds_and_indices_that_do_not_fit_are_refused():
    cosines, periodic = GaussianRandomField(n_modes=4), PeriodicRandomField(n_modes=4)
    ends, wraps, mixed = (Grid.uniform((4, 4), periodic=wrap) for wrap in (False, True, [True, False]))
    with pytest.raises(InputError, match=r"alpha=1.0 in 2 dimensions.*> 1"):
        GaussianRandomField(alpha=1.0).sample(0, 0, ends)
    for law, wrap in ((cosines, False), (periodic, True)):
        with pytest.raises(InputError, match=f"expected all axes with periodic={wrap}"):
            law.sample(0, 0, mixed)
    for seed in (-1, 0.5, (), (1, -2), "7"):
        with pytest.raises(InputError, match="seed="):
            periodic.sample(seed, 0, wraps)
    for index in (-1, 1.0):
        with pytest.raises(InputError, match=f"index={index}, expected a whole number, at least 0"):
            cosines.sample(0, index, ends)
