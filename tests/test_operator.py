"""The operator of windows as torch sees it, and values of models under what torch does to them."""

import copy
from unittest.mock import patch

import pytest
import torch
from test_anchored import build
from test_multipole import assert_same, draw, randomise
from test_window import assert_near, differentiated
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.functional import jacobian
from torch.func import functional_call, hessian, stack_module_state
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mano_op import MANO, Grid, InputError, PublishedMANO
from mano_op.layers import operator
from mano_op.layers.operator import window_attention
from mano_op.layers.refinement import Refinement
from mano_op.layers.windows import Windows
from mano_op.models.block import Mlp

# By torch itself, when it loads rules of forward differentiation.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
OPERATORS = torch.ops.mano_op
GRIDS = pytest.mark.parametrize("grid", [(6, 5), (9, 11)], ids=["reference", "finer"])


def arguments(*, batch=2, heads=2, options=None, biased=True):
    """Inputs and lists of windows that are cut and overlap, or of those given."""
    windows = Windows((5, 3), **(options or {"window": 3, "stride": 2, "halo": 1, "periodic": [True, False]}))
    lists = windows.lists(heads)
    q, k, v = draw(3, batch, 15, 2 * heads)
    bias = draw(1, heads, lists.keys.shape[1], lists.queries.shape[1]) if biased else None
    return [t if t is None else t.requires_grad_() for t in (q, k, v, bias)], lists


def function_of(lists, biased=True):
    return lambda q, k, v, *bias: window_attention(q, k, v, *(bias if biased else (None,)), lists)


# The operator


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_operators_keep_the_rules_of_torch(biased):
    inputs, lists = arguments(biased=biased)
    detached = [t if t is None else t.detach() for t in inputs]
    torch.library.opcheck(OPERATORS.window_attention.default, (*inputs, *lists))
    for dtype in (torch.float64, torch.float32):
        given = [t if t is None else t.to(dtype) for t in detached]
        torch.library.opcheck(OPERATORS.window_attention_forward.default, (*given, *lists))
        out, kept = OPERATORS.window_attention_forward(*given, *lists)
        torch.library.opcheck(OPERATORS.window_attention_backward.default, (out, kept, *given, *lists))


@pytest.mark.parametrize("options", [None, {"window": 2, "shift": 1}])
def test_derivatives_are_those_of_differences(options):
    """Backward and forward, of both orders, and of many vectors at a time."""
    inputs, lists = arguments(batch=1, heads=1, options=options)
    function = function_of(lists)
    assert gradcheck(function, inputs, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, inputs, fast_mode=True, check_fwd_over_rev=True)


def test_hessians_and_maps_over_samples_are_loops():
    inputs, lists = arguments(batch=3, heads=1)
    q, k, v, bias = (t.detach() for t in inputs)
    out = torch.vmap(lambda q, k, v: window_attention(q[None], k[None], v[None], bias, lists)[0])(q, k, v)
    assert_same(out, window_attention(q, k, v, bias, lists))

    def scalar(t):
        return window_attention(t, k[:1], v[:1], bias, lists).square().sum()

    expected = torch.autograd.functional.hessian(scalar, q[:1])
    assert_same(hessian(scalar)(q[:1]), expected, rtol=1e-9)


def test_windows_in_parts_are_all_windows_at_once():
    """In values and gradients, of a bias of each window too."""
    inputs, lists = arguments()
    inputs[3] = draw(len(lists.queries), *inputs[3].shape[1:])
    results = []
    for scores in (1, 300, 10**9):
        with patch.object(operator, "_SCORES", scores):
            results.append(differentiated(lambda t: window_attention(*t, lists), inputs))
    for result in results[:-1]:
        assert_near(result, results[-1], 1e-13)


