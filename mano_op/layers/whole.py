"""Attention in windows by operations of torch: the definition, and the same for some windows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mano_op.layers.tiling import Tiling

# Scores of a block, four megabytes in single precision, and blocks of a grid.
_SCORES, _MOST_BLOCKS = 2**20, 16


@dataclass(frozen=True, eq=False)
class Rows:
    """Windows of a grid, as indices into its points, flattened.

    Attributes
    ----------
    queries, keys : int32, ``(windows, n queries)`` and ``(windows, n keys)``
        The points of each window, some of which may be fillers.
    place : int32, ``(points,)``
        Position of each point among the flattened `queries`.
    missing : float32, ``(windows, n keys)``, optional
        -inf where there is no key, else 0; None if all are there.
    taken : float32, ``(windows, n queries)``, optional
        1 where a query's result is taken, 0 at a filler; None if all are.
    share : float64, ``(points, 1)``, optional
        Weight of each point's result in this tiling; None if all are 1.

    Examples
    --------
    >>> from mano_op.layers.tiling import tilings
    >>> axes = 2 * tilings(4, window=2, stride=2, halo=0, periodic=False)
    >>> Rows.of(axes, (4, 4), (4, 4), torch.device("cpu")).keys.tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    """

    queries: Tensor
    keys: Tensor
    place: Tensor
    missing: Tensor | None
    taken: Tensor | None
    share: Tensor | None

    @classmethod
    def of(
        cls, tiling: Sequence[Tiling], queries: Sequence[int], keys: Sequence[int], device: torch.device
    ) -> Rows:
        """Combine the windows of each axis, given the shapes of the grids of queries and keys."""
        points = _outer([axis.queries for axis in tiling], queries)
        exists = np.ones((1, 1), dtype=bool)
        for axis in tiling:
            exists = np.einsum("mk,nl->mnkl", exists, axis.key_exists)
            exists = exists.reshape(len(exists) * exists.shape[1], -1)
        place: Any = np.zeros((), dtype=np.int64)
        inner, share = place, np.ones(())
        for axis in tiling:
            count, width = axis.queries.shape
            window, slot = np.divmod(axis.place, width)
            place = np.add.outer(place * count, window)
            inner = np.add.outer(inner * width, slot)
            share = np.multiply.outer(share, axis.share)
        place = (place * points.shape[1] + inner).ravel()
        taken = np.zeros(points.size, dtype=bool)
        taken[place[share.ravel() > 0]] = True

        def tensor(values: NDArray[Any], dtype: torch.dtype, *, complete: Any = False) -> Any:
            return None if complete else torch.as_tensor(values, dtype=dtype, device=device)

        return cls(
            tensor(points, torch.int32),
            tensor(_outer([axis.keys for axis in tiling], keys), torch.int32),
            tensor(place, torch.int32),
            tensor(np.where(exists, 0.0, -np.inf), torch.float32, complete=exists.all()),
            tensor(taken.reshape(points.shape), torch.float32, complete=taken.all()),
            tensor(share.reshape(-1, 1), torch.float64, complete=(share == 1).all()),
        )

    def part(self, windows: slice) -> Rows:
        """Some of the windows; `place` stays that of all."""
        missing = None if self.missing is None else self.missing[windows]
        return replace(self, queries=self.queries[windows], keys=self.keys[windows], missing=missing)


def _outer(points: Sequence[NDArray[np.int64]], shape: Sequence[int]) -> NDArray[np.int64]:
    """Flat indices into a grid, ``(windows, points of a window)``, of points given along each axis."""
    flat = np.zeros((1, 1), dtype=np.int64)
    for of_axis, n in zip(points, shape, strict=True):
        flat = flat[:, None, :, None] * n + of_axis[None, :, None, :]
        flat = flat.reshape(flat.shape[0] * flat.shape[1], -1)
    return flat


def attend_whole(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, rows: Rows, heads: int) -> Tensor:
    """Attend within the windows of one tiling, and put each result back in its place.

    This is the definition of every other form.

    Parameters
    ----------
    q, k, v : Tensor, ``(batch, points, heads * head_dim)``
    table : Tensor, optional, ``(windows or 1, heads, queries, keys)``
        What is added to the scores.
    rows : Rows
    heads : int

    Returns
    -------
    Tensor, ``(batch, points of q, heads * head_dim)``
    """
    return _in_windows(q, k, v, table, rows, heads).index_select(1, rows.place)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, rows: Rows, heads: int) -> Tensor:
    """`attend_whole`, some windows at a time: the scores of the others are not kept, but recomputed.

    Softmax and sums are in single precision at least.
    """
    windows = len(rows.queries)
    scores = max(1, len(q) * heads * rows.queries.shape[1] * rows.keys.shape[1])
    # The backward pass of each block writes a whole gradient of q, k and v.
    step = max(1, _SCORES * torch.get_num_threads() // scores, -(-windows // _MOST_BLOCKS))
    tables = [table] * -(-windows // step) if table is None or len(table) == 1 else table.split(step)
    results = []
    for first, of_block in zip(range(0, windows, step), tables, strict=True):
        inputs = q, k, v, of_block, rows.part(slice(first, first + step)), heads
        if torch.is_grad_enabled():
            options: dict[str, Any] = {"preserve_rng_state": False, "determinism_check": "none"}
            results.append(checkpoint(_in_exact_windows, *inputs, use_reentrant=False, **options))
        else:
            results.append(_in_exact_windows(*inputs))
    return torch.cat(results, dim=1).index_select(1, rows.place)


def _in_exact_windows(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, rows: Rows, heads: int
) -> Tensor:
    working = torch.promote_types(q.dtype, torch.float32)
    table = None if table is None else table.to(working)
    with torch.autocast("cpu", enabled=False):
        return _in_windows(q.to(working), k.to(working), v.to(working), table, rows, heads).to(q.dtype)


def _in_windows(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, rows: Rows, heads: int) -> Tensor:
    """The result of every query of the windows, ``(batch, windows * queries, heads * head_dim)``."""
    windows = len(rows.queries)
    q, k, v = (
        rearrange(t.index_select(1, index.flatten()), "b (m n) (h d) -> b (m h) n d", m=windows, h=heads)
        for t, index in ((q, rows.queries), (k, rows.keys), (v, rows.keys))
    )
    added = table
    if rows.missing is not None:
        missing = rows.missing.to(q.dtype)[:, None, None]
        added = missing if added is None else added + missing
    if added is not None:
        added = added.expand(windows, heads, q.shape[2], k.shape[2]).flatten(0, 1)
    out = _softmax_attention(q, k, v, added)
    return rearrange(out, "b (m h) n d -> b (m n) (h d)", m=windows)


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None) -> Tensor:
    """The attention of each window; on a CPU written out, since no query here is without a key.

    torch's own kernel looks for such queries there, which doubles its time; it also has no gradient for
    an added score on a CPU, and falls back on this same arithmetic.
    """
    if q.device.type != "cpu":
        return _kernel_attention(q, k, v, added)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    return (scores if added is None else scores + added).softmax(-1) @ v


def _kernel_attention(
    q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, most_heads: int = 2**16 - 1
) -> Tensor:
    """The kernel of torch, on at most so many windows and heads at once.

    On CUDA some of its kernels can start no more, and may not say so (pytorch/pytorch#142228). A grid of
    256 x 256 with windows of 2 x 2 and 4 heads has one more.
    """
    out = []
    for first in range(0, q.shape[1], most_heads):
        part = slice(first, first + most_heads)
        mask = None if added is None else added[part]
        out.append(F.scaled_dot_product_attention(q[:, part], k[:, part], v[:, part], attn_mask=mask))
    return out[0] if len(out) == 1 else torch.cat(out, dim=1)
