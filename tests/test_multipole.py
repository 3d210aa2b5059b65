"""The multipole layer against its formula, and its exact symmetries. The published one: `test_published`."""

import copy
import math

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from test_window import move_padding, reference
from torch.utils.flop_counter import FlopCounterMode

from mano_op.errors import InputError
from mano_op.layers.attention import PositionBias, SwinPositionBias, WindowAttention
from mano_op.layers.multipole import MultipoleAttention

SMALL = {"window": 3, "stride": 3, "halo": 1, "rate": 2, "n_levels": 3}
PUBLISHED = {"window": 2, "stride": 1, "rate": 2}


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomise(module, seed=0):
    """Give every parameter a random value, those that start from ones and zeros too."""
    for i, parameter in enumerate(module.parameters()):
        parameter.data = 0.4 * draw(*parameter.shape, seed=seed + i) + parameter.data.double()
    return module.double()


def operator(channels=4, n_heads=2, **options):
    return randomise(MultipoleAttention(channels, n_heads, **(SMALL | options)))


def gradients(module, out, x):
    wanted = [x, *module.parameters()]
    return torch.autograd.grad(out, wanted, draw(*out.shape, seed=9))


def assert_same(found, expected, rtol=1e-10):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("shape", [(13,), (5, 7), (4, 3, 2)])
def test_window_attention_is_its_formula(shape, periodic):
    n_dim, x = len(shape), draw(2, 4, *shape)
    options = {"window": 3, "stride": 2, "halo": 1, "periodic": [periodic] * n_dim}
    part = randomise(WindowAttention(4, 2, head_dim=3, n_dim=n_dim, **options))
    tokens = torch.nn.functional.layer_norm(rearrange(x, "b c ... -> b ... c"), [4])
    tokens = tokens * part.norm1.weight + part.norm1.bias
    q, k, v = ((tokens @ w.T).unflatten(-1, (2, 3)).movedim(-2, 1) for w in part.qkv.weight.chunk(3))
    heads = reference(q, k, v, **options, bias=part.bias).movedim(1, -2).flatten(-2)
    assert_same(part(x), (heads @ part.out.weight.T + part.out.bias).movedim(-1, 1))


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("shape", [(13,), (6, 7)])
def test_cosine_attention_is_its_formula(shape, periodic):
    n_dim, x = len(shape), draw(2, 4, *shape).requires_grad_()
    options = {"window": 4, "stride": 4, "halo": 0, "shift": 2, "periodic": [periodic] * n_dim}
    made = {"scores": "cosine", "position_bias": "swin", "qv_bias": True, "norm": False}
    part = randomise(WindowAttention(4, 2, head_dim=3, n_dim=n_dim, **options, **made))
    part.logit_scale.data = torch.tensor([1.3, 5.0], dtype=torch.float64)  # the second is cut at log 100
    tokens = rearrange(x, "b c ... -> b ... c")
    biases = (part.q_bias, 0, part.v_bias)
    q, k, v = (
        (tokens @ w.T + bias).unflatten(-1, (2, 3)).movedim(-2, 1)
        for w, bias in zip(part.qkv.weight.chunk(3), biases, strict=True)
    )
    factor = torch.stack([part.logit_scale[0].exp(), torch.tensor(100.0, dtype=torch.float64)])
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    q = q * 3**0.5 * factor.view(2, *[1] * (n_dim + 1))  # the reference divides by the root
    heads = reference(q, k, v, **options, bias=part.bias).movedim(1, -2).flatten(-2)
    expected, found = (heads @ part.out.weight.T + part.out.bias).movedim(-1, 1), part(x)
    assert_same(found, expected)
    for one, other in zip(gradients(part, found, x), gradients(part, expected, x), strict=True):
        assert_same(one, other)


