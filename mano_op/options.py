"""Options that are declared once: frozen dataclasses whose values are checked where they are made."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Annotated, Any, ParamSpec, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, ValidationError, validate_call
from pydantic.dataclasses import dataclass

from mano_op.errors import InputError, did_you_mean

T = TypeVar("T")
P = ParamSpec("P")
_CONFIG = ConfigDict(arbitrary_types_allowed=True, extra="forbid")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def options(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose fields are validated by pydantic.

    Parameters
    ----------
    cls : type
        With a field for each option. Its docstring says what each of them is for: the command line shows it.

    Returns
    -------
    type
        Its instances are made by keywords, and refuse values of other types with an `InputError`.

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
    frozen: Any = dataclass(cls, frozen=True, kw_only=True, config=_CONFIG)
    validate = frozen.__init__

    @functools.wraps(validate)
    def __init__(self: Any, **values: Any) -> None:
        known = [field.name for field in fields(frozen)]
        for name in values:
            if name not in known:
                raise InputError(
                    f"there is no option {name}={values[name]!r} of {cls.__name__}"
                    f"{did_you_mean(name, known) or ': it has ' + ', '.join(known)}"
                )
        try:
            validate(self, **values)
        except ValidationError as error:
            raise InputError(_message(error.errors(), values)) from None

    frozen.__init__ = __init__
    return frozen


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Check the arguments of a function by its annotations, which are those of options.

    Examples
    --------
    >>> @checked
    ... def walk(steps: Count = 1) -> int:
    ...     return steps
    >>> walk(0)
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: steps=0, expected a whole number, at least 1
    """
    validate: Callable[..., T] = validate_call(config=_CONFIG)(function)
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    keywords = next((each.name for each in parameters if each.kind is each.VAR_KEYWORD), "")

    @functools.wraps(function)
    def call(*args: P.args, **values: P.kwargs) -> T:
        named = signature.bind(*args, **values).arguments
        named.update(named.pop(keywords, {}))
        try:
            return validate(**named)
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


def options_of(cls: type[T]) -> BeforeValidator:
    """Return a validator for a field whose values are options: a mapping of them makes an instance."""
    return BeforeValidator(lambda value: cls(**value) if isinstance(value, Mapping) else value)


def _whole(at_least: int, value: Any, info: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < at_least:
        raise InputError(f"{info.field_name}={value!r}, expected a whole number, at least {at_least}")
    return int(value)


def _number(fits: Callable[[float], bool], expected: str, value: Any, info: Any) -> float:
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # of a whole number that no float is near
        number = math.inf
    if not (math.isfinite(number) and fits(number)):
        raise InputError(f"{info.field_name}={value!r}, expected {expected}")
    return number


def _real(fits: Callable[[float], bool], expected: str) -> BeforeValidator:
    return BeforeValidator(functools.partial(_number, fits, expected))


Count = Annotated[int, BeforeValidator(functools.partial(_whole, 1))]
Whole = Annotated[int, BeforeValidator(functools.partial(_whole, 0))]
Positive = Annotated[float, _real(lambda value: value > 0, "a finite number, more than 0")]
NonNegative = Annotated[float, _real(lambda value: value >= 0, "a finite number, 0 or more")]
Part = Annotated[float, _real(lambda value: 0 < value < 1, "a part, between 0 and 1: give 0.1, say")]
Fraction = Annotated[
    float, _real(lambda value: 0 <= value < 1, "a number of at least 0 and less than 1: give 0.1, say")
]


def record(values: Any, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields of some options as a dictionary, those that are not None.

    Examples
    --------
    >>> @options
    ... class Walk:
    ...     steps: Count = 1
    ...     seed: Whole | None = None
    >>> record(Walk())
    {'steps': 1}
    """
    named = {field.name: getattr(values, field.name) for field in fields(values)}
    return {
        name: dict(value) if isinstance(value, Mapping) else value
        for name, value in named.items()
        if name not in without and value is not None
    }
