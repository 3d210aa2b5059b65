"""Windowed attention against its definition, written out as loops over windows and queries."""

import math
from itertools import product
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import example, given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from mano_op.layers import whole
from mano_op.layers import window as module
from mano_op.layers.window import tilings, window_attention

# shape, window, stride, halo, periodic: what a random draw may miss.
SPECIAL = [
    ((1,), 1, 1, 0, (False,)),  # a single point
    ((1, 1), 4, 2, 3, (True, False)),
    ((3, 2), 5, 3, 1, (False, False)),  # a window larger than the grid
    ((13,), 4, 4, 1, (False,)),  # a prime number of points: the last window is cut
    ((13,), 4, 4, 1, (True,)),
    ((12,), 5, 2, 0, (False,)),  # overlaps of different depth
    ((6,), 4, 4, 3, (True,)),  # halos that meet on the far side
    ((7, 4), 2, 1, 0, (False, False)),  # the published window
    ((4, 9), 3, 2, 1, (False, True)),
    ((2, 3, 5), 2, 2, 1, (True, False, False)),
]


@st.composite
def cases(draw):
    """A grid in 1, 2 or 3 dimensions, and windows that need not fit it."""
    most = draw(st.sampled_from([(13,), (7, 7), (4, 4, 3)]))
    shape = tuple(draw(st.integers(1, n)) for n in most)
    window = draw(st.integers(1, 5))
    stride = draw(st.integers(1, window))
    periodic = tuple(draw(st.booleans()) for _ in shape)
    return shape, window, stride, draw(st.integers(0, 3)), periodic


def every_special_case(test):
    for case in SPECIAL:
        test = example(case)(test)
    return test


def draw_qkv(shape, seed=0, heads=2, head_dim=3):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, heads, *shape, head_dim, dtype=torch.float64, generator=generator)
    return [t.clone().requires_grad_() for t in (q, k, v)]


def windows_of_axis(n, window, stride, halo, periodic, shift=0):
    """Queries and keys of each window, from the module's description: only points that exist, each once."""
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


def offset(query, key, n, periodic):
    """Steps from a query to the nearest image of a key; of two equally near ones the one to the right."""
    if not periodic:
        return key - query
    return min((key - query + image * n for image in (-1, 0, 1)), key=lambda step: (abs(step), -step))


def reference(q, k, v, window, stride, halo, periodic, bias=None, shift=0):
    shape = q.shape[2:-1]
    results = {point: [] for point in product(*map(range, shape))}
    per_axis = [
        list(windows_of_axis(n, window, stride, halo, w, shift)) for n, w in zip(shape, periodic, strict=True)
    ]
    for one_window in product(*per_axis):
        keys = list(product(*(keys for _, keys in one_window)))
        where = (..., *torch.tensor(keys).T, slice(None))
        for query in product(*(queries for queries, _ in one_window)):
            scores = (q[(..., *query, None, slice(None))] * k[where]).sum(-1) / q.shape[-1] ** 0.5
            if bias is not None:
                steps = [
                    [offset(*pair) for pair in zip(query, key, shape, periodic, strict=True)] for key in keys
                ]
                scores = scores + bias(torch.tensor(steps, dtype=q.dtype)).T
            results[query].append((scores.softmax(-1)[..., None] * v[where]).sum(-2))
    points = [torch.stack(results[point]).mean(0) for point in product(*map(range, shape))]
    return torch.stack(points, dim=2).unflatten(2, shape)


def attend(q, k, v, case, bias=None):
    _, window, stride, halo, periodic = case
    return window_attention(q, k, v, window=window, stride=stride, halo=halo, periodic=periodic, bias=bias)


def gradients(out, inputs):
    cotangent = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(9))
    return torch.autograd.grad(out, inputs, cotangent)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


