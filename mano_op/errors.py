"""The exception for input that cannot be used, and checks of numbers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real


class InputError(ValueError):
    """Raised for input that cannot be used, before any work starts.

    The message names the value that was given, what is expected, and what to do about it. It is a
    `ValueError`, so code that catches those keeps working; the command line prints it without a
    traceback, which it keeps for everything else.

    Examples
    --------
    >>> raise InputError("got window=0, expected a positive whole number: pass window=4, say")
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: got window=0, expected a positive whole number: pass window=4, say
    """


def check_whole(at_least: int = 1, **numbers: object) -> None:
    """Refuse values that are no whole numbers, numpy's too, or too small.

    Examples
    --------
    >>> check_whole(epochs=30, batch_size=2.5)
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: batch_size=2.5, expected a whole number, at least 1
    """
    for name, number in numbers.items():
        if not isinstance(number, Integral) or isinstance(number, bool) or number < at_least:
            raise InputError(f"{name}={number!r}, expected a whole number, at least {at_least}")


def check_finite_number(*, zero: bool, **numbers: object) -> None:
    """Refuse values that are no finite numbers, or below zero, or zero if `zero` is false.

    Examples
    --------
    >>> check_finite_number(zero=False, learning_rate=float("nan"))
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: learning_rate=nan, expected a finite number, more than 0
    """
    for name, number in numbers.items():
        fits = isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number)
        if not fits or number < 0 or (number == 0 and not zero):  # type: ignore[operator]
            least = "0 or more" if zero else "more than 0"
            raise InputError(f"{name}={number!r}, expected a finite number, {least}")


def listed(values: Iterable[object], most: int = 6) -> str:
    """Return a list as text for a message: all of a short one, the first and the last values of a long one.

    Examples
    --------
    >>> listed([0.0, 0.5, 1.0])
    '0, 0.5, 1'
    >>> listed(range(100))
    '0, 1, 2, 3, ..., 99 (100)'
    """
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    if len(shown) <= most:
        return ", ".join(shown)
    return f"{', '.join(shown[: most - 2])}, ..., {shown[-1]} ({len(shown)})"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question for the known name that is nearest to an unknown one; empty if none is near.

    Examples
    --------
    >>> did_you_mean("n_mode", ["in_channels", "n_modes"])
    "; did you mean 'n_modes'?"
    >>> did_you_mean("depth", ["in_channels", "n_modes"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
