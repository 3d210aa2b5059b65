r"""Gaussian random fields that are functions, not arrays: one draw, evaluated on any grid.

A coefficient that is drawn point by point on each grid is another function on each of them, and
nothing can be said about resolution transfer. Here a draw is a finite cosine series with a number
of modes of its own, so that every grid samples the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mano_op.errors import InputError
from mano_op.grid import Axis, Grid
from mano_op.problems.draws import normal_coefficients


@dataclass(frozen=True, kw_only=True)
class GaussianRandomField:
    r"""The Gaussian measure with covariance :math:`(-\Delta + \tau^2)^{-\alpha}` and Neumann conditions.

    On the box :math:`\prod_j [a_j, a_j + L_j]` of a grid, a draw is the Karhunen-Loève series

    .. math:: u(x) = \sum_{0 \ne k \in \{0, \dots, n-1\}^d} \sigma_k\, \xi_k \prod_{j=1}^{d}
              \frac{c_{k_j}}{\sqrt{L_j}} \cos\frac{\pi k_j (x_j - a_j)}{L_j},
              \qquad \xi_k \sim N(0, 1) \text{ independent},

    .. math:: \sigma_k = \tau^{\alpha - d/2}
              \Big(\sum_j \big(\tfrac{\pi k_j}{L_j}\big)^2 + \tau^2\Big)^{-\alpha/2},
              \qquad c_0 = 1,\ c_{k > 0} = \sqrt{2}.

    In two dimensions the power of :math:`\tau` and the missing constant mode are those of the data of
    Li et al. [1]_; the power keeps the variance at a point about the same for every :math:`\tau`.

    Parameters
    ----------
    tau : float
        Inverse correlation length, in one over the units of the coordinates; positive.
    alpha : float
        Smoothness: as modes are added, draws lie in the Sobolev space :math:`H^s` for every
        :math:`s < \alpha - d/2`, which must be positive.
    n_modes : int
        Modes along each axis, whatever the grid. More modes add detail to the *same* function: the
        first ones keep their coefficients.

    Raises
    ------
    InputError
        If a parameter is out of its range.

    References
    ----------
    .. [1] Li, Kovachki, Azizzadenesheli, Liu, Bhattacharya, Stuart, Anandkumar, "Fourier Neural
       Operator for Parametric Partial Differential Equations", ICLR 2021, arXiv:2010.08895, A.3.2.

    Examples
    --------
    The 16-point grid sees what the 32-point grid sees, at every other point:

    >>> random_field = GaussianRandomField()
    >>> coarse = random_field.sample(0, 7, Grid.uniform((16, 16)))
    >>> fine = random_field.sample(0, 7, Grid.uniform((32, 32)))
    >>> bool(np.allclose(coarse, fine[::2, ::2], rtol=0, atol=1e-12))
    True
    """

    tau: float = 3.0
    alpha: float = 2.0
    n_modes: int = 128

    def __post_init__(self) -> None:
        if not (np.isfinite(self.tau) and self.tau > 0):
            raise InputError(f"tau={self.tau}; expected a positive inverse correlation length, such as 3.0")
        if not (np.isfinite(self.alpha) and self.alpha > 0):
            raise InputError(f"alpha={self.alpha}; expected a positive exponent, such as 2.0")
        if not isinstance(self.n_modes, int) or self.n_modes < 2:
            raise InputError(
                f"n_modes={self.n_modes!r}; expected a whole number of at least 2, as the first mode is "
                "the constant, which is left out"
            )

    def amplitudes(self, lengths: Sequence[float]) -> NDArray[np.float64]:
        r"""The standard deviations :math:`\sigma_k` on a box with sides `lengths`, shape ``(n_modes,) * d``.

        Raises
        ------
        InputError
            If ``alpha <= d / 2``: the series then has no finite variance as modes are added.

        Examples
        --------
        >>> sigma = GaussianRandomField(tau=3.0, alpha=2.0, n_modes=4).amplitudes([1.0, 1.0])
        >>> float(sigma[0, 0]), bool(np.isclose(sigma[1, 2], 3 / (5 * np.pi**2 + 9)))
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
            laplacian = np.add.outer(laplacian, (np.pi * np.arange(self.n_modes) / length) ** 2)
        sigma = self.tau ** (self.alpha - n_dim / 2) * (laplacian + self.tau**2) ** (-self.alpha / 2)
        sigma.flat[0] = 0.0
        return sigma

    def coefficients(
        self, seed: int | Sequence[int], index: int, lengths: Sequence[float]
    ) -> NDArray[np.float64]:
        r"""The coefficients :math:`\sigma_k \xi_k` of draw number `index`, shape ``(n_modes,) * d``.

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
        return sigma * normal_coefficients(seed, index, self.n_modes, sigma.ndim)

    def sample(self, seed: int | Sequence[int], index: int, grid: Grid) -> NDArray[np.float64]:
        """Draw number `index`, evaluated at the points of `grid`; the box is the grid's domain.

        Parameters
        ----------
        seed, index
            As in `coefficients`.
        grid : Grid
            Any registration, any shape, not periodic.

        Returns
        -------
        numpy.ndarray
            Shape ``grid.shape``, float64.

        Raises
        ------
        InputError
            If an axis of the grid is periodic, or ``alpha <= grid.n_dim / 2``.
        """
        for axis in grid:
            if axis.periodic:
                raise InputError(
                    f"axis {axis.name!r} is periodic, but this random field has zero slope at its ends "
                    "and does not wrap: pass a grid with periodic=False"
                )
        field = self.coefficients(seed, index, [axis.length for axis in grid])
        for axis in grid:  # each pass sums over the first index and appends the points as the last one
            # einsum and not a matrix product: BLAS rounds differently with another number of threads.
            field = np.einsum("k...,kn->...n", field, _cosines(axis, self.n_modes))
        return field


def _cosines(axis: Axis, n_modes: int) -> NDArray[np.float64]:
    """The orthonormal cosines of the axis' interval at its points, shape ``(n_modes, n)``."""
    modes = np.arange(n_modes)[:, np.newaxis]
    norm = np.where(modes == 0, 1.0, np.sqrt(2.0)) / np.sqrt(axis.length)
    return norm * np.cos(np.pi * modes * ((axis.points - axis.start) / axis.length))