class DistanceBias(torch.nn.Module):
    """Odd in the offset for one head, even for the other."""

    def __init__(self, n_dim):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.linspace(0.3, -0.7, n_dim, dtype=torch.float64))
        self.decay = torch.nn.Parameter(torch.linspace(0.1, 0.4, n_dim, dtype=torch.float64))

    def forward(self, steps):
        return torch.stack([steps @ self.slope, -(steps**2) @ self.decay], dim=-1)


@every_special_case
@given(cases())
def test_output_and_gradients_are_those_of_the_definition(case):
    inputs = draw_qkv(case[0])
    found, expected = attend(*inputs, case), reference(*inputs, *case[1:])
    assert_same(found, expected)
    assert_same(gradients(found, inputs), gradients(expected, inputs))


@every_special_case
@given(cases())
def test_bias_is_that_of_each_pair_and_learns(case):
    inputs, bias = draw_qkv(case[0]), DistanceBias(len(case[0]))
    found, expected = attend(*inputs, case, bias), reference(*inputs, *case[1:], bias)
    assert_same(found, expected)
    learned = [*inputs, *bias.parameters()]
    assert_same(gradients(found, learned), gradients(expected, learned))


@example(((8, 8), 4, 4, 0, (False, False)), 2)  # Swin's
@example(((9,), 4, 4, 1, (True,)), 3)  # the window before the first is cut
@given(cases(), st.integers(-3, 6))
def test_shifted_windows_are_those_of_the_definition(case, shift):
    shape, window, _, halo, periodic = case
    inputs, bias = draw_qkv(shape), DistanceBias(len(shape))
    options = {"window": window, "halo": halo, "periodic": periodic, "bias": bias, "shift": shift}
    found, expected = window_attention(*inputs, **options), reference(*inputs, stride=window, **options)
    assert_same(found, expected)
    assert_same(gradients(found, inputs), gradients(expected, inputs))


def swin_mask(n, window, shift):
    """Which points of a field that is rolled back by the shift belong together, by Swin's three slices."""
    region = torch.zeros(n)
    for i, part in enumerate([slice(0, -window), slice(-window, -shift), slice(-shift, None)]):
        region[part] = i
    return region


