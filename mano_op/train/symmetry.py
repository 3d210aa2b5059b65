r"""Transposed and mirrored training samples, for problems with these symmetries.

Darcy flow in a square with one value on its boundary is an example: with (a, u) also
:math:`(a \circ g, u \circ g)` is a solution, for every symmetry g of the square. Fields have to be scalar:
the components of vectors are not turned.

Where the points lie decides what a mirror does. ``cell``, ``node_both`` and periodic axes are mapped to
themselves. On a ``node`` axis with two ends, point i goes to n - i, and the first one to the missing end on
the right: outputs take their known value there, inputs that of the nearest point.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

from mano_op.boundary import Boundary, ends_by_axis
from mano_op.errors import InputError
from mano_op.grid import Axis, Grid


class Symmetries:
    """Random symmetries of a grid, one for each batch.

    "transpose" exchanges axes that are alike, "reflect" mirrors each axis. `boundary` has the known values of
    each output channel at the ends of axes. A grid without the symmetry is refused, and so is a mirror that
    needs a value which is not known.

    Examples
    --------
    >>> turn = Symmetries(["reflect"], Grid.uniform((4,)), [0.0], torch.Generator().manual_seed(1))
    >>> x, y = turn(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), torch.tensor([[[0.0, 5.0, 6.0, 7.0]]]))
    >>> x.flatten().tolist(), y.flatten().tolist()
    ([4.0, 4.0, 3.0, 2.0], [0.0, 7.0, 6.0, 5.0])
    """

    def __init__(
        self,
        names: Sequence[str],
        grid: Grid,
        boundary: Sequence[Boundary | None],
        generator: torch.Generator,
    ) -> None:
        self._grid, self._generator, self._reflects = grid, generator, "reflect" in names
        shapes = [(axis.n, axis.start, axis.stop, axis.registration, axis.periodic) for axis in grid]
        orders = permutations(range(grid.n_dim)) if "transpose" in names else [tuple(range(grid.n_dim))]
        self._orders = [order for order in orders if [shapes[i] for i in order] == shapes]
        if "transpose" in names and len(self._orders) == 1:
            raise InputError(
                f"symmetries={list(names)}, but no two axes of ({grid}) are alike: leave out 'transpose'"
            )
        ends = [ends_by_axis(grid, known) for known in boundary]
        self._first: list[list[float] | None] = []  # what outputs have at the first point, where that is lost
        for axis in grid:
            values = [known.get(axis.name, (None, None))[1] for known in ends]
            lost = axis.registration == "node" and not axis.periodic
            if self._reflects and lost and any(value is None for value in values):
                raise InputError(
                    f"symmetries={list(names)}: mirrored, the first point of {axis.name} was its right end, "
                    "where the outputs' values are not known: state them (`boundary_value`), or leave out "
                    "'reflect'"
                )
            self._first.append([value for value in values if value is not None] if lost else None)

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch, ``(batch, channels, *grid)``, transposed and mirrored at random."""
        choice = int(torch.randint(len(self._orders), (), generator=self._generator))
        order = self._orders[choice]
        x, y = (t.permute(0, 1, *(2 + i for i in order)) for t in (x, y))
        if self._reflects:
            turned = torch.rand(self._grid.n_dim, generator=self._generator) < 0.5
            for dim, (axis, first) in enumerate(zip(self._grid, self._first, strict=True), start=2):
                if turned[dim - 2]:
                    x, y = _mirrored(x, dim, axis, None), _mirrored(y, dim, axis, first)
        return x, y


def _mirrored(field: Tensor, dim: int, axis: Axis, first: Sequence[float] | None) -> Tensor:
    """Return a field mirrored along an axis; `first` has the channels' values where there was no point."""
    index = torch.arange(axis.n - 1, -1, -1, device=field.device)
    if axis.registration != "node":
        return field.index_select(dim, index)
    index = (index + 1) % axis.n if axis.periodic else (index + 1).clamp(max=axis.n - 1)
    field = field.index_select(dim, index)
    if first is not None:
        values = torch.tensor(first, dtype=field.dtype, device=field.device)
        field.select(dim, 0).copy_(values.view(-1, *[1] * (field.ndim - 3)))
    return field
