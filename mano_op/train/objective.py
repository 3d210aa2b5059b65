"""The training loss: neuraloperator's, with the spacings and boundaries of the grid."""

from __future__ import annotations

from typing import Any, Literal

from neuralop.losses import H1Loss, LpLoss

from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.options import checked

_LEAST = 4  # points of an axis that does not wrap: neuraloperator's differences at its ends take so many


@checked
def training_loss(name: Literal["l2", "h1"], grid: Grid) -> Any:
    r"""The relative L2 or H1 loss of neuraloperator for fields on a grid, summed over samples and channels.

    .. math::

        \frac{\lVert \hat y - y \rVert}{\lVert y \rVert}, \qquad
        \lVert v \rVert_{L^2}^2 = \sum_i v_i^2, \qquad
        \lVert v \rVert_{H^1}^2 = \sum_i v_i^2 + \sum_d \sum_i (\partial_d v)_i^2

    The sums count every point once. Differences are central with the grid's spacings; at the ends of an axis
    that does not wrap they are one-sided, where neuraloperator's default would wrap them. There is no H1 loss
    on more than 3 axes, or with fewer than 4 points on an axis that does not wrap.

    Examples
    --------
    >>> import torch
    >>> loss = training_loss("l2", Grid.uniform((4,)))
    >>> loss(torch.full((2, 3, 4), 1.5), torch.ones(2, 3, 4))  # a half for each sample and channel
    tensor(3.)
    """
    # neuraloperator divides the "measure" of an axis by its number of points to get the spacing.
    lengths = [axis.spacing * axis.n for axis in grid]
    if name == "l2":
        return LpLoss(d=grid.n_dim, p=2, measure=lengths)
    few = [axis.name for axis in grid if not axis.periodic and axis.n < _LEAST]
    if few or grid.n_dim > 3:
        raise InputError(
            f"loss='h1' on the grid {grid}, expected at most 3 axes, and at least {_LEAST} points on those "
            "that do not wrap: use loss='l2', or another resolution"
        )
    wraps = {f"periodic_in_{name}": axis.periodic for name, axis in zip("xyz", grid, strict=False)}
    return H1Loss(d=grid.n_dim, measure=lengths, **wraps)
