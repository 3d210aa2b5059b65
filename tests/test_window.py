"""Attention within windows of grids, and of points between, against the definition."""

import math
from functools import partial
from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from mano_op.grid import Axis
from mano_op.layers import operator
from mano_op.layers.attention import PositionBias
from mano_op.layers.refinement import FineAxis, Part, Points
from mano_op.layers.windows import Windows

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Type, and error of results in it, relative to the largest value or one.
PRECISIONS = [(torch.float64, 1e-11), (torch.float32, 1e-5)]


# The definition


def windows_of_axis(n, window, stride, halo, periodic, shift):
    """Queries and keys of each window: only points that exist, each once."""
    window = min(window, n)
    shift = shift % window if window < n else 0
    starts = [shift - window if shift and not periodic else shift]
    end = n + shift if periodic else n
    while starts[-1] + window < end:
        starts.append(starts[-1] + min(stride, window))
    for start in starts:
        keys = range(start - halo, start + window + halo)
        keys = sorted({key % n for key in keys}) if periodic else [key for key in keys if 0 <= key < n]
        yield [i % n for i in range(max(start, 0), min(start + window, end))], keys


def queries_of_axis(windows, at, n, periodic):
    """Of each window `(index, position, share)` of its queries; those between two have a share of both."""
    queries = [dict() for _ in windows]
    for index, position in enumerate(at):
        way = position - math.floor(position)
        for key, share in ((math.floor(position), 1 - way), (math.ceil(position), way)):
            key = key % n if periodic else min(max(key, 0), n - 1)
            if share:
                own = queries[next(m for m, (points, _) in enumerate(windows) if key in points)]
                own[index] = own.get(index, 0) + share
    return [[(index, at[index], share) for index, share in of_window.items()] for of_window in queries]


def offsets(positions, keys, shape, periodic):
    """Steps from queries to the nearest image of keys; of two equally near ones to the right."""
    steps = keys[None] - positions[:, None]
    for axis, (n, wraps) in enumerate(zip(shape, periodic, strict=True)):
        if wraps:
            images = steps[..., axis] + np.array([n, 0, -n]).reshape(3, 1, 1)
            steps[..., axis] = np.take_along_axis(images, np.abs(images).argmin(0)[None], 0)[0]
    return torch.as_tensor(steps)


def reference(q, k, v, *, window, periodic, stride=None, halo=0, shift=0, bias=None, queries_at=None):
    shape = k.shape[2:-1]
    axes = []
    for axis, (n, wraps) in enumerate(zip(shape, periodic, strict=True)):
        windows = list(windows_of_axis(n, window, stride or window, halo, wraps, shift))
        if queries_at is None:
            queries = [[(i, i, 1) for i in points] for points, _ in windows]
        else:
            queries = queries_of_axis(windows, queries_at[axis], n, wraps)
        axes.append([(own, keys) for own, (_, keys) in zip(queries, windows, strict=True) if own])
    out, total = torch.zeros_like(q), torch.zeros(q.shape[2:-1], dtype=q.dtype)
    for of_axes in product(*axes):
        queries = list(product(*(queries for queries, _ in of_axes)))
        keys = np.array(list(product(*(keys for _, keys in of_axes))))
        index = tuple(torch.tensor([[i for i, _, _ in query] for query in queries]).T)
        positions = np.array([[position for _, position, _ in query] for query in queries], dtype=float)
        share = torch.tensor([math.prod(part for *_, part in query) for query in queries], dtype=q.dtype)
        there = (..., *torch.as_tensor(keys).T, slice(None))
        scores = q[(..., *index, slice(None))] @ k[there].mT / q.shape[-1] ** 0.5
        if bias is not None:
            scores = scores + bias(offsets(positions, keys, shape, periodic)).movedim(-1, 0)
        out[(..., *index, slice(None))] += share[:, None] * (scores.softmax(-1) @ v[there])
        total[index] += share
    return out / total[..., None]


# The operator


def distance_bias(slope, decay, steps):
    """Odd in the offset for one head, even for the other; linear between quarters of a step."""
    return torch.stack([steps @ slope, -steps.abs() @ decay], dim=-1)


def bias_of(parameters):
    return partial(distance_bias, *parameters) if parameters else None


def as_points(t):
    """Turn ``(batch, heads, *grid, head_dim)`` into ``(batch, points, heads * head_dim)``."""
    return t.movedim(1, -2).flatten(-2).flatten(1, -2)


def attend(inputs, windows, part=None):
    """The results of `windows` in the layout of the definition; of a part those of its points."""
    q, k, v, *parameters = inputs
    attention, queries = windows, as_points(q)
    if part is not None:  # all points come after those of the grid, some by themselves
        layer, sources = torch.nn.Identity(), None
        if part.shape == tuple(axis.n for axis in part.axes):
            queries = torch.cat([as_points(k), queries], dim=1)
        else:
            sources = {layer: (as_points(k), as_points(v))}
        attention = Points(windows.shape, part, sources).attention(layer, windows)
    out = attention(queries, as_points(k), as_points(v), bias_of(parameters), heads=k.shape[1])
    out = out[:, -math.prod(q.shape[2:-1]) :].unflatten(1, q.shape[2:-1])
    return out.unflatten(-1, (k.shape[1], -1)).movedim(-2, 1)


