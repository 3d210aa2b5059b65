"""Properties that all problems share: each test is a table of problems."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import rates
from threadpoolctl import threadpool_limits

from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.problems.burgers import Burgers
from mano_op.problems.darcy import Darcy, solve_darcy
from mano_op.problems.navier_stokes import NavierStokes
from mano_op.problems.poisson import Poisson
from mano_op.problems.random_field import GaussianRandomField, PeriodicRandomField
from mano_op.problems.reaction_diffusion import FitzHughNagumo
from mano_op.problems.series import evaluate_series


def grids_of(problem, *kinds):
    """Grids of a problem's domain, each by its registration and its number of points, or its shape."""
    return [
        Grid.uniform(
            shape if isinstance(shape, tuple) else (shape,) * problem.n_dim,
            domain=[problem.domain] * (len(shape) if isinstance(shape, tuple) else problem.n_dim),
            registration=kind,
            periodic=problem.boundary_condition == "periodic",
        )
        for kind, shape in kinds
    ]


def solved(problem, seed, index, solver):
    """Inputs, and the outputs with time first, on one grid."""
    inputs = list(problem.inputs(seed, index, solver).values())
    outputs = problem.solve(inputs[0] if len(inputs) == 1 else np.stack(inputs), solver)
    return inputs, outputs


STEADY = {
    "darcy": Darcy(n_modes=32, forcing=2.0),
    "lognormal": Darcy(coefficient="lognormal", n_modes=16),
    "line": Darcy(n_modes=8),
    "poisson": Poisson(n_modes=8),
}
TIMED = {
    "burgers": Burgers(n_modes=10, final_time=0.5, n_steps=4),
    "navier_stokes": NavierStokes(n_modes=5, final_time=0.5, n_steps=4),
    "fitzhugh_nagumo": FitzHughNagumo(n_modes=8, final_time=0.5, n_steps=4),
}
SHAPES = {"poisson": (6, 4, 8), "line": (8,), "burgers": (16,)}

steady = pytest.mark.parametrize("name", STEADY)
timed = pytest.mark.parametrize("name", TIMED)


@steady
def test_steady_levels_are_read_off_one_solution(name):
    problem, shape = STEADY[name], SHAPES.get(name, (12, 8))
    double = tuple(2 * n for n in shape)
    closed = tuple(n + 1 for n in double)
    coarse, fine, cell, solver = grids_of(
        problem, ("node", shape), ("node", double), ("cell", shape), ("node_both", closed)
    )
    fields = problem.sample(1, 5, [coarse, fine, cell, solver])
    (inputs,), output = solved(problem, 1, 5, solver)
    n_dim = len(shape)
    points = {coarse: np.s_[:-1:2], fine: np.s_[:-1], cell: np.s_[1::2], solver: np.s_[:]}
    for grid, common in points.items():
        first, second = fields[grid].values()
        np.testing.assert_array_equal(first, inputs[(common,) * n_dim])
        np.testing.assert_array_equal(second, output[(common,) * n_dim])
        assert list(fields[grid]) == [variable.name for variable in problem.variables]
    assert problem.times == ()


@pytest.mark.parametrize("problem", [Darcy(coefficient="lognormal"), Poisson(n_dim=2, n_modes=16)])
def test_steady_levels_without_common_points_are_each_solved_as_finely(problem):
    levels = [Grid.uniform((n, n)) for n in (12, 37)]
    fields, solvers = problem.sample(0, 0, levels), problem.solvers(levels)
    for grid, solver in solvers.items():
        _, output = solved(problem, 0, 0, solver)
        step = (solver.shape[0] - 1) // grid.shape[0]
        np.testing.assert_array_equal(list(fields[grid].values())[1], output[:-1:step, :-1:step])
    assert len(set(solvers.values())) == 2


