import itertools

import numpy as np
import pytest
from helpers import rates
from scipy.integrate import solve_ivp

from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.problems.fourier import PeriodicRandomField
from mano_op.problems.navier_stokes import NavierStokes, solve_navier_stokes

BOX = [(-1.0, 1.0), (0.0, 1.5)]


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
    w = solve_navier_stokes(vortices, grid, viscosity=0.02, final_time=2.0, n_steps=4)
    for t, found in zip((0.0, 0.5, 1.0, 1.5, 2.0), w, strict=True):
        np.testing.assert_allclose(found, np.exp(-0.02 * square * t) * vortices, rtol=0, atol=1e-12)


def test_waves_of_one_length_answer_the_forcing_alone():
    """Vorticity is then a function of the stream function, and not advected, though each pair of waves is."""
    grid = torus(32, 32)
    waves = [wave(k_y, k_x, grid, phase=k_x)[0] for k_y, k_x in ((3, 4), (5, 0), (-4, 3), (0, 5))]
    initial = 2.0 * waves[0] - waves[1] + 0.5 * waves[2]
    forcing = 0.3 * waves[3] - waves[0]
    decay = 0.01 * 25 * (2 * np.pi) ** 2
    w = solve_navier_stokes(initial, grid, forcing=forcing, viscosity=0.01, final_time=0.6, n_steps=3)
    for t, found in zip((0.2, 0.4, 0.6), w[1:], strict=True):
        expected = np.exp(-decay * t) * initial - np.expm1(-decay * t) / decay * forcing
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_forcing_holds_a_flow_that_advects_itself():
    """f = u . grad w - nu laplace w, worked out by the chain rule, keeps any w as it is."""
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
    found = solve_navier_stokes(
        w, grid, forcing=advection + friction, viscosity=viscosity, final_time=1.0, n_steps=2
    )
    np.testing.assert_allclose(found, [w] * 3, rtol=0, atol=1e-12)


def test_is_the_galerkin_projection():
    """The products of what is kept are exact: the convolution of the coefficients, one pair at a time."""
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
    found = solve_navier_stokes(w0, grid, viscosity=viscosity, final_time=1.0, n_steps=1, time_step=0.005)[-1]
    decayed = np.exp(-viscosity * square) * start
    assert np.abs(end - decayed).max() > 0.1
    np.testing.assert_allclose([coefficients(found)[mode] for mode in modes], end, rtol=0, atol=1e-8)


def test_fourth_order_in_time():
    grid, options = torus(32, 32), {"viscosity": 2e-3, "final_time": 0.8, "n_steps": 1}
    w0, forcing = random_vorticity(grid), wave(1, 1, grid)[0]
    exact = solve_navier_stokes(w0, grid, forcing=forcing, time_step=0.005, **options)[-1]
    errors = [
        np.abs(solve_navier_stokes(w0, grid, forcing=forcing, time_step=h, **options)[-1] - exact).max()
        for h in (0.2, 0.1, 0.05)
    ]
    assert np.all(rates(errors) > 3.7)
    assert errors[-1] < 1e-5 * np.abs(exact).max()


