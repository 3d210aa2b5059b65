r"""Attention in windows on a CPU, a few windows at a time.

With windows of 4 x 4 queries and 6 x 6 keys, each point has 36 scores a head, more numbers than everything
else that a layer makes. Written as whole tensors, they cost several trips through memory, and a CPU spends
its time on these and on the pages of fresh memory. Here the points of some windows are gathered into
matrices that fit the cache, and all that is done with them is done there, one head after the other, on
scores laid out as ``(windows, keys, queries)``: the softmax then runs over whole vectors of queries.

The backward pass computes the scores again instead of keeping them. With the probabilities P, the values' and
the result's gradients follow as

.. math::

    dV = P^T dO, \qquad dP = dO\, V^T, \qquad dS = P \circ (dP - \operatorname{rowsum}(dO \circ O)), \qquad
    dQ = dS\, K, \qquad dK = dS^T Q .

What is written here is the arithmetic of the plain form in `mano_op.layers.whole`, up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mano_op.layers.whole import Rows, attend_whole

# Scores of one head in a chunk: half a megabyte in single precision.
_SCORES = 2**17


def attend_in_chunks(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, rows: Rows, heads: int) -> Tensor:
    """The attention of the windows of one tiling, each result put back in its place.

    Parameters
    ----------
    q, k, v : Tensor, ``(batch, points, heads * head_dim)``
        In half precision they are taken to single precision, chunk by chunk.
    table : Tensor, optional, ``(windows or 1, heads, queries, keys)``
        What is added to the scores.
    rows : Rows
    heads : int

    Returns
    -------
    Tensor, ``(batch, points of q, heads * head_dim)``
    """
    out: Tensor = _Chunked.apply(q, k, v, table, rows, heads)
    return out


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, rows: Rows, heads: int
    ) -> Tensor:
        batch, channels = len(q), q.shape[-1]
        d, n_windows, n_queries = channels // heads, *rows.queries.shape
        added = _Added(table, rows, _working(q.dtype))
        out = q.new_empty(batch, n_windows * n_queries, channels)
        flat = out.view(batch * n_windows, n_queries, channels)
        with torch.autocast("cpu", enabled=False):
            for chunk in _chunks(batch, rows):
                qs, ks, vs = (chunk.take(t, index) for t, index in _pairs(q, k, v, rows))
                qs *= d**-0.5
                result = flat[chunk.windows_of_batch(n_windows)]
                for h in range(heads):
                    of_head = slice(h * d, (h + 1) * d)
                    p = chunk.probabilities(qs[..., of_head], ks[..., of_head], added, h)
                    result[..., of_head] = torch.bmm(vs[..., of_head].mT, p).mT
        out = out.index_select(1, rows.place)
        ctx.save_for_backward(q, k, v, table, out)
        ctx.rows, ctx.heads = rows, heads
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, table, out = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable(q, k, v, table, ctx.rows, ctx.heads, grad, ctx.needs_input_grad[:4])
        rows, heads = ctx.rows, ctx.heads
        d = q.shape[-1] // heads
        working = _working(q.dtype)
        added = _Added(table, rows, working)
        dq, dk, dv = (t.new_zeros(t.shape, dtype=working) for t in (q, k, v))
        dtable = None
        if added.table is not None and ctx.needs_input_grad[3]:
            dtable = torch.zeros_like(added.table)
        with torch.autocast("cpu", enabled=False):
            for chunk in _chunks(len(q), rows):
                qs, ks, vs = (chunk.take(t, index) for t, index in _pairs(q, k, v, rows))
                do, o = (chunk.take(t, rows.queries) for t in (grad, out))
                if rows.taken is not None:
                    chunk.by_window(do).mul_(rows.taken[chunk.windows, :, None])
                qs *= d**-0.5
                delta = (do * o).unflatten(-1, (heads, d)).sum(-1)
                dqs, dks, dvs = (torch.empty_like(t) for t in (qs, ks, vs))
                for h in range(heads):
                    of_head = slice(h * d, (h + 1) * d)
                    q_h, k_h, v_h, do_h = (t[..., of_head] for t in (qs, ks, vs, do))
                    p = chunk.probabilities(q_h, k_h, added, h)
                    dvs[..., of_head] = torch.bmm(do_h.mT, p.mT).mT
                    ds = torch.bmm(v_h, do_h.mT).sub_(delta[:, None, :, h]).mul_(p)
                    if dtable is not None:
                        chunk.add_table(dtable, ds, h)
                    dqs[..., of_head] = torch.bmm(k_h.mT, ds).mT
                    dks[..., of_head] = torch.bmm(q_h.mT, ds.mT).mT
                dqs *= d**-0.5
                for total, part, index in (
                    (dq, dqs, rows.queries),
                    (dk, dks, rows.keys),
                    (dv, dvs, rows.keys),
                ):
                    chunk.add(total, part, index)
        if dtable is not None:
            dtable = dtable.mT.to(table.dtype)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dtable, None, None


def _working(dtype: torch.dtype) -> torch.dtype:
    """The precision of softmax and sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _pairs(q: Tensor, k: Tensor, v: Tensor, rows: Rows) -> tuple[tuple[Tensor, Tensor], ...]:
    return (q, rows.queries), (k, rows.keys), (v, rows.keys)


