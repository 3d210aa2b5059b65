import numpy as np
import pytest
from helpers import rates
from scipy.integrate import solve_ivp

from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.problems.cosine import evaluate_cosines
from mano_op.problems.random_field import GaussianRandomField
from mano_op.problems.reaction_diffusion import FitzHughNagumo, solve_reaction_diffusion

SQUARE = [(-1.0, 1.0)] * 2
BOX = [(-1.0, 1.0), (0.0, 1.5), (2.0, 2.5)]
PROBLEM = FitzHughNagumo()


def cells(*shape, domain=BOX):
    return Grid.uniform(shape, domain=domain[: len(shape)], registration="cell")


def half_waves(mode, grid):
    """A product of cosines, and what the Laplacian multiplies it by."""
    angles = [np.pi * k / axis.length for k, axis in zip(mode, grid, strict=True)]
    mesh = zip(angles, grid.mesh, grid, strict=True)
    return np.prod([np.cos(k * (x - axis.start)) for k, x, axis in mesh], axis=0), -sum(k**2 for k in angles)


@pytest.mark.parametrize(
    ("shape", "modes"), [((8,), [(3,)]), ((8, 6), [(1, 2), (3, 0)]), ((4, 6, 8), [(1, 2, 3)])]
)
def test_half_waves_decay_where_nothing_reacts(shape, modes):
    grid, diffusivities = cells(*shape), (0.1, 0.0, 0.02)
    waves = [half_waves(mode, grid) for mode in modes]
    initial = np.stack([0.5 + s * sum(wave for wave, _ in waves) for s in (1, 2, 3)])
    u = solve_reaction_diffusion(
        initial,
        grid,
        diffusivities=diffusivities,
        reaction=np.zeros_like,
        final_time=2.0,
        n_steps=4,
        time_step=1,
    )
    for t, found in zip((0.0, 0.5, 1.0, 1.5, 2.0), u, strict=True):
        for s, d in enumerate(diffusivities):
            expected = 0.5 + (s + 1) * sum(np.exp(d * laplacian * t) * wave for wave, laplacian in waves)
            np.testing.assert_allclose(found[s], expected, rtol=0, atol=1e-13)


def test_uniform_fields_only_react():
    grid, initial = cells(4, 6), np.array([1.2, -0.4])
    u = solve_reaction_diffusion(
        np.multiply.outer(initial, np.ones(grid.shape)),
        grid,
        diffusivities=(0.1, 0.2),
        reaction=PROBLEM.reaction,
        final_time=5.0,
        n_steps=5,
        time_step=0.01,
    )
    rates_of_change = lambda t, y: [y[0] - y[0] ** 3 - 5e-3 - y[1], y[0] - y[1]]  # noqa: E731
    exact = solve_ivp(rates_of_change, (0, 5), initial, t_eval=range(6), rtol=1e-12, atol=1e-12).y.T
    assert np.abs(exact[-1] - initial).max() > 0.5
    np.testing.assert_allclose(u, np.broadcast_to(exact[:, :, None, None], u.shape), rtol=0, atol=1e-8)


def test_manufactured_solution():
    """A source that depends on nothing but the place holds a field which diffuses and reacts."""
    grid, diffusivities = cells(16, 12), (0.03, 0.05)
    (first, a), (second, b) = half_waves((1, 2), grid), half_waves((2, 1), grid)
    u, v = 0.3 + first, second - 0.5 * first
    source = -np.stack([0.03 * a * first, 0.05 * (b * second - 0.5 * a * first)]) - PROBLEM.reaction(
        np.stack([u, v])
    )
    found = solve_reaction_diffusion(
        [u, v],
        grid,
        diffusivities=diffusivities,
        reaction=lambda species: PROBLEM.reaction(species) + source,
        final_time=1.0,
        n_steps=1,
        time_step=0.1,
    )
    np.testing.assert_allclose(found[-1], [u, v], rtol=0, atol=1e-12)


def test_cubic_reactions_are_projected_exactly():
    """The rate of change of every kept cosine against a quadrature that is exact for the cube."""
    coarse, fine = cells(10, 12), cells(40, 48)
    random_field = GaussianRandomField(tau=5.0, alpha=2.5, n_modes=5)  # 5 half waves are under 10 / 2
    u, exact = (10 * random_field.sample(0, 0, grid) for grid in (coarse, fine))
    h = 1e-6  # so short that the change over a step is the rate
    options = {
        "diffusivities": [0.0],
        "reaction": lambda s: s**3,
        "final_time": h,
        "n_steps": 1,
        "time_step": h,
    }
    change = (solve_reaction_diffusion([u], coarse, **options)[1, 0] - u) / h
    for mode in ((0, 0), (4, 5), (3, 2), (4, 0)):
        kept, _ = half_waves(mode, coarse)
        cube = np.mean(exact**3 * half_waves(mode, fine)[0])
        assert np.mean(change * kept) == pytest.approx(cube, abs=1e-4 * np.mean(np.abs(exact) ** 3))
    for mode in ((5, 0), (0, 6), (7, 3)):
        assert np.mean(change * half_waves(mode, coarse)[0]) == pytest.approx(0.0, abs=1e-8)


