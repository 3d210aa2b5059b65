"""Runs to judge, and the dimension ``run`` of results: model, training resolution and seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from mano_op.data.channels import Channels, channels_of
from mano_op.data.mixed import Mixed
from mano_op.data.processor import FieldProcessor
from mano_op.data.record import FieldRecord
from mano_op.data.store import FieldStore, Resolution, opened
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.prediction import predict_fields
from mano_op.runs import Run

PLUS = "+"
COORDINATES = ("model", "train_resolution", "seed")


@dataclass(frozen=True)
class Trained:
    """A function from fields to fields, such as a model of the Hub, and the resolution it was trained at.

    Attributes
    ----------
    function : callable
        From inputs ``(batch, in_channels, *grid)``, float32 in physical units and with channels in the
        store's order, to outputs ``(batch, out_channels, *grid)``, a tensor or a numpy array. An
        ``nn.Module`` is evaluated on its own device and in evaluation mode; other functions get tensors on
        the CPU.
    resolution : int, sequence of int, str, Grid or Mixed
        Of the store: 16, (16, 24), "r16"; several as ``Mixed([16, 32])``.
    seed : int
    time_steps, at : optional
        The times of fields that vary in time, as `mano_op.data.dataset.FieldDataset` takes them.

    Examples
    --------
    >>> Trained(lambda x: 2 * x, resolution=64).resolution
    64
    """

    function: Callable[[Tensor], Any]
    resolution: Resolution | Mixed
    seed: int = 0
    time_steps: Sequence[int] | None = None
    at: Sequence[float] | None = None

    def predict(self, data: xr.Dataset, store: str | Path | FieldStore, **options: Any) -> xr.Dataset:
        """Predict labelled fields, as `Run.predict` does, with the names and units of a store's.

        `options` are those of `mano_op.prediction.predict_fields`.
        """
        store = opened(store)
        key = store.key(
            self.resolution.resolutions[0] if isinstance(self.resolution, Mixed) else self.resolution
        )
        network, processor = _physical(self, channels_of(store.layout, **self.times))
        who = getattr(self.function, "__name__", type(self.function).__name__)
        return predict_fields(network, processor, FieldRecord.of(store.layout, key), data, who=who, **options)

    @property
    def times(self) -> dict[str, Any]:
        """The times as `mano_op.data.dataset.FieldDataset` takes them."""
        times = {"time_steps": self.time_steps, "at": self.at}
        return {name: value for name, value in times.items() if value is not None}


Judgeable = Run | Trained
Models = Mapping[str, Judgeable | Sequence[Judgeable]]


@dataclass(frozen=True)
class JudgedRun:
    """A run, and its coordinates in results.

    `home` is the resolution that most training samples had, the finest of several such, and `grid` its grid.
    The processor of a `Trained` function leaves fields in physical units.
    """

    name: str  # for messages
    model: str
    train_resolution: str  # coarsest first: "r16", "r16+r32"
    seed: int
    home: str
    grid: Grid
    source: Judgeable
    network: nn.Module
    processor: FieldProcessor

    @property
    def coordinates(self) -> tuple[str, str, int]:
        """The coordinates in results, `COORDINATES`."""
        return self.model, self.train_resolution, self.seed


def judged_runs(models: Models, store: FieldStore) -> list[JudgedRun]:
    """Return every run: models in their order, training resolutions coarsest first, then seeds."""
    sources: dict[str, tuple[str, Judgeable]] = {}
    for model, value in models.items() if isinstance(models, Mapping) else ():
        several = list(value) if isinstance(value, list | tuple) else [value]
        for i, source in enumerate(several):
            name = model if len(several) == 1 else f"run {i} of {model}"
            if not isinstance(source, Judgeable) or getattr(source, "task", "fields") != "fields":
                raise InputError(
                    f"{name}: {source!r:.80}, expected a Run of fields (`load_run` or `train_model` makes "
                    "one) or Trained(function, resolution=...)"
                )
            sources[name] = model, source
    if not sources:
        raise InputError(
            f"no models to judge in {models!r:.80}; expected runs by name: "
            '{"MANO": load_run(folder), "FNO": [first, second]}'
        )
    times = {name: {k: list(v) for k, v in source.times.items()} for name, (_, source) in sources.items()}
    if any(value != next(iter(times.values())) for value in times.values()):
        raise InputError(f"models for different times, {times}; judge them one after the other")
    runs = [_judged_run(name, model, source, store) for name, (model, source) in sources.items()]
    for run, other in itertools.combinations(runs, 2):
        same_seed = run.seed == other.seed
        if run.coordinates[:2] == other.coordinates[:2] and (same_seed or run.home != other.home):
            homes = f", but most samples were at {run.home} and at {other.home}"
            raise InputError(
                f"{run.name} and {other.name} were both trained at {run.train_resolution}"
                f"{f' with seed {run.seed}' if same_seed else homes}: judge them under different names"
            )
    names, keys = list(models), list(store.grids)

    def order(run: JudgedRun) -> tuple[Any, ...]:
        several = PLUS in run.train_resolution
        return names.index(run.model), keys.index(run.home), several, run.train_resolution, run.seed

    return sorted(runs, key=order)


def _judged_run(name: str, model: str, source: Judgeable, store: FieldStore) -> JudgedRun:
    training: Mapping[str, Any] = {}
    channels = channels_of(store.layout, **source.times)
    if isinstance(source, Run):
        network, processor, training = source.model, source.processor, source.training
        resolutions, seed = source.resolutions, training.get("seed", 0)
    else:
        if not store.statistics:
            raise InputError(
                f"{name} is a function, and {store.path} has no split 'train', whose mean it has to beat: "
                "write the store with its training split, or give a Run with a FieldProcessor"
            )
        network, processor = _physical(source, channels)
        at, seed = source.resolution, source.seed
        resolutions = tuple(at.resolutions) if isinstance(at, Mixed) else (at,)
    if not resolutions or type(seed) is not int:
        raise InputError(
            f"{name}: trained at resolution={list(resolutions)} with seed={seed!r}, expected at least one "
            "resolution and a whole number"
        )
    keys, samples = [_key(store, resolution) for resolution in resolutions], training.get("samples")
    counts = [samples.get(key, 0) if isinstance(samples, Mapping) else 1 for key in resolutions]
    order = {key: i for i, key in enumerate(store.grids)}  # coarsest first
    most = max(range(len(keys)), key=lambda i: (counts[i], order.get(keys[i], -1)))
    grid = training.get("grid")
    trained = grid[most] if isinstance(grid, list) and len(grid) == len(keys) else grid
    if misfit := _misfit(processor, channels, training.get("units", {}), keys[most], trained, store):
        raise InputError(f"{name} {misfit}")
    label = PLUS.join(sorted(keys, key=lambda key: order.get(key, len(order))))
    home = keys[most]
    return JudgedRun(name, model, label, seed, home, store.grids[home], source, network, processor)


def _misfit(
    processor: FieldProcessor,
    channels: Channels,
    units: Mapping[str, str],
    home: str,
    grid: str | None,
    store: FieldStore,
) -> str:
    """What of a run does not fit the store, and the remedy; empty if all does."""
    for role in ("inputs", "outputs"):
        own, stored = getattr(processor, role), getattr(channels, role)
        if own != stored:
            return f"has the {role} {own}, {store.path} has {stored}: judge it on a store of its variables"
    for variable in store.variables:
        if units.get(variable.name, variable.units) != variable.units:
            return (
                f"was trained on {variable.name} in {units[variable.name]}, {store.path} has it in "
                f"{variable.units}: convert the fields of the store"
            )
    if home not in store.grids:
        return (
            f"was trained at {home}, whose grid is needed for DPU; {store.path} has "
            f"{', '.join(store.grids)}: judge it on a store with that resolution too"
        )
    if grid not in (None, str(store.grids[home])):
        return (
            f"was trained on the grid {grid}, {home} of {store.path} is {store.grids[home]}: judge it on a "
            "store with the registration and domain that it was trained with"
        )
    return ""


def _physical(trained: Trained, channels: Channels) -> tuple[nn.Module, FieldProcessor]:
    """A function as a module, and the processor that leaves fields in physical units."""
    network, unit = _Function(trained.function), {"mean": 0.0, "std": 1.0}
    processor = FieldProcessor(dict.fromkeys(channels.inputs, unit), dict.fromkeys(channels.outputs, unit))
    device = next((parameter.device for parameter in network.parameters()), processor.device)
    return network, processor.to(device)


class _Function(nn.Module):
    """A function, which may be a module, as a module; numpy arrays become tensors."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        output = self.function(x)
        # The copy has positive strides and may be written to, as torch asks.
        return torch.from_numpy(output.copy()) if isinstance(output, np.ndarray) else output