class _Added:
    """What is added to the scores ``(windows, keys, queries)``."""

    def __init__(self, table: Tensor | None, rows: Rows, dtype: torch.dtype) -> None:
        self.table = None if table is None else table.detach().mT.to(dtype).contiguous()
        self.missing = None if rows.missing is None else rows.missing.to(dtype)[:, :, None]


@dataclass(frozen=True)
class _Chunk:
    """Some windows of some samples: all windows of several, or a part of those of one.

    Attributes
    ----------
    samples, windows : slice
    shape : (int, int)
        How many there are of each.
    """

    samples: slice
    windows: slice
    shape: tuple[int, int]

    def windows_of_batch(self, n_windows: int) -> slice:
        """The chunk's windows among those of all samples."""
        first = self.samples.start * n_windows + self.windows.start
        return slice(first, first + self.shape[0] * self.shape[1])

    def _index(self, index: Tensor, n_points: int) -> Tensor:
        """Rows of ``(batch * points, channels)``."""
        index = index[self.windows]
        if self.samples == slice(0, 1):
            return index.flatten()
        first = torch.arange(self.samples.start, self.samples.stop, device=index.device) * n_points
        return (index + first[:, None, None]).flatten()

    def take(self, tokens: Tensor, index: Tensor) -> Tensor:
        """The points of each window, ``(windows, n, channels)``."""
        found = tokens.flatten(0, 1).index_select(0, self._index(index, tokens.shape[1]))
        return found.to(_working(found.dtype)).view(-1, index.shape[1], tokens.shape[2])

    def add(self, total: Tensor, part: Tensor, index: Tensor) -> None:
        """Add what each window has for its points to ``(batch, points, channels)``."""
        total.flatten(0, 1).index_add_(0, self._index(index, total.shape[1]), part.flatten(0, 1))

    def by_window(self, values: Tensor) -> Tensor:
        """``(samples, windows, ...)``."""
        return values.view(*self.shape, *values.shape[1:])

    def probabilities(self, q: Tensor, k: Tensor, added: _Added, head: int) -> Tensor:
        """The softmax of the scores of one head over the keys, ``(windows, keys, queries)``."""
        scores = torch.bmm(k, q.mT)
        if added.table is not None:
            of_windows = self.windows if len(added.table) > 1 else slice(None)
            self.by_window(scores).add_(added.table[of_windows, head])
        if added.missing is not None:
            self.by_window(scores).add_(added.missing[self.windows])
        return scores.softmax(1)

    def add_table(self, total: Tensor, ds: Tensor, head: int) -> None:
        """Add the gradients of scores to that of the table."""
        if len(total) > 1:
            total[self.windows, head] += self.by_window(ds).sum(0)
        else:
            total[0, head] += ds.sum(0)


def _chunks(batch: int, rows: Rows) -> Iterator[_Chunk]:
    """All windows of all samples, so many at once as give the scores of a chunk, or at least one."""
    n_windows = len(rows.queries)
    most = max(1, _SCORES * torch.get_num_threads() // (rows.queries.shape[1] * rows.keys.shape[1]))
    together = max(1, most // n_windows)
    for first in range(0, batch, together):
        samples = slice(first, min(first + together, batch))
        step = n_windows if together > 1 or n_windows <= most else most
        for start in range(0, n_windows, step):
            windows = slice(start, min(start + step, n_windows))
            yield _Chunk(samples, windows, (samples.stop - first, windows.stop - start))


def differentiable(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    rows: Rows,
    heads: int,
    grad: Tensor,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """The gradients as a function that has gradients itself, from whole tensors."""
    # Of these very uses: what was given may itself depend on the same parameters.
    inputs = [t.view_as(t) for t in (q, k, v, table) if t is not None]
    asked = [t for t, need in zip(inputs, needed, strict=False) if need]
    q, k, v, *added = inputs
    out = attend_whole(q, k, v, added[0] if added else None, rows, heads)
    found = iter(torch.autograd.grad(out, asked, grad, create_graph=True))
    return (*(next(found) if need else None for need in needed), None, None)
