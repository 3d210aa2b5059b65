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
    """Gather lists of one axis in CSR form: source index and stencil tap of each term of an output point.

    Attributes
    ----------
    start : int32 array, ``(n_out + 1,)``
        First term of each output point.
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
        """Sort terms by output point; `sizes` are the numbers of output and source points, and of taps."""
        n_out, n_in, taps = sizes
        order = np.argsort(out, kind="stable")
        start = np.searchsorted(out[order], np.arange(n_out + 1)).astype(np.int32)
        return cls(start, source[order].astype(np.int32), tap[order].astype(np.int32), n_in, taps)

    @property
    def n_out(self) -> int:
        """Output points."""
        return len(self.start) - 1

    def reversed(self) -> Lists:
        """Transpose the lists."""
        out = np.repeat(np.arange(self.n_out), np.diff(self.start))
        return Lists.of(self.source, out, self.tap, (self.n_in, self.n_out, self.taps))


@lru_cache(maxsize=256)
def down(n: int, rate: int, reach: int, periodic: bool) -> tuple[Lists, Lists]:
    """Return the lists of a restriction, and their transpose.

    Past an end a stencil sees the nearest point again, or the other end of a periodic axis.
    """
    taps, n_out = rate + reach, -(-n // rate)
    out, tap = (index.ravel() for index in np.indices((n_out, taps)))
    source = rate * out + tap - reach
    lists = Lists.of(out, source % n if periodic else source.clip(0, n - 1), tap, (n_out, n, taps))
    return lists, lists.reversed()


@lru_cache(maxsize=256)
def up(n_in: int, n: int, rate: int, reach: int, periodic: bool) -> tuple[Lists, Lists]:
    """Return the lists of a prolongation, the transpose of `down` with one coarse point more, and theirs."""
    taps, n_coarse = rate + reach, n_in + min(reach, 1)
    source, tap = (index.ravel() for index in np.indices((n_coarse, taps)))
    out = rate * source + tap - reach
    inside = (out >= 0) & (out < n)
    source = source % n_in if periodic else source.clip(max=n_in - 1)
    lists = Lists.of(out[inside], source[inside], tap[inside], (n, n_in, taps))
    return lists, lists.reversed()


def can_apply_natively(x: Tensor, kernel: Tensor) -> bool:
    """Whether `apply_stencil` may be used; where a kernel does not fit a field, torch raises the error."""
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
    definition: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Apply a stencil to a field.

    Parameters
    ----------
    x : Tensor, ``(batch, channels, *grid)``
    kernel : Tensor, ``(channels, 1, *taps)``
    axes : sequence of (Lists, Lists)
        For each axis, and their transposes.
    definition : callable
        The stencil of `x` by `kernel` in operations of torch, for second derivatives.
    """
    out: Tensor = _Stencil.apply(x, kernel, tuple(axes), definition)
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
        """Hold the addresses of lists, which have to outlive it."""
        lists = (_Lists * 3)(*map(_Lists.of, (*[_POINT] * (3 - len(axes)), *axes)))
        return cls(lists, batch, channels, torch.get_num_threads())


_POINT = Lists.of(np.zeros(1), np.zeros(1), np.zeros(1), (1, 1, 1))  # an axis of one point


class _Stencil(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: Tensor, axes: tuple[tuple[Lists, Lists], ...], definition: Any
    ) -> Tensor:
        tokens = x.movedim(1, -1).contiguous()
        weights = kernel.flatten(1).T.contiguous()
        lists = [forward for forward, _ in axes]
        out = tokens.new_empty(len(x), *(forward.n_out for forward in lists), x.shape[1])
        problem = _Problem.of(lists, len(x), x.shape[1])
        loaded().stencil(ctypes.byref(problem), *pointers(tokens, weights, out))
        ctx.save_for_backward(x, kernel)
        ctx.axes, ctx.definition = axes, definition
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            return *replay(ctx.definition, (x, kernel), needed, grad.movedim(-1, 1)), None, None
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
            forth = _Problem.of([lists for lists, _ in ctx.axes], len(x), x.shape[1])
            parts = grad.new_zeros(forth.threads, kernel[0].numel(), len(kernel))
            loaded().stencil_weights(ctypes.byref(forth), *pointers(tokens, grad, parts))
            of_kernel = parts.sum(0).T.reshape(kernel.shape)
        return of_x, of_kernel, None, None
