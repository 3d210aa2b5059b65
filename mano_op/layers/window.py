r"""Softmax attention inside windows of a uniform grid, in any number of dimensions.

The grid is cut into windows of :math:`w^d` queries that start every :math:`s` points. A window's queries
attend to the keys of the window itself and of a halo of :math:`h` points on each side:

.. math::

    o_i = \sum_{j \in W(i)} \frac{e^{q_i \cdot k_j / \sqrt{d_h} + b(j - i)}}
          {\sum_{l \in W(i)} e^{q_i \cdot k_l / \sqrt{d_h} + b(l - i)}} \, v_j ,
    \qquad W(i) = [\text{start} - h, \text{start} + w + h)^d .

Where windows overlap (:math:`s < w`) a point gets the average of its windows' results. Keys outside the
domain are masked, or wrapped around where the axis is periodic, so that no padding ever enters a softmax
and every size works.

Queries, keys and values come in already projected: the projections act point by point, so they are
applied once per point, not once per window. A window is then a list of points (`mano_op.layers.tiling`), of
which rows are taken. On a CPU that is done a few windows at a time, by compiled code or by
`mano_op.layers.whole`, so that nothing of the size of the scores is ever kept; elsewhere torch's own kernel
does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from mano_op.errors import InputError
from mano_op.layers.eager import on_cpu_eagerly
from mano_op.layers.native.call import may_call
from mano_op.layers.native.window import Windows, attend_natively, filled_up, vectors
from mano_op.layers.tiling import Tiling, placed_tilings, tilings
from mano_op.layers.whole import Rows, attend_in_blocks, attend_whole


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    stride: int | None = None,
    halo: int = 0,
    shift: int = 0,
    periodic: Sequence[bool] | None = None,
    bias: Callable[[Tensor], Tensor] | None = None,
    queries_at: Sequence[tuple[float, ...]] | None = None,
) -> Tensor:
    """Attend within windows, and average where windows overlap.

    Parameters
    ----------
    q, k, v : Tensor, ``(batch, heads, *grid, head_dim)``
    window : int
        Points along each side of a window, w. A window wider than the grid is cut down to it.
    stride : int, optional
        Points from one window to the next, s, at most `window`, which it is if not given.
    halo : int
        Points on each side of a window whose keys its queries also see, h.
    shift : int
        How much later windows start, where they lie side by side: at ``shift - w``, ``shift``, ... Of the
        first only the points on the grid are there. Along an axis that a window covers nothing is shifted.
    periodic : sequence of bool, optional
        For each axis, whether windows see across its ends. Queries do only if windows are shifted.
    bias : callable, optional
        Maps offsets, float ``(..., n_dim)`` in steps of the grid, to what is added to the scores,
        ``(..., heads)``. Between whole offsets it is tabulated at quarters of a step and interpolated.
    queries_at : sequence of tuple of float, optional
        Where the queries are, if they are not at the keys: for each axis their positions, increasing and
        counted in keys. The grid of `q` is then that of these positions, windows do not overlap, and queries
        between two windows get a share of both; see `placed_tilings`.

    Returns
    -------
    Tensor, ``(batch, heads, *grid of q, head_dim)``

    Raises
    ------
    InputError
        If the shapes, types or devices of `q`, `k` and `v` do not belong together.

    Examples
    --------
    A window as large as the grid is plain attention:

    >>> _ = torch.manual_seed(0)
    >>> q, k, v = torch.randn(3, 1, 2, 4, 6, 8, dtype=torch.float64)
    >>> local = window_attention(q, k, v, window=6)
    >>> points = [rearrange(t, "b h y x d -> b h (y x) d") for t in (q, k, v)]
    >>> dense = torch.nn.functional.scaled_dot_product_attention(*points)
    >>> torch.allclose(rearrange(local, "b h y x d -> b h (y x) d"), dense)
    True
    """
    _check(q, k, v, queries_at)
    grid, shape, heads = tuple(q.shape[2:-1]), tuple(k.shape[2:-1]), q.shape[1]
    stride = window if stride is None else stride
    periodic = [False] * len(shape) if periodic is None else periodic
    axes, cached = [], _kept_rows if queries_at is None else _last_rows
    for i, (n, wrap) in enumerate(zip(shape, periodic, strict=True)):
        if queries_at is None:
            axes.append(tilings(n, window, stride, halo, wrap, shift))
        else:
            axes.append(placed_tilings(queries_at[i], n, window, halo, wrap, shift))
    q, k, v = (rearrange(t, "b h ... d -> b (...) (h d)") for t in (q, k, v))
    out: Tensor | None = None
    for tiling in product(*axes):
        rows = _rows(tiling, grid, shape, q.device, cached)
        table = None if bias is None else _bias_table(bias, tiling, q, heads)
        part = _attend(q, k, v, table, rows, heads)
        if rows.share is not None:
            part = part * rows.share.to(part.dtype)
        out = part if out is None else out + part
    assert out is not None  # an axis has at least one tiling
    return rearrange(out.unflatten(1, grid), "b ... (h d) -> b h ... d", h=heads)


def native_windows(
    x: Tensor,
    heads: int,
    *,
    window: int,
    stride: int,
    halo: int,
    shift: int,
    periodic: Sequence[bool],
    bias: Callable[[Tensor], Tensor] | None,
) -> tuple[Windows, Tensor | None] | None:
    """Return the windows of a grid for the compiled library, and the table that it adds to scores.

    `x` is a field on the grid, ``(batch, *grid, channels)``; the others are as in `window_attention`. None
    without the library, and where windows overlap.
    """
    if not may_call(x):
        return None
    grid = tuple(x.shape[1:-1])
    axes = [tilings(n, window, stride, halo, wrap, shift) for n, wrap in zip(grid, periodic, strict=True)]
    if any(len(of_axis) > 1 for of_axis in axes):
        return None
    tiling = tuple(of_axis[0] for of_axis in axes)
    rows = _rows(tiling, grid, grid, x.device, _kept_rows)
    if bias is None:
        return Windows(rows), None
    look_up = None if _are_wrapped() else _look_up(tiling)
    if look_up is None:
        return Windows(rows), filled_up(_bias_table(bias, tiling, x, heads), rows)
    offsets, index = look_up
    scores = _for_each_head(bias(offsets), heads)
    return Windows(rows), scores.T.index_select(1, index.view(-1)).unflatten(1, index.shape)[None]


@lru_cache(maxsize=128)
def _look_up(tiling: tuple[Tiling, ...]) -> tuple[Tensor, Tensor] | None:
    """The lattice of a tiling, ``(points, n_dim)``, and the point of it of each ``(key, query)``.

    Queries are filled up to whole vectors with the first point. None where windows differ, or where offsets
    are not whole.
    """
    steps, places = _lattice(tiling)
    if any(share.any() or len(below) > 1 for below, share in places):
        return None
    index = np.zeros((1, 1), dtype=np.int64)  # (keys, queries)
    for step, (below, _) in zip(steps, places, strict=True):
        index = np.add.outer(index * len(step), below[0].T).transpose(0, 2, 1, 3)
        index = index.reshape(index.shape[0] * index.shape[1], -1)
    filled = np.zeros((len(index), vectors(index.shape[1])), dtype=np.int64)
    filled[:, : index.shape[1]] = index
    with torch.inference_mode(False):
        lattice = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, len(steps))
        # Not on a default device of the moment: they are kept.
        offsets = torch.as_tensor(lattice, dtype=torch.float32, device="cpu")
        return offsets, torch.as_tensor(filled, device="cpu")


def _for_each_head(scores: Tensor, heads: int) -> Tensor:
    """Refuse scores ``(..., heads)`` of other heads: the compiled library would read past them."""
    if scores.shape[-1] != heads:
        raise InputError(
            f"bias gives {scores.shape[-1]} scores for each offset, expected one for each of {heads} heads"
        )
    return scores


def _check(q: Tensor, k: Tensor, v: Tensor, queries_at: Sequence[tuple[float, ...]] | None) -> None:
    """Refuse what does not belong together: the compiled library reads memory as it is told to."""
    grid = k.shape[2:-1] if queries_at is None else [len(at) for at in queries_at]
    if k.shape != v.shape or q.shape != (*k.shape[:2], *grid, k.shape[-1]):
        raise InputError(
            f"q, k and v have the shapes {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}; expected "
            f"one batch, heads and head_dim for all, and for q the grid {tuple(grid)}"
        )
    if len({(t.dtype, t.device) for t in (q, k, v)}) > 1:
        kinds = ", ".join(f"{t.dtype} on {t.device}" for t in (q, k, v))
        raise InputError(f"q, k and v are {kinds}; expected one type and one device: use `.to`")


def _rows(
    tiling: tuple[Tiling, ...],
    queries: tuple[int, ...],
    keys: tuple[int, ...],
    device: torch.device,
    cached: Callable[..., Rows],
) -> Rows:
    """The windows of a tiling, on a device, by one of the caches."""
    return (Rows.of if _are_wrapped() else cached)(tiling, queries, keys, device)


def _are_wrapped() -> bool:
    """Whether tensors that are made now may be fake, or belong to a transform, and cannot be kept."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    )