def _key(store: FieldStore, resolution: Any) -> str:
    """The store's key of a resolution; its own name where the store does not have it."""
    try:
        return store.key(resolution)
    except InputError:
        return str(resolution)


def run_coordinates(rows: Sequence[tuple[Any, ...]]) -> xr.Coordinates:
    """Make the dimension ``run``, indexed by model, training resolution and seed, with a ``label``.

    A label is the model's name, and its training resolution if any model has several.

    Examples
    --------
    >>> runs = run_coordinates([("MANO", "r16", 0), ("MANO", "r16", 1), ("FNO", "r16+r32", 0)])
    >>> runs["label"].values.tolist()
    ['MANO', 'MANO', 'FNO']
    >>> xr.Dataset(coords=runs).sel(model="MANO", train_resolution="r16")["seed"].values
    array([0, 1])
    """
    names = COORDINATES[: len(rows[0])]
    plain = len({row[:2] for row in rows}) == len({row[0] for row in rows})
    labels = [model if plain else f"{model} ({resolution})" for model, resolution, *_ in rows]
    columns = {name: ("run", [row[i] for row in rows]) for i, name in enumerate(names)}
    return xr.Dataset(coords=columns | {"label": ("run", labels)}).set_index(run=names).coords


def positions(data: xr.Dataset) -> dict[tuple[str, str], list[int]]:
    """Return where in results the seeds of each model and training resolution are."""
    places: dict[tuple[str, str], list[int]] = {}
    pairs = zip(data["model"].values.tolist(), data["train_resolution"].values.tolist(), strict=True)
    for i, pair in enumerate(pairs):
        places.setdefault(pair, []).append(i)
    return places
