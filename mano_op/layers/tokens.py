"""Fields and their points: the channels of a point lie side by side in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def along(factor: Tensor | float, dim: int, n_dim: int) -> Any:
    """Shape a factor for each position of a dimension, of `n_dim`, to be multiplied; a number stays one."""
    return factor.view(-1, *[1] * (n_dim - dim - 1)) if isinstance(factor, Tensor) else factor


def at_points(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of the last dimension to the channels of a field, ``(batch, channels, *points)``.

    Examples
    --------
    >>> import torch
    >>> at_points(torch.nn.Linear(2, 3), torch.zeros(1, 2, 8, 8)).shape
    torch.Size([1, 3, 8, 8])
    """
    return function(x.movedim(1, -1)).movedim(-1, 1)


def on_grid(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Turn points, ``(batch, channels, points)``, into a field on a grid.

    Examples
    --------
    A batch of one keeps its strides, by which torch tells that channels come last:

    >>> import torch
    >>> on_grid(torch.zeros(1, 64, 2).mT, (8, 8)).stride()
    (128, 1, 16, 2)
    """
    return x.mT.unflatten(1, shape).movedim(-1, 1)


def points_of(x: Tensor) -> Tensor:
    """Turn a field ``(batch, channels, *grid)`` into its points, ``(batch, channels, points)``."""
    return x.movedim(1, -1).flatten(1, -2).mT
