"""The steps between a reference grid and other grids, against their formulas and rates."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mano_op.layers.anchors import anchoring

KINDS = [("node", False), ("node", True), ("cell", False), ("cell", True), ("node_both", False)]
STEPS = ["lift", "smooth", "anchors", "interpolate", "settle"]


def line(n, reference, kind):
    registration, periodic = kind
    return anchoring((n,), (reference,), registration, (periodic,))


def field(values):
    return torch.as_tensor(np.asarray(values))[None, None]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_step_changes_a_field_on_the_reference(kind, step):
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    place = anchoring((8, 8), (8, 8), kind[0], (kind[1],) * 2)
    assert getattr(place, step)(x) is x
    assert not place.refines


@settings(max_examples=40)
@given(st.sampled_from(KINDS), st.integers(2, 40), st.integers(2, 20))
def test_every_step_keeps_constants(kind, n, reference):
    place = line(n, reference, kind)
    working, there = place.working.shape[0], torch.ones(1, 2, reference, dtype=torch.float64)
    ones = torch.ones(1, 2, n, dtype=torch.float64)
    on_working = torch.ones(1, 2, working, dtype=torch.float64)
    for found, expected in (
        (place.lift(ones), on_working),
        (place.smooth(on_working), on_working),
        (place.anchors(on_working), there),
        (place.interpolate(there), on_working),
        (place.settle(on_working), ones),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def average(place, values, at):
    """The average of the module's table at one place, as a loop over the points."""
    [source], [reference] = place.working, place.reference
    if source.periodic:
        ends = at - reference.spacing / 2, at + reference.spacing / 2
    else:
        below = int(np.searchsorted(reference.points, at, side="right")) - 1
        below = min(max(below, 0), reference.n - 2)
        way = (at - reference.points[below]) / reference.spacing
        way = min(max(way, 0.0), 1.0)
        ends = (1 - way) * reference.bounds[below] + way * reference.bounds[below + 1]
    total = weight = 0.0
    for (left, right), value in zip(source.bounds, values, strict=True):
        for turn in (-1, 0, 1) if source.periodic else (0,):
            part = max(0.0, min(right + turn, ends[1]) - max(left + turn, ends[0]))
            total, weight = total + part * value, weight + part
    return total / weight


@pytest.mark.parametrize("n", [9, 16, 19, 24, 41])
@pytest.mark.parametrize("kind", KINDS)
def test_averages_match_their_formula(kind, n):
    place = line(n, 8, kind)
    values = np.random.default_rng(n).normal(size=n)
    for step, axis in (("smooth", place.working.axes[0]), ("anchors", place.reference.axes[0])):
        found = getattr(place, step)(field(values))[0, 0].numpy()
        assert np.allclose(found, [average(place, values, at) for at in axis.points], rtol=1e-12)


def test_axes_are_finer_or_coarser_each_by_itself():
    """One axis finer than the reference, one coarser, one as it is: each as in one dimension."""
    x = torch.randn(2, 2, 12, 4, 5, dtype=torch.float64)
    place = anchoring((12, 4, 5), (6, 8, 5), "node", (True, False, False))
    assert place.working.shape == (12, 8, 5) and place.refines
    lifted = place.lift(x)
    alone = anchoring((4,), (8,), "node", (False,))
    expected = alone.lift(x.movedim(3, -1).reshape(-1, 1, 4)).reshape(2, 2, 12, 5, 8).movedim(-1, 3)
    torch.testing.assert_close(lifted, expected)
    alone = anchoring((12,), (6,), "node", (True,))
    expected = alone.anchors(lifted.movedim(2, -1).reshape(-1, 1, 12)).reshape(2, 2, 8, 5, 6).movedim(-1, 2)
    torch.testing.assert_close(place.anchors(lifted), expected)


# Banded matrices


