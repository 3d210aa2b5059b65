r"""Steady flow through a porous medium: :math:`-\nabla \cdot (a \nabla u) = f`, u = 0 on the boundary.

The benchmark of the field, with its coefficient drawn as a function (see `random_field`) and its
pressure solved once, so that every resolution is a sampling of one and the same solution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from mano_op.data.layout import Variable
from mano_op.errors import InputError
from mano_op.grid import Axis, Grid
from mano_op.problems.random_field import GaussianRandomField
from mano_op.problems.solver_grid import injection, refuse_periodic, solver_grids

Coefficient = Literal["piecewise", "lognormal"]


def solve_darcy(coefficient: ArrayLike, grid: Grid, forcing: ArrayLike = 1.0) -> NDArray[np.float64]:
    r"""Solve :math:`-\nabla \cdot (a \nabla u) = f` with u = 0 on the whole boundary.

    Finite volumes of second order, one around each point. With neighbours i and j a distance h
    apart, the flux between them is :math:`\bar a_{ij} (u_i - u_j) / h`, where :math:`\bar a_{ij} =
    2 a_i a_j / (a_i + a_j)` is the harmonic mean, which is exact when a jumps half way between
    them. The symmetric sparse system is factorised directly.

    Parameters
    ----------
    coefficient : array_like
        a at the points of the grid, shape ``grid.shape``, positive.
    grid : Grid
        Any registration, any shape and box, not periodic. Points on the boundary get u = 0. For
        ``cell`` the boundary is half a cell away from the outer points. For ``node`` it is at the
        missing right end, a whole spacing from the last point, and a is continued to it by its
        last value.
    forcing : array_like
        f, a number or an array of shape ``grid.shape``. Its values on the boundary are not used.

    Returns
    -------
    numpy.ndarray
        u, shape ``grid.shape``, float64.

    Raises
    ------
    InputError
        If a shape does not fit, the coefficient is not positive and finite everywhere, the forcing
        is not finite, or an axis is periodic.

    Examples
    --------
    In one dimension with a = f = 1 the solution x (1 - x) / 2 is exact at the points:

    >>> grid = Grid.uniform((8,))
    >>> x = grid.points[0]
    >>> bool(np.allclose(solve_darcy(np.ones(8), grid), x * (1 - x) / 2))
    True
    """
    a = np.asarray(coefficient, dtype=np.float64)
    f = np.asarray(forcing, dtype=np.float64)
    refuse_periodic(grid)
    if a.shape != grid.shape:
        raise InputError(f"coefficient of shape {a.shape}, expected {grid.shape}: the grid is {grid}")
    if f.shape not in ((), grid.shape):
        raise InputError(f"forcing of shape {f.shape}, expected a number or an array of shape {grid.shape}")
    for name, array, usable, wanted in (
        ("coefficient", a, np.isfinite(a) & (a > 0), "positive and finite"),
        ("forcing", f, np.isfinite(f), "finite"),
    ):
        if not usable.all():
            index = tuple(int(i) for i in np.argwhere(~usable)[0])  # empty for a number
            where = f"{name}{list(index)}" if index else name
            raise InputError(f"{where} = {array[index]}; expected {wanted} values everywhere")

    u = np.zeros(grid.shape)
    interior = tuple(_interior(axis) for axis in grid)
    if u[interior].size:
        factors = splu(
            _operator(a, grid),
            permc_spec="MMD_AT_PLUS_A",  # a symmetric positive matrix: order for little fill, do not pivot
            diag_pivot_thresh=0.0,
            panel_size=4,  # narrow panels take a third off the time on matrices as sparse as these
            options={"SymmetricMode": True},
        )
        right_side = np.broadcast_to(f, grid.shape)[interior]
        u[interior] = factors.solve(right_side.ravel()).reshape(right_side.shape)
    return u


@dataclass(frozen=True, kw_only=True)
class Darcy:
    r"""Darcy flow with a random permeability: the map from a to u.

    Parameters
    ----------
    coefficient : {"piecewise", "lognormal"}
        ``"piecewise"``: ``values[1]`` where the random field is at least 0, ``values[0]`` elsewhere,
        as Li et al. [1]_. ``"lognormal"``: the exponential of the field, which is smooth.
    values : tuple of two floats
        The permeabilities of ``"piecewise"``.
    tau, alpha, n_modes
        Of the `GaussianRandomField`.
    forcing : float
        f, the same everywhere.

    Raises
    ------
    InputError
        If an option is out of its range.

    Notes
    -----
    The pressure is sampled from a solution on the grid that `solver_grids` finds. Its error is the
    solver grid's, at every level alike. In the relative L2 norm, against 1024 intervals, it is about
    3 % for 16 intervals, 1 % for 32, 0.5 % for 64, 0.2 % for 128 and 0.07 % for 256 with the default
    coefficient, which jumps between points; and 0.02 % for 64 with ``"lognormal"``. Ask for a solver
    resolution well above the finest level where models come close to that.

    References
    ----------
    .. [1] Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations",
       ICLR 2021, arXiv:2010.08895, section 5.2.

    Examples
    --------
    >>> coarse, fine = Grid.uniform((16, 16)), Grid.uniform((32, 32))
    >>> fields = Darcy().sample(0, 0, [coarse, fine])
    >>> np.unique(fields[fine]["permeability"])
    array([ 3., 12.])
    >>> bool((fields[coarse]["pressure"] == fields[fine]["pressure"][::2, ::2]).all())
    True
    """

    coefficient: Coefficient = "piecewise"
    values: tuple[float, float] = (3.0, 12.0)
    tau: float = 3.0
    alpha: float = 2.0
    n_modes: int = 128
    forcing: float = 1.0

    name: ClassVar[str] = "darcy"
    title: ClassVar[str] = "Darcy flow"
    n_dim: ClassVar[int] = 2
    domain: ClassVar[tuple[float, float]] = (0.0, 1.0)
    boundary_condition: ClassVar[str] = "dirichlet"
    times: ClassVar[tuple[float, ...]] = ()
    variables: ClassVar[tuple[Variable, ...]] = (
        Variable("permeability", "input", long_name="permeability of the medium"),
        Variable("pressure", "output", long_name="pressure", boundary_value=0.0),
    )

    def __post_init__(self) -> None:
        if self.coefficient not in get_args(Coefficient):
            raise InputError(
                f"coefficient={self.coefficient!r} is none of {', '.join(get_args(Coefficient))}"
            )
        values = tuple(float(value) for value in self.values)
        if len(values) != 2 or not all(np.isfinite(value) and value > 0 for value in values):
            raise InputError(f"values={self.values}; expected two positive permeabilities, such as (3, 12)")
        object.__setattr__(self, "values", values)  # a list, from JSON say, would not be hashable
        if not np.isfinite(self.forcing):
            raise InputError(f"forcing={self.forcing}; expected a finite number")
        self._random_field()

    @property
    def solver(self) -> str:
        """How it is solved."""
        return f"scipy {version('scipy')}: SuperLU"

    def check(self, seed: int | Sequence[int], grids: Sequence[Grid]) -> None:
        """Raise `InputError` if no sample of that seed can be had on these grids."""
        for grid in grids:
            self.permeability(seed, 0, grid)

    def solvers(self, grids: Iterable[Grid], resolution: int | None = None) -> dict[Grid, Grid]:
        """The grid on which to solve for each of `grids`; see `solver_grids`."""
        return solver_grids(grids, resolution)

    def permeability(self, seed: int | Sequence[int], index: int, grid: Grid) -> NDArray[np.float64]:
        """The coefficient a of sample `index` at the points of `grid`."""
        field = self._random_field().sample(seed, index, grid)
        if self.coefficient == "lognormal":
            return np.exp(field)
        return np.where(field >= 0, self.values[1], self.values[0])

    def sample(
        self,
        seed: int | Sequence[int],
        index: int,
        grids: Iterable[Grid],
        solver_resolution: int | None = None,
    ) -> dict[Grid, dict[str, NDArray[np.float64]]]:
        """Permeability and pressure of sample `index` on each of `grids`.

        Parameters
        ----------
        seed : int or sequence of int
        index : int
            Number of the sample, from 0. With `seed` it determines the sample, alone.
        grids : iterable of Grid
        solver_resolution : int, optional
            As in `solver_grids`, which also says what is solved where.

        Returns
        -------
        dict
            ``{grid: {"permeability": a, "pressure": u}}``.
        """
        solved: dict[Grid, Mapping[str, NDArray[np.float64]]] = {}
        fields: dict[Grid, dict[str, NDArray[np.float64]]] = {}
        for grid, solver in self.solvers(grids, solver_resolution).items():
            if solver not in solved:
                a = self.permeability(seed, index, solver)
                solved[solver] = {"permeability": a, "pressure": solve_darcy(a, solver, self.forcing)}
            here = injection(grid, solver)
            fields[grid] = {name: np.ascontiguousarray(field[here]) for name, field in solved[solver].items()}
        return fields

    def _random_field(self) -> GaussianRandomField:
        return GaussianRandomField(tau=self.tau, alpha=self.alpha, n_modes=self.n_modes)


def _operator(a: NDArray[np.float64], grid: Grid) -> sparse.csc_array:
    """The matrix of the fluxes between the interior points, in C order."""
    interior = tuple(_interior(axis) for axis in grid)
    shape = a[interior].shape
    diagonal = np.zeros(shape)
    bands: list[NDArray[np.float64]] = []
    offsets: list[int] = []
    for position, axis in enumerate(grid):
        across = tuple(slice(None) if i == position else points for i, points in enumerate(interior))
        faces = _faces(np.moveaxis(a[across], position, 0), axis)
        along = np.moveaxis(diagonal, position, 0)  # a view: what is added here is added to the diagonal
        along += faces[:-1] + faces[1:]
        forward = -faces[1:]
        forward[-1] = 0.0  # the last point's neighbour is the boundary
        stride = math.prod(shape[position + 1 :])
        if shape[position] == 1:
            continue  # no neighbours along this axis
        band = np.moveaxis(forward, 0, position).ravel()[: diagonal.size - stride]
        bands += [band, band]
        offsets += [stride, -stride]
    return sparse.diags_array(
        [diagonal.ravel(), *bands], offsets=[0, *offsets], shape=(diagonal.size,) * 2, format="csc"
    )


def _faces(a: NDArray[np.float64], axis: Axis) -> NDArray[np.float64]:
    """Flux per unit of difference at the faces along the first dimension, both boundaries included."""
    beyond = (int(axis.registration == "cell"), int(axis.registration != "node_both"))
    a = np.pad(a, [beyond] + [(0, 0)] * (a.ndim - 1), mode="edge")
    faces = 2 / (1 / a[:-1] + 1 / a[1:]) / axis.spacing**2
    if axis.registration == "cell":  # the boundary is h / 2 away
        faces[0] *= 2
        faces[-1] *= 2
    return faces


def _interior(axis: Axis) -> slice:
    """The points of the axis that are not on the boundary."""
    return {"node": slice(1, None), "node_both": slice(1, -1), "cell": slice(None)}[axis.registration]