def test_error_falls_faster_than_any_power_of_the_spacing():
    options = {"viscosity": 5e-3, "final_time": 0.5, "n_steps": 1, "time_step": 0.01}
    fields = {n: random_vorticity(torus(n, n), n_modes=3) for n in (16, 32, 64, 128)}
    solved = {n: solve_navier_stokes(w0, torus(n, n), **options)[-1] for n, w0 in fields.items()}
    errors = [np.abs(solved[n] - solved[128][:: 128 // n, :: 128 // n]).max() for n in (16, 32, 64)]
    order = rates(errors)
    assert order[0] > 3
    assert order[1] > order[0] + 5, "the order itself grows"
    assert errors[-1] < 1e-8


def test_without_viscosity_energy_and_enstrophy_stay():
    grid = torus(32, 32)
    w0 = random_vorticity(grid, n_modes=10)
    w = solve_navier_stokes(w0, grid, viscosity=1e-14, final_time=1.0, n_steps=2, time_step=0.01)
    k = np.fft.fftfreq(32, 1 / 32)
    square = (2 * np.pi) ** 2 * (k[:, None] ** 2 + k**2)
    square[0, 0] = np.inf
    power = [np.abs(coefficients(each)) ** 2 for each in w]
    assert np.abs(w[-1] - w[0]).max() > 0.5 * np.abs(w0).max(), "the flow has moved"
    for weight in (1.0, 1 / square):
        sums = [np.sum(weight * each) for each in power]
        np.testing.assert_allclose(sums, sums[0], rtol=1e-8)


def test_balance_of_energy_and_enstrophy():
    """Their rates are what the forcing does less what viscosity takes: Simpson's rule over the outputs."""
    grid, viscosity = torus(32, 48, domain=BOX), 5e-3
    forcing = wave(1, 2, grid)[0] + wave(2, 0, grid, phase=1.0)[0]
    w = solve_navier_stokes(
        random_vorticity(grid), grid, forcing=forcing, viscosity=viscosity, final_time=0.8, n_steps=80
    )
    np.testing.assert_allclose(w.mean(axis=(1, 2)), 0.0, atol=1e-15)
    k_y, k_x = np.fft.fftfreq(32, 1 / 32)[:, None] / 2.0, np.fft.fftfreq(48, 1 / 48) / 1.5
    square = (2 * np.pi) ** 2 * (k_y**2 + k_x**2)
    square[0, 0] = np.inf
    spectra, source = np.array([coefficients(each) for each in w]), coefficients(forcing)
    for weight, friction in ((1.0, np.where(np.isinf(square), 0.0, square)), (1 / square, 1.0)):
        total = np.sum(weight * np.abs(spectra) ** 2, axis=(1, 2)) / 2
        rate = np.sum(
            weight * (spectra.conj() * source).real - viscosity * friction * np.abs(spectra) ** 2, axis=(1, 2)
        )
        simpson = 0.01 / 3 * (rate[0] + rate[-1] + 4 * rate[1:-1:2].sum() + 2 * rate[2:-1:2].sum())
        assert abs(total[-1] - total[0]) > 0.05 * total[0]
        assert total[-1] - total[0] == pytest.approx(simpson, rel=1e-6)


def test_mirrored_flow_is_the_mirror_image():
    """Exchanging x and y turns every vortex round."""
    grid, mirror = torus(24, 36, domain=BOX), torus(36, 24, domain=BOX[::-1])
    w0, forcing = random_vorticity(grid), wave(1, 2, grid)[0]
    options = {"viscosity": 1e-3, "final_time": 0.5, "n_steps": 1, "time_step": 0.02}
    w = solve_navier_stokes(w0, grid, forcing=forcing, **options)
    mirrored = solve_navier_stokes(-w0.T, mirror, forcing=-forcing.T, **options)
    assert np.abs(w[-1] - w[0]).max() > 0.1
    np.testing.assert_allclose(mirrored, -w.swapaxes(1, 2), rtol=0, atol=1e-12)


def test_levels_are_samplings_of_one_solution():
    problem = NavierStokes(n_modes=10, final_time=2.0, n_steps=4)
    coarse, fine, odd = torus(16, 16), torus(32, 32), torus(21, 27)
    cell = torus(16, 8, registration="cell")
    fields = problem.sample(1, 5, [coarse, fine, odd, cell])
    random_field = PeriodicRandomField(scale=7**1.5, tau=7.0, alpha=2.5, n_modes=10)
    for grid, values in fields.items():
        np.testing.assert_array_equal(values["initial_vorticity"], random_field.sample(1, 5, grid))
        np.testing.assert_array_equal(values["vorticity"][0], values["initial_vorticity"])
    y, x = fine.mesh
    forcing = 0.1 * (np.sin(2 * np.pi * (x + y)) + np.cos(2 * np.pi * (x + y)))
    w = fields[fine]["vorticity"]
    solved = solve_navier_stokes(
        w[0], fine, forcing=forcing, viscosity=1e-3, final_time=2.0, n_steps=4, time_step=0.02
    )
    np.testing.assert_allclose(w, solved, rtol=0, atol=1e-13)
    np.testing.assert_allclose(fields[coarse]["vorticity"], w[:, ::2, ::2], rtol=0, atol=1e-13)
    spectrum = np.fft.fft2(w) / 32**2
    for grid in (odd, cell):
        k = np.fft.fftfreq(32, 1 / 32)
        waves = [np.exp(2j * np.pi * np.outer(k, points)) for points in grid.points]
        series = np.einsum("tkl,ky,lx->tyx", spectrum, *waves).real
        np.testing.assert_allclose(fields[grid]["vorticity"], series, rtol=0, atol=1e-12)
    assert problem.times == (0.0, 0.5, 1.0, 1.5, 2.0)


def test_a_sample_depends_on_seed_and_number_alone():
    problem, grid = NavierStokes(n_modes=6, final_time=1.0, n_steps=1), torus(16, 16)
    forwards = [problem.sample(3, i, [grid])[grid]["vorticity"] for i in range(3)]
    alone = problem.sample(3, 2, [torus(8, 8), grid])[grid]["vorticity"]
    np.testing.assert_array_equal(forwards[2], alone)
    assert len({w.tobytes() for w in forwards}) == 3


def test_default_solver_resolves_the_default_fields():
    problem, grid = NavierStokes(n_steps=2, final_time=1.0), torus(16, 16)
    assert problem.solvers([grid])[grid].shape == (64, 64)
    assert problem.solvers([torus(96, 80)])[torus(96, 80)].shape == (96, 96)
    default, fine = (problem.sample(0, 0, [grid], n)[grid]["vorticity"] for n in (None, 96))
    assert np.abs(default[-1]).max() > 0.1
    np.testing.assert_allclose(default, fine, rtol=0, atol=1e-6 * np.abs(fine).max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"viscosity": 0.0}, r"viscosity=0\.0"),
        ({"forcing": float("nan")}, "forcing=nan"),
        ({"final_time": -1.0}, r"final_time=-1\.0"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"time_step": 0.0}, r"time_step=0\.0"),
        ({"scale": -1.0}, r"scale=-1\.0"),
        ({"alpha": 1.0}, r"alpha=1\.0 in 2 dimensions"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        NavierStokes(**options)


def test_refuses_what_it_cannot_solve():
    grid, w = torus(8, 6), np.zeros((8, 6))
    with pytest.raises(InputError, match=r"initial of shape \(6, 8\)"):
        solve_navier_stokes(w.T, grid)
    with pytest.raises(InputError, match=r"forcing of shape \(6,\)"):
        solve_navier_stokes(w, grid, forcing=np.zeros(6))
    with pytest.raises(InputError, match=r"initial of shape \(8,\).*expected two axes"):
        solve_navier_stokes(np.zeros(8), torus(8))
    with pytest.raises(InputError, match="axis 'x' is not periodic"):
        solve_navier_stokes(w, Grid.uniform((8, 6), periodic=[True, False]))
    with pytest.raises(InputError, match="forcing: has values that are not finite"):
        solve_navier_stokes(w, grid, forcing=np.full((8, 6), np.inf))
    with pytest.raises(InputError, match="initial: has the mean 1, but"):
        solve_navier_stokes(w + 1, grid)
    with pytest.raises(InputError, match=r"viscosity=-0\.1"):
        solve_navier_stokes(w, grid, viscosity=-0.1)
    with pytest.raises(InputError, match="shorter time_step"):
        fine = torus(32, 32)
        solve_navier_stokes(1e4 * random_vorticity(fine, n_modes=10), fine, time_step=0.5)


def test_refuses_grids_and_samples_that_are_none():
    problem = NavierStokes()
    for grid in (torus(8), torus(8, 8, domain=BOX)):
        with pytest.raises(InputError, match="the problem is on the unit square, with two axes"):
            problem.solvers([grid])
    with pytest.raises(InputError, match="at least 64"):
        problem.sample(0, 0, [torus(8, 8)], 32)
    with pytest.raises(InputError, match="axis 'y' is not periodic"):
        problem.check(0, [Grid.uniform((8, 8))])
    with pytest.raises(InputError, match="seed=-1"):
        problem.check(-1, [torus(8, 8)])