def differentiated(function, inputs):
    """The result, and the gradients of a functional of it."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = function(inputs)
    return [out, *torch.autograd.grad(out, inputs, cotangent(out), materialize_grads=True)]


def cotangent(out):
    return torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape).sin()


def drawn(shape, queries=None, *, heads=2, head_dim=3, biased=True, batch=2, size=1.0, seed=0):
    """Queries, keys and values, and the parameters of a bias, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    grids = (queries or shape, shape, shape)
    qkv = [
        size * torch.randn(batch, heads, *grid, head_dim, dtype=torch.float64, generator=generator)
        for grid in grids
    ]
    lines = [torch.linspace(*ends, len(shape), dtype=torch.float64) for ends in ((0.3, -0.7), (0.1, 0.4))]
    return [*qkv, *(lines if biased else [])]


def assert_near(found, expected, within):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        error = (one - other).abs().max() / max(other.abs().max().item(), 1.0)
        assert error <= within, error


def assert_definition(inputs, options, function, queries_at=None):
    """Compare values and gradients in both precisions."""

    def expected_of(inputs):
        q, k, v, *parameters = inputs
        return reference(q, k, v, bias=bias_of(parameters), queries_at=queries_at, **options)

    expected = differentiated(expected_of, inputs)
    for dtype, within in PRECISIONS:
        assert_near(differentiated(function, [t.to(dtype) for t in inputs]), expected, within)


# Values and gradients


# shape, window, stride, halo, shift, periodic: what a random draw may miss.
SPECIAL = [
    ((1,), 1, 1, 0, 0, (False,)),  # a single point
    ((1, 1), 4, 2, 3, 0, (True, False)),
    ((3, 2), 5, 3, 1, 0, (False, False)),  # a window larger than the grid
    ((13,), 4, 4, 1, 0, (False,)),  # a prime number of points: the last window is cut
    ((13,), 4, 4, 1, 0, (True,)),
    ((12,), 5, 2, 0, 0, (False,)),  # overlaps of different depth
    ((6,), 4, 4, 3, 0, (True,)),  # halos that meet on the far side
    ((7, 4), 2, 1, 0, 0, (False, False)),  # the published window
    ((8, 8), 4, 4, 0, 2, (False, False)),  # Swin's
    ((9,), 4, 4, 1, 3, (True,)),  # the window before the first is cut
    ((2, 3, 5), 2, 2, 1, 0, (True, False, False)),
]


def options_of(case):
    shape, *options = case
    return shape, dict(zip(("window", "stride", "halo", "shift", "periodic"), options, strict=True))


@st.composite
def cases(draw):
    """A grid in 1, 2 or 3 dimensions, and windows that need not fit it."""
    most = draw(st.sampled_from([(13,), (7, 7), (4, 4, 3)]))
    shape = tuple(draw(st.integers(1, n)) for n in most)
    window = draw(st.integers(1, 5))
    stride = draw(st.integers(1, window))
    shift = draw(st.integers(-3, 6)) if stride == window else 0
    return shape, window, stride, draw(st.integers(0, 3)), shift, tuple(draw(st.booleans()) for _ in shape)


def every_special_case(test):
    for case in SPECIAL:
        test = example(case, True, 3, 100)(test)
    return test


@every_special_case
@given(cases(), st.booleans(), st.sampled_from([1, 4, 16]), st.sampled_from([1, 100, 300, 10**9]))
def test_windows_match_the_definition_in_parts_of_any_size(case, biased, head_dim, scores):
    shape, options = options_of(case)
    windows = Windows(shape, **options)
    with patch.object(operator, "_SCORES", scores):
        assert_definition(
            drawn(shape, head_dim=head_dim, biased=biased), options, partial(attend, windows=windows)
        )


@st.composite
def finer_grids(draw):
    """Windows of a grid, axes at least as fine, and consecutive points of these."""
    axes = []
    for most in draw(st.sampled_from([(13,), (6, 5), (3, 3, 2)])):
        registration, periodic = draw(st.sampled_from(KINDS))
        axis = Axis("x", draw(st.integers(2, most)), registration=registration, periodic=periodic)
        n = axis.n + draw(st.integers(0, 2 * most))
        start = draw(st.integers(0, n - 1))
        box = (0, None) if n == axis.n or draw(st.booleans()) else (start, draw(st.integers(start + 1, n)))
        axes.append(FineAxis(axis, n, *box))
    options = draw(
        st.fixed_dictionaries(
            {"window": st.integers(1, 5), "halo": st.integers(0, 3), "shift": st.integers(0, 4)}
        )
    )
    return axes, options | {"periodic": tuple(axis.reference.periodic for axis in axes)}


KINDS = [("node", False), ("node", True), ("cell", False), ("cell", True), ("node_both", False)]


