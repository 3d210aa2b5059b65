"""Windowed attention: each implementation against the definition, and what all of them have in common."""

import math
from contextlib import contextmanager
from functools import partial
from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mano_op.errors import InputError
from mano_op.layers import whole
from mano_op.layers import window as module
from mano_op.layers.attention import PositionBias
from mano_op.layers.native.library import library
from mano_op.layers.tiling import placed_tilings
from mano_op.layers.window import window_attention

needs_library = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BETWEEN = [tuple(i * 7 / 10 for i in range(11)), (0.0, 0.5, 2.25, 4.0, 5.0)]  # at any ratio of spacings


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


# Its implementations


def distance_bias(slope, decay, steps):
    """Odd in the offset for one head, even for the other."""
    return torch.stack([steps @ slope, -(steps**2) @ decay], dim=-1)


def attend(inputs, **options):
    q, k, v, *parameters = inputs
    bias = partial(distance_bias, *parameters) if parameters else None
    return window_attention(q, k, v, bias=bias, **options)


def differentiated(function, inputs):
    """The result, and the gradients of a functional of it."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = function(inputs)
    return [out, *torch.autograd.grad(out, inputs, cotangent(out), materialize_grads=True)]


def transformed(function, inputs):
    """The same by a functional transform, for which whole tensors are used."""
    out, pullback = torch.func.vjp(lambda *inputs: function(inputs), *inputs)
    return [out, *pullback(cotangent(out))]


def cotangent(out):
    return torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape).sin()


# Name: how it is reached, its type, and its error, relative to the largest value or one.
IMPLEMENTATIONS = {
    "in blocks": (differentiated, torch.float64, 1e-11),
    "of whole tensors": (transformed, torch.float64, 1e-11),
    "compiled": (differentiated, torch.float32, 1e-5),
}
if library() is None:
    del IMPLEMENTATIONS["compiled"]
EVERY = pytest.mark.parametrize("name", IMPLEMENTATIONS)


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


def results(name, inputs, **options):
    way, dtype, _ = IMPLEMENTATIONS[name]
    return way(partial(attend, **options), [t.to(dtype) for t in inputs])


def assert_near(found, expected, within, name=""):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        error = (one - other).abs().max() / max(other.abs().max().item(), 1.0)
        assert error <= within, f"{name}: {error}"


def expected_of(inputs, **options):
    def function(inputs):
        q, k, v, *parameters = inputs
        return reference(q, k, v, bias=partial(distance_bias, *parameters) if parameters else None, **options)

    return differentiated(function, inputs)


@contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


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
        test = example(case, True, 3, 1, 100)(test)
    return test


def assert_every_implementation(inputs, options, n_threads, scores):
    """With so many threads, and scores in a block."""
    expected = expected_of(inputs, **options)
    for name, (_, _, within) in IMPLEMENTATIONS.items():
        with threads(n_threads), patch.object(whole, "_SCORES", scores):
            found = results(name, inputs, **options)
        assert_near(found, expected, within, name)


@every_special_case
@given(
    cases(),
    st.booleans(),
    st.sampled_from([1, 4, 6, 16, 21]),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([1, 100, 300, 10**9]),
)
def test_every_implementation_is_the_definition(case, biased, head_dim, n_threads, scores):
    """In values and gradients, with any threads and blocks."""
    shape, options = options_of(case)
    inputs = drawn(shape, head_dim=head_dim, biased=biased)
    assert_every_implementation(inputs, options, n_threads, scores)


@st.composite
def placed(draw):
    """Keys in 1 or 2 dimensions, windows of them, and queries at quarters of a step between them."""
    shape = tuple(draw(st.integers(1, n)) for n in draw(st.sampled_from([(13,), (7, 6)])))
    at = []
    for n in shape:
        quarters = draw(st.lists(st.integers(-2, 4 * n - 1), min_size=1, max_size=9, unique=True))
        at.append(tuple(quarter / 4 for quarter in sorted(quarters)))
    integers = {"window": st.integers(1, 5), "halo": st.integers(0, 3), "shift": st.integers(0, 4)}
    options = draw(st.fixed_dictionaries(integers))
    return shape, options | {"periodic": tuple(draw(st.booleans()) for _ in shape), "queries_at": at}


@given(placed(), st.sampled_from([1, 100, 10**9]), st.sampled_from([1, 3]))
def test_queries_between_keys_get_their_share_of_the_windows_on_both_sides(case, scores, n_threads):
    shape, options = case
    inputs = drawn(shape, [len(at) for at in options["queries_at"]])
    assert_every_implementation(inputs, options, n_threads, scores)


@given(placed(), st.data())
def test_tilings_of_a_part_of_the_queries_hold_only_the_windows_of_these(case, data):
    shape, options = case
    for at, n, wraps in zip(options["queries_at"], shape, options["periodic"], strict=True):
        first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(at) - 1)] * 2)))
        of_axis = at[first : last + 1], n, options["window"], options["halo"], wraps, options["shift"]
        for tiling in placed_tilings(*of_axis):
            assert len(tiling.queries) == len(tiling.keys) == len(tiling.key_exists)
            taken = tiling.place[tiling.share > 0] // tiling.queries.shape[1]
            assert set(taken) == set(range(len(tiling.queries)))


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("shape", [(7,), (5, 6), (2, 3, 4)])
def test_a_window_or_halo_as_large_as_the_grid_gives_dense_attention(shape, periodic):
    inputs = drawn(shape, biased=False)
    dense = F.scaled_dot_product_attention(*(t.flatten(2, -2) for t in inputs)).unflatten(2, shape)
    for options in ({"window": max(shape)}, {"window": 2, "halo": max(shape)}):
        found = window_attention(*inputs, **options, periodic=[periodic] * len(shape))
        torch.testing.assert_close(found, dense, rtol=1e-11, atol=1e-12)


def test_a_bias_between_quarters_of_a_step_is_interpolated():
    """Of a linear bias that is exact, of a parabola within the square of half a quarter."""
    q, k, v = drawn((6,), biased=False)
    options = {"window": 6, "queries_at": [(0.1, 1.93, 2.61, 3.3, 4.77, 5.2)]}
    for slope, curvature, tolerance in ((0.7, 0.0, 1e-12), (0.0, 1.0, 2e-2)):

        def bias(steps, slope=slope, curvature=curvature):
            return (slope * steps + curvature * steps**2).expand(*steps.shape[:-1], 2)

        found = window_attention(q, k, v, bias=bias, **options)
        expected = reference(q, k, v, bias=bias, periodic=[False], **options)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("options", "shape", "biased"),
    [
        ({"window": 4, "halo": 1}, (5, 6), True),
        ({"window": 4, "halo": 1, "queries_at": BETWEEN}, (8, 6), True),
        ({"window": 2, "stride": 1, "periodic": [True, False]}, (5, 6), False),
    ],
)
def test_gradients_have_gradients(options, shape, biased):
    """Those of differences in double precision, and in single precision those of double."""
    queries = [len(at) for at in BETWEEN] if "queries_at" in options else None
    inputs = [t.requires_grad_() for t in drawn(shape, queries, head_dim=2, batch=1, biased=biased)]
    function = partial(attend, **options)
    assert torch.autograd.gradgradcheck(lambda *inputs: function(inputs), inputs, fast_mode=True)

    def second(inputs):
        first = torch.autograd.grad(function(inputs).sin().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(t.square().sum() for t in first), inputs)

    single = [t.detach().float().requires_grad_() for t in inputs]
    assert_near(second(single), second(inputs), 1e-4)


# Numbers


@EVERY
@pytest.mark.parametrize("case", SPECIAL)
def test_huge_scores_give_finite_means_of_values(case, name):
    shape, options = options_of(case)
    inputs = drawn(shape, biased=False, size=100.0)
    out, *gradients = results(name, inputs, **options)
    assert all(t.isfinite().all() for t in (out, *gradients))
    assert out.abs().max() <= inputs[2].abs().max() + 1e-4


@needs_library
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_nan_and_infinity_show_in_their_windows_alone(which, bad):
    inputs = drawn((8, 8), batch=1, heads=1, biased=False)
    inputs[which][0, 0, 3, 3, 0] = bad
    found = results("compiled", inputs, window=3)[0].isfinite()
    assert torch.equal(found, results("in blocks", inputs, window=3)[0].isfinite())
    assert not found.all() and found[0, 0, 6:].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype):
    """The error is that of rounding the inputs and the result, whatever the number of keys."""
    half = [t.to(dtype) for t in drawn((16, 16), biased=False)]
    function = partial(attend, window=16)
    found = differentiated(function, half)
    assert all(t.dtype == dtype for t in found)
    exact = differentiated(function, [t.double() for t in half])
    for one, other in zip(found, exact, strict=True):
        assert (one - other).abs().max() < 8 * torch.finfo(dtype).eps * other.abs().max()


@needs_library
def test_a_bias_that_autocast_makes_half_is_read_as_such():
    q, k, v = (t.float() for t in drawn((8, 8), biased=False))
    bias = PositionBias(2, n_dim=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = window_attention(q, k, v, window=4, halo=1, bias=bias)
    exact = window_attention(*(t.double() for t in (q, k, v)), window=4, halo=1, bias=bias.double())
    assert_near([found], [exact], 0.05)


@needs_library
def test_numbers_are_the_same_each_time_and_forward_with_any_threads():
    inputs = drawn((16, 15), batch=3, heads=5, biased=False)
    first, second = (results("compiled", inputs, window=4, halo=1) for _ in range(2))
    assert all(map(torch.equal, first, second))
    for n_threads in (2, 7, 40):
        with threads(n_threads):
            assert torch.equal(results("compiled", inputs, window=4, halo=1)[0], first[0])


# Memory


@needs_library
@pytest.mark.parametrize("head_dim", [4, 16, 21])
def test_strided_inputs_are_read_where_they_are_and_nothing_beside_them(head_dim):
    """As a layer's are: heads side by side. Whatever lies between and after them is NaN here."""
    points = [torch.randn(2, 5, 7, 3, head_dim) for _ in range(3)]
    around = torch.full((2, 6, 7, 3, head_dim + 5), torch.nan)
    parts = [around.clone()[:, :5, :, :, 2 : head_dim + 2].copy_(p) for p in points]
    found, exact = [], []
    for into, inputs in ((found, parts), (exact, points)):
        inputs = [t.permute(0, 3, 1, 2, 4).requires_grad_() for t in inputs]
        out = attend(inputs, window=4, halo=1)
        into += [out, *torch.autograd.grad(out, inputs, cotangent(out))]
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_of_the_size_of_the_scores_is_kept(dtype):
    """What the backward pass needs is a few numbers for each channel of a point, not 36 for each head."""
    q, k, v = (t.to(dtype).requires_grad_() for t in drawn((32, 32), heads=8, head_dim=4, biased=False))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        window_attention(q, k, v, window=4, halo=1, bias=PositionBias(8, n_dim=2).to(dtype))
    assert max(kept) == q.numel()


