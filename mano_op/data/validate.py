"""Checks of the values that are written to a store: all variables, of their shapes, finite in float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mano_op.data.guards import check_real, check_shape
from mano_op.data.layout import Layout
from mano_op.data.precision import Rounding
from mano_op.errors import InputError

# A lost chunk reads as NaN.
LOST = "a chunk of the store is lost or was changed: restore the store or make it anew"


def check_finite(
    values: NDArray[Any], samples: NDArray[np.int64], where: str, remedy: str = "expected finite values"
) -> None:
    """Refuse values ``(n, ...)`` that are not finite, naming the first of the sample numbers ``(n,)``."""
    bad = samples[~np.isfinite(values).reshape(len(values), -1).all(axis=1)]
    if len(bad):
        more = f" (and {len(bad) - 1} more samples)" if len(bad) > 1 else ""
        raise InputError(f"{where}: sample {bad[0]}{more} has a NaN or an infinity; {remedy}")


def accept(
    layout: Layout, samples: slice, fields: Mapping[str, Mapping[str, ArrayLike]], times: slice = slice(None)
) -> dict[tuple[str, str], tuple[NDArray[np.float32], Rounding]]:
    """Return the fields of some samples as they are stored, by resolution and variable, and their rounding.

    Each resolution that holds any of the samples has its variables, ``(samples, [times], *grid.shape)``;
    steady ones come with the first time. `InputError` if names, shapes or values do not fit.
    """
    numbers_at = {key: layout.samples(key)[layout.rows_of(key, samples)] for key in layout.grids}
    expected = [key for key, numbers in numbers_at.items() if len(numbers)]
    _check_names(f"samples {samples.start} to {samples.stop - 1}: resolutions", fields, expected)
    written = [variable for variable in layout.variables if variable.time or not times.start]
    accepted = {}
    for key, variables in fields.items():
        _check_names(f"{key}: variables", variables, [variable.name for variable in written])
        numbers = numbers_at[key]
        for variable in written:
            where = f"{key}/{variable.name}"
            shape = (len(numbers), *layout.shape(key, variable, times))
            values = np.asarray(variables[variable.name])
            check_real(where, values.dtype)
            check_shape(where, values.shape, shape, "the samples, times where it varies, and points")
            check_finite(values, numbers, where)
            accepted[key, variable.name] = _rounded(values, numbers, where)
    return accepted


def _check_names(what: str, names: Iterable[str], expected: list[str]) -> None:
    if sorted(names) != sorted(expected):
        raise InputError(f"{what} {sorted(names)}; expected {sorted(expected)}: give these")


def _rounded(
    values: NDArray[Any], numbers: NDArray[np.int64], where: str
) -> tuple[NDArray[np.float32], Rounding]:
    with np.errstate(over="ignore"):  # becomes an infinity, which is refused by name
        single = values.astype(np.float32)
    over = ~np.isfinite(single)
    if over.any():
        first = tuple(np.argwhere(over)[0])
        raise InputError(
            f"{where}: sample {numbers[first[0]]} has the value {values[first]:g}, beyond what "
            "float32 holds, 3.4e38: give the variable in a larger unit"
        )
    if np.can_cast(values.dtype, np.float32):
        return single, Rounding()
    return single, Rounding.of(values.astype(np.float64), single)
