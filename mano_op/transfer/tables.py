"""The numbers of `mano_op.transfer.evaluate` for people and for other programs: a table, CSV, JSON."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mano_op.files import write_file
from mano_op.transfer.verdict import percent, summary, with_interval

COLUMNS = (
    "model",
    "train_resolution",
    "resolution",
    "predictor",
    "variable",
    "sample",
    "relative_l2",
)


def table(results: xr.Dataset) -> str:
    """Errors in per cent as a Markdown table, one row for each model, resolution and variable.

    Direct inference stands beside the best DPU, the floor and the mean; see `mano_op.transfer.evaluate`
    for the predictors and `mano_op.transfer.verdict.summary` for the intervals. Below are notes on what
    needs one.
    """
    judged = summary(results)
    rows = [header(judged), *table_rows(judged)]
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    about = (
        f"Relative L2 error in %, mean over {judged.attrs['samples']} samples of the split "
        f"{judged.attrs['split']!r} [95 % interval]."
    )
    return "\n".join([*lines, "", about, *notes(judged)])


def header(judged: xr.Dataset) -> list[str]:
    """The columns of `table_rows`."""
    variable = ["variable"] if judged.sizes["variable"] > 1 else []
    return [
        "model", "trained at", "resolution", *variable,
        "direct", "best DPU", "DPU's input", "direct - DPU", "floor", "mean field", "growth",
    ]  # fmt: skip


def table_rows(judged: xr.Dataset) -> list[list[str]]:
    """The cells of the table, for one summary."""
    rows = []
    for cell in _cells(judged):
        trained, key = cell["training_resolution"].item(), cell["resolution"].item()
        best = cell["best_dpu"].item()
        at_training = key == trained
        margin = [cell[f"difference{end}"].item() for end in ("", "_low", "_high")]
        growth = cell["growth"].item()
        rows.append(
            [
                cell["model"].item(),
                trained,
                key,
                *([cell["variable"].item()] if judged.sizes["variable"] > 1 else []),
                _entry(cell, "direct"),
                "as direct" if at_training else _entry(cell, best),
                "" if at_training else dpu_input(cell),
                "" if at_training else with_interval(margin[0], margin[1], margin[2], sign=True),
                percent(cell["mean"].sel(predictor="floor").item()),
                percent(cell["mean"].sel(predictor="mean").item()),
                f"{growth:{'.2f' if growth < 1e4 else '.2e'}}" if math.isfinite(growth) else "",
            ]
        )
    return rows


def dpu_input(cell: xr.Dataset) -> str:
    """How the best DPU had its input: "injection", "nearest" where grids do not nest, or another way."""
    best = str(cell["best_dpu"].item())
    return str(cell["restriction"].item()) if best == "dpu_injection" else best.removeprefix("dpu_")


def notes(judged: xr.Dataset) -> list[str]:
    """Warnings of errors that are not finite, and of grids that do not nest."""
    lines = []
    n = judged.attrs["samples"]
    for cell in _cells(judged):
        where = f"{cell['model'].item()} at {cell['resolution'].item()}, {cell['variable'].item()}"
        lines += [
            f"Warning: {where}: {bad} of {n} errors of {predictor} are not finite."
            for predictor, bad in zip(
                judged["predictor"].values, cell["non_finite"].values.tolist(), strict=True
            )
            if bad
        ]
    off = [
        f"{model} at {key}"
        for model, key in itertools.product(judged["model"].values, judged["resolution"].values)
        if judged["restriction"].sel(model=model, resolution=key).item() == "nearest"
    ]
    if off:
        lines.append(
            f"Note: the grids do not nest for {', '.join(off)}: points of the training grid are missing "
            "there, and dpu_injection took the input at the nearest point instead."
        )
    return lines


def to_csv(results: xr.Dataset, path: str | Path) -> None:
    """Write every error as a row of its own, in full precision; columns are `COLUMNS`."""
    write_file(path, csv_text(results))


def csv_text(results: xr.Dataset) -> str:
    """What `to_csv` writes."""
    errors = results["relative_l2"].transpose("model", "resolution", "predictor", "variable", "sample")
    labels = [errors[name].values.tolist() for name in errors.dims]
    trained = dict(zip(labels[0], results["training_resolution"].values.tolist(), strict=True))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for label, error in zip(itertools.product(*labels), errors.values.ravel().tolist(), strict=True):
        writer.writerow([label[0], trained[label[0]], *label[1:], repr(error)])
    return text.getvalue()


def to_json(judged: xr.Dataset, path: str | Path) -> None:
    """Write a summary: about it, models, costs, errors by predictor, comparisons, each a list of objects.

    A number that is not finite, for which JSON has no notation, is a string: "NaN", "Infinity" or
    "-Infinity".
    """
    write_file(path, json_text(judged))


def json_text(judged: xr.Dataset) -> str:
    """What `to_json` writes."""
    costs = ["training_resolution", "parameters", "training_flops"]
    content = {
        **{str(name): _plain(value) for name, value in judged.attrs.items()},
        "models": [
            {"model": model, **{name: _plain(judged[name].sel(model=model)) for name in costs}}
            for model in judged["model"].values.tolist()
        ],
        "costs": _records(judged[["flops", "seconds_per_sample", "restriction"]]),
        "errors": _records(judged[["mean", "low", "high", "non_finite"]]),
        "comparisons": _records(
            judged[
                [
                    "growth",
                    "best_dpu",
                    "difference",
                    "difference_low",
                    "difference_high",
                    "over_mean",
                    "over_mean_low",
                    "over_mean_high",
                    "verdict",
                    "sentence",
                ]
            ]
        ),
    }
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)


def _cells(judged: xr.Dataset) -> list[xr.Dataset]:
    return [
        judged.sel(model=model, resolution=key, variable=variable)
        for model, key, variable in itertools.product(
            *(judged[name].values for name in ("model", "resolution", "variable"))
        )
    ]


def _entry(cell: xr.Dataset, predictor: str) -> str:
    one = cell.sel(predictor=predictor)
    shown = with_interval(one["mean"].item(), one["low"].item(), one["high"].item())
    bad = int(one["non_finite"])
    return f"{shown} ({bad} not finite)" if bad else shown


def _records(part: xr.Dataset) -> list[dict[str, Any]]:
    """One object for each place of the data set, labels first."""
    dims = [str(name) for name in part[next(iter(part.data_vars))].dims]
    places = itertools.product(*(part[name].values.tolist() for name in dims))
    records = []
    for place in places:
        at = dict(zip(dims, place, strict=True))
        cell = part.sel(at)
        records.append({**at, **{str(name): _plain(cell[name]) for name in part.data_vars}})
    return records


def _plain(value: Any) -> Any:
    """A scalar as JSON has it; numpy's, which data sets are full of, it has not."""
    plain = value.item() if isinstance(value, xr.DataArray | np.generic) else value
    if isinstance(plain, float) and not math.isfinite(plain):
        return "NaN" if math.isnan(plain) else "Infinity" if plain > 0 else "-Infinity"
    return plain
