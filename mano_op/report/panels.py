"""Pictures of single samples: input, truth, and predictions and errors of each model, direct and by DPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from mano_op.grid import Axis, Grid
from mano_op.report.style import FAINT, INK, LINES, colours, style
from mano_op.transfer.runs import positions
from mano_op.transfer.sentences import percent
from mano_op.transfer.tables import dpu_input


def sample_panels(
    fields: xr.Dataset, grid: Grid, variable: str, captions: Sequence[str], names: Mapping[str, str]
) -> Figure:
    """Draw samples of `beside_dpu` below each other, each with a row for every model.

    A row has the direct prediction and that of the best DPU, each beside its error and relative L2 error.
    Truth and predictions of a sample share the truth's colour scale, all errors another. Of three-dimensional
    fields the middle of the first axis is drawn; one-dimensional ones are lines. `captions` are of the
    samples, and `names` the labels of variables, with units.
    """
    fields = fields.sel(variable=variable)
    draw = _lines if grid.n_dim == 1 else _images
    if grid.n_dim == 3:
        across, middle = grid.names[0], grid.shape[0] // 2
        captions = [f"{caption}, {across} = {grid.points[0][middle]:g}" for caption in captions]
        fields, grid = fields.isel({across: middle}), Grid(grid.axes[1:])
    size = 8.6, 4.4
    if grid.n_dim > 1:
        rows, columns = _shape(fields)
        aspect = min(2.0, max(0.5, grid.axes[0].length / grid.axes[1].length))
        size = 1.35 * columns + 2.0, rows * (1.35 * aspect + 0.45) + 0.4
    with style(axes_titlesize=9):
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.07)
        figure = Figure(figsize=(size[0], size[1] * len(captions)), layout=layout)
        parts = figure.subfigures(len(captions), 1, squeeze=False, hspace=0.03).ravel()
        for i, (part, caption) in enumerate(zip(parts, captions, strict=True)):
            part.suptitle(caption, x=0.01, ha="left", fontsize=10, fontweight="bold")
            draw(part, fields.isel(sample=i), grid, names[variable], names)
        return figure


def _shape(sample: xr.Dataset) -> tuple[int, int]:
    """Rows and columns of panels: one row a model, unless the inputs need more than two columns."""
    facts = 1 + sample.sizes["input_variable"]
    rows = max(sample.sizes["model"], -(-facts // 3))
    return rows, -(-facts // rows) + 2 * len(_kinds(sample))


def _kinds(sample: xr.Dataset) -> dict[str, str]:
    """The predictions that are drawn; DPU only if it is another than the direct one for any model."""
    return {"direct": "prediction"} | ({"DPU": "dpu"} if (sample["dpu_input"] != "").any() else {})


def _images(part: SubFigure, sample: xr.Dataset, grid: Grid, label: str, names: Mapping[str, str]) -> None:
    """Draw truth and inputs in the first columns, then the predictions of each model beside their errors."""
    rows, columns = _shape(sample)
    panels = part.subplots(rows, columns, squeeze=False)
    kinds, models = _kinds(sample), sample["model"].values.tolist()
    left = columns - 2 * len(kinds)
    true = sample["truth"].values
    predicted = np.stack([sample[name].values for name in kinds.values()], axis=1)
    errors = np.abs(predicted - true)
    lowest, highest = float(true.min()), float(true.max())
    largest = min(_largest(errors), highest - lowest) or 1.0

    for axes in panels.ravel():
        axes.set_visible(False)
    truth, *places = panels[:, :left].T.ravel()
    shown = _draw(truth, true, grid, "viridis", lowest, highest)
    truth.set_title(_short(f"truth: {label}"))
    y, x = grid.axes  # the ends of the domain, on one panel for all
    truth.set_xticks([x.start, x.stop])
    truth.set_yticks([y.start, y.stop])
    truth.tick_params(length=2, labelsize=7, color=FAINT)
    truth.set_xlabel(x.name, labelpad=-8)
    truth.set_ylabel(y.name, labelpad=-8)
    for axes, name in zip(places, sample["input_variable"].values, strict=False):
        image = _draw(axes, sample["input"].sel(input_variable=name).values, grid, "cividis")
        axes.set_title(_short(names[name]))
        _bar(part, image, axes, location="left", aspect=20, pad=0.06)
    for row, (model, colour) in enumerate(colours(models).items()):
        way = sample["dpu_input"].values[row]
        for k, kind in enumerate(kinds):
            above, beside = panels[row, left + 2 * k : left + 2 * k + 2]
            if kind == "DPU" and not way:
                above.set_visible(True)
                above.set_axis_off()
                above.text(0, 0.5, "trained here:\nDPU is the same", color=FAINT, fontsize=8)
                continue
            _draw(above, predicted[row, k], grid, "viridis", lowest, highest)
            wrong = _draw(beside, errors[row, k], grid, "magma", 0.0, largest)
            named = f"{kind} ({way})" if kind == "DPU" else kind
            above.set_title(f"{_short(model)}\n{named}", color=colour)
            beside.set_title(f"|error|\n{_size(predicted[row, k], true)} %", color=colour)
    inside = np.isfinite(predicted)
    below = bool(np.min(predicted, where=inside, initial=lowest) < lowest)
    over = bool(np.max(predicted, where=inside, initial=highest) > highest)
    extend = ("neither", "max", "min", "both")[2 * below + over]
    right = {"ax": panels[:, left:], "aspect": 14 * rows, "pad": 0.02}
    # The first one made is the outer one.
    _bar(part, wrong, extend="max" if _largest(errors) > largest else "neither", **right).set_label("|error|")
    _bar(part, shown, extend=extend, **right).set_label(label)


def _bar(part: SubFigure, image: AxesImage, ax: Any, **options: Any) -> Colorbar:
    """A colour bar with a few full numbers: a common factor or offset beside it would be overlooked."""
    low, high = image.get_clim()
    digits = 4
    if high > low:
        digits += max(0, math.ceil(math.log10(max(abs(low), abs(high)) / (high - low))))
    written = FuncFormatter(lambda value, _: f"{value:.{digits}g}")
    return part.colorbar(image, ax=ax, ticks=MaxNLocator(4), format=written, **options)


def _lines(part: SubFigure, sample: xr.Dataset, grid: Grid, label: str, names: Mapping[str, str]) -> None:
    """Draw truth and predictions in one frame, inputs and errors in two below; lines of DPU are broken."""
    fields, inputs, errors = part.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    x = grid.points[0]
    true = sample["truth"].values
    fields.plot(x, true, color=INK, lw=2.5, alpha=0.35, label="truth")
    for m, (model, colour) in enumerate(colours(sample["model"].values.tolist()).items()):
        kinds = {"direct": ("prediction", LINES["direct"])}
        if way := sample["dpu_input"].values[m]:
            kinds[f"DPU ({way})"] = "dpu", LINES["best DPU"]
        for kind, (name, line) in kinds.items():
            values, drawn = sample[name].values[m], {"color": colour, "lw": 1.2, "ls": line}
            fields.plot(x, values, label=f"{_short(model)}, {kind}: {_size(values, true)} %", **drawn)
            errors.plot(x, np.abs(values - true), **drawn)
    for i, name in enumerate(sample["input_variable"].values):
        dashes = ("-", "--", ":", "-.")[i % 4]
        inputs.plot(x, sample["input"].values[i], color=INK, ls=dashes, label=names[name])
    fields.set_ylabel(label)
    inputs.set_ylabel("input")
    errors.set_ylabel("|error|")
    errors.set_xlabel(grid.names[0])
    for axes in (fields, inputs):
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _draw(axes: Axes, values: NDArray[np.float32], grid: Grid, cmap: str, *limits: float) -> AxesImage:
    """Draw a field, each value in the cell about its point."""
    y, x = grid.axes
    axes.set_visible(True)
    image = axes.imshow(
        values,
        cmap=matplotlib.colormaps[cmap].with_extremes(bad="#ff5555"),
        clim=limits or None,
        origin="lower",
        extent=(*_edges(x), *_edges(y)),
        aspect="equal" if 0.2 < x.length / y.length < 5 else "auto",
    )
    axes.grid(False)
    for set_limits, axis in ((axes.set_xlim, x), (axes.set_ylim, y)):
        low, high = _edges(axis)
        set_limits(min(low, axis.start), max(high, axis.stop))
    axes.set_xticks([])
    axes.set_yticks([])
    return image


def _edges(axis: Axis) -> tuple[float, float]:
    return float(axis.points[0] - axis.spacing / 2), float(axis.points[-1] + axis.spacing / 2)


def _largest(errors: NDArray[np.float32]) -> float:
    return float(np.max(errors, where=np.isfinite(errors), initial=0.0))


def _short(text: str) -> str:
    """Cut a title to the width of a panel."""
    return text if len(text) <= 22 else text[:21] + "\N{HORIZONTAL ELLIPSIS}"


def _size(predicted: NDArray[np.float32], true: NDArray[np.float32]) -> str:
    difference = predicted.astype(np.float64) - true
    return percent(float(np.linalg.norm(difference) / np.linalg.norm(true.astype(np.float64))))


def beside_dpu(fields: xr.Dataset, judged: xr.Dataset, key: str) -> xr.Dataset:
    """Put beside sample fields of `Evidence` at a resolution the prediction of each model's best DPU.

    Returns
    -------
    Dataset
        ``input``, ``truth``, and by ``model``, labelled as in the summary `judged`, the first seed's
        ``prediction`` and ``dpu``, and ``dpu_input`` (model, variable), the restriction: "" at the home
        resolution, where ``dpu`` is the direct prediction.
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
    unlabelled = data.reset_index("run").reset_coords(drop=True)
    return unlabelled.rename(run="model").assign_coords(model=labels)


def best_median_worst(errors: NDArray[np.float64]) -> dict[str, int]:
    """Find samples by their mean error over models, ``(models, samples)``; not finite is the largest.

    Examples
    --------
    >>> best_median_worst(np.array([[0.3, 0.1, np.nan, 0.2, 0.4]]))
    {'Best sample': 1, 'Median sample': 0, 'Worst sample': 2}
    >>> best_median_worst(np.array([[0.3]]))
    {'Best sample': 0}
    """
    means = np.where(np.isfinite(errors), errors, np.inf).mean(axis=0)
    order = np.argsort(means, kind="stable").tolist()
    places = {"Best sample": 0, "Median sample": (len(order) - 1) // 2, "Worst sample": len(order) - 1}
    picks = {which: order[place] for which, place in places.items()}
    return {which: row for i, (which, row) in enumerate(picks.items()) if row not in [*picks.values()][:i]}