def test_position_bias_of_swin_is_its_formula():
    bias = randomise(SwinPositionBias(3, n_dim=2, window=5, hidden_channels=6))
    counted = torch.tensor([-math.log(5), math.log(8)], dtype=torch.float64) / math.log(8)
    hidden = (bias.fc1.weight @ counted + bias.fc1.bias).clamp(min=0)
    expected = 16 / (1 + (-bias.fc2.weight @ hidden).exp())
    assert_same(bias(torch.tensor([2.0, -3.5], dtype=torch.float64)), expected)


@pytest.mark.parametrize("shape", [(16, 16), (13, 9), (3, 5)])
def test_compiled_cosine_attention_gives_what_double_precision_gives(shape):
    """What is computed again for the backward pass is what was computed, normalised queries and keys too."""
    layer = randomise(MultipoleAttention.swin(8, 2, window=4, shift=2))
    x, single = draw(2, 8, *shape).requires_grad_(), copy.deepcopy(layer).float()
    x_single = x.detach().float().requires_grad_()
    expected = gradients(layer, layer(x), x)
    out = single(x_single)
    found = torch.autograd.grad(out, [x_single, *single.parameters()], draw(*out.shape, seed=9).float())
    torch.testing.assert_close(out.double(), layer(x), rtol=1e-4, atol=1e-4)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(
            one.double(), other, rtol=1e-3, atol=1e-4 * other.abs().max().item() + 1e-9
        )


def test_position_bias_is_its_formula():
    bias = randomise(PositionBias(3, n_dim=2, hidden_channels=5))
    offset = torch.tensor([2.0, -3.5], dtype=torch.float64)
    log = torch.tensor([1.0, -1.0]) * torch.tensor([3.0, 4.5], dtype=torch.float64).log()
    hidden = torch.nn.functional.gelu(bias.fc1.weight @ log + bias.fc1.bias)
    assert_same(bias(offset), bias.fc2.weight @ hidden)


@pytest.mark.parametrize("level_weights", ["learned", "factorial"])
@pytest.mark.parametrize("shape", [(19,), (11, 8), (5, 8, 4)])
def test_levels_are_added_on_the_way_up(shape, level_weights):
    layer = operator(n_dim=len(shape), level_weights=level_weights)
    x0 = draw(2, 4, *shape)
    x1 = layer.down[0](x0)
    x2 = layer.down[1](x1)
    o0, o1, o2 = (attention(x) for attention, x in zip(layer.attention, (x0, x1, x2), strict=True))
    factors = {"factorial": [1 / 2, 1.0]}.get(level_weights) or layer.scale.view(2, 4, *[1] * len(shape))
    y1 = o1 + factors[1] * layer.up[1](o2, x1.shape[2:])
    assert_same(layer(x0), o0 + factors[0] * layer.up[0](y1, shape))


def test_shared_parameters_are_the_same_on_all_levels():
    """Levels with equal parameters of their own give the same; the shared gradient is the sum of theirs."""
    own, shared = operator(), operator(shared_levels=True)
    names = ("attention", "down", "up")
    for name in names:
        for part in getattr(own, name):
            part.load_state_dict(getattr(shared, name)[0].state_dict())
    own.scale.data = shared.scale.data
    x = draw(2, 4, 9, 7)
    outs = own(x), shared(x)
    assert_same(*outs)
    for out in outs:
        out.square().sum().backward()
    for name in names:
        for key, parameter in getattr(shared, name)[0].named_parameters():
            assert_same(sum(part.get_parameter(key).grad for part in getattr(own, name)), parameter.grad)


def test_levels_that_a_grid_is_too_small_for_change_nothing():
    deep, x = operator(n_levels=5), draw(2, 4, 4, 3)
    shallow = copy.deepcopy(deep)
    shallow.n_levels, shallow.attention = 3, shallow.attention[:3]
    assert torch.equal(deep(x), shallow(x))


