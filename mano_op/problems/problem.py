"""What a problem is, to those that make data sets of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from mano_op.data.layout import Variable
from mano_op.grid import Grid


class Problem(Protocol):
    """A random input and the solution that follows from it, both functions: the same on every grid.

    Problems are frozen dataclasses of their options.

    Attributes
    ----------
    name, title : str
        For provenance, and for people.
    solver : str
        How it is solved, for provenance.
    n_dim : int
        Number of spatial dimensions, where a resolution is one number.
    domain : (float, float)
        Ends of every axis.
    boundary_condition : str
        Of every axis; "periodic" makes them wrap.
    variables : tuple of Variable
    times : tuple of float
        When the variables that vary in time are known, 0 first; empty where none does.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    title: ClassVar[str]
    domain: ClassVar[tuple[float, float]]
    boundary_condition: ClassVar[str]
    variables: ClassVar[tuple[Variable, ...]]

    @property
    def n_dim(self) -> int:
        """Number of spatial dimensions."""
        ...

    @property
    def solver(self) -> str:
        """How it is solved."""
        ...

    @property
    def times(self) -> tuple[float, ...]:
        """When the variables that vary in time are known."""
        ...

    def check(self, seed: int | Sequence[int], grids: Sequence[Grid]) -> None:
        """Raise `InputError` if no sample of that seed can be had on these grids."""
        ...

    def solvers(self, grids: Iterable[Grid], resolution: int | None = None) -> Mapping[Grid, Grid]:
        """The grid on which to solve for each of `grids`."""
        ...

    def sample(
        self,
        seed: int | Sequence[int],
        index: int,
        grids: Iterable[Grid],
        solver_resolution: int | None = None,
    ) -> Mapping[Grid, Mapping[str, NDArray[np.float64]]]:
        """The fields of sample `index` on each of `grids`, alone determined by `seed` and `index`."""
        ...
