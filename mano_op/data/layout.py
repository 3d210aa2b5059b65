"""The plan of a store, without its data: variables, grids, splits, and which sample lies in which row."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mano_op.boundary import Boundary, BoundaryCondition, ends_by_axis
from mano_op.data.guards import check_each, check_has, check_increasing, check_one_of, check_some_of
from mano_op.errors import InputError, check_whole, refusing
from mano_op.grid import Axis, Grid
from mano_op.labels import variable_of, varies_in_time

Levels = Literal["resampled", "independent", "unknown"]
Resolution = int | Sequence[int] | str | Grid

TARGET_BYTES = 2**20  # of a chunk at the finest resolution

# What the multiscales convention of zarr calls means.
AVERAGE = "average"

# What a store says of the coordinate of an axis, apart from where its points lie.
COORDINATE_ATTRIBUTES = ("units", "long_name", "standard_name")

# Latitude and longitude by their units and standard names, as CF has them in sections 4.1 and 4.2, and by the
# names that files give them. Grids are Cartesian: their areas are products of spacings.
_UNITS_ON_A_SPHERE = re.compile(r"degrees?_?(north|east|N|E)")
_STANDARD_NAMES_ON_A_SPHERE = ("latitude", "longitude", "grid_latitude", "grid_longitude")
_NAMES_ON_A_SPHERE = re.compile(
    r"(nav_?|x|g|r)?(lat(s|itudes?)?|lon(g|s|gitudes?)?|lng)(_[0-9a-z]+)?", re.IGNORECASE
)
_ANGLES = ("1", "", "deg", "degs", "degree", "degrees", "\N{DEGREE SIGN}", "rad", "radian", "radians")


@dataclass(frozen=True)
class Variable:
    """Physical field of a store.

    Parameters
    ----------
    name : str
    role : {"input", "output"}
        Whether an operator is given it or predicts it.
    units : str
        As UDUNITS writes them; "1" for a number without units.
    long_name : str
        Label of a plot; by default the name.
    cell_methods : str or mapping of str to str
        CF's words for what a value stands for, "area: point" or "area: mean": one for all resolutions, or
        ``{"r16": "area: mean", "r32": "area: point"}``. It decides how the field may be coarsened.
    boundary_value : float or mapping, optional
        Known value at the ends of axes that do not wrap: one number, or by axis a number or a pair,
        ``{"y": (1.0, None)}``. Interpolation uses it.
    time : bool
        Whether a sample has a field for each of the store's times.
    reference : float
        Constant that was subtracted before storing, for float32's sake. Values, statistics and
        `boundary_value` are differences from it.
    initial_of : str, optional
        Of a steady input, the output that starts from it; steps are not given it. Empty for a parameter.

    Examples
    --------
    >>> Variable("pressure", "output", units="Pa").units
    'Pa'
    """

    name: str
    role: Literal["input", "output"]
    units: str = "1"
    long_name: str = ""
    cell_methods: str | Mapping[str, str] = field(default="area: point", hash=False)
    boundary_value: Boundary | None = field(default=None, hash=False)
    time: bool = False
    reference: float = 0.0
    initial_of: str | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not isinstance(self.reference, Real) or not math.isfinite(self.reference):
            raise InputError(
                f"variable {self.name!r}: reference={self.reference!r}; expected a finite number"
            )
        object.__setattr__(self, "reference", float(self.reference))  # of numpy's types too, for JSON
        check_one_of(f"variable {self.name!r}: role", self.role, ("input", "output"))
        if not self.long_name:
            object.__setattr__(self, "long_name", self.name)
        if isinstance(self.boundary_value, Mapping):  # pairs become lists in JSON
            pairs = {
                axis: tuple(value) if isinstance(value, list) else value
                for axis, value in self.boundary_value.items()
            }
            object.__setattr__(self, "boundary_value", pairs)

    def cell_methods_at(self, key: str) -> str:
        """Return what a value stands for at a resolution.

        Examples
        --------
        >>> averaged = Variable("u", "output", cell_methods={"r8": "area: mean", "r16": "area: point"})
        >>> averaged.cell_methods_at("r8"), Variable("u", "output").cell_methods_at("r8")
        ('area: mean', 'area: point')
        """
        return self.cell_methods if isinstance(self.cell_methods, str) else self.cell_methods[key]


@dataclass(frozen=True)
class Layout:
    """Plan of a store, made by `Layout.plan`: what that takes, in Python's own types.

    Samples are numbered 0, 1, ... in the order of the splits, at every resolution alike. A resolution holds
    each split whole or not at all. `grids` has the resolutions, coarsest first, under the names of their
    groups, by which `held` and `derived` name them too.
    """

    grids: dict[str, Grid]
    variables: tuple[Variable, ...]
    splits: dict[str, int]
    held: dict[str, tuple[str, ...]]
    boundary_conditions: dict[str, str]
    levels: Levels
    chunk: int
    times: tuple[float, ...] = ()
    time_units: str = "1"
    chunk_times: int = 1
    coordinates: dict[str, dict[str, str]] = field(default_factory=dict)
    derived: dict[str, tuple[str, str]] = field(default_factory=dict)
    as_plane: bool = False

    def __post_init__(self) -> None:
        axes = next(iter(self.grids.values()))
        check_each("boundary_conditions", self.boundary_conditions, axes.names)
        for name, condition in self.boundary_conditions.items():
            check_one_of(f"boundary condition of axis {name!r}", condition, get_args(BoundaryCondition))
        check_one_of("levels", self.levels, get_args(Levels))
        check_some_of("coordinates of", self.coordinates, axes.names)
        for name, attributes in self.coordinates.items():
            check_some_of(f"coordinate {name!r}: attributes", attributes, COORDINATE_ATTRIBUTES)
        for variable in self.variables:
            where = f"variable {variable.name!r}"
            if not isinstance(variable.cell_methods, str):
                remedy = "one for all resolutions, or "
                check_each(f"{where}: cell_methods", variable.cell_methods, list(self.grids), remedy)
            with refusing(where, "see `Variable`", InputError):
                ends_by_axis(axes, variable.boundary_value)
        check_increasing("time", np.asarray(self.times, dtype=np.float64))
        for key, held in self.held.items():
            check_some_of(f"{key} holds", held or ["nothing"], self.splits)
        for violation in self._violations():
            raise InputError(violation)

    def _violations(self) -> Iterator[str]:
        first = next(iter(self.grids.values()))
        for key, grid in self.grids.items():
            if _domain(grid) != _domain(first):
                yield (
                    "the resolutions of a store cover one domain in one registration, but "
                    f"{key} has ({grid}) and another ({first}): put them into two stores"
                )
        for axis in first:
            if axis.periodic != (self.boundary_conditions[axis.name] == "periodic"):
                yield (
                    f"axis {axis.name!r}: periodic={axis.periodic} in the grids, but "
                    f"boundary_conditions={self.boundary_conditions[axis.name]!r}: they must say the same"
                )
            sign = None if self.as_plane else _sign_of_a_sphere(axis, self.coordinates.get(axis.name, {}))
            if sign is not None:
                yield (
                    f"axis {axis.name!r} ({sign}) is on a sphere, where cells shrink to the poles; grids are "
                    "Cartesian, and means, norms and statistics would weight the poles too much. Project the "
                    "fields onto a plane first. Where the domain is so small that this does not matter, pass "
                    "as_plane=True, which the store will say"
                )
        names, axes = self.named(), first.names
        taken = {"sample", "split", "time", "bnds", *axes, *(f"{name}_bnds" for name in axes)}
        for name in names:
            if name in taken or names.count(name) > 1:
                yield (
                    f"variable {name!r}: the name is taken; give each another, and none of "
                    f"{', '.join(sorted(taken))}"
                )
        for variable in self.variables:
            steady = variable.role == "input" and not variable.time
            outputs = self.named("output", time=True) if steady else ()
            if variable.initial_of and variable.initial_of not in outputs:
                yield (
                    f"variable {variable.name!r}: initial_of={variable.initial_of!r}; expected, of a steady "
                    "input, an output that varies in time: "
                    f"{', '.join(outputs) or 'there is none, so leave initial_of out'}"
                )
        varying = list(self.named(time=True))
        if not self.named("output") or not (self.named("input") or varying):
            role = "input" if self.named("output") else "output"
            yield (
                f"no {role} among the variables {list(names)}; expected at least one output, and one input: "
                "only outputs that vary in time need none"
            )
        if bool(varying) != bool(self.times):
            yield (
                f"{len(self.times)} times, and variables that vary in time: {varying or 'none'}; expected "
                "times exactly where a variable varies (Variable(..., time=True))"
            )
        for key, held in self.held.items():
            for cut in cuts(self.splits, held):
                if cut % self.chunk:
                    yield (
                        f"{key} holds only {list(held)} of {self.splits}, so two chunks of samples would "
                        "share a chunk of it, and could not be written side by side: "
                        f"chunk={self.chunk}, expected a divisor of {cut}"
                    )
        for split in self.splits:
            if not any(split in held for held in self.held.values()):
                yield f"no resolution holds split {split!r}; leave it out, or give a resolution that holds it"
        for key, (source, _) in self.derived.items():
            if source == key or self.levels != "resampled":
                yield (
                    f"derived: {key} from {source}, with levels={self.levels!r}; expected another of "
                    f"{list(self.grids)}, and levels='resampled' for those that are made from one another"
                )

    @classmethod
    def plan(
        cls,
        grids: Sequence[Grid],
        variables: Sequence[Variable],
        splits: Mapping[str, int],
        *,
        boundary_conditions: Mapping[str, str],
        levels: Levels,
        chunk: int,
        held: Mapping[Grid, Sequence[str]] | None = None,
        times: Sequence[float] = (),
        time_units: str = "1",
        chunk_times: int | None = None,
        coordinates: Mapping[str, Mapping[str, str]] | None = None,
        derived: Mapping[Grid, tuple[Grid, str]] | None = None,
        as_plane: bool = False,
    ) -> Layout:
        """Put resolutions and splits in order, and check that they fit together.

        Parameters
        ----------
        grids : sequence of Grid
            One for each resolution: one domain and registration, different shapes.
        variables : sequence of Variable
            At least one input and one output, in the order of a model's channels.
        splits : mapping of str to int
            Number of samples of each split. Statistics are taken over "train".
        boundary_conditions : mapping of str to str
            For each axis, such as ``{"y": "dirichlet", "x": "periodic"}``.
        levels, as_plane
            As in `mano_op.data.options.StoreOptions`.
        chunk : int
            Samples to a chunk, the unit of writing and reading: 1 to 16 MB at the finest grid read fast.
        held : mapping of Grid to sequence of str, optional
            Splits of a resolution that holds only some of them.
        times : sequence of float
            Times of the variables that vary.
        time_units : str
            As UDUNITS writes them: "s", "days since 2000-01-01"; "1" for none.
        chunk_times : int, optional
            Times to a chunk, by default all. Windows of a few steps read faster from short chunks.
        coordinates : mapping of str to mapping, optional
            Units, long_name and standard_name of axes: ``{"x": {"units": "km"}}``.
        derived : mapping of Grid to (Grid, str), optional
            For a resolution made from another one: that one and the method, such as "average".
        """
        check_splits(splits)
        check_whole(chunk=chunk, chunk_times=1 if chunk_times is None else chunk_times)
        ordered = sorted(grids, key=lambda grid: (math.prod(grid.shape), grid.shape))
        keyed = {group_name(grid.shape): grid for grid in ordered}
        if len(keyed) != len(ordered) or not ordered:
            raise InputError(
                f"grids of the shapes {[grid.shape for grid in ordered]}; expected some: give each once"
            )
        held, derived, n_times = held or {}, derived or {}, max(1, len(times))
        labels: dict[str, Any] = {axis: {} for axis in ordered[0].names} | dict(coordinates or {})
        related = [*derived, *(source for source, _ in derived.values())]
        for option, named in (("held", [*held]), ("derived", related)):
            check_some_of(f"{option}: grids", named, ordered, "; add it to the grids, or leave it out")
        return cls(
            grids=keyed,
            variables=tuple(_simplest(variable, keyed) for variable in variables),
            splits={name: int(size) for name, size in splits.items()},
            held={key: tuple(held.get(grid, splits)) for key, grid in keyed.items()},
            boundary_conditions={str(axis): str(bc) for axis, bc in boundary_conditions.items()},
            levels=levels,
            chunk=min(int(chunk), sum(splits.values())),
            times=tuple(float(time) for time in times),
            time_units=time_units,
            chunk_times=min(int(chunk_times or n_times), n_times),
            coordinates={axis: {"units": "1", "long_name": axis, **about} for axis, about in labels.items()},
            derived={
                group_name(grid.shape): (group_name(source.shape), method)
                for grid, (source, method) in derived.items()
            },
            as_plane=bool(as_plane),
        )

    @property
    def n_samples(self) -> int:
        """Number of samples of all splits."""
        return sum(self.splits.values())

    @property
    def chunks(self) -> list[slice]:
        """Units of writing, as slices of sample numbers."""
        return pieces(slice(0, self.n_samples), self.chunk)

    @property
    def time_chunks(self) -> list[slice]:
        """Times of each chunk, as slices; one where no variable varies in time."""
        return pieces(slice(0, max(1, len(self.times))), self.chunk_times)

    def named(self, role: str | None = None, *, time: bool | None = None) -> tuple[str, ...]:
        """Names of the variables, of those in a role, or of those that vary in time or are steady."""
        return tuple(v.name for v in self.variables if role in (None, v.role) and time in (None, v.time))

    @property
    def undeclared(self) -> list[tuple[str, str]]:
        """Pairs of a steady input and an output in time, where nothing says whether one starts the other."""
        steady = [v.name for v in self.variables if v.initial_of is None and v.role == "input" and not v.time]
        return list(product(steady, self.named("output", time=True)))

    def shape(self, key: str, variable: Variable, times: slice = slice(None)) -> tuple[int, ...]:
        """Shape of one sample of a variable at a resolution: times, if it varies, and points."""
        return (*([len(self.times[times])] if variable.time else []), *self.grids[key].shape)

    def samples(self, key: str) -> NDArray[np.int64]:
        """Numbers of the samples that a resolution holds, row by row."""
        held = [split in self.held[key] for split in self.splits]
        return np.flatnonzero(np.repeat(held, list(self.splits.values())))

    def rows(self, key: str, split: str) -> slice:
        """Rows of a resolution in which a split lies."""
        keys = [other for other, held in self.held.items() if split in held]
        elsewhere = f", while {split!r} is at {', '.join(keys)}" if keys else ""
        check_has(key, "split", [split], self.held[key], elsewhere)
        held = [name for name in self.splits if name in self.held[key]]
        start = sum(self.splits[name] for name in held[: held.index(split)])
        return slice(start, start + self.splits[split])

    def rows_of(self, key: str, samples: slice) -> slice:
        """Rows of a resolution in which sample numbers lie; empty where it holds none of them."""
        start, stop = np.searchsorted(self.samples(key), [samples.start, samples.stop])
        return slice(int(start), int(stop))


def _check_name(name: object) -> None:
    """Refuse names that zarr cannot store, or that a channel's label would be taken for."""
    fits = isinstance(name, str) and name.isprintable() and len(name.encode()) <= 200
    fits = fits and re.fullmatch(r"(?!__|\.\.?$)[^/]+", str(name)) is not None
    expected, rename = "its end says a time, as labels of channels do", variable_of(str(name))
    if not fits:
        expected, rename = (
            "expected a name of printable characters without '/', of at most 200 bytes, that does not begin "
            "with '__', nor '.' or '..'",
            "field",
        )
    if not fits or varies_in_time(str(name)):
        raise InputError(f"variable {name!r}: {expected}: `data.rename({{{name!r}: {rename!r}}})`")


