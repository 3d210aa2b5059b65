"""The multipole layer against its formula. Its symmetries: `test_anchored`; as published: `test_golden`."""

import copy
import math

import pytest
import torch
from einops import rearrange
from test_window import reference
from torch.utils.flop_counter import FlopCounterMode

from mano_op.errors import InputError
from mano_op.layers.attention import PositionBias, SwinPositionBias, WindowAttention
from mano_op.layers.multipole import MultipoleAttention
from mano_op.layers.style import OPERATOR, SWIN, Style
from mano_op.layers.windows import Windows

SMALL = {"window": 3, "halo": 1, "rate": 2, "n_levels": 3}
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
    return torch.autograd.grad(out, [x, *module.parameters()], draw(*out.shape, seed=9))


def assert_same(found, expected, rtol=1e-10):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)


# Its parts


WINDOWS = {"window": 3, "stride": 2, "halo": 1}
TWO_NORMS = Style(norms=2, position_bias=False)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("shape", [(13,), (5, 7), (4, 3, 2)])
@pytest.mark.parametrize(
    ("n_heads", "windows", "style"),
    [
        (2, WINDOWS, OPERATOR),
        (2, WINDOWS | {"stride": 3, "halo": 0, "shift": 2}, SWIN),
        (2, WINDOWS | {"halo": 0}, TWO_NORMS),
        (1, WINDOWS | {"halo": 0}, TWO_NORMS),  # without a map at the end
    ],
    ids=["operator", "swin", "published", "published, one head"],
)
def test_window_attention_matches_its_formula(shape, periodic, n_heads, windows, style):
    n_dim, x = len(shape), draw(2, 4, *shape).requires_grad_()
    options = windows | {"periodic": [periodic] * n_dim}
    head_dim = 3 if n_heads > 1 else 4
    part = WindowAttention(4, n_heads, head_dim=head_dim, n_dim=n_dim, window=options["window"], style=style)
    part, attend = randomise(part), Windows(shape, **options)
    tokens = part.norm2(part.norm1(rearrange(x, "b c ... -> b ... c")))
    biases = (part.q_bias, 0, part.v_bias) if style == SWIN else (0, 0, 0)
    q, k, v = (
        (tokens @ w.T + bias).unflatten(-1, (n_heads, head_dim)).movedim(-2, 1)
        for w, bias in zip(part.qkv.weight.chunk(3), biases, strict=True)
    )
    if style == SWIN:
        part.logit_scale.data = torch.tensor([1.3, 5.0], dtype=torch.float64)  # the second is cut at log 100
        factor = torch.stack([part.logit_scale[0].exp(), torch.tensor(100.0, dtype=torch.float64)])
        q, k = (t / t.norm(dim=-1, keepdim=True) for t in (q, k))
        q = q * 3**0.5 * factor.view(2, *[1] * (n_dim + 1))  # the reference divides by the root
    heads = reference(q, k, v, **options, bias=part.bias).movedim(1, -2).flatten(-2)
    out = heads if n_heads == 1 else heads @ part.out.weight.T + part.out.bias
    expected, found = out.movedim(-1, 1), part(x, attend)
    assert_same(found, expected)
    for one, other in zip(gradients(part, found, x), gradients(part, expected, x), strict=True):
        assert_same(one, other)


def test_position_biases_match_their_formulas():
    offset = torch.tensor([2.0, -3.5], dtype=torch.float64)
    bias = randomise(PositionBias(3, n_dim=2, hidden_channels=5))
    log = torch.tensor([1.0, -1.0]) * torch.tensor([3.0, 4.5], dtype=torch.float64).log()
    hidden = torch.nn.functional.gelu(bias.fc1.weight @ log + bias.fc1.bias)
    assert_same(bias(offset), bias.fc2.weight @ hidden)
    bias = randomise(SwinPositionBias(3, n_dim=2, window=5, hidden_channels=6))
    counted = torch.tensor([-math.log(5), math.log(8)], dtype=torch.float64) / math.log(8)
    hidden = (bias.fc1.weight @ counted + bias.fc1.bias).clamp(min=0)
    assert_same(bias(offset), 16 / (1 + (-bias.fc2.weight @ hidden).exp()))


