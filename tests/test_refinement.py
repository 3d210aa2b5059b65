"""The steps between a reference grid and other grids, against their formulas and rates."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mano_op.grid import Grid
from mano_op.layers.interpolation import lagrange
from mano_op.layers.refinement import Refinement
from mano_op.memory import peak_bytes

KINDS = [("node", False), ("node", True), ("cell", False), ("cell", True), ("node_both", False)]


def refinement(shape, reference, registration="node", periodic=False, **options):
    return Refinement(Grid.uniform(reference, registration=registration, periodic=periodic), shape, **options)


def line(n, reference, kind):
    return refinement((n,), (reference,), *kind)


def steps_of(place):
    """Each step as a function, with the points that it takes and those that it gives."""
    reference, whole = place.reference.shape, place.whole
    return {
        "lift": (place.lift, place.shape, place.working),
        "smooth": (lambda x: place.in_order(whole.smooth(x)), place.working, place.working),
        "anchors": (place.anchors, place.working, reference),
        "interpolate": (lambda x: place.in_order(whole.interpolate(x)), reference, place.working),
        "settle": (place.settle, place.working, place.shape),
    }


def field(values):
    return torch.as_tensor(np.asarray(values))[None, None]


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_changes_a_field_on_the_reference(kind):
    x, place = torch.randn(2, 3, 8, 8, dtype=torch.float64), refinement((8, 8), (8, 8), *kind)
    assert all(step(x) is x for step, _, _ in steps_of(place).values())
    assert not place.refines


@settings(max_examples=40)
@given(st.sampled_from(KINDS), st.integers(2, 40), st.integers(2, 20))
def test_every_step_keeps_constants(kind, n, reference):
    for step, shape, result in steps_of(line(n, reference, kind)).values():
        found = step(torch.ones(1, 2, *shape, dtype=torch.float64))
        torch.testing.assert_close(
            found, torch.ones(1, 2, *result, dtype=torch.float64), rtol=1e-12, atol=1e-12
        )


def average(source, reference, values, at):
    """The average of the module's table at one place, as a loop over the points."""
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
    place, values = line(n, 8, kind), np.random.default_rng(n).normal(size=n)
    [source], [reference] = Grid.uniform((n,), registration=kind[0], periodic=kind[1]), place.reference
    for name, axis in (("smooth", source), ("anchors", reference)):
        found = steps_of(place)[name][0](field(values))[0, 0].numpy()
        assert np.allclose(found, [average(source, reference, values, at) for at in axis.points], rtol=1e-12)


