"""Which model was trained where: the places of results that there is something at, and these alone."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import xarray as xr

_Data = TypeVar("_Data", xr.Dataset, xr.DataArray)
PLUS = "+"


class Series(NamedTuple):
    """A model as it was trained at one resolution, or at several together; its seeds are one series.

    Attributes
    ----------
    model, train_resolution : str
        Its place in results and in their summary.
    label : str
        What to call it: the model's name, and where it was trained if any model was trained in several ways.
    """

    model: str
    train_resolution: str
    label: str

    def of(self, data: _Data) -> _Data:
        """Its part of results, or of a summary."""
        return data.sel(model=self.model, train_resolution=self.train_resolution)


def series_of(data: xr.Dataset) -> list[Series]:
    """The series of results or a summary, in order of the models, and for each of the resolutions.

    Examples
    --------
    >>> some = xr.Dataset({"home": (("model", "train_resolution"), [["r16", "r16"], ["r16", ""]])},
    ...     {"model": ["MANO", "FNO"], "train_resolution": ["r16", "r16+r32"]})
    >>> [one.label for one in series_of(some)]
    ['MANO (r16)', 'MANO (r16+r32)', 'FNO (r16)']
    """
    homes = data["home"].transpose("model", "train_resolution").values
    models, trained = data["model"].values.tolist(), data["train_resolution"].values.tolist()
    plain = ((homes != "").sum(axis=1) <= 1).all()
    return [
        Series(model, where, model if plain else f"{model} ({where})")
        for model, row in zip(models, homes, strict=True)
        for where, home in zip(trained, row, strict=True)
        if home
    ]


def trained_on(train_resolution: str) -> list[str]:
    """The levels that a label names.

    Examples
    --------
    >>> trained_on("r16"), trained_on("r16+r32")
    (['r16'], ['r16', 'r32'])
    """
    return train_resolution.split(PLUS)


def flat(data: xr.Dataset) -> xr.Dataset:
    """Results or a summary by series, for pictures: only what is there, and one metric.

    Parameters
    ----------
    data : Dataset
        From `mano_op.transfer.evaluate.evaluate_transfer`, whose seeds are averaged, or from
        `mano_op.transfer.verdict.summary`. What is flat already is left alone.

    Returns
    -------
    Dataset
        Without the dimensions train_resolution, seed and metric. ``model`` has the labels of the series,
        ``name`` and ``train_resolution`` (model) what they are of, ``training_resolution`` and
        ``training_points`` their home level. The metric is that of the summary, relative L2 of results.
    """
    if "train_resolution" not in data.dims:
        return data
    every = series_of(data)
    places = {
        dim: xr.DataArray([data.get_index(dim).get_loc(label) for label in labels], dims="series")
        for dim, labels in (
            ("model", [one.model for one in every]),
            ("train_resolution", [one.train_resolution for one in every]),
        )
    }
    made = data.sel(metric=data.attrs.get("metric", "relative_l2")).isel(places)
    if "error" in made:
        there = made["present"]
        total = made["error"].where(there, 0.0).sum("seed", skipna=False, keep_attrs=True)
        made = made.drop_dims("seed").assign(error=total / there.sum("seed"))
    return (
        made.rename(model="name", home="training_resolution", home_points="training_points")
        .rename(series="model")
        .assign_coords(model=[one.label for one in every])
    )