@timed
def test_levels_in_time_evaluate_one_series(name):
    problem = TIMED[name]
    shape = (21,) if problem.n_dim == 1 else (21, 27)
    kinds = [("node", 16), ("node", 32), ("cell", shape)]
    kinds += [] if problem.boundary_condition == "periodic" else [("node_both", (33, 17))]
    grids = grids_of(problem, *kinds)
    fields = problem.sample(1, 5, grids, 32)
    solver = problem.solvers(grids, 32)[grids[0]]
    _, states = solved(problem, 1, 5, solver)
    n_inputs = len(problem.variables) // 2
    states = states.reshape(5, n_inputs, *solver.shape)
    for grid in grids:
        values = list(fields[grid].values())
        expected = evaluate_series(states, solver, grid)
        for i, drawn in enumerate(problem.inputs(1, 5, grid).values()):
            np.testing.assert_array_equal(values[i], drawn)
            np.testing.assert_array_equal(values[n_inputs + i][0], drawn)
            np.testing.assert_allclose(values[n_inputs + i], expected[:, i], rtol=0, atol=1e-11)
        assert list(fields[grid]) == [variable.name for variable in problem.variables]
    coarse, fine = (list(fields[grid].values())[-1] for grid in grids[:2])
    np.testing.assert_allclose(coarse, fine[(slice(None), *[np.s_[::2]] * problem.n_dim)], rtol=0, atol=1e-12)
    assert problem.times == (0.0, 0.125, 0.25, 0.375, 0.5)


@pytest.mark.parametrize(
    ("problem", "law", "factor"),
    [
        (Darcy(coefficient="lognormal", tau=5, n_modes=9), GaussianRandomField(tau=5, n_modes=9), 1),
        (Poisson(n_modes=8), GaussianRandomField(tau=3.0, alpha=3.0, n_modes=8), 1),
        (Burgers(n_modes=8), PeriodicRandomField(scale=25.0, tau=5.0, alpha=2.0, n_modes=8), 1),
        (NavierStokes(n_modes=8), PeriodicRandomField(scale=7**1.5, tau=7.0, alpha=2.5, n_modes=8), 1),
        (FitzHughNagumo(n_modes=8), GaussianRandomField(tau=5.0, alpha=3.0, n_modes=8), 4.4),
    ],
)
def test_inputs_are_draws_of_the_random_field(problem, law, factor):
    (grid,) = grids_of(problem, ("cell", 9))
    two = len(problem.variables) == 4
    draws = [factor * law.sample(3, number, grid) for number in ((4, 5) if two else (2,))]
    draws = np.exp(draws) if problem.name == "darcy" else draws
    np.testing.assert_array_equal(list(problem.inputs(3, 2, grid).values()), draws)


def test_piecewise_permeability_is_the_sign_of_the_random_field():
    problem, grid = Darcy(values=(0.5, 7.0), n_modes=32), Grid.uniform((12, 9), registration="cell")
    field = GaussianRandomField(n_modes=32).sample(4, 2, grid)
    expected = np.where(field >= 0, 7.0, 0.5)
    np.testing.assert_array_equal(problem.inputs(4, 2, grid)["permeability"], expected)


def test_activator_and_inhibitor_have_unit_variance():
    # By Parseval, the mean over the box of the mean square is the sum of the modes' variances over its area.
    problem = FitzHughNagumo()
    sigma = problem.random_field.amplitudes([2.0, 2.0])
    assert problem.scale**2 * np.sum(sigma**2) / 4 == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("name", [*TIMED, "darcy", "poisson"])
def test_sample_depends_on_seed_and_index_alone(name):
    problem = (TIMED | STEADY)[name]
    grid, other = grids_of(problem, ("node", 8), ("node", 4))
    forwards = [problem.sample(3, i, [grid], 32)[grid] for i in range(3)]
    alone = problem.sample(3, 2, [other, grid], 32)[grid]
    for field, expected in zip(alone.values(), forwards[2].values(), strict=True):
        np.testing.assert_array_equal(field, expected)
    drawn = [u for seed in (3, 4) for i in range(3) for u in problem.inputs(seed, i, grid).values()]
    assert len({u.tobytes() for u in drawn}) == len(drawn)


@pytest.mark.parametrize(
    ("problem", "points", "finer", "tolerance"),
    [
        (Burgers(final_time=0.3, n_steps=3), 512, 1024, 1e-7),
        (NavierStokes(n_steps=1, final_time=0.5), 64, 96, 1e-6),
        (FitzHughNagumo(n_steps=1, final_time=0.2), 128, 192, 1e-4),
    ],
)
def test_default_solver_grid_resolves_the_default_fields(problem, points, finer, tolerance):
    grid, level = grids_of(problem, ("node", 16), ("node", (150, 139)[: problem.n_dim]))
    assert problem.solvers([grid])[grid].shape == (points,) * problem.n_dim
    assert max(problem.solvers([grid, level])[grid].shape) == max(150, points)
    default, fine = (list(problem.sample(0, 1, [grid], n)[grid].values()) for n in (None, finer))
    for field, expected in zip(default, fine, strict=True):
        np.testing.assert_allclose(field, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    ("problem", "n", "steps", "smallest"),
    [
        (Burgers(n_modes=4, final_time=0.2, n_steps=1), 64, (0.02, 0.01, 0.005), 1e-5),
        (NavierStokes(n_modes=4, viscosity=2e-3, final_time=0.8, n_steps=1), 32, (0.2, 0.1, 0.05), 1e-5),
        (FitzHughNagumo(n_modes=8, scale=3.0, final_time=1.0, n_steps=1), 32, (0.04, 0.02, 0.01), 1e-6),
    ],
)
def test_error_in_time_is_of_fourth_order(problem, n, steps, smallest):
    periodic = problem.boundary_condition == "periodic"
    (grid,) = grids_of(problem, ("node" if periodic else "cell", n))
    exact, *ends = (solved(replace(problem, time_step=h), 0, 0, grid)[1][-1] for h in (steps[-1] / 4, *steps))
    errors = [np.abs(u - exact).max() / np.abs(exact).max() for u in ends]
    assert np.all(rates(errors) > 3.7)
    assert errors[-1] < smallest


