"""Recipes of data sets: problem, resolutions, numbers of samples and seed, in a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PlainValidator

from mano_op.data.layout import check_splits
from mano_op.errors import InputError, did_you_mean, refusing
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


@contextmanager
def _naming(source: object) -> Iterator[None]:
    """Put the name of the source before the message of an error."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{source}: {error}") from error


def _samples(value: Any) -> Any:
    with _naming("samples"):
        check_splits(value)
    return value


@options
class Recipe:
    """Contents of a data set. `generate_fields` makes the same fields of the same recipe.

    Parameters
    ----------
    problem : str
        Name in `PROBLEMS`.
    resolutions, samples, seed, registration, solver_resolution
        Arguments of `generate_fields`.
    options : mapping
        Options of the problem.

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
    resolutions: Annotated[list[Count | Annotated[list[Count], Field(min_length=1)]], Field(min_length=1)]
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
        If there is no such file, it is not TOML, a key is missing or unknown, or `Recipe` refuses a value.
    """
    path = Path(path)
    if not path.is_file():
        known, hint = ", ".join(PROBLEMS), did_you_mean(str(path), PROBLEMS)
        raise InputError(f"{path} is neither a problem ({known}) nor a file; give one of them{hint}")
    with _naming(path):
        return Recipe(**tomllib.loads(path.read_text()))


def problem_of(name: str, options: Mapping[str, Any]) -> Problem:
    """Make a problem from its name and options.

    Raises
    ------
    InputError
        If there is no such problem or option, or a value is of another type or out of its range.

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
    cls, what = PROBLEMS[name], f"{name} with {dict(options)} cannot be computed"
    defaults = ", ".join(f"{f.name}={f.default}" for f in fields(cls) if f.name in options)
    remedy = f"expected values nearer to the defaults: {defaults}"
    with (
        refusing(what, remedy, ArithmeticError, MemoryError),
        np.errstate(over="raise", divide="raise", invalid="raise"),
    ):
        problem: Problem = cls(**options)
    return problem
