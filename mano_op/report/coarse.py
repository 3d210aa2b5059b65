"""What the best DPU makes of single samples, to stand beside the direct predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
import xarray as xr
from torch import Tensor

from mano_op.data.store import FieldStore
from mano_op.grid import Grid
from mano_op.runs import Run
from mano_op.transfer.baselines import interpolate, restrict
from mano_op.transfer.predict import predict
from mano_op.transfer.series import flat
from mano_op.transfer.tables import dpu_input


def with_coarse(
    fields: xr.Dataset, judged: xr.Dataset, runs: Mapping[str, Run], store: FieldStore, key: str
) -> xr.Dataset:
    """Samples with the prediction of each model's best DPU, as it was judged.

    Parameters
    ----------
    fields : Dataset
        From `mano_op.transfer.predict.sample_fields`, of the models in `runs`.
    judged : Dataset
        From `mano_op.transfer.verdict.summary`; says which DPU is the best of a model and variable.
    runs : mapping of str to Run
        By the labels of their series.
    store : FieldStore
    key : str
        The level of `fields`.

    Returns
    -------
    Dataset
        `fields` with ``dpu``, of the shape of ``prediction``, and ``dpu_input`` (model, variable), which
        names how the input was restricted. Where a model was trained at this level that is "", and its
        ``dpu`` is its direct prediction.
    """
    judged = flat(judged)
    grid, ends = store.grids[key], json.loads(judged.attrs["boundary"])
    variables = fields["variable"].values.tolist()
    steps = judged.attrs.get("rollout", 1)
    labels = list(ends)  # of the channels of a prediction
    x = torch.from_numpy(fields["input"].transpose("sample", "input_variable", ...).values)
    made = fields["prediction"].copy()
    inputs = [[""] * len(variables) for _ in runs]
    predicted: dict[tuple[str, str], Tensor] = {}
    for m, (model, run) in enumerate(runs.items()):
        trained = judged["training_resolution"].sel(model=model).item()
        if trained == key:
            continue
        coarse = store.grids[trained]
        for v, variable in enumerate(variables):
            cell = judged.sel(model=model, resolution=key, variable=variable)
            at, best = labels.index(variable), cell["best_dpu"].item()
            if (model, best) not in predicted:
                predicted[model, best] = predict(run, _restricted(x, grid, coarse, best), steps)
            channel = predicted[model, best][:, at : at + 1]
            made[m, v] = interpolate(channel, coarse, grid, ends[variable])[:, 0].numpy()
            inputs[m][v] = dpu_input(cell)
    return fields.assign(dpu=made, dpu_input=(("model", "variable"), inputs))


def _restricted(x: Tensor, grid: Grid, trained: Grid, predictor: str) -> Tensor:
    """The input on the training grid, as a predictor of `mano_op.transfer.verdict.DPU` has it."""
    if predictor == "dpu_interpolation":
        return interpolate(x, grid, trained)
    return restrict(x, grid, trained, "mean" if predictor == "dpu_mean" else "injection")