def test_an_empty_batch_has_empty_results_and_gradients_of_zero():
    inputs, lists = arguments(batch=0)
    out, *gradients = differentiated(lambda t: window_attention(*t, lists), inputs)
    assert out.shape == (0, 15, 4) and not gradients[3].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_frozen_inputs_change_no_gradient_of_the_others(dtype):
    inputs, lists = arguments()
    inputs = [t.detach().to(dtype) for t in inputs]
    expected = differentiated(lambda t: window_attention(*t, lists), inputs)[1:]
    for i, gradient in enumerate(expected):
        one = [t.clone().requires_grad_(i == j) for j, t in enumerate(inputs)]
        out = window_attention(*one, lists)
        out.backward(torch.linspace(-1, 2, out.numel(), dtype=dtype).reshape(out.shape).sin())
        assert [t.grad is not None for t in one] == [i == j for j in range(4)]
        assert torch.equal(one[i].grad, gradient)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inputs_that_changed_before_the_backward_pass_are_noticed(dtype):
    inputs, lists = arguments()
    inputs = [t.detach().to(dtype).requires_grad_() for t in inputs]
    out = window_attention(*inputs, lists).sum()
    with torch.no_grad():
        inputs[1] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": lambda t: t[:, :, :2]}, r"k has the shape \(2, 15, 2\), expected \(2, 15, 4\)"),
        ({"v": lambda t: t[:, 1:]}, r"v has the shape \(2, 14, 4\), expected \(2, 15, 4\)"),
        ({"bias": lambda t: t[:, :1]}, r"bias has the shape \(1, 1, .* expected \(1, 2, "),
        ({"q": lambda t: t[:1]}, "expected one batch, type and number of channels, a multiple of heads=2"),
        ({"q": lambda t: t[:, :14]}, "queries are from 0 to 14, expected points from 0 to 13"),
        ({"keys": lambda t: t - 1}, "keys are from -1 to 13, expected points from 0 to 14"),
        ({"share": lambda t: t[1:]}, "share has the shape"),
    ],
)
def test_inputs_that_do_not_belong_together_are_refused_before_memory_is_read(change, message):
    inputs, lists = arguments()
    named = dict(zip(("q", "k", "v", "bias"), inputs, strict=True)) | lists._asdict()
    for name, changed in change.items():
        named[name] = changed(named[name])
    with pytest.raises(InputError, match=message), torch.no_grad():
        window_attention(
            *(named[name] for name in ("q", "k", "v", "bias")), operator.Lists(*list(named.values())[4:])
        )


