"""What all calls of the compiled library have in common: whether they may be made, and how."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from mano_op.layers.eager import on_cpu_eagerly
from mano_op.layers.native.library import library


def may_call(t: Tensor) -> bool:
    """Whether the library may be used on a tensor: eagerly on a CPU, in single precision, if there is one.

    Not while a mode of torch looks on at the operations, as counters of operations do. One that asks for
    tensors alone may say so by an attribute ``only_tensors``: those the library writes to are made by torch.
    """
    return (
        t.dtype == torch.float32
        and on_cpu_eagerly(t)
        and all(getattr(mode, "only_tensors", False) for mode in _get_current_dispatch_mode_stack())
        and library() is not None
    )


def loaded() -> ctypes.CDLL:
    """The library, where `may_call` said that there is one."""
    lib = library()
    assert lib is not None
    return lib


def pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    """The addresses of tensors, null for None. They have to outlive the call."""
    return [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]
