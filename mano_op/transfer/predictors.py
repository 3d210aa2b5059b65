r"""Predictors on a new grid, in physical units: direct, by way of the training grid, the floor and the mean.

=====================  =============================================================================
predictor              prediction on a grid :math:`n`, by a model trained on the grid :math:`m`
=====================  =============================================================================
``direct``             the model, given the input on n
``dpu_injection``      "down, predict, up": restrict the input to m, predict, interpolate to n. The input
                       keeps its values at the shared points, or the nearest where grids do not nest
``dpu_mean``           the same with the input's means over the control volumes of m
``dpu_interpolation``  the same with the input interpolated to m: another prediction only where grids
                       do not nest, and there the better one for a smooth input
``floor``              the true output on m, interpolated to n likewise: what DPU makes of a perfect coarse
                       prediction. On m it is the values at the shared points; where grids do not nest,
                       the store's own, or those interpolated from n where the store has none
``mean``               the mean of the variable over the training split, everywhere: the store's, or
                       the processor's where the store has no such split
=====================  =============================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mano_op.boundary import Boundary, ends_by_axis
from mano_op.cost import count_flops
from mano_op.data.channels import Channels
from mano_op.data.dataset import FieldDataset, collate
from mano_op.data.store import FieldStore
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.labels import variable_of
from mano_op.memory import peak_bytes
from mano_op.prediction import predict
from mano_op.resample import interpolate, nests, resample
from mano_op.transfer.metrics import relative_l2
from mano_op.transfer.runs import JudgedRun
from mano_op.transfer.significance import DPU

Ends = Mapping[str, dict[str, tuple[float | None, float | None]]]
KEPT = ("direct", *DPU)  # as evidence
PREDICTORS = (*KEPT, "floor", "mean")


@contextmanager
def naming(run: JudgedRun, key: str) -> Iterator[None]:
    """Name the run and the resolution in any error of a prediction."""
    try:
        yield
    except Exception as error:
        message = f"{run.name} cannot predict at {key}: {str(error).rstrip('.')}. "
        raise InputError(f"{message}Leave out the model or the resolution") from error


def cost_on(run: JudgedRun, key: str, grid: Grid) -> tuple[int, int]:
    """Predict a sample on a grid, and return its floating point operations and peak bytes of tensors."""
    x = torch.zeros(1, len(run.processor.inputs), *grid.shape)
    with naming(run, key):
        predict(run.network, run.processor, x)
        x = x.to(run.processor.device)
        return count_flops(run.network, x), peak_bytes(run.network, x)


def sample_numbers(data: FieldDataset) -> NDArray[np.int64]:
    """Number the samples of a data set as the store does; runs of times are numbered 0, 1, ..."""
    return np.arange(len(data)) if len(data.channels.starts) > 1 else group_numbers(data)


def group_numbers(data: FieldDataset) -> NDArray[np.int64]:
    """The store's number of each sample of a data set; the runs of times of one sample share it."""
    rows = data.store.layout.rows(data.key, data.split)
    return np.repeat(data.store.layout.samples(data.key)[rows], len(data.channels.starts))


