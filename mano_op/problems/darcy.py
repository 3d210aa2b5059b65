r"""Steady flow through a porous medium: :math:`-\nabla \cdot (a \nabla u) = f`, u = 0 on the boundary."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from mano_op.data.layout import Variable
from mano_op.grid import Axis, Grid
from mano_op.options import Finite, Positive, options
from mano_op.problems.problem import BoundaryValueProblem, Fields
from mano_op.problems.random_field import Modes, Seed
from mano_op.problems.solver_grid import check_periodic, field_values, interior


def solve_darcy(coefficient: ArrayLike, grid: Grid, forcing: ArrayLike = 1.0) -> NDArray[np.float64]:
    r"""Solve :math:`-\nabla \cdot (a \nabla u) = f` with u = 0 on the whole boundary.

    Finite volumes of second order, one around each point. The flux between neighbours i and j at a distance h
    is :math:`\bar a_{ij} (u_i - u_j) / h`. The harmonic mean :math:`\bar a_{ij} = 2 a_i a_j / (a_i + a_j)` is
    exact if a jumps half way between them. The symmetric sparse system is factorised directly.

    Parameters
    ----------
    coefficient : array_like
        a at the points of the grid, shape ``grid.shape``, positive.
    grid : Grid
        Any registration, shape and box, not periodic. The boundary is half a cell away from the outer points
        of ``cell``; a spacing beyond the last point of ``node``, with the last value of a up to it.
    forcing : array_like
        f, a number or an array of shape ``grid.shape``; values on the boundary are not used.

    Returns
    -------
    numpy.ndarray
        u, shape ``grid.shape``, float64.

    Raises
    ------
    InputError
        If a shape does not fit, the coefficient is not positive and finite, the forcing is not finite, or an
        axis is periodic.

    Examples
    --------
    In one dimension with a = f = 1 the solution x (1 - x) / 2 is exact at the points:

    >>> grid = Grid.uniform((8,))
    >>> x = grid.points[0]
    >>> bool(np.allclose(solve_darcy(np.ones(8), grid), x * (1 - x) / 2))
    True
    """
    check_periodic(False, grid)
    a = field_values("coefficient", coefficient, grid.shape, positive=True)
    f = field_values("forcing", forcing, () if np.ndim(forcing) == 0 else grid.shape)
    u = np.zeros(grid.shape)
    inner = interior(grid)
    if u[inner].size:
        factors = splu(
            _operator(a, grid),
            permc_spec="MMD_AT_PLUS_A",  # a symmetric positive matrix: order for little fill, do not pivot
            diag_pivot_thresh=0.0,
            panel_size=4,  # narrow panels take a third off the time on matrices as sparse as these
            options={"SymmetricMode": True},
        )
        right_side = np.broadcast_to(f, grid.shape)[inner]
        u[inner] = factors.solve(right_side.ravel()).reshape(right_side.shape)
    return u


@options
class Darcy(BoundaryValueProblem):
    r"""Darcy flow with a random permeability: the map from a to u.

    Parameters
    ----------
    coefficient : {"piecewise", "lognormal"}
        ``"piecewise"``: ``values[1]`` where the random field is at least 0, ``values[0]`` elsewhere, as in Li
        et al., arXiv:2010.08895, 5.2. ``"lognormal"``: the exponential of the field, which is smooth.
    values : tuple of two floats
        Permeabilities of ``"piecewise"``.
    tau, alpha, n_modes
        Options of the `GaussianRandomField`.
    forcing : float
        f, the same everywhere.

    Notes
    -----
    Every resolution samples a solution on the grid of `solver_grids`, and has the error of this grid.
    Relative L2 errors against 1024 intervals, with the default coefficient, which jumps between points:

    =========  ====  ====  =====  =====  ======
    intervals  16    32    64     128    256
    error      3 %   1 %   0.5 %  0.2 %  0.07 %
    =========  ====  ====  =====  =====  ======

    With ``"lognormal"`` the error of 64 intervals is 0.02 %. Where models come close to these errors, ask for
    a solver resolution well above the finest resolution.

    Examples
    --------
    >>> coarse, fine = Grid.uniform((16, 16)), Grid.uniform((32, 32))
    >>> fields = Darcy().sample(0, 0, [coarse, fine])
    >>> np.unique(fields[fine]["permeability"])
    array([ 3., 12.])
    >>> bool((fields[coarse]["pressure"] == fields[fine]["pressure"][::2, ::2]).all())
    True
    """

    coefficient: Literal["piecewise", "lognormal"] = "piecewise"
    values: tuple[Positive, Positive] = (3.0, 12.0)
    tau: Positive = 3.0
    alpha: Positive = 2.0
    n_modes: Modes = 128
    forcing: Finite = 1.0

    name: ClassVar[str] = "darcy"
    title: ClassVar[str] = "Darcy flow"
    method: ClassVar[str] = "SuperLU"
    n_dim: ClassVar[int] = 2
    variables: ClassVar[tuple[Variable, ...]] = (
        Variable("permeability", "input", long_name="permeability of the medium"),
        Variable("pressure", "output", long_name="pressure", boundary_value=0.0),
    )

    def inputs(self, seed: Seed, index: int, grid: Grid) -> Fields:
        """Draw the permeability a of sample `index` at the points of `grid`, by name."""
        field = self.random_field.sample(seed, index, grid)
        if self.coefficient == "lognormal":
            return {"permeability": np.exp(field)}
        return {"permeability": np.where(field >= 0, self.values[1], self.values[0])}

    def solve(self, permeability: ArrayLike, grid: Grid) -> NDArray[np.float64]:
        """Solve for the pressure, shape ``grid.shape``; see `solve_darcy`."""
        return solve_darcy(permeability, grid, self.forcing)


def _operator(a: NDArray[np.float64], grid: Grid) -> sparse.csc_array:
    """The matrix of the fluxes between the interior points, in C order."""
    inner = interior(grid)
    shape = a[inner].shape
    diagonal = np.zeros(shape)
    bands: list[NDArray[np.float64]] = []
    offsets: list[int] = []
    for position, axis in enumerate(grid):
        across = tuple(slice(None) if i == position else points for i, points in enumerate(inner))
        faces = _faces(np.moveaxis(a[across], position, 0), axis)
        np.moveaxis(diagonal, position, 0)[...] += faces[:-1] + faces[1:]
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
    outside = (int(axis.registration == "cell"), int(axis.registration != "node_both"))
    a = np.pad(a, [outside] + [(0, 0)] * (a.ndim - 1), mode="edge")
    faces = 2 / (1 / a[:-1] + 1 / a[1:]) / axis.spacing**2
    if axis.registration == "cell":  # the boundary is h / 2 away
        faces[0] *= 2
        faces[-1] *= 2
    return faces
