import itertools

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from mano_op.grid import Grid
from mano_op.problems.burgers import Burgers

WAVES = ((1, 0.6, 0.3), (2, 0.25, -1.0))  # wavenumber, amplitude and phase


def cole_hopf(x, t, viscosity, length=1.0):
    """u = -2 nu theta_x / theta, where theta, here two decaying waves on 1, solves the heat equation."""
    theta, slope = np.ones_like(x), np.zeros_like(x)
    for k, amplitude, phase in WAVES:
        kappa = 2 * np.pi * k / length
        decayed = amplitude * np.exp(-viscosity * kappa**2 * t)
        theta += decayed * np.cos(kappa * x + phase)
        slope -= decayed * kappa * np.sin(kappa * x + phase)
    return -2 * viscosity * slope / theta


def circle(n):
    return Grid.uniform((n,), periodic=True)


def solve(initial, grid, **options):
    return Burgers(**options).solve(initial, grid)


@pytest.mark.parametrize("registration", ["node", "cell"])
@pytest.mark.parametrize("viscosity", [0.1, 0.5])
def test_solution_is_that_of_cole_and_hopf(viscosity, registration):
    grid = Grid.uniform((128,), domain=[(-1.0, 1.0)], registration=registration, periodic=True)
    (x,) = grid.points
    initial = cole_hopf(x, 0.0, viscosity, length=2.0)
    solution = solve(initial, grid, viscosity=viscosity, final_time=0.6, n_steps=3)
    assert np.abs(initial).max() > 0.5
    for t, u in zip((0.2, 0.4, 0.6), solution[1:], strict=True):
        np.testing.assert_allclose(u, cole_hopf(x, t, viscosity, length=2.0), rtol=0, atol=4e-8)


def test_solution_is_the_galerkin_projection():
    """The product of kept waves is exact: a convolution of coefficients, one pair at a time."""
    n, kept, viscosity = 9, 2, 0.2  # 2 < 9 / 3: wavenumber 3 would alias its square to -3
    grid = circle(n)
    (x,) = grid.points
    rng = np.random.default_rng(0)
    u0 = sum(
        rng.standard_normal() * np.cos(2 * np.pi * k * x) + rng.standard_normal() * np.sin(2 * np.pi * k * x)
        for k in range(kept + 1)
    )
    ks = np.arange(-kept, kept + 1)
    coefficients = np.array([np.mean(u0 * np.exp(-2j * np.pi * k * x)) for k in ks])

    def slope(t, c):
        square = np.zeros_like(c)
        for (i, p), (j, q) in itertools.product(enumerate(ks), repeat=2):
            if abs(p + q) <= kept:
                square[p + q + kept] += c[i] * c[j]
        return -2j * np.pi * ks * square / 2 - viscosity * (2 * np.pi * ks) ** 2 * c

    c = solve_ivp(slope, (0, 0.05), coefficients, rtol=1e-12, atol=1e-13).y[:, -1]
    expected = sum(c[i] * np.exp(2j * np.pi * k * x) for i, k in enumerate(ks))
    solution = solve(u0, grid, viscosity=viscosity, final_time=0.05, n_steps=1, time_step=5e-4)
    assert np.abs(solution[-1] - u0).max() > 0.5
    np.testing.assert_allclose(solution[-1], expected, rtol=0, atol=1e-9)
