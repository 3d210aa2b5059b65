r"""Species that diffuse and react in a box with closed walls: :math:`u_t = D \Delta u + R(u)`.

A problem in time that does not wrap, with its initial fields drawn as functions and solved once, so that
every resolution is a sampling of one and the same solution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from mano_op.data.layout import Variable
from mano_op.errors import InputError, check_finite_number, check_whole
from mano_op.grid import Grid
from mano_op.problems.cosine import evaluate_cosines
from mano_op.problems.exponential import integrate, output_times
from mano_op.problems.random_field import GaussianRandomField
from mano_op.problems.spectral_grid import expect_periodic, spectral_grids


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
        The species at time 0, shape ``(species, *grid.shape)``. Cosines of n/2 half waves or more are
        dropped.
    grid : Grid
        ``cell``, any shape and box, not periodic.
    diffusivities : sequence of float
        :math:`D_s`, one for each species, not negative.
    reaction : callable
        R. It gets an array like `initial` and returns a new one.
    final_time, n_steps
        u is returned at `output_times` (final_time, n_steps).
    time_step : float
        The longest step. It has to resolve the reaction alone.

    Returns
    -------
    numpy.ndarray
        Shape ``(n_steps + 1, species, *grid.shape)``, float64.

    Raises
    ------
    InputError
        If the shape or the grid does not fit, a value is not finite, an option is out of its range, or
        the step is too long.

    Examples
    --------
    Nothing reacts, and a half wave decays:

    >>> grid = Grid.uniform((8,), registration="cell")
    >>> wave = np.cos(np.pi * grid.points[0])
    >>> u = solve_reaction_diffusion([wave], grid, diffusivities=[0.1], reaction=np.zeros_like,
    ...                              final_time=1.0, n_steps=1, time_step=1.0)
    >>> bool(np.allclose(u[-1, 0], np.exp(-0.1 * np.pi**2) * wave))
    True
    """
    u = np.asarray(initial, dtype=np.float64)
    expect_periodic(False, grid)
    if any(axis.registration != "cell" for axis in grid):
        raise InputError(f"the grid is {grid}; expected registration='cell', as the transform takes it")
    if u.shape != (len(diffusivities), *grid.shape):
        raise InputError(
            f"initial of shape {u.shape}, expected {(len(diffusivities), *grid.shape)}: one field for each "
            f"of {len(diffusivities)} diffusivities"
        )
    if not np.isfinite(u).all():
        raise InputError("the initial fields have values that are not finite; expected none")
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


