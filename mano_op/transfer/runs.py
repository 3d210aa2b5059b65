"""The runs to judge: model, training resolution and seed of each, and the ``run`` dimension of results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr
from torch import Tensor, nn

from mano_op.data.channels import channels_of
from mano_op.data.mixed import Mixed
from mano_op.data.processor import FieldProcessor
from mano_op.data.store import FieldStore, Resolution
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.runs import Run

PLUS = "+"


@dataclass(frozen=True)
class Trained:
    """A function from fields to fields, such as a model of the Hub, and the resolution it was trained at.

    Attributes
    ----------
    function : callable
        From inputs ``(batch, in_channels, *grid)``, float32 in physical units and with channels in the
        store's order, to outputs ``(batch, out_channels, *grid)``. An ``nn.Module`` is evaluated on its own
        device and in evaluation mode; other functions get tensors on the CPU.
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

    function: Callable[[Tensor], Tensor]
    resolution: Resolution | Mixed
    seed: int = 0
    time_steps: Sequence[int] | None = None
    at: Sequence[float] | None = None

    @property
    def times(self) -> dict[str, Any]:
        """The times as `mano_op.data.dataset.FieldDataset` takes them."""
        times = {"time_steps": self.time_steps, "at": self.at}
        return {name: list(value) for name, value in times.items() if value is not None}


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


def judged_runs(models: Models, store: FieldStore) -> list[JudgedRun]:
    """Return every run: models in their order, training resolutions coarsest first, then seeds.

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
    for run, other in itertools.combinations(runs, 2):
        same_seed = run.seed == other.seed
        if (run.model, run.train_resolution) != (other.model, other.train_resolution):
            continue
        if same_seed or run.home != other.home:
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
    names = ("model", "train_resolution", "seed")[: len(rows[0])]
    plain = len({row[:2] for row in rows}) == len({row[0] for row in rows})
    labels = [model if plain else f"{model} ({resolution})" for model, resolution, *_ in rows]
    columns = {
        name: ("run", list(column)) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
    return xr.Dataset(coords=columns | {"label": ("run", labels)}).set_index(run=names).coords


def trained_on(train_resolution: str) -> list[str]:
    """Split the label of a training resolution into keys of the store.

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
        resolutions = list(source.resolutions) if "resolution" in training else []
        _check_fields(name, source, store)
    else:
        network, processor = _identity(name, source, store)
        training = {"resolution": source.resolution, "seed": source.seed}
        given = source.resolution
        resolutions = list(given.resolutions) if isinstance(given, Mixed) else [given]
    if "resolution" not in training:
        raise InputError(f"{name}: training={training} does not say at which resolution it was trained")
    seed = training.get("seed", 0)
    if not resolutions or not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(
            f"{name}: trained at resolution={training['resolution']!r} with seed={seed!r}, expected at least "
            "one level and a whole number"
        )
    keys = [_key(store, resolution) for resolution in resolutions]
    samples = training.get("samples")
    counts = [samples.get(each, 0) if isinstance(samples, Mapping) else 1 for each in resolutions]
    order = {key: i for i, key in enumerate(store.grids)}  # coarsest first
    at = max(range(len(keys)), key=lambda i: (counts[i], order.get(keys[i], -1)))
    try:
        grid = store.grids[store.key(resolutions[at])]
    except InputError as error:
        raise InputError(
            f"{name} was trained at {resolutions[at]}, whose grid is needed to predict there and "
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


def _key(store: FieldStore, resolution: Any) -> str:
    """The store's key of a resolution; its own name where the store does not have it."""
    try:
        return store.key(resolution)
    except InputError:
        return str(resolution)


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
    """Return where in results the seeds of each model and training resolution are."""
    places: dict[tuple[str, str], list[int]] = {}
    pairs = zip(data["model"].values.tolist(), data["train_resolution"].values.tolist(), strict=True)
    for i, pair in enumerate(pairs):
        places.setdefault(pair, []).append(i)
    return places
