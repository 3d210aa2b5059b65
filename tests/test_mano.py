"""MANO's parts, their composition, and what it refuses. Its checkpoints: `test_model`, `test_neuralop`."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_multipole import assert_same, draw, randomise

from mano_op.errors import InputError
from mano_op.layers.multipole import MultipoleAttention
from mano_op.memory import peak_bytes_of
from mano_op.models.block import Mlp, recomputed
from mano_op.models.mano import MANO

# Every option, none at its default, so that none of these tests depends on what the defaults are.
OPTIONS = {
    "hidden_channels": 6,
    "n_layers": 2,
    "n_heads": 3,
    "n_dim": 2,
    "reference_shape": None,
    "window": 3,
    "halo": 2,
    "n_levels": 2,
    "n_modes": 0,
    "norm": True,
    "residual": False,
    "channel_mlp_expansion": 1.5,
    "projection_channel_ratio": 3.0,
    "non_linearity": "silu",
    "positional_embedding": None,
    "boundary_values": None,
    "restriction": "average",
    "registration": "cell",
    "periodic": False,
}
ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh}


def build(cls=MANO, seed=0, **options):
    return randomise(cls(2, 3, **(OPTIONS | options)), seed)


# Values


@pytest.mark.parametrize(
    ("registration", "points"),
    [
        ("node", [0, 1 / 4, 2 / 4, 3 / 4]),
        ("node_both", [0, 1 / 3, 2 / 3, 1]),
        ("cell", [1 / 8, 3 / 8, 5 / 8, 7 / 8]),
    ],
)
def test_coordinates_are_the_points_and_of_periodic_axes_sine_and_cosine(registration, points):
    """In the axes' order, so that the two ends of a periodic axis are neighbours."""
    line = torch.tensor(points, dtype=torch.float64)
    model = build(positional_embedding="grid", registration=registration)
    assert_same(model.coordinates((4, 4)), torch.stack([line[:, None].expand(4, 4), line.expand(4, 4)]))
    if registration != "node_both":
        model = build(positional_embedding="grid", registration=registration, periodic=[False, True])
        y, sine, cosine = model.coordinates((4, 4))
        assert_same(y, line[:, None].expand(4, 4))
        assert_same(sine + 1j * cosine, (1j * torch.exp(-2j * np.pi * line)).expand(4, 4))


@pytest.mark.parametrize("non_linearity", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(7,), (2, 3, 2)])
def test_mlp_acts_on_each_point(shape, non_linearity):
    mlp, x = randomise(Mlp(3, 5, 2, norm=True, non_linearity=non_linearity)), draw(2, 3, *shape)
    out = mlp(x)
    for point in np.ndindex(*shape):
        value = x[(..., *point)]
        centred = value - value.mean(1, keepdim=True)
        normal = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        hidden = (normal * mlp.norm.weight + mlp.norm.bias) @ mlp.fc1.weight.T + mlp.fc1.bias
        expected = ACTIVATIONS[non_linearity](hidden) @ mlp.fc2.weight.T + mlp.fc2.bias
        assert_same(out[(..., *point)], expected)
    plain = Mlp(3, 5, 2, norm=False, non_linearity=non_linearity).double()
    assert_same(plain(x).movedim(1, -1), plain.fc2(ACTIVATIONS[non_linearity](plain.fc1(x.movedim(1, -1)))))


@pytest.mark.parametrize("positional_embedding", ["grid", None])
@pytest.mark.parametrize(
    ("shape", "periodic"), [((11,), [True]), ((6, 7), [False, True]), ((4, 5, 3), [False] * 3)]
)
def test_model_is_its_composition(shape, periodic, positional_embedding):
    model = build(n_dim=len(shape), periodic=periodic, positional_embedding=positional_embedding)
    x = draw(2, 2, *shape)
    coordinates = [model.coordinates(shape).expand(2, -1, *shape)] if positional_embedding else []
    z = torch.cat([x, *coordinates], 1).movedim(1, -1)
    z = z @ model.lifting.weight.T + model.lifting.bias
    grid = {"n_dim": len(shape), "registration": "cell", "periodic": periodic}
    for block in model.blocks:
        layer = MultipoleAttention(6, 3, window=3, halo=2, n_levels=2, **grid).double()
        layer.load_state_dict(block.attention.state_dict())
        z = z + layer(z.movedim(-1, 1)).movedim(1, -1)
        z = z + block.mlp.fc2(F.silu(block.mlp.fc1(block.mlp.norm(z))))
    z = F.layer_norm(z, [6], model.norm.weight, model.norm.bias)
    expected = model.projection.fc2(F.silu(model.projection.fc1(z))).movedim(-1, 1)
    assert_same(model(x), expected)
    widths = model.blocks[0].mlp.fc1.out_features, model.projection.fc1.out_features
    assert widths == (9, 18) and len(model.blocks) == 2


