"""When code of our own may stand in for operations of torch: where nothing but a CPU looks at them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def on_cpu_eagerly(t: Tensor) -> bool:
    """Whether operations on a tensor are carried out as they come, on a CPU, and nothing traces them.

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
    """Whether a module is exactly one of some kinds, and calling it does nothing else: no hooks, no wrapping.

    What stands in for its operations would leave these out.

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
