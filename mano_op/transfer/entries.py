"""The runs that are to be judged: by model, by where they were trained, and by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mano_op.data.channels import channels_of
from mano_op.data.store import FieldStore
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.runs import Run
from mano_op.transfer.series import PLUS

Models = Mapping[str, Run | Sequence[Run]]


@dataclass(frozen=True)
class Entry:
    """A run and its place in the results.

    Attributes
    ----------
    model : str
    train_resolution : str
        The levels it was trained on, coarsest first: "r16", "r16+r32".
    seed : int
    run : Run
    home : str
        Of these the one that most of its training samples had, the finest if there are several.
    grid : Grid
        That level's.
    name : str
        What to call it in a message.
    """

    model: str
    train_resolution: str
    seed: int
    run: Run
    home: str
    grid: Grid
    name: str


def entries_of(models: Models, store: FieldStore) -> list[Entry]:
    """Every run with its place.

    Parameters
    ----------
    models : mapping of str to Run or sequence of Run
        The runs of one name differ in ``training["resolution"]`` or ``training["seed"]``.
    store : FieldStore
        With the variables that the runs were trained on, and their home levels.

    Raises
    ------
    InputError
        If there are none, two have one place, or one is not for this store.
    """
    named: dict[str, tuple[str, Run]] = {}
    for model, given in models.items():
        runs = [given] if isinstance(given, Run) else list(given)
        for i, run in enumerate(runs):
            if not isinstance(run, Run):
                raise InputError(
                    f"{model}: {type(run).__name__}, expected a Run: `load_run` or `train_model` makes one"
                )
            named[model if len(runs) == 1 else f"run {i} of {model}"] = model, run
    if not named:
        raise InputError("no models to judge; expected at least one run")
    times = {name: run.times for name, (_, run) in named.items()}
    if any(asked != next(iter(times.values())) for asked in times.values()):
        raise InputError(f"models for different times, {times}; judge them one after the other")
    made = [_entry(model, run, store, name) for name, (model, run) in named.items()]
    places: dict[tuple[str, str, int], Entry] = {}
    homes: dict[tuple[str, str], Entry] = {}
    for one in made:
        other = places.setdefault((one.model, one.train_resolution, one.seed), one)
        if other is not one:
            raise InputError(
                f"{other.name} and {one.name} were both trained at {one.train_resolution} with seed "
                f"{one.seed}: judge them under different names"
            )
        same = homes.setdefault((one.model, one.train_resolution), one)
        if same.home != one.home:
            raise InputError(
                f"{same.name} and {one.name} were both trained at {one.train_resolution}, but most samples "
                f"were at {same.home} and at {one.home}: judge them under different names"
            )
    return made


def first_of_each(entries: Sequence[Entry]) -> list[Entry]:
    """One entry for each model and training resolution, that of the smallest seed."""
    found: dict[tuple[str, str], Entry] = {}
    for one in sorted(entries, key=lambda entry: entry.seed):
        found.setdefault((one.model, one.train_resolution), one)
    return [one for one in entries if found[one.model, one.train_resolution] is one]


def places(entries: Sequence[Entry], store: FieldStore) -> tuple[list[str], list[str], list[int]]:
    """The labels of the results: models in their order, training resolutions coarsest first, and seeds."""
    levels = list(store.grids)
    trained = {
        one.train_resolution: (levels.index(one.home), PLUS in one.train_resolution, one.train_resolution)
        for one in entries
    }
    models = list(dict.fromkeys(one.model for one in entries))
    return models, sorted(trained, key=lambda label: trained[label]), sorted({one.seed for one in entries})


def _entry(model: str, run: Run, store: FieldStore, name: str) -> Entry:
    _check_fields(name, run, store)
    training = run.training
    if "resolution" not in training:
        raise InputError(f"{name}: training={training} does not say at which resolution it was trained")
    asked, levels = training["resolution"], list(run.resolutions)
    seed = training.get("seed", 0)
    if not levels or not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(
            f"{name}: trained at resolution={asked!r} with seed={seed!r}, expected at least one level and a "
            "whole number"
        )
    keys = [_known(store, level) for level in levels]
    counts = _counts(training, levels)
    order = {key: i for i, key in enumerate(store.grids)}  # coarsest first
    at = max(range(len(levels)), key=lambda i: (counts[i], order.get(keys[i], -1)))
    home = keys[at]
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
            f"{name} was trained on the grid {trained}, {home} of {store.path} is {grid}: judge "
            "it on a store with the registration and domain that it was trained with"
        )
    label = PLUS.join(sorted(keys, key=lambda key: order.get(key, len(order))))
    return Entry(model, label, seed, run, home, grid, name)


def _known(store: FieldStore, level: Any) -> str:
    """The store's key of a level; its own name where the store does not have it."""
    try:
        return store.key(level)
    except InputError:
        return str(level)


def _counts(training: Mapping[str, Any], levels: Sequence[Any]) -> list[float]:
    """How many training samples each level had, or in which proportion; ones if it is not known."""
    samples, ratios = training.get("samples"), training.get("ratios")
    if isinstance(samples, Mapping):
        return [float(samples.get(level, 0)) for level in levels]
    return [float(ratio) for ratio in ratios] if ratios else [1.0] * len(levels)


def _check_fields(name: str, run: Run, store: FieldStore) -> None:
    channels = channels_of(store.layout, **run.times)
    for role, mine, theirs in (
        ("inputs", run.processor.inputs, channels.inputs),
        ("outputs", run.processor.outputs, channels.outputs),
    ):
        if mine != theirs:
            raise InputError(
                f"{name} has the {role} {mine}, {store.path} has {theirs}: "
                "judge it on a store of the variables that it was trained on"
            )
    units = {variable.name: variable.units for variable in store.variables}
    for variable, unit in run.training.get("units", {}).items():
        if units.get(variable, unit) != unit:
            raise InputError(
                f"{name} was trained on {variable} in {unit}, {store.path} has it in {units[variable]}: "
                "convert the fields of the store"
            )
