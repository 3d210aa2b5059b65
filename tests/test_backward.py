"""Functions with a backward pass of their own, each against the same properties."""

import re

import pytest
import torch
from test_window import assert_near, cotangent
from torch.utils.checkpoint import checkpoint

from mano_op.layers import points
from mano_op.layers.attention import WindowAttention
from mano_op.layers.pyramid import Prolong, Restrict
from mano_op.layers.style import OPERATOR, SWIN
from mano_op.models.block import Mlp

STEP = {"n_dim": 2, "rate": 2, "sampling": "stencil", "registration": "node", "periodic": [False, True]}
WINDOWS = {"head_dim": 4, "n_dim": 2, "window": 4, "halo": 1, "periodic": [False, True]}
MODULES = {
    "gelu": (lambda: Mlp(6, 12, 6, norm=True, non_linearity="gelu"), {"residual": True}),
    "tanh": (lambda: Mlp(6, 12, 6, norm=True, non_linearity="tanh"), {"residual": True}),
    "level": (lambda: WindowAttention(6, 2, stride=4, style=OPERATOR, **WINDOWS), {"plus": "x"}),
    "cosine level": (lambda: WindowAttention(6, 2, stride=4, style=SWIN, **WINDOWS), {"plus": "x"}),
    "overlapping windows": (lambda: WindowAttention(6, 2, stride=2, style=OPERATOR, **WINDOWS), {}),
    "restriction": (lambda: Restrict(6, **STEP), {}),
    "prolongation": (lambda: Prolong(6, **STEP), {"shape": (9, 12)}),
}


@pytest.fixture(params=MODULES)
def case(request):
    """A module as a function of its input and its parameters, and these."""
    build, options = MODULES[request.param]
    module, generator = build(), torch.Generator().manual_seed(0)
    names = [name for name, _ in module.named_parameters()]
    values = [0.5 * torch.randn(p.shape, generator=generator) for p in module.parameters()]

    def function(inputs):
        x, *parameters = inputs
        # A field that is added to the result, and the input itself.
        keywords = {**options, "plus": [2 * x, x]} if "plus" in options else options
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,), keywords)

    return function, [torch.randn(2, 6, 5, 6, generator=generator), *values]


def gradients(function, inputs, trained=None, **options):
    trained = range(len(inputs)) if trained is None else trained
    inputs = [t.detach().requires_grad_(i in trained) for i, t in enumerate(inputs)]
    out = function(inputs)
    out.backward(cotangent(out), **options)
    return [t.grad for t in inputs]


def test_gradients_have_gradients(case):
    """Those in single precision are those in double precision."""
    function, inputs = case

    def second(inputs):
        inputs = [t.detach().requires_grad_() for t in inputs]
        first = torch.autograd.grad(function(inputs).sin().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(t.square().sum() for t in first), inputs)

    assert_near(second(inputs), second([t.double() for t in inputs]), 1e-4)


def test_frozen_inputs_get_no_gradient_and_change_no_other(case):
    function, inputs = case
    expected = gradients(function, inputs)
    for trained in ([0], [1], [len(inputs) - 1], range(1, len(inputs))):
        for i, gradient in enumerate(gradients(function, inputs, trained)):
            assert gradient is None if i not in trained else torch.allclose(gradient, expected[i], atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_in_a_checkpoint_are_the_same(case, reentrant):
    function, inputs = case

    def checkpointed(inputs):
        return checkpoint(lambda *t: function(t), *inputs, use_reentrant=reentrant)

    assert all(map(torch.equal, gradients(checkpointed, inputs), gradients(function, inputs)))


def test_recomputed_fields_give_the_gradients_of_kept_ones_in_each_backward_pass(case, monkeypatch):
    function, inputs = case
    inputs, results = [t.requires_grad_() for t in inputs], []
    for most in (0, 2**22):
        monkeypatch.setattr(points, "_KEPT", most)
        out = function(inputs).sin().sum()
        results += [torch.autograd.grad(out, inputs, retain_graph=True) for _ in range(2)]
    assert all(all(map(torch.equal, results[0], other)) for other in results[1:])


def test_tensors_that_changed_before_the_backward_pass_are_noticed(case):
    """Or were copied before, as torch's own prolongation does: gradients are then right."""
    function, inputs = case
    expected = gradients(function, inputs, range(1, len(inputs)))
    inputs = [inputs[0].clone(), *(t.detach().clone().requires_grad_() for t in inputs[1:])]
    out = function(inputs)
    with torch.no_grad():
        for t in inputs:
            t.mul_(2)
    try:
        out.backward(cotangent(out))
    except RuntimeError as error:
        assert re.search(r"modified (by an )?inplace", str(error))
    else:
        assert all(map(torch.equal, [t.grad for t in inputs[1:]], expected[1:]))
