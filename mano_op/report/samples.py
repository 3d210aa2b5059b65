"""The samples that a report shows, with the best DPU beside direct inference."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mano_op.transfer.runs import positions
from mano_op.transfer.tables import dpu_input


def beside_dpu(fields: xr.Dataset, judged: xr.Dataset, key: str) -> xr.Dataset:
    """Put beside sample fields the prediction of each model's best DPU, as it was judged.

    Parameters
    ----------
    fields : Dataset
        At the resolution `key`, from `mano_op.transfer.evidence.Evidence`.
    judged : Dataset
        From `mano_op.transfer.significance.summary`; says which DPU is the best of a model and variable.
    key : str

    Returns
    -------
    Dataset
        ``input``, ``truth``, and by ``model``, labelled as in `judged`, the first seed's ``prediction`` and
        ``dpu``, and ``dpu_input`` (model, variable), the restriction: "" at the home resolution, where
        ``dpu`` is the direct prediction.
    """
    cells = judged.sel(resolution=key, metric=judged.attrs["metric"], variable=fields["variable"].values)
    labels = judged["label"].values.tolist()
    first = [at[0] for at in positions(fields).values()]
    prediction = _by_label(fields["prediction"].isel(run=first), labels)
    best = _by_label(cells["best_dpu"], labels)
    inputs = [
        ["" if key == run["home"].item() else dpu_input(run.isel(variable=v)) for v in range(best.shape[1])]
        for run in (cells.isel(run=i) for i in range(len(labels)))
    ]
    shown = fields.drop_dims(["run", "predictor"])
    return shown.assign(
        prediction=prediction.sel(predictor="direct", drop=True),
        dpu=prediction.sel(predictor=best).drop_vars("predictor").transpose("model", "variable", ...),
        dpu_input=(("model", "variable"), inputs),
    )


def _by_label(data: xr.DataArray, labels: list[str]) -> xr.DataArray:
    """An array by run as an array by model, with the coordinates of its other dimensions alone."""
    coords = {name: data[name].values for name in data.dims if name != "run"}
    dims = ["model" if name == "run" else name for name in data.dims]
    return xr.DataArray(data.values, coords | {"model": labels}, dims)


def sample_errors(results: xr.Dataset, key: str, variable: str, metric: str) -> NDArray[np.float64]:
    """Return direct errors (model, sample) at a resolution, means over the seeds."""
    errors = results["error"].sel(resolution=key, predictor="direct", variable=variable, metric=metric)
    by_run = errors.transpose("run", "sample").values
    return np.stack([by_run[at].mean(axis=0) for at in positions(results).values()])


def best_median_worst(errors: NDArray[np.float64]) -> dict[str, int]:
    """Find rows of samples by mean error over models; an error that is not finite is the largest.

    Parameters
    ----------
    errors : ndarray, shape (models, samples)

    Examples
    --------
    >>> best_median_worst(np.array([[0.3, 0.1, np.nan, 0.2, 0.4]]))
    {'Best sample': 1, 'Median sample': 0, 'Worst sample': 2}
    >>> best_median_worst(np.array([[0.3]]))
    {'Best sample': 0}
    """
    means = np.where(np.isfinite(errors), errors, np.inf).mean(axis=0)
    order = np.argsort(means, kind="stable").tolist()
    picks = {"Best sample": 0, "Median sample": (len(order) - 1) // 2, "Worst sample": len(order) - 1}
    chosen: dict[str, int] = {}
    for which, place in picks.items():
        if order[place] not in chosen.values():
            chosen[which] = order[place]
    return chosen