def test_shifted_windows_are_swins_rolled_and_masked_ones():
    n, window, shift = 12, 4, 2
    q, k, v = draw_qkv((n, n))
    region = swin_mask(n, window, shift)
    region = 3 * region[:, None] + region
    cut = "(y p) (x q)"

    def windows(t, roll):
        t = t.roll((-shift, -shift), (-3, -2)) if roll else t
        return rearrange(t, f"b h {cut} d -> b h (y x) (p q) d", p=window, q=window)

    of = rearrange(region, f"{cut} -> (y x) (p q)", p=window, q=window)
    mask = torch.where(of[:, :, None] == of[:, None, :], 0.0, -torch.inf).double()
    out = F.scaled_dot_product_attention(*(windows(t, True) for t in (q, k, v)), attn_mask=mask)
    out = rearrange(out, f"b h (y x) (p q) d -> b h {cut} d", y=n // window, p=window)
    expected = out.roll((shift, shift), (-3, -2))
    assert_same(window_attention(q, k, v, window=window, shift=shift), expected)


def test_bias_gradient_is_not_zero_where_there_is_a_choice_of_keys():
    bias = DistanceBias(2)
    case = ((5, 4), 3, 3, 1, (False, True))
    for gradient in gradients(attend(*draw_qkv(case[0]), case, bias), list(bias.parameters())):
        assert (gradient.abs() > 1e-3).all()


@pytest.mark.parametrize("halo", [0, 2])
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("shape", [(7,), (5, 6), (2, 3, 4)])
def test_window_as_large_as_the_grid_is_dense_attention(shape, periodic, halo):
    inputs = draw_qkv(shape)
    found = window_attention(*inputs, window=max(shape), halo=halo, periodic=[periodic] * len(shape))
    dense = F.scaled_dot_product_attention(*(rearrange(t, "b h ... d -> b h (...) d") for t in inputs))
    dense = dense.unflatten(2, shape)
    assert_same(found, dense)
    assert_same(gradients(found, inputs), gradients(dense, inputs))


@pytest.mark.parametrize("shape", [(7,), (5, 6), (2, 3, 4)])
def test_halo_as_large_as_the_grid_is_dense_attention(shape):
    """The other way to see everything: small windows whose halo covers the domain."""
    inputs = draw_qkv(shape)
    dense = F.scaled_dot_product_attention(*(rearrange(t, "b h ... d -> b h (...) d") for t in inputs))
    for periodic in (False, True):
        found = window_attention(*inputs, window=2, halo=max(shape), periodic=[periodic] * len(shape))
        assert_same(found, dense.unflatten(2, shape))


def elsewhere(tiling, n):
    """The tiling with its padding (queries and keys that do not exist) pointed at other points."""
    kept = set(tiling.place[tiling.share > 0].tolist())
    queries, keys = tiling.queries.copy(), tiling.keys.copy()
    unused = [i for i in range(queries.size) if i not in kept]
    queries.flat[unused] = [(3 * i + 1) % n for i in unused]
    keys[~tiling.key_exists] = (5 * keys[~tiling.key_exists] + 2) % n
    changed = (queries != tiling.queries).any() or (keys != tiling.keys).any()
    return module.Tiling(
        queries, keys, tiling.key_exists, tiling.offsets, tiling.place, tiling.share
    ), changed


def move_padding(monkeypatch):
    """From now on padding repeats other points than the border; the list says whether there was any."""
    moved = []

    def with_other_padding(n, *options):
        found = [elsewhere(tiling, n) for tiling in tilings(n, *options)]
        moved.extend(changed for _, changed in found)
        return [tiling for tiling, _ in found]

    monkeypatch.setattr(module, "tilings", with_other_padding)
    return moved


@pytest.mark.parametrize("case", [((11,), 4, 4, 2, (False,)), ((5, 7), 3, 2, 1, (False, False))])
def test_what_stands_in_the_padding_never_matters(case, monkeypatch):
    """Padding repeats the border. Let the border be huge, then let the padding repeat other points."""
    inputs, bias = draw_qkv(case[0]), DistanceBias(len(case[0]))
    with torch.no_grad():
        for t in inputs[1:]:
            for dim in range(2, t.ndim - 1):
                t.select(dim, 0).mul_(30)
                t.select(dim, -1).mul_(30)
    expected = attend(*inputs, case, bias)
    assert_same(expected, reference(*inputs, *case[1:], bias))
    moved = move_padding(monkeypatch)
    found = attend(*inputs, case, bias)
    assert any(moved), "the case has no padding, so it tests nothing"
    assert torch.equal(found, expected)
    for one, other in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


@st.composite
def placed(draw):
    """Keys in 1 or 2 dimensions, windows of them, and queries at quarters of a step between them."""
    shape = tuple(draw(st.integers(1, n)) for n in draw(st.sampled_from([(13,), (7, 6)])))
    periodic = tuple(draw(st.booleans()) for _ in shape)
    at = []
    for n in shape:
        quarters = draw(st.lists(st.integers(-2, 4 * n - 1), min_size=1, max_size=9, unique=True))
        at.append(tuple(q / 4 for q in sorted(quarters)))
    return shape, draw(st.integers(1, 5)), draw(st.integers(0, 3)), periodic, at, draw(st.integers(0, 4))


def reference_between(q, k, v, case, bias):
    """The definition for queries between the keys: in the windows on both sides, by their share."""
    shape, window, halo, periodic, at, shift = case
    per_axis = [
        list(windows_of_axis(n, window, window, halo, wraps, shift))
        for n, wraps in zip(shape, periodic, strict=True)
    ]

    def windows(position, n, wraps, of_axis):
        way = position - math.floor(position)
        for key, share in ((math.floor(position), 1 - way), (math.ceil(position), way)):
            if share:
                key = key % n if wraps else min(max(key, 0), n - 1)
                yield next(m for m, (queries, _) in enumerate(of_axis) if key in queries), share

    def attended(index, position, keys):
        where = (..., *torch.tensor(keys).T, slice(None))
        steps = [[offset(*pair) for pair in zip(position, key, shape, periodic, strict=True)] for key in keys]
        scores = (q[(..., *index, None, slice(None))] * k[where]).sum(-1) / q.shape[-1] ** 0.5
        scores = scores + bias(torch.tensor(steps, dtype=q.dtype)).T
        return (scores.softmax(-1)[..., None] * v[where]).sum(-2)

    out = torch.zeros_like(q.detach())
    for index in product(*(range(len(positions)) for positions in at)):
        position = [positions[i] for positions, i in zip(at, index, strict=True)]
        choices = [list(windows(*one)) for one in zip(position, shape, periodic, per_axis, strict=True)]
        for chosen in product(*choices):
            keys = list(product(*(axis[m][1] for axis, (m, _) in zip(per_axis, chosen, strict=True))))
            share = math.prod(part for _, part in chosen)
            out[(..., *index, slice(None))] += share * attended(index, position, keys)
    return out


@given(placed())
def test_queries_between_the_keys_see_those_of_the_windows_they_lie_in(case):
    shape, window, halo, periodic, at, shift = case
    _, k, v = draw_qkv(shape)
    q = draw_qkv([len(positions) for positions in at], seed=1)[0]
    bias = DistanceBias(len(shape))
    options = {"window": window, "halo": halo, "periodic": periodic, "shift": shift}
    found = window_attention(q, k, v, bias=bias, queries_at=at, **options)
    expected = reference_between(q, k, v, case, bias)
    assert_same(found, expected)
    learned = [q, k, v, *bias.parameters()]
    assert_same(gradients(found, learned), gradients(expected, learned))


@given(placed(), st.data())
def test_queries_of_a_part_of_an_axis_touch_its_windows_only(case, data):
    """They get what they get among all queries, some of which may be between keys where these are not."""
    shape, window, halo, periodic, at, shift = case
    _, k, v = draw_qkv(shape)
    q = draw_qkv([len(positions) for positions in at], seed=1)[0]
    ends = [sorted(data.draw(st.tuples(*[st.integers(0, len(a) - 1)] * 2))) for a in at]
    part = tuple(slice(first, last + 1) for first, last in ends)
    some = [positions[cut] for positions, cut in zip(at, part, strict=True)]
    options = {"window": window, "halo": halo, "periodic": periodic, "shift": shift}
    options["bias"] = DistanceBias(len(shape))
    found = window_attention(q[:, :, *part], k, v, queries_at=some, **options)
    assert_same(found, window_attention(q, k, v, queries_at=at, **options)[:, :, *part])
    for positions, n, wraps in zip(some, shape, periodic, strict=True):
        for tiling in module.placed_tilings(tuple(positions), n, window, halo, wraps, shift):
            assert len(tiling.queries) == len(tiling.keys) == len(tiling.key_exists)
            taken = tiling.place[tiling.share > 0] // tiling.queries.shape[1]
            assert set(taken) == set(range(len(tiling.queries)))


def test_queries_at_the_keys_are_those_of_the_keys_own_grid():
    case, bias = ((9, 8), 4, 4, 1, (False, True)), DistanceBias(2)
    inputs = draw_qkv(case[0])
    at = [tuple(map(float, range(n))) for n in case[0]]
    found = window_attention(*inputs, window=4, halo=1, periodic=case[4], bias=bias, queries_at=at)
    assert torch.equal(found, attend(*inputs, case, bias))


def test_bias_between_quarters_is_interpolated():
    """Of a linear bias that is exact, of a parabola within the square of half a quarter."""
    q, k, v = draw_qkv((6,))
    at = [(0.1, 1.93, 2.61, 3.3, 4.77, 5.2)]
    for slope, curvature, tolerance in ((0.7, 0.0, 1e-12), (0.0, 1.0, 2e-2)):

        def bias(steps, slope=slope, curvature=curvature):
            return (slope * steps + curvature * steps**2).expand(*steps.shape[:-1], 2)

        case = ((6,), 6, 0, (False,), at, 0)
        found = window_attention(q, k, v, window=6, bias=bias, queries_at=at)
        expected = reference_between(q, k, v, case, bias)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@every_special_case
@given(cases())
def test_constant_values_come_out_unchanged(case):
    """Weights within a window add up to one, and so do the shares of overlapping windows."""
    q, k, v = draw_qkv(case[0])
    constant = v.mean(dim=tuple(range(2, v.ndim - 1)), keepdim=True).expand_as(v)
    assert_same(attend(q, k, constant, case, DistanceBias(len(case[0]))), constant)


@pytest.mark.parametrize("halo", [0, 1, 3])
def test_moving_a_periodic_field_by_a_window_moves_the_result(halo):
    inputs, bias = draw_qkv((12, 5)), DistanceBias(2)
    case = ((12, 5), 3, 3, halo, (True, False))
    moved = [t.roll(3, dims=2) for t in inputs]
    assert_same(attend(*moved, case, bias), attend(*inputs, case, bias).roll(3, dims=2))
    # Not by less than a window: windows start at point 0.
    by_one = attend(*[t.roll(1, dims=2) for t in inputs], case, bias)
    assert (by_one - attend(*inputs, case, bias).roll(1, dims=2)).abs().max() > 1e-2


@pytest.mark.parametrize("case", SPECIAL)
def test_huge_scores_stay_finite(case):
    q, k, v = (t.detach().float().requires_grad_() for t in draw_qkv(case[0]))
    out = attend(q * 1e4, k * 1e4, v, case)
    assert out.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(out, [q, k, v]))
    assert (out.abs() <= v.abs().max() + 1e-5).all()  # a mean of values


