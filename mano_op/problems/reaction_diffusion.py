r"""Diffusion and reaction of species in a box with closed walls: :math:`u_t = D \Delta u + R(u)`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from mano_op.data.layout import Variable
from mano_op.errors import InputError, check_finite_number, check_whole
from mano_op.grid import Grid
from mano_op.options import Count, Finite, NonNegative, Positive, options
from mano_op.problems.exponential import integrate
from mano_op.problems.problem import Fields, InitialValueProblem
from mano_op.problems.random_field import Modes, Seed
from mano_op.problems.solver_grid import check_periodic, field_values, spectral_grids


@options
class FitzHughNagumo(InitialValueProblem):
    r"""An activator and an inhibitor in a closed box: the map from both at time 0 to both at later times.

    The diffusion-reaction problem of PDEBench (Takamoto et al., NeurIPS 2022, arXiv:2210.07182, D.4): on
    :math:`(-1, 1)^2` an activator u and an inhibitor v,

    .. math:: u_t = D_u \Delta u + u - u^3 - k - v, \qquad v_t = D_v \Delta v + u - v.

    PDEBench starts from independent noise at the points of one grid, which is not a function. Here u and v
    start as two draws of a smooth random field of variance 1. A system of other species is a subclass with
    `diffusivities` and `reaction` of its own.

    Parameters
    ----------
    activator_diffusivity, inhibitor_diffusivity : float
        :math:`D_u` and :math:`D_v`, not negative.
    k : float
    final_time : float
    n_steps : int
        Output times after time 0, at equal intervals.
    scale : float
        Factor of the random fields, positive; the default gives variance 1.
    tau, alpha, n_modes
        Options of the `GaussianRandomField`.
    time_step : float, optional
        The longest step; if not given, 0.02, or :math:`1 / (2 \max u^2)` at time 0 where that is shorter.

    Notes
    -----
    Solved on one grid of cells for all resolutions, see `spectral_grids`, by default 128 along each axis.
    Against 224 cells and steps of 0.005, relative L2 errors are below 1e-4, and 0.5 % for 64 cells.

    Examples
    --------
    >>> coarse, fine = (Grid.uniform((n, n), domain=[(-1, 1)] * 2) for n in (16, 32))
    >>> fields = FitzHughNagumo(final_time=0.5, n_steps=2).sample(0, 0, [coarse, fine], solver_resolution=64)
    >>> bool(np.allclose(fields[coarse]["activator"], fields[fine]["activator"][:, ::2, ::2], atol=1e-12))
    True
    """

    activator_diffusivity: NonNegative = 1e-3
    inhibitor_diffusivity: NonNegative = 5e-3
    k: Finite = 5e-3
    final_time: Positive = 5.0
    n_steps: Count = 10
    scale: Positive = 4.4
    tau: Positive = 5.0
    alpha: Positive = 3.0
    n_modes: Modes = 32
    time_step: Positive | None = None

    name: ClassVar[str] = "fitzhugh_nagumo"
    title: ClassVar[str] = "FitzHugh-Nagumo reaction and diffusion"
    method: ClassVar[str] = "cosine-Galerkin, exponential Runge-Kutta of order 4"
    n_dim: ClassVar[int] = 2
    domain: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    boundary_condition: ClassVar[str] = "neumann"
    variables: ClassVar[tuple[Variable, ...]] = (
        Variable("initial_activator", "input", long_name="activator at time 0", initial_of="activator"),
        Variable("initial_inhibitor", "input", long_name="inhibitor at time 0", initial_of="inhibitor"),
        Variable("activator", "output", long_name="activator", time=True),
        Variable("inhibitor", "output", long_name="inhibitor", time=True),
    )

    @property
    def diffusivities(self) -> tuple[float, ...]:
        """Diffusivity :math:`D_s` of each species."""
        return self.activator_diffusivity, self.inhibitor_diffusivity

    def inputs(self, seed: Seed, index: int, grid: Grid) -> Fields:
        """Draw activator and inhibitor of sample `index` at time 0 at the points of `grid`, by name."""
        check_whole(at_least=0, index=index)
        draws = [self.random_field.sample(seed, number, grid) for number in (2 * index, 2 * index + 1)]
        return {"initial_activator": self.scale * draws[0], "initial_inhibitor": self.scale * draws[1]}

    def solvers(self, grids: Iterable[Grid], resolution: int | None = None) -> dict[Grid, Grid]:
        """Choose one grid of cells for all of `grids`, at least 128 by default; see `spectral_grids`."""
        grids, fewest = tuple(grids), 2 * self.n_modes
        if resolution is None:
            resolution = max(128, fewest, *(n + n % 2 for grid in grids for n in grid.shape))
        return spectral_grids(grids, resolution, at_least=fewest, periodic=False)

    def reaction(self, species: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rates of change of the species, shape ``(species, ...)``, by the reaction alone."""
        u, v = species
        return np.stack([u - u**3 - self.k - v, u - v])

    def solve(self, initial: ArrayLike, grid: Grid) -> NDArray[np.float64]:
        r"""Solve :math:`\partial_t u_s = D_s \Delta u_s + R_s(u)` with zero slope at the boundary.

        A Galerkin method with the cosines of fewer than n/2 half waves along each axis of n cells, for which
        a reaction of third degree is exact. Diffusion is integrated exactly. `initial` is u at time 0, shape
        ``(species, *grid.shape)``, on any ``cell`` grid that is not periodic; the result has the shape
        ``(n_steps + 1, species, *grid.shape)``.

        Examples
        --------
        Uniform fields stay uniform:

        >>> grid = Grid.uniform((8, 8), registration="cell")
        >>> u = FitzHughNagumo().solve(np.ones((2, 8, 8)), grid)
        >>> bool(np.allclose(u, u[:, :, :1, :1]))
        True
        """
        check_periodic(False, grid)
        if any(axis.registration != "cell" for axis in grid):
            raise InputError(f"a grid of {grid}; expected registration='cell', for the cosine transform")
        u = field_values("initial", initial, (len(self.diffusivities), *grid.shape))
        check_finite_number(zero=True, **{f"diffusivities[{i}]": d for i, d in enumerate(self.diffusivities)})
        axes = tuple(range(-grid.n_dim, 0))
        laplacian, kept = np.zeros(()), np.ones((), dtype=bool)
        for axis in grid:
            k = np.arange(axis.n)
            laplacian = np.add.outer(laplacian, -((np.pi * k / axis.length) ** 2))
            kept = np.logical_and.outer(kept, 2 * k < axis.n)

        def tendency(spectrum: NDArray[np.float64]) -> NDArray[np.float64]:
            rates = self.reaction(fft.idctn(spectrum, axes=axes, norm="ortho"))
            return np.asarray(fft.dctn(rates, axes=axes, norm="ortho") * kept)

        spectrum = np.asarray(fft.dctn(u, axes=axes, norm="ortho") * kept)
        linear = np.multiply.outer(np.asarray(self.diffusivities), laplacian)
        time_step = self.time_step or 1 / (2 * max(np.abs(u[0]).max() ** 2, 25.0))
        states = integrate(spectrum, linear, tendency, self.times, time_step)
        return np.asarray(fft.idctn(states, axes=axes, norm="ortho"))