@pytest.mark.parametrize(
    ("problem", "finest", "growth"),
    [
        (Burgers(n_modes=3, viscosity=0.05, final_time=0.2, n_steps=1, time_step=5e-4), 128, 2),
        (NavierStokes(n_modes=3, viscosity=5e-3, scale=60, final_time=0.5, n_steps=1, time_step=0.01), 96, 5),
        (
            FitzHughNagumo(
                n_modes=4, scale=2.0, final_time=0.5, n_steps=1, time_step=0.02,
                activator_diffusivity=1e-2, inhibitor_diffusivity=2e-2,
            ),
            96,
            3,
        ),
    ],
)  # fmt: skip
def test_error_in_space_falls_faster_than_any_power(problem, finest, growth):
    periodic = problem.boundary_condition == "periodic"
    (common,) = grids_of(problem, ("node" if periodic else "node_both", 9))
    ends = {}
    for n in (16, 32, 64, finest):
        (grid,) = grids_of(problem, ("node" if periodic else "cell", n))
        ends[n] = evaluate_series(solved(problem, 0, 0, grid)[1][-1], grid, common)
    errors = [np.abs(ends[n] - ends[finest]).max() for n in (16, 32, 64)]
    order = rates(errors)
    assert order[0] > 2
    assert order[1] > order[0] + growth, "the order itself grows"
    assert errors[-1] < 1e-7


@pytest.mark.parametrize(
    ("problem", "options", "message"),
    [
        (Darcy, {"coefficient": "binary"}, "coefficient='binary', expected 'piecewise' or 'lognormal'"),
        (Darcy, {"values": (3.0,)}, r"values=\(3.0,\)"),
        (Darcy, {"values": (3.0, -12.0)}, "values=-12.0, expected a finite number, more than 0"),
        (Poisson, {"n_dim": 4}, "n_dim=4, expected 1, 2 or 3"),
        (Poisson, {"alpha": 1.5}, "alpha=1.5 in 3 dimensions"),
        (Poisson, {"n_modes": 1}, "n_modes=1"),
        (Burgers, {"viscosity": 0.0}, "viscosity=0.0"),
        (Burgers, {"time_step": 0.0}, "time_step=0.0"),
        (NavierStokes, {"n_modes": 8.0}, "n_modes=8.0"),
        (Burgers, {"alpha": 0.5}, "alpha=0.5 in 1 dimensions"),
        (NavierStokes, {"forcing": float("nan")}, "forcing=nan"),
        (NavierStokes, {"alpha": 1.0}, "alpha=1.0 in 2 dimensions"),
        (FitzHughNagumo, {"activator_diffusivity": -1.0}, "activator_diffusivity=-1.0"),
        (FitzHughNagumo, {"k": float("nan")}, "k=nan"),
    ],
)
def test_options_out_of_range_are_refused(problem, options, message):
    with pytest.raises(InputError, match=message):
        problem(**options)


def test_options_from_a_file_are_those_of_python():
    assert Darcy(values=[3, 12]) == Darcy()
    assert hash(Darcy(values=[3, 12])) == hash(Darcy())


PLANE, WRAPS = Grid.uniform((8, 6)), Grid.uniform((8, 6), periodic=True)
CELLS, RING = Grid.uniform((8, 6), registration="cell"), Grid.uniform((8,), periodic=True)
PARTLY = Grid.uniform((8, 6), periodic=[False, True])
ZERO, ONE, BAD = np.zeros((8, 6)), np.ones((8, 6)), np.where(np.arange(48).reshape(8, 6) == 1, np.inf, 1.0)