def _sign_of_a_sphere(axis: Axis, attributes: Mapping[str, str]) -> str | None:
    """Return what says that an axis is latitude or longitude, if anything does."""
    units, standard_name = attributes.get("units", "1"), attributes.get("standard_name", "")
    if _UNITS_ON_A_SPHERE.fullmatch(units):
        return f"units {units!r}"
    if standard_name in _STANDARD_NAMES_ON_A_SPHERE:
        return f"standard_name {standard_name!r}"
    names = (axis.name, attributes.get("long_name", ""))
    named = next((name for name in names if _NAMES_ON_A_SPHERE.fullmatch(name)), None)
    if named is not None and units.lower() in _ANGLES:
        turn = 90 if "lat" in named.lower() else 360
        if -turn - axis.spacing <= axis.start and axis.stop <= turn + axis.spacing:
            return f"called {named!r}, from {axis.start:g} to {axis.stop:g}"
    return None


def _simplest(variable: Variable, keys: Iterable[str]) -> Variable:
    """Replace equal cell_methods of all resolutions by one, so that equal variables compare equal."""
    methods = variable.cell_methods
    if isinstance(methods, str) or set(methods) != set(keys) or len(set(methods.values())) != 1:
        return variable
    return replace(variable, cell_methods=next(iter(methods.values())))


