"""Attention in windows of 2, 4 or 8 points by the compiled library, all windows at once, with gradients.

A window of 4 queries fills a quarter of the vectors that `mano_op.layers.native.window` works on, and where
windows overlap, each of their tilings has a result there that is kept. Here a vector holds pairs of a query
and a key, of several windows if they are that small; the windows of all tilings are one list, and each adds
its share to the results of its points. The backward pass needs nothing but queries, keys and values. Nothing
is added to scores.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mano_op.layers.chunks import differentiable
from mano_op.layers.native.call import loaded, pointers
from mano_op.layers.native.window import Tokens, with_channels_together
from mano_op.layers.tiling import Cut
from mano_op.layers.whole import Rows

SIZES = (2, 4, 8)


@dataclass(frozen=True, eq=False)
class SmallWindows:
    """The windows of all tilings of a grid, by their first points, so that neighbours meet in the cache.

    Attributes
    ----------
    queries, keys : int32, ``(windows, n)``
        Points of each; n is one of `SIZES`.
    share : float32, ``(windows, n)``
        What a query's result counts in the average over all its windows; 0 at a filler.
    missing : float32, ``(windows, n)``, optional
        -inf where there is no key, else 0; None if all are there.
    new_query, new_key : bool, ``(windows, n)``
        Whether no window before, nor place of this one, has a result, or a gradient, for the point.
    """

    queries: Tensor
    keys: Tensor
    share: Tensor
    missing: Tensor | None
    new_query: Tensor
    new_key: Tensor

    @classmethod
    def of(cls, cuts: Sequence[Cut]) -> SmallWindows:
        """The windows of some tilings."""
        queries, keys, exists = (
            np.concatenate(parts)
            for parts in zip(*((cut.queries, cut.keys, cut.key_exists) for cut in cuts), strict=True)
        )
        share = np.concatenate([cut.query_exists * cut.share[cut.queries] for cut in cuts])
        order = np.argsort(queries[:, 0], kind="stable")
        queries, keys, exists, share = (t[order] for t in (queries, keys, exists, share))
        missing = np.where(exists, 0.0, -np.inf)
        return cls(
            torch.as_tensor(queries),
            torch.as_tensor(keys),
            torch.as_tensor(share, dtype=torch.float32),
            None if exists.all() else torch.as_tensor(missing, dtype=torch.float32),
            torch.as_tensor(_first_of_each(queries, share > 0)),
            torch.as_tensor(_first_of_each(keys, exists)),
        )


def _first_of_each(points: NDArray[np.int32], counts: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where points stand for the first time, of the places that count; each point has one."""
    places = np.flatnonzero(counts)
    _, first = np.unique(points.flat[places], return_index=True)
    found = np.zeros(points.size, dtype=bool)
    found[places[first]] = True
    return found.reshape(points.shape)


def attend_in_small_windows(
    q: Tensor, k: Tensor, v: Tensor, windows: SmallWindows, tilings: Callable[[], Sequence[Rows]], heads: int
) -> Tensor:
    """The attention of all windows, averaged where they overlap, without anything added to scores.

    Parameters
    ----------
    q, k, v : Tensor, ``(batch, points, heads * head_dim)``
    windows : SmallWindows
    tilings : callable
        Gives the same windows as those of each tiling, for gradients that have gradients themselves.
    heads : int

    Returns
    -------
    Tensor, ``(batch, points of q, heads * head_dim)``
    """
    q, k, v = (with_channels_together(t) for t in (q, k, v))
    out: Tensor = _Small.apply(q, k, v, windows, tilings, heads)
    return out


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, Tokens) for name in "qkv"),
        *(
            (name, ctypes.c_void_p)
            for name in ("queries", "keys", "share", "missing", "new_query", "new_key")
        ),
        *(
            (name, ctypes.c_int64)
            for name in ("batch", "windows", "heads", "head_dim", "points", "key_points")
        ),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("size", "threads")),
    )

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, windows: SmallWindows, heads: int) -> _Problem:
        """What the library is told, and does not check. It holds addresses, which tensors have to outlive."""
        head_dim = q.shape[-1] // heads
        return cls(
            *(Tokens.of(t) for t in (q, k, v)),
            *pointers(windows.queries, windows.keys, windows.share, windows.missing),
            *pointers(windows.new_query, windows.new_key),
            *(len(q), len(windows.queries), heads, head_dim, q.shape[1], k.shape[1]),
            *(head_dim**-0.5, windows.queries.shape[1], torch.get_num_threads()),
        )


class _Small(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        windows: SmallWindows,
        tilings: Callable[[], Sequence[Rows]],
        heads: int,
    ) -> Tensor:
        out = q.new_empty(q.shape)
        problem = _Problem.of(q, k, v, windows, heads)
        loaded().small_forward(ctypes.byref(problem), *pointers(out))
        ctx.save_for_backward(q, k, v)
        ctx.windows, ctx.tilings, ctx.heads = windows, tilings, heads
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_differentiable(ctx, q, k, v, grad), None, None, None
        grad = with_channels_together(grad)
        dq, dk, dv = (t.new_empty(t.shape) for t in (q, k, v))
        problem = _Problem.of(q, k, v, ctx.windows, ctx.heads)
        of_grad = Tokens.of(grad)
        loaded().small_backward(ctypes.byref(problem), ctypes.byref(of_grad), *pointers(dq, dk, dv))
        return dq, dk, dv, None, None, None


def _differentiable(ctx: Any, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor | None]:
    """The gradients as functions that have gradients themselves, a tiling at a time."""
    totals: list[Tensor | None] = [None] * 3
    for rows in ctx.tilings():
        of_tiling = grad if rows.share is None else grad * rows.share.to(grad.dtype)
        parts = differentiable(q, k, v, None, rows, ctx.heads, of_tiling, ctx.needs_input_grad[:3])
        totals = [
            part if total is None or part is None else total + part
            for total, part in zip(totals, parts[:3], strict=True)
        ]
    return totals