def by_predictor(
    run: JudgedRun,
    statistics: Mapping[str, Mapping[str, float]],
    direct: Tensor,
    x: Tensor,
    exact: Tensor,
    grid: Grid,
    ends: Ends,
    steps: int = 1,
) -> tuple[dict[str, Tensor], Tensor]:
    r"""Predict a batch by each of `PREDICTORS`, and compute the discretisation mismatch of the model.

    With :math:`G_n` the model on the grid n, and D the restriction from n to the training grid m, by
    injection where the grids nest and by interpolation elsewhere, the mismatch is

    .. math:: \lVert D\, G_n(a) - G_m(D a) \rVert / \lVert G_m(D a) \rVert

    by the quadrature of m. It needs no truth. An operator that is the same on all grids has no mismatch
    beyond the loss of the restriction.

    `direct` is the model's own prediction on `grid`, `x` the inputs there, `exact` the true outputs on the
    training grid; `statistics` are those of the store's training split, by variable, empty if it has none.
    DPU takes all `steps` of a rollout on the training grid. The predictions have the shape of `direct`, the
    mismatch is ``(batch, channels)``.
    """
    trained, nested = run.grid, nests(grid, run.grid)

    def coarse(restricted: Tensor) -> Tensor:
        # On the training grid nothing is restricted: the prediction is the direct one.
        return direct if restricted is x else predict(run.network, run.processor, restricted, steps)

    injected = coarse(resample(x, grid, trained, "injection" if nested else "nearest"))
    interpolated = injected if nested else coarse(interpolate(x, grid, trained))
    averaged = coarse(resample(x, grid, trained, "mean"))
    coarse_outputs = dict(zip((*DPU, "floor"), (injected, averaged, interpolated, exact), strict=True))
    # In units, zero is the processor's mean, or the inverse transform of the mean.
    zero = torch.zeros(1, len(run.processor.outputs), 1, device=run.processor.device)
    own = run.processor.postprocess(zero, {})[0].flatten().tolist() * steps
    means = [
        statistics.get(variable_of(label), {"mean": mean})["mean"]
        for label, mean in zip(ends, own, strict=True)
    ]
    predictions = {
        "direct": direct,
        **{name: interpolate_outputs(y, trained, grid, ends) for name, y in coarse_outputs.items()},
        "mean": torch.tensor(means).reshape(1, -1, *[1] * grid.n_dim).expand_as(direct),
    }
    down = interpolate_outputs(direct, grid, trained, ends)
    return predictions, relative_l2(down, interpolated, trained)


def averages_states(run: JudgedRun) -> bool:
    """Whether a run steps in time from averages of a finer input, which are not the state itself."""
    averages = (getattr(module, "restriction", "") == "average" for module in run.network.modules())
    return "time_steps" in run.source.times and any(averages)


def averaging_error(x: Tensor, grid: Grid, trained: Grid) -> Tensor:
    """Compute the relative L2 errors of averages over spacings of the training grid, ``(batch,)``.

    Averages are interpolated to the grid. Where it is not finer nothing is averaged: the errors are 0.

    Examples
    --------
    >>> x = torch.tensor([[[1.0, -1.0] * 4]])
    >>> averaging_error(x, Grid.uniform((8,), periodic=True), Grid.uniform((4,), periodic=True))
    tensor([1.], dtype=torch.float64)
    """
    if math.prod(grid.shape) <= math.prod(trained.shape):
        return torch.zeros(len(x), dtype=torch.float64)
    averaged = interpolate(resample(x, grid, trained, "mean"), trained, grid)
    return relative_l2(averaged, x, grid).mean(1)


def exact_outputs(
    data: Mapping[str, FieldDataset],
    key: str,
    home: str,
    outputs: Tensor,
    rows: slice,
    grid: Grid,
    ends: Ends,
) -> Tensor:
    """Return the true outputs of a batch on the home grid, from `outputs` at the resolution `key`.

    `data` has the resolutions that hold the split.
    """
    if nests(data[key].grid, grid) or home not in data:
        return interpolate_outputs(outputs, data[key].grid, grid, ends)
    exact: Tensor = collate(data[home].__getitems__(range(rows.start, rows.stop)))["y"]
    return exact


def interpolate_outputs(outputs: Tensor, source: Grid, target: Grid, ends: Ends) -> Tensor:
    """Interpolate every output with its known boundary values, in the order of `ends`."""
    channels = zip(outputs.split(1, dim=1), ends.values(), strict=True)
    return torch.cat([interpolate(channel, source, target, known) for channel, known in channels], dim=1)


def known_ends(
    store: FieldStore, channels: Channels, grid: Grid, boundary: Mapping[str, Boundary | None]
) -> Ends:
    """Return the known boundary values of each output channel: those in `boundary`, else the store's."""
    if not set(boundary) <= set(store.outputs):
        names = ", ".join(store.outputs)
        raise InputError(f"boundary={dict(boundary)}: expected values of outputs, which here are {names}")
    known = {variable.name: variable.boundary_value for variable in store.variables} | dict(boundary)
    return {channel.label: ends_by_axis(grid, known[channel.variable]) for channel in channels.y}
