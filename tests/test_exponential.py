from fractions import Fraction
from math import factorial

import numpy as np
import pytest
from helpers import rates
from scipy.integrate import solve_ivp

from mano_op.errors import InputError
from mano_op.problems.exponential import integrate, phi


@pytest.mark.parametrize("z", [0.0, -1e-12, -1e-4, -0.1, -0.999, -1.0, -1.5, -7.0, -30.0, 0.5, 3.0])
def test_phi_is_its_power_series(z):
    exact = [sum(Fraction(z) ** j / factorial(j + m) for j in range(150)) for m in (1, 2, 3)]
    np.testing.assert_allclose(phi(z), [float(value) for value in exact], rtol=2e-15)


def test_phi_is_exact_far_from_zero():
    for z in (-1e3, -1e6):  # where exp(z) is 0
        exact = [-1 / z, -(1 + 1 / z) / z, -(1 / 2 + (1 + 1 / z) / z) / z]
        np.testing.assert_allclose(phi(z), exact, rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_stiff_linear_part_and_constants_are_exact(dtype):
    decay, source = np.array([0.0, -0.3, -50.0, -1e5]), np.array([1.0, 2.0, -3.0, 4.0]).astype(dtype)
    initial = np.array([1.0, -1.0, 2.0, 0.5], dtype=dtype)
    if dtype == np.complex128:
        source, initial = source * (1 - 2j), initial * 1j
    found = integrate(initial, decay, lambda v: source, [0.0, 1.0, 2.0, 3.0], time_step=0.5)
    for t, v in enumerate(found):
        growth = np.array([t, *(np.expm1(decay[1:] * t) / decay[1:])])
        np.testing.assert_allclose(v, np.exp(decay * t) * initial + growth * source, rtol=1e-13)


def pendulum(v):
    return np.array([v[1], -np.sin(v[0])]) - 0.1 * v**3


@pytest.mark.parametrize("linear", [0.0, np.array([-0.5, -4.0])])
def test_error_is_of_fourth_order(linear):
    initial = np.array([1.0, 0.5])
    exact = solve_ivp(lambda t, v: linear * v + pendulum(v), (0, 2), initial, rtol=1e-13, atol=1e-14).y[:, -1]
    errors = [
        np.abs(integrate(initial, linear, pendulum, [0.0, 2.0], h)[-1] - exact).max()
        for h in (0.2, 0.1, 0.05, 0.025)
    ]
    assert np.all(rates(errors) > 3.7)
    assert errors[-1] < 1e-7


@pytest.mark.parametrize(
    ("n_steps", "time_step", "substeps"),
    [(3, 0.13, 4), (1, 0.125, 12), (5, 0.1, 3)],  # 1.5 / 5 / 0.1 is 3 but for rounding
)
def test_steps_between_outputs_are_as_few_and_equal_as_allowed(n_steps, time_step, substeps):
    initial, calls = np.array([1.0, 0.5]), []
    times = [1.5 * i / n_steps for i in range(n_steps + 1)]
    states = integrate(initial, -1.0, lambda v: (calls.append(0), pendulum(v))[1], times, time_step)
    assert len(calls) == 4 * n_steps * substeps
    np.testing.assert_array_equal(states[0], initial)
    fewer = integrate(initial, -1.0, pendulum, [0.0, 1.5], 1.5 / n_steps / substeps)
    np.testing.assert_allclose(states[-1], fewer[-1], rtol=1e-14)


def test_step_that_blows_up_is_refused():
    with pytest.raises(
        InputError, match=r"no longer finite at time 2, with steps of 0\.5: .*shorter time_step"
    ):
        integrate(np.array([1.0]), 0.0, lambda v: -(v**3) * 1e3, [0.0, 2.0, 4.0], time_step=0.5)


@pytest.mark.parametrize(
    ("times", "time_step", "message"),
    [
        ([0.0, 1.0], -0.1, r"time_step=-0\.1"),
        ([0.0, 1.0], 0.0, r"time_step=0\.0"),
        ([0.0, 1.0, 3.0], 0.1, "times=0, 1, 3; expected two or more, equally spaced from 0"),
        ([1.0, 2.0], 0.1, "times=1, 2; expected"),
        ([0.0], 0.1, "times=0; expected"),
    ],
)
def test_times_and_steps_that_do_not_fit_are_refused(times, time_step, message):
    with pytest.raises(InputError, match=message):
        integrate(np.ones(2), 0.0, np.zeros_like, times, time_step)
