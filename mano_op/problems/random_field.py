r"""Gaussian random fields that are functions: one draw, evaluated on any grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mano_op.errors import InputError, check_whole
from mano_op.grid import Axis, Grid
from mano_op.options import Count, Positive, options
from mano_op.problems.solver_grid import check_periodic

Seed = int | Sequence[int]

# Number of cosines along each axis. The first is the constant, which is left out.
Modes = Annotated[Count, Field(ge=2)]


class RandomField(ABC):
    """A Karhunen-Loève series with independent normal coefficients; subclasses choose the basis."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    tau: float
    alpha: float
    n_modes: int
    scale: float
    periodic: ClassVar[bool]

    def amplitudes(self, lengths: Sequence[float]) -> NDArray[np.float64]:
        r"""Standard deviations :math:`\sigma_k` of the modes on a box with sides `lengths`.

        Raises
        ------
        InputError
            If ``alpha <= d / 2``: the variance then grows without bound as modes are added.

        Examples
        --------
        >>> sigma = GaussianRandomField(tau=3.0, alpha=2.0, n_modes=4).amplitudes([1.0, 1.0])
        >>> bool(np.isclose(sigma[1, 2], 3 / (5 * np.pi**2 + 9)))
        True
        """
        n_dim = len(lengths)
        if self.alpha <= n_dim / 2:
            raise InputError(
                f"alpha={self.alpha} in {n_dim} dimensions; expected alpha > {n_dim / 2:g}: "
                "rougher fields have no value at a point"
            )
        laplacian = np.zeros(())
        for length in lengths:
            laplacian = np.add.outer(laplacian, (self._angles() / length) ** 2)
        sigma = self._factor(n_dim) * (laplacian + self.tau**2) ** (-self.alpha / 2)
        sigma.flat[0] = 0.0
        return sigma

    def coefficients(self, seed: Seed, index: int, lengths: Sequence[float]) -> NDArray[np.float64]:
        r"""Coefficients :math:`\sigma_k \xi_k` of draw `index`, in the shape of `amplitudes`."""
        sigma = self.amplitudes(lengths)
        return sigma * normal_coefficients(seed, index, len(sigma), sigma.ndim)

    def sample(self, seed: Seed, index: int, grid: Grid) -> NDArray[np.float64]:
        """Evaluate draw `index` at the points of `grid`, whose domain is the box: shape ``grid.shape``.

        A draw depends on `seed` and `index` alone, not on the number or the order of draws. `index` counts
        from 0; `seed` is the entropy of a `numpy.random.SeedSequence`, one whole number from 0 on or several.

        Raises
        ------
        InputError
            If the grid is not as periodic as the basis, or ``alpha <= grid.n_dim / 2``.
        """
        check_periodic(self.periodic, grid)
        field = self.coefficients(seed, index, [axis.length for axis in grid])
        for axis in grid:  # einsum, as BLAS rounds differently with another number of threads
            field = np.einsum("k...,kn->...n", field, self._basis(axis))
        return field

    @abstractmethod
    def _angles(self) -> NDArray[np.float64]:
        """Angular wavenumbers of the basis times the length of an axis."""

    def _factor(self, n_dim: int) -> float:
        """Factor of the amplitudes."""
        return self.scale

    @abstractmethod
    def _basis(self, axis: Axis) -> NDArray[np.float64]:
        """Orthonormal functions at the points of an axis, shape ``(m, n)``."""


