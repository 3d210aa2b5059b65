r"""Relative errors that mean the same on every grid.

A sum over points is an integral only up to the spacing and the ends. Here norms are quadratures with the
weights of the grid, :math:`\lVert v \rVert^2 = \sum_i w_i v_i^2 \approx \int v^2`, so that a fixed error has
a fixed size however finely it is sampled. With e the prediction minus the truth u:

======================  ==============================================================================
metric                  is
======================  ==============================================================================
``relative_l2``         :math:`\lVert e \rVert / \lVert u \rVert`
``relative_l2_points``  the same with every point counted once, as neuraloperator's ``LpLoss`` does
``vrmse``               :math:`\lVert e \rVert / \lVert u - \bar u \rVert`: 1 for the mean of the field
``linf``                :math:`\max |e| / \max |u|`
``relative_h1``         :math:`\lVert e \rVert_1 / \lVert u \rVert_1` with
                        :math:`\lVert v \rVert_1^2 = \lVert v \rVert^2 + \sum_d \lVert \partial_d v \rVert^2`
``boundary_band``       ``relative_l2`` within a fixed distance of the ends of axes that do not wrap
``spectral_low``,       the parts of e that the training grid can and cannot carry, over
``spectral_high``       :math:`\lVert u \rVert`; see `mano_op.transfer.spectral`
``mismatch``            see `mano_op.transfer.predictors.by_predictor`
======================  ==============================================================================

Each is one number for each sample and channel, in float64.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mano_op.grid import Axis, Grid
from mano_op.transfer.spectral import spectral_split

METRIC_NAMES = {
    "relative_l2": "relative L2",
    "relative_l2_points": "relative L2, by points",
    "vrmse": "VRMSE",
    "linf": "relative L\N{INFINITY}",
    "relative_h1": "relative H1",
    "boundary_band": "near boundaries",
    "spectral_low": "below training Nyquist",
    "spectral_high": "above it",
    "mismatch": "mismatch",
}
METRICS = tuple(METRIC_NAMES)
BAND = 2  # spacings of the training grid


def relative_l2(predicted: Tensor, true: Tensor, grid: Grid) -> Tensor:
    """Compute the error in L2, by the grid's quadrature, over the norm of the truth.

    Of fields of shape ``(..., *grid.shape)``, as all metrics; the result has shape ``(...)``.

    Examples
    --------
    >>> grid = Grid.uniform((2,), registration="cell")
    >>> relative_l2(torch.tensor([[3.0, 3.0]]), torch.tensor([[3.0, 4.0]]), grid)
    tensor([0.2000], dtype=torch.float64)
    """
    weights = torch.from_numpy(grid.weights)
    return _norm(_error(predicted, true), weights) / _norm(true.double(), weights)


def relative_l2_points(predicted: Tensor, true: Tensor, grid: Grid) -> Tensor:
    """Compute the error in l2 over the norm of the truth, by points: neuraloperator's ``LpLoss.rel``.

    Examples
    --------
    >>> relative_l2_points(torch.tensor([[3.0, 3.0]]), torch.tensor([[3.0, 4.0]]), Grid.uniform((2,)))
    tensor([0.2000], dtype=torch.float64)
    """
    error, truth = (
        torch.linalg.vector_norm(f, dim=_dims(grid)) for f in (_error(predicted, true), true.double())
    )
    return error / truth


def vrmse(predicted: Tensor, true: Tensor, grid: Grid) -> Tensor:
    """Compute the error in L2 over the spread of the truth about its own mean; infinite for a constant truth.

    Examples
    --------
    >>> truth = torch.tensor([[1.0, 3.0]])
    >>> vrmse(torch.full((1, 2), 2.0), truth, Grid.uniform((2,), registration="cell"))
    tensor([1.], dtype=torch.float64)
    """
    weights = torch.from_numpy(grid.weights)
    mean = (weights * true.double()).sum(_dims(grid), keepdim=True) / weights.sum()
    return _norm(_error(predicted, true), weights) / _norm(mean - true.double(), weights)


def linf(predicted: Tensor, true: Tensor, grid: Grid) -> Tensor:
    """Compute the largest error over the largest value of the truth, at the points of the grid.

    Examples
    --------
    >>> linf(torch.tensor([[3.0, 3.0]]), torch.tensor([[3.0, 4.0]]), Grid.uniform((2,)))
    tensor([0.2500], dtype=torch.float64)
    """
    return _error(predicted, true).abs().amax(_dims(grid)) / true.double().abs().amax(_dims(grid))


def relative_h1(predicted: Tensor, true: Tensor, grid: Grid) -> Tensor:
    """Compute the error in H1 over the H1 norm of the truth, with the derivatives that the axes allow.

    Differences are central; at the ends of an axis that does not wrap they are one-sided and of second
    order, and on one that wraps they go around. Lengths are those of the grid, so the weight of the
    derivatives depends on the unit of length. NaN where an axis that does not wrap has fewer than 3 points.

    Examples
    --------
    >>> grid = Grid.uniform((5,), registration="node_both")
    >>> x = torch.tensor(grid.points[0])  # the error is x / 10 and has the slope 1 / 10
    >>> relative_h1(1.1 * x, x, grid)
    tensor(0.1000, dtype=torch.float64)
    """
    shape = predicted.shape[: -grid.n_dim]
    if any(axis.n < 3 and not axis.periodic for axis in grid):
        return torch.full(shape, torch.nan, dtype=torch.float64)
    return _h1_norm(_error(predicted, true), grid) / _h1_norm(true.double(), grid)


def boundary_band(predicted: Tensor, true: Tensor, grid: Grid, trained: Grid) -> Tensor:
    """Compute the error in L2 over the norm of the truth, both near the ends of the axes that do not wrap.

    The band reaches two spacings of the training grid, `trained`, from each end, whatever the grid is; a
    point counts with the part of its interval that lies in it. NaN where all axes wrap.

    Examples
    --------
    >>> grid = Grid.uniform((8,), registration="cell")
    >>> truth, off = torch.ones(8), torch.tensor([0.1, 0.1, 9, 9, 9, 9, 0.1, 0.1])
    >>> boundary_band(truth + off, truth, grid, grid)
    tensor(0.1000, dtype=torch.float64)
    """
    if all(axis.periodic for axis in grid):
        return torch.full(predicted.shape[: -grid.n_dim], torch.nan, dtype=torch.float64)
    band = torch.from_numpy(_band(grid, trained))
    return _norm(_error(predicted, true), band) / _norm(true.double(), band)


def all_metrics(predicted: Tensor, true: Tensor, grid: Grid, trained: Grid) -> Tensor:
    """Compute all `METRICS`, ``(len(METRICS), batch, channels)``; ``mismatch``, which has no truth, is NaN.

    The fields have shape ``(batch, channels, *grid.shape)``, and the model was trained on the grid `trained`.
    """
    errors = [metric(predicted, true, grid) for metric in (relative_l2, relative_l2_points, vrmse, linf)]
    errors += [relative_h1(predicted, true, grid), boundary_band(predicted, true, grid, trained)]
    errors += spectral_split(predicted, true, grid, trained)
    return torch.stack([*errors, torch.full_like(errors[0], torch.nan)])


def _dims(grid: Grid) -> tuple[int, ...]:
    return tuple(range(-grid.n_dim, 0))


def _error(predicted: Tensor, true: Tensor) -> Tensor:
    return predicted.double() - true.double()


def _norm(values: Tensor, weights: Tensor) -> Tensor:
    return (weights * values**2).sum(tuple(range(-weights.ndim, 0))).sqrt()


def _h1_norm(values: Tensor, grid: Grid) -> Tensor:
    slopes = [_derivative(values, axis, d - grid.n_dim) for d, axis in enumerate(grid)]
    weights = torch.from_numpy(grid.weights)
    first, *squares = (_norm(part, weights) ** 2 for part in (values, *slopes))
    return sum(squares, first).sqrt()


def _derivative(values: Tensor, axis: Axis, dim: int) -> Tensor:
    """Derivative along one dimension, of second order at every point."""
    if axis.periodic:
        return (values.roll(-1, dim) - values.roll(1, dim)) / (2 * axis.spacing)
    (slope,) = torch.gradient(values, spacing=axis.spacing, dim=dim, edge_order=2)
    return slope


@lru_cache(maxsize=64)
def _band(grid: Grid, trained: Grid) -> NDArray[np.float64]:
    """Weights of the points in the band: all weights less those inside along every axis."""
    inside = np.ones(())
    for axis, coarse in zip(grid, trained, strict=True):
        near = np.zeros(axis.n) if axis.periodic else _near_ends(axis, BAND * coarse.spacing)
        inside = np.multiply.outer(inside, axis.weights - near)
    weights: NDArray[np.float64] = grid.weights - inside
    return weights


def _near_ends(axis: Axis, width: float) -> NDArray[np.float64]:
    """The part of the weight of each point within a distance of the ends."""
    left, right = axis.bounds.T
    # On a domain of less than two widths all of it counts, and once.
    inner = np.maximum(np.minimum(right, axis.stop - width) - np.maximum(left, axis.start + width), 0)
    near = (right - left) - inner
    if axis.registration == "node" and axis.n > 1:  # as in `Axis.weights`: the last two points' line
        moved = min(axis.spacing / 2, near[-2])
        near[-2:] += -moved, moved
    return np.minimum(near, axis.weights)