@pytest.mark.parametrize(
    "build",
    [
        operator,
        lambda: operator(n_levels=1),
        lambda: randomise(MultipoleAttention.published(4, 2, **PUBLISHED)),
        lambda: randomise(MultipoleAttention.published(4, 1, sampling="avg_pool", **PUBLISHED)),
        lambda: randomise(MultipoleAttention.swin(4, 2, window=4, shift=1)),
        lambda: randomise(MultipoleAttention.swin(4, 1, window=3, n_levels=1)),
    ],
    ids=["operator", "one level", "published", "published, one head", "swin", "swin, one level"],
)
def test_every_parameter_gets_a_gradient_at_every_size(build):
    """Data-parallel training waits for all of them: a level that is left out must give zeros, not None."""
    layer = build()
    for shape in [*((n, n) for n in range(1, 18)), (1, 17), (2, 9), (16, 1), (17, 16)]:
        layer.zero_grad(set_to_none=True)
        out = layer(draw(1, 4, *shape))
        out.square().sum().backward()
        missing = [name for name, p in layer.named_parameters() if p.grad is None]
        assert not missing, f"{shape}: no gradient for {missing}"
        assert out.isfinite().all() and all(p.grad.isfinite().all() for p in layer.parameters())
    if layer.n_levels != 1:  # at the last, usual size all of them learn
        assert all((p.grad != 0).any() for p in layer.parameters())


@pytest.mark.parametrize("shape", [(11, 7), (5, 13)])
def test_what_stands_in_the_padding_never_matters(shape, monkeypatch):
    layer, x = operator(window=4, stride=3), draw(2, 4, *shape)
    expected = layer(x)
    moved = move_padding(monkeypatch)
    assert torch.equal(layer(x), expected) and any(moved)


@pytest.mark.parametrize(("n_levels", "seen"), [(1, range(2, 7)), (3, range(16)), (4, range(24))])
def test_what_a_point_sees(n_levels, seen):
    """Its window, 3 to 5, and the halo of one point; with more levels more, and in the end everything."""
    layer, x = operator(n_dim=1, n_levels=n_levels), draw(1, 4, 24).requires_grad_()
    layer(x)[0, :, 5].square().sum().backward()
    assert (x.grad[0] != 0).any(0).nonzero().flatten().tolist() == list(seen)


