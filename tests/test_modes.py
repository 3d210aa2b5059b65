"""Mixing of channels at low wavenumbers, and models whose blocks take turns with attention."""

import math
from itertools import pairwise

import pytest
import torch
from test_multipole import assert_same, draw

from mano_op.errors import InputError
from mano_op.grid import Axis
from mano_op.layers.modes import LowModes
from mano_op.layers.refinement import FineAxis
from mano_op.models.mano import MANO


def modes_of(periodic, *, registration="node", channels=3, n_modes=3):
    torch.manual_seed(0)
    layer = LowModes(channels, n_modes, n_dim=len(periodic), registration=registration, periodic=periodic)
    return layer.double()


def coordinates(n, registration):
    first, ends = 0.5 * (registration == "cell"), int(registration == "node_both")
    return (torch.arange(n).double() + first) / (n - ends)


@pytest.mark.parametrize("shape", [(8,), (7, 9), (5, 6, 8)])
def test_periodic_modes_are_a_product_with_the_fourier_transform(shape):
    layer, d = modes_of([True] * len(shape)), len(shape)
    x, dims = draw(2, 3, *shape), tuple(range(2, 2 + len(shape)))
    spectrum, out = torch.fft.fftn(x, dim=dims), torch.zeros(2, 3, *shape, dtype=torch.complex128)
    real, imaginary = layer.weight.detach()
    for place in torch.cartesian_prod(*[torch.arange(n) for n in real.shape[:d]]).reshape(-1, d):
        k = [int(i) - (2 if axis < d - 1 else 0) for axis, i in enumerate(place)]
        weight = torch.complex(real, imaginary)[tuple(place)]
        at = (..., *[wave % n for wave, n in zip(k, shape, strict=True)])
        out[at] += torch.einsum("bi,io->bo", spectrum[at], weight) * (2 if k[-1] else 1)
    assert_same(layer(x), torch.fft.ifftn(out, dim=dims).real)


@pytest.mark.parametrize("registration", ["cell", "node_both"])
def test_cosines_between_walls_keep_low_wavenumbers_and_drop_high_ones(registration):
    layer = modes_of([False, False], registration=registration)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(3).expand_as(layer.weight))
    x, y = coordinates(12, registration), coordinates(9, registration)
    for k, passes in ((0, 1.0), (3, 1.0), (4, 1.0), (5, 0.0), (7, 0.0)):
        field = ((math.pi * k * x).cos()[:, None] * (math.pi * y).cos()).expand(1, 3, 12, 9)
        assert_same(layer(field), passes * field)


@pytest.mark.parametrize("periodic", [True, False])
def test_modes_are_those_of_the_domain_on_every_grid(periodic):
    layer = modes_of([periodic], registration="cell")
    on_grids = []
    for n in (8, 24):
        x = coordinates(n, "cell")
        wave = (2 * math.pi * x + 0.3).cos() if periodic else (3 * math.pi * x).cos()
        on_grids.append(layer(torch.stack([wave, wave**0, 2 * wave])[None]))
    assert_same(on_grids[1][..., 1::3], on_grids[0])


def test_a_grid_of_few_points_takes_the_weights_of_its_own_wavenumbers():
    layer, few = modes_of([True, True]), modes_of([True, True], n_modes=2)
    with torch.no_grad():
        few.weight.copy_(layer.weight[:, 1:4, :2])
    x = draw(1, 3, 3, 4)
    assert_same(layer(x), few(x))


@pytest.mark.parametrize(
    ("registration", "periodic"), [("node", False), ("node", True), ("node_both", False), ("cell", True)]
)
def test_volumes_of_points_are_those_of_the_axis(registration, periodic):
    axis = Axis("x", 7, 0.0, 2.0, registration=registration, periodic=periodic)
    expected = torch.from_numpy(axis.bounds[:, 1] - axis.bounds[:, 0]) / axis.length
    assert_same(FineAxis(axis, 7).volumes(), expected)


def test_modes_commute_with_translations_of_a_periodic_axis():
    layer, x = modes_of([True, False]), draw(2, 3, 10, 6)
    assert_same(layer(x.roll(3, 2)), layer(x).roll(3, 2))


def test_gradients_of_modes_match_differences():
    layer, x = modes_of([True, False], n_modes=2), draw(1, 3, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, weight: torch.func.functional_call(layer, {"weight": weight}, x), (x, layer.weight)
    )


def mixed(**options):
    torch.manual_seed(1)
    options = {"n_modes": 3, "norm": False, "n_levels": 1, "reference_shape": (8, 8)} | options
    return MANO(1, 1, hidden_channels=8, n_heads=2, n_layers=3, **options).double()


@pytest.mark.parametrize("periodic", [True, False])
def test_outputs_converge_at_second_order_as_the_grid_is_refined(periodic):
    model, outputs = mixed(periodic=periodic).eval(), []
    for n in (32, 64, 128):
        x = coordinates(n, "node")
        field = (2 * math.pi * x).sin()[:, None] * (2 * math.pi * x + 0.4).cos()
        outputs.append(model(field[None, None])[..., :: n // 8, :: n // 8])
    first, second = ((coarse - fine).norm() for coarse, fine in pairwise(outputs))
    assert second < first / 3.5


def test_parts_of_a_finer_grid_equal_the_whole(monkeypatch):
    model, x = mixed().eval(), draw(2, 1, 19, 24)
    monkeypatch.setattr("mano_op.models.mano._TILE", 50)
    with torch.no_grad():
        in_parts = model(x)
    assert_same(in_parts, model(x))


def test_compiled_models_with_modes_are_one_graph_with_equal_values():
    model, x = mixed().float(), torch.randn(2, 1, 8, 8)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    out, expected = compiled(x), model(x)
    assert torch.allclose(out, expected, atol=1e-6)
    grads = [torch.autograd.grad(y.square().sum(), list(model.parameters())) for y in (out, expected)]
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(*grads, strict=True))


def test_every_parameter_of_a_model_without_norms_learns():
    model = mixed()
    model(draw(2, 1, 8, 8)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters() if parameter.numel())
    assert not any(isinstance(module, torch.nn.LayerNorm) for module in model.modules())


@pytest.mark.parametrize("shape", [(8, 8), (20, 16), (4, 6)])
def test_a_residual_model_adds_the_input_as_it_is(shape):
    torch.manual_seed(2)
    options = {"hidden_channels": 8, "n_heads": 2, "n_layers": 1, "reference_shape": (8, 8)}
    plain, residual = MANO(3, 2, **options).eval(), MANO(3, 2, residual=True, **options).eval()
    residual.load_state_dict({key: t for key, t in plain.state_dict().items() if key != "_metadata"})
    x = torch.randn(2, 3, *shape)
    assert torch.equal(residual(x), plain(x) + x[:, :2])


@pytest.mark.parametrize(
    "options",
    [{"in_channels": 1, "out_channels": 2}, {"in_channels": 1, "out_channels": 1, "boundary_values": [0.0]}],
)
def test_a_residual_without_its_input_or_beside_known_values_is_refused(options):
    with pytest.raises(InputError, match="residual=True with in_channels=1"):
        MANO(residual=True, **options)
