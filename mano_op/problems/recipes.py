"""Recipes of data sets: problem, resolutions, numbers of samples and seed, in a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import PlainValidator

from mano_op.data.layout import check_splits
from mano_op.errors import InputError, check_whole, did_you_mean
from mano_op.grid import Registration
from mano_op.options import Count, Whole, options
from mano_op.problems.burgers import Burgers
from mano_op.problems.darcy import Darcy
from mano_op.problems.navier_stokes import NavierStokes
from mano_op.problems.poisson import Poisson
from mano_op.problems.problem import Problem
from mano_op.problems.reaction_diffusion import FitzHughNagumo

PROBLEMS: Mapping[str, type[Any]] = {
    problem.name: problem for problem in (Darcy, Poisson, Burgers, NavierStokes, FitzHughNagumo)
}


def _resolutions(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"resolutions={value!r}; expected a list of at least one: resolutions = [16, 32]")
    for resolution in value:
        sizes = resolution if isinstance(resolution, list | tuple) else [resolution]
        if not sizes or any(isinstance(size, list | tuple) for size in sizes):
            raise InputError(
                f"resolutions={value!r} has {resolution!r}; expected a whole number, or one for each axis: "
                "resolutions = [16, [16, 24]]"
            )
        for size in sizes:
            check_whole(resolutions=size)
    return value


def _samples(value: Any) -> Any:
    try:
        check_splits(value)
    except InputError as error:
        raise InputError(f"samples: {error}") from error
    return value


@options
class Recipe:
    """Contents of a data set: `generate_fields` makes the same fields of the same recipe.

    Parameters
    ----------
    problem : str
        A name in `PROBLEMS`.
    resolutions, samples, seed, registration, solver_resolution
        As in `generate_fields`.
    options : mapping
        Of the problem.

    Raises
    ------
    InputError
        If a value is of another type or out of its range, or the problem has no such option.

    Examples
    --------
    >>> Recipe(problem="darcy", resolutions=[16, [16, 24]], samples={"train": 10}).registration
    'node'
    >>> Recipe(problem="darcy", resolution=[16], samples={"train": 10})
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: there is no option resolution=[16] of Recipe; did you mean 'resolutions'?
    """

    problem: str
    resolutions: Annotated[Sequence[int | Sequence[int]], PlainValidator(_resolutions)]
    samples: Annotated[Mapping[str, int], PlainValidator(_samples)]
    seed: Whole = 0
    registration: Registration = "node"
    solver_resolution: Count | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem_of(self.problem, self.options)


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a TOML file; the keys are the options of `Recipe`.

    Raises
    ------
    InputError
        If there is no such file, it is no TOML, a key is missing or not known, or `Recipe` refuses a value.
    """
    path = Path(path)
    if not path.is_file():
        known, hint = ", ".join(PROBLEMS), did_you_mean(str(path), PROBLEMS)
        raise InputError(f"{path} is neither a problem ({known}) nor a file; give one of them{hint}")
    try:
        return Recipe(**tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def problem_of(name: str, options: Mapping[str, Any]) -> Problem:
    """Make a problem from its name and some of its options.

    Raises
    ------
    InputError
        If there is no such problem, it has no such option, or a value is of another type or out of its range.

    Examples
    --------
    >>> problem_of("darcy", {"coefficient": "lognormal"}).coefficient
    'lognormal'
    >>> problem_of("burgers", {"viscocity": 0.01})
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: there is no option viscocity=0.01 of Burgers; did you mean 'viscosity'?
    """
    if name not in PROBLEMS:
        raise InputError(
            f"problem {name!r}; expected one of {', '.join(PROBLEMS)}{did_you_mean(name, PROBLEMS)}"
        )
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            problem: Problem = PROBLEMS[name](**options)
    except (ArithmeticError, MemoryError) as error:
        known = fields(PROBLEMS[name])
        defaults = ", ".join(f"{option.name}={option.default}" for option in known if option.name in options)
        raise InputError(
            f"{name} with {dict(options)} cannot be computed ({error}); expected values nearer to the "
            f"defaults: {defaults}"
        ) from error
    return problem
