"""Checks of what layers are given: fields, and shapes of grids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Annotated, Any

from pydantic import BeforeValidator
from torch import Tensor

from mano_op.errors import InputError
from mano_op.grid import Registration
from mano_op.options import whole


def _periodic(value: Any) -> Any:
    flags = value if isinstance(value, Sequence) else [value]
    if not all(isinstance(flag, bool) for flag in flags):
        raise InputError(f"periodic={value!r}, expected True or False, or one of them for each axis")
    return value


Dimensions = Annotated[int, whole("1, 2 or 3", lambda n: 1 <= n <= 3)]
Periodic = Annotated[bool | Sequence[bool], BeforeValidator(_periodic)]


def check_shape(
    n_dim: int,
    registration: Registration,
    what: str = "the grid that is trained on",
    **shape: Sequence[int] | None,
) -> tuple[int, ...] | None:
    """Return the shape of a grid, an option by name, as a tuple; None if it is not given.

    Raises
    ------
    InputError
        If it has other than `n_dim` whole numbers, or too small ones.

    Examples
    --------
    >>> check_shape(2, "node", reference_shape=[8, 9])
    (8, 9)
    """
    [(name, value)] = shape.items()
    if value is None:
        return None
    least = 2 if registration == "node_both" else 1
    counts = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else []
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) and n >= least for n in counts)
    if not whole or len(counts) != n_dim:
        raise InputError(
            f"{name}={value!r}, expected {n_dim} whole numbers, at least {least}: the points along each axis "
            f"of {what}"
        )
    return tuple(int(n) for n in counts)


def check_field(x: Tensor, n_dim: int, axes: str = "", name: str = "", **channels: int) -> None:
    """Refuse an input that is no field of so many channels; `name` is of the layer or model.

    Examples
    --------
    >>> import torch
    >>> check_field(torch.zeros(1, 3, 8), 1, channels=4)
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: got an input of shape (1, 3, 8), expected (batch, channels=4, n_1), each n at
    least 1: reshape it, or build with the channels and the n_dim of your data
    """
    [(option, count)] = channels.items()
    if x.ndim != n_dim + 2 or x.shape[1] != count or 0 in x.shape[2:]:
        axes = axes or ", ".join(f"n_{i + 1}" for i in range(n_dim))
        raise InputError(
            f"{name}{' ' if name else ''}got an input of shape {tuple(x.shape)}, expected (batch, "
            f"{option}={count}, {axes}), each n at least 1: reshape it, or build with the channels and the "
            "n_dim of your data"
        )
