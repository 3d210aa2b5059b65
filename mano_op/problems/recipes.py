"""Data sets by name: which problem, at which resolutions, how many samples and from which seed, in a file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mano_op.errors import InputError, did_you_mean
from mano_op.problems.burgers import Burgers
from mano_op.problems.darcy import Darcy
from mano_op.problems.navier_stokes import NavierStokes
from mano_op.problems.poisson import Poisson
from mano_op.problems.problem import Problem
from mano_op.problems.reaction_diffusion import FitzHughNagumo

PROBLEMS: Mapping[str, type[Any]] = {
    problem.name: problem for problem in (Darcy, Poisson, Burgers, NavierStokes, FitzHughNagumo)
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a data set is made of; `generate` of the same recipe makes the same fields.

    Attributes
    ----------
    problem : str
        One of `PROBLEMS`.
    resolutions : list of int or of list of int
    samples : dict of str to int
    seed : int
    registration : str
    solver_resolution : int, optional
    options : dict
        Of the problem.
    """

    problem: str
    resolutions: list[int | list[int]]
    samples: dict[str, int]
    seed: int = 0
    registration: str = "node"
    solver_resolution: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a TOML file; the keys are the attributes of `Recipe`.

    Raises
    ------
    InputError
        If there is no such file, it is no TOML, or a key is missing or not known.
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
    known = {one.name: one for one in fields(Recipe)}
    for name in content:
        if name not in known:
            raise InputError(
                f"{path}: key {name!r}; expected some of {', '.join(known)}{did_you_mean(name, known)}"
            )
    missing = [name for name in ("problem", "resolutions", "samples") if name not in content]
    if missing:
        raise InputError(
            f"{path} has no {', '.join(missing)}; expected at least problem, resolutions and samples"
        )
    return Recipe(**content)


def problem_of(name: str, options: Mapping[str, Any]) -> Problem:
    """A problem by its name, with some of its options.

    Raises
    ------
    InputError
        If there is no such problem, or it has no such option.

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
    if name not in PROBLEMS:
        raise InputError(
            f"problem {name!r}; expected one of {', '.join(PROBLEMS)}{did_you_mean(name, PROBLEMS)}"
        )
    known = [one.name for one in fields(PROBLEMS[name])]
    for option in options:
        if option not in known:
            raise InputError(
                f"{name} has no option {option!r}; it has {', '.join(known)}{did_you_mean(option, known)}"
            )
    try:
        made: Problem = PROBLEMS[name](**options)
    except TypeError as error:  # of another kind than the option: a number that is a list, say
        raise InputError(
            f"{name} with {dict(options)}: {error}; see its docstring for what is expected"
        ) from error
    return made
