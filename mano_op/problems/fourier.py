r"""Periodic fields that are functions: random Fourier series, and fields of a spectral solver anywhere.

What a pseudo-spectral solver finds on n points is a trigonometric polynomial. Evaluated at the points
of any grid, of any size and registration, it is the same function on each, and nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mano_op.errors import InputError, check_finite_number, check_whole
from mano_op.grid import Axis, Grid
from mano_op.problems.draws import normal_coefficients
from mano_op.problems.spectral_grid import expect_one_domain, expect_periodic


@dataclass(frozen=True, kw_only=True)
class PeriodicRandomField:
    r"""The Gaussian measure :math:`N(0, s^2 (-\Delta + \tau^2)^{-\alpha})` of periodic fields of mean zero.

    On the box :math:`\prod_j [a_j, a_j + L_j]` of a grid, a draw is the Karhunen-Loève series

    .. math:: u(x) = \sum_{0 \ne m \in \{0, \dots, 2n\}^d} \sigma_m\, \xi_m \prod_{j=1}^{d}
              \varphi_{m_j}(x_j), \qquad \xi_m \sim N(0, 1) \text{ independent},

    in the orthonormal sines and cosines :math:`\varphi_0 = 1/\sqrt{L}`, :math:`\varphi_{2k-1}(x) =
    \sqrt{2/L} \cos(2\pi k (x - a)/L)`, :math:`\varphi_{2k}(x) = \sqrt{2/L} \sin(2\pi k (x - a)/L)`, with

    .. math:: \sigma_m = s \Big(\sum_j \big(\tfrac{2\pi k_j}{L_j}\big)^2 + \tau^2\Big)^{-\alpha/2},
              \qquad k_j = \lceil m_j / 2 \rceil.

    Parameters
    ----------
    scale : float
        s, positive.
    tau : float
        Inverse correlation length, in one over the units of the coordinates; positive.
    alpha : float
        Smoothness: as modes are added, draws lie in the Sobolev space :math:`H^s` for every
        :math:`s < \alpha - d/2`, which must be positive.
    n_modes : int
        The largest wavenumber k along each axis, whatever the grid. More modes add detail to the *same*
        function: the first ones keep their coefficients.

    Raises
    ------
    InputError
        If a parameter is out of its range.

    Examples
    --------
    The 16-point grid sees what the 32-point grid sees, at every other point:

    >>> random_field = PeriodicRandomField(scale=25.0, tau=5.0, alpha=2.0)
    >>> coarse = random_field.sample(0, 7, Grid.uniform((16,), periodic=True))
    >>> fine = random_field.sample(0, 7, Grid.uniform((32,), periodic=True))
    >>> bool(np.allclose(coarse, fine[::2], rtol=0, atol=1e-12))
    True
    """

    scale: float = 1.0
    tau: float = 5.0
    alpha: float = 2.0
    n_modes: int = 64

    def __post_init__(self) -> None:
        check_finite_number(zero=False, scale=self.scale, tau=self.tau, alpha=self.alpha)
        check_whole(n_modes=self.n_modes)

    def amplitudes(self, lengths: Sequence[float]) -> NDArray[np.float64]:
        r"""The :math:`\sigma_m` on a box with sides `lengths`, shape ``(2 n_modes + 1,) * d``.

        Raises
        ------
        InputError
            If ``alpha <= d / 2``: the series then has no finite variance as modes are added.

        Examples
        --------
        >>> sigma = PeriodicRandomField(scale=6.0, tau=3.0, alpha=2.0, n_modes=2).amplitudes([1.0])
        >>> float(sigma[0]), bool(np.allclose(sigma[1:3], 6 / (4 * np.pi**2 + 9)))
        (0.0, True)
        """
        n_dim = len(lengths)
        if self.alpha <= n_dim / 2:
            raise InputError(
                f"alpha={self.alpha} in {n_dim} dimensions; expected alpha > {n_dim / 2:g}: "
                "rougher fields have no value at a point"
            )
        laplacian = np.zeros(())
        for length in lengths:
            k = (np.arange(2 * self.n_modes + 1) + 1) // 2
            laplacian = np.add.outer(laplacian, (2 * np.pi * k / length) ** 2)
        sigma = self.scale * (laplacian + self.tau**2) ** (-self.alpha / 2)
        sigma.flat[0] = 0.0
        return sigma

    def coefficients(
        self, seed: int | Sequence[int], index: int, lengths: Sequence[float]
    ) -> NDArray[np.float64]:
        r"""The coefficients :math:`\sigma_m \xi_m` of draw number `index`, shape ``(2 n_modes + 1,) * d``.

        They depend on `seed` and `index` alone, not on how many draws are made or in which order.

        Parameters
        ----------
        seed : int or sequence of int
            Entropy of a `numpy.random.SeedSequence`, so not negative.
        index : int
            Number of the draw, from 0.
        lengths : sequence of float
            Sides of the box.
        """
        sigma = self.amplitudes(lengths)
        return sigma * normal_coefficients(seed, index, 2 * self.n_modes + 1, sigma.ndim)

    def sample(self, seed: int | Sequence[int], index: int, grid: Grid) -> NDArray[np.float64]:
        """Draw number `index`, evaluated at the points of `grid`; the box is the grid's domain.

        Parameters
        ----------
        seed, index
            As in `coefficients`.
        grid : Grid
            Any shape, ``node`` or ``cell``, periodic along every axis.

        Returns
        -------
        numpy.ndarray
            Shape ``grid.shape``, float64.

        Raises
        ------
        InputError
            If an axis of the grid is not periodic, or ``alpha <= grid.n_dim / 2``.
        """
        expect_periodic(True, grid)
        field = self.coefficients(seed, index, [axis.length for axis in grid])
        for axis in grid:  # each pass sums over the first index and appends the points as the last one
            # einsum and not a matrix product: BLAS rounds differently with another number of threads.
            field = np.einsum("m...,mn->...n", field, _waves(axis, self.n_modes))
        return field


def evaluate(values: ArrayLike, source: Grid, grid: Grid) -> NDArray[np.float64]:
    r"""The trigonometric polynomial through periodic values, at the points of another grid.

    Along an axis with n points :math:`x_i = a + iL/n` it is

    .. math:: u(x) = \sum_{i=0}^{n-1} u_i\, D\Big(\frac{x - x_i}{L}\Big), \qquad D(t) =
              \frac1n \Big(1 + 2 \sum_{1 \le k < n/2} \cos 2\pi k t + [n \text{ even}] \cos \pi n t\Big).

    It is exact for fields with wavenumbers below n/2. For even n the values cannot tell the sine of
    wavenumber n/2 from nothing, and its cosine is taken.

    Parameters
    ----------
    values : array_like
        Shape ``(..., *source.shape)``; leading dimensions, time say, are kept.
    source : Grid
        ``node``, periodic along every axis.
    grid : Grid
        Any shape, ``node`` or ``cell``, over the same periodic domain.

    Returns
    -------
    numpy.ndarray
        Shape ``(..., *grid.shape)``, float64.

    Raises
    ------
    InputError
        If the shape does not fit, the domains differ, an axis is not periodic, or the source is not ``node``.

    Examples
    --------
    >>> source = Grid.uniform((5,), periodic=True)
    >>> grid = Grid.uniform((8,), periodic=True, registration="cell")
    >>> wave = evaluate(np.cos(4 * np.pi * source.points[0]), source, grid)
    >>> bool(np.allclose(wave, np.cos(4 * np.pi * grid.points[0])))
    True
    """
    field = np.asarray(values, dtype=np.float64)
    expect_periodic(True, source, grid)
    expect_one_domain(source, grid)
    if any(axis.registration != "node" for axis in source):
        raise InputError(f"the source is {source}; expected registration='node', as a transform takes it")
    if field.shape[-source.n_dim :] != source.shape:
        raise InputError(
            f"values of shape {field.shape}, expected (..., {', '.join(map(str, source.shape))})"
        )
    leading = field.shape[: field.ndim - source.n_dim]
    field = field.reshape(-1, *source.shape)
    for n, axis in zip(source.shape, grid, strict=True):  # sums over the second index, appends the points
        field = np.einsum("ti...,ij->t...j", field, _polynomials(n, axis))
    return np.ascontiguousarray(field).reshape(*leading, *grid.shape)


def _waves(axis: Axis, n_modes: int) -> NDArray[np.float64]:
    """The orthonormal sines and cosines of the axis at its points, shape ``(2 n_modes + 1, n)``."""
    angle = 2 * np.pi * np.arange(1, n_modes + 1)[:, np.newaxis] * ((axis.points - axis.start) / axis.length)
    waves = np.empty((2 * n_modes + 1, axis.n))
    waves[0], waves[1::2], waves[2::2] = 1.0, np.sqrt(2.0) * np.cos(angle), np.sqrt(2.0) * np.sin(angle)
    return waves / np.sqrt(axis.length)


@lru_cache(maxsize=32)
def _polynomials(n: int, axis: Axis) -> NDArray[np.float64]:
    """D((x_j - x_i) / L) of n nodes i and the points j of the axis, shape ``(n, axis.n)``."""
    k = np.arange(n // 2 + 1)[:, np.newaxis]
    weight = np.where((k == 0) | (2 * k == n), 1.0, 2.0) / n
    # Whole turns are taken off first: an angle of many turns has lost as many of its digits.
    here = 2 * np.pi * np.mod(k * ((axis.points - axis.start) / axis.length), 1.0)
    nodes = 2 * np.pi * (k * np.arange(n) % n) / n
    return np.einsum("ki,kj->ij", np.cos(nodes), weight * np.cos(here)) + np.einsum(
        "ki,kj->ij", np.sin(nodes), weight * np.sin(here)
    )
