"""Stencils between the levels of a pyramid by the compiled library, with gradients."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mano_op.layers.native.call import loaded, may_call, pointers
from mano_op.layers.replay import replay


@dataclass(frozen=True, eq=False)
class Lists:
    """Along one axis: which points of the source, by which taps of the stencil, each point of the result has.

    Attributes
    ----------
    start : int32 array, ``(n_out + 1,)``
        Where the list of each point begins.
    source, tap : int32 array
    n_in, taps : int
    """

    start: NDArray[np.int32]
    source: NDArray[np.int32]
    tap: NDArray[np.int32]
    n_in: int
    taps: int

    @classmethod
    def of(
        cls, out: NDArray[Any], source: NDArray[Any], tap: NDArray[Any], sizes: tuple[int, int, int]
    ) -> Lists:
        """From entries in any order; `sizes` are the numbers of points of result and source, and of taps."""
        n_out, n_in, taps = sizes
        order = np.argsort(out, kind="stable")
        start = np.searchsorted(out[order], np.arange(n_out + 1)).astype(np.int32)
        return cls(start, source[order].astype(np.int32), tap[order].astype(np.int32), n_in, taps)

    @property
    def n_out(self) -> int:
        """Points of the result."""
        return len(self.start) - 1

    def reversed(self) -> Lists:
        """From the result to the source."""
        out = np.repeat(np.arange(self.n_out), np.diff(self.start))
        return Lists.of(self.source, out, self.tap, (self.n_in, self.n_out, self.taps))


@lru_cache(maxsize=256)
def down(n: int, rate: int, reach: int, periodic: bool) -> tuple[Lists, Lists]:
    """To every `rate`-th point, from those up to `reach` before its cell and after it; and back.

    What reaches past an end has the nearest point again, or the other end of a periodic axis.
    """
    taps, n_out = rate + reach, -(-n // rate)
    out, tap = (index.ravel() for index in np.indices((n_out, taps)))
    source = rate * out + tap - reach
    lists = Lists.of(out, source % n if periodic else source.clip(0, n - 1), tap, (n_out, n, taps))
    return lists, lists.reversed()


@lru_cache(maxsize=256)
def up(n_in: int, n: int, rate: int, reach: int, periodic: bool) -> tuple[Lists, Lists]:
    """To `n` points, as the transpose of `down` with one coarse point more than there are; and back."""
    taps, more = rate + reach, n_in + min(reach, 1)
    source, tap = (index.ravel() for index in np.indices((more, taps)))
    out = rate * source + tap - reach
    inside = (out >= 0) & (out < n)
    source = source % n_in if periodic else source.clip(max=n_in - 1)
    lists = Lists.of(out[inside], source[inside], tap[inside], (n, n_in, taps))
    return lists, lists.reversed()


def can_apply_natively(x: Tensor, kernel: Tensor) -> bool:
    """Whether `apply_stencil` may be used; where a kernel does not fit a field, torch says so."""
    return (
        may_call(x)
        and kernel.dtype == x.dtype
        and len(kernel) == x.shape[1]
        and not torch.is_autocast_enabled("cpu")
    )


def apply_stencil(
    x: Tensor,
    kernel: Tensor,
    axes: Sequence[tuple[Lists, Lists]],
    otherwise: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The stencil of a field.

    Parameters
    ----------
    x : Tensor, ``(batch, channels, *grid)``
    kernel : Tensor, ``(channels, 1, *taps)``
    axes : sequence of (Lists, Lists)
        For each axis, there and back.
    otherwise : callable
        The same by operations of torch, of `x` and `kernel`: for gradients of gradients.
    """
    out: Tensor = _Stencil.apply(x, kernel, tuple(axes), otherwise)
    return out.movedim(-1, 1)


class _Lists(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("start", "source", "tap")),
        *((name, ctypes.c_int64) for name in ("n_out", "n_in", "taps")),
    )

    @classmethod
    def of(cls, lists: Lists) -> _Lists:
        addresses = (array.ctypes.data for array in (lists.start, lists.source, lists.tap))
        return cls(*addresses, lists.n_out, lists.n_in, lists.taps)


class _Problem(ctypes.Structure):
    _fields_ = (
        ("axis", _Lists * 3),
        ("batch", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("threads", ctypes.c_int32),
    )

    @classmethod
    def of(cls, axes: Sequence[Lists], batch: int, channels: int) -> _Problem:
        """It holds addresses: the lists, which are kept, have to outlive it."""
        before = [_ONE] * (3 - len(axes))
        lists = (_Lists * 3)(*(_Lists.of(one) for one in (*before, *axes)))
        return cls(lists, batch, channels, torch.get_num_threads())


_ONE = Lists.of(np.zeros(1), np.zeros(1), np.zeros(1), (1, 1, 1))  # an axis of one point


class _Stencil(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: Tensor, axes: tuple[tuple[Lists, Lists], ...], otherwise: Any
    ) -> Tensor:
        tokens = x.movedim(1, -1).contiguous()
        weights = kernel.flatten(1).T.contiguous()
        there = [lists for lists, _ in axes]
        out = tokens.new_empty(len(x), *(lists.n_out for lists in there), x.shape[1])
        problem = _Problem.of(there, len(x), x.shape[1])
        loaded().stencil(ctypes.byref(problem), *pointers(tokens, weights, out))
        ctx.save_for_backward(x, kernel)
        ctx.axes, ctx.otherwise = axes, otherwise
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            return *replay(ctx.otherwise, (x, kernel), needed, grad.movedim(-1, 1)), None, None
        grad = grad.contiguous()
        of_x = of_kernel = None
        if needed[0]:
            weights = kernel.flatten(1).T.contiguous()
            back = _Problem.of([lists for _, lists in ctx.axes], len(x), x.shape[1])
            of_tokens = grad.new_empty(len(x), *x.shape[2:], x.shape[1])
            loaded().stencil(ctypes.byref(back), *pointers(grad, weights, of_tokens))
            of_x = of_tokens.movedim(-1, 1)
        if needed[1]:
            tokens = x.movedim(1, -1).contiguous()
            there = _Problem.of([lists for lists, _ in ctx.axes], len(x), x.shape[1])
            parts = grad.new_zeros(there.threads, kernel[0].numel(), len(kernel))
            loaded().stencil_weights(ctypes.byref(there), *pointers(tokens, grad, parts))
            of_kernel = parts.sum(0).T.reshape(kernel.shape)
        return of_x, of_kernel, None, None
