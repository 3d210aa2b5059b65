r"""Windows of a uniform grid as lists of points.

The grid is cut into windows of :math:`w^d` targets that start every :math:`s` points. The targets of a window
attend to the sources in the window itself and in a halo of :math:`h` points on each side:

.. math::

    o_i = \sum_{j \in W(i)} \frac{e^{q_i \cdot k_j / \sqrt{d_h} + b(j - i)}}
          {\sum_{l \in W(i)} e^{q_i \cdot k_l / \sqrt{d_h} + b(l - i)}} \, v_j ,
    \qquad W(i) = [\text{start} - h, \text{start} + w + h)^d .

Where windows overlap (:math:`s < w`) a point gets the mean of its windows' results. Sources outside the
domain are missing, or wrapped around where the axis is periodic, so that no padding ever enters a softmax
and every size works.

Lists are all that `mano_op.layers.operator` needs. The points of a finer grid stand in lists of their own,
`mano_op.layers.refinement`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mano_op.layers.operator import Lists, window_attention

Bias = Callable[[Tensor], Tensor]
Array = TypeVar("Array", NDArray[Any], Tensor)


class AxisSizes(NamedTuple):
    """Number of windows along an axis, points along a side of one and of its halo, start of the first one."""

    windows: int
    side: int
    halo: int
    start: int


class AxisWindows(NamedTuple):
    """Windows along one axis.

    Attributes
    ----------
    queries, keys : int arrays, ``(windows, w)`` and ``(windows, w + 2 h)``
        The points of each window; a point that the axis does not have is another one of the window.
    held : int array, ``(windows, w)``
        How many windows have the point of each query; 0 for a filler.
    missing : bool array, ``(windows, w + 2 h)``
        Whether a key is a filler.
    halo : int
        h, at most what the axis has.
    start : int
        Where the first window starts, which may be before the axis.
    """

    queries: NDArray[np.int64]
    keys: NDArray[np.int64]
    held: NDArray[np.int64]
    missing: NDArray[np.bool_]
    halo: int
    start: int


def axis_windows(
    n: int, window: int, *, stride: int | None = None, halo: int = 0, shift: int = 0, periodic: bool = False
) -> AxisWindows:
    """Return the windows of an axis of `n` points.

    Windows start at 0, `stride`, 2 `stride`, ... until one reaches the end of the axis. A window wider than
    the axis is cut down to it. With `shift`, windows side by side start that much later; an axis with ends
    then begins with the last `shift` points of a window. A window that holds all of the axis is not shifted.

    Examples
    --------
    >>> axis_windows(6, 4, halo=1).keys
    array([[0, 0, 1, 2, 3, 4],
           [3, 4, 5, 5, 5, 5]])
    >>> axis_windows(6, 4, halo=1).missing[1]
    array([False, False, False,  True,  True,  True])
    >>> axis_windows(8, 4, shift=2).queries[:, 0], axis_windows(8, 4, shift=2, periodic=True).queries[:, 0]
    (array([0, 2, 6]), array([2, 6]))
    """
    window = min(window, n)
    stride = window if stride is None else min(stride, window)
    # No more than there is, or than meets on the far side of an axis that wraps.
    halo = min(halo, (n - window) // 2 + (n - window) % 2 if periodic else n)
    shift = 0 if window >= n else shift % window
    first = shift if periodic or not shift else shift - window
    count = -(-(n - window - (0 if periodic else first)) // stride) + 1
    starts = (first + stride * np.arange(count))[:, None]
    queries, keys = starts + np.arange(window), starts + np.arange(-halo, window + halo)
    inside = (queries >= 0) & (queries < (n + first if periodic else n))
    if periodic:
        # On a short axis a window with its halo would meet the same point twice.
        missing = np.broadcast_to(np.arange(keys.shape[1]) >= n, keys.shape)
        queries, keys = queries % n, keys % n
    else:
        missing = (keys < 0) | (keys >= n)
        queries, keys = queries.clip(0, n - 1), keys.clip(0, n - 1)
    counts = np.bincount(queries[inside], minlength=n)
    return AxisWindows(queries, keys, np.where(inside, counts[queries], 0), missing, halo, first)


class Windows(nn.Module):
    r"""Windows of a grid, as buffers that move with the module.

    Parameters
    ----------
    shape : sequence of int
        Points along each axis of the grid.
    window : int
        Points along each side of a window, w.
    stride : int, optional
        Points from one window to the next, s, at most `window`, which it is if not given.
    halo : int
        Points on each side of a window that are sources for its targets too, h.
    shift : int
        How many points later windows start, where they lie side by side; see `axis_windows`.
    periodic : sequence of bool, optional
        Whether windows see across the ends of each axis.

    Attributes
    ----------
    queries, keys : int32, ``(windows, w^d)`` and ``(windows, (w + 2 h)^d)``
        Targets and sources of each window, as indices into the flattened grid.
    held : int32, ``(windows, w^d)``, optional
        How many windows have each target; 0 for a filler. None if all are 1.
    missing : bool, ``(windows, (w + 2 h)^d)``, optional
        Whether a source is a filler. None if all are there.
    offsets : int32, ``(entries, d)``
        Steps from a target to a source: what a position bias is a table of.
    entry : int32, ``((w + 2 h)^d, w^d)``
        The entry of that table for each source and target of a window.

    Examples
    --------
    A window as large as the grid is dense attention:

    >>> _ = torch.manual_seed(0)
    >>> q, k, v = torch.randn(3, 1, 24, 16)
    >>> out = Windows((4, 6), window=6)(q, k, v, heads=2)
    >>> heads = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k, v))
    >>> dense = torch.nn.functional.scaled_dot_product_attention(*heads)
    >>> torch.allclose(out, dense.transpose(1, 2).flatten(2), atol=1e-6)
    True
    """

    queries: Tensor
    keys: Tensor
    held: Tensor | None
    missing: Tensor | None
    offsets: Tensor
    entry: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        *,
        window: int,
        stride: int | None = None,
        halo: int = 0,
        shift: int = 0,
        periodic: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.periodic = tuple(shape), tuple(periodic or [False] * len(shape))
        axes = [
            axis_windows(n, window, stride=stride, halo=halo, shift=shift, periodic=wraps)
            for n, wraps in zip(self.shape, self.periodic, strict=True)
        ]
        held = reduce(combined, (axis.held for axis in axes))
        exists = reduce(combined, (~axis.missing for axis in axes))
        self.axes = [
            AxisSizes(len(axis.queries), axis.queries.shape[1], axis.halo, axis.start) for axis in axes
        ]
        offsets, entry = self._table()
        for name, values, left_out in (
            ("queries", flat_indices([axis.queries for axis in axes], self.shape), False),
            ("keys", flat_indices([axis.keys for axis in axes], self.shape), False),
            ("held", held, (held == 1).all()),
            ("missing", ~exists, exists.all()),
            ("offsets", offsets, False),
            ("entry", entry, False),
        ):
            kept = values if values.dtype == bool else values.astype(np.int32)
            self.register_buffer(name, None if left_out else torch.from_numpy(kept), persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None = None, *, heads: int) -> Tensor:
        """Attend within the windows.

        Parameters
        ----------
        q, k, v : Tensor, ``(batch, points, heads * head_dim)``
        bias : callable, optional
            Maps offsets ``(entries, d)`` to what is added to the scores, ``(entries, heads)``.
        heads : int

        Returns
        -------
        Tensor, ``(batch, points, heads * head_dim)``
        """
        table = None if bias is None else self.table(bias, q.dtype)
        return window_attention(q, k, v, table, self.lists(heads))

    def lists(self, heads: int) -> Lists:
        """Return the windows as lists."""
        return Lists(self.queries, self.keys, self.share, self.missing, heads)

    @property
    def share(self) -> Tensor | None:
        """The weight of each target's result, ``(windows, w^d)``; None if all are 1."""
        return None if self.held is None else torch.where(self.held == 0, 0.0, 1 / self.held.double())

    def table(self, bias: Bias, dtype: torch.dtype) -> Tensor:
        """Look up the bias of every source and target of a window, ``(1, heads, sources, targets)``."""
        entries = bias(self.offsets.to(dtype)).index_select(0, self.entry.flatten())
        return entries.unflatten(0, self.entry.shape).movedim(-1, 0)[None]

    def _table(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The offsets of the table, and the entry of each source and target."""
        lines, entries = [], []
        for (_, side, halo, _), n, wraps in zip(self.axes, self.shape, self.periodic, strict=True):
            offset = np.arange(-halo, side + halo)[:, None] - np.arange(side)
            if wraps:  # the nearest image, the one ahead if two are equally near
                offset = offset - n * np.ceil(offset / n - 0.5).astype(np.int64)
            lines.append(np.arange(offset.min(), offset.max() + 1))
            entries.append(offset - offset.min())
        mesh = np.meshgrid(*lines, indexing="ij")
        offsets = np.stack(mesh, axis=-1).reshape(-1, len(lines))
        return offsets, flat_indices(entries, [len(line) for line in lines])

    def extra_repr(self) -> str:
        """What `print(windows)` shows."""
        return f"{self.shape}, windows={len(self.queries)}, periodic={self.periodic}"


def flat_indices(points: Sequence[Array], shape: Sequence[int]) -> Array:
    """Return indices into a flattened grid, ``(windows, points of a window)``, from those of each axis."""
    flat = points[0]
    for of_axis, n in zip(points[1:], shape[1:], strict=True):
        flat = combined(flat * n, of_axis, operator.add)
    return flat


def combined(one: Array, other: Array, combine: Callable[[Any, Any], Any] = operator.mul) -> Array:
    """Combine each window and point of an axis with each of another one, by products if not told how."""
    both = combine(one[:, None, :, None], other[None, :, None, :])
    m, n, i, j = both.shape
    return cast(Array, both.reshape(m * n, i * j))
