"""Points, control volumes and quadrature weights of grids."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import rates
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import i0

from mano_op.errors import InputError
from mano_op.grid import REGISTRATIONS, Axis, Grid

BOUNDED = tuple((registration, False) for registration in REGISTRATIONS)
WRAPPED = (("node", True), ("cell", True))


@st.composite
def axes(draw, kinds=BOUNDED + WRAPPED, fewest=2):
    registration, periodic = draw(st.sampled_from(kinds))
    start = draw(st.floats(-10, 10))
    length = draw(st.floats(0.1, 10))
    return Axis("x", draw(st.integers(fewest, 40)), start, start + length, registration, periodic)


@pytest.mark.parametrize(
    ("registration", "points"),
    [("node", [1, 1.5, 2, 2.5]), ("node_both", [1, 5 / 3, 7 / 3, 3]), ("cell", [1.25, 1.75, 2.25, 2.75])],
)
def test_points_of_each_registration(registration, points):
    axis = Axis("x", 4, 1.0, 3.0, registration)
    np.testing.assert_allclose(axis.points, points, rtol=1e-15)
    assert axis.length == 2.0
    assert axis.spacing == pytest.approx(points[1] - points[0], rel=1e-15)
    assert axis.start + axis.offset * axis.spacing == points[0]


@pytest.mark.parametrize(
    ("registration", "periodic", "edges"),
    [
        ("node", False, [0, 0.125, 0.375, 0.625, 1]),
        ("node", True, [-0.125, 0.125, 0.375, 0.625, 0.875]),
        ("cell", False, [0, 0.25, 0.5, 0.75, 1]),
        ("cell", True, [0, 0.25, 0.5, 0.75, 1]),
        ("node_both", False, [0, 1 / 6, 1 / 2, 5 / 6, 1]),
    ],
)
def test_control_volumes_of_four_points(registration, periodic, edges):
    bounds = Axis("x", 4, registration=registration, periodic=periodic).bounds
    np.testing.assert_allclose(bounds, np.stack([edges[:-1], edges[1:]], axis=1), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("axis", "weights"),
    [
        (Axis("x", 4, registration="cell"), [1 / 4] * 4),
        (Axis("x", 4, registration="cell", periodic=True), [1 / 4] * 4),
        (Axis("x", 4, periodic=True), [1 / 4] * 4),
        (Axis("x", 5, registration="node_both"), [1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8]),
        (Axis("x", 2, registration="node_both"), [1 / 2, 1 / 2]),
        (Axis("x", 4), [1 / 8, 1 / 4, 1 / 8, 1 / 2]),
        (Axis("x", 2), [0, 1]),  # the second of two nodes is the midpoint
        (Axis("x", 1), [1]),
    ],
)
def test_weights_match_closed_forms(axis, weights):
    np.testing.assert_allclose(axis.weights, weights, rtol=1e-15)
    shifted = replace(axis, start=-3.0, stop=5.0)
    np.testing.assert_allclose(shifted.weights, 8 * np.array(weights), rtol=1e-15)


@given(axes(BOUNDED), st.floats(-3, 3), st.floats(-3, 3))
def test_quadrature_is_exact_for_linear_functions(axis, constant, slope):
    exact = constant * axis.length + slope * (axis.stop**2 - axis.start**2) / 2
    assert axis.weights @ (constant + slope * axis.points) == pytest.approx(exact, rel=1e-10, abs=1e-9)


@pytest.mark.parametrize("registration", REGISTRATIONS)
def test_quadrature_converges_with_order_two(registration):
    """Every rule here is built from the midpoint or the trapezium, whose error is h^2 f'' / 24 or / 12."""
    axis = Axis("x", 17 if registration == "node_both" else 16, -1.0, 2.0, registration)
    finer = [axis.refine(2**level) for level in range(5)]
    errors = [abs(a.weights @ np.exp(-a.points) - (np.exp(1) - np.exp(-2))) for a in finer]
    np.testing.assert_allclose(rates(errors)[1:], 2, atol=0.15)


@pytest.mark.parametrize("registration", ["node", "cell"])
def test_quadrature_on_a_periodic_axis_converges_faster_than_any_power(registration):
    """Equal weights integrate every mode below n exactly, and those of a smooth function fall like 1 / n!."""
    errors = []
    for n in (4, 8, 16):
        axis = Axis("x", n, 0.0, 2 * np.pi, registration, periodic=True)
        errors.append(abs(axis.weights @ np.exp(np.sin(axis.points)) / (2 * np.pi * i0(1)) - 1))
    assert errors[0] > 1e-3
    assert errors[1] < 1e-6
    assert errors[2] < 1e-14


@given(axes(), st.integers(1, 5))
def test_coarsen_inverts_refine(axis, factor):
    fine = axis.refine(factor)
    assert fine.coarsen(factor) == axis
    assert fine.spacing == pytest.approx(axis.spacing / factor, rel=1e-12)
    assert (fine.start, fine.stop) == (axis.start, axis.stop)
    # The centre of a cell is the mean of its parts' centres; nodes are nodes of the finer axis.
    cells = axis.registration == "cell"
    parents = fine.points.reshape(axis.n, factor).mean(axis=1) if cells else fine.points[::factor]
    np.testing.assert_allclose(parents, axis.points, rtol=0, atol=1e-12)


def test_equal_grids_are_one_key():
    grid, other = (Grid((Axis("y", 4), Axis("x", 5, registration="node_both"))) for _ in range(2))
    assert grid.weights.sum() == pytest.approx(1)  # fills the caches of its axes
    assert {grid: "value"}[other.refine(3).coarsen(3)] == "value"
    assert (grid.refine(3).shape, grid.coarsen(2).shape) == ((12, 13), (2, 3))


def test_mesh_follows_the_order_of_the_axes():
    grid = Grid.uniform((2, 4), domain=[(0, 1), (10, 12)])
    y, x = grid.mesh
    np.testing.assert_array_equal(y, [[0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]])
    np.testing.assert_array_equal(x, [[10, 10.5, 11, 11.5]] * 2)
    np.testing.assert_array_equal(grid.points[1], x[0])
    assert grid.spacing == (0.5, 0.5)


def test_uniform_passes_each_choice_to_its_axis():
    grid = Grid.uniform((3, 4), domain=[(0, 1), (-1, 1)], periodic=[True, False], names=("t", "r"))
    assert grid == Grid((Axis("t", 3, 0.0, 1.0, periodic=True), Axis("r", 4, -1.0, 1.0)))
    assert list(grid) == list(grid.axes)


@pytest.mark.parametrize(
    ("n_dim", "names"), [(1, ("x",)), (2, ("y", "x")), (3, ("z", "y", "x")), (4, ("x0", "x1", "x2", "x3"))]
)
def test_axes_have_default_names(n_dim, names):
    grid = Grid.uniform((4,) * n_dim)
    assert grid.names == names
    assert grid.n_dim == n_dim


def test_text_names_points_registration_and_domain():
    grid = Grid((Axis("y", 4), Axis("x", 8, 0, 6.25, "cell", periodic=True)))
    assert str(grid) == "y: 4 node on [0, 1] x x: 8 cell periodic on [0, 6.25]"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Axis("x", 4, registration="vertex"), "='vertex' is none of node, node_both, cell"),
        (lambda: Axis("x", 4, 1.0, 1.0), r"domain \[1.0, 1.0\] is empty"),
        (lambda: Axis("x", 4, 0.0, float("inf")), "not finite"),
        (lambda: Axis("x", 4, float("nan"), 1.0), "not finite"),
        (lambda: Axis("x", 0), "n of axis 'x'=0, expected a whole number, at least 1"),
        (lambda: Axis("x", 4.5), "n of axis 'x'=4.5, expected a whole number"),
        (lambda: Axis("x", 1, registration="node_both"), "n of axis 'x'=1, expected .*, at least 2"),
        (lambda: Axis("x", 4, registration="node_both", periodic=True), "drop the last point"),
        (lambda: Axis("x", 4).refine(0), "factor=0, expected a whole number"),
        (lambda: Axis("x", 4).coarsen(3), "4 intervals cannot be coarsened by 3"),
        (lambda: Axis("x", 4).coarsen(0), "factor=0"),
        (lambda: Axis("x", 4, registration="node_both").coarsen(2), "3 intervals cannot be coarsened by 2"),
        (lambda: Grid(()), "expected at least one"),
        (lambda: Grid((Axis("x", 4), Axis("x", 4))), "a name of its own"),
        (lambda: Grid.uniform((4, 4), names=("x",)), "1 entries, expected 2"),
        (lambda: Grid.uniform((4, 4), periodic=[True]), "1 entries, expected 2"),
        (lambda: Grid.uniform((4, 4), domain=[(0, 1)] * 3), "3 entries, expected 2"),
    ],
)
def test_axes_and_grids_that_do_not_exist_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
