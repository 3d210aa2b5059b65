import itertools

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from mano_op.grid import Grid
from mano_op.problems.navier_stokes import NavierStokes
from mano_op.problems.random_field import PeriodicRandomField

BOX = [(-1.0, 1.0), (0.0, 1.5)]


def solve(initial, grid, forcing=None, **options):
    forcing = np.zeros(grid.shape) if forcing is None else forcing
    return NavierStokes(**options).solve(initial, grid, forcing)


def torus(*shape, **options):
    return Grid.uniform(shape, periodic=True, **options)


def wave(k_y, k_x, grid, phase=0.0):
    """cos(kappa . x + phase) and its two derivatives, and kappa^2."""
    (y, x), (length_y, length_x) = grid.mesh, (axis.length for axis in grid)
    kappa_y, kappa_x = 2 * np.pi * k_y / length_y, 2 * np.pi * k_x / length_x
    angle = kappa_y * y + kappa_x * x + phase
    return np.cos(angle), (-kappa_y * np.sin(angle), -kappa_x * np.sin(angle)), kappa_y**2 + kappa_x**2


def random_vorticity(grid, n_modes=4, index=0):
    return PeriodicRandomField(scale=60.0, tau=7.0, alpha=2.5, n_modes=n_modes).sample(0, index, grid)


def coefficients(w):
    return np.fft.fft2(w) / w.size


@pytest.mark.parametrize("registration", ["node", "cell"])
def test_taylor_green_vortices_decay(registration):
    grid = torus(18, 12, domain=BOX, registration=registration)
    first, _, square = wave(2, 1, grid, phase=0.3)
    second, _, _ = wave(-2, 1, grid, phase=0.1)
    vortices = 3.0 * (first + second)  # a product of cosines
    w = solve(vortices, grid, viscosity=0.02, final_time=2.0, n_steps=4)
    for t, found in zip((0.0, 0.5, 1.0, 1.5, 2.0), w, strict=True):
        np.testing.assert_allclose(found, np.exp(-0.02 * square * t) * vortices, rtol=0, atol=1e-12)


def test_waves_of_one_length_respond_to_the_forcing_alone():
    """Vorticity is then a function of the stream function; pairs of waves alone are advected."""
    grid = torus(32, 32)
    waves = [wave(k_y, k_x, grid, phase=k_x)[0] for k_y, k_x in ((3, 4), (5, 0), (-4, 3), (0, 5))]
    initial = 2.0 * waves[0] - waves[1] + 0.5 * waves[2]
    forcing = 0.3 * waves[3] - waves[0]
    decay = 0.01 * 25 * (2 * np.pi) ** 2
    w = solve(initial, grid, forcing=forcing, viscosity=0.01, final_time=0.6, n_steps=3)
    for t, found in zip((0.2, 0.4, 0.6), w[1:], strict=True):
        expected = np.exp(-decay * t) * initial - np.expm1(-decay * t) / decay * forcing
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_forcing_holds_a_flow_steady():
    """f = u . grad w - nu laplace w, by the chain rule."""
    grid, viscosity = torus(24, 32, domain=BOX), 0.1
    w, advection, friction = np.zeros(grid.shape), np.zeros(grid.shape), np.zeros(grid.shape)
    velocity, gradient = np.zeros((2, *grid.shape)), np.zeros((2, *grid.shape))
    for amplitude, k_y, k_x, phase in ((1.0, 1, 2, 0.2), (-0.7, 2, -1, 1.0), (0.4, 0, 3, 0.0)):
        value, (along_y, along_x), square = wave(k_y, k_x, grid, phase)
        w += amplitude * value
        gradient += amplitude * np.array([along_y, along_x])
        velocity += amplitude / square * np.array([-along_x, along_y])  # psi = w / kappa^2; along y, along x
        friction += amplitude * viscosity * square * value
    advection = np.sum(velocity * gradient, axis=0)
    assert np.abs(advection).max() > 0.1
    solution = solve(w, grid, forcing=advection + friction, viscosity=viscosity, final_time=1.0, n_steps=2)
    np.testing.assert_allclose(solution, [w] * 3, rtol=0, atol=1e-12)


def test_solution_is_the_galerkin_projection():
    """Products of kept waves are exact: a convolution of coefficients, one pair at a time."""
    n, kept, viscosity = 8, 2, 0.01  # 2 < 8 / 3 <= 3
    grid = torus(n, n)
    w0 = 10 * random_vorticity(grid, n_modes=kept)
    modes = [mode for mode in itertools.product(range(-kept, kept + 1), repeat=2) if any(mode)]
    number = {mode: i for i, mode in enumerate(modes)}
    start = np.array([coefficients(w0)[mode] for mode in modes])
    triads = [
        (number[p], number[q], number[r], (p[0] * q[1] - p[1] * q[0]) / (p[0] ** 2 + p[1] ** 2))
        for p, q in itertools.product(modes, repeat=2)
        if (r := (p[0] + q[0], p[1] + q[1])) in number
    ]
    square = (2 * np.pi) ** 2 * np.array([k_y**2 + k_x**2 for k_y, k_x in modes])

    def slope(t, c):
        # u_p . grad w_q with psi_p = w_p / kappa_p^2: the cross product of p and q, over p^2.
        change = -viscosity * square * c
        for p, q, r, cross in triads:
            change[r] += cross * c[p] * c[q]
        return change

    end = solve_ivp(slope, (0, 1.0), start, rtol=1e-10, atol=1e-12).y[:, -1]
    solution = solve(w0, grid, viscosity=viscosity, final_time=1.0, n_steps=1, time_step=0.005)[-1]
    decayed = np.exp(-viscosity * square) * start
    assert np.abs(end - decayed).max() > 0.1
    np.testing.assert_allclose([coefficients(solution)[mode] for mode in modes], end, rtol=0, atol=1e-8)


def test_inviscid_flow_conserves_energy_and_enstrophy():
    grid = torus(32, 32)
    w0 = random_vorticity(grid, n_modes=10)
    w = solve(w0, grid, viscosity=1e-14, final_time=1.0, n_steps=2, time_step=0.01)
    k = np.fft.fftfreq(32, 1 / 32)
    square = (2 * np.pi) ** 2 * (k[:, None] ** 2 + k**2)
    square[0, 0] = np.inf
    power = [np.abs(coefficients(each)) ** 2 for each in w]
    assert np.abs(w[-1] - w[0]).max() > 0.5 * np.abs(w0).max(), "the flow has moved"
    for weight in (1.0, 1 / square):
        sums = [np.sum(weight * each) for each in power]
        np.testing.assert_allclose(sums, sums[0], rtol=1e-8)
