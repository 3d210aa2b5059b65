"""Queries, keys and values are made again in the backward pass: the same gradients, and less is kept."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mano_op.layers import points
from mano_op.layers.attention import WindowAttention
from mano_op.layers.native.library import library

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


def layer(**options):
    torch.manual_seed(0)
    given = {
        "head_dim": 4,
        "n_dim": 2,
        "window": 4,
        "stride": 4,
        "halo": 1,
        "periodic": [False, True],
        **options,
    }
    return WindowAttention(8, 2, **given)


def gradients(module, x, forward=None):
    out = module(x) if forward is None else forward(module, x)
    weights = torch.linspace(-1, 2, out.numel()).view(out.shape).sin()
    return torch.autograd.grad(out, [x, *module.parameters()], weights)


@pytest.fixture
def field():
    return torch.randn(2, 8, 9, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("double_norm", [False, True])
def test_gradients_are_those_of_what_is_kept(double_norm, field, monkeypatch):
    """All at once, and in steps."""
    module = layer(double_norm=double_norm)
    at_once = gradients(module, field)
    monkeypatch.setattr(WindowAttention, "_at_once", lambda *_: None)
    again = gradients(module, field)
    monkeypatch.setattr(WindowAttention, "_again", lambda *_: None)
    kept = gradients(module, field)
    for one, two, three in zip(at_once, again, kept, strict=True):
        assert torch.equal(two, three)
        assert (one - two).abs().max() <= 1e-6 * max(1.0, two.abs().max().item())


@pytest.mark.parametrize("options", [{}, {"scores": "cosine", "position_bias": "swin", "qv_bias": True}])
def test_what_is_kept_changes_nothing(options, field, monkeypatch):
    module, found = layer(**options), []
    for most in (0, 2**22):
        monkeypatch.setattr(points, "_KEPT", most)
        out = module(field)
        for _ in range(2):
            found.append(
                torch.autograd.grad(out.sin().sum(), [field, *module.parameters()], retain_graph=True)
            )
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.parametrize("in_steps", [False, True])
def test_of_large_fields_nothing_of_the_size_of_queries_is_kept(in_steps, monkeypatch):
    if in_steps:
        monkeypatch.setattr(WindowAttention, "_at_once", lambda *_: None)
    monkeypatch.setattr(points, "_KEPT", 0)
    module, x = layer(), torch.randn(1, 8, 64, 64, requires_grad=True)

    def held():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            module(x)
        return sum(t.nbytes for t in {t.data_ptr(): t for t in kept}.values())

    less = held()
    monkeypatch.setattr(WindowAttention, "_at_once", lambda *_: None)
    monkeypatch.setattr(WindowAttention, "_again", lambda *_: None)
    assert held() - less >= 2.9 * x.nbytes  # of three fields, but for a weight that is there in two ways


def test_gradients_of_gradients(field):
    """Of single precision, whose backward pass is made again, against double, where it is not."""

    def second(module, x):
        out = module(x).square().sum()
        first = torch.autograd.grad(out, [x, *module.parameters()], create_graph=True)
        return torch.autograd.grad(sum(grad.sin().sum() for grad in first), [x, *module.parameters()])

    found = second(layer(), field)
    exact = second(layer().double(), field.detach().double().requires_grad_())
    for one, other in zip(found, exact, strict=True):
        assert (one - other).abs().max() <= 2e-4 * max(1.0, other.abs().max().item())


@pytest.mark.parametrize("reentrant", [False, True])
def test_within_a_checkpoint(reentrant, field):
    module = layer()
    inside = gradients_by_backward(module, field, lambda m, x: checkpoint(m, x, use_reentrant=reentrant))
    outside = gradients_by_backward(module, field, lambda m, x: m(x))
    assert all(torch.equal(one, other) for one, other in zip(inside, outside, strict=True))


def gradients_by_backward(module, x, forward):
    module.zero_grad()
    x = x.detach().requires_grad_()
    out = forward(module, x)
    out.backward(torch.linspace(-1, 2, out.numel()).view(out.shape).sin())
    return [x.grad, *(p.grad.clone() for p in module.parameters())]


def test_weights_that_changed_meanwhile_are_noticed(field):
    module = layer()
    out = module(field)
    with torch.no_grad():
        module.qkv.weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        out.sum().backward()


def test_twice_backward_and_frozen_parts(field):
    module = layer()
    out = module(field)
    first = torch.autograd.grad(out.sum(), field, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(out.sum(), field)[0])
    module.requires_grad_(False)
    assert torch.equal(first[0], torch.autograd.grad(module(field).sum(), field)[0])


def test_a_norm_with_a_hook_is_called_once(field):
    module, calls = layer(), []
    module.norm1.register_forward_hook(lambda *_: calls.append(1))
    module(field).sum().backward()
    assert len(calls) == 1
