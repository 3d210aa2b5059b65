"""``mano-op store import``: files of other formats into a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from mano_op.cli.values import (
    NewStore,
    Pairs,
    Samples,
    Writing,
    one_or_each,
    pairs,
    size,
    word_or_pair,
    words,
)

app = App(name="import", help="Turn files of other formats into a store.")
FIELDS = Group("Fields and axes", sort_key=2)

Files = Annotated[tuple[Path, ...], Parameter(metavar="FILE...", help="Files of that split.")]
Names = Annotated[tuple[str, ...], Parameter(metavar="NAME...")]
_SIZED = "Files of that split, each with its resolution."
SizedFiles = Annotated[tuple[Any, ...], pairs("N=FILE", "16=darcy_test_16.pt", Path, int, tuple, help=_SIZED)]
Boundary = Annotated[
    Pairs,
    pairs("AXIS=CONDITION", "x=periodic", group=FIELDS, help="At the ends of each axis: x=periodic y=wall."),
]
Registration = Annotated[
    list[Any],
    words(
        word_or_pair,
        metavar="REGISTRATION|AXIS=REGISTRATION...",
        group=FIELDS,
        help="Where points lie, on all axes or on each, y=node_both x=node: node, on [0, 1), node_both, on "
        "[0, 1], or cell, in the middle of cells.",
    ),
]


def _ends(text: str) -> tuple[float, float]:
    start, _, stop = text.partition(":")
    return float(start), float(stop)


@Parameter(name="*", group=FIELDS)
@dataclass(frozen=True)
class Fields:
    """Facts of fields and axes that files do not state.

    Attributes
    ----------
    domain : mapping
        Ends of each axis.
    reference : mapping
        Constants to subtract where float32 cannot hold the variation: pressure=101325.
    initial : mapping
        Steady inputs that an output starts from, u0=u; without words, none does.
    as_plane : bool
        Take latitude and longitude as lengths on a plane.
    """

    domain: Annotated[Pairs | None, pairs("AXIS=START:STOP", "x=0:1", _ends)] = None
    reference: Annotated[Pairs | None, pairs("VARIABLE=NUMBER", "pressure=101325", float)] = None
    initial: Annotated[Pairs | None, pairs("INPUT=OUTPUT", "u0=u", consume_multiple=True)] = None
    as_plane: bool = False


@app.command
def neuralop(
    store: NewStore,
    /,
    *,
    train: SizedFiles = (),
    test: SizedFiles = (),
    problem: Literal["darcy", "navier_stokes"] | None = None,
    writing: Writing = Writing(),
) -> None:
    """Import neuraloperator's Darcy and Navier-Stokes files, NAME.pt.

    Parameters
    ----------
    problem : str
        Problem of the files; not needed for Darcy flow, whose x is 0 or 1.
    """
    from mano_op.data.importers import import_neuralop_pt

    print(import_neuralop_pt(store, _splits(train, test), problem=problem, **writing.choices))


@app.command
def fno_mat(
    store: NewStore,
    /,
    *,
    kind: Literal["burgers", "darcy", "navier_stokes"],
    train: Files = (),
    test: Files = (),
    writing: Writing = Writing(),
) -> None:
    """Import the files of the Fourier neural operator's paper, NAME.mat.

    Parameters
    ----------
    kind : str
        Problem of the files.
    """
    from mano_op.data.importers import import_fno_mat

    print(import_fno_mat(store, _splits(train, test), kind=kind, **writing.choices))


@app.command
def pdebench(
    store: NewStore,
    /,
    *,
    train: Files = (),
    test: Files = (),
    variables: Names = (),
    boundary: Boundary | None = None,
    fields: Fields = Fields(),
    writing: Writing = Writing(),
) -> None:
    """Import PDEBench's files, NAME.hdf5.

    Parameters
    ----------
    variables : list
        Names of the variables that the files do not name.
    """
    from mano_op.data.importers import import_pdebench

    choices = {**vars(fields), "domain": fields.domain or {}, "boundary_conditions": boundary or {}}
    print(import_pdebench(store, _splits(train, test), variables=variables, **choices, **writing.choices))


@app.command
def the_well(
    store: NewStore,
    /,
    *,
    registration: Registration,
    train: Files = (),
    test: Files = (),
    fields: Fields = Fields(),
    writing: Writing = Writing(),
) -> None:
    """Import The Well's files, NAME.hdf5."""
    from mano_op.data.importers import import_the_well

    choices = {**vars(fields), "domain": fields.domain or {}, "registration": _by_axis(registration)}
    print(import_the_well(store, _splits(train, test), **choices, **writing.choices))


@app.command
def netcdf(
    store: NewStore,
    /,
    *,
    files: Annotated[list[Any], pairs("RESOLUTION=FILE", "64x32=runs.nc", Path, size, list)],
    outputs: Names,
    samples: Samples,
    registration: Registration,
    inputs: Names = (),
    boundary: Boundary | None = None,
    sample: str = "sample",
    time: str = "time",
    engine: str | None = None,
    relabel: bool = False,
    fields: Fields = Fields(),
    writing: Writing = Writing(),
) -> None:
    """Import whatever xarray opens, NAME.nc.

    Parameters
    ----------
    files : list
        64x32=runs.nc; several of one resolution follow each other.
    outputs : list
        Variables that are predicted.
    samples : mapping
        Samples of each split: train=1000 test=50.
    inputs : list
        Variables that are given.
    sample : str
        Dimension that numbers the samples.
    time : str
        Dimension of the times.
    engine : str
        Of xarray: h5netcdf, scipy, zarr, ...; chosen by the file if left out.
    relabel : bool
        Number the samples anew, in the order of the files, whatever labels these have.
    """
    from mano_op.data.importers import import_netcdf

    by_resolution: dict[Any, list[Path]] = {}
    for resolution, file in files:
        by_resolution.setdefault(resolution, []).append(file)
    names: dict[str, Any] = {"sample": sample, "time": time, "inputs": list(inputs), "outputs": list(outputs)}
    axes: dict[str, Any] = {"registration": _by_axis(registration), "boundary_conditions": boundary or {}}
    choices = {"splits": samples, "engine": engine, "relabel": relabel, **vars(fields), **writing.choices}
    print(import_netcdf(store, by_resolution, **names, **axes, **choices))


def _splits(train: Any, test: Any) -> dict[str, list[Any]]:
    return {name: list(files) for name, files in (("train", train), ("test", test)) if files}


def _by_axis(registration: list[Any]) -> Any:
    return one_or_each(registration, "one registration, or AXIS=REGISTRATION for every axis")
