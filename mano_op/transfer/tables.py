"""The numbers of a summary and of results as text: Markdown, CSV, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mano_op.card import markdown_table
from mano_op.errors import InputError
from mano_op.files import write_file
from mano_op.transfer.metrics import METRIC_NAMES
from mano_op.transfer.sentences import interval_of, percent, trained_elsewhere

CELLS = ("resolution", "predictor", "metric", "variable", "sample")
COLUMNS = ("model", "train_resolution", "seed", *CELLS, "error")
_COMPARISONS = ("run", "resolution", "metric", "variable")


def metric_name(metric: str) -> str:
    """Name a metric in words.

    Examples
    --------
    >>> metric_name("vrmse"), metric_name("my_own")
    ('VRMSE', 'my own')
    """
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def check_summary(judged: xr.Dataset, call: str) -> None:
    """Refuse results in place of their summary."""
    if "verdict" not in judged:
        raise InputError(f"{call} of a data set without verdicts; expected a summary: give summary(results)")


def table(judged: xr.Dataset) -> str:
    """Format a summary as a Markdown table, in per cent: a row for each run, resolution and variable.

    Direct inference stands beside the best DPU, the floor, the mean, and the same model trained elsewhere;
    see `mano_op.transfer.predictors` for the predictors and `mano_op.transfer.significance.summary` for the
    intervals. Notes follow, on errors that are not finite and grids that do not nest.
    """
    check_summary(judged, "table")
    name = metric_name(judged.attrs["metric"])
    about = (
        f"{name[:1].upper()}{name[1:]} error in %, mean over {judged.attrs['samples']} samples of the split "
        f"{judged.attrs['split']!r} [95 % interval]."
    )
    return "\n".join([*markdown_table(error_rows(judged)), "", about, *notes(judged)])


def error_rows(judged: xr.Dataset) -> list[list[str]]:
    """Return the names of the columns of the table, and its rows; columns without any entry are left out."""
    rows = []
    for cell, same_field in _cells(judged.sel(metric=judged.attrs["metric"])):
        away = cell["resolution"].item() != cell["home"].item()
        there, mixed = trained_elsewhere(same_field, cell)
        names = [f"{other['train_resolution'].item()}: " if len(mixed) > 1 else "" for other in mixed]
        floor, mean = (percent(cell["mean"].sel(predictor=name).item()) for name in ("floor", "mean"))
        growth = cell["growth"].item()
        rows.append(
            {
                **_place(cell, judged),
                "direct": _entry(cell, "direct"),
                "over seeds": _spread(cell) if int(judged["seeds"].max()) > 1 else "",
                "best DPU": _entry(cell, cell["best_dpu"].item()) if away else "as direct",
                "DPU's input": dpu_input(cell) if away else "",
                "skill": interval_of(cell, "skill", sign=True) if away else "",
                "trained there": "".join(_entry(o, "direct") for o in there),
                "trained on several": ", ".join(
                    name + _entry(other, "direct") for name, other in zip(names, mixed, strict=True)
                ),
                "floor": floor,
                "mean field": mean,
                "growth": f"{growth:{'.2f' if growth < 1e4 else '.2e'}}" if math.isfinite(growth) else "",
            }
        )
    optional = ("over seeds", "trained there", "trained on several")
    columns = [name for name in rows[0] if name not in optional or any(row[name] for row in rows)]
    return [columns, *([row[name] for name in columns] for row in rows)]


def metric_rows(judged: xr.Dataset) -> list[list[str]]:
    """Return the names of the columns, and every metric of direct inference / of the best DPU by it, in %."""

    def entry(cell: xr.Dataset) -> str:
        cell = cell.sel(predictor=["direct", cell["best_dpu"].item()])
        shown = cell["defined"] & [True, cell["resolution"].item() != cell["home"].item()]
        return " / ".join(percent(value) for value in cell["mean"].values[shown.values].tolist())

    metrics = judged["metric"].values.tolist()
    rows = [
        _place(cell, judged) | {metric_name(metric): entry(cell.sel(metric=metric)) for metric in metrics}
        for cell, _ in _cells(judged)
    ]
    return [list(rows[0]), *(list(row.values()) for row in rows)]


def dpu_input(cell: xr.Dataset) -> str:
    """The restriction of the best DPU: "injection", "nearest" where grids do not nest, or another."""
    best = str(cell["best_dpu"].item())
    return str(cell["restriction"].item()) if best == "dpu_injection" else best.removeprefix("dpu_")


def notes(judged: xr.Dataset) -> list[str]:
    """Warnings of errors that are not finite; notes on averages of states, and on grids that do not nest."""
    lines = []
    for cell, _ in _cells(judged.sel(metric=judged.attrs["metric"])):
        n = judged.attrs["samples"] * int(cell["seeds"])
        where = f"{cell['label'].item()} at {cell['resolution'].item()}, {cell['variable'].item()}"
        for predictor, bad in zip(cell["predictor"].values, cell["non_finite"].values.tolist(), strict=True):
            if bad:
                lines.append(f"Warning: {where}: {bad} of {n} errors of {predictor} are not finite.")
        if (averaging := cell["averaging"].item()) > cell["mean"].sel(predictor="direct").item() / 10:
            lines.append(
                f"Note: {where}: it steps from averages of the finer input, which are {percent(averaging)} % "
                "off, and so are its steps; a model with restriction='sample' steps from the input itself."
            )
    nearest = judged["restriction"].transpose("run", "resolution").values == "nearest"
    rows = zip(judged["label"].values, nearest, strict=True)
    off = [f"{label} at {', '.join(judged['resolution'].values[at])}" for label, at in rows if at.any()]
    if off:
        lines.append(
            f"Note: the grids do not nest for {'; '.join(off)}: points of the training grid are missing "
            "there, and dpu_injection took the input at the nearest point instead."
        )
    return lines


def to_csv(results: xr.Dataset, path: str | Path) -> None:
    """Write every error that exists as a row of its own, in full precision; columns are `COLUMNS`."""
    errors = results[["error", "defined"]].reset_index("run")
    frame = errors.to_dataframe(dim_order=["run", *CELLS]).reset_index()
    rows = frame.loc[frame["defined"], list(COLUMNS)]
    write_file(path, rows.to_csv(index=False, na_rep="nan", lineterminator="\n"))


def to_json(judged: xr.Dataset, path: str | Path) -> None:
    """Write a summary: about it, models, costs, errors by predictor, comparisons, each a list of objects.

    A number that is not finite, for which JSON has no notation, is a string: "NaN", "Infinity" or
    "-Infinity".
    """
    check_summary(judged, "to_json")
    compared = [name for name, values in judged.data_vars.items() if set(values.dims) == set(_COMPARISONS)]
    content = {
        **{str(name): _plain(value) for name, value in judged.attrs.items()},
        "models": _records(judged, ["home", "seeds", "parameters", "training_flops"]),
        "costs": _records(judged, ["flops", "peak_bytes", "seconds_per_sample", "restriction"]),
        "errors": _records(judged, ["mean", "low", "high", "seed_low", "seed_high", "non_finite"]),
        "comparisons": _records(judged, compared),
        "verdicts": _records(judged, ["verdict", "sentence"]),
    }
    write_file(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False))


def _cells(judged: xr.Dataset) -> Iterator[tuple[xr.Dataset, xr.Dataset]]:
    """Each run at each resolution, for each variable, and all runs there."""
    for i in range(judged.sizes["run"]):
        for key in judged["resolution"].values:
            for variable in judged["variable"].values:
                same_field = judged.sel(resolution=key, variable=variable)
                yield same_field.isel(run=i), same_field


def _place(cell: xr.Dataset, judged: xr.Dataset) -> dict[str, str]:
    """The columns that name a row."""
    names = {"model": "model", "trained at": "train_resolution", "resolution": "resolution"}
    names |= {"variable": "variable"} if judged.sizes["variable"] > 1 else {}
    return {column: str(cell[name].item()) for column, name in names.items()}


def _spread(cell: xr.Dataset) -> str:
    """The smallest and the largest mean of a seed, and the number of seeds."""
    if int(cell["seeds"]) == 1:
        return "1 seed"
    direct = cell.sel(predictor="direct")
    ends = [percent(direct[f"seed_{end}"].item()) for end in ("low", "high")]
    return f"{ends[0]} to {ends[1]}, {int(cell['seeds'])} seeds"


def _entry(cell: xr.Dataset, predictor: str) -> str:
    cell = cell.sel(predictor=predictor)
    bad = int(cell["non_finite"])
    return interval_of(cell) + (f" ({bad} not finite)" if bad else "")


def _records(judged: xr.Dataset, names: list[Any]) -> list[dict[str, Any]]:
    """Return an object for each run and position of some variables, labels first."""
    dims = [str(dim) for dim in judged[names[-1]].dims]
    frame = judged[names].reset_index("run").to_dataframe(dim_order=dims).reset_index()
    rows = frame[["model", "train_resolution", *dims[1:], *names]].to_dict("records")
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    """A scalar as JSON has it, without numpy's types."""
    plain = value.item() if isinstance(value, xr.DataArray | np.generic | np.ndarray) else value
    if isinstance(plain, float) and not math.isfinite(plain):
        return "NaN" if math.isnan(plain) else "Infinity" if plain > 0 else "-Infinity"
    return plain
