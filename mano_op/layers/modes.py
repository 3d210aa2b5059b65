r"""Mixing of channels at the low wavenumbers of a domain: a far field for fields that are smooth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mano_op.grid import Registration
from mano_op.layers.refinement import Points
from mano_op.layers.tokens import on_grid, points_of

# A complex tensor as its real and its imaginary part, a real one as itself: exported programs have no others.
Parts = tuple[Tensor, ...]


class LowModes(nn.Module):
    r"""Linear map of the channels at each low wavenumber, as in a Fourier neural operator [1]_.

    .. math::

        (Sz)(x) = \Re \sum_k W_k\, \hat z_k\, \varphi_k(x), \qquad
        \hat z_k = \sum_i w_i\, \overline{\varphi_k(x_i)}\, z(x_i) ,

    with the weights :math:`w_i` of the trapezoidal rule. Functions are products over the axes, scaled to
    [0, 1]: :math:`e^{2 \pi i k x}` with :math:`|k| < m` along an axis that wraps, and :math:`\cos(\pi k x)`
    with :math:`0 \le k \le 2m - 2` between walls. Real fields need only :math:`k \ge 0` along the last axis
    that wraps. The wavenumbers are those of the domain, whatever grid a field is on.

    Parameters
    ----------
    channels : int
    n_modes : int
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
        n_modes: int,
        *,
        n_dim: int,
        registration: Registration,
        periodic: Sequence[bool],
    ) -> None:
        super().__init__()
        self.n_modes, self.registration, self.periodic = n_modes, registration, tuple(periodic)
        self._last = max((i for i, wraps in enumerate(self.periodic) if wraps), default=None)
        counts = [len(self._wavenumbers(i, 2 * n_modes)) for i in range(n_dim)]
        parts = 1 if self._last is None else 2
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
        part, sources, reference = points.part, points.sources, points.reference
        targets = None if part is None else part.points(x.device)
        if targets is not None and sources is not None:
            return self._values(sources[self], targets)
        anchors = self._coordinates(reference, x.device)
        z = self._coefficients(on_grid(x[..., : math.prod(reference)], reference), anchors)
        if sources is not None:
            sources[self] = z
        out = self._values(z, anchors)
        return out if targets is None else torch.cat([out.mT, self._values(z, targets).mT], dim=1).mT

    def _coefficients(self, x: Tensor, coordinates: Sequence[Tensor]) -> Parts:
        """Map a field on the reference to coefficients, ``(batch, *wavenumbers, channels)``."""
        z: Parts = (x.movedim(1, -1),)
        for i, at in enumerate(coordinates):
            n = len(at)
            weight = torch.full_like(at, 1 / n)
            if self.registration == "node_both":
                weight = torch.where((at == 0) | (at == 1), 0.5, torch.ones_like(at)) / (n - 1)
            functions = self._functions(i, self._wavenumbers(i, n), at)
            real, *imaginary = (part * weight for part in functions)
            z = _product((real, *(-part for part in imaginary)), z, i + 1, x.dtype)
        counts = z[0].shape[1:-1]
        z = self._at_each_mode(tuple(part.flatten(1, -2).transpose(0, 1) for part in z), counts)
        return tuple(part.transpose(0, 1).unflatten(1, counts) for part in z)

    def _values(self, z: Parts, coordinates: Sequence[Tensor]) -> Tensor:
        """Sum up the functions at the points of a grid, ``(batch, channels, points)``."""
        dtype = z[0].dtype
        for i, at in enumerate(coordinates):
            count, symmetric = z[0].shape[i + 1], self._is_symmetric(i)
            numbers = range(-(count // 2), count // 2 + 1) if symmetric else range(count)
            functions = self._functions(i, numbers, at)
            # Wavenumbers that are left out, below 0, have the conjugate coefficients.
            twice = torch.arange(count, device=at.device)[:, None] > (count if symmetric else 0)
            z = _product(tuple((part * (1 + twice)).T for part in functions), z, i + 1, dtype)
        return points_of(z[0].movedim(-1, 1))

    def _at_each_mode(self, z: Parts, counts: Sequence[int]) -> Parts:
        """Map the channels of ``(modes, batch, channels)``."""
        weight: Tensor = self.weight
        for i, count in enumerate(counts, start=1):  # of a symmetric range the middle, else the first
            start = (weight.shape[i] - count) // 2 if self._is_symmetric(i - 1) else 0
            weight = weight.narrow(i, start, count)
        real, *imaginary = weight.flatten(1, -3).to(z[0].dtype)
        if not imaginary:
            return (torch.bmm(z[0], real),)
        [imag] = imaginary
        both = torch.cat([torch.cat([real, imag], -1), torch.cat([-imag, real], -1)], -2)
        return torch.bmm(torch.cat(z, -1), both).chunk(2, -1)

    def _is_symmetric(self, axis: int) -> bool:
        """Whether an axis has wavenumbers of both signs."""
        return self.periodic[axis] and axis != self._last

    def _wavenumbers(self, axis: int, n: int) -> range:
        """The wavenumbers of an axis of n points."""
        if not self.periodic[axis]:
            return range(min(2 * self.n_modes - 1, n))
        count = min(self.n_modes, (n + 1) // 2)
        return range(1 - count if self._is_symmetric(axis) else 0, count)

    def _coordinates(self, shape: Sequence[int], device: torch.device) -> list[Tensor]:
        """The coordinates of the axes of a grid in [0, 1]."""
        ends, first = int(self.registration == "node_both"), 0.5 * (self.registration == "cell")
        return [(torch.arange(n, device=device).double() + first) / (n - ends) for n in shape]

    def _functions(self, axis: int, wavenumbers: range, at: Tensor) -> Parts:
        """The functions of an axis at coordinates, ``(wavenumbers, points)``."""
        k = torch.arange(wavenumbers.start, wavenumbers.stop, device=at.device).double()[:, None]
        if not self.periodic[axis]:
            return ((torch.pi * k * at).cos(),)
        angle = 2 * torch.pi * k * at
        return angle.cos(), angle.sin()


def _product(matrix: Parts, z: Parts, dim: int, dtype: torch.dtype) -> Parts:
    """Multiply a dimension of ``(batch, *axes, channels)`` by a matrix."""

    def along(part: Tensor, t: Tensor) -> Tensor:
        return (part.to(dtype) @ t.flatten(dim + 1)).unflatten(-1, t.shape[dim + 1 :])

    if len(matrix) == 1:
        return tuple(along(matrix[0], part) for part in z)
    if len(z) == 1:
        return along(matrix[0], z[0]), along(matrix[1], z[0])
    return along(matrix[0], z[0]) - along(matrix[1], z[1]), along(matrix[0], z[1]) + along(matrix[1], z[0])
