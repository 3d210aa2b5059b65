r"""Attention in windows by the compiled library, with gradients.

The backward pass computes the scores again instead of keeping them. With the probabilities P it is

.. math::

    dV = P^T dO, \qquad dP = dO\, V^T, \qquad dS = P \circ (dP - \operatorname{rowsum}(P \circ dP)), \qquad
    dQ = dS\, K, \qquad dK = dS^T Q .
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mano_op.layers.native.call import loaded, pointers
from mano_op.layers.replay import replay
from mano_op.layers.whole import Rows, attend_whole

_LANES = 16
_SIZES = (
    *("batch", "windows", "heads", "head_dim", "n_queries", "n_keys", "padded_queries"),
    *("table_windows", "points", "key_points"),
)


def attend_natively(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, rows: Rows, heads: int) -> Tensor:
    """As `mano_op.layers.whole.attend_whole`, in single precision."""
    q, k, v = (with_channels_together(t) for t in (q, k, v))
    inputs = [t for t in (q, k, v, table) if t is not None]
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    out: Tensor = _Native.apply(q, k, v, table, rows, heads, recorded)
    return out


class Tokens(ctypes.Structure):
    """Address and strides of points, ``(batch, points, channels)``, with contiguous channels."""

    _fields_ = (("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("row_stride", ctypes.c_int64))

    @classmethod
    def of(cls, t: Tensor) -> Tokens:
        """Hold the address of a tensor, which has to outlive it."""
        return cls(t.data_ptr(), t.stride(0), t.stride(1))


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, Tokens) for name in "qkv"),
        *((name, ctypes.c_void_p) for name in ("table", "missing", "queries", "keys", "taken")),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Windows:
    """Attention within the windows of one tiling.

    The table that is added to scores is ``(windows or 1, heads, keys, queries)``, with queries filled up to
    whole vectors; see `filled_up`.
    """

    rows: Rows

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, heads: int, *, recorded: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the result and, if `recorded`, two numbers for each query and head for the backward pass."""
        out = (q.new_empty if self._once() else q.new_zeros)(q.shape)
        problem, table = self._problem(q, k, v, table, heads)
        shape = len(q), len(self.rows.queries), heads, 2, table.shape[-1]
        stats = q.new_empty(shape) if recorded else None
        loaded().forward(ctypes.byref(problem), *pointers(out, stats))
        return out, stats

    def gradients(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor | None,
        heads: int,
        stats: Tensor | None,
        grad: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the gradients of queries, keys, values and table."""
        grad = with_channels_together(grad)
        problem, added = self._problem(q, k, v, table, heads)
        threads = problem.threads
        tables = min(threads, len(q)) if len(added) == 1 and len(q) >= threads else 0
        dtable = q.new_zeros(max(tables, 1), *added.shape)
        dq = (q.new_empty if self._once() else q.new_zeros)(q.shape)
        dk, dv = q.new_zeros(2, *k.shape)
        of_grad = Tokens.of(grad)
        loaded().backward(
            ctypes.byref(problem),
            ctypes.byref(of_grad),
            *pointers(stats, dq, dk, dv, dtable),
            ctypes.c_int64(tables),
            ctypes.c_int32(self._once()),
        )
        return dq, dk, dv, None if table is None else dtable.sum(0)

    def whole(self, q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, heads: int) -> Tensor:
        """Return the result by operations of torch."""
        added = None if table is None else table[..., : self.rows.queries.shape[1]].mT
        return attend_whole(q, k, v, added, self.rows, heads)

    def _once(self) -> bool:
        """Whether every query is in exactly one window."""
        return self.rows.taken is None and self.rows.share is None

    def _problem(
        self, q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, heads: int
    ) -> tuple[_Problem, Tensor]:
        """Return the arguments of the library, which checks nothing, and the table.

        They hold addresses, so the tensors have to outlive them.
        """
        rows, head_dim = self.rows, q.shape[-1] // heads
        n_queries, n_keys = rows.queries.shape[1], rows.keys.shape[1]
        if table is None:
            table = q.new_zeros(1, heads, n_keys, vectors(n_queries))
        arrays = table, rows.missing, rows.queries, rows.keys, rows.taken
        problem = _Problem(
            *(Tokens.of(t) for t in (q, k, v)),
            *(None if t is None else t.data_ptr() for t in arrays),
            *(len(q), len(rows.queries), heads, head_dim, n_queries, n_keys, table.shape[-1]),
            *(len(table), q.shape[1], k.shape[1]),
            head_dim**-0.5,
            torch.get_num_threads(),
        )
        return problem, table


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor | None,
        rows: Rows,
        heads: int,
        recorded: bool,
    ) -> Tensor:
        added = None if table is None else filled_up(table.detach(), rows)
        out, stats = Windows(rows).attend(q, k, v, added, heads, recorded=recorded)
        ctx.save_for_backward(q, k, v, table, stats)
        ctx.rows, ctx.heads = rows, heads
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, table, stats = ctx.saved_tensors
        rows, heads = ctx.rows, ctx.heads
        if torch.is_grad_enabled():

            def definition(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None) -> Tensor:
                return attend_whole(q, k, v, table, rows, heads)

            return *replay(definition, (q, k, v, table), ctx.needs_input_grad[:4], grad), None, None, None
        added = None if table is None else filled_up(table.detach(), rows)
        dq, dk, dv, dtable = Windows(rows).gradients(q, k, v, added, heads, stats, grad)
        by_table = None
        if table is not None and dtable is not None:
            by_table = dtable[..., : rows.queries.shape[1]].mT.to(table.dtype)
        return dq, dk, dv, by_table, None, None, None


def with_channels_together(t: Tensor) -> Tensor:
    """Make channels contiguous, as `Tokens` require."""
    return t if t.stride(-1) == 1 else t.contiguous()


def vectors(n_queries: int) -> int:
    """Round the number of queries up to whole vectors."""
    return -(-n_queries // _LANES) * _LANES


def filled_up(table: Tensor, rows: Rows) -> Tensor:
    """Turn a table ``(windows or 1, heads, queries, keys)`` into that of `Windows`."""
    n_queries = rows.queries.shape[1]
    # Autocast may have made it half.
    return F.pad(table.float().mT, (0, vectors(n_queries) - n_queries)).contiguous()