@pytest.mark.parametrize("most_heads", [1, 5, 1000])
@pytest.mark.parametrize("case", SPECIAL)
def test_torchs_own_kernel_gives_the_same(case, most_heads, monkeypatch):
    """Other devices than a CPU use it, in parts where it cannot take all windows and heads at once."""
    inputs, bias = draw_qkv(case[0]), DistanceBias(len(case[0]))
    expected = attend(*inputs, case, bias)
    used = []

    def by_kernel(*given):
        used.append(given)
        return whole._kernel_attention(*given, most_heads)

    monkeypatch.setattr(whole, "_softmax_attention", by_kernel)
    monkeypatch.setattr(module, "on_cpu_eagerly", lambda q: False)
    found = attend(*inputs, case, bias)
    assert used
    assert_same(found, expected)
    assert_same(gradients(found, inputs), gradients(expected, inputs))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", SPECIAL)
def test_cuda_gives_what_the_cpu_gives(case):
    inputs, bias = draw_qkv(case[0]), DistanceBias(len(case[0]))
    on_device = [t.detach().cuda().requires_grad_() for t in inputs]
    expected, found = attend(*inputs, case, bias), attend(*on_device, case, bias.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_takes_more_windows_than_its_kernels_do():
    q, k, v = torch.randn(3, 1, 4, 258, 258, 8)
    expected = window_attention(q, k, v, window=2)
    found = window_attention(q.cuda(), k.cuda(), v.cuda(), window=2)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_what_is_kept_from_inference_and_from_fake_tensors_serves_training():
    """Windows are kept for the next call of the same shape, in whatever mode the first one was."""
    module._kept_rows.cache_clear()
    case = ((7, 6), 4, 4, 1, (False, False))
    inputs = draw_qkv(case[0])
    mode = FakeTensorMode()
    fake = [mode.from_tensor(t.detach()) for t in inputs]
    with mode:
        attend(*fake, case)
    with torch.inference_mode():
        first = attend(*inputs, case)
    with patch.object(module, "on_cpu_eagerly", lambda q: False):  # which saves indices
        again = attend(*inputs, case)
        assert_same(again, first.clone())
        assert all(gradient.isfinite().all() for gradient in gradients(again, inputs))
