"""Maps of points, some at a time, against the same from whole tensors; and modules that have to be called."""

from copy import deepcopy
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mano_op.layers.eager import is_only
from mano_op.layers.native.call import may_call
from mano_op.layers.points import Hidden, linear_maps
from test_window import assert_near, cotangent, differentiated, transformed
from torch import nn
from torch.autograd import forward_ad
from torch.testing import assert_close

from mano_op import MANO
from mano_op.layers import points
from mano_op.models.block import Mlp

ACTIVATIONS = [None, nn.GELU(), nn.ReLU(), nn.SiLU(), nn.Tanh()]


class Maps:
    """Linear maps as a function of all that they depend on, in double precision, and of fields to add."""

    def __init__(
        self, shape, channels=4, norms=1, activation=None, outs=(4,), bias=True, residual=False, n_plus=0
    ):
        self.hidden, self.residual, self.outs, self.n_plus = (
            Hidden((1e-5,) * norms, activation),
            residual,
            outs,
            n_plus,
        )
        width = channels if activation is None else 2 * channels
        sizes = [(*shape, channels), *[(channels,)] * 2 * norms]
        sizes += [] if activation is None else [(width, channels), (width,)]
        self.n_before = len(sizes)
        for out in outs:
            sizes += [(out, width), (out,)][: 1 + bias]
        sizes += [(channels, *shape)] * n_plus
        generator = torch.Generator().manual_seed(0)
        self.inputs = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
        self.each = 1 + bias

    def __call__(self, inputs):
        x, *before = inputs[: self.n_before]
        end = self.n_before + self.each * len(self.outs)
        flat = inputs[self.n_before : end]
        maps = [(*flat[i : i + self.each], None)[:2] for i in range(0, len(flat), self.each)]
        plus = [t.movedim(0, -1) for t in inputs[end:]]
        out = linear_maps(x, self.hidden, before, maps, residual=self.residual, plus=plus)
        return torch.cat(out, -1)


@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    numbers=st.sampled_from([1, 7, 60, 10**6]),
    norms=st.integers(0, 2),
    activation=st.sampled_from(ACTIVATIONS),
    n_maps=st.integers(1, 3),
    bias=st.booleans(),
    residual=st.booleans(),
    n_plus=st.integers(0, 2),
)
def test_maps_in_chunks_are_those_of_whole_tensors(
    shape, numbers, norms, activation, n_maps, bias, residual, n_plus
):
    """In double precision, and nearly so in single."""
    outs = [4] * n_maps if residual or n_plus else [1, 4, 6][:n_maps]
    maps = Maps(shape, 4, norms, activation, outs, bias, residual, n_plus)
    expected = transformed(maps, maps.inputs)
    with patch.object(points, "_NUMBERS", numbers):
        assert_near(differentiated(maps, maps.inputs), expected, 1e-10)
        single = differentiated(maps, [t.float() for t in maps.inputs])
    if norms == 0 or min(shape) > 1:  # few numbers may be nearly equal, which a norm divides by
        assert_near(single, expected, 1e-3)


def test_a_bias_with_gaps_is_read_as_it_is():
    x, weight = torch.randn(4, 3), torch.randn(6, 3)
    for bias in (torch.randn(12)[::2], torch.ones(1).expand(6)):
        [found] = linear_maps(x, Hidden(), [], [(weight, bias)])
        assert_close(found, x @ weight.T + bias)


# In an MLP


def mlp_of(activation="gelu", hidden=16):
    return Mlp(8, hidden, 8, norm=True, non_linearity=activation)


@pytest.mark.parametrize("most", [0, 2**22])
def test_an_mlp_keeps_its_input_and_parameters_and_small_hidden_fields(most, monkeypatch):
    monkeypatch.setattr(points, "_KEPT", most)
    mlp, x, kept = mlp_of(hidden=32), torch.randn(2, 8, 40, 40, requires_grad=True), {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        mlp(x, residual=True)
    parameters = sum(p.numel() for p in mlp.parameters())
    hidden = 4 * x.numel() if most and may_call(x) else 0
    assert sum(kept.values()) == 4 * (x.numel() + parameters + hidden)


@pytest.mark.parametrize("kind", ["channels first", "every other channel", "transposed grid"])
def test_fields_with_gaps_are_taken_as_they_are(kind):
    mlp = mlp_of()
    x = {
        "channels first": torch.randn(1, 8, 5, 6),
        "every other channel": torch.randn(1, 5, 6, 16)[..., ::2].movedim(-1, 1),
        "transposed grid": torch.randn(1, 6, 5, 8).movedim(-1, 1).mT,
    }[kind].requires_grad_()
    found, exact = mlp(x, residual=True), deepcopy(mlp).double()(x.double(), residual=True)
    assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    [one], [other] = (torch.autograd.grad(y, x, cotangent(exact).to(y.dtype)) for y in (found, exact))
    assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bias", torch.zeros(8, dtype=torch.float64)),
        ("bias", torch.zeros(8, dtype=torch.bfloat16)),
        ("bias", torch.zeros(3)),
        ("weight", torch.zeros(5, 16)),
        ("weight", torch.zeros(8, 16, dtype=torch.float64)),
    ],
)
def test_parameters_that_do_not_fit_are_torchs_error(name, value):
    """And never read as if they did."""
    mlp = mlp_of()
    setattr(mlp.fc2, name, nn.Parameter(value))
    with pytest.raises(RuntimeError):
        mlp(torch.randn(1, 8, 5), residual=True)


