"""What a model has to know of the fields that it is for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mano_op.boundary import Boundary, ends_by_axis
from mano_op.data.channels import Channels
from mano_op.data.processor import FieldProcessor
from mano_op.data.store import FieldStore
from mano_op.errors import InputError
from mano_op.grid import Grid


def options_for(
    store: FieldStore,
    key: str,
    channels: Channels,
    arch: str,
    given: Mapping[str, Any],
    processor: FieldProcessor,
) -> dict[str, Any]:
    """The given options of a model and those that follow from the fields.

    Some have to be what follows from them. Others, MANO's ``reference_shape`` and ``boundary_values``, are
    taken from them unless they are given.

    Parameters
    ----------
    store : FieldStore
    key : str
        The level that is trained on.
    channels : Channels
        Of its samples.
    arch : str
        Name in neuraloperator's registry.
    given : mapping
        Constructor arguments.
    processor : FieldProcessor
        Between the fields and what the model has.

    Raises
    ------
    InputError
        If a given option contradicts the fields, or cannot be kept with a run.
    """
    derived = _derived(store, key, channels, arch)
    for name, value in given.items():
        if name in derived and not _same(value, derived[name]):
            raise InputError(
                f"option {name}={value!r}, but the fields of {store.path} at {key} have "
                f"{name}={derived[name]!r}: leave it out, it follows from them"
            )
    options = {**derived, **{name: value for name, value in given.items() if name not in derived}}
    if arch.lower() == "mano":
        options.setdefault("reference_shape", list(store.grids[key].shape))
        options.setdefault("boundary_values", _boundary_values(store, key, channels, processor))
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"options={options} cannot be kept with the run ({error}); use plain values"
        ) from error
    return options


def _derived(store: FieldStore, key: str, channels: Channels, arch: str) -> dict[str, Any]:
    grid = store.grids[key]
    registrations = {axis.name: axis.registration for axis in grid}
    if arch.lower() == "mano" and len(set(registrations.values())) > 1:
        raise InputError(
            f"{key} has registrations {registrations}, MANO takes one for all axes: "
            "`resample` the fields to a grid with one"
        )
    options: dict[str, Any] = {"in_channels": len(channels.x), "out_channels": len(channels.y)}
    if arch.lower() in ("mano", "mano_published"):
        options["n_dim"] = grid.n_dim
    if arch.lower() == "mano":
        options |= {
            "registration": grid.axes[0].registration,
            "periodic": [axis.periodic for axis in grid],
        }
    return options


def _boundary_values(
    store: FieldStore, key: str, channels: Channels, processor: FieldProcessor
) -> list[float | None] | None:
    """What each output is known to have at all ends of axes that do not wrap, as the model has it."""
    grid = store.grids[key]
    stated = {variable.name: variable.boundary_value for variable in store.variables}
    known = [_only_value(grid, stated[channel.variable]) for channel in channels.y]
    if all(value is None for value in known):
        return None
    y = torch.tensor([0.0 if value is None else value for value in known])
    x = torch.zeros(1, len(channels.x), *[1] * grid.n_dim)
    training = processor.training
    normal = (
        processor.train().preprocess({"x": x, "y": y.view(1, -1, *[1] * grid.n_dim)})["y"].flatten().tolist()
    )
    processor.train(training)
    # The logarithm of 0 is no value that a model could have.
    return [
        value if told is not None and math.isfinite(value) else None
        for told, value in zip(known, normal, strict=True)
    ]


def _only_value(grid: Grid, boundary: Boundary | None) -> float | None:
    """The value that is known at all ends, if it is one."""
    ends = ends_by_axis(grid, boundary)
    values = {value for axis in grid if not axis.periodic for value in ends.get(axis.name, (None, None))}
    return values.pop() if len(values) == 1 else None


def _same(given: Any, derived: Any) -> bool:
    """Whether an option is what follows from the fields, which a flag for all axes may be too."""
    if isinstance(derived, list):
        given = [given] * len(derived) if isinstance(given, bool) else list(given)
    return bool(given == derived)


def check_maps(
    model: nn.Module, arch: str, options: Mapping[str, Any], channels: Channels, grid: Grid
) -> None:
    """Refuse a model that cannot take these fields, before its first step and before anything is written.

    Parameters
    ----------
    model : nn.Module
    arch : str
    options : mapping
        What the model is called, in the message.
    channels : Channels
    grid : Grid

    Raises
    ------
    InputError
        If the model cannot take a sample of these channels on this grid, or its output is on another one.
    """
    training = model.training
    try:
        with torch.no_grad():
            y = model.eval()(torch.zeros(1, len(channels.x), *grid.shape))
    except Exception as error:  # any model of the registry: whatever it raises is its answer
        raise InputError(
            f"{arch} with {dict(options)} cannot take an input of shape (batch, {len(channels.x)}, "
            f"{', '.join(map(str, grid.shape))}): {type(error).__name__}: {error}"
        ) from error
    model.train(training)
    expected = (1, len(channels.y), *grid.shape)
    if tuple(y.shape) != expected:
        raise InputError(
            f"{arch} with {dict(options)} makes an output of shape {tuple(y.shape)} of a sample, expected "
            f"{expected}: give a model that keeps the grid"
        )
