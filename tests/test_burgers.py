import itertools

import numpy as np
import pytest
from helpers import rates
from scipy.integrate import solve_ivp

from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.problems.burgers import Burgers, solve_burgers
from mano_op.problems.fourier import PeriodicRandomField

WAVES = ((1, 0.6, 0.3), (2, 0.25, -1.0))  # wavenumber, amplitude and phase of what Cole and Hopf diffuse


def cole_hopf(x, t, viscosity, length=1.0):
    """u = -2 nu theta_x / theta, where theta, here two decaying waves on 1, solves the heat equation."""
    theta, slope = np.ones_like(x), np.zeros_like(x)
    for k, amplitude, phase in WAVES:
        kappa = 2 * np.pi * k / length
        decayed = amplitude * np.exp(-viscosity * kappa**2 * t)
        theta += decayed * np.cos(kappa * x + phase)
        slope -= decayed * kappa * np.sin(kappa * x + phase)
    return -2 * viscosity * slope / theta


def circle(n, **options):
    return Grid.uniform((n,), periodic=True, **options)


@pytest.mark.parametrize("registration", ["node", "cell"])
@pytest.mark.parametrize("viscosity", [0.1, 0.5])
def test_is_the_solution_of_cole_and_hopf(viscosity, registration):
    grid = Grid.uniform((128,), domain=[(-1.0, 1.0)], registration=registration, periodic=True)
    (x,) = grid.points
    initial = cole_hopf(x, 0.0, viscosity, length=2.0)
    found = solve_burgers(initial, grid, viscosity=viscosity, final_time=0.6, n_steps=3)
    assert np.abs(initial).max() > 0.5
    for t, u in zip((0.2, 0.4, 0.6), found[1:], strict=True):
        np.testing.assert_allclose(u, cole_hopf(x, t, viscosity, length=2.0), rtol=0, atol=4e-8)


def test_error_falls_faster_than_any_power_of_the_spacing():
    errors = []
    for n in (16, 32, 64, 128):
        grid = circle(n)
        (x,) = grid.points
        u = solve_burgers(
            cole_hopf(x, 0.0, 0.05), grid, viscosity=0.05, final_time=0.2, n_steps=1, time_step=5e-4
        )
        errors.append(np.abs(u[-1] - cole_hopf(x, 0.2, 0.05)).max())
    assert np.all(np.diff(rates(errors[:3])) > 2), "the order itself grows"
    assert errors[-1] < 1e-11


def test_fourth_order_in_time():
    grid = circle(64)
    (x,) = grid.points
    exact, errors = cole_hopf(x, 0.2, 0.1), []
    for h in (0.02, 0.01, 0.005, 0.0025):
        u = solve_burgers(cole_hopf(x, 0.0, 0.1), grid, viscosity=0.1, final_time=0.2, n_steps=1, time_step=h)
        errors.append(np.abs(u[-1] - exact).max())
    assert np.all(rates(errors) > 3.7)
    assert errors[-1] < 1e-6


def test_is_the_galerkin_projection():
    """The product of what is kept is exact: the convolution of the coefficients, one pair at a time."""
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
    found = solve_burgers(u0, grid, viscosity=viscosity, final_time=0.05, n_steps=1, time_step=5e-4)
    assert np.abs(found[-1] - u0).max() > 0.5
    np.testing.assert_allclose(found[-1], expected, rtol=0, atol=1e-9)


def test_conserves_the_mean_and_loses_energy_to_viscosity_alone():
    grid, viscosity = circle(256), 0.02
    u0 = 0.7 + PeriodicRandomField(scale=25.0, n_modes=10).sample(0, 0, grid)
    u = solve_burgers(u0, grid, viscosity=viscosity, final_time=0.4, n_steps=200)
    np.testing.assert_allclose(u.mean(axis=1), u0.mean(), rtol=1e-13)
    # d/dt of the mean of u^2 / 2 is minus nu times that of u_x^2: Simpson's rule over the outputs.
    k = np.arange(129)
    spectrum = np.fft.rfft(u, axis=1) / 256
    dissipation = viscosity * 2 * np.sum((2 * np.pi * k) ** 2 * np.abs(spectrum) ** 2, axis=1)
    simpson = (
        0.002
        / 3
        * (dissipation[0] + dissipation[-1] + 4 * dissipation[1:-1:2].sum() + 2 * dissipation[2:-1:2].sum())
    )
    energy = np.mean(u**2, axis=1) / 2
    assert energy[0] - energy[-1] > 0.05 * energy[0]
    assert energy[0] - energy[-1] == pytest.approx(simpson, rel=1e-5)