def _new_rows(
    tiling: tuple[Tiling, ...], queries: tuple[int, ...], keys: tuple[int, ...], device: torch.device
) -> Rows:
    with torch.inference_mode(False):  # tensors of inference could not be used in training later
        return Rows.of(tiling, queries, keys, device)


_kept_rows = lru_cache(maxsize=128)(_new_rows)
# Of queries between the keys only the last ones, at most 8 tilings in three dimensions: the blocks of a model
# ask for the same ones in turn, and those of one part of a grid after the other would fill the memory.
_last_rows = lru_cache(maxsize=8)(_new_rows)


def _attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, rows: Rows, heads: int) -> Tensor:
    """The attention of the windows of one tiling, each result put back in its place.

    Points are flattened: `q`, `k`, `v` and the result are ``(batch, points, heads * head_dim)``. `table` is
    ``(windows or 1, heads, queries, keys)``.
    """
    if may_call(q):
        return attend_natively(q, k, v, table, rows, heads)
    if on_cpu_eagerly(q):
        return attend_in_blocks(q, k, v, table, rows, heads)
    return attend_whole(q, k, v, table, rows, heads)


def _bias_table(
    bias: Callable[[Tensor], Tensor], tiling: Sequence[Tiling], like: Tensor, heads: int
) -> Tensor:
    """The bias of every pair of a query and a key of a window, ``(windows or 1, heads, queries, keys)``.

    Many pairs have the same offset or nearly so. It is evaluated on a lattice: whole steps where all offsets
    are whole, else quarters, between which it is interpolated linearly.
    """
    steps, places = _lattice(tuple(tiling))
    axes = [torch.as_tensor(s, dtype=like.dtype, device=like.device) for s in steps]
    table = _for_each_head(bias(torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)), heads)
    n_dim = len(tiling)
    # (o0, o1, ..., heads) -> (m0, q0, k0, m1, q1, k1, ..., heads)
    for i, (below, share) in enumerate(places):
        table = _interpolated(table, 3 * i, below, share)
    if any(len(axis.offsets) > 1 for axis in tiling):  # along the other axes windows are alike
        widths = [n for axis in tiling for n in (len(axis.queries), *axis.offsets.shape[1:])]
        table = table.expand(*widths, -1)
    order = " ".join(f"m{i} q{i} k{i}" for i in range(n_dim))
    windows, queries, keys = (" ".join(f"{letter}{i}" for i in range(n_dim)) for letter in "mqk")
    return rearrange(table, f"{order} h -> ({windows}) h ({queries}) ({keys})")


