"""Forms of known boundary values."""

import numpy as np
import pytest

from mano_op.boundary import ends_by_axis
from mano_op.errors import InputError
from mano_op.grid import Grid

CHANNEL = Grid.uniform((4, 8), periodic=[False, True])
BOX = Grid.uniform((4, 8))


@pytest.mark.parametrize(
    ("boundary", "ends"),
    [
        (None, {}),
        (2, {"y": (2.0, 2.0), "x": (2.0, 2.0)}),
        (np.float32(0.5), {"y": (0.5, 0.5), "x": (0.5, 0.5)}),
        ({"x": 1.5}, {"x": (1.5, 1.5)}),
        ({"x": (0, None), "y": [None, -1.0]}, {"x": (0.0, None), "y": (None, -1.0)}),
        ({}, {}),
    ],
)
def test_boundary_values_become_a_pair_for_each_axis(boundary, ends):
    assert ends_by_axis(BOX, boundary) == ends


def test_boundary_number_skips_periodic_axes():
    assert ends_by_axis(CHANNEL, 3.0) == {"y": (3.0, 3.0)}


@pytest.mark.parametrize(
    ("grid", "boundary", "message"),
    [
        (CHANNEL, {"x": 0.0}, "axes that do not wrap, which here are y"),
        (BOX, {"z": 0.0}, "which here are y, x"),
        (Grid.uniform((4,), periodic=True), 0.0, "none, so leave it out"),
        (BOX, {"x": (0.0, 1.0, 2.0)}, "axis 'x' expects a finite number, or a pair"),
        (BOX, {"x": "0.0"}, "axis 'x' expects a finite number, or a pair"),
        (BOX, {"x": (0.0, np.nan)}, "axis 'x' expects a finite number, or a pair"),
        (BOX, True, "axis 'y' expects a finite number, or a pair"),
    ],
)
def test_values_that_do_not_fit_the_grid_are_refused(grid, boundary, message):
    with pytest.raises(InputError, match=message):
        ends_by_axis(grid, boundary)
