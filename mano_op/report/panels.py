"""Pictures of single samples: input, truth, and each model's prediction and error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from mano_op.grid import Axis, Grid
from mano_op.report.style import FAINT, INK, colours, style
from mano_op.transfer.verdict import percent

Names = Mapping[str, str]


def sample_panels(
    fields: xr.Dataset, grid: Grid, variable: str, captions: Sequence[str], names: Names
) -> Figure:
    """Some samples below each other, each with all models.

    Truth and predictions of a sample share the truth's colour scale, the errors of all models another.
    Of three-dimensional fields the middle of the first axis is drawn; one-dimensional ones are lines.

    Parameters
    ----------
    fields : Dataset
        From `mano_op.transfer.predict.sample_fields`.
    grid : Grid
        Its points.
    variable : str
        One of the outputs.
    captions : sequence of str
        One for each sample.
    names : mapping of str to str
        How to label each variable, with its unit.
    """
    fields = fields.sel(variable=variable)
    draw = _lines if grid.n_dim == 1 else _images
    if grid.n_dim == 3:
        across, middle = grid.names[0], grid.shape[0] // 2
        captions = [f"{caption}, {across} = {grid.points[0][middle]:g}" for caption in captions]
        fields, grid = fields.isel({across: middle}), Grid(grid.axes[1:])
    models, n_inputs = fields.sizes["model"], fields.sizes["input_variable"]
    columns = (n_inputs + 2) // 2 + models
    size = 7.2, 4.4
    if grid.n_dim > 1:
        aspect = min(2.0, max(0.5, grid.axes[0].length / grid.axes[1].length))
        size = max(5.0, 1.9 * columns + 0.9), 2 * (1.8 * aspect + 0.5)
    with style(axes_titlesize=9):
        figure = Figure(figsize=(size[0], size[1] * len(captions)), layout="constrained")
        parts = figure.subfigures(len(captions), 1, squeeze=False, hspace=0.03).ravel()
        for i, (part, caption) in enumerate(zip(parts, captions, strict=True)):
            part.suptitle(caption, x=0.01, ha="left", fontsize=10, fontweight="bold")
            draw(part, fields.isel(sample=i), grid, names[variable], names)
        return figure


def _images(part: SubFigure, sample: xr.Dataset, grid: Grid, label: str, names: Names) -> None:
    """Inputs and truth in the first columns, then for each model its prediction above its error."""
    inputs, models = sample["input_variable"].values, sample["model"].values.tolist()
    left = (len(inputs) + 2) // 2
    panels = part.subplots(2, left + len(models), squeeze=False)
    true, predicted = sample["truth"].values, sample["prediction"].values
    errors = np.abs(predicted - true)
    lowest, highest = float(true.min()), float(true.max())
    largest = min(_largest(errors), highest - lowest) or 1.0

    places = [*panels[:, : left - 1].T.ravel(), panels[1, left - 1]]
    for axes in places[len(inputs) :]:
        axes.set_visible(False)
    for axes, name in zip(places, inputs, strict=False):
        image = _draw(axes, sample["input"].sel(input_variable=name).values, grid, "cividis")
        axes.set_title(_short(names[name]))
        beside = axes.inset_axes((-0.14, 0, 0.05, 1))
        part.colorbar(image, cax=beside, location="left")
    truth = panels[0, left - 1]
    _draw(truth, true, grid, "viridis", lowest, highest)
    truth.set_title(_short(f"truth: {label}"))
    _label(truth, grid)
    for m, model in enumerate(models):
        above, below = panels[:, left + m]
        shown = _draw(above, predicted[m], grid, "viridis", lowest, highest)
        wrong = _draw(below, errors[m], grid, "magma", 0.0, largest)
        above.set_title(_short(model), color=colours(models)[model])
        below.set_title(f"|error|, {_size(predicted[m], true)} %", color=colours(models)[model])
    beyond = (bool(np.nanmin(predicted) < lowest), bool(np.nanmax(predicted) > highest))
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
    part.colorbar(shown, ax=panels[0, left:], aspect=25, extend=extend, pad=0.02)
    extend = "max" if _largest(errors) > largest else "neither"
    part.colorbar(wrong, ax=panels[1, left:], aspect=25, extend=extend, pad=0.02)


def _lines(part: SubFigure, sample: xr.Dataset, grid: Grid, label: str, names: Names) -> None:
    """Truth and predictions in one frame, inputs and errors in two below."""
    fields, inputs, errors = part.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    x = grid.points[0]
    true = sample["truth"].values
    fields.plot(x, true, color=INK, lw=2.5, alpha=0.35, label="truth")
    for m, (model, colour) in enumerate(colours(sample["model"].values.tolist()).items()):
        values = sample["prediction"].values[m]
        fields.plot(x, values, color=colour, lw=1.2, label=f"{_short(model)}, error {_size(values, true)} %")
        errors.plot(x, np.abs(values - true), color=colour, lw=1.2)
    for i, name in enumerate(sample["input_variable"].values):
        inputs.plot(
            x, sample["input"].values[i], color=INK, ls=("-", "--", ":", "-.")[i % 4], label=names[name]
        )
    fields.set_ylabel(label)
    inputs.set_ylabel("input")
    errors.set_ylabel("|error|")
    errors.set_xlabel(grid.names[0])
    fields.legend(loc="upper left", bbox_to_anchor=(1, 1))
    inputs.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _draw(
    axes: Axes,
    values: NDArray[np.float32],
    grid: Grid,
    cmap: str,
    vmin: float | None = None,
    vmax: float | None = None,
) -> AxesImage:
    """A field in its place: each value fills the cell about its point."""
    y, x = grid.axes
    image = axes.imshow(
        values,
        cmap=matplotlib.colormaps[cmap].with_extremes(bad="#ff5555"),
        vmin=vmin,
        vmax=vmax,
        origin="lower",
        extent=(*_edges(x), *_edges(y)),
        aspect="equal" if 0.2 < x.length / y.length < 5 else "auto",
    )
    axes.grid(False)
    for limits, axis in ((axes.set_xlim, x), (axes.set_ylim, y)):
        low, high = _edges(axis)
        limits(min(low, axis.start), max(high, axis.stop))
    axes.set_xticks([])
    axes.set_yticks([])
    return image


def _label(axes: Axes, grid: Grid) -> None:
    """The ends of the domain, on one panel for all."""
    y, x = grid.axes
    axes.set_xticks([x.start, x.stop])
    axes.set_yticks([y.start, y.stop])
    axes.tick_params(length=2, labelsize=7, color=FAINT)
    axes.set_xlabel(x.name, labelpad=-8)
    axes.set_ylabel(y.name, labelpad=-8)


def _edges(axis: Axis) -> tuple[float, float]:
    return float(axis.points[0] - axis.spacing / 2), float(axis.points[-1] + axis.spacing / 2)


def _largest(errors: NDArray[np.float32]) -> float:
    return float(np.max(errors, where=np.isfinite(errors), initial=0.0))


def _short(text: str) -> str:
    """As much of a title as fits over a panel."""
    return text if len(text) <= 22 else text[:21] + "\N{HORIZONTAL ELLIPSIS}"


def _size(predicted: NDArray[np.float32], true: NDArray[np.float32]) -> str:
    return percent(float(np.linalg.norm(predicted - true) / np.linalg.norm(true)))
