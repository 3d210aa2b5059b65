r"""Incompressible flow on a torus, as its vorticity: :math:`w_t + u \cdot \nabla w = \nu \Delta w + f`.

The benchmark of the field for problems in time, with its initial vorticity drawn as a function and solved
once, so that every resolution is a sampling of one and the same solution.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from mano_op.data.layout import Variable
from mano_op.errors import InputError, check_finite_number
from mano_op.grid import Grid
from mano_op.problems.exponential import integrate, output_times
from mano_op.problems.fourier import PeriodicRandomField, evaluate
from mano_op.problems.spectral_grid import expect_periodic, spectral_grids


def solve_navier_stokes(
    initial: ArrayLike,
    grid: Grid,
    *,
    forcing: ArrayLike = 0.0,
    viscosity: float = 1e-3,
    final_time: float = 10.0,
    n_steps: int = 10,
    time_step: float | None = None,
) -> NDArray[np.float64]:
    r"""Solve the vorticity equation with a forcing that is steady, on a periodic box.

    With the velocity :math:`u = (\partial_y \psi, -\partial_x \psi)`, :math:`-\Delta \psi = w`, advection is

    .. math:: u \cdot \nabla w =
              (\partial_x^2 - \partial_y^2)(u_x u_y) + \partial_x \partial_y (u_y^2 - u_x^2).

    A Fourier-Galerkin method with the wavenumbers below n/3 along each axis, for which the products are exact
    (the "2/3 rule"), and the integrator of `exponential`, which takes viscosity exactly.

    Parameters
    ----------
    initial : array_like
        w at time 0, shape ``grid.shape``, of mean zero. Its wavenumbers from n/3 on are dropped.
    grid : Grid
        Two axes, y and x in this order, periodic.
    forcing : array_like
        f, zero or an array of shape ``grid.shape`` of mean zero; likewise.
    viscosity : float
        :math:`\nu`, positive.
    final_time, n_steps
        w is returned at `output_times` (final_time, n_steps).
    time_step : float, optional
        The longest step; if not given, 0.64 spacings, which is stable for speeds up to 2.

    Returns
    -------
    numpy.ndarray
        Shape ``(n_steps + 1, *grid.shape)``, float64.

    Raises
    ------
    InputError
        If a shape does not fit, a field is not finite or has another mean, an option is out of its
        range, or the step is too long.

    Examples
    --------
    A single wave does not advect itself, and decays:

    >>> grid = Grid.uniform((16, 16), periodic=True)
    >>> y, x = grid.mesh
    >>> w = solve_navier_stokes(np.cos(2 * np.pi * (x + 2 * y)), grid, viscosity=0.01, final_time=1.0)
    >>> bool(np.isclose(w[-1, 0, 0], np.exp(-0.01 * 5 * (2 * np.pi) ** 2)))
    True
    """
    expect_periodic(True, grid)
    check_finite_number(zero=False, viscosity=viscosity)
    spectrum, source = (
        _spectrum(name, field, grid) for name, field in (("initial", initial), ("forcing", forcing))
    )
    kappa_y, kappa_x, kept = _wavenumbers(grid)
    square = kappa_x**2 + kappa_y**2
    inverse = np.divide(kept, square, out=np.zeros_like(square), where=square > 0)
    to_velocity = np.stack([1j * kappa_y * inverse, -1j * kappa_x * inverse])
    to_advection = np.stack([(kappa_x**2 - kappa_y**2) * kept, kappa_x * kappa_y * kept])
    products = np.empty((2, *grid.shape))

    def tendency(w: NDArray[np.complex128]) -> NDArray[np.complex128]:
        u_x, u_y = fft.irfft2(to_velocity * w, grid.shape)
        np.multiply(u_x, u_y, out=products[0])
        np.multiply(u_y - u_x, u_y + u_x, out=products[1])
        straining, shearing = to_advection * fft.rfft2(products)
        return np.asarray(straining + shearing + source)

    states = integrate(
        spectrum * kept,
        -viscosity * square,
        tendency,
        final_time=final_time,
        n_steps=n_steps,
        time_step=0.64 * min(grid.spacing) if time_step is None else time_step,
    )
    return np.asarray(fft.irfft2(states, grid.shape))


@dataclass(frozen=True, kw_only=True)
class NavierStokes:
    r"""Forced two-dimensional turbulence: the map from the vorticity at time 0 to that at later times.

    On the unit square, as Li et al. [1]_: the initial vorticity is a draw of
    :math:`N(0, 7^{3/2} (-\Delta + 49)^{-5/2})`, the forcing :math:`0.1 (\sin 2\pi(x+y) + \cos 2\pi(x+y))`.

    Parameters
    ----------
    viscosity : float
        :math:`\nu`, positive. Theirs are 1e-3, 1e-4 and 1e-5.
    final_time : float
    n_steps : int
        Output times after the first, which is 0, at equal distances.
    forcing : float
        Its amplitude.
    scale, tau, alpha, n_modes
        Of the `PeriodicRandomField`. The scale is that of the code that came with the paper: after ten units
        of time samples differ by 22 % from their mean. With the factor of the paper's text,
        ``scale=7**0.75``, the forcing soon outweighs the initial field, and they differ by 5 %.
    time_step : float, optional
        As in `solve_navier_stokes`.

    Raises
    ------
    InputError
        If an option is out of its range.

    Notes
    -----
    It is solved on one periodic grid for all levels, see `spectral_grids`, of as many points as the initial
    field's wavenumbers need (64 with the default options), or as the finest level has, or as
    ``solver_resolution`` says; and evaluated as a Fourier series at the points of each level.
    Against 256 points along each axis, 64 leave relative L2 errors below 1e-6 up to time 50 for a viscosity
    of 1e-3, and up to time 20 of 1 % for 1e-4 and 8 % for 1e-5, where 128 points leave 0.03 % and 2.5 %.

    References
    ----------
    .. [1] Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations",
       ICLR 2021, arXiv:2010.08895, section 5.3 and A.3.3.

    Examples
    --------
    >>> coarse, fine = (Grid.uniform((n, n), periodic=True) for n in (16, 32))
    >>> fields = NavierStokes(final_time=0.5, n_steps=2, n_modes=10).sample(0, 0, [coarse, fine])
    >>> fields[fine]["initial_vorticity"].shape, fields[fine]["vorticity"].shape
    ((32, 32), (3, 32, 32))
    >>> bool(np.allclose(fields[coarse]["vorticity"], fields[fine]["vorticity"][:, ::2, ::2], atol=1e-12))
    True
    """

    viscosity: float = 1e-3
    final_time: float = 10.0
    n_steps: int = 10
    forcing: float = 0.1
    scale: float = 7.0**1.5
    tau: float = 7.0
    alpha: float = 2.5
    n_modes: int = 21
    time_step: float | None = None

    name: ClassVar[str] = "navier_stokes"
    title: ClassVar[str] = "Navier-Stokes flow"
    n_dim: ClassVar[int] = 2
    domain: ClassVar[tuple[float, float]] = (0.0, 1.0)
    boundary_condition: ClassVar[str] = "periodic"
    variables: ClassVar[tuple[Variable, ...]] = (
        Variable("initial_vorticity", "input", long_name="vorticity at time 0", initial_of="vorticity"),
        Variable("vorticity", "output", long_name="vorticity", time=True),
    )

    def __post_init__(self) -> None:
        check_finite_number(zero=False, viscosity=self.viscosity)
        if not np.isfinite(self.forcing):
            raise InputError(f"forcing={self.forcing}; expected a finite amplitude")
        if self.time_step is not None:
            check_finite_number(zero=False, time_step=self.time_step)
        output_times(self.final_time, self.n_steps)
        self._random_field().amplitudes([1.0, 1.0])

    @property
    def times(self) -> tuple[float, ...]:
        """When the vorticity is known."""
        return output_times(self.final_time, self.n_steps)

    @property
    def solver(self) -> str:
        """How it is solved."""
        return f"scipy {version('scipy')}: Fourier-Galerkin, exponential Runge-Kutta of order 4"

    def check(self, seed: int | Sequence[int], grids: Sequence[Grid]) -> None:
        """Raise `InputError` if no sample of that seed can be had on these grids."""
        for grid in self.solvers(grids):
            self.initial_vorticity(seed, 0, grid)

    def solvers(self, grids: Iterable[Grid], resolution: int | None = None) -> dict[Grid, Grid]:
        """The grid on which to solve for each of `grids`; see `spectral_grids`."""
        solvers = spectral_grids(grids, resolution, at_least=3 * self.n_modes + 1, periodic=True)
        for grid in solvers:
            if [(axis.start, axis.stop) for axis in grid] != [self.domain] * self.n_dim:
                raise InputError(f"the grid is {grid}; the problem is on the unit square, with two axes")
        return solvers

    def initial_vorticity(self, seed: int | Sequence[int], index: int, grid: Grid) -> NDArray[np.float64]:
        """The vorticity of sample `index` at time 0 at the points of `grid`."""
        return self._random_field().sample(seed, index, grid)

    def sample(
        self,
        seed: int | Sequence[int],
        index: int,
        grids: Iterable[Grid],
        solver_resolution: int | None = None,
    ) -> dict[Grid, dict[str, NDArray[np.float64]]]:
        """Initial vorticity and vorticity of sample `index` on each of `grids`.

        Parameters
        ----------
        seed : int or sequence of int
        index : int
            Number of the sample, from 0. With `seed` it determines the sample, alone.
        grids : iterable of Grid
            Periodic, ``node`` or ``cell``, over the unit square.
        solver_resolution : int, optional
            Points along each axis of the grid on which it is solved, see `spectral_grids`.

        Returns
        -------
        dict
            ``{grid: {"initial_vorticity": w at time 0, "vorticity": w at all times, time first}}``.
        """
        solvers = self.solvers(grids, solver_resolution)
        solver = next(iter(solvers.values()))
        angle = 2 * np.pi * solver.mesh.sum(axis=0)
        states = solve_navier_stokes(
            self.initial_vorticity(seed, index, solver),
            solver,
            forcing=self.forcing * (np.sin(angle) + np.cos(angle)),
            viscosity=self.viscosity,
            final_time=self.final_time,
            n_steps=self.n_steps,
            time_step=self.time_step,
        )
        fields = {}
        for grid in solvers:
            initial = self.initial_vorticity(seed, index, grid)
            vorticity = evaluate(states, solver, grid)
            vorticity[0] = initial  # which it is but for rounding
            fields[grid] = {"initial_vorticity": initial, "vorticity": vorticity}
        return fields

    def _random_field(self) -> PeriodicRandomField:
        return PeriodicRandomField(scale=self.scale, tau=self.tau, alpha=self.alpha, n_modes=self.n_modes)


def _spectrum(name: str, field: ArrayLike, grid: Grid) -> NDArray[np.complex128]:
    """The Fourier coefficients of a field that is a vorticity, or its rate of change."""
    values = np.asarray(field, dtype=np.float64)
    if values.ndim == 0 and values == 0 and grid.n_dim == 2:
        values = np.zeros(grid.shape)
    if values.shape != grid.shape or grid.n_dim != 2:
        raise InputError(
            f"{name} of shape {values.shape} on the grid {grid}; expected two axes and their shape"
        )
    if not np.isfinite(values).all():
        raise InputError(f"{name}: has values that are not finite; expected none")
    if abs(values.mean()) > 1e-9 * np.abs(values).max():
        raise InputError(
            f"{name}: has the mean {values.mean():g}, but the vorticity of a flow that wraps has mean zero: "
            "subtract it"
        )
    return np.asarray(fft.rfft2(values))


def _wavenumbers(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Angular wavenumbers along y, of shape (n_y, 1), and along x, and which of their pairs are kept."""
    (n_y, n_x), (length_y, length_x) = grid.shape, (axis.length for axis in grid)
    k_y = np.fft.fftfreq(n_y, 1 / n_y)[:, np.newaxis]
    k_x = np.fft.rfftfreq(n_x, 1 / n_x)
    kept = np.asarray((3 * np.abs(k_y) < n_y) & (3 * k_x < n_x))
    return np.asarray(2 * np.pi / length_y * k_y), np.asarray(2 * np.pi / length_x * k_x), kept