def dense(step, place):
    """The matrix of a step, row by row, none of it left out."""
    [source], [reference], [working] = place.source, place.reference, place.working
    if step in ("smooth", "anchors"):
        at = (working if step == "smooth" else reference).points
        half = reference.spacing / 2
        wrapped = at - half, at + half
        bounds = reference.bounds.T
        return working.averages(
            *(wrapped if working.periodic else [np.interp(at, reference.points, end) for end in bounds])
        )
    here, there = (reference, working) if step == "interpolate" else (source, working)
    at, points = here.positions(there), 4 if step == "interpolate" else 2
    matrix = np.zeros((there.n, here.n))
    for row, y in zip(matrix, at if here.periodic else at.clip(0, here.n - 1), strict=True):
        first = int(np.floor(y)) - points // 2 + 1
        near = [i for i in range(first, first + points) if here.periodic or 0 <= i < here.n]
        for i in near:
            row[i % here.n] += np.prod([(y - other) / (i - other) for other in near if other != i])
    return matrix


@pytest.mark.parametrize("step", ["smooth", "anchors", "interpolate", "lift"])
@pytest.mark.parametrize("kind", KINDS)
def test_banded_matrices_are_the_dense_ones(kind, step):
    """In values and gradients, up to the order of sums; also of some of the rows."""
    place = line(150, 517, kind) if step == "lift" else line(517, 48, kind)
    matrix = torch.as_tensor(dense(step, place))
    rows, columns = matrix.shape
    x = torch.randn(2, 3, columns, 2, dtype=torch.float64, requires_grad=True)
    [banded] = getattr(place, f"_{step}")
    for part in (slice(None), slice(rows // 3, rows // 3 + 1), slice(rows // 5, 4 * rows // 5)):
        found, expected = banded.apply(x, 2, part), torch.einsum("jn,bcny->bcjy", matrix[part], x)
        cotangent = torch.randn_like(expected)
        gradients = (torch.autograd.grad(out, x, cotangent)[0] for out in (found, expected))
        for one, other in ((found, expected), tuple(gradients)):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_numbers_of_a_banded_matrix_are_linear_in_the_points():
    """It would be the square of them. Of 4096 points each has the 64 that one of the reference stood for."""
    sizes = [
        sum(block.size for _, _, block in line(n, n // 64, ("node", True))._smooth[0].blocks)
        for n in (2048, 4096)
    ]
    assert sizes[1] == 2 * sizes[0] < 4096 * (128 + 64 + 4)


@settings(max_examples=40)
@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.integers(2, 30), st.integers(2, 12)), min_size=1, max_size=3),
    st.integers(1, 500),
)
def test_tiles_hold_every_point_once_and_are_as_small_as_asked_for(kind, sizes, most):
    shape, reference = zip(*sizes, strict=True)
    place = anchoring(shape, reference, kind[0], (kind[1],) * len(shape))
    held = np.zeros(place.working.shape, dtype=int)
    uncut = np.prod([here.n for here, ref in zip(place.working, place.reference, strict=True) if here == ref])
    for tile in place.tiles(most):
        box = held[tile.cut]
        box += 1
        assert box.size <= max(most, uncut)
        assert [len(at) for at in tile.queries_at] == [len(at) for at in tile.points] == list(box.shape)
        for n, here, ref in zip(box.shape, place.working, place.reference, strict=True):
            assert n == here.n or here != ref
    assert (held == 1).all()
    assert len(place.tiles(held.size)) == 1


@settings(max_examples=30)
@given(st.sampled_from(KINDS), st.integers(2, 40), st.integers(2, 12), st.integers(2, 20), st.integers(1, 60))
def test_every_step_to_a_tile_is_that_to_all_points(kind, n, reference, other, most):
    """Along a second axis the grid may be coarser than the reference, so results are settled."""
    place = anchoring((n, other), (reference, 7), kind[0], (kind[1], False))
    working = torch.randn(2, 1, *place.working.shape, dtype=torch.float64)
    on_reference = torch.randn(2, 1, reference, 7, dtype=torch.float64)
    for tile in place.tiles(most):
        part = (..., *tile.cut)
        for found, expected in (
            (tile.smooth(working), place.smooth(working)),
            (tile.interpolate(on_reference), place.interpolate(on_reference)),
            (tile.settle(working[part]), place.settle(working)),
        ):
            torch.testing.assert_close(found, expected[part], rtol=1e-12, atol=1e-12)
