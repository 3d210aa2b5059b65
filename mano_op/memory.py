"""Peak memory of a forward pass or a training step."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mano_op.layers.operator import KERNELS
from mano_op.registry import evaluating


def peak_bytes(model: nn.Module, x: Tensor) -> int:
    """Measure the peak memory of the tensors made in one forward pass, in bytes; see `peak_bytes_of`.

    The model runs in evaluation mode, without gradients, on an input ``(batch, in_channels, *grid)``.

    Examples
    --------
    Two hidden fields of 4 channels live at once:

    >>> x = torch.zeros(1, 1, 8, 8)
    >>> peak_bytes(nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU()), x) == 2 * 4 * 8 * 8 * 4
    True
    """
    with evaluating(model):
        return peak_bytes_of(lambda: model(x), x.device)


def peak_bytes_of(run: Callable[[], Any], device: str | torch.device = "cpu") -> int:
    """Measure the peak memory of the tensors made by a function on a device, in bytes.

    On a GPU the allocator reports it. On a CPU the tensors that operations return are counted until they are
    freed, in the backward pass too; the workspace of an operation, such as a Fourier transform, is not.

    Examples
    --------
    A training step keeps the hidden field for the backward pass:

    >>> x, weight = torch.ones(1000), torch.ones(1000, requires_grad=True)
    >>> peak_bytes_of(lambda: (x * weight).relu().sum().backward()) >= 2 * 4 * 1000
    True
    """
    device = torch.device(device)
    if device.type != "cuda":
        with _Live() as live:
            run()
        return live.peak
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


class _Live(TorchDispatchMode):
    """Counts the storages that operations return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Inputs existed before or are counted already; the output may be a view of them.
        inputs = {id(storage) for storage in _storages((args, kwargs))}
        if func in KERNELS:  # what is made in them counts too
            with self:
                return KERNELS[func](*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if id(storage) not in inputs and id(storage) not in self._sizes:
                self._sizes[id(storage)] = storage.nbytes()
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._freed, id(storage)).atexit = False
        return out

    def _freed(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