# In a model


def small_model(**options):
    torch.manual_seed(0)
    return MANO(1, 1, hidden_channels=8, n_layers=1, n_heads=2, n_levels=2, **options)


def field(*shape, **options):
    return torch.randn(2, 1, *(shape or (8, 8)), generator=torch.Generator().manual_seed(1), **options)


class Doubled(nn.Linear):
    """As an adapter would be: a linear layer of its own kind."""

    def forward(self, x):
        return 2 * super().forward(x)


def adapted(block):
    half = Doubled(*reversed(block.mlp.fc2.weight.shape))
    half.load_state_dict({name: t / 2 for name, t in block.mlp.fc2.state_dict().items()})
    block.mlp.fc2 = half
    assert not is_only(half, nn.Linear)


def without_parameters(block):
    block.mlp.norm = nn.LayerNorm(8, elementwise_affine=False)
    block.attention.attention[0].norm1 = nn.LayerNorm(8, bias=False)
    block.mlp.fc1.bias.data.zero_()
    fc1 = nn.Linear(8, 16, bias=False)
    fc1.weight = block.mlp.fc1.weight
    block.mlp.fc1 = fc1


@pytest.mark.parametrize("change", [adapted, without_parameters])
def test_layers_of_other_kinds_are_called(change):
    """What stands in for them would leave out what they do."""
    model, x = small_model().eval(), field()
    model.blocks[0].mlp.fc1.bias.data.zero_()
    before = model(x)
    change(model.blocks[0])
    assert_close(model(x), before)


LAYERS = ("norm1", "qkv", "out")


@pytest.mark.parametrize("how", ["hook", "forward"])
@pytest.mark.parametrize("name", ["mlp.fc1", "mlp.fc2", *(f"attention.attention.0.{n}" for n in LAYERS)])
def test_layers_with_a_hook_or_another_forward_are_called(name, how):
    model, x, seen = small_model().eval(), field(), []
    before, part = model(x), model.blocks[0].get_submodule(name)
    if how == "hook":
        part.register_forward_hook(lambda *_: seen.append(1))
    else:
        forward = part.forward
        part.forward = lambda t: seen.append(1) or forward(t)
    assert_close(model(x), before)
    assert len(seen) == 1


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # by torch itself
def test_forward_derivatives_of_a_model_are_those_of_differences():
    model = small_model().double().eval()
    x, along = torch.randn(2, 1, 1, 6, 6, dtype=torch.float64)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(x, along))).tangent
    step = 1e-6
    difference = (model(x + step * along) - model(x - step * along)) / (2 * step)
    assert_close(tangent, difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_applied_twice_has_the_same_gradients_with_a_graph(dtype):
    """The second use depends on the parameters by its input too, which is counted once."""
    model, x = small_model().to(dtype), field(dtype=dtype)
    plain, with_graph = (
        torch.autograd.grad(model(model(x)).square().sum(), list(model.parameters()), create_graph=graph)
        for graph in (False, True)
    )
    for one, other in zip(plain, with_graph, strict=True):
        assert_close(one, other, rtol=1e-3, atol=1e-4 * one.abs().max().item() + 1e-12)


def test_results_may_be_changed_in_place():
    model, x = small_model(), field()
    expected = torch.autograd.grad((2 * model(x)).square().sum(), list(model.parameters()))
    out = model(x)
    out *= 2
    assert_close(torch.autograd.grad(out.square().sum(), list(model.parameters())), expected)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_type_of_torch_does_not_matter(default):
    model, x = small_model().eval(), field()
    before = model(x)
    torch.set_default_dtype(default)
    try:
        out = model(x)
        out.sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(out, before)


def test_a_transform_keeps_no_tensor_that_is_of_no_use_later():
    """Nothing of this grid is kept before it."""
    model, x = small_model(reference_shape=(11, 13)), field(11, 13)
    found = torch.func.grad(lambda t: model(t).square().sum())(x)
    x.requires_grad_()
    [expected] = torch.autograd.grad(model(x).square().sum(), x)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_model_made_for_inference_predicts():
    with torch.inference_mode():
        model, twin = (small_model(reference_shape=(8, 8)).eval() for _ in range(2))
        assert_close(model(field()), twin(field()))
