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

from mano_op.layers.tiling import Tiling, cut

# Scores of a block, four megabytes in single precision, and blocks of a grid.
_SCORES, _MOST_BLOCKS = 2**20, 16


@dataclass(frozen=True, eq=False)
class Rows:
    """A `Cut` as tensors on a device.

    Attributes
    ----------
    queries, keys : int32, ``(windows, n queries)`` and ``(windows, n keys)``
    place : int32, ``(points,)``
    missing : float32, ``(windows, n keys)``, optional
        -inf where there is no key, else 0; None if all are there.
    taken : float32, ``(windows, n queries)``, optional
        1 where a query's result is taken, 0 at a filler; None if all are.
    share : float64, ``(points, 1)``, optional
        None if all are 1.
    """

    queries: Tensor
    keys: Tensor
    place: Tensor
    missing: Tensor | None
    taken: Tensor | None
    share: Tensor | None

    @classmethod
    def of_tiling(
        cls, tiling: Sequence[Tiling], queries: Sequence[int], keys: Sequence[int], device: torch.device
    ) -> Rows:
        """The windows of a tiling, given the shapes of the grids of queries and keys; see `cut`."""
        windows = cut(tiling, queries, keys)

        def tensor(values: NDArray[Any], dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(values, dtype=dtype, device=device)

        missing = np.where(windows.key_exists, 0.0, -np.inf)
        return cls(
            tensor(windows.queries, torch.int32),
            tensor(windows.keys, torch.int32),
            tensor(windows.place, torch.int32),
            None if windows.key_exists.all() else tensor(missing, torch.float32),
            None if windows.query_exists.all() else tensor(windows.query_exists, torch.float32),
            None if (windows.share == 1).all() else tensor(windows.share[:, None], torch.float64),
        )

    def part(self, windows: slice) -> Rows:
        """Some of the windows; `place` stays that of all."""
        missing = None if self.missing is None else self.missing[windows]
        return replace(self, queries=self.queries[windows], keys=self.keys[windows], missing=missing)


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
