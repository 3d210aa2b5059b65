"""Conditions for the compiled kernels: a CPU, eager execution, no transforms, no hooks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def on_cpu_eagerly(t: Tensor) -> bool:
    """Whether a tensor is on a CPU and its operations run eagerly, neither traced nor transformed.

    Examples
    --------
    >>> on_cpu_eagerly(torch.zeros(1)), on_cpu_eagerly(torch.zeros(1, device="meta"))
    (True, False)
    """
    return (
        t.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def is_only(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module is exactly of one of some kinds, without hooks or wrapping, which kernels leave out.

    Examples
    --------
    >>> linear = nn.Linear(2, 2)
    >>> is_only(linear, nn.Linear), is_only(nn.utils.parametrizations.weight_norm(linear), nn.Linear)
    (True, False)
    """
    return type(module) in kinds and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)  # replaced for this one alone
        or nn.modules.module._has_any_global_hook()
    )
