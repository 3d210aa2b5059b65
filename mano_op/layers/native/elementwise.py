"""What is done to the results of matrix products while they are in the cache, by the compiled library.

Fields are float32 on a CPU, ``(rows, channels)`` without gaps, and changed in place.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from mano_op.layers.native.library import library


def can_change_natively(t: Tensor) -> bool:
    """Whether the functions of this module may be used, where operations on a CPU are carried out eagerly.

    Not while a mode of torch looks on at the operations, unless it says by an attribute ``only_tensors`` that
    it asks for the tensors alone.
    """
    return (
        t.dtype == torch.float32
        and all(getattr(mode, "only_tensors", False) for mode in _get_current_dispatch_mode_stack())
        and library() is not None
    )


def gelu_(z: Tensor, bias: Tensor) -> Tensor:
    r"""Replace z by :math:`\operatorname{gelu}(z + b)`, with :math:`\operatorname{gelu}(x) = x\, \Phi(x)`.

    Examples
    --------
    >>> z = torch.randn(3, 20)
    >>> expected = torch.nn.functional.gelu(z + 1)
    >>> library() is None or torch.allclose(gelu_(z, torch.ones(20)), expected, atol=1e-6)
    True
    """
    bias = _fitting(z, bias)
    _library().gelu(*_sizes(z), *_pointers(bias, z), _threads(z))
    return z


def gelu_backward_(z: Tensor, bias: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
    r"""Replace z as `gelu_` does, and its gradient by :math:`dz \circ \operatorname{gelu}'(z + b)`."""
    bias, dz = _fitting(z, bias), _fitting(z, dz)
    _library().gelu_backward(*_sizes(z), *_pointers(bias, z, dz), _threads(z))
    return z, dz


def add_(z: Tensor, bias: Tensor | None, x: Tensor | None) -> Tensor:
    """Add a bias and another field to z, if they are given."""
    bias, x = (None if t is None else _fitting(z, t) for t in (bias, x))
    _library().add(*_sizes(z), *_pointers(bias, x, z), _threads(z))
    return z


def _library() -> ctypes.CDLL:
    lib = library()
    assert lib is not None
    return lib


def _fitting(z: Tensor, t: Tensor) -> Tensor:
    """A field like `z`, or a number for each channel, without gaps: the library reads what it is told to."""
    if not (z.is_contiguous() and t.dtype == z.dtype == torch.float32 and t.shape in (z.shape, z.shape[1:])):
        raise ValueError(f"{t.dtype} of shape {tuple(t.shape)} for {z.dtype} of shape {tuple(z.shape)}")
    return t.contiguous()


def _sizes(z: Tensor) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    return ctypes.c_int64(z.shape[0]), ctypes.c_int64(z.shape[1])


def _threads(z: Tensor) -> ctypes.c_int64:
    """As many as have something to do."""
    return ctypes.c_int64(min(torch.get_num_threads(), 1 + z.numel() // 2**15))


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]
