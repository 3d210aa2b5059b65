"""Down and up again: exact where it can be, and with the boundary that is known."""

import numpy as np
import pytest
import torch
from helpers import on_grid, rates
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import RectBivariateSpline

from mano_op.grid import Grid
from mano_op.resample import interpolate, nests


def bumps(y, x):
    return np.sin(np.pi * y) * np.sin(2 * np.pi * x) + y * (1 - y) * np.sin(3 * np.pi * x)


def test_interpolation_is_the_spline_through_values_and_boundary():
    coarse, fine = Grid.uniform((8, 10)), Grid.uniform((16, 30))
    field = on_grid(bumps, coarse)
    knots = [np.append(points, 1.0) for points in coarse.points]
    spline = RectBivariateSpline(*knots, np.pad(field.numpy(), ((0, 1), (0, 1))), s=0)
    up = interpolate(field, coarse, fine, {"y": 0.0, "x": 0.0})
    np.testing.assert_allclose(up, spline(*fine.points), atol=1e-12)
    torch.testing.assert_close(up[::2, ::3], field, rtol=0, atol=1e-14)


@pytest.mark.parametrize("registration", ["node", "cell"])
def test_interpolation_converges_with_fourth_order_up_to_a_known_boundary(registration):
    errors = []
    for n in (16, 32, 64):
        coarse = Grid.uniform((n, n), registration=registration)
        fine = coarse.refine(4)
        up = interpolate(on_grid(bumps, coarse), coarse, fine, {"y": 0.0, "x": 0.0})
        errors.append(float((up - on_grid(bumps, fine)).abs().max()))
    assert rates(errors).min() > 3.8


@given(n=st.integers(5, 12), m=st.integers(5, 24), registration=st.sampled_from(["node", "cell"]))
def test_periodic_fields_within_the_band_are_exact(n, m, registration):
    source, target = (Grid.uniform((k,), registration=registration, periodic=True) for k in (n, m))

    field, expected = (
        on_grid(lambda x: 1 + np.sin(2 * np.pi * x) + np.cos(4 * np.pi * x), grid)
        for grid in (source, target)
    )
    torch.testing.assert_close(interpolate(field, source, target, {}), expected)


def test_each_axis_is_interpolated_its_own_way():
    def field(y, x):
        return y**3 * np.cos(2 * np.pi * x)

    coarse, fine = (Grid.uniform(shape, periodic=[False, True]) for shape in ((6, 8), (9, 16)))
    up = interpolate(on_grid(field, coarse), coarse, fine, {"y": (0.0, 0.0)})
    exact = interpolate(on_grid(field, coarse), coarse, fine, {})
    torch.testing.assert_close(exact, on_grid(field, fine))  # cubic in y, one wave in x
    assert (up - exact).abs()[-1].max() > 0.1  # and no zero at y = 1


@given(n=st.integers(1, 12), factor=st.integers(1, 4), registration=st.sampled_from(["node", "node_both"]))
def test_nodes_nest_in_their_refinements(n, factor, registration):
    coarse = Grid.uniform((n + 1,), registration=registration)
    fine = coarse.refine(factor)
    assert nests(fine, coarse)
    assert nests(coarse, fine) == (factor == 1)
    assert np.isin(np.round(coarse.points[0], 9), np.round(fine.points[0], 9)).all()
