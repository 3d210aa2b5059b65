"""Windows of 2, 4 or 8 points, several to a vector: the same numbers as one tiling after the other."""

from itertools import product

import pytest
import torch
from test_native import assert_close, drawn, in_double, with_gradients

from mano_op import MultipoleAttention
from mano_op.layers import window
from mano_op.layers.native.library import library
from mano_op.layers.native.small_windows import SmallWindows
from mano_op.layers.tiling import cut, tilings
from mano_op.layers.window import window_attention

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")

# Grid, window, stride: windows of 2 (1-D), 4 (1-D and 2-D) and 8 points (1-D and 3-D), cut off and not,
# overlapping or side by side, and more or fewer of them than fill the last vector.
CASES = [
    ((9,), 2, 1),
    ((34,), 2, 2),
    ((13,), 4, 1),
    ((21,), 8, 3),
    ((7, 11), 2, 1),
    ((16, 8), 2, 2),
    ((5, 5), 2, 1),
    ((3, 4, 5), 2, 1),
    ((4, 2, 7), 2, 2),
    ((2, 1), 2, 1),
]


@pytest.fixture
def only_small(monkeypatch):
    """Any other way would fail."""
    for name in ("attend_natively", "attend_in_chunks", "attend_whole"):
        monkeypatch.setattr(window, name, None)


@pytest.mark.parametrize(("shape", "side", "stride"), CASES)
@pytest.mark.parametrize("head_dim", [4, 5, 16])
def test_results_and_gradients_are_those_of_double_precision(shape, side, stride, head_dim, monkeypatch):
    inputs, bias = drawn(shape, head_dim=head_dim, heads=3)
    options = {"window": side, "stride": stride, "biased": False}
    exact = with_gradients(in_double(inputs), bias, **options)
    for name in ("attend_natively", "attend_in_chunks", "attend_whole"):
        monkeypatch.setattr(window, name, None)
    assert_close(with_gradients(inputs, bias, **options), exact)


@pytest.mark.usefixtures("only_small")
def test_numbers_are_the_same_with_any_threads(monkeypatch):
    inputs, bias = drawn((9, 10), batch=3, heads=4)
    found = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(with_gradients(inputs, bias, window=2, stride=1, biased=False))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.usefixtures("only_small")
def test_tensors_with_gaps_and_without_gradients():
    whole = torch.randn(2, 3, 2, 6, 7, 4)
    q, k, v = whole.unbind(1)  # samples are three times as far apart
    gapped = [torch.stack([t, t], -1)[..., 0] for t in (q, k, v)]  # and so are channels
    out = window_attention(q, k, v, window=2, stride=1)
    assert torch.equal(window_attention(*gapped, window=2, stride=1), out)
    with torch.inference_mode():
        assert torch.equal(window_attention(q, k, v, window=2, stride=1), out)


def test_a_bias_goes_the_other_way(monkeypatch):
    """What is added to scores, the small way does not know."""
    monkeypatch.setattr(window, "attend_in_small_windows", None)
    inputs, bias = drawn((6, 6))
    assert with_gradients(inputs, bias, window=2, stride=1)[0].isfinite().all()


def test_gradients_of_gradients():
    inputs, _ = drawn((5, 6), head_dim=4)
    double = in_double(inputs)

    def of(q, k, v):
        out = window_attention(q, k, v, window=2, stride=1)
        grads = torch.autograd.grad(out.square().sum(), (q, k, v), create_graph=True)
        return torch.autograd.grad(sum(grad.sin().sum() for grad in grads), (q, k, v))

    assert_close(of(*inputs[:3]), of(*double[:3]), within=5e-5)


def test_windows_of_all_tilings_make_the_average():
    """Shares of a point's queries sum to one, and each window is there once."""
    axes = [tilings(n, 2, 1, 0, False) for n in (5, 4)]
    small = SmallWindows.of([cut(tiling, (5, 4), (5, 4)) for tiling in product(*axes)])
    assert len(small.queries) == 4 * 3
    assert torch.equal(small.queries, small.keys)
    total = torch.zeros(20).index_add_(0, small.queries.flatten().long(), small.share.flatten())
    assert torch.allclose(total, torch.ones(20))


def test_the_published_layer_takes_it_and_keeps_less(monkeypatch):
    layer = MultipoleAttention.published(8, 2)
    x = torch.randn(1, 8, 12, 9)
    out = layer(x)
    exact = layer.double()(x.double())
    assert (out - exact).abs().max() < 1e-5
    layer.float()
    for name in ("attend_natively", "attend_in_chunks", "attend_whole"):
        monkeypatch.setattr(window, name, None)
    assert torch.equal(layer(x), out)
