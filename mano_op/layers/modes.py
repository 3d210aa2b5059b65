r"""Mixing of channels at the low wavenumbers of a domain: a far field for fields that are smooth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mano_op.grid import Grid, Registration
from mano_op.layers.refinement import Part, Points, Refinement
from mano_op.layers.tokens import on_grid, points_of

# A complex tensor as its real and its imaginary part, a real one as itself: exported programs have no others.
Parts = tuple[Tensor, ...]


class LowModes(nn.Module):
    r"""Linear map of the channels at each low wavenumber, as in a Fourier neural operator [1]_.

    .. math::

        (Sz)(x) = \Re \sum_k W_k\, \hat z_k\, \varphi_k(x), \qquad
        \hat z_k = \sum_i w_i\, \overline{\varphi_k(x_i)}\, z(x_i) ,

    with the control volumes :math:`w_i` of the points (`mano_op.grid.Axis.bounds`). Functions are products
    over the axes, scaled to [0, 1]: :math:`e^{2 \pi i k x}` with :math:`|k| < m` along an axis that wraps,
    and :math:`\cos(\pi k x)` with :math:`0 \le k \le 2m - 2` between walls. Real fields need only
    :math:`k \ge 0` along the last axis that wraps. The wavenumbers are those of the domain, whatever grid a
    field is on.

    Parameters
    ----------
    channels : int
    n_modes : int or sequence of int
        Wavenumbers along each axis, m; a grid with fewer points carries fewer of them.
    n_dim : int
    registration : {"node", "node_both", "cell"}
    periodic : sequence of bool
        Whether each axis wraps around.

    References
    ----------
    .. [1] Li et al. (2021), Fourier Neural Operator for Parametric Partial Differential Equations,
       arXiv:2010.08895.

    Examples
    --------
    A wave that is resolved becomes one of other channels, and finer structure is left out:

    >>> modes = LowModes(2, n_modes=3, n_dim=1, registration="node", periodic=[True])
    >>> x = 2 * torch.pi * torch.arange(16) / 16
    >>> modes(torch.stack([(2 * x).cos(), (5 * x).cos()])[None]).shape
    torch.Size([1, 2, 16])
    >>> bool(modes((5 * x).cos().expand(1, 2, 16)).abs().max() < 1e-6)
    True
    """

    def __init__(
        self,
        channels: int,
        n_modes: int | Sequence[int],
        *,
        n_dim: int,
        registration: Registration,
        periodic: Sequence[bool],
    ) -> None:
        super().__init__()
        self.n_modes = (n_modes,) * n_dim if isinstance(n_modes, int) else tuple(n_modes)
        self.registration, self.periodic = registration, tuple(periodic)
        last = max((i for i, wraps in enumerate(self.periodic) if wraps), default=None)
        # Whether an axis has wavenumbers of both signs.
        self._signed = [wraps and i != last for i, wraps in enumerate(self.periodic)]
        parts = 1 if last is None else 2
        counts = map(len, self._all_wavenumbers())
        # Real and imaginary parts, wavenumbers, channels of the input and of the output.
        self.weight = nn.Parameter(torch.empty(parts, *counts, channels, channels))
        nn.init.normal_(self.weight, std=0.5 / math.sqrt(channels * parts))

    def forward(self, x: Tensor, points: Points | None = None) -> Tensor:
        """Map ``(batch, channels, *grid)``, or features of `points`, to the same shape.

        Between the points of the reference, functions are evaluated where the targets are.
        """
        if points is None:
            shape = tuple(x.shape[2:])
            return on_grid(self(points_of(x), Points(shape)), shape)
        grid = Grid.uniform(points.reference, registration=self.registration, periodic=self.periodic)
        waves, anchors = self._wavenumbers(grid.shape), Refinement(grid, grid.shape).whole

        def values(z: Parts, part: Part | None) -> Tensor:
            return self._values(z, waves, (part or anchors).points(x.device))

        return points.far_field(self, x, lambda field: self._coefficients(field, waves, anchors), values)

    def _coefficients(self, x: Tensor, waves: Sequence[range], anchors: Part) -> Parts:
        """Map a field on the reference to mixed coefficients, ``(batch, *wavenumbers, channels)``."""
        z: Parts = (x.movedim(1, -1),)
        for i, axis in enumerate(anchors.axes):
            functions = self._functions(i, waves[i], axis.points(x.device))
            real, *imaginary = (part * axis.volumes(x.device) for part in functions)
            z = _product((real, *(-part for part in imaginary)), z, i + 1)
        weights: Tensor = self.weight
        for i, (known, every) in enumerate(zip(waves, self._all_wavenumbers(), strict=True), start=1):
            if known != every:  # whose gradient is then not copied into zeros
                weights = weights.narrow(i, known.start - every.start, len(known))
        real, *imaginary = weights.flatten(1, -3).to(x.dtype)
        if imaginary:  # one product of twice the channels
            [imag] = imaginary
            real = torch.cat([torch.cat([real, imag], -1), torch.cat([-imag, real], -1)], -2)
        mixed = torch.bmm(torch.cat(z, -1).flatten(1, -2).transpose(0, 1), real).transpose(0, 1)
        return mixed.unflatten(1, [len(known) for known in waves]).chunk(len(z), -1)

    def _values(self, z: Parts, waves: Sequence[range], coordinates: Sequence[Tensor]) -> Tensor:
        """Sum up the functions at the points of a grid, ``(batch, channels, *grid)``."""
        for i, at in enumerate(coordinates):
            k = torch.arange(waves[i].start, waves[i].stop, device=at.device)[:, None]
            # Those below 0 that are left out have the conjugate coefficients, or the same cosine.
            times = 1 if self._signed[i] else 1 + (k > 0).int()
            z = _product(tuple((part * times).T for part in self._functions(i, waves[i], at)), z, i + 1)
        return z[0].movedim(-1, 1)

    def _wavenumbers(self, shape: Sequence[int]) -> list[range]:
        """The wavenumbers of each axis that a grid carries."""
        waves = []
        for m, n, wraps, signed in zip(self.n_modes, shape, self.periodic, self._signed, strict=True):
            count = min(m, (n + 1) // 2) if wraps else min(2 * m - 1, n)
            waves.append(range(1 - count if signed else 0, count))
        return waves

    def _all_wavenumbers(self) -> list[range]:
        """The wavenumbers of each axis that have weights."""
        return self._wavenumbers([2 * m for m in self.n_modes])

    def _functions(self, axis: int, waves: range, at: Tensor) -> Parts:
        """The functions of an axis at coordinates, ``(wavenumbers, points)``."""
        k = torch.arange(waves.start, waves.stop, device=at.device).double()[:, None]
        angle = (2 if self.periodic[axis] else 1) * torch.pi * k * at
        return (angle.cos(), angle.sin()) if self.periodic[axis] else (angle.cos(),)


def _product(matrix: Parts, z: Parts, dim: int) -> Parts:
    """Multiply a dimension of ``(batch, *axes, channels)`` by a matrix."""

    def multiplied(part: Tensor, t: Tensor) -> Tensor:
        return (part.to(t.dtype) @ t.flatten(dim + 1)).unflatten(-1, t.shape[dim + 1 :])

    real, *imaginary = matrix
    if not imaginary:
        return tuple(multiplied(real, part) for part in z)
    [imag] = imaginary
    if len(z) == 1:
        return multiplied(real, z[0]), multiplied(imag, z[0])
    return multiplied(real, z[0]) - multiplied(imag, z[1]), multiplied(real, z[1]) + multiplied(imag, z[0])
