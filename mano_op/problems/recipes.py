"""Data sets by name: which problem, at which resolutions, how many samples and from which seed, in a file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from mano_op.data.layout import check_splits
from mano_op.errors import InputError, did_you_mean
from mano_op.grid import REGISTRATIONS, Registration
from mano_op.problems.burgers import Burgers
from mano_op.problems.darcy import Darcy
from mano_op.problems.navier_stokes import NavierStokes
from mano_op.problems.poisson import Poisson
from mano_op.problems.problem import Problem
from mano_op.problems.reaction_diffusion import FitzHughNagumo

PROBLEMS: Mapping[str, type[Any]] = {
    problem.name: problem for problem in (Darcy, Poisson, Burgers, NavierStokes, FitzHughNagumo)
}

# TOML's whole numbers have 64 bits, and so have numpy's.
_LARGEST = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a data set is made of; `generate` of the same recipe makes the same fields.

    Attributes
    ----------
    problem : str
        One of `PROBLEMS`.
    resolutions : sequence of int or of sequence of int
    samples : mapping of str to int
    seed : int
    registration : {"node", "node_both", "cell"}
    solver_resolution : int, optional
    options : mapping
        Of the problem.

    Raises
    ------
    InputError
        If a value is of another kind, out of its range, or the problem has no such option.

    Examples
    --------
    >>> Recipe(problem="darcy", resolutions=[16, [16, 24]], samples={"train": 10}).registration
    'node'
    >>> Recipe(problem="darcy", resolutions=16, samples={"train": 10})
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: resolutions=16; expected a list of at least one: resolutions = [16, 32]
    """

    problem: str
    resolutions: Sequence[int | Sequence[int]]
    samples: Mapping[str, int]
    seed: int = 0
    registration: Registration = "node"
    solver_resolution: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_resolutions(self.resolutions)
        if not isinstance(self.samples, Mapping):
            raise InputError(
                f"samples={self.samples!r}; expected the size of each split: samples = {{train = 1000}}"
            )
        try:
            check_splits(self.samples)
        except InputError as error:
            raise InputError(f"samples: {error}") from error
        if not _is_whole(self.seed, 0):
            raise InputError(f"seed={self.seed!r}; expected a whole number, at least 0: seed = 0")
        if self.registration not in REGISTRATIONS:
            raise InputError(
                f"registration={self.registration!r}; expected one of {', '.join(REGISTRATIONS)}: "
                'registration = "node"'
            )
        if self.solver_resolution is not None and not _is_whole(self.solver_resolution, 1):
            raise InputError(
                f"solver_resolution={self.solver_resolution!r}; expected a whole number, at least 1, or no "
                "such key: solver_resolution = 128"
            )
        problem_of(self.problem, self.options)


def _check_resolutions(resolutions: object) -> None:
    if not isinstance(resolutions, list | tuple) or not resolutions:
        raise InputError(
            f"resolutions={resolutions!r}; expected a list of at least one: resolutions = [16, 32]"
        )
    for one in resolutions:
        sizes = one if isinstance(one, list | tuple) else [one]
        if not sizes or not all(_is_whole(size, 1) for size in sizes):
            raise InputError(
                f"resolutions={resolutions!r} has {one!r}; expected whole numbers, at least 1, or lists of "
                "one for each axis: resolutions = [16, [16, 24]]"
            )


def _is_whole(value: object, least: int) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return False
    return least <= int(value) <= _LARGEST


def _is_number(value: object) -> bool:
    return _is_whole(value, -_LARGEST) or (isinstance(value, float | np.floating) and math.isfinite(value))


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a TOML file; the keys are the attributes of `Recipe`.

    Raises
    ------
    InputError
        If there is no such file, it is no TOML, or as `recipe_of` does.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path} is neither a problem ({', '.join(PROBLEMS)}) nor a file; give one of them"
            f"{did_you_mean(str(path), PROBLEMS)}"
        )
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}") from error
    try:
        return recipe_of(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def recipe_of(content: Mapping[str, Any]) -> Recipe:
    """A recipe from what a file says, whatever that is.

    Raises
    ------
    InputError
        If a key is missing or not known, or a value is not what `Recipe` expects.

    Examples
    --------
    >>> recipe_of({"problem": "burgers", "resolutions": [64], "samples": {"train": 10}}).seed
    0
    >>> recipe_of({"problem": "burgers", "resolution": [64], "samples": {"train": 10}})
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: key 'resolution'; expected some of problem, resolutions, samples, seed,
    registration, solver_resolution, options; did you mean 'resolutions'?
    """
    known = {one.name: one for one in fields(Recipe)}
    for name in content:
        if name not in known:
            raise InputError(
                f"key {name!r}; expected some of {', '.join(known)}{did_you_mean(str(name), known)}"
            )
    required = ["problem", "resolutions", "samples"]
    if missing := [name for name in required if name not in content]:
        raise InputError(f"no {', '.join(missing)}; expected at least {', '.join(required)}")
    return Recipe(**content)


def problem_of(name: str, options: Mapping[str, Any]) -> Problem:
    """A problem by its name, with some of its options.

    Raises
    ------
    InputError
        If there is no such problem, it has no such option, or the value of one is of another kind or out of
        its range.

    Examples
    --------
    >>> problem_of("darcy", {"coefficient": "lognormal"}).coefficient
    'lognormal'
    >>> problem_of("burgers", {"viscocity": 0.01})
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: burgers has no option 'viscocity'; it has viscosity, final_time, n_steps,
    scale, tau, alpha, n_modes, time_step; did you mean 'viscosity'?
    """
    if not isinstance(name, str) or name not in PROBLEMS:
        raise InputError(
            f"problem {name!r}; expected one of {', '.join(PROBLEMS)}{did_you_mean(str(name), PROBLEMS)}"
        )
    if not isinstance(options, Mapping):
        raise InputError(
            f"options={options!r}; expected values by name, such as options = {{tau = 3.0}}, or no such key"
        )
    known = {one.name: one.default for one in fields(PROBLEMS[name])}
    for option, value in options.items():
        if option not in known:
            raise InputError(
                f"{name} has no option {option!r}; it has {', '.join(known)}"
                f"{did_you_mean(str(option), known)}"
            )
        if not _is_like(value, known[option]):
            raise InputError(f"{name} with {option}={value!r}; expected {_kind(known[option])}")
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            made: Problem = PROBLEMS[name](**options)
    except InputError:
        raise
    except (ArithmeticError, MemoryError, ValueError) as error:  # of more than there is room or digits for
        raise InputError(
            f"{name} with {dict(options)} cannot be computed ({error}); expected values nearer to the "
            f"defaults: {', '.join(f'{option}={known[option]}' for option in options)}"
        ) from error
    return made


def _is_like(value: object, default: object) -> bool:
    """Whether a value is of the kind of an option, which its default tells; None is for a number."""
    if isinstance(default, str):
        return isinstance(value, str)
    if isinstance(default, tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(default)
            and all(_is_like(one, like) for one, like in zip(value, default, strict=True))
        )
    if isinstance(default, int):
        return _is_whole(value, -_LARGEST)
    return (value is None and default is None) or _is_number(value)


def _kind(default: object) -> str:
    if isinstance(default, str):
        return f"a word, such as {default!r}"
    if isinstance(default, tuple):
        return f"a list of {len(default)} numbers, such as {list(default)}"
    if isinstance(default, int):
        return f"a whole number, such as {default}"
    return "a finite number" + ("" if default is None else f", such as {default}")
