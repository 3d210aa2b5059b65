import itertools

import numpy as np
import pytest
from helpers import rates
from hypothesis import given
from hypothesis import strategies as st

from mano_op.errors import InputError
from mano_op.grid import REGISTRATIONS, Axis, Grid
from mano_op.problems.darcy import solve_darcy
from mano_op.problems.poisson import Poisson, solve_poisson
from mano_op.problems.random_field import GaussianRandomField
from mano_op.problems.solver_grid import solver_grids

DOMAIN = [(0.0, 1.0), (-1.0, 0.5), (2.0, 2.75)]
axes = st.builds(
    Axis,
    name=st.uuids().map(str),
    n=st.integers(2, 7),
    start=st.just(-1.0),
    stop=st.sampled_from([0.0, 1.5]),
    registration=st.sampled_from(REGISTRATIONS),
)
grids = st.lists(axes, min_size=1, max_size=3, unique_by=lambda axis: axis.name).map(
    lambda grid_axes: Grid(tuple(grid_axes))
)


def boxes(registrations, shape):
    """A grid over the first parts of `DOMAIN`, with those numbers of intervals."""
    return Grid(
        tuple(
            Axis(name, n + (kind == "node_both"), start, stop, kind)
            for name, n, (start, stop), kind in zip("zyx", shape, DOMAIN, registrations, strict=False)
        )
    )


@given(grids, st.integers(0, 2**32 - 1))
def test_is_darcy_flow_through_a_uniform_medium(grid, seed):
    f = np.random.default_rng(seed).standard_normal(grid.shape)
    expected = solve_darcy(np.ones(grid.shape), grid, f)
    np.testing.assert_allclose(
        solve_poisson(f, grid), expected, rtol=0, atol=1e-13 * max(1, np.abs(expected).max())
    )


@pytest.mark.parametrize("registration", REGISTRATIONS)
@pytest.mark.parametrize("n_dim", [1, 2, 3])
def test_products_of_sines_are_eigenvectors(n_dim, registration):
    """The discrete solution for one wave, in closed form, and so the second order of its error."""
    wavenumbers, errors = (2, 1, 3)[:n_dim], []
    for n in (8, 16, 32):
        grid = boxes([registration] * n_dim, [n] * n_dim)
        kappa = [np.pi * k / axis.length for k, axis in zip(wavenumbers, grid, strict=True)]
        wave = np.prod(
            [np.sin(k * (x - axis.start)) for k, x, axis in zip(kappa, grid.mesh, grid, strict=True)], axis=0
        )
        u = solve_poisson(sum(k**2 for k in kappa) * wave, grid)
        discrete = sum((2 - 2 * np.cos(k * h)) / h**2 for k, h in zip(kappa, grid.spacing, strict=True))
        np.testing.assert_allclose(u, sum(k**2 for k in kappa) / discrete * wave, rtol=0, atol=1e-13)
        errors.append(np.linalg.norm(u - wave) / np.linalg.norm(wave))
    np.testing.assert_allclose(rates(errors), 2.0, atol=0.1)
    assert errors[-1] < 0.01


