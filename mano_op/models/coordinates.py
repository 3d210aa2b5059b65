"""Coordinates of the points of a grid, as channels beside those of a field."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mano_op.grid import Registration


def grid_points(
    shape: Sequence[int], registration: Registration, device: torch.device | None = None
) -> list[Tensor]:
    """Return the coordinates of each axis of a grid over the unit box, in double precision.

    Examples
    --------
    >>> grid_points((2, 4), "cell")
    [tensor([0.2500, 0.7500], dtype=torch.float64),
     tensor([0.1250, 0.3750, 0.6250, 0.8750], dtype=torch.float64)]
    """
    first, ends = 0.5 * (registration == "cell"), int(registration == "node_both")
    return [(torch.arange(n, device=device).double() + first) / (n - ends) for n in shape]


def coordinate_channels(points: Sequence[Tensor], periodic: Sequence[bool]) -> Tensor:
    """Return the coordinates of all points, of an axis that wraps sine and cosine: ``(channels, *grid)``.

    Examples
    --------
    >>> coordinate_channels([torch.tensor([0.0, 0.5])], [False])
    tensor([[0.0000, 0.5000]])
    >>> coordinate_channels([torch.tensor([0.0, 0.5])], [True]).shape
    torch.Size([2, 2])
    """
    channels = []
    for coordinate, wraps in zip(torch.meshgrid(*points, indexing="ij"), periodic, strict=True):
        turn = 2 * torch.pi * coordinate
        channels += [turn.sin(), turn.cos()] if wraps else [coordinate]
    return torch.stack(channels)


def with_coordinates(x: Tensor, points: Sequence[Tensor], periodic: Sequence[bool]) -> Tensor:
    """Append the coordinates of the points to the channels of a field ``(batch, channels, *grid)``."""
    channels = coordinate_channels(points, periodic).to(x)
    return torch.cat([x, channels.expand(x.shape[0], *channels.shape)], dim=1)
