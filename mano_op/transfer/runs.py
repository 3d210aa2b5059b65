"""The runs to judge: model, training resolution and seed of each, and the ``run`` dimension of results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr
from torch import Tensor, nn

from mano_op.data.channels import channels_of
from mano_op.data.processor import FieldProcessor
from mano_op.data.store import FieldStore, Resolution
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.runs import Run

PLUS = "+"


@dataclass(frozen=True)
class Trained:
    """A function from fields to fields, and the resolution that it was trained at.

    For models from elsewhere: an FNO that somebody trained, a model of the Hub, any function of tensors.

    Attributes
    ----------
    function : callable
        Takes the inputs, a float32 tensor ``(batch, in_channels, *grid)`` in physical units, and returns the
        outputs, ``(batch, out_channels, *grid)`` in physical units; channels are in the store's order. An
        ``nn.Module`` is evaluated on its own device and in evaluation mode; other functions get tensors on
        the CPU.
    resolution : int, tuple of int, str or Grid, or a list of them
        Levels of the store: 16, (16, 24), "r16".
    seed : int
    time_steps, at : optional
        The times of fields that vary in time, as `mano_op.data.dataset.FieldDataset` takes them.

    Examples
    --------
    >>> Trained(lambda x: 2 * x, resolution=64).resolution
    64
    """

    function: Callable[[Tensor], Tensor]
    resolution: Resolution | list[Resolution]
    seed: int = 0
    time_steps: Sequence[int] | None = None
    at: Sequence[float] | None = None

    @property
    def times(self) -> dict[str, Any]:
        """The times as `mano_op.data.dataset.FieldDataset` takes them."""
        given = {"time_steps": self.time_steps, "at": self.at}
        return {name: list(value) for name, value in given.items() if value is not None}


Judgeable = Run | Trained
Models = Mapping[str, Judgeable | Sequence[Judgeable]]


@dataclass(frozen=True)
class JudgedRun:
    """A run, and its coordinates in results.

    `home` is the level that most training samples had, the finest of several such, and `grid` is its grid.
    The processor of a `Trained` function leaves fields in physical units.
    """

    name: str  # for messages
    model: str
    train_resolution: str  # its levels, coarsest first: "r16", "r16+r32"
    seed: int
    home: str
    grid: Grid
    source: Judgeable
    network: nn.Module
    processor: FieldProcessor


def judged_runs(models: Models, store: FieldStore) -> list[JudgedRun]:
    """Every run with its coordinates: models in their order, training resolutions coarsest first, seeds.

    Raises
    ------
    InputError
        If there are no runs, two have the same coordinates, or one does not fit the store.
    """
    sources: dict[str, tuple[str, Judgeable]] = {}
    for model, value in models.items():
        several = list(value) if isinstance(value, list | tuple) else [value]
        for i, source in enumerate(several):
            if not isinstance(source, Run | Trained):
                raise InputError(
                    f"{model}: {type(source).__name__}, expected a Run (`load_run` or `train_model` makes "
                    "one) or Trained(function, resolution=...)"
                )
            sources[model if len(several) == 1 else f"run {i} of {model}"] = model, source
    if not sources:
        raise InputError("no models to judge; expected at least one run")
    times = {name: {k: list(v) for k, v in source.times.items()} for name, (_, source) in sources.items()}
    if any(value != next(iter(times.values())) for value in times.values()):
        raise InputError(f"models for different times, {times}; judge them one after the other")
    runs = [_judged_run(name, model, source, store) for name, (model, source) in sources.items()]
    for one, other in itertools.combinations(runs, 2):
        if (one.model, one.train_resolution) != (other.model, other.train_resolution):
            continue
        if one.seed == other.seed or one.home != other.home:
            homes = f", but most samples were at {one.home} and at {other.home}"
            raise InputError(
                f"{one.name} and {other.name} were both trained at {one.train_resolution}"
                f"{f' with seed {one.seed}' if one.seed == other.seed else homes}: judge them under "
                "different names"
            )
    names, levels = list(models), list(store.grids)

    def order(run: JudgedRun) -> tuple[Any, ...]:
        several = PLUS in run.train_resolution
        return names.index(run.model), levels.index(run.home), several, run.train_resolution, run.seed

    return sorted(runs, key=order)


def run_coordinates(rows: Sequence[tuple[Any, ...]]) -> xr.Coordinates:
    """The dimension ``run``, indexed by model, training resolution and seed, with a ``label`` of each run.

    A label is the model's name, and its training resolution if any model has several.

    Examples
    --------
    >>> runs = run_coordinates([("MANO", "r16", 0), ("MANO", "r16", 1), ("FNO", "r16+r32", 0)])
    >>> runs["label"].values.tolist()
    ['MANO', 'MANO', 'FNO']
    >>> xr.Dataset(coords=runs).sel(model="MANO", train_resolution="r16")["seed"].values
    array([0, 1])
    """
    names = ("model", "train_resolution", "seed")[: len(rows[0])]
    plain = len({row[:2] for row in rows}) == len({row[0] for row in rows})
    labels = [model if plain else f"{model} ({resolution})" for model, resolution, *_ in rows]
    columns = {
        name: ("run", list(column)) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
    return xr.Dataset(coords=columns | {"label": ("run", labels)}).set_index(run=names).coords


def trained_on(train_resolution: str) -> list[str]:
    """The levels of a training resolution.

    Examples
    --------
    >>> trained_on("r16"), trained_on("r16+r32")
    (['r16'], ['r16', 'r32'])
    """
    return train_resolution.split(PLUS)


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _judged_run(name: str, model: str, source: Judgeable, store: FieldStore) -> JudgedRun:
    if isinstance(source, Run):
        if source.task != "fields":
            raise InputError(f"{name} is a run of {source.task}; expected one of fields")
        network, processor, training = source.model, source.processor, source.training
        levels = list(source.resolutions) if "resolution" in training else []
        _check_fields(name, source, store)
    else:
        network, processor = _identity(name, source, store)
        training = {"resolution": source.resolution, "seed": source.seed}
        levels = source.resolution if isinstance(source.resolution, list) else [source.resolution]
    if "resolution" not in training:
        raise InputError(f"{name}: training={training} does not say at which resolution it was trained")
    resolution, seed = training["resolution"], training.get("seed", 0)
    if not levels or not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(
            f"{name}: trained at resolution={resolution!r} with seed={seed!r}, expected at least one level "
            "and a whole number"
        )
    keys = [_key(store, level) for level in levels]
    counts = _counts(training, levels)
    order = {key: i for i, key in enumerate(store.grids)}  # coarsest first
    at = max(range(len(levels)), key=lambda i: (counts[i], order.get(keys[i], -1)))
    try:
        grid = store.grids[store.key(levels[at])]
    except InputError as error:
        raise InputError(
            f"{name} was trained at {levels[at]}, whose grid is needed to predict there and "
            f"interpolate: {error}"
        ) from error
    stated = training.get("grid", str(grid))
    trained = stated[at] if isinstance(stated, list) else stated
    if trained != str(grid):
        raise InputError(
            f"{name} was trained on the grid {trained}, {keys[at]} of {store.path} is {grid}: judge "
            "it on a store with the registration and domain that it was trained with"
        )
    label = PLUS.join(sorted(keys, key=lambda key: order.get(key, len(order))))
    return JudgedRun(name, model, label, seed, keys[at], grid, source, network, processor)


def _identity(name: str, trained: Trained, store: FieldStore) -> tuple[nn.Module, FieldProcessor]:
    """A function as a module, and the processor that leaves fields in physical units."""
    if not store.statistics:
        raise InputError(
            f"{name} is a function, and {store.path} has no split 'train', whose mean it has to beat: write "
            "the store with its training split, or give a Run with a FieldProcessor"
        )
    function = trained.function
    network = function if isinstance(function, nn.Module) else _Function(function)
    channels = channels_of(store.layout, **trained.times)
    unit = {"mean": 0.0, "std": 1.0}
    processor = FieldProcessor(dict.fromkeys(channels.inputs, unit), dict.fromkeys(channels.outputs, unit))
    device = next((parameter.device for parameter in network.parameters()), processor.device)
    return network, processor.to(device)


def _key(store: FieldStore, level: Any) -> str:
    """The store's key of a level; its own name where the store does not have it."""
    try:
        return store.key(level)
    except InputError:
        return str(level)