@pytest.mark.parametrize(
    "registrations",
    [
        ("node_both",),
        *itertools.combinations_with_replacement(REGISTRATIONS, 2),
        ("cell", "node", "node_both"),
    ],
)
def test_solution_that_is_no_product_converges_with_second_order(registrations):
    """u = b exp(g), b a product of parabolas that vanish at the ends, g a product of the coordinates."""
    n_dim, errors = len(registrations), []
    for n in (16, 32, 64):
        grid = boxes(registrations, (n, n * 3 // 2, n * 5 // 4))
        mesh = grid.mesh
        parabolas = [(x - axis.start) * (axis.stop - x) for x, axis in zip(mesh, grid, strict=True)]
        slopes = [axis.stop + axis.start - 2 * x for x, axis in zip(mesh, grid, strict=True)]
        growth = np.exp(np.prod(mesh, axis=0))
        u = np.prod(parabolas, axis=0) * growth
        laplacian = 0.0
        for j in range(n_dim):
            others = np.prod([parabolas[i] for i in range(n_dim) if i != j], axis=0)
            g = np.prod([mesh[i] for i in range(n_dim) if i != j], axis=0)  # the slope of the exponent
            laplacian += others * growth * (-2 + 2 * slopes[j] * g + parabolas[j] * g**2)
        errors.append(np.abs(solve_poisson(-laplacian, grid) - u).max() / np.abs(u).max())
    assert np.all(rates(errors) > 1.8)
    assert errors[-1] < 5e-3


def test_known_value_in_the_middle_of_a_cube():
    # The triple sine series of -laplace u = 1 on the unit cube, at its centre.
    n = np.arange(1, 200, 2)
    sign = (-1.0) ** ((n - 1) // 2) / n
    product = sign[:, None, None] * sign[:, None] * sign
    series = np.sum(64 / np.pi**5 * product / (n[:, None, None] ** 2 + n[:, None] ** 2 + n**2))
    cubes = [Grid.uniform((size,) * 3) for size in (8, 16, 32)]
    errors = [abs(solve_poisson(np.ones(g.shape), g)[(g.shape[0] // 2,) * 3] - series) for g in cubes]
    assert np.all(rates(errors) > 1.9)
    assert errors[-1] < 2e-3 * series


def test_grids_without_interior_points_are_all_boundary():
    assert np.array_equal(solve_poisson(np.ones((1, 5)), Grid.uniform((1, 5))), np.zeros((1, 5)))
    one_cell = Grid.uniform((1,), registration="cell")  # two faces half a cell away: u = h^2 / 4
    assert solve_poisson(np.ones(1), one_cell) == pytest.approx(0.25, abs=1e-15)
    one_point = Grid.uniform((3,), registration="node_both")
    np.testing.assert_allclose(solve_poisson(np.ones(3), one_point), [0, 1 / 8, 0], rtol=1e-15)


def test_levels_are_samplings_of_one_solution():
    problem = Poisson(n_modes=8)
    node, coarse_node = Grid.uniform((12, 8, 16)), Grid.uniform((6, 4, 8))
    cell = Grid.uniform((6, 4, 8), registration="cell")
    closed = Grid.uniform((13, 9, 17), registration="node_both")
    fields = problem.sample(1, 5, [coarse_node, node, cell, closed])
    f, u = fields[closed]["source"], fields[closed]["potential"]
    random_field = GaussianRandomField(tau=3.0, alpha=3.0, n_modes=8)
    np.testing.assert_array_equal(f, random_field.sample(1, 5, closed))
    np.testing.assert_array_equal(u, solve_poisson(f, closed))
    for grid, common in (
        (node, np.s_[:-1, :-1, :-1]),
        (coarse_node, np.s_[:-1:2, :-1:2, :-1:2]),
        (cell, np.s_[1::2, 1::2, 1::2]),
    ):
        np.testing.assert_array_equal(fields[grid]["source"], f[common])
        np.testing.assert_array_equal(fields[grid]["potential"], u[common])


def test_coarse_levels_are_closer_to_the_truth_than_coarse_solutions():
    problem, coarse, fine = Poisson(), Grid.uniform((8,) * 3), Grid.uniform((32,) * 3)
    truth = problem.sample(0, 0, [coarse], solver_resolution=128)[coarse]["potential"]
    together = problem.sample(0, 0, [coarse, fine])[coarse]["potential"]
    alone = problem.sample(0, 0, [coarse])[coarse]["potential"]
    errors = [np.linalg.norm(u - truth) / np.linalg.norm(truth) for u in (alone, together)]
    assert errors[1] < 0.004
    assert errors[1] < errors[0] / 10  # a quarter of the spacing: 16 times less


def test_levels_without_common_points_are_each_solved_as_finely():
    problem, levels = Poisson(n_dim=2, n_modes=16), [Grid.uniform((n, n)) for n in (12, 37)]
    fields = problem.sample(0, 0, levels)
    for grid, solver in solver_grids(levels).items():
        alone = problem.sample(0, 0, [solver])[solver]["potential"]
        step = (solver.shape[0] - 1) // grid.shape[0]
        np.testing.assert_array_equal(fields[grid]["potential"], alone[:-1:step, :-1:step])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_dim": 0}, "n_dim=0"),
        ({"n_dim": 4}, "n_dim=4; expected 1, 2 or 3"),
        ({"tau": -1.0}, r"tau=-1\.0"),
        ({"alpha": 1.5}, r"alpha=1\.5 in 3 dimensions"),
        ({"n_modes": 1}, "n_modes=1"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        Poisson(**options)


def test_refuses_what_does_not_fit():
    grid = Grid.uniform((4, 6))
    with pytest.raises(InputError, match=r"source of shape \(6, 4\), expected \(4, 6\)"):
        solve_poisson(np.ones((6, 4)), grid)
    with pytest.raises(InputError, match=r"source\[0, 1\] = inf; expected finite"):
        solve_poisson(np.where(np.arange(24).reshape(4, 6) == 1, np.inf, 0.0), grid)
    with pytest.raises(InputError, match="axis 'x' is periodic"):
        solve_poisson(np.ones((4, 6)), Grid.uniform((4, 6), periodic=[False, True]))
    with pytest.raises(InputError, match="has 2 axes; pass one with n_dim=3"):
        Poisson().sample(0, 0, [grid])
    with pytest.raises(InputError, match="seed=-1"):
        Poisson(n_dim=2).check(-1, [grid])