def test_moving_the_frame_moves_the_solution():
    """Galileo: with c added to u, the solution is the same, moved by c t."""
    grid = circle(96)
    u0 = PeriodicRandomField(scale=25.0, n_modes=8).sample(0, 1, grid)
    still = solve_burgers(u0, grid, final_time=0.5, n_steps=2)
    moving = solve_burgers(u0 + 0.5, grid, final_time=0.5, n_steps=2)
    np.testing.assert_allclose(moving[-1] - 0.5, np.roll(still[-1], 24), rtol=0, atol=1e-9)


def test_levels_are_samplings_of_one_solution():
    problem = Burgers(n_modes=20, final_time=0.5, n_steps=4)
    coarse, fine, odd = circle(16), circle(64), circle(27)
    cell = Grid.uniform((32,), registration="cell", periodic=True)
    fields = problem.sample(1, 5, [coarse, fine, odd, cell])
    random_field = PeriodicRandomField(scale=25.0, tau=5.0, alpha=2.0, n_modes=20)
    for grid, values in fields.items():
        np.testing.assert_array_equal(values["initial"], random_field.sample(1, 5, grid))
        np.testing.assert_array_equal(values["velocity"][0], values["initial"])
    solved = solve_burgers(fields[fine]["initial"], fine, final_time=0.5, n_steps=4)
    u = fields[fine]["velocity"]
    np.testing.assert_allclose(u, solved, rtol=0, atol=1e-13)
    np.testing.assert_allclose(fields[coarse]["velocity"], u[:, ::4], rtol=0, atol=1e-13)
    spectrum = np.fft.rfft(u, axis=1) / 64
    waves = np.exp(2j * np.pi * np.arange(1, 33)[:, None] * cell.points[0])
    series = spectrum[:, :1].real + 2 * (spectrum[:, 1:] @ waves).real
    np.testing.assert_allclose(fields[cell]["velocity"], series, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(u.shape, (len(problem.times), 64))
    assert problem.times == (0.0, 0.125, 0.25, 0.375, 0.5)


def test_a_sample_depends_on_seed_and_number_alone():
    problem, grid = Burgers(n_modes=12), circle(32)
    forwards = [problem.sample(3, i, [grid])[grid]["velocity"] for i in range(3)]
    alone = problem.sample(3, 2, [circle(16), grid])[grid]["velocity"]
    np.testing.assert_array_equal(forwards[2], alone)
    assert len({u.tobytes() for u in forwards}) == 3


def test_default_solver_resolves_the_default_fields():
    problem, grid = Burgers(), circle(32)
    assert problem.solvers([grid])[grid].shape == (512,)
    default, fine = (problem.sample(0, 0, [grid], n)[grid]["velocity"] for n in (None, 1024))
    assert np.abs(default[1:] - fine[1:]).max() < 1e-8
    assert np.abs(default[-1]).max() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"viscosity": 0.0}, r"viscosity=0\.0"),
        ({"final_time": -1.0}, r"final_time=-1\.0"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"time_step": 0.0}, r"time_step=0\.0"),
        ({"tau": -1.0}, r"tau=-1\.0"),
        ({"alpha": 0.5}, r"alpha=0\.5 in 1 dimensions"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        Burgers(**options)


def test_refuses_what_it_cannot_solve():
    grid, u = circle(8), np.zeros(8)
    with pytest.raises(InputError, match=r"initial of shape \(7,\)"):
        solve_burgers(u[1:], grid)
    with pytest.raises(InputError, match="expected one axis"):
        solve_burgers(np.zeros((8, 8)), Grid.uniform((8, 8), periodic=True))
    with pytest.raises(InputError, match="axis 'x' is not periodic"):
        solve_burgers(u, Grid.uniform((8,)))
    with pytest.raises(InputError, match="not finite"):
        solve_burgers(np.full(8, np.nan), grid)
    with pytest.raises(InputError, match=r"viscosity=-0\.1"):
        solve_burgers(u, grid, viscosity=-0.1)
    with pytest.raises(InputError, match="shorter time_step"):
        (x,) = (fine := circle(64)).points
        solve_burgers(100 * np.sin(2 * np.pi * x), fine, viscosity=1e-3, time_step=0.05)


def test_refuses_grids_and_samples_that_are_none():
    problem = Burgers()
    with pytest.raises(InputError, match=r"has 2 axes; Burgers' equation has 1"):
        problem.solvers([Grid.uniform((8, 8), periodic=True)])
    with pytest.raises(InputError, match="at least 511"):
        problem.sample(0, 0, [circle(8)], 64)
    with pytest.raises(InputError, match="axis 'x' is not periodic"):
        problem.check(0, [Grid.uniform((8,))])
    with pytest.raises(InputError, match="seed=-1"):
        problem.check(-1, [circle(8)])
