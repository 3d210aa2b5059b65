r"""Restriction and prolongation: the steps between the levels of a multipole layer.

A level has one point for every `rate` points of the next finer one along each axis, rounded up. The
words are multigrid's: restriction makes the coarser field, prolongation brings a coarse result back
to the finer points. Fields are ``(batch, channels, *grid)``.

========== =================================================== =========================================
sampling   restriction to coarse point I                        prolongation to fine point i
========== =================================================== =========================================
"conv"     learned, the r^d points r I, ..., r I + r - 1        learned, its transpose
"avg_pool" their mean                                           the value of the cell it lies in
"stencil"  learned for each channel, centred on the coarse      learned, its transpose: nodes between two
           point: 2 r - 1 wide for nodes, r wide for cells      coarse points hear of both
========== =================================================== =========================================

The first two are the published layer's [1]_, "conv" with full mixing of channels. On nodes they are not
centred: a coarse value stands half a coarse cell right of the point it is stored at. The stencil is; it
starts as interpolation and its transpose, and leaves the mixing of channels to the attention.

Where the grid ends inside a coarse cell, each line of the cell is filled up with the mean of the points it
has ("conv", "avg_pool"), and a stencil that reaches past the end sees the nearest point again, or the
other end on a periodic axis. So constants go to constants at every size.

References
----------
.. [1] Colagrande et al. (2025), Linear Attention with Global Context: A Multipole Attention
   Mechanism for Vision and Physics, arXiv:2507.02748.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mano_op.grid import Registration
from mano_op.layers.tokens import along

Sampling = Literal["stencil", "conv", "avg_pool"]


def level_shapes(shape: Sequence[int], rate: int, n_levels: int | None = None) -> list[tuple[int, ...]]:
    r"""Return the shapes of the levels of a grid, finest first.

    At most `n_levels`; fewer where the grid has run out of points. Without `n_levels`, by the published rule,
    :math:`\lfloor \log_r n \rfloor` for the shortest side n, and at least one.

    Examples
    --------
    >>> level_shapes((16, 16), rate=2)
    [(16, 16), (8, 8), (4, 4), (2, 2)]
    >>> level_shapes((7, 12), rate=2, n_levels=5)
    [(7, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    """
    if n_levels is None:
        n_levels, side = 0, min(shape)  # in whole numbers: math.log(243, 3) is just below 5
        while side >= rate:
            n_levels, side = n_levels + 1, side // rate
    shapes = [tuple(shape)]
    while len(shapes) < n_levels and max(shapes[-1]) > 1:
        shapes.append(tuple(-(-n // rate) for n in shapes[-1]))
    return shapes


def covering_levels(shape: Sequence[int] | None, window: int, rate: int = 2) -> int:
    """Count the levels, from the grid's own on, until a window covers one; 3 for a grid that is not known.

    Examples
    --------
    >>> covering_levels((16, 16), window=4), covering_levels((64, 48), window=4), covering_levels((3,), 4)
    (3, 5, 1)
    """
    if shape is None:
        return 3
    levels, side = 1, max(shape)
    while side > window:
        levels, side = levels + 1, -(-side // rate)
    return levels


class _Step(nn.Module):
    """Options and weight of `Restrict` and `Prolong`."""

    averages: ClassVar[bool] = False

    def __init__(
        self,
        channels: int,
        *,
        n_dim: int,
        rate: int,
        sampling: Sampling,
        registration: Registration = "node",
        periodic: Sequence[bool],
    ) -> None:
        super().__init__()
        self.rate, self.sampling, self.periodic = rate, sampling, tuple(periodic)
        # Fine points before a coarse cell that a stencil reaches: coarse node I is fine node r I.
        self.reach = 0 if registration == "cell" else rate - 1
        if sampling == "conv":
            weight = torch.empty(channels, channels, *[rate] * n_dim)
            self.weight = nn.Parameter(nn.init.kaiming_uniform_(weight, a=5**0.5))  # as convolutions start
        elif sampling == "stencil":
            # Along each axis linear interpolation of nodes, copying of cells; or a mean with these weights.
            line = torch.ones(rate)
            if registration != "cell":
                line = 1 - torch.arange(1 - rate, rate).abs() / rate
            line = line / line.sum() if self.averages else line
            stencil = torch.ones(())
            for _ in range(n_dim):
                stencil = stencil[..., None] * line
            self.weight = nn.Parameter(stencil.repeat(channels, 1, *[1] * n_dim))

    def kernel(self) -> Tensor:
        """Return the weight as a view with a contiguous gradient, as data-parallel training wants it."""
        return self.weight.flatten(1).view(self.weight.shape)


class Restrict(_Step):
    """Restriction of a field to the next coarser level.

    Parameters
    ----------
    channels : int
    n_dim : int
        1, 2 or 3.
    rate : int
        How many times fewer points the coarser level has along each axis.
    sampling : {"stencil", "conv", "avg_pool"}
    registration : {"node", "node_both", "cell"}
        Of the grid; decides where a stencil is centred.
    periodic : sequence of bool

    Examples
    --------
    >>> restrict = Restrict(1, n_dim=1, rate=2, sampling="stencil", registration="cell", periodic=[False])
    >>> restrict(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]])).flatten().tolist()
    [2.0, 6.0]
    """

    averages: ClassVar[bool] = True

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channels, *grid)`` to ``(batch, channels, *coarse grid)``."""
        if self.sampling == "stencil":
            widths = [(self.reach, self.reach + (-n) % self.rate) for n in x.shape[2:]]
            x = pad_edges(x, widths, self.periodic)
            x = _convolve(_FORWARD, x, self.kernel(), stride=self.rate, groups=x.shape[1])
        elif self.sampling == "conv":
            x = _convolve(_FORWARD, fill_last_cells(x, self.rate), self.kernel(), stride=self.rate)
        else:
            pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
            filled, half = fill_last_cells(x, self.rate), x.dtype in (torch.float16, torch.bfloat16)
            # On a CPU torch has no pool of half precision in three dimensions.
            x = pool(filled.float() if half else filled, self.rate).to(x.dtype)
        return x


