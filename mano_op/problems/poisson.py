r"""Poisson's equation on a box: :math:`-\Delta u = f`, u = 0 on the boundary, in one to three dimensions.

The plainest elliptic problem, and one that is solved fast enough to make data sets in three dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from mano_op.data.layout import Variable
from mano_op.errors import InputError, check_finite_number, check_whole
from mano_op.grid import Axis, Grid
from mano_op.problems.random_field import GaussianRandomField
from mano_op.problems.solver_grid import injection, refuse_periodic, solver_grids


def solve_poisson(source: ArrayLike, grid: Grid) -> NDArray[np.float64]:
    r"""Solve :math:`-\Delta u = f` with u = 0 on the whole boundary.

    Second differences, for which sine transforms are exact: with N intervals of length h between the
    boundaries of an axis, the waves :math:`\sin(\pi k x / L)`, k = 1, 2, ..., are their eigenvectors,
    to the eigenvalues :math:`(2/h)^2 \sin^2(\pi k / 2N)`. The equations are those of `solve_darcy` with
    a = 1, in a time that hardly grows faster than the number of points.

    Parameters
    ----------
    source : array_like
        f at the points of the grid, shape ``grid.shape``. Its values on the boundary are not used.
    grid : Grid
        Any registration, any shape and box, not periodic. Points on the boundary get u = 0. For
        ``cell`` the boundary is half a cell away from the outer points, for ``node`` it is at the
        missing right end, a whole spacing from the last point.

    Returns
    -------
    numpy.ndarray
        u, shape ``grid.shape``, float64.

    Raises
    ------
    InputError
        If the shape does not fit, the source is not finite, or an axis is periodic.

    Examples
    --------
    In one dimension with f = 1 the solution x (1 - x) / 2 is exact at the points:

    >>> grid = Grid.uniform((8,))
    >>> x = grid.points[0]
    >>> bool(np.allclose(solve_poisson(np.ones(8), grid), x * (1 - x) / 2))
    True
    """
    f = np.asarray(source, dtype=np.float64)
    refuse_periodic(grid)
    if f.shape != grid.shape:
        raise InputError(f"source of shape {f.shape}, expected {grid.shape}: the grid is {grid}")
    if not np.isfinite(f).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(f))[0])
        raise InputError(f"source{list(index)} = {f[index]}; expected finite values everywhere")
    u = np.zeros(grid.shape)
    interior = tuple(_interior(axis) for axis in grid)
    waves = f[interior]
    if not waves.size:
        return u
    eigenvalues = np.zeros(())
    for j, axis in enumerate(grid):
        waves = fft.dst(waves, type=_kind(axis), axis=j, norm="ortho")
        eigenvalues = np.add.outer(eigenvalues, _eigenvalues(axis, waves.shape[j]))
    waves /= eigenvalues
    for j, axis in enumerate(grid):
        waves = fft.idst(waves, type=_kind(axis), axis=j, norm="ortho")
    u[interior] = waves
    return u


@dataclass(frozen=True, kw_only=True)
class Poisson:
    r"""Poisson's equation with a random source: the map from f to u.

    Parameters
    ----------
    n_dim : {1, 2, 3}
        Spatial dimensions of a resolution that is one number; grids say their own.
    tau, alpha, n_modes
        Of the `GaussianRandomField` f, which needs ``alpha > n_dim / 2``.

    Raises
    ------
    InputError
        If an option is out of its range.

    Notes
    -----
    The solution is sampled from one on the grid that `solver_grids` finds. Its error is the solver grid's,
    at every level alike. In the relative L2 norm, against 256 intervals in three dimensions, it is about
    0.8 % for 16 intervals, 0.2 % for 32, 0.05 % for 64 and 0.01 % for 128 with the default source.

    Examples
    --------
    >>> coarse, fine = Grid.uniform((8, 8, 8)), Grid.uniform((16, 16, 16))
    >>> fields = Poisson(n_modes=8).sample(0, 0, [coarse, fine])
    >>> bool((fields[coarse]["potential"] == fields[fine]["potential"][::2, ::2, ::2]).all())
    True
    """

    n_dim: int = 3
    tau: float = 3.0
    alpha: float = 3.0
    n_modes: int = 32

    name: ClassVar[str] = "poisson"
    title: ClassVar[str] = "Poisson's equation"
    domain: ClassVar[tuple[float, float]] = (0.0, 1.0)
    boundary_condition: ClassVar[str] = "dirichlet"
    times: ClassVar[tuple[float, ...]] = ()
    variables: ClassVar[tuple[Variable, ...]] = (
        Variable("source", "input", long_name="source"),
        Variable("potential", "output", long_name="potential", boundary_value=0.0),
    )

    def __post_init__(self) -> None:
        check_whole(n_dim=self.n_dim)
        if self.n_dim > 3:
            raise InputError(f"n_dim={self.n_dim}; expected 1, 2 or 3")
        check_finite_number(zero=False, tau=self.tau, alpha=self.alpha)
        self._random_field().amplitudes([1.0] * self.n_dim)

    @property
    def solver(self) -> str:
        """How it is solved."""
        return f"scipy {version('scipy')}: second differences, by sine transforms"

    def check(self, seed: int | Sequence[int], grids: Sequence[Grid]) -> None:
        """Raise `InputError` if no sample of that seed can be had on these grids."""
        for grid in grids:
            self.source(seed, 0, grid)

    def solvers(self, grids: Iterable[Grid], resolution: int | None = None) -> dict[Grid, Grid]:
        """The grid on which to solve for each of `grids`; see `solver_grids`."""
        solvers = solver_grids(grids, resolution)
        for grid in solvers:
            if grid.n_dim != self.n_dim:
                raise InputError(f"the grid {grid} has {grid.n_dim} axes; pass one with n_dim={self.n_dim}")
        return solvers

    def source(self, seed: int | Sequence[int], index: int, grid: Grid) -> NDArray[np.float64]:
        """The source f of sample `index` at the points of `grid`."""
        return self._random_field().sample(seed, index, grid)

    def sample(
        self,
        seed: int | Sequence[int],
        index: int,
        grids: Iterable[Grid],
        solver_resolution: int | None = None,
    ) -> dict[Grid, dict[str, NDArray[np.float64]]]:
        """Source and potential of sample `index` on each of `grids`.

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
            ``{grid: {"source": f, "potential": u}}``.
        """
        solved: dict[Grid, Mapping[str, NDArray[np.float64]]] = {}
        fields: dict[Grid, dict[str, NDArray[np.float64]]] = {}
        for grid, solver in self.solvers(grids, solver_resolution).items():
            if solver not in solved:
                f = self.source(seed, index, solver)
                solved[solver] = {"source": f, "potential": solve_poisson(f, solver)}
            here = injection(grid, solver)
            fields[grid] = {name: np.ascontiguousarray(field[here]) for name, field in solved[solver].items()}
        return fields

    def _random_field(self) -> GaussianRandomField:
        return GaussianRandomField(tau=self.tau, alpha=self.alpha, n_modes=self.n_modes)


def _interior(axis: Axis) -> slice:
    """The points of the axis that are not on the boundary."""
    return {"node": slice(1, None), "node_both": slice(1, -1), "cell": slice(None)}[axis.registration]


def _kind(axis: Axis) -> Literal[1, 2]:
    """Which sine transform: the boundary lies half a spacing, or a whole one, from the outer points."""
    return 2 if axis.registration == "cell" else 1


def _eigenvalues(axis: Axis, points: int) -> NDArray[np.float64]:
    """Of minus the second difference, for the waves along `points` interior points."""
    k = np.arange(1, points + 1)
    return np.asarray((2 / axis.spacing * np.sin(np.pi * k / 2 * axis.spacing / axis.length)) ** 2)
