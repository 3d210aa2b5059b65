"""Checks that several parts of `mano_op.data` share, each with its one message."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mano_op.errors import InputError, did_you_mean, listed


def check_one_of(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a value that is none of the choices."""
    words = list(choices)
    if value not in words:
        raise InputError(
            f"{name}={value!r}; expected one of {', '.join(words)}{did_you_mean(str(value), words)}"
        )


def check_some_of(what: str, names: Iterable[object], known: Iterable[object], remedy: str = "") -> None:
    """Refuse names that are not known."""
    choices = list(known)
    if unknown := [str(name) for name in names if name not in choices]:
        expected = ", ".join(map(str, choices)) or "nothing"
        raise InputError(f"{what} {', '.join(unknown)}; expected some of {expected}{remedy}")


def check_each(
    name: str, values: Mapping[str, Any], keys: Sequence[str], alone: str = "", words: str = ""
) -> None:
    """Refuse what is no mapping with one value for each key."""
    if not isinstance(values, Mapping) or sorted(values) != sorted(keys):
        raise InputError(f"{name}={values!r}; expected {alone}one for each of {', '.join(keys)}{words}")


def check_has(
    where: object, kind: str, names: Iterable[str], present: Iterable[object], remedy: str = ""
) -> None:
    """Refuse names of what is missing."""
    known = list(present)
    if missing := [name for name in names if name not in known]:
        raise InputError(
            f"{where} has no {kind} {missing[0]!r}; it has {', '.join(map(str, known)) or 'none'}{remedy}"
        )


def check_options(function: Callable[..., Any], options: Mapping[str, Any], renamed: dict[str, str]) -> None:
    """Refuse keywords that a function has not; `renamed` has what to give instead of old ones."""
    parameters = inspect.signature(function).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    for name in options:
        if name not in known:
            hint = f": give {renamed[name]}" if name in renamed else did_you_mean(name, known)
            raise InputError(f"there is no option {name}={options[name]!r} of {function.__name__}{hint}")


def check_shape(where: object, shape: Sequence[int], expected: Sequence[int], remedy: str) -> None:
    """Refuse an array of another shape."""
    if tuple(shape) != tuple(expected):
        raise InputError(f"{where}: shape {tuple(shape)}; expected {tuple(expected)}: {remedy}")


def check_real(where: object, dtype: Any) -> None:
    """Refuse an array of anything but real numbers."""
    if getattr(dtype, "kind", "") not in "biuf" or not hasattr(dtype, "kind"):
        raise InputError(
            f"{where}: of {dtype}; expected real numbers, stored densely: write it anew with such"
        )


def check_increasing(name: str, values: NDArray[Any], where: str = "") -> None:
    """Refuse points or times that are not finite or do not increase."""
    if not np.isfinite(values).all():
        raise InputError(
            f"{where}{name}={listed(values.tolist())}; expected finite numbers: assign another, or "
            f"leave it out, `data.isel({{{name!r}: np.isfinite(data[{name!r}])}})`"
        )
    falls = np.diff(values) <= 0
    if falls.any():
        i = int(np.argmax(falls))
        raise InputError(
            f"{where}{name} {i} and {i + 1} are {values[i]:.9g} and {values[i + 1]:.9g}; expected values "
            f"that increase: `data.sortby({name!r})`, and each once: `data.drop_duplicates({name!r})`"
        )


def check_same(what: str, values: Mapping[Any, object]) -> None:
    """Refuse values that differ between resolutions."""
    first, *others = values.values()
    if any(other != first for other in others):
        raise InputError(f"{what} differ between resolutions: {dict(values)}; make them agree")


def check_alike(file: object, first: object, what: str, ours: object, theirs: object) -> None:
    """Refuse a file that has something else than the first one."""
    if ours != theirs:
        raise InputError(
            f"{file}: {what} = {ours}, in {first} {theirs}; make them agree, or import them into two stores"
        )


def check_not_forked(process: int, current: int, what: str, remedy: str) -> None:
    """Refuse to read in a process that was forked from the one whose threads read."""
    if process != current:
        raise InputError(
            f"this process was forked from the one that made the data set, and reading {what} here can hang: "
            f"{remedy}, or use DataLoader(..., multiprocessing_context='forkserver')"
        )
