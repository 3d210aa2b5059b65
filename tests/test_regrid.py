"""From the input's grid to the output's: exact for what the docstring says, wherever the points lie."""

from itertools import product

import numpy as np
import pytest
import torch
from helpers import on_grid, rates
from torch.testing import assert_close

from mano_op.grid import Grid
from mano_op.layers.regrid import regrid
from mano_op.resample import resample


def grid(shape, registration="node", periodic=False):
    return Grid.uniform(shape, registration=registration, periodic=periodic)


@pytest.mark.parametrize("registration", ["node", "node_both", "cell"])
def test_constants_and_lines_are_exact_from_any_number_of_points_to_any_other(registration):
    for n, m in product([2, 3, 4, 7, 8, 16, 17, 30, 131], [2, 3, 5, 8, 9, 16, 31, 33, 130, 257]):
        here, there = grid((n,), registration), grid((m,), registration)
        x = torch.stack([torch.ones(n, dtype=torch.float64), on_grid(lambda x: 3 - 2 * x, here)])[None]
        y = torch.stack([torch.ones(m, dtype=torch.float64), on_grid(lambda x: 3 - 2 * x, there)])[None]
        assert_close(regrid(x, here, there), y, rtol=0, atol=1e-12, msg=f"{n} to {m}")


@pytest.mark.parametrize("registration", ["node", "cell"])
def test_fourier_modes_that_both_grids_carry_are_exact_along_an_axis_that_wraps(registration):
    """A wave of 3 periods on 8, 9, 16 and 31 points, in both phases."""
    for n, m in product([8, 9, 16, 31], repeat=2):
        here, there = (grid((k,), registration, True) for k in (n, m))
        for wave in (np.cos, np.sin):
            x, y = (on_grid(lambda at, wave=wave: wave(6 * np.pi * at), g)[None, None] for g in (here, there))
            assert_close(regrid(x, here, there), y, rtol=0, atol=1e-12, msg=f"{n} to {m}")


@pytest.mark.parametrize(
    ("periodic", "function"),
    [
        ([True, False], lambda y, x: np.cos(2 * np.pi * y) * (1 + 2 * x)),
        ([False, True], lambda y, x: (y - 3) * np.sin(4 * np.pi * x)),
        ([False, True, False], lambda z, y, x: (1 - z) * np.cos(2 * np.pi * y) * (2 + x)),
        ([True, True, True], lambda z, y, x: np.sin(2 * np.pi * (z + y - x))),
    ],
)
@pytest.mark.parametrize("registration", ["node", "cell"])
def test_mixed_axes_finer_and_coarser_at_once(periodic, function, registration):
    shapes = [((9, 12, 7), (6, 17, 14)), ((6, 6, 8), (12, 12, 4))]
    for shape, other in shapes:
        here, there = (grid(s[: len(periodic)], registration, periodic) for s in (shape, other))
        x, y = (on_grid(function, g)[None, None] for g in (here, there))
        assert_close(regrid(x, here, there), y, rtol=0, atol=1e-12)


def test_coarsening_averages_over_the_control_volumes():
    """Inside, halved nodes are 1/4, 1/2, 1/4 and halved cells the mean of two: nothing aliases."""
    x = torch.tensor([[[0.0, 1, 0, 1, 0, 1, 0, 1]]])
    assert_close(regrid(x, grid((8,), "cell"), grid((4,), "cell")), torch.full((1, 1, 4), 0.5))
    halved = regrid(x, grid((8,)), grid((4,)))
    assert_close(halved[..., 1:3], torch.full((1, 1, 2), 0.5))
    assert_close(halved[..., 0], x[..., 0])  # at an end no mean is the value of a line but the point itself
    mean = resample(x, grid((8,)), grid((4,)), "mean")
    assert_close(halved[..., 1:3], mean[..., 1:3])


@pytest.mark.parametrize("registration", ["node", "node_both", "cell"])
@pytest.mark.parametrize(
    ("finer", "where", "order"),
    [(True, slice(4, -4), 3.9), (True, slice(None), 1.9), (False, slice(None), 1.9)],
)
def test_smooth_fields_converge(registration, finer, where, order):
    """At fourth order inside where they are interpolated, at second up to the ends and in means."""
    errors = []
    for n in (32, 64, 128):
        here = grid((n + (registration == "node_both"),), registration)
        there = here.refine(2) if finer else here.coarsen(2)
        x, y = (on_grid(lambda x: np.sin(3 * x), g)[None, None] for g in (here, there))
        errors.append(float((regrid(x, here, there) - y)[..., where].abs().max()))
    assert (rates(errors) > order).all()


def test_equal_grids_leave_the_field_alone():
    x = torch.randn(2, 3, 5, 6)
    assert regrid(x, grid((5, 6)), grid((5, 6))) is x


def test_gradients_of_regridding_are_those_of_differences():
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    here, there = grid((6, 5), periodic=[True, False]), grid((4, 9), periodic=[True, False])
    assert torch.autograd.gradcheck(lambda x: regrid(x, here, there), x)
    assert regrid(x.detach().half(), here, there).dtype == torch.float16
