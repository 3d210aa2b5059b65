"""Invertible functions of values, applied to a field before it is normalised."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from mano_op.errors import InputError

Array = NDArray[np.float64]

# log: positive fields over several orders of magnitude, as permeabilities are; asinh: the same with signs.
TRANSFORMS: Mapping[str, Callable[[Array], Array]] = {"log": np.log, "asinh": np.arcsinh}


def transformed(values: NDArray[np.float32], name: str | None, where: str) -> Array:
    """Transform values of a field, or widen them; those of "log" have to be positive."""
    wide = values.astype(np.float64)
    if name is None:
        return wide
    if name == "log" and not (wide > 0).all():
        raise InputError(
            f"{where}: the smallest value is {wide.min():g}, but transform {name!r} is of positive values; "
            "leave it out, or use 'asinh'"
        )
    return TRANSFORMS[name](wide)
