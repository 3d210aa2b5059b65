from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.problems.random_field import GaussianRandomField
from mano_op.problems.reaction_diffusion import FitzHughNagumo

SQUARE = [(-1.0, 1.0)] * 2
BOX = [(-1.0, 1.0), (0.0, 1.5), (2.0, 2.5)]
PROBLEM = FitzHughNagumo()


def solve(initial, grid, diffusivities, reaction, final_time, n_steps, time_step):
    """Solve a system of any species, with the solver of `FitzHughNagumo`."""
    parts = {"diffusivities": tuple(diffusivities), "reaction": staticmethod(reaction)}
    system = type("System", (FitzHughNagumo,), parts)
    return system(final_time=final_time, n_steps=n_steps, time_step=time_step).solve(initial, grid)


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
    u = solve(initial, grid, diffusivities, np.zeros_like, final_time=2.0, n_steps=4, time_step=1)
    for t, state in zip((0.0, 0.5, 1.0, 1.5, 2.0), u, strict=True):
        for s, d in enumerate(diffusivities):
            expected = 0.5 + (s + 1) * sum(np.exp(d * laplacian * t) * wave for wave, laplacian in waves)
            np.testing.assert_allclose(state[s], expected, rtol=0, atol=1e-13)


def test_uniform_fields_follow_the_reaction_alone():
    grid, initial = cells(4, 6), np.array([1.2, -0.4])
    uniform = np.multiply.outer(initial, np.ones(grid.shape))
    u = FitzHughNagumo(n_steps=5, time_step=0.01).solve(uniform, grid)
    rates_of_change = lambda t, y: [y[0] - y[0] ** 3 - 5e-3 - y[1], y[0] - y[1]]  # noqa: E731
    exact = solve_ivp(rates_of_change, (0, 5), initial, t_eval=range(6), rtol=1e-12, atol=1e-12).y.T
    assert np.abs(exact[-1] - initial).max() > 0.5
    np.testing.assert_allclose(u, np.broadcast_to(exact[:, :, None, None], u.shape), rtol=0, atol=1e-8)


def test_source_holds_a_field_steady():
    """A steady source balances diffusion and reaction of the field."""
    grid, diffusivities = cells(16, 12), (0.03, 0.05)
    (first, a), (second, b) = half_waves((1, 2), grid), half_waves((2, 1), grid)
    u, v = 0.3 + first, second - 0.5 * first
    source = -np.stack([0.03 * a * first, 0.05 * (b * second - 0.5 * a * first)]) - PROBLEM.reaction(
        np.stack([u, v])
    )
    states = solve(
        [u, v],
        grid,
        diffusivities,
        lambda s: PROBLEM.reaction(s) + source,
        final_time=1,
        n_steps=1,
        time_step=0.1,
    )
    np.testing.assert_allclose(states[-1], [u, v], rtol=0, atol=1e-12)


def test_cubic_reactions_are_projected_exactly():
    """The rate of change of every kept cosine against a quadrature that is exact for the cube."""
    coarse, fine = cells(10, 12), cells(40, 48)
    random_field = GaussianRandomField(tau=5.0, alpha=2.5, n_modes=5)  # 5 half waves are under 10 / 2
    u, exact = (10 * random_field.sample(0, 0, grid) for grid in (coarse, fine))
    h = 1e-6  # so short that the change over a step is the rate
    states = solve([u], coarse, [0.0], lambda s: s**3, final_time=h, n_steps=1, time_step=h)
    change = (states[1, 0] - u) / h
    for mode in ((0, 0), (4, 5), (3, 2), (4, 0)):
        kept, _ = half_waves(mode, coarse)
        cube = np.mean(exact**3 * half_waves(mode, fine)[0])
        assert np.mean(change * kept) == pytest.approx(cube, abs=1e-4 * np.mean(np.abs(exact) ** 3))
    for mode in ((5, 0), (0, 6), (7, 3)):
        assert np.mean(change * half_waves(mode, coarse)[0]) == pytest.approx(0.0, abs=1e-8)


def test_default_step_follows_the_size_of_the_activator():
    """With 0.02, fields as large as these blow up."""
    grid = Grid.uniform((8, 8), domain=SQUARE)
    large = FitzHughNagumo(n_modes=8, scale=80.0, final_time=0.1, n_steps=1)
    with pytest.raises(InputError, match="shorter time_step"):
        replace(large, time_step=0.02).sample(0, 0, [grid], 16)
    assert np.abs(large.sample(0, 0, [grid], 16)[grid]["activator"][-1]).max() < 10