@pytest.mark.parametrize("level_weights", ["learned", "factorial"])
@pytest.mark.parametrize("shape", [(19,), (11, 8), (5, 8, 4)])
def test_levels_are_added_on_the_way_up(shape, level_weights):
    layer, x0 = operator(n_dim=len(shape), style=Style(level_weights=level_weights)), draw(2, 4, *shape)
    x1 = layer.down[0](x0)
    x2 = layer.down[1](x1)
    parts = zip(layer.attention, (x0, x1, x2), layer.windows_of(shape), strict=True)
    o0, o1, o2 = (attention(x, windows) for attention, x, windows in parts)
    factors = {"factorial": [1 / 2, 1.0]}.get(level_weights) or layer.scale.view(2, 4, *[1] * len(shape))
    y1 = o1 + factors[1] * layer.up[1](o2, x1.shape[2:])
    assert_same(layer(x0), o0 + factors[0] * layer.up[0](y1, shape))


@pytest.mark.parametrize(
    ("shape", "window", "stride", "rate", "n_levels"),
    [((16, 8), 4, 2, 2, 3), ((7, 5), 2, 1, 2, 2), ((10, 13), 4, 3, 3, 2), ((3, 2), 5, 4, 2, 1)],
)
def test_published_levels_share_their_parts_and_are_as_many_as_fit(shape, window, stride, rate, n_levels):
    """floor(log_r n) of the shorter side; also where windows and cells are cut."""
    layer = randomise(MultipoleAttention.published(4, 2, window=window, stride=stride, rate=rate))
    [attention], [down], [up], levels = layer.attention, layer.down, layer.up, [draw(2, 4, *shape)]
    for _ in range(n_levels - 1):
        levels.append(down(levels[-1]))
    *windows, last = layer.windows_of(shape)
    out = attention(levels[-1], last)
    for i, (finer, attend) in enumerate(zip(reversed(levels[:-1]), reversed(windows), strict=True), start=1):
        out = attention(finer, attend) + 1 / i * up(out, finer.shape[2:])
    assert_same(layer(levels[0]), out)


def test_shared_levels_match_equal_ones_and_their_gradient_is_the_sum():
    own, shared = operator(), operator(style=Style(shared_levels=True))
    names = ("attention", "down", "up")
    for name in names:
        for part in getattr(own, name):
            part.load_state_dict(getattr(shared, name)[0].state_dict())
    own.scale.data, x = shared.scale.data, draw(2, 4, 9, 7)
    outs = own(x), shared(x)
    assert_same(*outs)
    with FlopCounterMode(display=False):  # a mode that looks on, for which nothing is remembered
        assert_same(shared(x), outs[0])
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
    assert deep(x[:0]).shape == x[:0].shape


@pytest.mark.parametrize(
    "layer",
    [
        operator(),
        operator(n_levels=1),
        randomise(MultipoleAttention.published(4, 2, **PUBLISHED)),
        randomise(MultipoleAttention.published(4, 1, sampling="avg_pool", **PUBLISHED)),
        randomise(MultipoleAttention.swin(4, 2, window=4, shift=1)),
        randomise(MultipoleAttention.swin(4, 1, window=3, n_levels=1)),
    ],
    ids=["operator", "one level", "published", "published, one head", "swin", "swin, one level"],
)
def test_every_parameter_gets_a_gradient_at_every_size(layer):
    """Data-parallel training waits for all of them: a level that is left out must give zeros, not None."""
    for shape in [*((n, n) for n in (1, 2, 3, 5, 8)), (1, 17), (17, 16)]:
        layer.zero_grad(set_to_none=True)
        out = layer(draw(1, 4, *shape))
        out.square().sum().backward()
        missing = [name for name, p in layer.named_parameters() if p.grad is None]
        assert not missing, f"{shape}: no gradient for {missing}"
        assert out.isfinite().all() and all(p.grad.isfinite().all() for p in layer.parameters())
    if layer.n_levels != 1:  # at the last, usual size all of them learn
        assert all((p.grad != 0).any() for p in layer.parameters())


