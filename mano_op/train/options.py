"""What a model has to know of the fields that it is for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mano_op.data.channels import Channels
from mano_op.data.store import FieldStore
from mano_op.errors import InputError


def options_for(
    store: FieldStore, key: str, channels: Channels, arch: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The given options of a model and those that follow from the fields.

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


def _same(given: Any, derived: Any) -> bool:
    """Whether an option is what follows from the fields, which a flag for all axes may be too."""
    if isinstance(derived, list):
        given = [given] * len(derived) if isinstance(given, bool) else list(given)
    return bool(given == derived)