class Prolong(_Step):
    """Prolongation of a coarse field to the next finer level; the parameters are those of `Restrict`."""

    def forward(self, x: Tensor, shape: Sequence[int], factor: Tensor | float = 1.0) -> Tensor:
        """Map ``(batch, channels, *coarse grid)`` to ``(batch, channels, *shape)``, times a factor.

        The factor is a number, or one for each channel, ``(channels,)``.
        """
        n_dim = x.ndim - 2
        if self.sampling == "stencil":
            kernel = self.kernel() * along(factor, 0, n_dim + 2)
            # The last fine nodes lie between the last coarse one and the next, which is off the grid.
            x = pad_edges(x, [(0, min(self.reach, 1))] * n_dim, self.periodic)
            x = _convolve(_TRANSPOSED, x, kernel, stride=self.rate, groups=x.shape[1])
            return _cut(x, self.reach, shape)
        if self.sampling == "conv":
            kernel = self.kernel() * along(factor, 1, n_dim + 2)
            x = _convolve(_TRANSPOSED, x, kernel, stride=self.rate)
        else:
            x = x * along(factor, 1, n_dim + 2)
            for dim in range(2, x.ndim):
                x = x.repeat_interleave(self.rate, dim)
        return _cut(x, 0, shape)


_FORWARD = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def _convolve(
    by_dimension: Sequence[Callable[..., Tensor]], x: Tensor, kernel: Tensor, **options: int
) -> Tensor:
    """Convolve a field of any dimension; in three dimensions on a CPU in single precision.

    With AMX, oneDNN's kernels of half precision give a NaN for finite fields of one channel.
    """
    convolve = by_dimension[x.ndim - 3]
    half = x.dtype in (torch.float16, torch.bfloat16)
    if x.ndim < 5 or x.device.type != "cpu" or not (half or torch.is_autocast_enabled("cpu")):
        return convolve(x, kernel, **options)
    with torch.autocast("cpu", enabled=False):
        return convolve(x.float(), kernel.float(), **options).to(x.dtype)


def _cut(x: Tensor, first: int, shape: Sequence[int]) -> Tensor:
    """Cut `shape` points out of a field, from `first` on along each axis."""
    # A negative padding: unlike that of a slice, its gradient keeps the memory format.
    widths = [(-first, first + n - wide) for n, wide in zip(shape, x.shape[2:], strict=True)]
    return F.pad(x, [n for width in reversed(widths) for n in width]) if any(map(any, widths)) else x


def pad_edges(x: Tensor, widths: Sequence[tuple[int, int]], periodic: Sequence[bool]) -> Tensor:
    """Repeat the outermost points of ``(batch, channels, *grid)``, or wrap around periodic axes.

    Examples
    --------
    >>> x = torch.tensor([[[1.0, 2.0, 3.0]]])
    >>> pad_edges(x, [(1, 2)], [False]).tolist(), pad_edges(x, [(1, 2)], [True]).tolist()
    ([[[1.0, 1.0, 2.0, 3.0, 3.0, 3.0]]], [[[3.0, 1.0, 2.0, 3.0, 1.0, 2.0]]])
    """
    repeated = [(0, 0) if wraps else width for width, wraps in zip(widths, periodic, strict=True)]
    if any(width != (0, 0) for width in repeated):
        # Not by indices: this keeps the memory format, and takes a fraction of the time.
        x = F.pad(x, [n for width in reversed(repeated) for n in width], mode="replicate")
    for dim, ((before, after), wraps) in enumerate(zip(widths, periodic, strict=True), start=2):
        if wraps and (before or after):
            n = x.shape[dim]
            if max(before, after) > n:  # more than once around
                x = x.index_select(dim, torch.arange(-before, n + after, device=x.device) % n)
            else:
                x = torch.cat([x.narrow(dim, n - before, before), x, x.narrow(dim, 0, after)], dim)
    return x


def fill_last_cells(x: Tensor, rate: int) -> Tensor:
    """Pad ``(batch, channels, *grid)`` at the end of each axis to a multiple of `rate`.

    Each line of a cell that the grid's end cuts is filled up with the mean of its points, axis by axis, so
    the mean of the cell stays that of its points.
    """
    for dim in range(2, x.ndim):
        remainder = x.shape[dim] % rate
        if remainder:
            last = x.narrow(dim, x.shape[dim] - remainder, remainder).mean(dim, keepdim=True)
            x = torch.cat([x, last.expand(*[-1] * dim, rate - remainder, *[-1] * (x.ndim - dim - 1))], dim)
    return x
