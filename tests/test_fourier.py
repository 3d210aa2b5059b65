import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mano_op.errors import InputError
from mano_op.grid import Axis, Grid
from mano_op.problems.fourier import PeriodicRandomField, evaluate

SHAPES = st.integers(1, 9)
axes = st.builds(
    Axis,
    name=st.uuids().map(str),
    n=SHAPES,
    start=st.sampled_from([0.0, -1.5]),
    stop=st.sampled_from([1.0, 3.25]),
    registration=st.sampled_from(["node", "cell"]),
    periodic=st.just(True),
)
grids = st.lists(axes, min_size=1, max_size=3, unique_by=lambda axis: axis.name).map(
    lambda grid_axes: Grid(tuple(grid_axes))
)
seeds = st.integers(0, 2**40)


def eigenfunction(mode, grid):
    """The orthonormal periodic eigenfunction of the box with index `mode`, at the grid's points."""
    values = np.ones(())
    for m, axis in zip(mode, grid, strict=True):
        angle = 2 * np.pi * ((m + 1) // 2) * (axis.points - axis.start) / axis.length
        wave = np.ones(axis.n) if m == 0 else np.sqrt(2) * (np.cos(angle) if m % 2 else np.sin(angle))
        values = np.multiply.outer(values, wave / np.sqrt(axis.length))
    return values


def variance(mode, lengths, scale, tau, alpha):
    laplacian = sum(
        (2 * np.pi * ((m + 1) // 2) / length) ** 2 for m, length in zip(mode, lengths, strict=True)
    )
    return scale**2 * (laplacian + tau**2) ** -alpha if any(mode) else 0.0


@given(grids, seeds)
def test_is_the_direct_sum_of_eigenfunctions(grid, seed):
    random_field = PeriodicRandomField(scale=3.0, tau=2.0, alpha=2.5, n_modes=2)
    coefficients = random_field.coefficients(seed, 3, [axis.length for axis in grid])
    expected = sum(
        coefficients[mode] * eigenfunction(mode, grid)
        for mode in itertools.product(range(5), repeat=grid.n_dim)
    )
    np.testing.assert_allclose(random_field.sample(seed, 3, grid), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("lengths", [(1.0,), (1.0, 2.0), (0.5, 1.0, 2.0)])
def test_standard_deviations_are_those_of_the_covariance_operator(lengths):
    sigma = PeriodicRandomField(scale=6.0, tau=5.0, alpha=2.0, n_modes=3).amplitudes(lengths)
    expected = [variance(mode, lengths, 6.0, 5.0, 2.0) for mode in np.ndindex((7,) * len(lengths))]
    np.testing.assert_allclose(sigma.ravel() ** 2, expected, rtol=1e-13)


def test_spectrum():
    """The mean square of each mode, recovered from the values on a grid, is its variance."""
    n_draws, lengths = 3000, (1.0, 2.0)
    random_field = PeriodicRandomField(scale=7.0, tau=3.0, alpha=2.0, n_modes=2)
    grid = Grid.uniform(
        (6, 6), domain=[(0.0, length) for length in lengths], registration="cell", periodic=True
    )
    modes = list(itertools.product(range(5), repeat=2))
    # Sums over the points integrate products of these waves exactly: their wavenumbers add up to less than 6.
    project = np.stack([(grid.weights * eigenfunction(mode, grid)).ravel() for mode in modes])
    draws = np.stack([random_field.sample(1, i, grid).ravel() for i in range(n_draws)])
    measured = np.mean((draws @ project.T) ** 2, axis=0)
    expected = np.array([variance(mode, lengths, 7.0, 3.0, 2.0) for mode in modes])
    assert measured[0] == pytest.approx(0.0, abs=1e-25)
    # chi^2 with n degrees of freedom: a relative standard deviation of sqrt(2 / n), here 2.6 %.
    np.testing.assert_allclose(measured[1:], expected[1:], rtol=4.5 * np.sqrt(2 / n_draws))


def test_law_does_not_depend_on_the_place():
    """The covariance of two points is a function of their distance, to five of its standard deviations."""
    n_draws, random_field = 4000, PeriodicRandomField(scale=25.0, tau=5.0, alpha=2.0, n_modes=4)
    grid = Grid.uniform((8,), periodic=True)
    k, r = np.arange(1, 5)[:, np.newaxis], np.arange(8) / 8
    by_distance = np.sum(2 * 625 * (4 * np.pi**2 * k**2 + 25.0) ** -2 * np.cos(2 * np.pi * k * r), axis=0)
    expected = np.stack([np.roll(by_distance, i) for i in range(8)])
    draws = np.stack([random_field.sample(2, i, grid) for i in range(n_draws)])
    deviation = np.sqrt((by_distance[0] ** 2 + expected**2) / n_draws)  # Isserlis
    assert np.all(np.abs(draws.T @ draws / n_draws - expected) < 5 * deviation)
    assert np.all(np.abs(draws.mean(axis=0)) < 5 * np.sqrt(by_distance[0] / n_draws))


def test_more_modes_refine_the_same_function():
    few, many = (PeriodicRandomField(n_modes=n).coefficients(0, 0, [1.0, 2.0]) for n in (4, 12))
    np.testing.assert_array_equal(few, many[:9, :9])
    # The coefficients that were added are those of independent draws, not repetitions of the first.
    assert np.unique(many / PeriodicRandomField(n_modes=12).amplitudes([1.0, 2.0]).clip(1e-300)).size == 25**2


def test_a_draw_depends_on_seed_and_number_alone():
    grid, random_field = Grid.uniform((8, 8), periodic=True), PeriodicRandomField(n_modes=6)
    forwards = [random_field.sample(3, i, grid) for i in range(4)]
    backwards = [random_field.sample(3, i, grid) for i in reversed(range(4))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    others = [random_field.sample(seed, i, grid) for seed in (3, 4, (3, 1), (3, 2)) for i in range(3)]
    assert len({field.tobytes() for field in others}) == 12


@given(grids, st.lists(SHAPES, min_size=3, max_size=3), seeds)
def test_evaluates_fields_with_few_wavenumbers_exactly(grid, extra, seed):
    """Waves up to the largest wavenumber that the nodes resolve, odd and even numbers of them."""
    axes = tuple(
        Axis(axis.name, 4 + n, axis.start, axis.stop, periodic=True)
        for n, axis in zip(extra, grid, strict=False)
    )
    source = Grid(axes)
    random_field = PeriodicRandomField(n_modes=min(n - 1 for n in source.shape) // 2)
    found = evaluate(random_field.sample(seed, 0, source), source, grid)
    np.testing.assert_allclose(found, random_field.sample(seed, 0, grid), rtol=0, atol=1e-13)


@given(grids, seeds)
def test_is_the_mean_of_the_two_polynomials_that_alias_the_highest_wave(grid, seed):
    """Any values, against the discrete Fourier sum; wavenumbers n/2 and -n/2 each take half the weight."""
    source = Grid(tuple(Axis(axis.name, 6, axis.start, axis.stop, periodic=True) for axis in grid))
    values = np.random.default_rng(seed).standard_normal((2, *source.shape))
    expected = np.fft.fftn(values, axes=range(1, values.ndim))
    for axis in grid:
        turns = (axis.points - axis.start) / axis.length
        waves = np.stack([np.exp(2j * np.pi * k * turns) for k in (0, 1, 2, 3, -2, -1)])
        waves[3] = (waves[3] + np.exp(-6j * np.pi * turns)) / 2
        expected = np.tensordot(expected, waves / 6, axes=(1, 0))
    np.testing.assert_allclose(evaluate(values, source, grid), expected, rtol=0, atol=1e-13)


def test_the_highest_wave_of_an_even_number_of_nodes_is_the_cosine():
    source, cells = (Grid.uniform((4,), registration=kind, periodic=True) for kind in ("node", "cell"))
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    np.testing.assert_allclose(evaluate(signs, source, cells), np.zeros(4), rtol=0, atol=1e-15)
    (x,) = (fine := Grid.uniform((16,), periodic=True)).points
    np.testing.assert_allclose(evaluate(signs, source, fine), np.cos(4 * np.pi * x), rtol=0, atol=1e-15)


def test_stays_accurate_for_many_nodes():
    source, grid = (
        Grid.uniform((1024,), periodic=True),
        Grid.uniform((30,), registration="cell", periodic=True),
    )
    wave = np.sin(2 * np.pi * 501 * source.points[0])
    np.testing.assert_allclose(
        evaluate(wave, source, grid), np.sin(2 * np.pi * 501 * grid.points[0]), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, r"scale=0\.0"),
        ({"tau": -1.0}, r"tau=-1\.0"),
        ({"tau": float("nan")}, "tau=nan"),
        ({"alpha": float("inf")}, "alpha=inf"),
        ({"n_modes": 0}, "n_modes=0"),
        ({"n_modes": 8.0}, r"n_modes=8\.0"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        PeriodicRandomField(**options)


def test_refuses_what_it_cannot_sample():
    wraps, ends = Grid.uniform((4, 4), periodic=True), Grid.uniform((4, 4), periodic=[True, False])
    with pytest.raises(InputError, match=r"alpha=1.0 in 2 dimensions.*> 1"):
        PeriodicRandomField(alpha=1.0).sample(0, 0, wraps)
    with pytest.raises(InputError, match="axis 'x' is not periodic"):
        PeriodicRandomField().sample(0, 0, ends)
    with pytest.raises(InputError, match="index=-1"):
        PeriodicRandomField().sample(0, -1, wraps)


def test_refuses_what_it_cannot_evaluate():
    source, values = Grid.uniform((4, 6), periodic=True), np.ones((4, 6))
    with pytest.raises(InputError, match=r"values of shape \(6, 4\), expected \(..., 4, 6\)"):
        evaluate(values.T, source, source)
    with pytest.raises(InputError, match="expected registration='node'"):
        evaluate(values, Grid.uniform((4, 6), registration="cell", periodic=True), source)
    with pytest.raises(InputError, match="axis 'y' is not periodic"):
        evaluate(values, source, Grid.uniform((4, 6)))
    with pytest.raises(InputError, match="different domains"):
        evaluate(values, source, Grid.uniform((4, 6), periodic=True, domain=[(0, 1), (0, 2)]))