def test_operations_are_those_of_the_products():
    """Of 64 queries with 36 keys each, 8 channels, 3 samples: two products, and five in the backward pass."""
    lists = Windows((8, 8), window=4, halo=1).lists(2)
    q, k, v = torch.randn(3, 3, 64, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        out = window_attention(q, k, v, None, lists)
        product = 2 * 3 * 64 * 36 * 8
        assert counter.get_total_flops() == 2 * product
        out.sum().backward()
    assert counter.get_total_flops() == 7 * product


def test_autocast_leaves_sums_in_single_precision():
    inputs, lists = arguments()
    inputs = [t.detach().float() for t in inputs]
    expected = window_attention(*inputs, lists)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(window_attention(*inputs, lists), expected)


# Hooks and other modules in a model


def effective(model):
    """The same model with the weights that its layers compute."""
    plain = build((6, 5))
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(model.get_submodule(name).weight.detach().clone())
    return plain


@GRIDS
@pytest.mark.parametrize(
    "name",
    [
        "blocks.1",
        "blocks.0.attention",
        "blocks.0.attention.attention.0",
        "blocks.1.attention.attention.0.qkv",
        "blocks.0.mlp",
        "blocks.1.mlp.fc2",
        "norm",
        "projection",
    ],
)
def test_hooks_fire_and_what_they_return_counts(name, grid):
    model, x = build((6, 5)), draw(2, 1, *grid)
    before, seen = model(x), []
    with torch.no_grad():  # a part at a time, too
        module = model.get_submodule(name)
        hook = module.register_forward_hook(lambda m, i, out: seen.append(1))
        assert_same(model(x), before)
        hook.remove()
        hook = module.register_forward_hook(lambda m, i, out: 0 * out)
        assert seen and not torch.allclose(model(x), before)
        hook.remove()
        assert_same(model(x), before)


def test_a_hook_on_a_block_sees_the_points_of_the_reference_first():
    model, x, seen = build((6, 5)), draw(2, 1, 9, 11), []
    model.blocks[0].register_forward_hook(lambda m, inputs, out: seen.append(out))
    model(x)
    model(Refinement(Grid.uniform((6, 5)), (9, 11)).anchors(x))
    on_finer, on_reference = seen
    assert on_finer.shape == (2, 6, 30 + 99)
    assert_same(on_finer[..., :30], on_reference.flatten(2))


class Adapter(nn.Module):
    """A linear layer and a product of low rank beside it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down, self.up = draw(2, layer.in_features), draw(layer.out_features, 2)

    @property
    def weight(self):
        return self.layer.weight + 0.1 * self.up @ self.down

    def forward(self, x):
        return self.layer(x) + 0.1 * x @ self.down.T @ self.up.T


def adapted(model):
    for block in model.blocks:
        block.attention.attention[0].qkv = Adapter(block.attention.attention[0].qkv)


def on_linear_layers(wrap):
    def change(model):
        for module in list(model.modules()):
            if isinstance(module, nn.Linear):
                wrap(module)

    return change


CHANGES = {
    "adapter": adapted,
    "pruning": on_linear_layers(lambda layer: prune.l1_unstructured(layer, "weight", 0.3)),
    "weight norm": on_linear_layers(parametrizations.weight_norm),
    "spectral norm": on_linear_layers(parametrizations.spectral_norm),
}


@GRIDS
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_layers_give_what_their_weights_do(change, grid):
    model, x = build((6, 5)), draw(2, 1, *grid)
    change(model)
    model.eval()
    expected = effective(model)(x)
    assert_same(model(x), expected)
    with torch.no_grad():
        assert_same(model(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@GRIDS
def test_layers_quantised_to_eight_bits_keep_two_digits(grid):
    model, x = build((6, 5), hidden_channels=16).float(), draw(2, 1, *grid).float()
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        out, expected = quantised(x), model(x)
    assert 0 < (out - expected).norm() < 0.1 * expected.norm()


@GRIDS
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_have_the_same_gradients(reentrant, grid):
    model, x = build((6, 5)), draw(2, 1, *grid).requires_grad_()
    parameters = [x, *model.parameters()]
    expected = torch.autograd.grad(model(x).square().sum(), parameters, allow_unused=True)
    for block in model.blocks:
        forward = block.forward
        block.forward = lambda *args, f=forward: checkpoint(f, *args, use_reentrant=reentrant)
    for parameter in parameters:
        parameter.grad = None
    model(x).square().sum().backward()
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert_same(parameter.grad, gradient)


# Transforms and modes


@GRIDS
def test_jacobians_of_a_model_are_those_of_a_loop(grid):
    model, x = build((6, 5)), draw(1, 1, *grid)

    def corner(t):
        return model(t)[0, 0, :2, :2].flatten()

    expected = jacobian(corner, x)
    for found in (
        jacobian(corner, x, vectorize=True),
        torch.func.jacrev(corner)(x),
        torch.func.jacfwd(corner)(x),
    ):
        assert_same(found, expected)


@GRIDS
def test_stacked_models_are_mapped_one_by_one(grid):
    models, x = [build((6, 5), seed=seed) for seed in range(3)], draw(2, 1, *grid)
    expected = torch.stack([model(x) for model in models])
    for model in models:
        model(draw(1, 1, 7, 7))
    parameters, buffers = stack_module_state(models)
    for base in (copy.deepcopy(models[0]).to("meta"), models[0]):
        found = torch.vmap(lambda p, b, base=base: functional_call(base, (p, b), (x,)))(parameters, buffers)
        assert_same(found, expected)


@GRIDS
def test_forward_derivatives_of_a_model_are_those_of_differences(grid):
    model, (x, along) = build((6, 5)), draw(2, 1, 1, *grid)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(x, along))).tangent
    difference = (model(x + 1e-6 * along) - model(x - 1e-6 * along)) / 2e-6
    assert_same(tangent, difference, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"boundary_values": [0.5]}, {"registration": "cell", "periodic": True}]
)
def test_the_default_device_and_type_of_torch_do_not_matter(options):
    model, inputs = (
        build((6, 5), **options).float(),
        [draw(2, 1, *n).float() for n in ((6, 5), (9, 11), (4, 9))],
    )
    before = [model(x) for x in inputs]
    model = copy.deepcopy(model)
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        after = [model(x) for x in inputs]
        with torch.no_grad():
            after += [model(x) for x in inputs]
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for found, expected in zip(after, before * 2, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_published_model_under_another_default_device_is_the_same():
    model, x = PublishedMANO(1, 1, hidden_channels=8, n_layers=1, n_heads=2).eval(), torch.randn(1, 1, 8, 8)
    with torch.device("meta"):
        found = model(x)
    assert torch.equal(found, model(x))


def test_a_model_made_for_inference_predicts():
    with torch.inference_mode():
        model, twin = (MANO(1, 1, hidden_channels=8, reference_shape=(8, 8)).eval() for _ in range(2))
        twin.load_state_dict(model.state_dict())
        x = torch.randn(2, 1, 12, 12)
        assert torch.equal(model(x), twin(x))


def test_results_may_be_changed_in_place():
    model, x = build((6, 5)), draw(2, 1, 9, 11)
    expected = torch.autograd.grad((2 * model(x)).square().sum(), list(model.parameters()))
    out = model(x)
    out *= 2
    for one, other in zip(
        torch.autograd.grad(out.square().sum(), list(model.parameters())), expected, strict=True
    ):
        assert_same(one, other)


@pytest.mark.parametrize(
    ("name", "value"),
    [("bias", torch.zeros(6)), ("bias", torch.zeros(3)), ("weight", torch.zeros(5, 12))],
)
def test_parameters_that_do_not_fit_are_torchs_error(name, value):
    mlp = randomise(Mlp(6, 12, 6, norm=True, non_linearity="gelu"))
    setattr(mlp.fc2, name, nn.Parameter(value))
    with pytest.raises(RuntimeError):
        mlp(draw(1, 6, 5)).sum().backward()