@settings(max_examples=80)
@given(finer_grids(), st.booleans(), st.sampled_from([1, 100, 10**9]))
def test_points_between_get_their_share_of_the_windows_on_both_sides(case, biased, scores):
    axes, options = case
    shape, part = tuple(axis.reference.n for axis in axes), Part(axes)
    positions = [(axis.numerators().double() / axis.rate[2]).tolist() for axis in axes]
    windows = Windows(shape, **options)
    with patch.object(operator, "_SCORES", scores):
        assert_definition(
            drawn(shape, part.shape, biased=biased),
            options,
            partial(attend, windows=windows, part=part),
            positions,
        )


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("shape", [(7,), (5, 6), (2, 3, 4)])
def test_a_window_or_halo_as_large_as_the_grid_gives_dense_attention(shape, periodic):
    inputs = drawn(shape, biased=False)
    dense = F.scaled_dot_product_attention(*(t.flatten(2, -2) for t in inputs)).unflatten(2, shape)
    for options in ({"window": max(shape)}, {"window": 2, "halo": max(shape)}):
        found = attend(inputs, Windows(shape, **options, periodic=[periodic] * len(shape)))
        torch.testing.assert_close(found, dense, rtol=1e-11, atol=1e-12)


def test_a_curved_bias_between_quarters_of_a_step_is_interpolated():
    """Of a parabola within the square of half a quarter."""
    axis = FineAxis(Axis("x", 6), 23)
    positions = (axis.numerators().double() / axis.rate[2]).tolist()
    q, k, v = drawn((6,), (23,), biased=False)

    def bias(steps):
        return steps.square().expand(*steps.shape[:-1], 2)

    attention = Points((6,), Part([axis])).attention(torch.nn.Identity(), Windows((6,), window=6))
    queries = torch.cat([as_points(k), as_points(q)], dim=1)
    found = attention(queries, as_points(k), as_points(v), bias, heads=2)[:, 6:]
    expected = reference(q, k, v, bias=bias, periodic=[False], window=6, queries_at=[positions])
    torch.testing.assert_close(found, as_points(expected), rtol=2e-2, atol=2e-2)


# Numbers


@pytest.mark.parametrize(("dtype", "_"), PRECISIONS)
@pytest.mark.parametrize("case", SPECIAL)
def test_huge_scores_give_finite_means_of_values(case, dtype, _):
    shape, options = options_of(case)
    inputs = [t.to(dtype) for t in drawn(shape, biased=False, size=100.0)]
    out, *gradients = differentiated(partial(attend, windows=Windows(shape, **options)), inputs)
    assert all(t.isfinite().all() for t in (out, *gradients))
    assert out.abs().max() <= inputs[2].abs().max() + 1e-4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_and_infinity_stay_in_their_windows(which, bad):
    inputs = drawn((8, 8), batch=1, heads=1, biased=False)
    inputs[which][0, 0, 3, 3, 0] = bad
    finite = attend(inputs, Windows((8, 8), window=3)).isfinite()
    assert not finite[0, 0, 3:6, 3:6].all()
    finite[0, 0, 3:6, 3:6] = True
    assert finite.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype):
    """The error is that of rounding the inputs and the result, whatever the number of keys."""
    half = [t.to(dtype) for t in drawn((16, 16), biased=False)]
    function = partial(attend, windows=Windows((16, 16), window=16))
    found = differentiated(function, half)
    assert all(t.dtype == dtype for t in found)
    exact = differentiated(function, [t.double() for t in half])
    for one, other in zip(found, exact, strict=True):
        assert (one - other).abs().max() < 8 * torch.finfo(dtype).eps * other.abs().max()


# What is kept


@pytest.mark.parametrize(("dtype", "_"), PRECISIONS)
def test_nothing_of_the_size_of_the_scores_is_kept(dtype, _):
    """What the backward pass needs is a few numbers for each channel of a point, not 36 for each head."""
    windows, bias = Windows((32, 32), window=4, halo=1), PositionBias(8, n_dim=2).to(dtype)
    q, k, v = torch.randn(3, 2, 32 * 32, 32, dtype=dtype, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        windows(q, k, v, bias, heads=8)
    assert max(kept) == q.numel()


def test_windows_used_by_fake_tensors_and_in_inference_serve_training():
    windows, inputs = Windows((7, 23), window=4, halo=1), drawn((7, 23), biased=False)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = [mode.from_tensor(t) for t in inputs]
    with mode:
        attend(fake, windows)
    with torch.inference_mode():
        first = attend(inputs, windows).clone()
    second, *gradients = differentiated(partial(attend, windows=windows), inputs)
    torch.testing.assert_close(second, first)
    assert all(gradient.isfinite().all() for gradient in gradients)


@needs_cuda
@pytest.mark.parametrize("case", [*SPECIAL, ((258, 258), 2, 2, 0, 0, (False, False))])
def test_cuda_gives_what_the_cpu_gives(case):
    shape, options = options_of(case)
    inputs, windows = drawn(shape), Windows(shape, **options)
    expected = differentiated(partial(attend, windows=windows), inputs)
    found = differentiated(partial(attend, windows=windows.cuda()), [t.cuda() for t in inputs])
    assert_near([t.cpu() for t in found], expected, 1e-10)
