"""The samples of a report: which ones are shown, where, and under what heading."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mano_op.data.store import FieldStore
from mano_op.labels import variable_of
from mano_op.report.coarse import with_coarse
from mano_op.report.page import figure, heading
from mano_op.report.panels import sample_panels
from mano_op.report.spectra import spectra
from mano_op.report.style import data_uri
from mano_op.runs import Run
from mano_op.transfer.predict import sample_fields
from mano_op.transfer.series import flat, trained_on

_FOR_SPECTRA = 50
_COLOURS = " The fields of a sample have the colours of its truth, and its errors share a scale."


def samples(results: xr.Dataset, judged: xr.Dataset, runs: Mapping[str, Run], store: FieldStore) -> list[str]:
    """For each variable a good, a middling and a bad sample, at the training resolutions and the finest."""
    results, judged = flat(results), flat(judged)
    keys = judged["resolution"].values.tolist()
    wanted = {*judged["training_resolution"].values.tolist(), keys[-1]}
    units = {one.name: "" if one.units == "1" else f" [{one.units}]" for one in store.variables}
    parts = [heading("Samples")]
    for key in (key for key in keys if key in wanted):
        grid = store.grids[key]
        size = " \N{MULTIPLICATION SIGN} ".join(map(str, grid.shape))
        for variable in judged["variable"].values.tolist():
            of = results["error"].sel(resolution=key, predictor="direct", variable=variable)
            rows = best_median_worst(of.transpose("model", "sample").values)
            fields = _fields(runs, store, key, list(rows.values()), judged)
            fields = with_coarse(fields, judged, runs, store, key)
            channels = [*fields["input_variable"].values.tolist(), *fields["variable"].values.tolist()]
            names = {channel: channel + units[variable_of(channel)] for channel in channels}
            captions = [f"{which}, no. {of['sample'].values[row]}" for which, row in rows.items()]
            picture = sample_panels(fields, grid, variable, captions, names)
            parts += [
                heading(f"{variable} at {key}, {size} points{_trained_at(judged, key)}", 3),
                figure(
                    data_uri(picture, "png"),
                    f"{variable} at {key}: the samples with the smallest, the median and the largest direct "
                    "error, averaged over the models. Beside the direct prediction of a model stands that of "
                    "its best DPU, if it was trained elsewhere, each with its relative L2 error for the "
                    f"sample.{_COLOURS if grid.n_dim > 1 else ''}",
                ),
            ]
    return parts


def spectra_of_samples(judged: xr.Dataset, runs: Mapping[str, Run], store: FieldStore) -> list[str]:
    """For each variable the energies by wavenumber at the finest level, over some samples."""
    judged = flat(judged)
    key = judged["resolution"].values.tolist()[-1]
    rows = list(range(min(judged.attrs["samples"], _FOR_SPECTRA)))
    fields = with_coarse(_fields(runs, store, key, rows, judged), judged, runs, store, key)
    homes = judged["training_resolution"].values.tolist()
    trained = {model: store.grids[home] for model, home in zip(runs, homes, strict=True)}
    return [
        heading("Spectra"),
        *(
            figure(
                data_uri(spectra(fields, store.grids[key], variable, trained), "svg"),
                f"Energy of {variable} at {key} by wavenumber, mean over {len(rows)} samples, without the "
                "mean of the field: Fourier modes along axes that wrap, cosines along others. Beyond the "
                "training Nyquist wavenumber nothing was met in training; where the residual has as much "
                "energy as the truth, the prediction is worth no more than leaving that wavenumber out.",
            )
            for variable in judged["variable"].values.tolist()
        ),
    ]


def _fields(
    runs: Mapping[str, Run], store: FieldStore, key: str, rows: list[int], judged: xr.Dataset
) -> xr.Dataset:
    """Samples with their predictions, of the variables and steps that are shown."""
    split, steps = judged.attrs["split"], judged.attrs.get("rollout", 1)
    fields = sample_fields(runs, store, key, rows, split=split, steps=steps)
    return fields.sel(variable=judged["variable"].values)


def _trained_at(judged: xr.Dataset, key: str) -> str:
    here = [
        model
        for model, where in zip(judged["model"].values, judged["train_resolution"].values, strict=True)
        if key in trained_on(str(where))
    ]
    return f" ({', '.join(here)} trained here)" if here else ""


def best_median_worst(errors: NDArray[np.float64]) -> dict[str, int]:
    """Rows of samples, by mean error over models; an error that is not finite is the largest.

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
