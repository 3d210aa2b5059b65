r"""The viscous Burgers equation on a circle: :math:`u_t + u u_x = \nu u_{xx}`.

The one-dimensional benchmark of the field, with its initial velocity drawn as a function and solved
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


def solve_burgers(
    initial: ArrayLike,
    grid: Grid,
    *,
    viscosity: float = 0.1,
    final_time: float = 1.0,
    n_steps: int = 10,
    time_step: float | None = None,
) -> NDArray[np.float64]:
    r"""Solve :math:`u_t + (u^2 / 2)_x = \nu u_{xx}` on a periodic axis.

    A Fourier-Galerkin method with the n points' wavenumbers below n/3, for which the product is exact
    (the "2/3 rule"), and the integrator of `exponential`, which takes viscosity exactly.

    Parameters
    ----------
    initial : array_like
        u at time 0, shape ``grid.shape``. Its wavenumbers from n/3 on are dropped.
    grid : Grid
        One axis, periodic.
    viscosity : float
        :math:`\nu`, positive.
    final_time, n_steps
        u is returned at `output_times` (final_time, n_steps).
    time_step : float, optional
        The longest step; if not given, :math:`1 / (\kappa \max |u_0|)` with the largest angular
        wavenumber :math:`\kappa`, a third of the limit of stability: \|u\| never exceeds its first maximum.

    Returns
    -------
    numpy.ndarray
        Shape ``(n_steps + 1, n)``, float64.

    Raises
    ------
    InputError
        If the shape does not fit, a value is not finite, an option is out of its range, or the step is
        too long.

    Examples
    --------
    A small wave decays as the heat equation says:

    >>> grid = Grid.uniform((16,), periodic=True)
    >>> wave = 1e-6 * np.sin(2 * np.pi * grid.points[0])
    >>> bool(np.allclose(solve_burgers(wave, grid)[-1], np.exp(-0.4 * np.pi**2) * wave, rtol=0, atol=1e-11))
    True
    """
    u = np.asarray(initial, dtype=np.float64)
    check_finite_number(zero=False, viscosity=viscosity)
    if grid.n_dim != 1 or u.shape != grid.shape:
        raise InputError(f"initial of shape {u.shape} on the grid {grid}; expected one axis and its shape")
    expect_periodic(True, grid)
    if not np.isfinite(u).all():
        raise InputError("the initial velocity has values that are not finite; expected none")
    n, length = grid.shape[0], grid.axes[0].length
    k = np.arange(n // 2 + 1)
    kept = 3 * k < n
    slope = np.where(kept, 2j * np.pi * k / length, 0.0)
    if time_step is None:
        fastest = np.abs(slope).max() * np.abs(u).max()
        time_step = 1 / fastest if fastest > 0 else final_time

    def advection(v: NDArray[np.complex128]) -> NDArray[np.complex128]:
        flux = fft.rfft(fft.irfft(v, n) ** 2 / 2)
        return np.asarray(-slope * flux)

    states = integrate(
        np.asarray(fft.rfft(u) * kept),
        -viscosity * np.abs(slope) ** 2,
        advection,
        final_time=final_time,
        n_steps=n_steps,
        time_step=time_step,
    )
    return np.asarray(fft.irfft(states, n))


@dataclass(frozen=True, kw_only=True)
class Burgers:
    r"""Burgers' equation from a random initial velocity: the map from u at time 0 to u at later times.

    The initial velocity is a draw of :math:`N(0, 625 (-\Delta + 25)^{-2})` on the circle, as that of Li
    et al. [1]_, and its mean is zero.

    Parameters
    ----------
    viscosity : float
        :math:`\nu`, positive.
    final_time : float
    n_steps : int
        Output times after the first, which is 0, at equal distances.
    scale, tau, alpha, n_modes
        Of the `PeriodicRandomField`.
    time_step : float, optional
        As in `solve_burgers`.

    Raises
    ------
    InputError
        If an option is out of its range.

    Notes
    -----
    It is solved on one periodic grid for all levels, see `spectral_grids`, of as many points as the initial
    field's wavenumbers need (512 with the default options), or as the finest level has, or as
    ``solver_resolution`` says; and evaluated as a Fourier series at the points of each level. Against
    2048 points, 512 leave relative L2 errors of about 1e-9 for viscosities down to 0.01. For 0.001, where
    fronts are as thin as the spacing, they reach 1 % while a front forms; 1024 points leave 0.1 %.

    References
    ----------
    .. [1] Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations",
       ICLR 2021, arXiv:2010.08895, section 5.1 and A.3.1.

    Examples
    --------
    >>> coarse, fine = (Grid.uniform((n,), periodic=True) for n in (32, 64))
    >>> fields = Burgers(n_modes=20).sample(0, 0, [coarse, fine])
    >>> fields[fine]["initial"].shape, fields[fine]["velocity"].shape
    ((64,), (11, 64))
    >>> bool(np.allclose(fields[coarse]["velocity"], fields[fine]["velocity"][:, ::2], rtol=0, atol=1e-12))
    True
    """

    viscosity: float = 0.1
    final_time: float = 1.0
    n_steps: int = 10
    scale: float = 25.0
    tau: float = 5.0
    alpha: float = 2.0
    n_modes: int = 170
    time_step: float | None = None

    name: ClassVar[str] = "burgers"
    title: ClassVar[str] = "Burgers' equation"
    n_dim: ClassVar[int] = 1
    domain: ClassVar[tuple[float, float]] = (0.0, 1.0)
    boundary_condition: ClassVar[str] = "periodic"
    variables: ClassVar[tuple[Variable, ...]] = (
        Variable("initial", "input", long_name="velocity at time 0", initial_of="velocity"),
        Variable("velocity", "output", long_name="velocity", time=True),
    )

    def __post_init__(self) -> None:
        check_finite_number(zero=False, viscosity=self.viscosity)
        if self.time_step is not None:
            check_finite_number(zero=False, time_step=self.time_step)
        output_times(self.final_time, self.n_steps)
        self._random_field().amplitudes([1.0])

    @property
    def times(self) -> tuple[float, ...]:
        """When the velocity is known."""
        return output_times(self.final_time, self.n_steps)

    @property
    def solver(self) -> str:
        """How it is solved."""
        return f"scipy {version('scipy')}: Fourier-Galerkin, exponential Runge-Kutta of order 4"

    def check(self, seed: int | Sequence[int], grids: Sequence[Grid]) -> None:
        """Raise `InputError` if no sample of that seed can be had on these grids."""
        for grid in self.solvers(grids):
            self.initial(seed, 0, grid)

    def solvers(self, grids: Iterable[Grid], resolution: int | None = None) -> dict[Grid, Grid]:
        """The grid on which to solve for each of `grids`; see `spectral_grids`."""
        solvers = spectral_grids(grids, resolution, at_least=3 * self.n_modes + 1, periodic=True)
        for grid in solvers:
            if grid.n_dim != self.n_dim:
                raise InputError(f"the grid {grid} has {grid.n_dim} axes; Burgers' equation has 1")
        return solvers

    def initial(self, seed: int | Sequence[int], index: int, grid: Grid) -> NDArray[np.float64]:
        """The velocity of sample `index` at time 0 at the points of `grid`."""
        return self._random_field().sample(seed, index, grid)

    def sample(
        self,
        seed: int | Sequence[int],
        index: int,
        grids: Iterable[Grid],
        solver_resolution: int | None = None,
    ) -> dict[Grid, dict[str, NDArray[np.float64]]]:
        """Initial velocity and velocity of sample `index` on each of `grids`.

        Parameters
        ----------
        seed : int or sequence of int
        index : int
            Number of the sample, from 0. With `seed` it determines the sample, alone.
        grids : iterable of Grid
            Periodic, ``node`` or ``cell``.
        solver_resolution : int, optional
            Points of the grid on which it is solved, see `spectral_grids`.

        Returns
        -------
        dict
            ``{grid: {"initial": u at time 0, "velocity": u at all times, time first}}``.
        """
        solvers = self.solvers(grids, solver_resolution)
        solver = next(iter(solvers.values()))
        states = solve_burgers(
            self.initial(seed, index, solver),
            solver,
            viscosity=self.viscosity,
            final_time=self.final_time,
            n_steps=self.n_steps,
            time_step=self.time_step,
        )
        fields = {}
        for grid in solvers:
            initial = self.initial(seed, index, grid)
            velocity = evaluate(states, solver, grid)
            velocity[0] = initial  # which it is but for rounding
            fields[grid] = {"initial": initial, "velocity": velocity}
        return fields

    def _random_field(self) -> PeriodicRandomField:
        return PeriodicRandomField(scale=self.scale, tau=self.tau, alpha=self.alpha, n_modes=self.n_modes)
