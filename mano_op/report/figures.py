"""Figures of errors, spectra, costs and training: a colour for each model, a line for each predictor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from mano_op.grid import Grid
from mano_op.report.style import FAINT, INK, LINES, colours, line_handle, log_axis, model_handles, style
from mano_op.transfer.rollout import steps_of
from mano_op.transfer.runs import PLUS
from mano_op.transfer.sentences import percent
from mano_op.transfer.significance import DPU
from mano_op.transfer.spectral import energy_spectrum, nyquist
from mano_op.transfer.tables import metric_name

_NOTE: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "annotation_clip": True}
_NYQUIST: dict[str, Any] = {"color": FAINT, "ls": (0, (1, 1.5))}
_RING: dict[str, Any] = {"marker": "o", "ms": 11, "mfc": "none", "mew": 1.2, "ls": "none"}
_MARKS: dict[str, dict[str, Any]] = {"direct": {"marker": "o"}, "best DPU": {"marker": "D", "mfc": "white"}}


def error_by_resolution(judged: xr.Dataset, variable: str) -> Figure:
    """Draw the mean errors of a summary against points along an axis, with intervals, floor and mean.

    A floor that lies more than a decade below all errors is left below the frame, so that they have room.
    """
    part = _selected(judged, variable)
    n = part["points"].values ** (1 / part.attrs["n_dim"])  # the geometric mean where axes differ
    with style():
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for run, colour in _runs(part):
            for kind, way in _ways(run).items():
                line = {"color": colour, "ls": LINES[kind], "mfc": colour, **_MARKS[kind]}
                axes.plot(n, _percent(way["mean"]), **line)
                _draw_band(axes, n, way, colour)
            trained = np.isin(run["resolution"].values, run["train_resolution"].item().split(PLUS))
            direct = _percent(run["mean"].sel(predictor="direct"))
            axes.plot(n[trained], direct[trained], mec=colour, **_RING)
        floor = _draw_floors(axes, n, part)
        axes.plot(n, _percent(part["mean"].sel(predictor="mean")[0]), color=FAINT, ls=LINES["mean"])
        log_axis(axes, "x")
        log_axis(axes, "y")
        axes.set_xticks(n, [key.removeprefix("r") for key in part["resolution"].values])
        errors = _percent(part["mean"].sel(predictor=["direct", *DPU]))
        lowest = np.min(errors, where=np.isfinite(errors), initial=np.inf)
        below = floor < lowest / 10 < np.inf
        if below:
            axes.set_ylim(bottom=lowest / 10)
        axes.set_xlabel("points along an axis")
        axes.set_ylabel(_named(part))
        axes.set_title(f"Error of {variable} by resolution; rings: trained there")
        floors = "floor of DPU" + (", in part below the frame" if below else "")
        lines = [line_handle(kind, **mark) for kind, mark in _MARKS.items()]
        lines += [line_handle("floor", marker=".", label=floors), line_handle("mean")]
        figure.legend(handles=[*_models(part), *lines], loc="outside right upper")
        return figure


def _draw_band(axes: Axes, x: NDArray[np.float64], errors: xr.Dataset, colour: str) -> None:
    axes.fill_between(x, _percent(errors["low"]), _percent(errors["high"]), color=colour, alpha=0.12, lw=0)


def _draw_floors(axes: Axes, n: NDArray[np.float64], part: xr.Dataset) -> float:
    """Draw the floor of each training grid, and return the lowest value that is drawn."""
    lowest = np.inf
    homes, runs = np.unique(part["home"].values, return_index=True)
    for home, run in zip(homes, runs.tolist(), strict=True):
        floor = _percent(part["mean"].sel(predictor="floor")[run])
        axes.plot(n, floor, color=INK, ls=LINES["floor"], marker=".")
        finite = np.flatnonzero(np.isfinite(floor))
        if not len(finite):
            continue
        lowest, last = min(lowest, float(np.nanmin(floor))), finite[-1]
        if len(homes) > 1:
            side = "right" if last else "left"
            axes.annotate(f"from {home}", (n[last], floor[last]), xytext=(0, 5), ha=side, **_NOTE)
    return lowest


def error_by_step(judged: xr.Dataset, variable: str) -> Figure:
    """Draw the mean error of a variable, named without its step, by step and resolution."""
    steps = steps_of(judged["variable"].values.tolist(), judged.attrs["rollout"])[variable]
    part = _selected(judged, list(steps.values()))
    at, keys = np.array(list(steps)), part["resolution"].values.tolist()
    with style():
        figure, panels = _panels(len(keys), len(keys))
        for axes, key in zip(panels, keys, strict=True):
            at_key = part.sel(resolution=key)
            for run, colour in _runs(at_key):
                for kind, errors in _ways(run).items():
                    if kind == "direct" or key != run["home"].item():
                        axes.plot(at, _percent(errors["mean"]), color=colour, ls=LINES[kind])
                _draw_band(axes, at, run.sel(predictor="direct"), colour)
            axes.plot(at, _percent(at_key["mean"].sel(predictor="mean")[0]), color=FAINT, ls=LINES["mean"])
            axes.set_title(key)
            log_axis(axes, "y")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        figure.supxlabel("steps", fontsize=9)
        panels[0].set_ylabel(_named(part))
        _legend_above(figure, [*_models(part), *map(line_handle, ("direct", "best DPU", "mean"))])
        return figure


def error_distributions(results: xr.Dataset, judged: xr.Dataset, variable: str) -> Figure:
    """Draw, for each resolution, the share of samples with no larger error, directly and by the best DPU."""
    part = _selected(judged, variable)
    errors = results["error"].sel(variable=variable, metric=part["metric"].item())
    errors = errors.groupby("label").mean(skipna=False)  # over the seeds
    keys = part["resolution"].values.tolist()
    columns = min(3, len(keys))
    with style():
        figure, panels = _panels(len(keys), columns)
        for axes, key in zip(panels, keys, strict=False):
            for run, colour in _runs(part.sel(resolution=key)):
                for kind, predictor in (("direct", "direct"), ("best DPU", run["best_dpu"].item())):
                    cell = errors.sel(label=run["label"].item(), resolution=key, predictor=predictor)
                    values = np.where(np.isfinite(cell), 100 * cell, np.inf)  # still one of the samples
                    axes.ecdf(values, color=colour, ls=LINES[kind], lw=1.3)
            axes.set_title(key)
            axes.set_ylim(0, 1.01)
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=None))
        for place, axes in enumerate(panels):
            log_axis(axes, "x")
            axes.set_visible(place < len(keys))
            axes.tick_params(labelbottom=place + columns >= len(keys))
        figure.supxlabel(_named(part), fontsize=9)
        figure.supylabel("samples with no larger error in %", fontsize=9)
        _legend_above(figure, [*_models(part), *map(line_handle, ("direct", "best DPU"))])
        return figure


def cost_and_error(judged: xr.Dataset, variable: str) -> Figure:
    """Draw operations for a sample against error: direct inference through the resolutions, and DPU.

    Runs without operations that can be counted are left out.
    """
    part = _selected(judged, variable)
    with style():
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes, labels = figure.add_subplot(), {}
        for run, colour in _runs(part):
            if (run["flops"] == 0).any():
                continue
            known = np.isfinite(run["parameters"].item())
            count = EngFormatter()(run["parameters"].item()) if known else "unknown"
            labels[f"{run['label'].item()}, {count} parameters"] = colour
            flops, error = run["flops"].values / 1e6, _percent(run["mean"].sel(predictor="direct"))
            axes.plot(flops, error, color=colour, marker="o", lw=1.2)
            for x, y, key in zip(flops, error, run["resolution"].values, strict=True):
                if np.isfinite(y):
                    axes.annotate(key, (x, y), xytext=(0, 7), ha="center", **_NOTE)
            away = run["resolution"].values != run["home"].item()
            dpu = _percent(run["mean"].sel(predictor=run["best_dpu"]))[away]
            cost = np.full(dpu.shape, run["training_flops"].item() / 1e6)
            axes.plot(cost, dpu, color=colour, ls="none", ms=7, zorder=1, **_MARKS["best DPU"])
        log_axis(axes, "x")
        log_axis(axes, "y")
        axes.margins(x=0.12, y=0.18)
        axes.set_xlabel("floating point operations for a sample, in millions")
        axes.set_ylabel(_named(part))
        axes.set_title("What a prediction costs and how far it is off")
        kinds = [
            line_handle("direct", label="direct, at each resolution", **_MARKS["direct"]),
            line_handle("best DPU", label="best DPU there", **_MARKS["best DPU"] | {"ls": "none"}),
        ]
        figure.legend(handles=[*model_handles(labels), *kinds], loc="outside lower left", ncols=2)
        return figure


def transfer_matrix(judged: xr.Dataset, variable: str) -> Figure:
    """Draw the direct error by training and test resolution as shades with numbers, a panel a model.

    Below each number is that of the best DPU. Training resolutions that a model was not trained at are blank.
    """
    part = _selected(judged, variable)
    keys = part["resolution"].values.tolist()
    models = list(dict.fromkeys(part["model"].values.tolist()))
    trained = part["train_resolution"].values
    rows = list(dict.fromkeys(trained[np.argsort(part["home_points"].values, kind="stable")].tolist()))
    errors = _percent(part["mean"].sel(predictor="direct"))
    finite = errors[np.isfinite(errors)]
    low, high = (finite.min(), finite.max()) if finite.size else (1.0, 100.0)
    high = high if high > low else 1.1 * low
    norm = LogNorm(low, high)
    with style(axes_grid=False):
        size = (1.6 + len(models) * (0.85 * len(keys) + 0.6), 1.5 + 0.55 * len(rows))
        figure = Figure(figsize=(max(5.0, size[0]), size[1]), layout="constrained")
        panels = figure.subplots(1, len(models), squeeze=False, sharey=True).ravel()
        for axes, model in zip(panels, models, strict=True):
            shades = np.full((len(rows), len(keys)), np.nan)
            for i in np.flatnonzero(part["model"].values == model).tolist():
                run, row = part.isel(run=i), rows.index(trained[i])
                shades[row] = errors[i]
                for column, key in enumerate(keys):
                    ways = _ways(run.sel(resolution=key))
                    direct, dpu = (percent(way["mean"].item()) for way in ways.values())
                    text = direct if key == run["home"].item() else f"{direct}\n({dpu})"
                    # The upper half of the shades is light.
                    dark = np.isfinite(errors[i, column]) and norm(errors[i, column]) <= 0.5
                    colour = "white" if dark else "black"
                    axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
            image = axes.imshow(shades, cmap="cividis", norm=norm, aspect="auto")
            axes.set_xticks(range(len(keys)), keys)
            axes.set_yticks(range(len(rows)), rows)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_title(model)
            axes.set_xlabel("judged at")
        panels[0].set_ylabel("trained at")
        bar = figure.colorbar(image, ax=panels.tolist(), pad=0.02)
        bar.minorticks_off()
        bar.set_ticks([low, high], labels=[percent(end / 100) for end in (low, high)])
        bar.set_label(_named(part), fontsize=8)
        return figure


def spectra(fields: xr.Dataset, grid: Grid, variable: str, trained: Mapping[str, Grid]) -> Figure:
    """Draw the mean energy of samples by wavenumber, and the energy of the residual over that of the truth.

    `fields` are from `mano_op.report.panels.beside_dpu`, and `trained` has the home grid of each model. A
    vertical line marks the Nyquist wavenumber of each that is coarser than `grid`: to its right is what the
    model could not have met in training, and what DPU cannot have.
    """
    fields = fields.sel(variable=variable)
    true = fields["truth"].values
    k, energy = _mean_energy(true, grid)
    shown = colours(fields["model"].values.tolist())
    with style():
        figure = Figure(figsize=(7.6, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(k, _positive(energy), color=INK, lw=3, alpha=0.35)
        for model, colour in shown.items():
            by_model = fields.sel(model=model)
            kinds = {"direct": "prediction"} | ({"best DPU": "dpu"} if by_model["dpu_input"].item() else {})
            for kind, name in kinds.items():
                predicted, drawn = by_model[name].values, {"color": colour, "ls": LINES[kind], "lw": 1.3}
                left.plot(k, _positive(_mean_energy(predicted, grid)[1]), **drawn)
                residual = _mean_energy(predicted - true, grid)[1]
                with np.errstate(divide="ignore", invalid="ignore"):
                    right.plot(k, _positive(residual / energy), **drawn)
        for axes in (left, right):
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


def _mean_energy(values: NDArray[np.float32], grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wavenumbers from 1 to below the grid's Nyquist one, and the energy at each, mean over the samples."""
    k, energy = energy_spectrum(torch.from_numpy(np.ascontiguousarray(values)), grid)
    # Beyond it the grid has the corners of its modes only.
    below = slice(1, math.ceil(max(2.0, nyquist(grid))))
    return k[below], energy.mean(dim=0).numpy()[below]


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put NaN, which is not drawn, for values that a logarithmic axis cannot show, rounding included."""
    largest = np.max(values, where=np.isfinite(values), initial=0.0)
    return np.where(np.isfinite(values) & (values > 1e-14 * largest), values, np.nan)


def training_history(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw the training loss, of normalised fields, by epoch and by seconds."""
    shown = {model: colour for model, colour in colours(histories).items() if histories[model]}
    with style():
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        by_epoch, by_time = figure.subplots(1, 2, sharey=True)
        for model, colour in shown.items():
            loss, seconds = np.array([(e["training_error"], e["seconds"]) for e in histories[model]]).T
            line = {"color": colour, "marker": "." if loss.size < 40 else None}
            by_epoch.plot(np.arange(1, loss.size + 1), loss, **line)
            by_time.plot(np.cumsum(seconds), loss, **line)
        log_axis(by_epoch, "y")
        by_epoch.set_xlabel("epoch")
        by_epoch.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        by_epoch.set_ylabel("training loss, of normalised fields")
        by_time.set_xlabel("seconds of training")
        by_time.set_xlim(left=0)
        _legend_above(figure, model_handles(shown))
        return figure


