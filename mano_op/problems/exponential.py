r"""Time stepping for :math:`v' = \Lambda v + N(v)` with a diagonal linear part that is integrated exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mano_op.errors import InputError, check_finite_number, listed

State = TypeVar("State", NDArray[np.float64], NDArray[np.complex128])


def integrate(
    initial: State,
    linear: ArrayLike,
    nonlinear: Callable[[State], State],
    times: Sequence[float],
    time_step: float,
) -> State:
    r"""Solve :math:`v' = \Lambda v + N(v)` with an exponential Runge-Kutta method of order four.

    With a step h, :math:`z = h \Lambda` and the functions of `phi`, one step is (Cox and Matthews, Journal of
    Computational Physics 176, 2002)

    .. math:: a &= e^{z/2} v + \tfrac h2 \varphi_1(\tfrac z2) N(v), \\
              b &= e^{z/2} v + \tfrac h2 \varphi_1(\tfrac z2) N(a), \\
              c &= e^{z/2} a + \tfrac h2 \varphi_1(\tfrac z2) (2 N(b) - N(v)), \\
              v_+ &= e^z v + h (\varphi_1 - 3 \varphi_2 + 4 \varphi_3) N(v)
                   + h (2 \varphi_2 - 4 \varphi_3) (N(a) + N(b)) + h (4 \varphi_3 - \varphi_2) N(c).

    Exact for constant N. `initial` is v at time 0, real or complex, and `linear` the real diagonal of
    :math:`\Lambda`. `times` are equally spaced from 0; h is the longest step that divides their interval and
    is at most `time_step`. Returns v at the times, shape ``(len(times), *initial.shape)``.

    Raises
    ------
    InputError
        If `times` or `time_step` are not as above, or v does not stay finite.

    Examples
    --------
    >>> # The logistic equation v' = v - v^2 from 1/2, which tends to 1.
    >>> v = integrate(np.array([0.5]), 1.0, lambda v: -(v**2), [0.0, 1.0, 2.0], time_step=0.01)
    >>> bool(np.allclose(v[:, 0], 1 / (1 + np.exp([0.0, -1.0, -2.0])), rtol=0, atol=1e-9))
    True
    """
    check_finite_number(zero=False, time_step=time_step)
    if len(times) < 2 or not np.allclose(times, times[1] * np.arange(len(times)), rtol=1e-9, atol=0):
        raise InputError(f"times={listed(times)}; expected two or more, equally spaced from 0: problem.times")
    substeps = math.ceil(times[1] / time_step * (1 - 1e-12))  # no extra step where rounding alone asks for it
    h = times[1] / substeps
    z = h * np.asarray(linear, dtype=np.float64)
    phi_1, phi_2, phi_3 = phi(z)
    full, half, stage = np.exp(z), np.exp(z / 2), h / 2 * phi(z / 2)[0]
    first, middle, last = (
        h * weight for weight in (phi_1 - 3 * phi_2 + 4 * phi_3, 2 * phi_2 - 4 * phi_3, 4 * phi_3 - phi_2)
    )
    states = np.empty((len(times), *initial.shape), dtype=initial.dtype)
    states[0] = v = initial
    for i, time in enumerate(times[1:], start=1):
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            for _ in range(substeps):
                n_v = nonlinear(v)
                decayed = half * v
                a = decayed + stage * n_v
                n_a = nonlinear(a)
                n_b = nonlinear(decayed + stage * n_a)
                n_c = nonlinear(half * a + stage * (2 * n_b - n_v))
                v = full * v + first * n_v + middle * (n_a + n_b) + last * n_c
        if not np.isfinite(v).all():
            raise InputError(
                f"the solution is no longer finite at time {time:g}, with steps of {h:g}: pass a shorter "
                "time_step"
            )
        states[i] = v
    return states


def phi(z: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    r"""Evaluate :math:`\varphi_m(z) = \frac{1}{(m-1)!} \int_0^1 e^{(1-s) z} s^{m-1} ds` for m = 1, 2, 3.

    By the power series :math:`\sum_j z^j / (j + m)!` where \|z\| < 1, and elsewhere by :math:`\varphi_0 =
    e^z`, :math:`\varphi_{m+1} = (\varphi_m - 1/m!) / z`, which loses digits near 0.

    Examples
    --------
    >>> [float(value) for value in phi(0.0)] == [1, 1 / 2, 1 / 6]
    True
    """
    z = np.asarray(z, dtype=np.float64)
    near = np.abs(z) < 1
    small, large = np.where(near, z, 0.0), np.where(near, 1.0, z)
    series = np.zeros_like(z)
    for j in reversed(range(18)):  # 1 / 21! is far below the rounding of 1 / 3!
        series = series * small + 1 / math.factorial(j + 3)
    phi_1 = np.expm1(large) / large
    phi_2 = (phi_1 - 1) / large
    phi_3 = (phi_2 - 1 / 2) / large
    phi_2 = np.where(near, small * series + 1 / 2, phi_2)
    return np.where(near, small * phi_2 + 1, phi_1), phi_2, np.where(near, series, phi_3)
