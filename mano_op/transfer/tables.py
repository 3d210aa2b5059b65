"""The numbers of `mano_op.transfer.evaluate` for people and for other programs: a table, CSV, JSON."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mano_op.files import write_file
from mano_op.transfer.series import Series, series_of
from mano_op.transfer.verdict import percent, summary, trained_on_several, trained_there, with_interval

COLUMNS = (
    "model",
    "train_resolution",
    "seed",
    "resolution",
    "predictor",
    "metric",
    "variable",
    "sample",
    "error",
)
METRIC_NAMES = {
    "relative_l2": "relative L2",
    "relative_l2_points": "relative L2, by points",
    "vrmse": "VRMSE",
    "linf": "relative L\N{INFINITY}",
    "relative_h1": "relative H1",
    "boundary_band": "near boundaries",
    "spectral_low": "below training Nyquist",
    "spectral_high": "above it",
    "mismatch": "mismatch",
}


def metric_name(metric: str) -> str:
    """What to call a metric.

    Examples
    --------
    >>> metric_name("vrmse"), metric_name("my_own")
    ('VRMSE', 'my own')
    """
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def table(results: xr.Dataset, *, metric: str = "relative_l2") -> str:
    """Errors in per cent as a Markdown table, one row for each model, resolution and variable.

    Direct inference stands beside the best DPU, the floor, the mean, and the same model trained elsewhere;
    see `mano_op.transfer.predictors` for the predictors and `mano_op.transfer.verdict.summary` for the
    intervals. Below are notes on what needs one.
    """
    judged = summary(results, metric=metric)
    rows = [header(judged), *table_rows(judged)]
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    name = metric_name(metric)
    about = (
        f"{name[:1].upper()}{name[1:]} error in %, mean over {judged.attrs['samples']} samples of the split "
        f"{judged.attrs['split']!r} [95 % interval]."
    )
    return "\n".join([*lines, "", about, *notes(judged)])


def header(judged: xr.Dataset) -> list[str]:
    """The columns of `table_rows`."""
    variable = ["variable"] if judged.sizes["variable"] > 1 else []
    seeds = ["over seeds"] if int(judged["seeds"].max()) > 1 else []
    there, several = _elsewhere(judged)
    return [
        "model", "trained at", "resolution", *variable,
        "direct", *seeds, "best DPU", "DPU's input", "skill", *["trained there"] * there,
        *["trained on several"] * several, "floor", "mean field", "growth",
    ]  # fmt: skip


def table_rows(judged: xr.Dataset) -> list[list[str]]:
    """The cells of the table, for one summary."""
    judged_by = judged.sel(metric=judged.attrs["metric"])
    there, several = _elsewhere(judged)
    seeded = int(judged["seeds"].max()) > 1
    rows = []
    for one, key, variable, cell in _cells(judged_by):
        best = cell["best_dpu"].item()
        at_home = key == cell["home"].item()
        skill = [cell[f"skill{end}"].item() for end in ("", "_low", "_high")]
        growth = cell["growth"].item()
        rows.append(
            [
                one.model,
                one.train_resolution,
                key,
                *([variable] if judged.sizes["variable"] > 1 else []),
                _entry(cell, "direct"),
                *([_spread(cell)] if seeded else []),
                "as direct" if at_home else _entry(cell, best),
                "" if at_home else dpu_input(cell),
                "" if at_home else with_interval(skill[0], skill[1], skill[2], sign=True),
                *([_other(judged_by, trained_there(judged, one, key), key, variable)] if there else []),
                *([", ".join(_others(judged_by, one, key, variable))] if several else []),
                percent(cell["mean"].sel(predictor="floor").item()),
                percent(cell["mean"].sel(predictor="mean").item()),
                f"{growth:{'.2f' if growth < 1e4 else '.2e'}}" if math.isfinite(growth) else "",
            ]
        )
    return rows


def metric_header(judged: xr.Dataset) -> list[str]:
    """The columns of `metric_rows`."""
    variable = ["variable"] if judged.sizes["variable"] > 1 else []
    metrics = [metric_name(metric) for metric in judged["metric"].values.tolist()]
    return ["model", "trained at", "resolution", *variable, *metrics]


def metric_rows(judged: xr.Dataset) -> list[list[str]]:
    """Every metric of direct inference, and after a stroke of the best DPU by it, in per cent."""
    rows = []
    for one, key, variable, cell in _cells(judged):
        found = []
        for metric in judged["metric"].values.tolist():
            by = cell.sel(metric=metric)
            if not by["defined"].sel(predictor="direct").item():
                found.append("")
                continue
            direct = percent(by["mean"].sel(predictor="direct").item())
            alone = (
                key == cell["home"].item() or not by["defined"].sel(predictor=by["best_dpu"].item()).item()
            )
            rival = "" if alone else f" / {percent(by['mean'].sel(predictor=by['best_dpu'].item()).item())}"
            found.append(direct + rival)
        of = [variable] if judged.sizes["variable"] > 1 else []
        rows.append([one.model, one.train_resolution, key, *of, *found])
    return rows


def dpu_input(cell: xr.Dataset) -> str:
    """How the best DPU had its input: "injection", "nearest" where grids do not nest, or another way."""
    best = str(cell["best_dpu"].item())
    return str(cell["restriction"].item()) if best == "dpu_injection" else best.removeprefix("dpu_")


def notes(judged: xr.Dataset) -> list[str]:
    """Warnings of errors that are not finite, and of grids that do not nest."""
    lines = []
    for one, key, variable, cell in _cells(judged.sel(metric=judged.attrs["metric"])):
        n = judged.attrs["samples"] * int(cell["seeds"])
        lines += [
            f"Warning: {one.label} at {key}, {variable}: {bad} of {n} errors of {predictor} are not finite."
            for predictor, bad in zip(
                judged["predictor"].values, cell["non_finite"].values.tolist(), strict=True
            )
            if bad
        ]
    off = [
        f"{one.label} at {key}"
        for one, key in itertools.product(series_of(judged), judged["resolution"].values)
        if one.of(judged)["restriction"].sel(resolution=key).item() == "nearest"
    ]
    if off:
        lines.append(
            f"Note: the grids do not nest for {', '.join(off)}: points of the training grid are missing "
            "there, and dpu_injection took the input at the nearest point instead."
        )
    return lines


def to_csv(results: xr.Dataset, path: str | Path) -> None:
    """Write every error that there can be as a row of its own, in full precision; columns are `COLUMNS`."""
    write_file(path, csv_text(results))


def csv_text(results: xr.Dataset) -> str:
    """What `to_csv` writes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    errors = results["error"].transpose(*COLUMNS[:-1])
    labels = [errors[name].values.tolist() for name in COLUMNS[:-1]]
    present = results["present"].transpose(*COLUMNS[:3]).values
    defined = results["defined"].transpose(*COLUMNS[3:6]).values
    values = errors.values
    for run, where in itertools.product(np.argwhere(present).tolist(), np.argwhere(defined).tolist()):
        at = (*run, *where)
        of = [labels[d][i] for d, i in enumerate(at)]
        rows = itertools.product(*labels[6:])
        for label, error in zip(rows, values[at].ravel().tolist(), strict=True):
            writer.writerow([*of, *label, repr(error)])
    return text.getvalue()


