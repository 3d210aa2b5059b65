"""The exception for input that cannot be used, and checks that raise it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real


class InputError(ValueError):
    """Raised for input that cannot be used, before any work starts.

    The message names the value, what is expected, and what to do about it. The command line prints it without
    a traceback.

    Examples
    --------
    >>> issubclass(InputError, ValueError)
    True
    """


def check_whole(at_least: int = 1, **numbers: object) -> None:
    """Refuse values that are no whole numbers, numpy's too, or too small."""
    for name, number in numbers.items():
        if not isinstance(number, Integral) or isinstance(number, bool) or number < at_least:
            raise InputError(f"{name}={number!r}, expected a whole number, at least {at_least}")


def is_finite_number(value: object) -> bool:
    """Return whether a value is a finite number, numpy's too; booleans are no numbers."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_finite_number(*, zero: bool, **numbers: object) -> None:
    """Refuse values that are no finite numbers, or below zero, or zero if `zero` is false."""
    for name, number in numbers.items():
        if not is_finite_number(number) or number < 0 or (number == 0 and not zero):  # type: ignore[operator]
            least = "0 or more" if zero else "more than 0"
            raise InputError(f"{name}={number!r}, expected a finite number, {least}")


@contextmanager
def refusing(what: str, remedy: str, *errors: type[BaseException]) -> Iterator[None]:
    """Turn errors into an `InputError` that says what to do."""
    try:
        yield
    except errors as error:
        text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{what} ({text}); {remedy}") from error


def listed(values: Iterable[object], most: int = 6) -> str:
    """Return a list as text for a message: of a long one the first values and the last."""
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    if len(shown) <= most:
        return ", ".join(shown)
    return f"{', '.join(shown[: most - 2])}, ..., {shown[-1]} ({len(shown)})"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question for the known name that is nearest to an unknown one; empty if none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_options(owner: str, options: Iterable[str], known: Collection[str]) -> None:
    """Refuse the names of options that an owner does not have."""
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known) or ": leave it out, or use one of those"
            raise InputError(f"{owner} has no option {name!r}; it has {', '.join(known)}{hint}")