def test_other_entries_of_a_sample_are_not_used():
    model, x = build(), draw(1, 2, 6, 5)
    assert torch.equal(model(x=x, y=draw(1, 3, 6, 5), resolution=32, name="fields.zarr"), model(x))


# Precision


def test_autocast_chooses_the_precision():
    model, x = build(), draw(1, 2, 9, 6)
    exact = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [model.float()(x.float()), model(x.bfloat16())]  # also after a layer that made them so
    for out in found:
        assert out.dtype == torch.bfloat16
        assert (out - exact).norm() < 3e-2 * exact.norm()


def test_half_precision_needs_no_scaling_of_the_loss():
    """Outputs and gradients in float16 are those in float32, to its eleven bits; none vanishes."""
    model, x = build().float(), 10 * draw(2, 2, 16, 16).float()
    found = {}
    for enabled in (False, True):
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            out = model(x)
        gradients = torch.autograd.grad(out.float().square().mean(), list(model.parameters()))
        found[enabled] = out.detach().float(), torch.cat([gradient.flatten() for gradient in gradients])
    for exact, half in zip(found[False], found[True], strict=True):
        assert half.isfinite().all()
        assert (half - exact).norm() < 0.01 * exact.norm()


# What is refused; of options of another kind see `test_fuzz`


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_dim": 4}, "n_dim=4, expected 1, 2 or 3"),
        ({"channel_mlp_expansion": 0.01}, "=0.01 of 6 channels makes 0 hidden ones, .*: give 0.17 or more"),
        ({"channel_mlp_expansion": "2"}, "channel_mlp_expansion='2', expected a finite number, more than 0"),
        ({"periodic": [0, 1]}, r"periodic=\[0, 1\], expected True or False, or one of them for each axis"),
        ({"non_linearity": "gleu"}, "non_linearity='gleu', expected 'gelu', 'relu', 'silu' or 'tanh'"),
        ({"non_linearity": F.gelu}, "non_linearity=.* is of type .*, expected a bool, int, float, str, None"),
        ({"hidden_channels": np.int64(6)}, r"hidden_channels=.*6.* is of type int64, expected .* convert it"),
        ({"periodic": [True, np.bool_(True)]}, "periodic=.* is of type list, expected"),
        ({"positional_embedding": "sine"}, "positional_embedding='sine', expected 'grid' or None"),
        ({"registration": "nodes"}, "registration='nodes', expected 'node', 'node_both' or 'cell'"),
        ({"waves": 8}, "MANO has no option 'waves'; it has in_channels, .*, periodic, .*: "),
        ({"hidden_chanels": 8}, "has no option 'hidden_chanels'.* did you mean 'hidden_channels'?"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        MANO(**({"in_channels": 2, "out_channels": 3} | OPTIONS | options))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(1, 3, 6, 6),
            r"MANO got an input of shape \(1, 3, 6, 6\), expected .*in_channels=2, n_1",
        ),
        (torch.zeros(1, 2, 6), r"shape \(1, 2, 6\), expected .* n_2\), each n at least 1: reshape it, or"),
        (torch.zeros(1, 2, 0, 6), r"shape \(1, 2, 0, 6\), expected .* each n at least 1"),
        (torch.zeros(1, 2, 6, 6, dtype=torch.long), r"got torch.int64 input, .* use x.float\(\)"),
        (
            torch.zeros(1, 2, 6, 6).double(),
            r"float64 input and has torch.float32 .*: use x.to\(torch.float32",
        ),
    ],
)
def test_inputs_that_cannot_be_used_are_refused(x, message):
    with pytest.raises(InputError, match=message):
        build().float()(x)


def test_a_recomputed_block_has_equal_gradients_in_less_memory():
    block, grads, peaks = MANO(1, 1, hidden_channels=32, n_layers=1, n_modes=0, norm=True).blocks[0], [], []
    x = torch.randn(1, 32, 64, 64, requires_grad=True)
    for run in (block, lambda x: recomputed(block, x, most=0)):
        out = run(x)
        grads.append(torch.autograd.grad(out.square().sum(), [x, *block.parameters()]))
        peaks.append(peak_bytes_of(lambda run=run: run(run(x)).sum().backward()))
    assert all(torch.equal(kept, again) for kept, again in zip(*grads, strict=True))
    assert peaks[1] < 0.6 * peaks[0]