@options
class GaussianRandomField(RandomField):
    r"""The Gaussian measure with covariance :math:`(-\Delta + \tau^2)^{-\alpha}` and Neumann conditions.

    On the box :math:`\prod_j [a_j, a_j + L_j]` of a grid, a draw is the Karhunen-Loève series

    .. math:: u(x) = \sum_{0 \ne k \in \{0, \dots, n-1\}^d} \sigma_k\, \xi_k \prod_{j=1}^{d}
              \frac{c_{k_j}}{\sqrt{L_j}} \cos\frac{\pi k_j (x_j - a_j)}{L_j},
              \qquad \xi_k \sim N(0, 1) \text{ independent},

    .. math:: \sigma_k = \tau^{\alpha - d/2}
              \Big(\sum_j \big(\tfrac{\pi k_j}{L_j}\big)^2 + \tau^2\Big)^{-\alpha/2},
              \qquad c_0 = 1,\ c_{k > 0} = \sqrt{2}.

    In two dimensions it is the field of Li et al., arXiv:2010.08895, A.3.2. The power of :math:`\tau` keeps
    the variance at a point nearly independent of :math:`\tau`.

    Parameters
    ----------
    tau : float
        Inverse correlation length, in one over the units of the coordinates; positive.
    alpha : float
        Smoothness: as modes are added, draws lie in the Sobolev space :math:`H^s` for every
        :math:`s < \alpha - d/2`, which must be positive.
    n_modes : int
        Modes along each axis, at least 2, on every grid. More modes add detail to the same function, as the
        first ones keep their coefficients.

    Examples
    --------
    The 16-point grid samples the function of the 32-point grid at every other point:

    >>> random_field = GaussianRandomField()
    >>> coarse = random_field.sample(0, 7, Grid.uniform((16, 16)))
    >>> fine = random_field.sample(0, 7, Grid.uniform((32, 32)))
    >>> bool(np.allclose(coarse, fine[::2, ::2], rtol=0, atol=1e-12))
    True
    """

    tau: Positive = 3.0
    alpha: Positive = 2.0
    n_modes: Modes = 128

    periodic: ClassVar[bool] = False

    def _angles(self) -> NDArray[np.float64]:
        return np.asarray(np.pi * np.arange(self.n_modes))

    def _factor(self, n_dim: int) -> float:
        return float(self.tau ** (self.alpha - n_dim / 2))

    def _basis(self, axis: Axis) -> NDArray[np.float64]:
        modes = np.arange(self.n_modes)[:, np.newaxis]
        norm = np.where(modes == 0, 1.0, np.sqrt(2.0)) / np.sqrt(axis.length)
        return np.asarray(norm * np.cos(np.pi * modes * ((axis.points - axis.start) / axis.length)))


@options
class PeriodicRandomField(RandomField):
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
    tau, alpha : float
        As in `GaussianRandomField`.
    n_modes : int
        Largest wavenumber k along each axis, on every grid.

    Examples
    --------
    >>> random_field = PeriodicRandomField(scale=25.0, tau=5.0, alpha=2.0)
    >>> coarse = random_field.sample(0, 7, Grid.uniform((16,), periodic=True))
    >>> fine = random_field.sample(0, 7, Grid.uniform((32,), periodic=True))
    >>> bool(np.allclose(coarse, fine[::2], rtol=0, atol=1e-12))
    True
    """

    scale: Positive = 1.0
    tau: Positive = 5.0
    alpha: Positive = 2.0
    n_modes: Count = 64

    periodic: ClassVar[bool] = True

    def _angles(self) -> NDArray[np.float64]:
        return np.asarray(2 * np.pi * ((np.arange(2 * self.n_modes + 1) + 1) // 2))

    def _basis(self, axis: Axis) -> NDArray[np.float64]:
        k = np.arange(1, self.n_modes + 1)[:, np.newaxis]
        angle = 2 * np.pi * k * ((axis.points - axis.start) / axis.length)
        waves = np.empty((2 * self.n_modes + 1, axis.n))
        waves[0], waves[1::2], waves[2::2] = 1.0, np.sqrt(2.0) * np.cos(angle), np.sqrt(2.0) * np.sin(angle)
        return np.asarray(waves / np.sqrt(axis.length))


def normal_coefficients(seed: Seed, index: int, n_modes: int, n_dim: int) -> NDArray[np.float64]:
    """Draw independent standard normal coefficients of a series, shape ``(n_modes,) * n_dim``.

    They are drawn in the order of the largest index of a mode along any axis, so more modes keep the first
    ones.

    Examples
    --------
    >>> few, many = (normal_coefficients(0, 3, n, 2) for n in (4, 9))
    >>> bool((few == many[:4, :4]).all())
    True
    """
    entropy: list[Any] = list(seed) if isinstance(seed, Sequence) and seed else [seed]
    for word in entropy:
        check_whole(at_least=0, seed=word)
    check_whole(at_least=0, index=index)
    sequence = np.random.SeedSequence([int(word) for word in entropy], spawn_key=(int(index),))
    xi = np.empty(n_modes**n_dim)
    xi[_shells(n_modes, n_dim)] = np.random.default_rng(sequence).standard_normal(xi.size)
    return xi.reshape((n_modes,) * n_dim)


@lru_cache(maxsize=8)
def _shells(n_modes: int, n_dim: int) -> NDArray[np.intp]:
    """Flat positions of the modes in the order of max_j k_j."""
    shell = np.indices((n_modes,) * n_dim).max(axis=0)
    return np.argsort(shell, axis=None, kind="stable")
