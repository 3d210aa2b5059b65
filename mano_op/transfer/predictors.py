r"""The ways to a prediction on a new grid: directly, by way of the training grid, and knowing less or more.

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

How fields are restricted and interpolated is in `mano_op.transfer.baselines`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mano_op.boundary import Boundary, ends_by_axis
from mano_op.data.channels import Channels
from mano_op.data.dataset import FieldDataset
from mano_op.data.store import FieldStore
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.labels import variable_of
from mano_op.resample import nests
from mano_op.runs import Run
from mano_op.transfer.baselines import interpolate, restrict
from mano_op.transfer.metrics import relative_l2
from mano_op.transfer.predict import predict
from mano_op.transfer.verdict import DPU

Ends = Mapping[str, dict[str, tuple[float | None, float | None]]]
PREDICTORS = ("direct", *DPU, "floor", "mean")


def by_predictor(
    run: Run,
    store: FieldStore,
    direct: Tensor,
    x: Tensor,
    exact: Tensor,
    grid: Grid,
    trained: Grid,
    ends: Ends,
    steps: int = 1,
) -> tuple[dict[str, Tensor], Tensor]:
    r"""What each of `PREDICTORS` makes of a batch, and how far the model is from commuting with refinement.

    The second is the discretisation mismatch: with :math:`G_n` the model on the grid n, and D taking
    fields from there to the training grid m, injected where the grids nest and interpolated elsewhere,

    .. math:: \lVert D\, G_n(a) - G_m(D a) \rVert / \lVert G_m(D a) \rVert

    by the quadrature of m. It needs no truth: an operator that is the same on all grids has none beyond what
    restriction loses.

    Parameters
    ----------
    run : Run
    store : FieldStore
        For the means of its training split.
    direct : Tensor
        The model's own prediction on `grid`.
    x : Tensor
        The inputs, on `grid`.
    exact : Tensor
        The true outputs, on `trained`.
    grid, trained : Grid
    ends : mapping
        For each output channel, in order, its known boundary values.
    steps : int
        Of a rollout, whose outputs are the channels; by way of the training grid all of its steps are there.

    Returns
    -------
    predictions : dict of str to Tensor
        Each of the shape of `direct`.
    mismatch : Tensor
        Shape ``(batch, channels)``.
    """

    def coarse(given: Tensor) -> Tensor:
        # On the training grid nothing is restricted, and the prediction is the one that is there.
        return direct if given is x else predict(run, given, steps)

    injected = coarse(restrict(x, grid, trained, "injection"))
    nested = nests(grid, trained)
    interpolated = injected if nested else coarse(interpolate(x, grid, trained))
    averaged = coarse(restrict(x, grid, trained, "mean"))

    def up(outputs: Tensor) -> Tensor:
        return interpolate_outputs(outputs, trained, grid, ends)

    # What the processor makes of zero is its mean, or under a transform what that is the mean of.
    channels = len(run.processor.outputs)
    zero, _ = run.processor.postprocess(torch.zeros(1, channels, 1, device=run.processor.device), {})
    means = torch.tensor(
        [
            store.statistics.get(variable_of(label), {"mean": middle})["mean"]  # "@" tells the time
            for label, middle in zip(ends, zero.flatten().tolist() * steps, strict=True)
        ]
    )
    predictions = {
        "direct": direct,
        "dpu_injection": up(injected),
        "dpu_mean": up(averaged),
        "dpu_interpolation": up(interpolated),
        "floor": up(exact),
        "mean": means.reshape(1, -1, *[1] * grid.n_dim).expand_as(direct),
    }
    down = interpolate_outputs(direct, grid, trained, ends)
    return predictions, relative_l2(down, interpolated, trained)


def exact_outputs(
    data: FieldDataset, level: Grid, outputs: Tensor, rows: slice, times: Mapping[str, Any], ends: Ends
) -> Tensor:
    """The true outputs of some samples of a split on another level, from those on the data set's grid."""
    key = data.store.key(level)
    if nests(data.grid, level) or data.split not in data.store.layout.held[key]:
        return interpolate_outputs(outputs, data.grid, level, ends)
    there = FieldDataset(data.store, key, data.split, **times, cache_bytes=0)
    return torch.stack([sample["y"] for sample in there.__getitems__(range(rows.start, rows.stop))])


def interpolate_outputs(outputs: Tensor, source: Grid, target: Grid, ends: Ends) -> Tensor:
    """Every output with the boundary values that are known of it; channels are in the order of `ends`."""
    channels = outputs.split(1, dim=1)
    known = zip(channels, ends.values(), strict=True)
    return torch.cat([interpolate(channel, source, target, its) for channel, its in known], dim=1)


def known_ends(
    store: FieldStore, channels: Channels, grid: Grid, given: Mapping[str, Boundary | None]
) -> Ends:
    """The known ends of each output channel, as given or as the store has them.

    Raises
    ------
    InputError
        If values are given for what is no output.
    """
    if not set(given) <= set(store.outputs):
        raise InputError(
            f"boundary={dict(given)}: expected values of outputs, which here are {', '.join(store.outputs)}"
        )
    stated = {variable.name: variable.boundary_value for variable in store.variables}
    known = {**stated, **given}
    return {channel.label: ends_by_axis(grid, known[channel.variable]) for channel in channels.y}
