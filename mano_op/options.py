"""Options that are declared once: frozen dataclasses whose values pydantic checks where they are made.

pydantic is imported by the first check: the command line shows its help, and refuses wrong words, without it.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Annotated, Any, ParamSpec, TypeVar, dataclass_transform

from mano_op.errors import InputError, did_you_mean

T = TypeVar("T")
P = ParamSpec("P")
_CONFIG: Any = {"arbitrary_types_allowed": True, "extra": "forbid"}


@dataclass_transform(kw_only_default=True, frozen_default=True)
def options(cls: type[T]) -> type[T]:
    """Make a class with a field for each option a frozen dataclass, whose values are checked by pydantic.

    Instances are made by keywords; values of other types and unknown names raise an `InputError`.

    Examples
    --------
    >>> @options
    ... class Walk:
    ...     steps: Count = 1
    >>> Walk(steps=3)
    Walk(steps=3)
    >>> Walk(steps=0)
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: steps=0, expected a whole number, at least 1
    >>> Walk(step=3)
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: there is no option step=3 of Walk; did you mean 'steps'?
    """
    frozen: Any = dataclass(frozen=True, kw_only=True)(cls)
    frozen.__pydantic_config__ = _CONFIG

    @functools.cache
    def validator() -> Any:
        from pydantic import TypeAdapter

        return TypeAdapter(frozen).validator

    @functools.wraps(frozen.__init__)
    def __init__(self: Any, **values: Any) -> None:
        from pydantic_core import ArgsKwargs, ValidationError

        known = [field.name for field in fields(frozen)]
        for name in values:
            if name not in known:
                renamed = getattr(cls, "RENAMED", {}).get(name)
                instead = f": give {renamed}" if renamed else did_you_mean(name, known)
                raise InputError(
                    f"there is no option {name}={values[name]!r} of {cls.__name__}"
                    f"{instead or ': it has ' + ', '.join(known)}"
                )
        try:
            validator().validate_python(ArgsKwargs((), values), self_instance=self)
        except ValidationError as error:
            raise InputError(_message(error.errors(), values)) from None

    frozen.__init__ = __init__
    return frozen


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Check the arguments of a function by its annotations, which are those of options."""
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    keywords = next((each.name for each in parameters if each.kind is each.VAR_KEYWORD), "")

    @functools.cache
    def validated() -> Callable[..., T]:
        from pydantic import validate_call

        return validate_call(config=_CONFIG)(function)

    @functools.wraps(function)
    def call(*args: P.args, **values: P.kwargs) -> T:
        from pydantic_core import ValidationError

        try:
            named = signature.bind(*args, **values).arguments
        except TypeError as error:
            raise TypeError(f"{function.__qualname__}() {error}") from None
        named.update(named.pop(keywords, {}))
        try:
            return validated()(**named)
        except ValidationError as error:
            raise InputError(_message(error.errors(), named)) from None

    return call


def with_fields_of(cls: type) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Show the fields of options in the signature of a function, in place of its ``**keywords``.

    Examples
    --------
    >>> @options
    ... class Walk:
    ...     steps: Count = 1
    >>> @with_fields_of(Walk)
    ... def walk(start: float, **walk: Any) -> Walk:
    ...     return Walk(**walk)
    >>> list(inspect.signature(walk).parameters)
    ['start', 'steps']
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        *named, _ = signature.parameters.values()
        of_fields = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
            )
            for field in fields(cls)
            if field.name not in signature.parameters
        ]
        function.__signature__ = signature.replace(parameters=[*named, *of_fields])  # type: ignore[attr-defined]
        return function

    return decorate


def _message(errors: Sequence[Any], values: Mapping[str, Any]) -> str:
    """Return what is wrong with the first refused value: its name, the value, and what is expected."""
    cause = errors[0].get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return str(cause)
    if not errors[0]["loc"]:  # raised by __post_init__
        return f"{dict(values)}: {errors[0]['msg']}"
    name, should_be = errors[0]["loc"][0], "Input should be "
    if name not in values:
        return f"{name} is missing: give {name}="
    # A value that may be of several types has an error of each.
    messages = [error["msg"] for error in errors if error["loc"][0] == name]
    expected = [text.removeprefix(should_be) for text in messages if text.startswith(should_be)]
    if not expected:
        return f"{name}={values[name]!r}: {messages[0]}"
    return f"{name}={values[name]!r}, expected {' or '.join(expected)}"


@dataclass(frozen=True)
class Check:
    """A check of a field, before pydantic's own: a function of the value and of the field's name.

    It returns the value as the field has it, or raises an `InputError`.
    """

    function: Callable[[Any, str], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Return pydantic's schema of the field, with the check before it."""
        from pydantic import BeforeValidator

        before = BeforeValidator(lambda value, info: self.function(value, info.field_name))
        return before.__get_pydantic_core_schema__(source, handler)


def options_of(cls: type[T]) -> Check:
    """Return a check for a field whose values are options: a mapping of them makes an instance."""
    return Check(lambda value, name: cls(**value) if isinstance(value, Mapping) else value)


def _expect(expected: str, kind: type, fits: Callable[[Any], bool], as_type: Callable[[Any], Any]) -> Check:
    """Return a check that a value, numpy's too, is of a kind and fits; booleans are no numbers."""

    def check(value: Any, name: str) -> Any:
        of_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        with suppress(OverflowError):  # no float is near a whole number of 400 digits
            if of_kind and fits(converted := as_type(value)):
                return converted
        raise InputError(f"{name}={value!r}, expected {expected}")

    return Check(check)


def whole(expected: str, fits: Callable[[int], bool]) -> Check:
    """Return a check that a value is a whole number that fits what is expected."""
    return _expect(expected, Integral, fits, int)


def number(expected: str, fits: Callable[[float], bool]) -> Check:
    """Return a check that a value is a finite number that fits what is expected."""
    return _expect(expected, Real, lambda value: math.isfinite(value) and fits(value), float)


Count = Annotated[int, whole("a whole number, at least 1", lambda n: n >= 1)]
Whole = Annotated[int, whole("a whole number, at least 0", lambda n: n >= 0)]
Seed = Annotated[int, whole("a whole number, at least 0 and less than 2**63", lambda n: 0 <= n < 2**63)]
Finite = Annotated[float, number("a finite number", lambda value: True)]
Positive = Annotated[float, number("a finite number, more than 0", lambda value: value > 0)]
NonNegative = Annotated[float, number("a finite number, 0 or more", lambda value: value >= 0)]
Part = Annotated[float, number("a part, between 0 and 1: give 0.1, say", lambda value: 0 < value < 1)]
Fraction = Annotated[
    float, number("a number of at least 0 and less than 1: give 0.1, say", lambda value: 0 <= value < 1)
]
Flag = Annotated[bool, _expect("True or False", bool, lambda value: True, bool)]


def record(values: Any, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields of some options as a dictionary, those that are not None."""
    named = {field.name: getattr(values, field.name) for field in fields(values)}
    return {
        name: dict(value) if isinstance(value, Mapping) else value
        for name, value in named.items()
        if name not in without and value is not None
    }
