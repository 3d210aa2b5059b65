r"""Poisson's equation on a box: :math:`-\Delta u = f`, u = 0 on the boundary, in one to three dimensions."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from mano_op.data.layout import Variable
from mano_op.grid import Grid
from mano_op.options import Positive, options
from mano_op.problems.problem import BoundaryValueProblem
from mano_op.problems.random_field import Modes
from mano_op.problems.solver_grid import check_periodic, field_values, interior


@options
class Poisson(BoundaryValueProblem):
    r"""Poisson's equation with a random source: the map from f to u.

    Parameters
    ----------
    n_dim : {1, 2, 3}
        Spatial dimensions of a resolution that is one number; grids have their own.
    tau, alpha, n_modes
        Options of the `GaussianRandomField` f, which needs ``alpha > n_dim / 2``.

    Notes
    -----
    Every resolution samples a solution on the grid of `solver_grids`, and has the error of this grid.
    Relative L2 errors against 256 intervals in three dimensions, with the default source:

    =========  =====  =====  ======  ======
    intervals  16     32     64      128
    error      0.8 %  0.2 %  0.05 %  0.01 %
    =========  =====  =====  ======  ======

    Examples
    --------
    >>> coarse, fine = Grid.uniform((8, 8, 8)), Grid.uniform((16, 16, 16))
    >>> fields = Poisson(n_modes=8).sample(0, 0, [coarse, fine])
    >>> bool((fields[coarse]["potential"] == fields[fine]["potential"][::2, ::2, ::2]).all())
    True
    """

    n_dim: Literal[1, 2, 3] = 3  # type: ignore[misc]
    tau: Positive = 3.0
    alpha: Positive = 3.0
    n_modes: Modes = 32

    name: ClassVar[str] = "poisson"
    title: ClassVar[str] = "Poisson's equation"
    method: ClassVar[str] = "second differences, by sine transforms"
    variables: ClassVar[tuple[Variable, ...]] = (
        Variable("source", "input", long_name="source"),
        Variable("potential", "output", long_name="potential", boundary_value=0.0),
    )

    def __post_init__(self) -> None:
        self.random_field.amplitudes([1.0] * self.n_dim)

    def solve(self, source: ArrayLike, grid: Grid) -> NDArray[np.float64]:
        r"""Solve :math:`-\Delta u = f` with u = 0 on the whole boundary, for u of shape ``grid.shape``.

        Second differences, solved by sine transforms: with N intervals of length h between the boundaries of
        an axis, the waves :math:`\sin(\pi k x / L)`, k = 1, 2, ..., are eigenvectors with the eigenvalues
        :math:`(2/h)^2 \sin^2(\pi k / 2N)`. Grids, boundary and equations are those of `solve_darcy` with
        a = 1; the time is nearly proportional to the number of points.

        Examples
        --------
        In one dimension with f = 1 the solution x (1 - x) / 2 is exact at the points:

        >>> grid = Grid.uniform((8,))
        >>> x = grid.points[0]
        >>> bool(np.allclose(Poisson().solve(np.ones(8), grid), x * (1 - x) / 2))
        True
        """
        check_periodic(False, grid)
        f = field_values("source", source, grid.shape)
        u = np.zeros(grid.shape)
        inner = interior(grid)
        waves = f[inner]
        if not waves.size:
            return u
        eigenvalues = np.zeros(())
        # The boundary is half a spacing, or a whole one, from the outer points.
        kinds: list[Literal[1, 2]] = [2 if axis.registration == "cell" else 1 for axis in grid]
        for j, axis in enumerate(grid):
            waves = fft.dst(waves, type=kinds[j], axis=j, norm="ortho")
            k = np.arange(1, waves.shape[j] + 1)
            sines = 2 / axis.spacing * np.sin(np.pi * k / 2 * axis.spacing / axis.length)
            eigenvalues = np.add.outer(eigenvalues, sines**2)
        waves /= eigenvalues
        for j, kind in enumerate(kinds):
            waves = fft.idst(waves, type=kind, axis=j, norm="ortho")
        u[inner] = waves
        return u
