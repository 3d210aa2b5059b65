"""Energies by wavenumber: of the truth, of the predictions, and of what is left between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import NDArray

from mano_op.grid import Grid
from mano_op.report.style import FAINT, INK, LINES, colours, line_handle, log_axis, model_handles, style
from mano_op.transfer.spectral import energy_spectrum, nyquist

_NYQUIST: dict[str, Any] = {"color": FAINT, "ls": (0, (1, 1.5))}


def spectra(fields: xr.Dataset, grid: Grid, variable: str, trained: Mapping[str, Grid]) -> Figure:
    """Draw the mean energy by wavenumber, and the energy of the residual over that of the truth.

    A vertical line marks the Nyquist wavenumber of each training grid that is coarser than `grid`: to its
    right is what the model could not have met in training, and what DPU cannot have.

    Parameters
    ----------
    fields : Dataset
        From `mano_op.report.samples.beside_dpu`.
    grid : Grid
    variable : str
    trained : mapping of str to Grid
        The home grid of each model in `fields`.
    """
    fields = fields.sel(variable=variable)
    true = fields["truth"].values
    k, energy = _mean(true, grid)
    shown = colours(fields["model"].values.tolist())
    with style():
        figure = Figure(figsize=(7.6, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(k[1:], _positive(energy)[1:], color=INK, lw=3, alpha=0.35)
        for model, colour in shown.items():
            by_model = fields.sel(model=model)
            kinds = {"direct": "prediction"} | ({"best DPU": "dpu"} if by_model["dpu_input"].item() else {})
            for kind, name in kinds.items():
                predicted, drawn = by_model[name].values, {"color": colour, "ls": LINES[kind], "lw": 1.3}
                left.plot(k[1:], _positive(_mean(predicted, grid)[1])[1:], **drawn)
                residual = _mean(predicted - true, grid)[1]
                with np.errstate(divide="ignore", invalid="ignore"):
                    right.plot(k[1:], _positive(residual / energy)[1:], **drawn)
        for axes in (left, right):
            # Beyond its own Nyquist wavenumber a grid has the corners of its modes only.
            axes.set_xlim(1, max(2.0, nyquist(grid)))
            log_axis(axes, "x")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("waves over the longest axis")
            for at in sorted({nyquist(home) for home in trained.values() if nyquist(home) < nyquist(grid)}):
                axes.axvline(at, **_NYQUIST, lw=1)
        right.axhline(1, color=FAINT, lw=0.8)
        left.set_title(f"energy of {variable}")
        right.set_title("energy of residual / of truth")
        handles = [
            *model_handles(shown),
            line_handle("direct", lw=3, alpha=0.35, label="truth"),
            *map(line_handle, ("direct", "best DPU")),
            line_handle("direct", label="training Nyquist", **_NYQUIST),
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=4)
        return figure


def _mean(values: NDArray[np.float32], grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wavenumbers, and the mean over the samples of the energy of each."""
    k, energy = energy_spectrum(torch.from_numpy(np.ascontiguousarray(values)), grid)
    return k, energy.mean(dim=0).numpy()


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN, which is not drawn, for what a logarithmic axis has no place for, rounding included."""
    largest = np.max(values, where=np.isfinite(values), initial=0.0)
    return np.where(np.isfinite(values) & (values > 1e-14 * largest), values, np.nan)