def test_nothing_leaves_the_box():
    """Diffusion keeps the mean of each species, and a reaction from one to the other that of their sum."""
    grid = cells(32, 24)
    random_field = GaussianRandomField(tau=5.0, alpha=3.0, n_modes=10)
    initial = 1 + np.stack([random_field.sample(0, i, grid) for i in range(2)])
    options = {"diffusivities": (0.05, 0.01), "final_time": 1.0, "n_steps": 4, "time_step": 0.05}
    u = solve_reaction_diffusion(initial, grid, reaction=np.zeros_like, **options)
    means = initial.mean(axis=(1, 2))
    np.testing.assert_allclose(u.mean(axis=(2, 3)), [means] * 5, rtol=1e-13)

    def conversion(species):
        rate = species[0] ** 2 * species[1]
        return np.stack([-rate, rate])

    u = solve_reaction_diffusion(initial, grid, reaction=conversion, **options)
    assert abs(u[-1, 0].mean() - means[0]) > 0.1
    np.testing.assert_allclose(u.mean(axis=(2, 3)).sum(axis=1), [means.sum()] * 5, rtol=1e-13)


def test_fourth_order_in_time():
    grid = cells(32, 32, domain=SQUARE)
    options = {"diffusivities": (1e-3, 5e-3), "reaction": PROBLEM.reaction, "final_time": 1.0, "n_steps": 1}
    initial = FitzHughNagumo(n_modes=8, scale=3.0).initial(0, 0, grid)
    exact = solve_reaction_diffusion(initial, grid, time_step=0.002, **options)[-1]
    errors = [
        np.abs(solve_reaction_diffusion(initial, grid, time_step=h, **options)[-1] - exact).max()
        for h in (0.04, 0.02, 0.01)
    ]
    assert np.all(rates(errors) > 3.7)
    assert errors[-1] < 1e-6


def test_error_falls_faster_than_any_power_of_the_spacing():
    options = {"diffusivities": (1e-2, 2e-2), "reaction": PROBLEM.reaction, "final_time": 0.5, "n_steps": 1}
    problem, solved = FitzHughNagumo(n_modes=4, scale=2.0), {}
    common = Grid.uniform((9, 9), domain=SQUARE, registration="node_both")
    for n in (16, 32, 64, 96):
        grid = cells(n, n, domain=SQUARE)
        u = solve_reaction_diffusion(problem.initial(0, 0, grid), grid, time_step=0.02, **options)
        solved[n] = evaluate_cosines(u[-1], grid, common)
    errors = [np.abs(solved[n] - solved[96]).max() for n in (16, 32, 64)]
    order = rates(errors)
    assert order[0] > 3
    assert order[1] > order[0] + 3, "the order itself grows"
    assert errors[-1] < 1e-7


def test_levels_are_samplings_of_one_solution():
    problem = FitzHughNagumo(n_modes=10, final_time=1.0, n_steps=4)
    levels = [
        Grid.uniform(shape, domain=SQUARE, registration=registration)
        for shape, registration in (((16, 16), "node"), ((33, 17), "node_both"), ((20, 11), "cell"))
    ]
    fields = problem.sample(1, 5, levels, solver_resolution=32)
    solver = cells(32, 32, domain=SQUARE)
    random_field = GaussianRandomField(tau=5.0, alpha=3.0, n_modes=10)
    start = 4.4 * np.stack([random_field.sample(1, number, solver) for number in (10, 11)])
    states = solve_reaction_diffusion(
        start,
        solver,
        diffusivities=(1e-3, 5e-3),
        reaction=problem.reaction,
        final_time=1.0,
        n_steps=4,
        time_step=0.02,
    )
    for grid, values in fields.items():
        for s, name in enumerate(("activator", "inhibitor")):
            initial = 4.4 * random_field.sample(1, 10 + s, grid)
            np.testing.assert_array_equal(values[f"initial_{name}"], initial)
            np.testing.assert_array_equal(values[name][0], initial)
            np.testing.assert_allclose(
                values[name], evaluate_cosines(states[:, s], solver, grid), rtol=0, atol=1e-12
            )
    both = fields[levels[1]]["activator"]
    np.testing.assert_allclose(fields[levels[0]]["activator"], both[:, :-1:2, :-1], rtol=0, atol=1e-12)
    assert problem.times == (0.0, 0.25, 0.5, 0.75, 1.0)


