r"""Grids: positions of the points of a field.

Every coordinate, spacing and quadrature weight in this package comes from a `Grid`. Published data sets use
three registrations, and to take one for another costs ten per cent of error on a Darcy solution. So a grid
names its own:

=============  ==================================  ========================================
registration   points of an axis on [a, b]         spacing h
=============  ==================================  ========================================
``node``       a + i h: left end in, right end out  (b - a) / n
``node_both``  a + i h: both ends in                (b - a) / (n - 1)
``cell``       a + (i + 1/2) h: centres of cells    (b - a) / n
=============  ==================================  ========================================

neuraloperator's Darcy fields are ``node``, PDEBench's are ``cell``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mano_op.errors import InputError, check_whole

Registration = Literal["node", "node_both", "cell"]
REGISTRATIONS: tuple[str, ...] = get_args(Registration)


@dataclass(frozen=True)
class Axis:
    r"""The points along one direction of a uniform grid.

    Parameters
    ----------
    name : str
        Name of the direction, such as "x" or "latitude".
    n : int
        Number of points.
    start, stop : float
        Ends a and b of the domain, in the units of the coordinate, whether or not there are points at them.
    registration : {"node", "node_both", "cell"}
        Positions of the points; see the table of `mano_op.grid`.
    periodic : bool
        True if b is the same place as a.

    Raises
    ------
    InputError
        If `n` is too small, the interval is empty, the registration is unknown, or a periodic axis has points
        at both ends.

    Examples
    --------
    >>> Axis("x", 4, registration="cell").points
    array([0.125, 0.375, 0.625, 0.875])
    >>> Axis("x", 4).spacing, Axis("x", 5, registration="node_both").spacing
    (0.25, 0.25)
    """

    name: str
    n: int
    start: float = 0.0
    stop: float = 1.0
    registration: Registration = "node"
    periodic: bool = False

    def __post_init__(self) -> None:
        both_ends, problem = self.registration == "node_both", ""
        if self.registration not in REGISTRATIONS:
            problem = (
                f"registration={self.registration!r} is none of {', '.join(REGISTRATIONS)}. It cannot be "
                "guessed from a shape: look it up for your data"
            )
        elif not -np.inf < self.start < self.stop < np.inf:
            problem = f"the domain [{self.start}, {self.stop}] is empty or not finite; expected start < stop"
        elif self.periodic and both_ends:
            problem = "both ends of a periodic axis are one place: drop the last point, registration='node'"
        if problem:
            raise InputError(f"axis {self.name!r}: {problem}")
        check_whole(**{f"n of axis {self.name!r}": self.n}, at_least=2 if both_ends else 1)

    @property
    def length(self) -> float:
        """Length of the domain, b - a."""
        return self.stop - self.start

    @property
    def intervals(self) -> int:
        """Number of spacings in the domain."""
        return self.n - 1 if self.registration == "node_both" else self.n

    @property
    def spacing(self) -> float:
        """Distance h between neighbouring points."""
        return self.length / self.intervals

    @property
    def offset(self) -> float:
        """Distance of the first point from `start`, in spacings: 0 or 1/2."""
        return 0.5 if self.registration == "cell" else 0.0

    @functools.cached_property
    def points(self) -> NDArray[np.float64]:
        """Coordinates of the points, shape ``(n,)``."""
        return self.start + self.spacing * (np.arange(self.n, dtype=np.float64) + self.offset)

    @functools.cached_property
    def bounds(self) -> NDArray[np.float64]:
        """Control volume of each point, shape ``(n, 2)``: half way to its neighbours, and to the ends.

        They cover the domain once, a periodic ``node`` axis from half a spacing before a.
        """
        half = self.spacing / 2
        bounds = np.stack([self.points - half, self.points + half], axis=1)
        if not self.periodic:
            bounds[0, 0], bounds[-1, 1] = self.start, self.stop
        return bounds

    @functools.cached_property
    def weights(self) -> NDArray[np.float64]:
        r"""Quadrature weights, shape ``(n,)``: :math:`\sum_i w_i f(x_i) \approx \int_a^b f`.

        The midpoint rule on cells, the trapezoidal rule on nodes: of second order, and exact for linear
        functions unless the axis is periodic or has one node only. The last interval of a ``node`` axis that
        does not wrap is integrated with the line through the last two points.

        Examples
        --------
        >>> axis = Axis("x", 8)
        >>> bool(np.isclose(axis.weights @ axis.points, 1 / 2))
        True
        """
        weights = np.full(self.n, self.spacing)
        if self.periodic or self.registration == "cell" or self.n == 1:
            return weights
        weights[[0, -1]] /= 2
        if self.registration == "node":
            weights[-2:] += self.spacing * np.array([-0.5, 1.5])
        return weights

    def positions(self, other: Axis) -> NDArray[np.float64]:
        """Positions of another axis' points in spacings of this one, shape ``(other.n,)``.

        Whole and half positions are exact, so that rounding decides neither whether a point is shared nor
        which of two points is nearer.

        Examples
        --------
        >>> Axis("x", 4).positions(Axis("x", 8))
        array([0. , 0.5, 1. , 1.5, 2. , 2.5, 3. , 3.5])
        >>> Axis("x", 4, registration="cell").positions(Axis("x", 8, registration="cell"))[:3]
        array([-0.25,  0.25,  0.75])
        """
        at = (other.points - self.points[0]) / self.spacing
        halves = np.rint(2 * at) / 2
        return np.where(np.abs(at - halves) < 1e-9, halves, at)

    def averages(
        self,
        left: NDArray[np.float64],
        right: NDArray[np.float64],
        among: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        """Weights of the points in the mean over each interval [left, right], ``(intervals, n)``.

        The weight of a point is the part of its control volume (`bounds`) in the interval, on a periodic axis
        also across the ends. `among` selects columns, which must hold all nonzero weights.

        Examples
        --------
        >>> Axis("x", 4, periodic=True).averages(np.array([-0.25]), np.array([0.25]))
        array([[0.5 , 0.25, 0.  , 0.25]])
        """
        bounds = self.bounds if among is None else self.bounds[among]
        overlap = np.zeros((len(left), len(bounds)))
        for turn in (-1, 0, 1) if self.periodic else (0,):
            volumes = bounds + turn * self.length
            inner = np.minimum.outer(right, volumes[:, 1]) - np.maximum.outer(left, volumes[:, 0])
            overlap += np.maximum(inner, 0)
        return np.asarray(overlap / overlap.sum(axis=1, keepdims=True))

    def refine(self, factor: int = 2) -> Axis:
        """Divide the spacing by `factor`, over the same domain."""
        check_whole(factor=factor)
        return replace(self, n=self.n - self.intervals + self.intervals * factor)

    def coarsen(self, factor: int = 2) -> Axis:
        """Multiply the spacing by `factor`; the inverse of `refine`."""
        check_whole(factor=factor)
        if self.intervals % factor:
            raise InputError(
                f"axis {self.name!r}: {self.intervals} intervals cannot be coarsened by {factor}; "
                "expected a factor that divides them. To reach any other size, use `resample`"
            )
        return replace(self, n=self.n - self.intervals + self.intervals // factor)


@dataclass(frozen=True)
class Grid:
    """Points of a field: one `Axis` for each spatial dimension.

    A `Grid` is a value: it is hashable, and two with equal axes are equal.

    Parameters
    ----------
    axes : tuple of Axis
        In the order of the array's dimensions, so the last one varies fastest.

    Examples
    --------
    >>> grid = Grid.uniform((16, 32), registration="cell")
    >>> grid.shape, grid.spacing, grid.names
    ((16, 32), (0.0625, 0.03125), ('y', 'x'))
    >>> grid.refine(2) == Grid.uniform((32, 64), registration="cell")
    True
    >>> round(float(grid.weights.sum()), 12)
    1.0
    """

    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes]
        if not names or len(set(names)) != len(names):
            raise InputError(f"axes named {names}; expected at least one, each with a name of its own")

    @classmethod
    def uniform(
        cls,
        shape: Sequence[int],
        *,
        domain: Sequence[tuple[float, float]] | None = None,
        registration: Registration = "node",
        periodic: bool | Sequence[bool] = False,
        names: Sequence[str] | None = None,
    ) -> Grid:
        """Make a grid with one registration for all its axes.

        Parameters
        ----------
        shape : sequence of int
            Number of points along each axis.
        domain : sequence of (float, float), optional
            Ends of each axis, by default 0 and 1.
        registration : {"node", "node_both", "cell"}
        periodic : bool or sequence of bool
        names : sequence of str, optional
            By default ``("x",)``, ``("y", "x")``, ``("z", "y", "x")``.
        """
        n_dim = len(shape)
        if names is None:
            names = ("z", "y", "x")[-n_dim:] if n_dim <= 3 else [f"x{i}" for i in range(n_dim)]
        wraps = [periodic] * n_dim if isinstance(periodic, bool) else list(periodic)
        ends = [(0.0, 1.0)] * n_dim if domain is None else list(domain)
        for option, values in (("domain", ends), ("periodic", wraps), ("names", names)):
            if len(values) != n_dim:
                raise InputError(
                    f"{option}={values} has {len(values)} entries, expected {n_dim}, one an axis"
                )
        columns = zip(names, shape, ends, wraps, strict=True)
        return cls(
            tuple(Axis(name, n, float(a), float(b), registration, w) for name, n, (a, b), w in columns)
        )

    def __iter__(self) -> Iterator[Axis]:
        return iter(self.axes)

    @property
    def n_dim(self) -> int:
        """Number of spatial dimensions."""
        return len(self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(axis.name for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of points along each axis."""
        return tuple(axis.n for axis in self.axes)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbouring points along each axis."""
        return tuple(axis.spacing for axis in self.axes)

    @property
    def points(self) -> tuple[NDArray[np.float64], ...]:
        """Coordinates of each axis, shapes ``(n_1,), ..., (n_d,)``."""
        return tuple(axis.points for axis in self.axes)

    @property
    def mesh(self) -> NDArray[np.float64]:
        """Coordinates of every point, shape ``(n_dim, *shape)``."""
        return np.stack(np.meshgrid(*self.points, indexing="ij"))

    @property
    def weights(self) -> NDArray[np.float64]:
        """Quadrature weights of every point, shape ``shape``: the product of the axes' weights."""
        return functools.reduce(np.multiply.outer, (axis.weights for axis in self.axes), np.ones(()))

    def refine(self, factor: int = 2) -> Grid:
        """Divide the spacing by `factor` along each axis."""
        return Grid(tuple(axis.refine(factor) for axis in self.axes))

    def coarsen(self, factor: int = 2) -> Grid:
        """Multiply the spacing by `factor` along each axis."""
        return Grid(tuple(axis.coarsen(factor) for axis in self.axes))

    def __str__(self) -> str:
        return " x ".join(
            f"{axis.name}: {axis.n} {axis.registration}{' periodic' if axis.periodic else ''} "
            f"on [{axis.start:g}, {axis.stop:g}]"
            for axis in self.axes
        )
