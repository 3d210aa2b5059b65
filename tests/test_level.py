"""The attention of a level as one function, against the same in double precision, which goes in steps."""

import copy
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mano_op.errors import InputError
from mano_op.layers import attention, points
from mano_op.layers.attention import WindowAttention
from mano_op.layers.native.library import library

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


def drawn(n_dim=2, size=1.0, **options):
    generator = torch.Generator().manual_seed(0)
    given = {"head_dim": 4, "window": 4, "stride": 4, "halo": 1, "periodic": [False, True, False][:n_dim]}
    module = WindowAttention(6, 2, n_dim=n_dim, **(given | options))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=size, generator=generator)
    return module, generator


def fields(shape, count, generator):
    return [torch.randn(2, 6, *shape, generator=generator).requires_grad_() for _ in range(count)]


def with_gradients(module, given, residual):
    x, *others = given
    out = module(x, plus=[*others, x] if residual else others)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape).sin()
    return [out, *torch.autograd.grad(out, [*given, *module.parameters()], weights)]


def assert_that_of_double(module, given, residual, within=2e-5):
    with patch.object(attention, "attend_on_level", wraps=attention.attend_on_level) as used:
        found = with_gradients(module, given, residual)
    # Small windows, to whose scores nothing is added, have a way of their own.
    assert used.called or module.bias is None
    in_double = [t.detach().double().requires_grad_() for t in given]
    exact = with_gradients(copy.deepcopy(module).double(), in_double, residual)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32 and one.shape == other.shape
        assert (one - other).abs().max() <= within * max(other.abs().max().item(), 1.0)


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    window=st.integers(1, 5),
    halo=st.integers(0, 2),
    n_plus=st.integers(0, 2),
    residual=st.booleans(),
    biased=st.booleans(),
    double_norm=st.booleans(),
    rows=st.sampled_from([7, 256]),
    most=st.sampled_from([0, 2**22]),
)
def test_results_and_gradients_are_those_of_steps_in_double_precision(
    shape, window, halo, n_plus, residual, biased, double_norm, rows, most
):
    options = {"window": window, "stride": window, "halo": halo}
    module, generator = drawn(len(shape), position_bias=biased, double_norm=double_norm, **options)
    with patch.multiple(points, _NUMBERS=1, _ROWS=rows, _KEPT=most):
        assert_that_of_double(module, fields(shape, 1 + n_plus, generator), residual)


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    window=st.integers(1, 5),
    shift=st.integers(0, 4),
    scores=st.sampled_from(["dot", "cosine"]),
    position_bias=st.sampled_from([True, "swin"]),
    qv_bias=st.booleans(),
    norm=st.booleans(),
    residual=st.booleans(),
    rows=st.sampled_from([7, 256]),
    most=st.sampled_from([0, 2**22]),
)
def test_so_are_swins(shape, window, shift, rows, most, residual, **made):
    options = {"window": window, "stride": window, "halo": 0, "shift": min(shift, window - 1)}
    module, generator = drawn(len(shape), size=0.5, **options, **made)
    with patch.multiple(points, _NUMBERS=1, _ROWS=rows, _KEPT=most):
        assert_that_of_double(module, fields(shape, 1, generator), residual, within=1e-4)


def test_gradients_of_gradients():
    module, generator = drawn(size=0.3)
    given = fields((5, 6), 2, generator)

    def second(module, given):
        out = module(given[0], plus=given).sin().sum()
        first = torch.autograd.grad(out, [*given, *module.parameters()], create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), [*given, *module.parameters()])

    found = second(module, given)
    exact = second(copy.deepcopy(module).double(), [t.detach().double().requires_grad_() for t in given])
    for one, other in zip(found, exact, strict=True):
        assert (one - other).abs().max() <= 2e-4 * max(1.0, other.abs().max().item())


def test_what_asks_for_no_gradient_gets_none():
    module, generator = drawn()
    given = fields((5, 6), 1, generator)
    expected = with_gradients(module, given, residual=True)
    module.requires_grad_(False)
    module.out.bias.requires_grad_()
    x = given[0].detach()
    weights = torch.linspace(-1, 2, x.numel()).view(x.shape).sin()
    [found] = torch.autograd.grad(module(x, plus=[x]), [module.out.bias], weights)
    index = 1 + [name for name, _ in module.named_parameters()].index("out.bias") + 1
    torch.testing.assert_close(found, expected[index])


@pytest.mark.parametrize("name", ["norm1", "out"])
def test_parts_that_someone_looks_at_are_called(name):
    module, generator = drawn()
    [x] = fields((5, 6), 1, generator)
    expected, calls = module(x), []
    getattr(module, name).register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)
    assert calls == [1]


def test_so_is_a_projection_that_someone_looks_at_or_replaces():
    """The weights are not taken from beneath it."""
    module, generator = drawn(qv_bias=True)
    [x] = fields((5, 6), 1, generator)
    expected, calls = module(x), []
    module.qkv.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)
    assert calls == [1]
    module.qkv = torch.nn.Sequential(module.qkv, torch.nn.Identity())
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


def test_a_bias_of_other_heads_is_refused():
    module, generator = drawn()
    module.bias = attention.PositionBias(n_heads=1, n_dim=2)
    with pytest.raises(InputError, match="bias gives 1 scores for each offset, expected one for each of 2"):
        module(fields((5, 6), 1, generator)[0])


@pytest.mark.parametrize("logit_scale", [-60.0, -20.0, 6.0])
def test_cosines_with_any_factor_and_of_vectors_of_no_length(logit_scale):
    module, generator = drawn(scores="cosine", position_bias="swin", qv_bias=True, norm=False, halo=0)
    with torch.no_grad():
        module.logit_scale.fill_(logit_scale)
        module.q_bias.zero_()
    [x] = fields((5, 6), 1, generator)
    with torch.no_grad():
        x[:, :, :2] = 0
    assert_that_of_double(module, [x], residual=False, within=1e-4)


def test_what_is_kept_is_of_a_cpu_whatever_the_default():
    module, generator = drawn(window=3, stride=3)
    [x] = fields((7, 6), 1, generator)
    expected = copy.deepcopy(module).double()(x.double())
    with torch.device("meta"):
        assert (module(x) - expected).abs().max() < 1e-4
    assert (module(x) - expected).abs().max() < 1e-4