def test_a_sample_depends_on_seed_and_number_alone():
    problem = FitzHughNagumo(n_modes=8, final_time=0.1, n_steps=1)
    grid, other = (Grid.uniform((n, n), domain=SQUARE) for n in (16, 12))
    forwards = [problem.sample(3, i, [grid])[grid]["activator"] for i in range(3)]
    np.testing.assert_array_equal(forwards[2], problem.sample(3, 2, [other, grid])[grid]["activator"])
    drawn = [problem.initial(seed, i, grid)[s] for seed in (3, 4) for i in range(3) for s in range(2)]
    assert len({field.tobytes() for field in drawn}) == 12


def test_default_solver_resolves_the_default_fields():
    problem, grid = FitzHughNagumo(n_steps=1, final_time=0.5), Grid.uniform((16, 16), domain=SQUARE)
    assert problem.solvers([grid])[grid] == cells(128, 128, domain=SQUARE)
    level = Grid.uniform((150, 139), domain=SQUARE)
    assert problem.solvers([level])[level].shape == (150, 150)
    default, fine = (problem.sample(0, 1, [grid], n)[grid] for n in (None, 192))
    for name in ("activator", "inhibitor"):
        error = np.linalg.norm(default[name] - fine[name]) / np.linalg.norm(fine[name])
        assert error < 1e-4


def test_default_step_follows_the_size_of_the_activator():
    """With 0.02, fields as large as these blow up."""
    grid = Grid.uniform((8, 8), domain=SQUARE)
    large = FitzHughNagumo(n_modes=8, scale=80.0, final_time=0.5, n_steps=1)
    with pytest.raises(InputError, match="shorter time_step"):
        FitzHughNagumo(n_modes=8, scale=80.0, final_time=0.5, n_steps=1, time_step=0.02).sample(
            0, 0, [grid], 32
        )
    assert np.abs(large.sample(0, 0, [grid], 32)[grid]["activator"][-1]).max() < 10


def test_fields_have_unit_variance_and_are_independent():
    # By Parseval, the mean over the box of the mean square is the sum of the modes' variances over its area.
    sigma = GaussianRandomField(tau=5.0, alpha=3.0, n_modes=32).amplitudes([2.0, 2.0])
    assert PROBLEM.scale**2 * np.sum(sigma**2) / 4 == pytest.approx(1.0, abs=0.02)
    fields = np.stack([PROBLEM.initial(0, i, cells(16, 16, domain=SQUARE)) for i in range(200)])
    np.testing.assert_allclose(np.mean(fields**2, axis=(0, 2, 3)), 1.0, atol=0.2)
    assert abs(np.mean(fields[:, 0] * fields[:, 1])) < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activator_diffusivity": -1.0}, r"activator_diffusivity=-1\.0"),
        ({"inhibitor_diffusivity": float("inf")}, "inhibitor_diffusivity=inf"),
        ({"k": float("nan")}, "k=nan"),
        ({"final_time": -1.0}, r"final_time=-1\.0"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"scale": 0.0}, r"scale=0\.0"),
        ({"time_step": 0.0}, r"time_step=0\.0"),
        ({"alpha": 1.0}, r"alpha=1\.0 in 2 dimensions"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        FitzHughNagumo(**options)


def test_refuses_what_it_cannot_solve():
    grid, u = cells(8, 6), np.zeros((1, 8, 6))
    options = {"reaction": np.zeros_like, "final_time": 1.0, "n_steps": 1, "time_step": 0.1}
    with pytest.raises(InputError, match=r"initial of shape \(1, 8, 6\), expected \(2, 8, 6\)"):
        solve_reaction_diffusion(u, grid, diffusivities=(1, 1), **options)
    with pytest.raises(InputError, match="expected registration='cell'"):
        solve_reaction_diffusion(u, Grid.uniform((8, 6)), diffusivities=[1], **options)
    with pytest.raises(InputError, match="axis 'y' is periodic"):
        wraps = Grid.uniform((8, 6), registration="cell", periodic=True)
        solve_reaction_diffusion(u, wraps, diffusivities=[1], **options)
    with pytest.raises(InputError, match="not finite; expected none"):
        solve_reaction_diffusion(u + np.nan, grid, diffusivities=[1], **options)
    with pytest.raises(InputError, match=r"diffusivities\[0\]=-1"):
        solve_reaction_diffusion(u, grid, diffusivities=[-1], **options)


def test_refuses_grids_and_samples_that_are_none():
    grid = Grid.uniform((8, 8), domain=SQUARE)
    with pytest.raises(InputError, match="no grids"):
        PROBLEM.solvers([])
    with pytest.raises(InputError, match="at least 64"):
        PROBLEM.sample(0, 0, [grid], 32)
    with pytest.raises(InputError, match="axis 'y' is periodic"):
        PROBLEM.check(0, [Grid.uniform((8, 8), domain=SQUARE, periodic=True)])
    with pytest.raises(InputError, match="seed=-1"):
        PROBLEM.check(-1, [grid])
    with pytest.raises(InputError, match="index=-1"):
        PROBLEM.initial(0, -1, grid)
