"""Calls of the compiled library: conditions, handle, addresses."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from mano_op.layers.eager import on_cpu_eagerly
from mano_op.layers.native.library import library


def may_call(t: Tensor) -> bool:
    """Whether the library may be used on a tensor: in single precision, eagerly on a CPU, if there is one.

    Not under a dispatch mode of torch, such as a counter of operations, unless it has an attribute
    ``only_tensors``: the tensors that the library writes to are made by torch.
    """
    return (
        t.dtype == torch.float32
        and on_cpu_eagerly(t)
        and all(getattr(mode, "only_tensors", False) for mode in _get_current_dispatch_mode_stack())
        and library() is not None
    )


def loaded() -> ctypes.CDLL:
    """Return the library, where `may_call` is true."""
    lib = library()
    assert lib is not None
    return lib


def pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    """Return the addresses of tensors, null for None. The tensors have to outlive the call."""
    return [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]