@settings(max_examples=10)
@given(st.permutations(range(4)), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_samples_do_not_meet(order, shape):
    layer, x = operator(), draw(4, 4, *shape)
    assert_same(layer(x[order]), layer(x)[order])
    assert_same(layer(x[:1]), layer(x)[:1])
    assert layer(x[:0]).shape == x[:0].shape


# Symmetries. All that acts point by point commutes with any permutation of the points, so a permutation of
# the grid commutes with the layer if it maps windows to windows and cells to cells, and leaves the position
# bias and the stencils unchanged, as linear interpolation is.


@pytest.mark.parametrize("sampling", ["stencil", "avg_pool"])
@pytest.mark.parametrize("shape", [(12, 12), (7, 7), (9, 4)])
def test_transposition(shape, sampling):
    """Windows and cells are cubes with one corner at point 0: exchanging axes exchanges them."""
    layer = MultipoleAttention(4, 2, **SMALL, sampling=sampling)
    layer = layer.double()
    x = draw(2, 4, *shape)
    assert (layer(x.mT) - layer(x).mT).abs().max() > 1e-4  # the bias tells the axes apart, until ...
    for part in layer.attention:
        part.bias.fc1.weight.data[:, 1] = part.bias.fc1.weight.data[:, 0]
    assert_same(layer(x.mT), layer(x).mT)


@pytest.mark.parametrize("n_dim", [1, 2])
def test_reflection(n_dim):
    """With w r^(L-1) cells times a whole number, windows end where the grid ends on every level."""
    layer = MultipoleAttention(4, 2, n_dim=n_dim, **SMALL, registration="cell", position_bias=False)
    layer = layer.double()
    x = draw(2, 4, *[24, 12][:n_dim])
    for dim in range(2, n_dim + 2):
        assert_same(layer(x.flip(dim)), layer(x).flip(dim))


def test_periodic_shift_by_the_coarsest_window():
    """w r^(L-1) points are w r^(L-1-l) on level l: whole windows and whole cells on all of them."""
    layer, x = operator(periodic=[True, False]), draw(2, 4, 24, 7)
    assert_same(layer(x.roll(12, 2)), layer(x).roll(12, 2))
    assert (layer(x.roll(6, 2)) - layer(x).roll(6, 2)).abs().max() > 1e-2
    assert (layer(x.roll(1, 3)) - layer(x).roll(1, 3)).abs().max() > 1e-2


@pytest.mark.parametrize("published", [False, True])
def test_cost_is_linear_in_the_points(published):
    operator_layer = MultipoleAttention(8, 2, window=4, halo=1, rate=2, n_levels=3)
    layer = MultipoleAttention.published(8, 2, **PUBLISHED) if published else operator_layer
    flops = []
    for n in (64, 128):
        with FlopCounterMode(display=False) as counter:
            layer(torch.zeros(1, 8, n, n))
        flops.append(counter.get_total_flops())
    assert flops[1] / flops[0] == pytest.approx(4, rel=0.03)


@pytest.mark.parametrize("published", [False, True])
def test_precision(published):
    """Single precision is as good as its numbers; so is bfloat16, with 8 bits."""
    operator_layer = MultipoleAttention(8, 2, **SMALL)
    layer = MultipoleAttention.published(8, 2, **PUBLISHED) if published else operator_layer
    x = draw(2, 8, 13, 10)
    exact = copy.deepcopy(layer).double()(x)
    single = layer(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x.float())
    assert (single - exact).norm() < 1e-6 * exact.norm()
    assert 1e-5 * exact.norm() < (half - exact).norm() < 2e-2 * exact.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels=0, expected .* at least 1"),
        ({"n_heads": 0}, "n_heads=0, expected .* at least 1"),
        ({"n_dim": 4}, "n_dim=4, expected .* at least 1 and at most 3"),
        ({"n_dim": "2"}, "n_dim='2', expected a whole number"),
        ({"head_dim": 0}, "head_dim=0, expected"),
        ({"window": 2.5}, r"window=2\.5, expected a whole number"),
        ({"stride": 5}, "stride=5, expected .* at least 1 and at most 3"),
        ({"halo": -1}, "halo=-1, expected .* at least 0"),
        ({"rate": 1}, "rate=1, expected .* at least 2"),
        ({"n_levels": 0}, "n_levels=0, expected .* at least 1"),
        ({"n_levels": None}, "n_levels cannot be None: give their number"),
        ({"n_levels": None, "shared_levels": True}, "n_levels cannot be None"),
        ({"sampling": "max_pool"}, "sampling='max_pool', expected one of stencil, conv, avg_pool"),
        ({"level_weights": "none"}, "level_weights='none', expected one of learned, factorial"),
        ({"shift": 3}, "shift=3, expected a whole number, at least 0 and at most 2"),
        ({"shift": 1, "stride": 1}, "shift=1 with stride=1 and window=3: .* leave out one of the two"),
        ({"scores": "angle"}, "scores='angle', expected one of dot, cosine"),
        ({"position_bias": "none"}, "position_bias='none', expected True or False, or 'swin'"),
        ({"qv_bias": 1}, "qv_bias=1, expected True or False"),
        ({"norm": False, "double_norm": True}, "double_norm=True with norm=False: there is no first one"),
        ({"registration": "edge"}, "registration='edge', expected one of node, node_both, cell"),
        ({"channels": 5}, "channels=5 is not divisible by n_heads=2: change one of them, or give head_dim"),
        ({"periodic": [True]}, r"periodic=\[True\] has 1 entries, expected n_dim=2"),
        ({"periodic": True, "registration": "node_both"}, "drop the last one and use registration='node'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        MultipoleAttention(**({"channels": 4, "n_heads": 2} | SMALL | options))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 4, 8), (4, 8, 8), (2, 4, 0, 8), (2, 8, 8, 4)])
def test_fields_of_another_shape_are_refused(shape):
    with pytest.raises(
        InputError, match=r"got an input of shape .* expected \(batch, channels=4, n_1, n_2\)"
    ):
        operator()(torch.zeros(shape, dtype=torch.float64))