def to_json(judged: xr.Dataset, path: str | Path) -> None:
    """Write a summary: about it, models, costs, errors by predictor, comparisons, each a list of objects.

    A number that is not finite, for which JSON has no notation, is a string: "NaN", "Infinity" or
    "-Infinity".
    """
    write_file(path, json_text(judged))


def json_text(judged: xr.Dataset) -> str:
    """What `to_json` writes."""
    compared = [
        str(name)
        for name, values in judged.data_vars.items()
        if set(values.dims) == {"model", "train_resolution", "resolution", "metric", "variable"}
    ]
    content = {
        **{str(name): _plain(value) for name, value in judged.attrs.items()},
        "models": _records(judged, ["home", "seeds", "parameters", "training_flops"]),
        "costs": _records(judged, ["flops", "peak_bytes", "seconds_per_sample", "restriction"]),
        "errors": _records(judged, ["mean", "low", "high", "seed_low", "seed_high", "non_finite"]),
        "comparisons": _records(judged, compared),
        "verdicts": _records(judged, ["verdict", "sentence"]),
    }
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)


def _cells(judged: xr.Dataset) -> Iterator[tuple[Series, str, str, xr.Dataset]]:
    for one in series_of(judged):
        for key, variable in itertools.product(judged["resolution"].values, judged["variable"].values):
            yield one, str(key), str(variable), one.of(judged).sel(resolution=key, variable=variable)


def _elsewhere(judged: xr.Dataset) -> tuple[bool, bool]:
    """Whether a model that was judged away from home was also trained there, or on several levels."""
    every, keys = series_of(judged), judged["resolution"].values.tolist()
    return (
        any(trained_there(judged, one, key) for one in every for key in keys),
        any(trained_on_several(judged, one) for one in every),
    )


def _other(judged: xr.Dataset, other: Series | None, key: str, variable: str) -> str:
    """The direct error of the same model, trained in another way."""
    if other is None:
        return ""
    return _entry(other.of(judged).sel(resolution=key, variable=variable), "direct")


def _others(judged: xr.Dataset, one: Series, key: str, variable: str) -> list[str]:
    found = trained_on_several(judged, one)
    named = [f"{other.train_resolution}: " if len(found) > 1 else "" for other in found]
    return [name + _other(judged, other, key, variable) for name, other in zip(named, found, strict=True)]


def _spread(cell: xr.Dataset) -> str:
    """The means of the seeds, from the smallest to the largest, and how many there are."""
    if int(cell["seeds"]) == 1:
        return "1 seed"
    direct = cell.sel(predictor="direct")
    ends = [percent(direct[f"seed_{end}"].item()) for end in ("low", "high")]
    return f"{ends[0]} to {ends[1]}, {int(cell['seeds'])} seeds"


def _entry(cell: xr.Dataset, predictor: str) -> str:
    one = cell.sel(predictor=predictor)
    shown = with_interval(one["mean"].item(), one["low"].item(), one["high"].item())
    bad = int(one["non_finite"])
    return f"{shown} ({bad} not finite)" if bad else shown


def _records(judged: xr.Dataset, names: list[str]) -> list[dict[str, Any]]:
    """One object for each place of some variables where a model was trained, labels first."""
    records = []
    for one in series_of(judged):
        part = one.of(judged)
        arrays = {name: part[name] for name in names}
        dims = [str(dim) for dim in next(iter(arrays.values())).dims]
        values = {name: array.transpose(*dims).values for name, array in arrays.items()}
        labels = [part[dim].values.tolist() for dim in dims]
        for at in itertools.product(*(range(len(label)) for label in labels)):
            place = {dim: label[i] for dim, label, i in zip(dims, labels, at, strict=True)}
            found = {name: _plain(array[at]) for name, array in values.items()}
            records.append({"model": one.model, "train_resolution": one.train_resolution, **place, **found})
    return records


def _plain(value: Any) -> Any:
    """A scalar as JSON has it; numpy's, which data sets are full of, it has not."""
    plain = value.item() if isinstance(value, xr.DataArray | np.generic | np.ndarray) else value
    if isinstance(plain, float) and not math.isfinite(plain):
        return "NaN" if math.isnan(plain) else "Infinity" if plain > 0 else "-Infinity"
    return plain
