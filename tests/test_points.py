"""Maps of points, some at a time, against the same from whole tensors."""

from copy import deepcopy
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from mano_op import MANO
from mano_op.layers import points
from mano_op.layers.eager import is_only, on_cpu_eagerly
from mano_op.layers.native.call import may_call
from mano_op.layers.points import Hidden, linear_maps
from mano_op.models.block import Mlp

ACTIVATIONS = [None, nn.GELU(), nn.ReLU(), nn.SiLU(), nn.Tanh()]


def drawn(shape, channels, norms, activation, outs, bias, dtype=torch.float64):
    """Inputs that need gradients: the points, the parameters before the maps, and the maps."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=dtype).requires_grad_()

    x = draw(*shape, channels)
    parameters = [draw(channels) for _ in range(2 * norms)]
    width = channels
    if activation is not None:
        width = 2 * channels
        parameters += [draw(width, channels), draw(width)]
    return x, parameters, [(draw(out, width), draw(out) if bias else None) for out in outs]


def with_gradients(x, hidden, parameters, maps, *more, **options):
    inputs = [x, *parameters, *(t for pair in maps for t in pair if t is not None), *more]
    inputs = [t for t in inputs if t.requires_grad]
    found = linear_maps(x, hidden, parameters, maps, **options)
    weights = [torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape).sin() for y in found]
    return [*found, *torch.autograd.grad(found, inputs, weights, materialize_grads=True)]


def whole(*given, **options):
    with patch.object(points, "on_cpu_eagerly", lambda x: False):
        return with_gradients(*given, **options)


def assert_same(found, exact, **within):
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, **within)


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
def test_any_chunks_give_the_result_of_whole_tensors(
    shape, numbers, norms, activation, n_maps, bias, residual, n_plus
):
    channels = 4
    outs = [channels] * n_maps if residual or n_plus else [1, 4, 6][:n_maps]
    x, parameters, maps = drawn(shape, channels, norms, activation, outs, bias)
    more = torch.randn(2, channels, *shape, dtype=torch.float64).movedim(1, -1).requires_grad_()
    given = (x, Hidden((1e-5,) * norms, activation), parameters, maps)
    options = {"residual": residual, "plus": list(more[:n_plus])}
    with patch.object(points, "_NUMBERS", numbers):
        found = with_gradients(*given, more, **options)
    assert_same(found, whole(*given, more, **options), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("fixed", ["x", "norm", "map", "all but the biases"])
def test_gradients_are_for_those_who_ask(fixed):
    x, parameters, maps = drawn((5, 7), 4, 1, nn.GELU(), [4, 3], True)
    frozen = {
        "x": [x], "norm": parameters[:2], "map": list(maps[0]),
        "all but the biases": [x, *parameters, maps[0][0], maps[1][0]],
    }[fixed]  # fmt: skip
    for t in frozen:
        t.requires_grad_(False)
    given = (x, Hidden((1e-5,), nn.GELU()), parameters, maps)
    with patch.object(points, "_NUMBERS", 30):
        assert_same(with_gradients(*given), whole(*given), rtol=1e-9, atol=1e-10)


def test_single_precision_is_near_double():
    x, parameters, maps = drawn((300, 5), 8, 2, nn.SiLU(), [8, 8], True, dtype=torch.float32)
    hidden = Hidden((1e-5, 1e-5), nn.SiLU())
    double = [t.detach().double().requires_grad_() for t in (x, *parameters)]
    of_maps = [tuple(t.detach().double().requires_grad_() for t in pair) for pair in maps]
    exact = whole(double[0], hidden, double[1:], of_maps)
    for one, other in zip(with_gradients(x, hidden, parameters, maps), exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() <= 2e-5 * other.abs().max()


def test_gradients_have_gradients():
    x, parameters, maps = drawn((3, 2), 2, 1, nn.Tanh(), [2], True)

    def of(*inputs):
        hidden = Hidden((1e-5,), nn.Tanh())
        return linear_maps(inputs[0], hidden, inputs[1:5], [inputs[5:7]], residual=True, plus=inputs[7:])

    more = torch.randn_like(x).requires_grad_()
    assert torch.autograd.gradgradcheck(of, (x, *parameters, *maps[0], more))


def test_a_changed_parameter_does_not_change_the_gradients_of_before():
    """They are of the parameters that were given, not of what the module has by then."""
    mlp, x = Mlp(4, 8, 4, norm=True, non_linearity="gelu"), torch.randn(2, 4, 5)
    other = {name: torch.randn_like(p).requires_grad_() for name, p in mlp.named_parameters()}
    found = torch.autograd.grad(
        torch.func.functional_call(mlp, other, x).square().sum(), list(other.values())
    )
    mlp.load_state_dict({name: t.detach() for name, t in other.items()})
    expected = torch.autograd.grad(mlp(x).square().sum(), list(mlp.parameters()))
    assert_same(found, expected)


class Doubled(nn.Linear):
    """As an adapter would be: a linear layer of its own kind."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_modules_with_hooks_or_of_other_kinds_are_called():
    """What stands in for them would leave out what they do."""
    torch.manual_seed(0)
    model = MANO(1, 1, hidden_channels=8, n_layers=1, n_heads=2, n_levels=2).eval()
    x, seen = torch.randn(2, 1, 8, 8), []
    before = model(x)
    mlp, attention = model.blocks[0].mlp, model.blocks[0].attention.attention[0]
    for part in (mlp.fc1, mlp.fc2, attention.norm1):
        handle = part.register_forward_hook(lambda module, args, out: seen.append(module))
        torch.testing.assert_close(model(x), before)
        assert seen.pop() is part and not seen
        handle.remove()
    half = Doubled(*reversed(mlp.fc2.weight.shape))
    half.load_state_dict({name: t / 2 for name, t in mlp.fc2.state_dict().items()})
    mlp.fc2 = half
    torch.testing.assert_close(model(x), before)
    torch.manual_seed(0)
    assert not is_only(half, nn.Linear)