def _domain(grid: Grid) -> list[tuple[object, ...]]:
    return [(axis.name, axis.start, axis.stop, axis.registration, axis.periodic) for axis in grid]


def pieces(span: slice, size: int) -> list[slice]:
    """Cut a span into pieces of a size, the last one as long as it is.

    Examples
    --------
    >>> pieces(slice(2, 7), 4)
    [slice(2, 6, None), slice(6, 7, None)]
    """
    return [slice(i, min(i + size, span.stop)) for i in range(span.start, span.stop, size)]


def chunk_for(
    points: int,
    splits: Mapping[str, int],
    held: Iterable[Sequence[str]] = (),
    *,
    target_bytes: int = TARGET_BYTES,
) -> int:
    """Return the samples to a chunk that make about `target_bytes` of float32, and divide all `cuts`.

    `points` counts a sample's at the finest resolution and all times; `held` has each resolution's splits.

    Examples
    --------
    >>> chunk_for(256 * 256, {"train": 1000})
    4
    >>> chunk_for(256 * 256, {"train": 9, "test": 5}, [["train", "test"], ["test"]])
    3
    """
    chunk = max(1, min(target_bytes // (4 * points), sum(splits.values())))
    common = math.gcd(*(cut for names in held for cut in cuts(splits, names)))
    return next(k for k in range(chunk, 0, -1) if common % k == 0)


def cuts(splits: Mapping[str, int], held: Sequence[str]) -> list[int]:
    """Return what a chunk must divide for a resolution that holds only some splits.

    Both the rows before a skipped split and the samples skipped must be whole chunks, or two chunks of
    samples would meet in one chunk of the array.

    Examples
    --------
    >>> cuts({"train": 9, "hard": 6, "test": 5}, ["train", "test"])
    [9, 6]
    """
    numbers, rows, skipped, gap = [], 0, 0, False
    for split, size in splits.items():
        if split in held:
            numbers += [rows, skipped] if gap else []
            rows, gap = rows + size, False
        else:
            skipped, gap = skipped + size, True
    return numbers


def check_splits(splits: Mapping[str, int]) -> None:
    """Refuse splits that are not names with positive whole sizes."""
    names = list(splits) if isinstance(splits, Mapping) else []
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InputError(
            f"splits={splits!r}; expected the number of samples of each by its name, such as {{'train': 100, "
            "'test': 10}"
        )
    check_whole(**{f"samples of split {split!r}": size for split, size in splits.items()})


def group_name(shape: Sequence[int]) -> str:
    """Name a resolution's group, for people: a reader takes the size from the dimensions.

    Examples
    --------
    >>> group_name((16, 16)), group_name((16, 24)), group_name((64,))
    ('r16', 'r16x24', 'r64')
    """
    sizes = [str(n) for n in shape]
    return "r" + (sizes[0] if len(set(sizes)) == 1 else "x".join(sizes))
