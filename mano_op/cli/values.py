"""Words of the command line as values, and the options that several commands have."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter, Token

from mano_op.errors import InputError

Parse = Callable[[str], Any]
RUNNING = Group("Logging and resuming", sort_key=9)


def path_or_url(text: str) -> str | Path:
    """Return a path, or an address that fsspec knows, which a path would change: s3://bucket/a.zarr."""
    return text if "://" in text else Path(text)


def size(text: str) -> int | tuple[int, ...]:
    """Return a size by ``16``, ``16x24``, or the name of a resolution, ``r16``."""
    try:
        sizes = tuple(int(n) for n in text.lower().removeprefix("r").split("x"))
    except ValueError as error:
        raise ValueError(f"{text!r}: expected a size, 16, or one an axis, 16x24") from error
    return sizes[0] if len(sizes) == 1 else sizes


def whole(text: str) -> int:
    """Return a whole number."""
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{text!r}: expected a whole number") from error


def literal(text: str) -> Any:
    """Return a JSON value, or the word itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def word_or_pair(text: str) -> Any:
    """Return the word ``mean``, or the pair of ``permeability=mean``."""
    name, equals, word = text.partition("=")
    return (name, literal(word)) if equals else text


def one_or_each(values: Sequence[Any], expected: str) -> Any:
    """Return the only word of an option, or its words by name, each name once."""
    pairs = [value for value in values if isinstance(value, tuple)]
    if len(pairs) < len(values) != 1 or len(dict(pairs)) < len(pairs):
        given = (f"{value[0]}={value[1]}" if isinstance(value, tuple) else value for value in values)
        raise InputError(f"{' '.join(given)}: expected {expected}")
    return dict(pairs) if pairs else values[0]


def word(parse: Parse, **choices: Any) -> Parameter:
    """A parameter of one word."""
    return Parameter(converter=lambda _, tokens: parse(tokens[0].value), n_tokens=1, **choices)


def words(parse: Parse, collect: Callable[[Any], Any] = list, **choices: Any) -> Parameter:
    """A parameter of several words, and what they are collected in."""

    def convert(_: Any, tokens: Sequence[Token]) -> Any:
        return collect(parse(token.value) for token in tokens)

    return Parameter(converter=convert, accepts_keys=False, n_tokens=-1, **choices)


def pairs(
    form: str, example: str, parse: Parse = str, key: Parse = str, collect: Any = dict, **choices: Any
) -> Parameter:
    """A parameter of words such as ``NAME=VALUE``, as a mapping if they are not collected otherwise."""

    def pair(text: str) -> tuple[Any, Any]:
        left, _, right = text.partition("=")
        try:
            if left and right:
                return key(left), parse(right)
        except ValueError:
            pass
        raise ValueError(f"{text!r}: expected {form}, {example}")

    return words(pair, collect, metavar=f"{form}...", **choices)


Pairs = dict[str, Any]
Int = Annotated[int, word(whole)]  # cyclopts would round 1.5
Store = Annotated[Any, word(path_or_url, help="NAME.zarr, or an address of it: s3://bucket/NAME.zarr.")]
NewStore = Annotated[Any, word(path_or_url, help="The store to make, NAME.zarr.")]
Size = Annotated[Any, word(size, metavar="N|NxM")]
Sizes = Annotated[list[Any], words(size, metavar="N|NxM...")]
Options = Annotated[Pairs, pairs("NAME=VALUE", "hidden_channels=24", literal, allow_repeating=True)]
Samples = Annotated[Pairs, pairs("SPLIT=SAMPLES", "train=1000", int)]
Source = Annotated[
    str,
    Parameter(
        help="digits, a folder of images, CLASS/NAME.png or train/CLASS/NAME.png, or a data set on disk."
    ),
]
Device = Annotated[str, Parameter(help="As torch names it: cpu, cuda, cuda:1.")]
Quiet = Annotated[bool, Parameter(group=RUNNING, help="No progress bars.")]
Overwrite = Annotated[bool, Parameter(group=RUNNING, help="Replace what is there.")]


@Parameter(name="*", group=RUNNING)
@dataclass(frozen=True)
class Writing:
    """Treatment of results that are there already.

    Attributes
    ----------
    resume : bool
        Continue an interrupted command, given the same options; begin where there is nothing yet.
    overwrite : bool
        Replace what is there.
    quiet : bool
        No progress bars.
    config : path
        YAML or JSON with names of options and their values, or the run.json of a run. Words go before it.
    """

    resume: bool = False
    overwrite: bool = False
    quiet: bool = False
    config: Path | None = None

    @property
    def choices(self) -> dict[str, Any]:
        """The arguments of the library's functions."""
        return {"resume": self.resume, "overwrite": self.overwrite, "progress": not self.quiet}
