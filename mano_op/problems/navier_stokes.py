r"""Incompressible flow on a torus, as its vorticity: :math:`w_t + u \cdot \nabla w = \nu \Delta w + f`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from mano_op.data.layout import Variable
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.options import Count, Finite, Positive, options
from mano_op.problems.exponential import integrate
from mano_op.problems.problem import PeriodicProblem
from mano_op.problems.solver_grid import check_periodic, field_values


@options
class NavierStokes(PeriodicProblem):
    r"""Forced two-dimensional turbulence: the map from the vorticity at time 0 to that at later times.

    As in Li et al. (arXiv:2010.08895, 5.3 and A.3.3), on the unit square: the initial vorticity is a draw of
    :math:`N(0, 7^{3/2} (-\Delta + 49)^{-5/2})`, the forcing :math:`0.1 (\sin 2\pi(x+y) + \cos 2\pi(x+y))`.
    On another box the forcing is stretched to wrap once along each axis.

    Parameters
    ----------
    viscosity : float
        :math:`\nu`, positive; 1e-3, 1e-4 and 1e-5 in the paper.
    final_time : float
    n_steps : int
        Output times after time 0, at equal intervals.
    forcing : float
        Amplitude of the forcing.
    scale, tau, alpha, n_modes
        Options of the `PeriodicRandomField`. The scale is that of the paper's code: after ten units of time,
        samples differ by 22 % from their mean. With the factor of the paper's text, ``scale=7**0.75``, they
        differ by 5 %, as the forcing soon outweighs the initial field.
    time_step : float, optional
        The longest step; if not given, 0.64 spacings, which is stable for speeds up to 2.

    Notes
    -----
    The solver grid has 64 points along each axis by default. Relative L2 errors against 256 points:

    =========  ==========  =========  ==========
    viscosity  up to time  64 points  128 points
    =========  ==========  =========  ==========
    1e-3       50          1e-6
    1e-4       20          1 %        0.03 %
    1e-5       20          8 %        2.5 %
    =========  ==========  =========  ==========

    Examples
    --------
    >>> coarse, fine = (Grid.uniform((n, n), periodic=True) for n in (16, 32))
    >>> fields = NavierStokes(final_time=0.5, n_steps=2, n_modes=10).sample(0, 0, [coarse, fine])
    >>> bool(np.allclose(fields[coarse]["vorticity"], fields[fine]["vorticity"][:, ::2, ::2], atol=1e-12))
    True
    """

    viscosity: Positive = 1e-3
    final_time: Positive = 10.0
    n_steps: Count = 10
    forcing: Finite = 0.1
    scale: Positive = 7.0**1.5
    tau: Positive = 7.0
    alpha: Positive = 2.5
    n_modes: Count = 21
    time_step: Positive | None = None

    name: ClassVar[str] = "navier_stokes"
    title: ClassVar[str] = "Navier-Stokes flow"
    n_dim: ClassVar[int] = 2
    variables: ClassVar[tuple[Variable, ...]] = (
        Variable("initial_vorticity", "input", long_name="vorticity at time 0", initial_of="vorticity"),
        Variable("vorticity", "output", long_name="vorticity", time=True),
    )

    def solve(self, initial: ArrayLike, grid: Grid, forcing: ArrayLike | None = None) -> NDArray[np.float64]:
        r"""Solve the vorticity equation with a steady forcing, by the method of `PeriodicProblem`.

        With :math:`u = (\partial_y \psi, -\partial_x \psi)`, :math:`-\Delta \psi = w`, advection is

        .. math:: u \cdot \nabla w =
                  (\partial_x^2 - \partial_y^2)(u_x u_y) + \partial_x \partial_y (u_y^2 - u_x^2).

        `initial` is w at time 0, `forcing` is f, by default that of the problem: both of mean zero and of the
        shape of the grid, whose periodic axes are y and x. The result has the shape
        ``(n_steps + 1, *grid.shape)``.

        Examples
        --------
        A single wave does not advect itself, and decays:

        >>> grid = Grid.uniform((16, 16), periodic=True)
        >>> y, x = grid.mesh
        >>> flow = NavierStokes(viscosity=0.01, final_time=1.0, forcing=0.0)
        >>> w = flow.solve(np.cos(2 * np.pi * (x + 2 * y)), grid)
        >>> bool(np.isclose(w[-1, 0, 0], np.exp(-0.01 * 5 * (2 * np.pi) ** 2)))
        True
        """
        check_periodic(True, grid, self.n_dim)
        if forcing is None:
            turns = sum((x - axis.start) / axis.length for x, axis in zip(grid.mesh, grid, strict=True))
            angle = 2 * np.pi * turns
            forcing = self.forcing * (np.sin(angle) + np.cos(angle))
        spectrum, source = _spectrum("initial", initial, grid), _spectrum("forcing", forcing, grid)
        (n_y, n_x), (length_y, length_x) = grid.shape, (axis.length for axis in grid)
        k_y, k_x = np.fft.fftfreq(n_y, 1 / n_y)[:, np.newaxis], np.fft.rfftfreq(n_x, 1 / n_x)
        kappa_y, kappa_x = 2 * np.pi / length_y * k_y, 2 * np.pi / length_x * k_x
        kept = (3 * np.abs(k_y) < n_y) & (3 * k_x < n_x)
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

        linear = -self.viscosity * square
        time_step = self.time_step or 0.64 * min(grid.spacing)
        states = integrate(spectrum * kept, linear, tendency, self.times, time_step)
        return np.asarray(fft.irfft2(states, grid.shape))


def _spectrum(name: str, field: ArrayLike, grid: Grid) -> NDArray[np.complex128]:
    values = field_values(name, field, grid.shape)
    if abs(values.mean()) > 1e-9 * np.abs(values).max():
        raise InputError(
            f"{name} has the mean {values.mean():g}; expected 0, as of any curl on a torus: subtract it"
        )
    return np.asarray(fft.rfft2(values))