def _selected(judged: xr.Dataset, variable: str | list[str]) -> xr.Dataset:
    """The numbers of a variable by the metric of the verdicts."""
    return judged.sel(metric=judged.attrs["metric"], variable=variable)


def _runs(part: xr.Dataset) -> Iterator[tuple[xr.Dataset, str]]:
    for i, colour in enumerate(colours(part["label"].values.tolist()).values()):
        yield part.isel(run=i), colour


def _models(part: xr.Dataset) -> list[Line2D]:
    return model_handles(colours(part["label"].values.tolist()))


def _ways(run: xr.Dataset) -> dict[str, xr.Dataset]:
    """Direct inference and the best DPU of a run, by their kinds of line."""
    return {"direct": run.sel(predictor="direct"), "best DPU": run.sel(predictor=run["best_dpu"])}


def _panels(n: int, columns: int) -> tuple[Figure, NDArray[Any]]:
    """At least `n` square frames with the same axes."""
    rows = -(-n // columns)
    figure = Figure(figsize=(max(5.0, 2.6 * columns), 2.6 * rows + 0.6), layout="constrained")
    return figure, figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()


def _legend_above(figure: Figure, handles: list[Line2D]) -> None:
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))


def _named(data: xr.Dataset) -> str:
    return f"{metric_name(str(data['metric'].item()))} error in %"


def _percent(fraction: xr.DataArray) -> NDArray[np.float64]:
    """Convert to per cent; NaN, which is not drawn, where a logarithmic axis cannot show the value."""
    values = fraction.values
    return np.where(np.isfinite(values) & (values > 0), 100 * values, np.nan)
