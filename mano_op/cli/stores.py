"""``mano-op generate`` and ``mano-op store``; `mano_op.cli.formats` has its imports."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from mano_op.cli.formats import app as formats
from mano_op.cli.values import (
    Int,
    NewStore,
    Options,
    Quiet,
    Samples,
    Sizes,
    Store,
    Writing,
    one_or_each,
    word_or_pair,
    words,
)
from mano_op.errors import InputError, refusing

app = App(name="store", help="Check, describe, coarsen and import stores of fields.")
app.command(formats)
Scheduler = Annotated[
    str | None, Parameter(help="Address of a dask scheduler, tcp://...; this machine if left out.")
]


def generate(
    problem: Annotated[str, Parameter(metavar="PROBLEM|RECIPE")],
    store: NewStore,
    /,
    *,
    resolution: Sizes | None = None,
    samples: Samples | None = None,
    seed: Int | None = None,
    option: Options | None = None,
    registration: str | None = None,
    solver_resolution: Int | None = None,
    chunk: Int = 50,
    scheduler: Scheduler = None,
    writing: Writing = Writing(),
) -> None:
    """Solve a PDE for many samples, into a store.

    Parameters
    ----------
    problem : str
        darcy, poisson, burgers, navier_stokes, fitzhugh_nagumo, or the path of a recipe as in data/recipes.
        Options replace the values of a recipe.
    resolution : list
        Points along each axis, one resolution for each.
    samples : mapping
        Samples of each split, 0 for no such split; train=1000 test=50 without a recipe.
    seed : int
        Of the random fields; 0 without a recipe.
    option : mapping
        Of the problem, as JSON: viscosity=0.01; may be given more than once.
    registration : str
        Where points lie: node, on [0, 1), the default; node_both, on [0, 1]; cell, in the middle of cells.
    solver_resolution : int
        Solve on this many intervals a side; on as few as the resolutions need if left out.
    chunk : int
        Samples in a chunk of the store, which are solved for in one task and read in one.
    """
    from mano_op.problems.generate import generate_fields
    from mano_op.problems.recipes import PROBLEMS, Recipe, problem_of, read_recipe

    if problem not in PROBLEMS:
        recipe = read_recipe(problem)
    elif resolution is None:
        raise InputError(f"generate {problem}: give the --resolution, such as --resolution 16 32")
    else:
        recipe = Recipe(problem=problem, resolutions=resolution, samples={"train": 1000, "test": 50})
    replaced: dict[str, Any] = {
        "resolutions": resolution,
        "seed": seed,
        "registration": registration,
        "solver_resolution": solver_resolution,
        "samples": {split: n for split, n in {**recipe.samples, **(samples or {})}.items() if n},
        "options": {**recipe.options, **(option or {})},
    }
    recipe = replace(recipe, **{name: value for name, value in replaced.items() if value is not None})
    names = ("samples", "seed", "registration", "solver_resolution")
    choices = {**{name: getattr(recipe, name) for name in names}, "chunk": chunk, **writing.choices}
    sizes = [n if isinstance(n, int) else tuple(n) for n in recipe.resolutions]
    with _cluster(scheduler) as client:
        solved = problem_of(recipe.problem, recipe.options)
        print(generate_fields(store, solved, sizes, client=client, **choices))


@app.command
def check(store: Store, /, *, quiet: Quiet = False) -> int:
    """Read all of a store and explain what is not as the format asks; the exit code is then 1."""
    from mano_op.data.check import check_store

    violations = check_store(store, progress=not quiet)
    for violation in violations:
        print(violation)
    print(f"{store}: {f'violations: {len(violations)}' if violations else 'as the format asks'}")
    return 1 if violations else 0


@app.command
def info(store: Store, /) -> None:
    """Describe what a store holds, whole or partial."""
    from mano_op.data.info import describe
    from mano_op.data.store import open_store

    print(describe(open_store(store, incomplete=isinstance(store, Path) and not store.exists())))


@app.command
def coarsen(
    source: Store,
    store: NewStore,
    /,
    *,
    resolution: Sizes,
    method: Annotated[list[Any], words(word_or_pair, metavar="METHOD|VARIABLE=METHOD...")],
    drop_finest: bool = False,
    scheduler: Scheduler = None,
    writing: Writing = Writing(),
) -> None:
    """Make a store with coarser resolutions of another store's fields.

    Parameters
    ----------
    resolution : list
        Of the new store.
    method : list
        mean, lowpass or injection, for all variables or for each.
    drop_finest : bool
        Leave out the resolution that they are made from.
    """
    from mano_op.data.coarsen import coarsen_store

    methods = one_or_each(method, "one method, or VARIABLE=METHOD for every variable")
    choices = {"method": methods, "keep": not drop_finest, **writing.choices}
    with _cluster(scheduler) as client:
        print(coarsen_store(source, store, resolution, client=client, **choices))


def _cluster(scheduler: str | None) -> AbstractContextManager[Any]:
    """Open a client of a dask scheduler; None, for the threads of this process, without an address."""
    if scheduler is None:
        return nullcontext()
    with refusing("--scheduler needs dask's distributed", "pip install 'mano_op[cluster]'", ImportError):
        from distributed import Client
    remedy = "start one with `dask scheduler`"
    with refusing(f"no dask scheduler answers at {scheduler}", remedy, OSError, ValueError):
        client: AbstractContextManager[Any] = Client(scheduler)
    return client