@pytest.mark.parametrize(("n_levels", "seen"), [(1, range(2, 7)), (3, range(16)), (4, range(24))])
def test_a_point_sees_its_window_and_halo_and_with_levels_everything(n_levels, seen):
    """The window is 3 to 5, the halo one point."""
    layer, x = operator(n_dim=1, n_levels=n_levels), draw(1, 4, 24).requires_grad_()
    layer(x)[0, :, 5].square().sum().backward()
    assert (x.grad[0] != 0).any(0).nonzero().flatten().tolist() == list(seen)


def test_kept_windows_follow_the_parameters(monkeypatch):
    """A compiler finds them on the device; another type of the parameters, and copies, leave them alone."""
    layer = MultipoleAttention(4, 2, reference_shape=(8, 8))
    kept = layer.windows_of((8, 8))
    twin = copy.deepcopy(layer.type(torch.float16)).share_memory()
    layer.to("meta").to_empty(device="cpu")
    for windows in (layer.windows_of((8, 8)), twin.windows_of((8, 8))):
        assert windows is not kept
        for one, other in zip(windows.buffers(), kept.buffers(), strict=True):
            assert torch.equal(one, other) and one.dtype == other.dtype
    layer.to("meta")
    monkeypatch.setattr(Windows, "__init__", None)  # none can be built
    x = torch.empty(1, 4, 8, 8, device="meta", dtype=torch.float16)
    assert layer(x).shape == x.shape and twin.windows_of((8, 8))[0].queries.device.type == "cpu"


# Precision


@pytest.mark.parametrize("published", [False, True])
def test_precision_is_that_of_the_type(published):
    """Single precision is as good as its numbers; so is bfloat16, with 8 bits."""
    layer = (
        MultipoleAttention.published(8, 2, **PUBLISHED) if published else MultipoleAttention(8, 2, **SMALL)
    )
    x = draw(2, 8, 13, 10)
    exact = copy.deepcopy(layer).double()(x)
    single = layer(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x.float())
    assert (single - exact).norm() < 1e-6 * exact.norm()
    assert 1e-5 * exact.norm() < (half - exact).norm() < 2e-2 * exact.norm()


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_dim": 4}, "n_dim=4, expected 1, 2 or 3"),
        ({"rate": 1}, "rate=1, expected at least 2"),
        ({"style": Style(stride=5)}, "stride=5, expected at most window=3"),
        ({"n_levels": None}, "n_levels=None, but levels have parameters of their own"),
        ({"shift": 3}, "shift=3, expected less than window=3"),
        (
            {"shift": 1, "style": Style(stride=1)},
            "shift=1 with stride=1 and window=3: .* leave out one of the two",
        ),
        ({"registration": "edge"}, "registration='edge', expected 'node', 'node_both' or 'cell'"),
        ({"channels": 5}, "channels=5 is not divisible by n_heads=2: change one of them, or give the style"),
        ({"periodic": [True]}, r"periodic=\[True\] has 1 entries, expected 2"),
        ({"periodic": True, "registration": "node_both"}, "drop the last point, registration='node'"),
        (
            {"window": 2, "style": Style(stride=1), "reference_shape": (8, 8)},
            r"reference_shape=\(8, 8\) with stride=1 and window=2: windows of anchored levels lie side",
        ),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        MultipoleAttention(**({"channels": 4, "n_heads": 2} | SMALL | options))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 4, 8), (2, 4, 0, 8)])
def test_fields_of_another_shape_are_refused(shape):
    message = r"got an input of shape .* expected \(batch, channels=4, n_1, n_2\)"
    with pytest.raises(InputError, match=message):
        operator()(torch.zeros(shape, dtype=torch.float64))