def test_windows_kept_from_inference_and_from_fake_tensors_serve_training():
    """Windows are kept for the next call of the same shape, in whatever mode the first one was."""
    inputs = [t.float().requires_grad_() for t in drawn((7, 23), biased=False)]  # as in no other test
    attend_here = partial(attend, window=4, halo=1)
    mode = FakeTensorMode()
    fake = [mode.from_tensor(t.detach()) for t in inputs]
    with mode:
        attend_here(fake)
    with torch.inference_mode():
        first = attend_here(inputs)
    with patch.object(module, "on_cpu_eagerly", lambda q: False):  # which saves indices
        second = attend_here(inputs)
    torch.testing.assert_close(second, first.clone())
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(second.sum(), inputs))


# Which implementation


@pytest.mark.parametrize(
    ("dtype", "implementation"),
    [
        (torch.float64, "attend_in_blocks"),
        (torch.float32, "attend_natively" if library() else "attend_in_blocks"),
    ],
)
def test_implementation_follows_from_the_type(dtype, implementation, monkeypatch):
    for other in {"attend_in_blocks", "attend_natively", "attend_whole"} - {implementation}:
        monkeypatch.setattr(module, other, None)
    inputs = [t.to(dtype) for t in drawn((8, 5))]
    assert all(t.isfinite().all() for t in differentiated(partial(attend, window=4), inputs))