@lru_cache(maxsize=128)
def _lattice(
    tiling: tuple[Tiling, ...],
) -> tuple[list[NDArray[np.float64]], list[tuple[NDArray[np.int64], NDArray[np.float64]]]]:
    """The lattice of each axis, and for each offset the point of it below and the share of the next one."""
    steps, places = [], []
    for axis in tiling:
        offset = axis.offsets
        step = 1.0 if (offset == np.rint(offset)).all() else 0.25
        place = offset / step
        # Rounded down once: 3 less a rounding error, counted from another point, would be 3.
        below = np.floor(place)
        first, last = below.min(), below.max()
        # One more than the last, which what lies beyond it is interpolated with.
        steps.append(step * np.arange(first, last + (1 if step == 1 else 2)))
        places.append(((below - first).astype(np.int64), place - below))
    return steps, places


def _interpolated(table: Tensor, dim: int, below: NDArray[np.int64], share: NDArray[np.float64]) -> Tensor:
    """Entries of a table along a dimension, which becomes those of `below`; `share` is of the next one."""

    def entries(index: NDArray[np.int64]) -> Tensor:
        chosen = torch.as_tensor(index.reshape(-1), device=table.device)
        return table.index_select(dim, chosen).unflatten(dim, index.shape)

    if not share.any():
        return entries(below)
    weight = torch.as_tensor(share, dtype=table.dtype, device=table.device)
    weight = weight.view(*share.shape, *[1] * (table.ndim - dim - 1))
    return torch.lerp(entries(below), entries(below + 1), weight)