def _counts(training: Mapping[str, Any], levels: Sequence[Any]) -> list[float]:
    """The number of training samples of each level; ones if it is not known."""
    samples = training.get("samples")
    if isinstance(samples, Mapping):
        return [float(samples.get(level, 0)) for level in levels]
    return [1.0] * len(levels)


def _check_fields(name: str, run: Run, store: FieldStore) -> None:
    channels = channels_of(store.layout, **run.times)
    for role, labels, expected in (
        ("inputs", run.processor.inputs, channels.inputs),
        ("outputs", run.processor.outputs, channels.outputs),
    ):
        if labels != expected:
            raise InputError(
                f"{name} has the {role} {labels}, {store.path} has {expected}: "
                "judge it on a store of the variables that it was trained on"
            )
    units = {variable.name: variable.units for variable in store.variables}
    for variable, unit in run.training.get("units", {}).items():
        if units.get(variable, unit) != unit:
            raise InputError(
                f"{name} was trained on {variable} in {unit}, {store.path} has it in {units[variable]}: "
                "convert the fields of the store"
            )


def positions(data: xr.Dataset) -> dict[tuple[str, str], list[int]]:
    """Where in results the seeds of each model and training resolution are."""
    places: dict[tuple[str, str], list[int]] = {}
    pairs = zip(data["model"].values.tolist(), data["train_resolution"].values.tolist(), strict=True)
    for i, pair in enumerate(pairs):
        places.setdefault(pair, []).append(i)
    return places