def test_where_something_looks_on_torch_does_it_all():
    x = torch.randn(2, 3)
    assert on_cpu_eagerly(x)
    assert torch.func.vmap(lambda t: torch.tensor(float(on_cpu_eagerly(t))))(x).sum() == 0
    with forward_ad.dual_level():
        assert not on_cpu_eagerly(x)
    assert on_cpu_eagerly(x)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # by torch itself
def test_forward_derivatives_pass_through_the_whole_model():
    """Of the network by its input: those of differences."""
    torch.manual_seed(0)
    model = MANO(1, 1, hidden_channels=8, n_layers=1, n_heads=2, n_levels=2).double().eval()
    x, along = torch.randn(2, 1, 1, 6, 6, dtype=torch.float64)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(x, along))).tangent
    step = 1e-6
    difference = (model(x + step * along) - model(x - step * along)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-5, atol=1e-8)


def test_autocast_has_its_half_precision():
    mlp, x = Mlp(8, 16, 8, norm=True, non_linearity="gelu"), torch.randn(4, 8, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mlp(x)
    assert found.dtype == torch.bfloat16
    assert (found - mlp(x)).abs().max() < 0.05 * mlp(x).abs().max()


@pytest.mark.parametrize("most", [0, 2**22])
def test_in_training_a_block_keeps_no_large_hidden_field(most, monkeypatch):
    """What an MLP saves for its gradients is its input and its parameters; hidden fields if small."""
    monkeypatch.setattr(points, "_KEPT", most)
    mlp = Mlp(8, 32, 8, norm=True, non_linearity="gelu")
    x, kept = torch.randn(2, 8, 40, 40, requires_grad=True), {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        mlp(x, residual=True)
    parameters = sum(p.numel() * 4 for p in mlp.parameters())
    hidden = 4 * x.numel() if most and may_call(x) else 0
    assert sum(kept.values()) == x.numel() * 4 + parameters + 4 * hidden


@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_what_is_kept_changes_nothing(activation, monkeypatch):
    """And it stays as it is, for another backward pass."""
    mlp, x = Mlp(8, 32, 8, norm=True, non_linearity=activation), torch.randn(2, 8, 40, 40, requires_grad=True)
    found = []
    for most in (0, 2**22):
        monkeypatch.setattr(points, "_KEPT", most)
        out = mlp(x, residual=True)
        for _ in range(2):
            found.append(torch.autograd.grad(out.sin().sum(), [x, *mlp.parameters()], retain_graph=True))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_operations_are_counted_as_of_whole_tensors():
    mlp, x = Mlp(8, 16, 8, norm=True, non_linearity="gelu"), torch.randn(2, 8, 30, 30)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mlp(x)
    assert counter.get_total_flops() == 2 * 2 * x[:, 0].numel() * 8 * 16


def small_model(**options):
    torch.manual_seed(0)
    return MANO(1, 1, hidden_channels=8, n_layers=1, n_heads=2, n_levels=2, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_that_is_applied_twice_has_the_same_gradients_with_a_graph(dtype):
    """The second use depends on the parameters by its input too, which is counted once."""
    model = small_model().to(dtype)
    x = torch.randn(1, 1, 8, 8, dtype=dtype)
    plain, with_graph = (
        torch.autograd.grad(model(model(x)).square().sum(), list(model.parameters()), create_graph=graph)
        for graph in (False, True)
    )
    for one, other in zip(plain, with_graph, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * one.abs().max().item() + 1e-12)


@pytest.mark.parametrize("kind", ["channels first", "every other channel", "transposed grid"])
def test_fields_with_gaps_are_taken_as_they_are(kind):
    mlp = Mlp(8, 16, 8, norm=True, non_linearity="gelu")
    x = {
        "channels first": torch.randn(1, 8, 5, 6),
        "every other channel": torch.randn(1, 5, 6, 16)[..., ::2].movedim(-1, 1),
        "transposed grid": torch.randn(1, 6, 5, 8).movedim(-1, 1).mT,
    }[kind].requires_grad_()
    found = mlp(x, residual=True)
    weights = torch.randn_like(found)
    exact = deepcopy(mlp).double()(x.double(), residual=True)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    [one], [other] = (torch.autograd.grad(y, x, weights.to(y.dtype)) for y in (found, exact))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


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
def test_what_does_not_fit_is_torchs_error(name, value):
    """And never read as if it did."""
    mlp, x = Mlp(8, 16, 8, norm=True, non_linearity="gelu"), torch.randn(1, 8, 5)
    setattr(mlp.fc2, name, nn.Parameter(value))
    with pytest.raises(RuntimeError):
        mlp(x, residual=True)


def test_a_bias_with_gaps_is_read_as_it_is():
    x, weight, bias = torch.randn(4, 3), torch.randn(6, 3), torch.randn(12)[::2]
    [found] = linear_maps(x, Hidden(), [], [(weight, bias)])
    torch.testing.assert_close(found, x @ weight.T + bias)
    [found] = linear_maps(x, Hidden(), [], [(weight, torch.ones(1).expand(6))])
    torch.testing.assert_close(found, x @ weight.T + 1)


def test_layers_without_all_their_parameters_are_called():
    model, x = small_model().eval(), torch.randn(2, 1, 8, 8)
    block = model.blocks[0]
    block.mlp.norm = nn.LayerNorm(8, elementwise_affine=False)
    block.attention.attention[0].norm1 = nn.LayerNorm(8, bias=False)
    fc1 = block.mlp.fc1
    with torch.no_grad():
        fc1.bias.zero_()
        before = model(x)
        block.mlp.fc1 = nn.Linear(8, 16, bias=False)
        block.mlp.fc1.weight.copy_(fc1.weight)
        torch.testing.assert_close(model(x), before)


def test_a_forward_that_is_replaced_is_called():
    model, x, seen = small_model().eval(), torch.randn(2, 1, 8, 8), []
    fc1 = model.blocks[0].mlp.fc1
    before, forward = model(x), fc1.forward
    fc1.forward = lambda t: seen.append(t) or forward(t)
    torch.testing.assert_close(model(x), before)
    assert len(seen) == 1


def test_results_may_be_changed_in_place():
    model, x = small_model(), torch.randn(2, 1, 8, 8)
    out = model(x)
    expected = torch.autograd.grad((2 * out).square().sum(), list(model.parameters()))
    out = model(x)
    out *= 2
    assert_same(torch.autograd.grad(out.square().sum(), list(model.parameters())), expected)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_type_of_torch_does_not_matter(default):
    model, x = small_model().eval(), torch.randn(2, 1, 8, 8)
    before = model(x)
    torch.set_default_dtype(default)
    try:
        out = model(x)
        out.sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(out, before)


def test_a_transform_leaves_nothing_behind_that_is_of_no_use_later():
    """Nothing of this grid is kept before it."""
    model, x = small_model(reference_shape=(11, 13)), torch.randn(1, 1, 11, 13)
    found = torch.func.grad(lambda t: model(t).square().sum())(x)
    x.requires_grad_()
    [expected] = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_is_made_for_inference_predicts():
    with torch.inference_mode():
        model = small_model(reference_shape=(8, 8)).eval()
        x = torch.randn(1, 1, 8, 8)
        expected = small_model(reference_shape=(8, 8)).eval()(x)
        torch.testing.assert_close(model(x), expected)
