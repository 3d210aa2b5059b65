r"""Diffusion and reaction of species in a box with closed walls: :math:`u_t = D \Delta u + R(u)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from mano_op.data.layout import Variable
from mano_op.errors import InputError, check_finite_number, check_whole
from mano_op.grid import Grid
from mano_op.options import Count, NonNegative, Positive, options
from mano_op.problems.exponential import integrate
from mano_op.problems.problem import Fields, Finite, InitialValueProblem
from mano_op.problems.random_field import Modes, Seed
from mano_op.problems.solver_grid import check_periodic, field_values, spectral_grids


def solve_reaction_diffusion(
    initial: ArrayLike,
    grid: Grid,
    *,
    diffusivities: Sequence[float],
    reaction: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    final_time: float,
    n_steps: int,
    time_step: float,
) -> NDArray[np.float64]:
    r"""Solve :math:`\partial_t u_s = D_s \Delta u_s + R_s(u_1, u_2, \dots)` with zero slope at the boundary.

    A Galerkin method with the cosines of fewer than n/2 half waves along each axis of n cells, for which a
    reaction of third degree is exact, and the integrator of `exponential`, which takes diffusion exactly.

    Parameters
    ----------
    initial : array_like
        u at time 0, shape ``(species, *grid.shape)``. Cosines of n/2 half waves or more are dropped.
    grid : Grid
        ``cell``, any shape and box, not periodic.
    diffusivities : sequence of float
        :math:`D_s`, one for each species, not negative.
    reaction : callable
        R, from an array like `initial` to a new one.
    final_time, n_steps
        See `output_times`.
    time_step : float
        The longest step, short enough for the reaction alone.

    Returns
    -------
    numpy.ndarray
        u at the output times, shape ``(n_steps + 1, species, *grid.shape)``, float64.

    Raises
    ------
    InputError
        If the shape or the grid does not fit, a value is not finite, an option is out of its range, or
        the step is too long.

    Examples
    --------
    Without a reaction a half wave decays:

    >>> grid = Grid.uniform((8,), registration="cell")
    >>> wave = np.cos(np.pi * grid.points[0])
    >>> u = solve_reaction_diffusion([wave], grid, diffusivities=[0.1], reaction=np.zeros_like,
    ...                              final_time=1.0, n_steps=1, time_step=1.0)
    >>> bool(np.allclose(u[-1, 0], np.exp(-0.1 * np.pi**2) * wave))
    True
    """
    check_periodic(False, grid)
    if any(axis.registration != "cell" for axis in grid):
        raise InputError(f"the grid is {grid}; expected registration='cell', as the transform takes it")
    u = field_values("initial", initial, (len(diffusivities), *grid.shape))
    check_finite_number(zero=True, **{f"diffusivities[{i}]": d for i, d in enumerate(diffusivities)})
    axes = tuple(range(1, u.ndim))
    laplacian, kept = np.zeros(()), np.ones((), dtype=bool)
    for axis in grid:
        k = np.arange(axis.n)
        laplacian = np.add.outer(laplacian, -((np.pi * k / axis.length) ** 2))
        kept = np.logical_and.outer(kept, 2 * k < axis.n)

    def tendency(spectrum: NDArray[np.float64]) -> NDArray[np.float64]:
        rates = reaction(fft.idctn(spectrum, axes=axes, norm="ortho"))
        return np.asarray(fft.dctn(rates, axes=axes, norm="ortho") * kept)

    states = integrate(
        np.asarray(fft.dctn(u, axes=axes, norm="ortho") * kept),
        np.multiply.outer(np.asarray(diffusivities, dtype=np.float64), laplacian),
        tendency,
        final_time=final_time,
        n_steps=n_steps,
        time_step=time_step,
    )
    return np.asarray(fft.idctn(states, axes=tuple(range(2, states.ndim)), norm="ortho"))


@options
class FitzHughNagumo(InitialValueProblem):
    r"""An activator and an inhibitor in a closed box: the map from both at time 0 to both at later times.

    The diffusion-reaction problem of PDEBench [1]_: on :math:`(-1, 1)^2` an activator u and an inhibitor v,

    .. math:: u_t = D_u \Delta u + u - u^3 - k - v, \qquad v_t = D_v \Delta v + u - v.

    PDEBench starts from independent noise at the points of one grid, which is not a function. Here u and v
    start as two draws of a smooth random field of the same variance, 1.

    Parameters
    ----------
    activator_diffusivity, inhibitor_diffusivity : float
        :math:`D_u` and :math:`D_v`, not negative.
    k : float
    final_time : float
    n_steps : int
        Output times after the first, which is 0, at equal intervals.
    scale : float
        Factor of the random fields, positive; the default gives variance 1.
    tau, alpha, n_modes
        Of the `GaussianRandomField`.
    time_step : float, optional
        The longest step; if not given, 0.02, or :math:`1 / (2 \max u^2)` at time 0 where that is shorter.

    Notes
    -----
    Solved on one grid of cells for all levels, see `spectral_grids`, with 128 along each axis by default.
    Against 224 cells and steps of 0.005, relative L2 errors are below 1e-4, and 0.5 % for 64 cells.

    References
    ----------
    .. [1] Takamoto et al., "PDEBench: An Extensive Benchmark for Scientific Machine Learning", NeurIPS 2022
       Datasets and Benchmarks, arXiv:2210.07182, D.4.

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

    def inputs(self, seed: Seed, index: int, grid: Grid) -> Fields:
        """Draw activator and inhibitor of sample `index` at time 0 at the points of `grid`, by name."""
        check_whole(at_least=0, index=index)
        draws = [self.random_field.sample(seed, number, grid) for number in (2 * index, 2 * index + 1)]
        return {"initial_activator": self.scale * draws[0], "initial_inhibitor": self.scale * draws[1]}

    def solvers(self, grids: Iterable[Grid], resolution: int | None = None) -> dict[Grid, Grid]:
        """Choose one grid of cells for all of `grids`, at least 128 by default; see `spectral_grids`."""
        levels, fewest = tuple(grids), 2 * self.n_modes
        if resolution is None:
            resolution = max(128, fewest, *(n + n % 2 for grid in levels for n in grid.shape))
        return spectral_grids(levels, resolution, at_least=fewest, periodic=False)

    def reaction(self, species: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rates of change of both species, shape ``(2, ...)``, by the reaction alone."""
        u, v = species
        return np.stack([u - u**3 - self.k - v, u - v])

    def solve(self, initial: ArrayLike, grid: Grid) -> NDArray[np.float64]:
        """Solve for both species, shape ``(n_steps + 1, 2, *grid.shape)``; see `solve_reaction_diffusion`."""
        activator, _ = np.asarray(initial)
        return solve_reaction_diffusion(
            initial,
            grid,
            diffusivities=(self.activator_diffusivity, self.inhibitor_diffusivity),
            reaction=self.reaction,
            final_time=self.final_time,
            n_steps=self.n_steps,
            time_step=self.time_step or min(0.02, 1 / (2 * np.abs(activator).max() ** 2)),
        )