@needs_library
def test_counters_of_operations_see_the_products():
    q, k, v = (t.float() for t in drawn((8, 8), batch=3, head_dim=4, biased=False))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        window_attention(q, k, v, window=4, halo=1)
    # 64 queries, 36 keys each, two products of 4 numbers, 2 operations, 3 samples, 2 heads
    assert counter.get_total_flops() == 64 * 36 * 2 * 4 * 2 * 3 * 2


@pytest.mark.parametrize("most_heads", [1, 5, 1000])
def test_torchs_own_kernel_gives_the_same(most_heads, monkeypatch):
    """Other devices than a CPU use it, in parts where it cannot take all windows and heads at once."""
    monkeypatch.setattr(whole, "_softmax_attention", partial(whole._kernel_attention, most_heads=most_heads))
    for case in SPECIAL[4:]:
        shape, options = options_of(case)
        inputs = drawn(shape)
        found, expected = (results(name, inputs, **options) for name in ("of whole tensors", "in blocks"))
        assert_near(found, expected, 1e-11)


@needs_cuda
@pytest.mark.parametrize("case", SPECIAL)
def test_cuda_gives_what_the_cpu_gives(case):
    shape, options = options_of(case)
    inputs = drawn(shape)
    found = differentiated(partial(attend, **options), [t.cuda() for t in inputs])
    assert_near([t.cpu() for t in found], results("in blocks", inputs, **options), 1e-10)


@needs_cuda
def test_cuda_takes_more_windows_than_its_kernels_do():
    q, k, v = torch.randn(3, 1, 4, 258, 258, 8)
    expected = window_attention(q, k, v, window=2)
    found = window_attention(q.cuda(), k.cuda(), v.cuda(), window=2)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


# What is refused


def test_inputs_that_do_not_belong_together_are_refused_before_memory_is_read():
    q, k, v = torch.randn(3, 2, 2, 8, 8, 4)
    for unlike in (
        (q[:1], k, v),
        (q, k[:, :1], v),
        (q[:, :, :4], k, v),
        (q, k, v[..., :2]),
        (q, k[:, :, 1:], v[:, :, 1:]),
    ):
        with pytest.raises(InputError, match="expected one batch, heads and head_dim for all"):
            window_attention(*unlike, window=4)
    with pytest.raises(InputError, match="float64 on cpu"):
        window_attention(q, k.double(), v, window=4)
    with pytest.raises(InputError, match="the grid"):
        window_attention(q, k, v, window=4, queries_at=[(0.0, 1.0)] * 2)
    with pytest.raises(InputError, match="bias gives 1 scores for each offset, expected one for each of 2"):
        window_attention(q, k, v, window=4, bias=lambda offset: offset.sum(-1, keepdim=True))
