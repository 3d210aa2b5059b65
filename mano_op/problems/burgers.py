r"""The viscous Burgers equation on a periodic interval: :math:`u_t + u u_x = \nu u_{xx}`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from mano_op.data.layout import Variable
from mano_op.grid import Grid
from mano_op.options import Count, Positive, options
from mano_op.problems.exponential import integrate
from mano_op.problems.problem import PeriodicProblem
from mano_op.problems.solver_grid import check_periodic, field_values


@options
class Burgers(PeriodicProblem):
    r"""Burgers' equation from a random initial velocity: the map from u at time 0 to u at later times.

    The initial velocity is a draw of :math:`N(0, 625 (-\Delta + 25)^{-2})` of mean zero, as in Li
    et al., "Fourier Neural Operator for Parametric Partial Differential Equations", ICLR 2021,
    arXiv:2010.08895, 5.1 and A.3.1.

    Parameters
    ----------
    viscosity : float
        :math:`\nu`, positive.
    final_time : float
    n_steps : int
        Output times after time 0, at equal intervals.
    scale, tau, alpha, n_modes
        Options of the `PeriodicRandomField`.
    time_step : float, optional
        The longest step; if not given, :math:`1 / (\kappa \max |u_0|)` with the largest angular
        wavenumber :math:`\kappa`, a third of the limit of stability: \|u\| never exceeds its first maximum.

    Notes
    -----
    The solver grid has 512 points by default. Relative L2 errors against 2048 points, while a front forms:

    =========  ==========  ===========
    viscosity  512 points  1024 points
    =========  ==========  ===========
    >= 0.01    1e-9
    0.001      1 %         0.1 %
    =========  ==========  ===========

    Examples
    --------
    >>> coarse, fine = (Grid.uniform((n,), periodic=True) for n in (32, 64))
    >>> fields = Burgers(n_modes=20).sample(0, 0, [coarse, fine])
    >>> bool(np.allclose(fields[coarse]["velocity"], fields[fine]["velocity"][:, ::2], rtol=0, atol=1e-12))
    True
    """

    viscosity: Positive = 0.1
    final_time: Positive = 1.0
    n_steps: Count = 10
    scale: Positive = 25.0
    tau: Positive = 5.0
    alpha: Positive = 2.0
    n_modes: Count = 170
    time_step: Positive | None = None

    name: ClassVar[str] = "burgers"
    title: ClassVar[str] = "Burgers' equation"
    n_dim: ClassVar[int] = 1
    variables: ClassVar[tuple[Variable, ...]] = (
        Variable("initial", "input", long_name="velocity at time 0", initial_of="velocity"),
        Variable("velocity", "output", long_name="velocity", time=True),
    )

    def solve(self, initial: ArrayLike, grid: Grid) -> NDArray[np.float64]:
        r"""Solve :math:`u_t + (u^2 / 2)_x = \nu u_{xx}`, by the method of `PeriodicProblem`.

        `initial` is u at time 0, shape ``(n,)``, on one periodic axis; the result has the shape
        ``(n_steps + 1, n)``.

        Examples
        --------
        A small wave decays as in the heat equation:

        >>> grid = Grid.uniform((16,), periodic=True)
        >>> wave = 1e-6 * np.sin(2 * np.pi * grid.points[0])
        >>> u = Burgers().solve(wave, grid)
        >>> bool(np.allclose(u[-1], np.exp(-0.4 * np.pi**2) * wave, rtol=0, atol=1e-11))
        True
        """
        check_periodic(True, grid, self.n_dim)
        u = field_values("initial", initial, grid.shape)
        n, length = grid.shape[0], grid.axes[0].length
        k = np.arange(n // 2 + 1)
        kept = 3 * k < n
        slope = np.where(kept, 2j * np.pi * k / length, 0.0)
        fastest = np.abs(slope).max() * np.abs(u).max()

        def advection(v: NDArray[np.complex128]) -> NDArray[np.complex128]:
            return np.asarray(-slope * fft.rfft(fft.irfft(v, n) ** 2 / 2))

        time_step = self.time_step or (1 / fastest if fastest > 0 else self.final_time)
        linear = -self.viscosity * np.abs(slope) ** 2
        states = integrate(np.asarray(fft.rfft(u) * kept), linear, advection, self.times, time_step)
        return np.asarray(fft.irfft(states, n))
