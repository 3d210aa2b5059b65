"""Problems: a random input and the solution that follows from it, sampled on any grids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import fields
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mano_op.data.layout import Variable
from mano_op.grid import Grid
from mano_op.problems.random_field import GaussianRandomField, PeriodicRandomField, RandomField, Seed
from mano_op.problems.series import evaluate_series
from mano_op.problems.solver_grid import check_periodic, injection, solver_grids, spectral_grids

Array = NDArray[np.float64]
Fields = dict[str, Array]
Solution = tuple[Grid, Fields, Array]  # solver grid, inputs and outputs on it


class Problem(ABC):
    """A random input and the solution that follows from it, both functions: the same on every grid.

    Subclasses are frozen dataclasses of their options, which include those of the random field. An option
    out of its range raises `InputError`; see `mano_op.options`.

    Attributes
    ----------
    name, title, method : str
        Names of the problem, for programs and for people, and of the solver's method, for the provenance.
    n_dim : int
        Spatial dimensions of a resolution that is one number.
    domain : (float, float)
        Ends of every axis.
    boundary_condition : str
        Boundary condition of every axis; "periodic" for axes that wrap.
    variables : tuple of Variable
        Inputs first.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    title: ClassVar[str]
    method: ClassVar[str]
    n_dim: ClassVar[int]
    domain: ClassVar[tuple[float, float]] = (0.0, 1.0)
    boundary_condition: ClassVar[str]
    variables: ClassVar[tuple[Variable, ...]]
    field_type: ClassVar[type[RandomField]] = GaussianRandomField  # the law of the inputs

    @property
    def times(self) -> tuple[float, ...]:
        """Output times of the variables that vary in time, 0 first; empty if none does."""
        return ()

    @property
    def solver(self) -> str:
        """Library and numerical method of the solver."""
        return f"scipy {version('scipy')}: {self.method}"

    @property
    def random_field(self) -> RandomField:
        """Law of the inputs, with the options of the problem."""
        return self.field_type(**{law.name: getattr(self, law.name) for law in fields(self.field_type)})

    def inputs(self, seed: Seed, index: int, grid: Grid) -> Fields:
        """Draw the input variables of sample `index` at the points of `grid`, by name; see `sample`."""
        return {self.variables[0].name: self.random_field.sample(seed, index, grid)}

    @abstractmethod
    def solve(self, inputs: ArrayLike, /, grid: Grid) -> NDArray[np.float64]:
        """Solve for the output variables, from the input variable at the points of the grid.

        Parameters
        ----------
        inputs : array_like
            Shape ``grid.shape``, or ``(input, *grid.shape)`` where there are several inputs.
        grid : Grid

        Returns
        -------
        numpy.ndarray
            Shape ``([time,] [output,] *grid.shape)``: time where outputs vary in time, output where there are
            several; float64.

        Raises
        ------
        InputError
            If the grid or a shape does not fit, a value is not usable, or a time step is too long.
        """

    @abstractmethod
    def solvers(self, grids: Iterable[Grid], resolution: int | None = None) -> dict[Grid, Grid]:
        """Choose the grid to solve on for each of `grids`, by `solver_grids` or `spectral_grids`."""

    def sample(
        self, seed: Seed, index: int, grids: Iterable[Grid], solver_resolution: int | None = None
    ) -> dict[Grid, Fields]:
        """Draw sample `index`, solve, and evaluate all variables on each of `grids`.

        Parameters
        ----------
        seed, index
            As of `RandomField.sample`: they alone determine the sample.
        grids : iterable of Grid
            Grids of any shapes and registrations over one domain, periodic if the boundary condition is.
        solver_resolution : int, optional
            Resolution of the solver grid.

        Returns
        -------
        dict of Grid to dict of str to numpy.ndarray
            Values of each variable, float64, with time first where it varies in time.

        Raises
        ------
        InputError
            If the seed, the index, a grid or the resolution cannot be used.
        """
        solvers = self.solvers(grids, solver_resolution)
        solutions = {}
        for solver in dict.fromkeys(solvers.values()):
            inputs = self.inputs(seed, index, solver)
            values = list(inputs.values())
            outputs = self.solve(values[0] if len(values) == 1 else np.stack(values), solver)
            solutions[solver] = solver, inputs, outputs
        return {grid: self._restrict(solutions[solvers[grid]], grid, seed, index) for grid in solvers}

    @abstractmethod
    def _restrict(self, solution: Solution, grid: Grid, seed: Seed, index: int) -> Fields:
        """Evaluate the variables of a solved sample at the points of `grid`."""


class BoundaryValueProblem(Problem):
    """A steady problem with zero values on the boundary, solved on grids that contain all points."""

    boundary_condition = "dirichlet"

    def solvers(self, grids: Iterable[Grid], resolution: int | None = None) -> dict[Grid, Grid]:
        """Choose a grid to solve on that contains the points of each grid; see `solver_grids`."""
        return solver_grids(grids, resolution)

    def _restrict(self, solution: Solution, grid: Grid, seed: Seed, index: int) -> Fields:
        solver, inputs, outputs = solution
        points = injection(grid, solver)
        fields = inputs | {self.variables[-1].name: outputs}
        return {name: np.ascontiguousarray(field[points]) for name, field in fields.items()}


class InitialValueProblem(Problem):
    """A problem in time, solved as one spectral series for all resolutions."""

    final_time: float
    n_steps: int

    def __post_init__(self) -> None:
        low, high = self.domain
        self.random_field.amplitudes([high - low] * self.n_dim)

    @property
    def times(self) -> tuple[float, ...]:
        """Output times: 0 and the ends of `n_steps` equal intervals up to `final_time`."""
        return tuple(self.final_time * i / self.n_steps for i in range(self.n_steps + 1))

    def _restrict(self, solution: Solution, grid: Grid, seed: Seed, index: int) -> Fields:
        solver, _, outputs = solution
        initial = self.inputs(seed, index, grid)
        states = outputs.reshape(len(outputs), len(initial), *solver.shape)
        values = evaluate_series(states, solver, grid).swapaxes(0, 1)
        values[:, 0] = list(initial.values())  # equal up to rounding
        names = [variable.name for variable in self.variables if variable.role == "output"]
        return initial | dict(zip(names, map(np.ascontiguousarray, values), strict=True))


class PeriodicProblem(InitialValueProblem):
    """A periodic field with a quadratic nonlinearity, which starts as a `PeriodicRandomField`.

    A Fourier-Galerkin method on one grid for all resolutions. Wavenumbers from n/3 on, of n points along an
    axis, are dropped, so products are exact (the "2/3 rule"); the linear part is integrated exactly. The grid
    has over 3 ``n_modes`` points along each axis, as many as the finest resolution, or ``solver_resolution``.
    """

    n_modes: int

    method = "Fourier-Galerkin, exponential Runge-Kutta of order 4"
    boundary_condition = "periodic"
    field_type = PeriodicRandomField

    def solvers(self, grids: Iterable[Grid], resolution: int | None = None) -> dict[Grid, Grid]:
        """Choose one periodic grid to solve on for all of `grids`; see `spectral_grids`."""
        grids = tuple(grids)
        for grid in grids:
            check_periodic(True, grid, self.n_dim)
        return spectral_grids(grids, resolution, at_least=3 * self.n_modes + 1, periodic=True)