@dataclass(frozen=True, kw_only=True)
class FitzHughNagumo:
    r"""An activator and an inhibitor in a closed box: the map from both at time 0 to both at later times.

    The diffusion-reaction problem of PDEBench [1]_: on :math:`(-1, 1)^2` an activator u and an inhibitor v,

    .. math:: u_t = D_u \Delta u + u - u^3 - k - v, \qquad v_t = D_v \Delta v + u - v.

    Its initial values are independent noise at every point of one grid, which is no function. Here u and v
    start as two draws of a smooth random field, of unit variance as well.

    Parameters
    ----------
    activator_diffusivity, inhibitor_diffusivity : float
        :math:`D_u` and :math:`D_v`, not negative.
    k : float
    final_time : float
    n_steps : int
        Output times after the first, which is 0, at equal distances.
    scale : float
        Factor of the random fields, positive; with the default options it makes their variance 1.
    tau, alpha, n_modes
        Of the `GaussianRandomField`.
    time_step : float, optional
        The longest step; if not given, 0.02, or :math:`1 / (2 \max u^2)` at time 0 where that is shorter.

    Raises
    ------
    InputError
        If an option is out of its range.

    Notes
    -----
    It is solved on one grid of cells for all levels, see `spectral_grids`, of 128 along each axis, or as many
    as the initial fields' modes need, or as the finest level has, or as ``solver_resolution`` says; and
    evaluated as a cosine series at the points of each level. Against 224 cells and steps of 0.005, 128 cells
    with the default step leave relative L2 errors below 1e-4; 64 cells leave 0.5 %.

    References
    ----------
    .. [1] Takamoto et al., "PDEBench: An Extensive Benchmark for Scientific Machine Learning", NeurIPS 2022
       Datasets and Benchmarks, arXiv:2210.07182, D.4.

    Examples
    --------
    >>> coarse, fine = (Grid.uniform((n, n), domain=[(-1, 1)] * 2) for n in (16, 32))
    >>> fields = FitzHughNagumo(final_time=0.5, n_steps=2).sample(0, 0, [coarse, fine], solver_resolution=64)
    >>> fields[fine]["initial_activator"].shape, fields[fine]["activator"].shape
    ((32, 32), (3, 32, 32))
    >>> bool(np.allclose(fields[coarse]["activator"], fields[fine]["activator"][:, ::2, ::2], atol=1e-12))
    True
    """

    activator_diffusivity: float = 1e-3
    inhibitor_diffusivity: float = 5e-3
    k: float = 5e-3
    final_time: float = 5.0
    n_steps: int = 10
    scale: float = 4.4
    tau: float = 5.0
    alpha: float = 3.0
    n_modes: int = 32
    time_step: float | None = None

    name: ClassVar[str] = "fitzhugh_nagumo"
    title: ClassVar[str] = "FitzHugh-Nagumo reaction and diffusion"
    n_dim: ClassVar[int] = 2
    domain: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    boundary_condition: ClassVar[str] = "neumann"
    variables: ClassVar[tuple[Variable, ...]] = (
        Variable("initial_activator", "input", long_name="activator at time 0", initial_of="activator"),
        Variable("initial_inhibitor", "input", long_name="inhibitor at time 0", initial_of="inhibitor"),
        Variable("activator", "output", long_name="activator", time=True),
        Variable("inhibitor", "output", long_name="inhibitor", time=True),
    )

    def __post_init__(self) -> None:
        check_finite_number(
            zero=True,
            activator_diffusivity=self.activator_diffusivity,
            inhibitor_diffusivity=self.inhibitor_diffusivity,
        )
        check_finite_number(zero=False, scale=self.scale)
        if self.time_step is not None:
            check_finite_number(zero=False, time_step=self.time_step)
        if not np.isfinite(self.k):
            raise InputError(f"k={self.k}; expected a finite number")
        output_times(self.final_time, self.n_steps)
        self._random_field().amplitudes([2.0, 2.0])

    @property
    def times(self) -> tuple[float, ...]:
        """When the species are known."""
        return output_times(self.final_time, self.n_steps)

    @property
    def solver(self) -> str:
        """How it is solved."""
        return f"scipy {version('scipy')}: cosine-Galerkin, exponential Runge-Kutta of order 4"

    def check(self, seed: int | Sequence[int], grids: Sequence[Grid]) -> None:
        """Raise `InputError` if no sample of that seed can be had on these grids."""
        for grid in self.solvers(grids):
            self.initial(seed, 0, grid)

    def solvers(self, grids: Iterable[Grid], resolution: int | None = None) -> dict[Grid, Grid]:
        """The grid on which to solve for each of `grids`; see `spectral_grids`."""
        levels = tuple(grids)
        needed = 2 * self.n_modes
        if resolution is None:
            resolution = max(128, needed, *(n + n % 2 for grid in levels for n in grid.shape))
        return spectral_grids(levels, resolution, at_least=needed, periodic=False)

    def initial(self, seed: int | Sequence[int], index: int, grid: Grid) -> NDArray[np.float64]:
        """Activator and inhibitor of sample `index` at time 0, shape ``(2, *grid.shape)``."""
        check_whole(at_least=0, index=index)
        draws = (self._random_field().sample(seed, number, grid) for number in (2 * index, 2 * index + 1))
        return self.scale * np.stack(list(draws))

    def reaction(self, species: NDArray[np.float64]) -> NDArray[np.float64]:
        """How fast the two species change where they do not diffuse."""
        u, v = species
        return np.stack([u - u**3 - self.k - v, u - v])

    def sample(
        self,
        seed: int | Sequence[int],
        index: int,
        grids: Iterable[Grid],
        solver_resolution: int | None = None,
    ) -> dict[Grid, dict[str, NDArray[np.float64]]]:
        """Both species of sample `index` on each of `grids`, at time 0 and at all times.

        Parameters
        ----------
        seed : int or sequence of int
        index : int
            Number of the sample, from 0. With `seed` it determines the sample, alone.
        grids : iterable of Grid
            Any registration, not periodic.
        solver_resolution : int, optional
            Cells along each axis of the grid on which it is solved, see `spectral_grids`.

        Returns
        -------
        dict
            ``{grid: {"initial_activator": u at time 0, ..., "activator": u at all times, ...}}``, time first.
        """
        solvers = self.solvers(grids, solver_resolution)
        solver = next(iter(solvers.values()))
        start = self.initial(seed, index, solver)
        states = solve_reaction_diffusion(
            start,
            solver,
            diffusivities=(self.activator_diffusivity, self.inhibitor_diffusivity),
            reaction=self.reaction,
            final_time=self.final_time,
            n_steps=self.n_steps,
            time_step=self.time_step or min(0.02, 1 / (2 * np.abs(start[0]).max() ** 2)),
        )
        fields = {}
        for grid in solvers:
            initial = self.initial(seed, index, grid)
            species = evaluate_cosines(states, solver, grid)
            species[0] = initial  # which it is but for rounding
            fields[grid] = {
                "initial_activator": initial[0],
                "initial_inhibitor": initial[1],
                "activator": np.ascontiguousarray(species[:, 0]),
                "inhibitor": np.ascontiguousarray(species[:, 1]),
            }
        return fields

    def _random_field(self) -> GaussianRandomField:
        return GaussianRandomField(tau=self.tau, alpha=self.alpha, n_modes=self.n_modes)