@pytest.mark.parametrize("n", [9, 16, 24, 41])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_lagranges_through_four_points_of_the_finer_grid(kind, n):
    place, values = (
        refinement((n, 5), (8, 5), kind[0], (kind[1], False), sampled=True),
        torch.randn(n, 5).double(),
    )
    [source], [axis] = Grid.uniform((n,), registration=kind[0], periodic=kind[1]), list(place.reference)[:1]
    expected = lagrange(source, axis, 4).apply(values[None, None], 2)
    torch.testing.assert_close(place.anchors(values[None, None]), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(place.in_order(place.whole.smooth(values[None, None]))[0, 0], values)


@pytest.mark.parametrize("reference", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_interpolation_is_lagranges_through_four_points(kind, reference):
    """Through those there are at the ends, and beyond the outermost point its value."""
    if kind[0] == "node_both" and reference == 1:
        return
    place = line(37, reference, kind)
    [source], [axis] = Grid.uniform((37,), registration=kind[0], periodic=kind[1]), place.reference
    values, at = np.random.default_rng(0).normal(size=axis.n), axis.positions(source)
    expected = []
    for y in at if axis.periodic else at.clip(0, axis.n - 1):
        near = [int(np.floor(y)) + i for i in range(-1, 3)]
        near = near[: axis.n] if axis.periodic else [i for i in near if 0 <= i < axis.n]
        weights = [np.prod([(y - j) / (i - j) for j in near if j != i]) for i in near]
        expected.append(sum(w * values[i % axis.n] for w, i in zip(weights, near, strict=True)))
    found = steps_of(place)["interpolate"][0](field(values))[0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_averages_in_single_precision_are_those_in_double(kind):
    """A constant that is large beside the field takes no digits from the differences of sums."""
    place = line(5000, 8, kind)
    x = 1e3 + torch.randn(1, 1, 5000, dtype=torch.float64)
    for name in ("smooth", "anchors"):
        step = steps_of(place)[name][0]
        torch.testing.assert_close(step(x.float()), step(x.float().double()).float(), rtol=0, atol=0)


def test_axes_are_finer_or_coarser_each_by_itself():
    """One axis finer than the reference, one coarser, one as it is: each as in one dimension."""
    x = torch.randn(2, 2, 12, 4, 5, dtype=torch.float64)
    place = refinement((12, 4, 5), (6, 8, 5), periodic=(True, False, False))
    assert place.working == (12, 8, 5) and place.refines
    lifted = place.lift(x)
    alone = refinement((4,), (8,))
    expected = alone.lift(x.movedim(3, -1).reshape(-1, 1, 4)).reshape(2, 2, 12, 5, 8).movedim(-1, 3)
    torch.testing.assert_close(lifted, expected)
    alone = refinement((12,), (6,), periodic=True)
    expected = alone.anchors(lifted.movedim(2, -1).reshape(-1, 1, 12)).reshape(2, 2, 8, 5, 6).movedim(-1, 2)
    torch.testing.assert_close(place.anchors(lifted), expected)


# Parts


@settings(max_examples=40)
@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.integers(2, 30), st.integers(2, 12)), min_size=1, max_size=3),
    st.integers(20, 500),
)
def test_parts_hold_every_point_once_and_are_as_small_as_asked_for(kind, sizes, most):
    shape, reference = zip(*sizes, strict=True)
    place = refinement(shape, reference, *kind)
    held = np.zeros(place.working, dtype=int)
    uncut = np.prod([n for n, keys in zip(place.working, reference, strict=True) if n == keys])
    for part in place.parts(most):
        held[np.ix_(*(torch.arange(axis.n)[axis.places].numpy() for axis in part.axes))] += 1
        assert np.prod(part.shape) <= max(most, uncut)
        assert [len(at) for at in part.points()] == list(part.shape)
        assert all(n == axis.n or axis.refines for n, axis in zip(part.shape, part.axes, strict=True))
    assert (held == 1).all()
    assert len(list(place.parts(held.size))) == 1


@settings(max_examples=30)
@given(st.sampled_from(KINDS), st.integers(2, 40), st.integers(2, 12), st.integers(2, 20), st.integers(8, 60))
def test_every_step_to_a_part_is_that_to_all_points(kind, n, reference, other, most):
    """Along a second axis the grid may be coarser than the reference, so results are settled."""
    registration, periodic = kind
    place = refinement((n, other), (reference, 7), registration, (periodic, False))
    x = torch.randn(2, 1, *place.working, dtype=torch.float64)
    on_reference = torch.randn(2, 1, reference, 7, dtype=torch.float64)
    steps = steps_of(place)
    smooth, interpolated = steps["smooth"][0](x), steps["interpolate"][0](on_reference)
    grid = Grid.uniform(place.working, registration=registration, periodic=(periodic, False))
    for part in place.parts(most):
        rows, columns = (torch.arange(axis.n)[axis.places] for axis in part.axes)
        box = (..., rows[:, None], columns)
        settled = place.settle(x)
        for dim, (axis, places) in enumerate(zip(part.axes, (rows, columns), strict=True), start=2):
            settled = settled.index_select(dim, places) if axis.refines else settled
        for found, expected in (
            (part.take(x), x[box]),
            (part.smooth(x), smooth[box]),
            (part.interpolate(on_reference), interpolated[box]),
            (place.settle(x[box]), settled),
        ):
            assert (found - expected).abs().max() < 1e-12
        for found, axis, places in zip(part.points(), grid, (rows, columns), strict=True):
            assert np.allclose(found, axis.points[places], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_the_steps_is_linear_in_the_points(kind):
    """No matrix of the points of both grids is held: that would be 64 numbers for each point here."""
    model = torch.nn.Identity()
    for name in ("smooth", "interpolate"):
        held = []
        for n in (2048, 4096):
            step, shape, _ = steps_of(line(n, n // 32, kind))[name]
            model.forward = step
            held.append(peak_bytes(model, torch.zeros(1, 1, *shape, dtype=torch.float64)) / n)
        assert held[1] < 1.1 * held[0] < 64 * 8
