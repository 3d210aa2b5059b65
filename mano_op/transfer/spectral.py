r"""Errors and energies by wavenumber, on periodic axes and others.

On a periodic axis the modes are the Fourier modes :math:`e^{2 \pi i k (x - a) / L}`, of wavenumber k / L. On
any other they are the cosines :math:`\cos(\pi k (x - a) / L)`, of wavenumber k / 2L, which need no
boundary values, and lead to no jump at the ends. Both are made orthonormal in the grid's own quadrature, so
Parseval's identity holds on every grid, whatever its registration.

The training grid of spacing h carries wavenumbers below its Nyquist wavenumber 1 / 2h: a perfect coarse
prediction, interpolated, has the modes below and not those above.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mano_op.grid import Axis, Grid


def spectral_split(predicted: Tensor, true: Tensor, grid: Grid, trained: Grid) -> tuple[Tensor, Tensor]:
    r"""Split the relative error into the parts below and above the training grid's Nyquist wavenumber.

    With P the orthogonal projection on the modes that lie below it along every axis,

    .. math:: \lVert P e \rVert / \lVert u \rVert, \qquad \lVert e - P e \rVert / \lVert u \rVert,

    whose squares add up to that of `mano_op.transfer.metrics.relative_l2`. On a grid that has no modes
    beyond, such as a coarser one, the second is zero up to rounding. Fields have shape
    ``(..., *grid.shape)``, the parts ``(...)``; `trained` is the training grid, over the same domain.

    Examples
    --------
    >>> fine = Grid.uniform((32,), periodic=True)
    >>> x = 2 * torch.pi * torch.tensor(fine.points[0])
    >>> low, high = spectral_split(x.sin() + 0.3 * (2 * x).sin() + 0.4 * (9 * x).sin(), x.sin(), fine,
    ...                            fine.coarsen(2))
    >>> round(low.item(), 12), round(high.item(), 12)
    (0.3, 0.4)
    """
    root = torch.from_numpy(np.sqrt(grid.weights))
    error = root * (predicted.double() - true.double())
    below = error
    for d, (axis, coarse) in enumerate(zip(grid, trained, strict=True)):
        modes, k = _modes(axis)
        half_waves = np.rint(axis.length / coarse.spacing * 1e6) / 1e6  # at the Nyquist wavenumber
        carried = torch.from_numpy(modes[:, k < half_waves])
        below = _along(below, d - grid.n_dim, carried @ carried.T)
    dims, parts = tuple(range(-grid.n_dim, 0)), (below, error - below, root * true.double())
    low, high, size = (torch.linalg.vector_norm(part, dim=dims) for part in parts)
    return low / size, high / size


def energy_spectrum(field: Tensor, grid: Grid) -> tuple[NDArray[np.float64], Tensor]:
    r"""Compute the energy of a field by wavenumber: :math:`\sum_{|k| \in [j, j + 1)} |\hat v_k|^2`.

    The energies add up to :math:`\lVert v \rVert^2`, the integral of the square by the grid's quadrature.

    Parameters
    ----------
    field : Tensor
        Shape ``(..., *grid.shape)``.
    grid : Grid

    Returns
    -------
    wavenumbers : ndarray, shape (bins,)
        Of the bins' lower ends, in whole waves over the longest axis.
    energy : Tensor
        Shape ``(..., bins)``, float64.

    Examples
    --------
    >>> grid = Grid.uniform((16,), periodic=True)
    >>> k, energy = energy_spectrum((6 * torch.pi * torch.tensor(grid.points[0])).sin(), grid)
    >>> k[:5], [round(value, 12) for value in energy[:5].tolist()]
    (array([0., 1., 2., 3., 4.]), [0.0, 0.0, 0.0, 0.5, 0.0])
    """
    coefficients = torch.from_numpy(np.sqrt(grid.weights)) * field.double()
    longest = max(axis.length for axis in grid)
    squares = np.zeros(())
    for d, axis in enumerate(grid):
        modes, k = _modes(axis)
        coefficients = _along(coefficients, d - grid.n_dim, torch.from_numpy(modes.T.copy()))
        squares = np.add.outer(squares, (k * longest / axis.length) ** 2)
    # Rounding must not put a whole wavenumber into the bin below.
    bins = np.floor(np.sqrt(squares) / 2 + 1e-9).astype(int).ravel()
    energy = coefficients.flatten(-grid.n_dim) ** 2
    spectrum = torch.zeros(*energy.shape[:-1], int(bins.max()) + 1, dtype=torch.float64)
    spectrum.index_add_(-1, torch.from_numpy(bins), energy)
    return np.arange(spectrum.shape[-1], dtype=np.float64), spectrum


def nyquist(trained: Grid) -> float:
    """Return the lowest Nyquist wavenumber of a training grid's axes, in whole waves over its longest axis.

    Examples
    --------
    >>> nyquist(Grid.uniform((16, 32))), nyquist(Grid.uniform((17,), registration="node_both"))
    (8.0, 8.0)
    """
    longest = max(axis.length for axis in trained)
    return min(longest / (2 * axis.spacing) for axis in trained)


def _along(values: Tensor, dim: int, matrix: Tensor) -> Tensor:
    return (values.movedim(dim, -1) @ matrix.T).movedim(-1, dim)


@lru_cache(maxsize=64)
def _modes(axis: Axis) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Orthonormal modes in columns, as many as points, times the roots of the weights; their half waves."""
    if axis.periodic:
        place = (axis.points - axis.points[0]) / axis.length
        k = np.repeat(np.arange(axis.n // 2 + 1), 2)[1 : axis.n + 1]
        second = np.arange(axis.n) % 2 == 0  # 1, cos, sin, cos, sin, ..., and one cosine last if n is even
        phase = 2 * np.pi * np.outer(place, k)
        waves = np.where(second & (k > 0), np.sin(phase), np.cos(phase))
        k = 2 * k
    else:
        place = (axis.points - axis.start) / axis.length
        k = np.arange(axis.n)
        waves = np.cos(np.pi * np.outer(place, k))
    modes, _ = np.linalg.qr(np.sqrt(axis.weights)[:, None] * waves)
    return modes, k
