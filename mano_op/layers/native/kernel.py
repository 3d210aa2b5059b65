"""Attention within windows by the compiled library: the kernels of `mano_op.layers.operator` on a CPU."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mano_op.layers.native.library import library

_LANES = 16
_SIZES = (
    *("batch", "windows", "heads", "head_dim", "n_queries", "n_keys", "padded_queries"),
    *("table_windows", "points", "key_points"),
)


def usable(q: Tensor) -> bool:
    """Whether there is a kernel for queries: in single precision on a CPU, with a library."""
    return q.dtype == torch.float32 and q.device.type == "cpu" and library() is not None


def statistics_shape(q: Tensor, queries: Tensor, heads: int) -> tuple[int, ...]:
    """Return the shape of what `forward` keeps: the largest score of a target, and 1 over the sum."""
    return q.shape[0], queries.shape[0], heads, 2, _vectors(queries.shape[1])


class _Tokens(ctypes.Structure):
    """Address and strides of points, ``(batch, points, channels)``, with contiguous channels."""

    _fields_ = (("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("row_stride", ctypes.c_int64))

    @classmethod
    def of(cls, t: Tensor) -> _Tokens:
        return cls(t.data_ptr(), t.stride(0), t.stride(1))


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, _Tokens) for name in "qkv"),
        *((name, ctypes.c_void_p) for name in ("table", "missing", "queries", "keys", "share")),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int32),
    )


class _Call(NamedTuple):
    """Arguments of the library, which checks nothing, and the tensors whose addresses are among them."""

    problem: _Problem
    tensors: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lists: Any) -> _Call:
        n_queries, n_keys = lists.queries.shape[1], lists.keys.shape[1]
        if bias is None:
            table = q.new_zeros(1, lists.heads, n_keys, _vectors(n_queries))
        else:
            table = F.pad(bias.float(), (0, _vectors(n_queries) - n_queries)).contiguous()
        share = None if lists.share is None else lists.share.float().contiguous()
        missing = None if lists.missing is None else lists.missing.contiguous()
        queries, keys = lists.queries.int().contiguous(), lists.keys.int().contiguous()
        tensors = tuple(t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
        arrays = table, missing, queries, keys, share
        head_dim = q.shape[-1] // lists.heads
        problem = _Problem(
            *map(_Tokens.of, tensors),
            *(None if t is None else t.data_ptr() for t in arrays),
            *(len(q), len(queries), lists.heads, head_dim, n_queries, n_keys, table.shape[-1]),
            *(len(table), q.shape[1], k.shape[1]),
            head_dim**-0.5,
            torch.get_num_threads(),
        )
        return cls(problem, (*tensors, *arrays))


def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lists: Any) -> tuple[Tensor, Tensor]:
    """Return the result, and what `backward` needs."""
    call, out = _Call.of(q, k, v, bias, lists), q.new_zeros(q.shape)
    stats = q.new_empty(statistics_shape(q, lists.queries, lists.heads))
    cast(ctypes.CDLL, library()).forward(ctypes.byref(call.problem), *_pointers(out, stats))
    return out, stats


def backward(
    grad: Tensor, stats: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lists: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys, values and bias, which is empty without one."""
    grad, call = grad.contiguous(), _Call.of(q, k, v, bias, lists)
    problem, table = call.problem, call.tensors[3]
    assert table is not None
    tables = min(problem.threads, len(q)) if len(table) == 1 and len(q) >= problem.threads else 0
    dtable = q.new_zeros(max(tables, 1), *table.shape)
    dq, dk, dv = (q.new_zeros(t.shape) for t in (q, k, v))
    cast(ctypes.CDLL, library()).backward(
        ctypes.byref(problem),
        ctypes.byref(_Tokens.of(grad)),
        *_pointers(stats, dq, dk, dv, dtable),
        ctypes.c_int64(tables),
    )
    of_bias = q.new_zeros(0)
    if bias is not None:
        of_bias = dtable.sum(0)[..., : bias.shape[-1]].to(bias.dtype).contiguous()
    return dq, dk, dv, of_bias


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


def _vectors(n_queries: int) -> int:
    """Round the number of queries up to whole vectors."""
    return -(-n_queries // _LANES) * _LANES