@pytest.mark.parametrize(
    ("solve", "arguments", "message"),
    [
        (solve_darcy, (ONE.T, PLANE), r"coefficient of shape \(6, 8\), expected \(8, 6\)"),
        (solve_darcy, (ZERO, PLANE), r"coefficient\[0, 0\] = 0.0; expected positive and finite"),
        (solve_darcy, (ONE, PLANE, np.ones(6)), r"forcing of shape \(6,\), expected \(8, 6\)"),
        (solve_darcy, (ONE, PLANE, np.nan), r"forcing\[\] = nan; expected finite"),
        (solve_darcy, (ONE, PARTLY), "all axes with periodic=False, as the problem has a boundary"),
        (Poisson().solve, (ONE.T, PLANE), r"source of shape \(6, 8\), expected \(8, 6\)"),
        (Poisson().solve, (BAD, PLANE), r"source\[0, 1\] = inf; expected finite"),
        (Poisson().solve, (ONE, PARTLY), "all axes with periodic=False"),
        (Burgers().solve, (np.zeros(7), RING), r"initial of shape \(7,\)"),
        (Burgers().solve, (ZERO, WRAPS), "expected 1 axes with periodic=True, as the fields wrap"),
        (Burgers().solve, (np.full(8, np.nan), RING), r"initial\[0\] = nan; expected finite"),
        (Burgers(viscosity=1e-3, time_step=0.2).solve, (1e3 * np.arange(8.0), RING), "shorter time_step"),
        (NavierStokes().solve, (ZERO, WRAPS, np.zeros(6)), r"forcing of shape \(6,\)"),
        (NavierStokes().solve, (np.zeros(8), RING), "expected 2 axes with periodic=True"),
        (NavierStokes().solve, (ONE, WRAPS), "initial has the mean 1; expected 0"),
        (FitzHughNagumo().solve, (ONE[None], CELLS), r"initial of shape \(1, 8, 6\), expected \(2, 8, 6\)"),
        (FitzHughNagumo().solve, ([ONE, ONE], PLANE), "expected registration='cell'"),
        (FitzHughNagumo().solve, ([ONE, ONE], WRAPS), "expected all axes with periodic=False"),
        (FitzHughNagumo().solve, ([BAD, ONE], CELLS), r"initial\[0, 0, 1\] = inf; expected finite"),
    ],
)
def test_fields_and_grids_that_do_not_fit_are_refused(solve, arguments, message):
    with pytest.raises(InputError, match=message):
        solve(*arguments)


@pytest.mark.parametrize(
    ("problem", "seed", "index", "grids", "resolution", "message"),
    [
        (Burgers(), 0, 0, [WRAPS], None, "expected 1 axes"),
        (Burgers(), 0, 0, [RING], 64, "multiple of 2, at least 511, or fewer n_modes"),
        (NavierStokes(), -1, 0, [WRAPS], None, "seed=-1"),
        (FitzHughNagumo(), 0, 0, [], None, "no grids"),
        (FitzHughNagumo(), 0, 0, [PLANE], 32, "at least 64"),
        (FitzHughNagumo(), 0, 0, [WRAPS], None, "expected all axes with periodic=False"),
        (FitzHughNagumo(), 0, -1, [PLANE], None, "index=-1"),
        (Poisson(), 0, 0.5, [PLANE], None, "index=0.5"),
        (Darcy(alpha=1.0), 0, 0, [PLANE], None, "alpha=1.0 in 2 dimensions"),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused(problem, seed, index, grids, resolution, message):
    with pytest.raises(InputError, match=message):
        problem.sample(seed, index, grids, resolution)


@pytest.mark.parametrize(
    ("problem", "shape"),
    [
        (Burgers(final_time=0.01, n_steps=1), (500,)),
        (NavierStokes(final_time=0.02, n_steps=1), (160, 200)),
        (Darcy(coefficient="lognormal"), (130, 140)),
        (Poisson(), (64, 48, 80)),
        (FitzHughNagumo(final_time=0.02, n_steps=1), (160, 200)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_bits_of_a_sample_do_not_depend_on_the_number_of_threads(problem, shape):
    """A matrix product in BLAS may round differently with one and with two threads at these sizes."""
    grids, samples = grids_of(problem, ("node", shape)), []
    for threads in (1, 2):
        with threadpool_limits(threads):
            samples.append(problem.sample(0, 0, grids)[grids[0]])
    for field, other in zip(*(sample.values() for sample in samples), strict=True):
        np.testing.assert_array_equal(field, other)
