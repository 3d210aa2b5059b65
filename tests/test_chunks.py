"""Attention a few windows at a time against the same from whole tensors."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mano_op.layers import chunks, window
from mano_op.layers.attention import PositionBias
from mano_op.layers.window import window_attention

BETWEEN = [tuple(i * 7 / 10 for i in range(11)), (0.0, 0.5, 2.25, 4.0, 5.0)]  # at any ratio of spacings


def drawn(shape, queries, batch=3, heads=2, head_dim=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(batch, heads, *grid, head_dim, generator=generator, dtype=dtype).requires_grad_()
        for grid in (queries, shape, shape)
    )
    bias = PositionBias(heads, n_dim=len(shape))
    with torch.no_grad():
        for parameter in bias.parameters():
            parameter.normal_(generator=generator)
    return q, k, v, bias.to(dtype)


def with_gradients(q, k, v, bias, **options):
    inputs = [q, k, v, *bias.parameters()]
    out = window_attention(q, k, v, bias=bias, **options)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape).sin()
    return [out, *torch.autograd.grad(out, inputs, weights)]


def whole(*given, **options):
    with patch.object(window, "on_cpu_eagerly", lambda q: False):
        return with_gradients(*given, **options)


@given(
    scores=st.sampled_from([1, 100, 300, 2000, 10**9]),
    batch=st.integers(1, 5),
    shape=st.tuples(st.integers(1, 11), st.integers(1, 9)),
    halo=st.integers(0, 2),
    periodic=st.tuples(st.booleans(), st.booleans()),
)
def test_any_chunks_give_the_result_of_whole_tensors(scores, batch, shape, halo, periodic):
    given = drawn(shape, shape, batch)
    options = {"window": 4, "halo": halo, "periodic": periodic}
    with patch.object(chunks, "_SCORES", scores):
        found = with_gradients(*given, **options)
    for one, other in zip(found, whole(*given, **options), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("scores", [1, 150, 10**9])
def test_queries_between_keys_in_any_chunks(scores, monkeypatch):
    """Windows have other offsets then, and a table for each."""
    given = drawn((8, 6), [len(at) for at in BETWEEN])
    options = {"window": 4, "halo": 1, "queries_at": BETWEEN}
    monkeypatch.setattr(chunks, "_SCORES", scores)
    for one, other in zip(with_gradients(*given, **options), whole(*given, **options), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_chunks_are_used_on_a_cpu(monkeypatch):
    used, take = [], chunks._Chunk.take
    monkeypatch.setattr(chunks._Chunk, "take", lambda *given: (used.append(given), take(*given))[1])
    q, k, v, bias = drawn((8, 8), (8, 8))
    window_attention(q, k, v, window=4, bias=bias)
    assert used


@pytest.mark.parametrize("options", [{}, {"queries_at": BETWEEN}])
def test_gradients_have_gradients(options):
    grids = ((8, 6), [len(at) for at in BETWEEN]) if options else ((5, 6), (5, 6))
    q, k, v, bias = drawn(*grids, batch=1, heads=1, head_dim=2)
    assert torch.autograd.gradgradcheck(
        lambda *given: window_attention(*given, window=4, halo=1, bias=bias, **options),
        (q, k, v),
        nondet_tol=0.0,
        fast_mode=True,
    )
    # Of the bias too.
    [by_bias] = torch.autograd.grad(
        window_attention(q, k, v, window=4, halo=1, bias=bias, **options).square().sum(),
        [bias.fc2.weight],
        create_graph=True,
    )
    by_both = torch.autograd.grad(by_bias.sum(), [q, bias.fc1.weight])
    assert all(gradient.abs().max() > 1e-6 for gradient in by_both)


def test_nothing_of_the_size_of_the_scores_is_kept():
    """What the backward pass needs is a few numbers for each channel of a point, not 36 for each head."""
    q, k, v, bias = drawn((32, 32), (32, 32), batch=4, heads=8, head_dim=4, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        window_attention(q, k, v, window=4, halo=1, bias=bias)
    assert max(kept) == q.numel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype):
    """The error is that of rounding the inputs and the result, whatever the number of keys."""
    q, k, v, bias = drawn((16, 16), (16, 16), dtype=torch.float32)
    exact = with_gradients(
        *(t.detach().to(dtype).float().requires_grad_() for t in (q, k, v)), bias, window=16
    )
    half = [t.detach().to(dtype).requires_grad_() for t in (q, k, v)]
    found = with_gradients(*half, bias.to(dtype), window=16)
    assert found[0].dtype == dtype and found[1].dtype == dtype
    step = torch.finfo(dtype).eps
    for one, other in zip(found[:4], exact[:4], strict=True):
        assert (one.float() - other).abs().max() < 8 * step * other.abs().max()
