"""Activation and sums of matrix products by the compiled library, while the products are in the cache.

Fields are contiguous, ``(rows, channels)``, and `mano_op.layers.native.call.may_call` allows them. Functions
whose name ends in an underscore change a field in place.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from mano_op.layers.native.call import loaded, pointers


def gelu(z: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    r"""The field :math:`\operatorname{gelu}(z + b)`, with :math:`\operatorname{gelu}(x) = x\, \Phi(x)`.

    It is written to `out`, which may be `z`, or to a new field.

    Examples
    --------
    >>> from mano_op.layers.native.call import may_call
    >>> z = torch.randn(3, 20)
    >>> expected = torch.nn.functional.gelu(z + 1)
    >>> not may_call(z) or torch.allclose(gelu(z, torch.ones(20)), expected, atol=1e-6)
    True
    """
    bias, out = _fitting(z, bias), _place(z, out)
    loaded().gelu(*_sizes(z), *pointers(bias, z, out), _threads(z))
    return out


def gelu_backward_(z: Tensor, bias: Tensor, dz: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""The field of `gelu`, and its gradient replaced by :math:`dz \circ \operatorname{gelu}'(z + b)`."""
    bias, dz, out = _fitting(z, bias), _fitting(z, dz), _place(z, out)
    loaded().gelu_backward(*_sizes(z), *pointers(bias, z, out, dz), _threads(z))
    return out, dz


def add_(z: Tensor, bias: Tensor | None, x: Tensor | None) -> Tensor:
    """Add a bias and another field to z, if they are given."""
    bias, x = (None if t is None else _fitting(z, t) for t in (bias, x))
    loaded().add(*_sizes(z), *pointers(bias, x, z), _threads(z))
    return z


def _fitting(z: Tensor, t: Tensor) -> Tensor:
    """A contiguous field like `z`, or a number for each channel: the library itself checks no sizes."""
    if not (z.is_contiguous() and t.dtype == z.dtype == torch.float32 and t.shape in (z.shape, z.shape[1:])):
        raise ValueError(f"{t.dtype} of shape {tuple(t.shape)} for {z.dtype} of shape {tuple(z.shape)}")
    return t.contiguous()


def _place(z: Tensor, out: Tensor | None) -> Tensor:
    """The field `out`, or a new one like `z`."""
    if out is None:
        return torch.empty_like(z)
    if out.shape != z.shape or out.dtype != z.dtype or not out.is_contiguous():
        raise ValueError(f"{out.dtype} of shape {tuple(out.shape)} for {z.dtype} of shape {tuple(z.shape)}")
    return out


def _sizes(z: Tensor) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    return ctypes.c_int64(z.shape[0]), ctypes.c_int64(z.shape[1])


def _threads(z: Tensor) -> ctypes.c_int64:
    """Number of threads with some work for each."""
    return ctypes.c_int64(min(torch.get_num_threads(), 1 + z.numel() // 2**15))
