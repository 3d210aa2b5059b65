"""Stencils by the compiled library against torch's convolutions in double precision."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mano_op.layers import pyramid
from mano_op.layers.native import stencil
from mano_op.layers.native.library import library
from mano_op.layers.pyramid import Prolong, Restrict, level_shapes

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


def step_of(kind, channels, n_dim, seed=0, **options):
    step = kind(channels, n_dim=n_dim, sampling="stencil", **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        step.weight.normal_(generator=generator)
    return step


def with_gradients(step, x, *more):
    """The result, and the gradients of the field, the weights and what else asks for one."""
    inputs = [x, step.weight, *(t for t in more if isinstance(t, torch.Tensor))]
    out = step(x, *more)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape).sin()
    return [out, *torch.autograd.grad(out, inputs, weights)]


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    rate=st.integers(2, 4),
    registration=st.sampled_from(["node", "node_both", "cell"]),
    periodic=st.lists(st.booleans(), min_size=3, max_size=3),
    channels=st.integers(1, 5),
    channels_last=st.booleans(),
    threads=st.sampled_from([1, 3]),
    batch=st.integers(0, 3),
)
def test_both_ways_are_the_convolutions(
    shape, rate, registration, periodic, channels, channels_last, threads, batch
):
    n_dim = len(shape)
    options = {"rate": rate, "registration": registration, "periodic": periodic[:n_dim]}
    coarse = level_shapes(shape, rate, 2)[-1]
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(channels, generator=generator).requires_grad_()
    for kind, size, more in ((Restrict, shape, ()), (Prolong, coarse, (shape, factor))):
        x = torch.randn(batch, *size, channels, generator=generator).movedim(-1, 1)
        x = (x if channels_last else x.contiguous()).requires_grad_()
        step = step_of(kind, channels, n_dim, **options)
        with patch.object(torch, "get_num_threads", lambda: threads):
            found = with_gradients(step, x, *more)
        exactly = [t.detach().double().requires_grad_() if isinstance(t, torch.Tensor) else t for t in more]
        exact = with_gradients(step.double(), x.detach().double().requires_grad_(), *exactly)
        for one, other in zip(found, exact, strict=True):
            assert one.shape == other.shape and one.dtype == torch.float32
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@given(
    n=st.integers(1, 40), rate=st.integers(2, 5), node=st.booleans(), periodic=st.booleans(),
    threads=st.integers(1, 2),
)  # fmt: skip
def test_lists_the_other_way_round_are_the_same_pairs(n, rate, node, periodic, threads):
    reach = rate - 1 if node else 0
    coarse = -(-n // rate)
    for there, back in (
        stencil.down(n, rate, reach, periodic), stencil.up(coarse, n, rate, reach, periodic),
    ):  # fmt: skip
        assert (there.n_out, there.n_in) == (back.n_in, back.n_out)

        def pairs(lists):
            return {
                (point, int(lists.source[i]), int(lists.tap[i]))
                for point in range(lists.n_out)
                for i in range(lists.start[point], lists.start[point + 1])
            }

        assert pairs(back) == {(source, out, tap) for out, source, tap in pairs(there)}
        assert there.source.min() >= 0 and there.source.max() < there.n_in
        assert there.tap.min() >= 0 and there.tap.max() < there.taps == rate + reach


def test_gradients_have_gradients():
    """Those of double precision, up to rounding: of the field, the weights, and both."""
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for kind, more in ((Restrict, ()), (Prolong, ((9, 8),))):
        step = step_of(kind, 3, 2, rate=2, periodic=[False, True])
        results = []
        for dtype in (torch.float32, torch.float64):
            step, field = step.to(dtype), x.detach().to(dtype).requires_grad_()
            first = torch.autograd.grad(
                step(field, *more).tanh().sum(), [field, step.weight], create_graph=True
            )
            results.append(torch.autograd.grad(sum(t.square().sum() for t in first), [field, step.weight]))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen", ["field", "weight"])
def test_gradients_are_for_those_who_ask(frozen):
    step, x = step_of(Restrict, 2, 1, rate=2, periodic=[False]), torch.randn(1, 2, 8)
    (step.weight if frozen == "weight" else x).requires_grad_(False)
    (x if frozen == "weight" else step.weight).requires_grad_(True)
    step(x).sum().backward()
    assert (x.grad is None) == (frozen == "field") and (step.weight.grad is None) == (frozen == "weight")


def test_other_precisions_and_autocast_go_through_torch():
    step, x = step_of(Restrict, 2, 1, rate=2, periodic=[False]), torch.randn(1, 2, 8)
    with patch.object(pyramid, "apply_stencil", side_effect=AssertionError("by the library")):
        with pytest.raises(AssertionError, match="by the library"):
            step(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert step(x).dtype == torch.bfloat16
        assert step.double()(x.double()).dtype == torch.float64
        assert step.half()(x.half()).dtype == torch.float16
