"""Multipole attention in the place of a spectral convolution: the layer, its options, then its hosts.

How errors of an FNO with it grow from grid to grid is asserted in tutorial 5.
"""

import copy
import inspect
import pickle
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import assert_gradients, on_grid
from neuralop import models
from neuralop.layers.fno_block import FNOBlocks
from neuralop.layers.spectral_convolution import SpectralConv
from neuralop.models import CODANO, FNO, GINO, TFNO, UNO, UQNO
from neuralop.training import AdamW, load_training_state, save_training_state
from torch import nn
from torch.testing import assert_close

from mano_op import Grid, InputError, MultipoleAttention, MultipoleConv, fix_references
from mano_op.layers import convolution as module
from mano_op.layers.convolution import conv_with_options
from mano_op.layers.regrid import regrid

SMALL = {"n_heads": 2, "window": 2, "n_levels": 2}
EXACTLY = {"rtol": 0, "atol": 1e-12}


def layer(in_channels=4, out_channels=4, n_modes=(4, 4), seed=0, **options):
    """In double precision, every parameter random."""
    torch.manual_seed(seed)
    conv = MultipoleConv(in_channels, out_channels, n_modes, **(SMALL | options)).double()
    for parameter in conv.parameters():
        parameter.data += 0.4 * torch.randn_like(parameter)
    return conv


def random(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def mapped(linear, x):
    """A map of the channels."""
    out = torch.einsum("oi,bi...->bo...", linear.weight, x)
    return out + linear.bias.view(-1, *[1] * (x.ndim - 2))


# The layer.


@pytest.mark.parametrize(
    ("reference", "periodic", "others"),
    [
        ((9,), [True], [(9,), (18,), (5,), (23,)]),
        ((6, 7), [False, True], [(6, 7), (12, 14), (4, 9), (1, 7)]),
        ((4, 5, 3), [True, False, False], [(4, 5, 3), (8, 5, 6)]),
    ],
)
@pytest.mark.parametrize("registration", ["node", "cell"])
def test_layer_is_attention_between_maps_of_the_channels(reference, periodic, others, registration):
    """Anchored to the first grid of the training; there are no maps between equal channels."""
    n_dim, grids = len(reference), {"registration": registration, "periodic": periodic}
    conv = layer(3, 5, (4,) * n_dim, hidden_channels=4, **grids)
    conv(random(1, 3, *reference))
    conv.eval()
    attention = MultipoleAttention(4, n_dim=n_dim, **SMALL, **grids, reference_shape=reference).double()
    attention.load_state_dict(conv.attention.state_dict())
    for shape in others:
        x = random(2, 3, *shape)
        assert_close(conv(x), mapped(conv.projection, attention(mapped(conv.lifting, x))), **EXACTLY)
    equal = layer(n_modes=(4,) * n_dim, **grids)
    assert {name.split(".")[0] for name, _ in equal.named_parameters()} == {"attention"}
    x = random(2, 4, *reference)
    assert torch.equal(equal(x), equal.attention(x))


@pytest.mark.parametrize("factor", [0.5, [2, 0.5], 1.5])
def test_attention_comes_first_then_the_grid_then_the_channels(factor):
    """The map of the channels gives the same on either side of the resampling."""
    grids = {"registration": "cell", "periodic": [True, False]}
    conv, x = layer(4, 6, resolution_scaling_factor=factor, **grids), random(2, 4, 8, 9)
    factors = factor if isinstance(factor, list) else [factor] * 2
    scaled = tuple(round(n * r) for n, r in zip((8, 9), factors, strict=True))
    out = regrid(conv.attention(x), Grid.uniform((8, 9), **grids), Grid.uniform(scaled, **grids))
    assert_close(conv(x), mapped(conv.projection, out), **EXACTLY)


class PassOn(nn.Module):
    """In the place of the attention: the same options, the identity."""

    def __init__(self, attention):
        super().__init__()
        self.registration, self.periodic = attention.registration, attention.periodic

    def forward(self, x, reference_shape):
        return x


@pytest.mark.parametrize("registration", ["node", "node_both", "cell"])
@pytest.mark.parametrize(("shape", "output_shape"), [((9, 8), None), ((9, 12), (5, 7)), ((5, 8), (14, 11))])
def test_forward_and_transform_give_values_at_the_same_places(registration, shape, output_shape):
    """A field of the coordinates comes out as that field at the points of the output's grid, in both."""
    periodic = registration != "node_both"
    grids = {"registration": registration, "periodic": [False, periodic]}
    conv = layer(resolution_scaling_factor=0.5, **grids)
    conv.attention = PassOn(conv.attention)
    ends = 1 if registration == "node_both" else 0
    there = output_shape or tuple(round((n - ends) / 2) + ends for n in shape)

    def field(y, x):
        return (1 + y) * (np.cos(2 * np.pi * x) if periodic else 2 - x)

    x, expected = (on_grid(field, Grid.uniform(n, **grids)).expand(1, 4, *n) for n in (shape, there))
    for found in (
        conv(x, output_shape),
        conv.transform(x, output_shape),
        conv.transform(x[:, :1], output_shape),
    ):
        assert_close(found, expected[:, : found.shape[1]], **EXACTLY)


def test_halving_and_doubling_return_to_the_grid():
    """With both ends in, 17 points have 9 of them at twice the spacing, and not 8."""
    for registration, n in (("node", 16), ("cell", 16), ("node_both", 17)):
        half, double = (
            layer(registration=registration, resolution_scaling_factor=r, reference_shape=shape)
            for r, shape in ((0.5, (n, n)), ([2.0, 2.0], (n // 2 + n % 2,) * 2))
        )
        coarse = half(random(1, 4, n, n))
        assert coarse.shape[2:] == Grid.uniform((n, n), registration=registration).coarsen(2).shape
        assert double(coarse).shape == (1, 4, n, n)
        assert half(random(1, 4, 2, 2)).shape[2:] == ((2, 2) if registration == "node_both" else (1, 1))


@pytest.mark.parametrize(("reference", "shape"), [((8, 12), (11, 17)), ((8, 12), (4, 7)), ((9, 9), (18, 5))])
def test_a_coarser_output_is_made_on_the_reference(reference, shape):
    """Its volumes are lengths, those of the training on finer grids too."""
    grids = {"registration": "node", "periodic": [False, True]}
    conv = layer(reference_shape=reference, resolution_scaling_factor=0.5, **grids)

    def to(x, *shapes):
        for here, there in pairwise([Grid.uniform(n, **grids) for n in (x.shape[2:], *shapes)]):
            x = regrid(x, here, there)
        return x

    x = random(1, 4, *shape)
    coarse, target = (tuple(round(n / 2) for n in points) for points in (reference, shape))
    expected = to(x, reference, coarse, target)
    assert_close(conv.transform(x), expected, **EXACTLY)
    conv.attention = PassOn(conv.attention)
    assert_close(conv(x), expected, **EXACTLY)
    finer = (2 * shape[0], shape[1])  # an axis that is refined goes no such way
    assert_close(conv.transform(x, finer), to(x, finer), **EXACTLY)


def test_the_reference_is_the_first_grid_in_training_or_given():
    conv = layer()
    conv.eval()(random(1, 4, 5, 5))
    assert conv.reference_shape is None
    conv.train()(random(1, 4, 6, 7))
    other, given = layer(seed=1), layer(reference_shape=[6, 7])
    other.load_state_dict(conv.state_dict())
    x = random(1, 4, 12, 14)
    expected = conv.eval()(x)
    for same in (other.eval(), given):
        assert same.reference_shape == (6, 7) and torch.equal(same(x), expected)
    assert not torch.equal(
        expected, conv.attention(x)
    )  # whose levels would count the points of the finer grid
    assert MultipoleConv(4, 4, (4, 4), reference_shape=(32, 32)).attention.n_levels == 4


@pytest.mark.parametrize("n_dim", [1, 2, 3])
def test_every_parameter_has_its_gradient_at_every_size(n_dim):
    options = {"hidden_channels": 4, "n_levels": 3, "resolution_scaling_factor": 0.5}
    conv = layer(3, 5, (4,) * n_dim, **options, reference_shape=(8,) * n_dim)
    for n in (8, 11, 3, 1):
        conv.zero_grad(set_to_none=True)
        conv(x := random(2, 3, *[n] * n_dim)).square().sum().backward()
        assert [name for name, p in conv.named_parameters() if p.grad is None] == []
        assert_gradients(conv, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factorization": "cp"}, "factorization='cp' is for .* expected None or 'tucker', so leave"),
        ({"rank": 0.1}, "rank=0.1 is for a spectral .* use FNO in place of TFNO, .* smaller hidden_channels"),
        ({"decomposition_kwargs": {"init": 1}}, r"decomposition_kwargs=\{'init': 1\} is for a spectral"),
        ({"fno_block_precision": "half"}, "fno_block_precision='half' .* Instead: use torch.autocast"),
        ({"complex_data": True}, "complex_data=True .* the real and the imaginary part as two channels"),
        ({"max_n_modes": (8, 8)}, r"max_n_modes=\(8, 8\) .* Instead: what a point attends to is for window"),
        ({"n_modes": (4, 4, 4, 4)}, r"n_modes=\(4, 4, 4, 4\), expected 1 or 2 or 3 whole numbers"),
        ({"n_modes": (4, 0)}, r"n_modes\[1\]=0, expected a whole number, at least 1"),
        ({"resolution_scaling_factor": [2]}, r"resolution_scaling_factor=\[2\], .* for each of 2"),
        ({"resolution_scaling_factor": "2"}, "resolution_scaling_factor='2', expected a positive number"),
        ({"in_channels": 1}, "in_channels=1: attention normalises .* Give hidden_channels=8"),
        ({"hidden_channels": 1, "n_heads": 1}, "hidden_channels=1: attention normalises"),
        ({"in_channels": 6, "n_heads": 4}, "in_channels=6 is not divisible by n_heads=4: give an n_heads"),
        ({"hidden_channels": 9}, "hidden_channels=9 is not divisible by n_heads=2"),
        ({"reference_shape": [8]}, r"reference_shape=\[8\], expected 2 whole numbers"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        MultipoleConv(**({"in_channels": 4, "out_channels": 4, "n_modes": (4, 4), **SMALL} | options))


def test_inputs_that_cannot_be_used_are_refused():
    conv = layer()
    for shape in [(1, 3, 4, 4), (1, 4, 4), (1, 4, 0, 4)]:
        with pytest.raises(InputError, match=r"expected \(batch, in_channels=4, n_1, n_2\), each n at least"):
            conv(random(*shape))
    message = r"output_shape=\(.*\), expected 2 whole numbers, at least 1"
    for output_shape in [(4,), (4, 0), (4.0, 4), (True, 4)]:
        for method in (conv.forward, conv.transform):
            with pytest.raises(InputError, match=message):
                method(random(1, 4, 4, 4), output_shape)
    with pytest.raises(InputError, match="at least 2: the points"):
        layer(registration="node_both")(random(1, 4, 4, 4), (4, 1))


def test_low_modes_are_added_to_attention_without_norms():
    conv = layer(n_modes=(6, 3), far_field="modes", periodic=[True, False]).eval()
    x = random(2, 4, 9, 7)
    assert_close(conv(x), conv.attention(x) + conv.modes(x), **EXACTLY)
    assert conv.modes.n_modes == (3, 2) and not any(isinstance(m, nn.LayerNorm) for m in conv.modules())
    with pytest.raises(InputError, match=r"n_modes=\(4, 3\) of a layer that has weights of \[6, 3\]"):
        conv.n_modes = (4, 3)
    conv.n_modes = [6, 3]
    assert conv.n_modes == [6, 3]


@pytest.mark.parametrize("periodic", [True, False])
def test_outputs_with_low_modes_converge_at_second_order(periodic):
    options = {"far_field": "modes", "registration": "cell", "reference_shape": (9, 9)}
    conv, outputs = layer(periodic=periodic, **options).eval(), []
    for n in (45, 135, 405):
        x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        waves = [(2 * np.pi * x + i).cos()[:, None] * (2 * np.pi * x).sin() for i in range(4)]
        outputs.append(conv(torch.stack(waves)[None])[..., n // 18 :: n // 9, n // 18 :: n // 9])
    first, second = ((coarse - fine).norm() for coarse, fine in pairwise(outputs))
    assert second < first / 8


def test_modes_can_be_set_and_change_no_value():
    conv, x = layer(), random(1, 4, 6, 6)
    before = conv(x)
    conv.n_modes = (2, 3)
    assert conv.n_modes == [2, 3] and torch.equal(conv(x), before)
    with pytest.raises(InputError, match=r"n_modes=\[2\], expected 2 whole numbers: one for each dimension"):
        conv.n_modes = [2]
    line = layer(n_modes=5)
    line.n_modes = 7
    assert line.n_modes == [7] and line.n_dim == 1


# Its options, given ahead.


def test_options_given_ahead_are_those_of_the_constructor():
    grids = {"periodic": [True, False], "registration": "cell"}
    conv, x = MultipoleConv.with_options(**SMALL, **grids), torch.randn(1, 4, 9, 8)
    torch.manual_seed(3)
    made = conv(4, 6, (4, 4))
    torch.manual_seed(3)
    assert torch.equal(made(x), MultipoleConv(4, 6, (4, 4), **SMALL, **grids)(x))
    assert issubclass(conv, MultipoleConv) and not issubclass(conv, SpectralConv)
    assert repr(conv) == (
        "MultipoleConv.with_options(n_heads=2, window=2, n_levels=2, registration='cell', "
        "periodic=(True, False))"
    )
    assert inspect.signature(conv).parameters["n_heads"].default == 2
    assert str(made).startswith("MultipoleConv(\n  4, 6, ")
    later = conv.with_options(n_heads=4)(8, 8, (4, 4), window=3)  # later ones come before earlier ones
    finest = later.attention.windows_of((8, 8))[0]
    assert (later.attention.attention[0].n_heads, finest.axes[0].side) == (4, 3)


def test_equal_options_are_one_class():
    periodic = [True, False]
    conv = MultipoleConv.with_options(n_heads=2, periodic=periodic)
    periodic[1] = True  # the caller's list is not the class's
    assert conv(4, 4, (4, 4)).attention.periodic == (True, False)
    assert MultipoleConv.with_options(periodic=(True, False)).with_options(n_heads=2) is conv
    assert MultipoleConv.with_options(n_heads=4, periodic=[True, False]).with_options(n_heads=2) is conv
    assert conv.with_options() is conv and MultipoleConv.with_options() is MultipoleConv
    assert repr(MultipoleConv) == "<class 'mano_op.layers.convolution.MultipoleConv'>"
    others = [{"periodic": [True, False]}, {"n_heads": 2, "periodic": [1, 0]}, {"n_heads": 2}]
    assert conv not in [MultipoleConv.with_options(**options) for options in others]


def test_a_subclass_has_options_of_its_own():
    class Halved(MultipoleConv.with_options(n_heads=2)):
        def forward(self, x, output_shape=None):
            return super().forward(x, output_shape) / 2

    torch.manual_seed(0)
    halved = Halved.with_options(window=2)(4, 4, (4,))
    torch.manual_seed(0)
    whole, x = MultipoleConv(4, 4, (4,), n_heads=2, window=2), torch.randn(1, 4, 8)
    assert isinstance(halved, Halved) and torch.equal(halved(x), whole(x) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_head": 2}, "Conv has no option 'n_head'; it has n_heads, .*; did you mean 'n_heads'"),
        ({"n_heads": 2, "rank": 0.5}, "no option 'rank'; .* reference_shape: leave it out, or use one"),
    ],
)
def test_unknown_options_are_refused_at_once(options, message):
    with pytest.raises(InputError, match=message):
        MultipoleConv.with_options(**options)


def test_a_class_with_options_is_pickled_here_and_for_another_process(monkeypatch):
    """Another process has no such class yet, and makes it."""
    conv = MultipoleConv.with_options(**SMALL, periodic=[True, False])
    made, x = conv(4, 4, (4, 4)).eval(), torch.randn(1, 4, 6, 5)
    for protocol in (0, pickle.HIGHEST_PROTOCOL):
        for cls in (conv, MultipoleConv):
            assert pickle.loads(pickle.dumps(cls, protocol)) is cls and copy.deepcopy(cls) is cls
        twin = pickle.loads(pickle.dumps(made, protocol))
        assert type(twin) is conv and torch.equal(twin(x), made(x))
    content = pickle.dumps([conv, made])
    monkeypatch.setattr(module, "_SUBCLASSES", {})
    cls, twin = pickle.loads(content)
    assert cls is not conv and repr(cls) == repr(conv)
    assert type(twin) is cls and torch.equal(twin(x), made(x))


# Its hosts.


CONV = MultipoleConv.with_options(**SMALL)


class Host(nn.Module):
    """A model that takes a field, whatever the inner one takes."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


class TakesSeries(Host):
    """A recurrent model of a series of two equal fields, which are of one channel."""

    def forward(self, x):
        return self.model(x[:, None].expand(-1, 2, *x.shape[1:]))


class TakesPoints(Host):
    """A model of points, those of a grid; so is its latent grid."""

    def forward(self, x):
        at = torch.stack(torch.meshgrid(*[torch.arange(n) / n for n in x.shape[2:]], indexing="ij"), dim=-1)
        points = at.flatten(0, -2)[None]
        return self.model(points, at[None], points, x.flatten(2).mT).mT.reshape(x.shape)


ONE = {"in_channels": 1, "out_channels": 1}


def fno(conv=CONV, n_dim=2, seed=0, **options):
    torch.manual_seed(seed)
    options = {"hidden_channels": 4, "n_layers": 2} | options
    return FNO(n_modes=(4,) * n_dim, **ONE, conv_module=conv, **options)


def uno(conv=CONV, n_dim=2):
    shape = {"hidden_channels": 4, "lifting_channels": 8, "projection_channels": 8, "n_layers": 4}
    return UNO(
        **ONE, **shape, uno_out_channels=[4, 8, 8, 4], uno_n_modes=[[4] * n_dim] * 4,
        uno_scalings=[[scale] * n_dim for scale in (1.0, 0.5, 1.0, 2.0)], channel_mlp_skip="linear",
        operator_block=partial(FNOBlocks, conv_module=conv), integral_operator=conv,
    )  # fmt: skip


def codano(conv=CONV, n_dim=2, hidden_channels=4):
    shape = {"hidden_variable_codimension": 4, "lifting_channels": 8, "projection_channels": 8, "n_layers": 2}
    return CODANO(
        **shape, n_modes=[[4] * n_dim] * 2, per_layer_scaling_factors=[[1] * n_dim] * 2, n_heads=[2] * 2,
        attention_scaling_factors=[1, 0.5], domain_padding=None,
        conv_module=conv.with_options(hidden_channels=hidden_channels),
    )  # fmt: skip


def rno(conv=CONV, n_dim=2):
    options = {"n_modes": (4,) * n_dim, "hidden_channels": 4, "n_layers": 1}
    return TakesSeries(models.RNO(**ONE, **options, conv_module=conv))


def gino(conv=CONV, n_dim=2):
    kernels = {f"{side}_gno_channel_mlp_hidden_layers": [8] for side in ("in", "out")}
    radii = {"in_gno_radius": 0.4, "out_gno_radius": 0.4, "gno_coord_dim": n_dim}
    fno_options = {"fno_n_modes": (4,) * n_dim, "fno_hidden_channels": 4, "fno_n_layers": 2}
    options = {"gno_use_open3d": False, "gno_use_torch_scatter": False, "fno_conv_module": conv}
    return TakesPoints(GINO(**ONE, **kernels, **radii, **fno_options, **options))


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, MultipoleConv)]


def references(model):
    return [conv.reference_shape for conv in convolutions(model)]


@pytest.mark.parametrize(
    ("host", "n_dim", "count"),
    [
        (fno, 1, 2),
        (fno, 3, 2),
        (lambda conv, n_dim: fno(conv.with_options(far_field="modes"), n_dim), 2, 2),
        (uno, 2, 4),
        (codano, 2, 12),
        pytest.param(rno, 1, 6, marks=pytest.mark.skipif(not hasattr(models, "RNO"), reason="no RNO")),
        (gino, 2, 2),
    ],
)
def test_hosts_run_the_layer_at_any_size(host, n_dim, count):
    """Nothing spectral is left in them, and every parameter has a gradient."""
    model = host(CONV.with_options(periodic=[True, False, True][:n_dim]), n_dim)
    assert len(convolutions(model)) == count
    assert not any(isinstance(module, SpectralConv) for module in model.modules())
    for shape in [(8, 9, 6), (16, 18, 12), (7, 5, 4)]:
        model.zero_grad(set_to_none=True)
        x = torch.randn(2, 1, *shape[:n_dim])
        out = model(x)
        fix_references(model)
        assert out.shape == x.shape and out.isfinite().all()
        out.square().sum().backward()
        assert [n for c in convolutions(model) for n, p in c.named_parameters() if p.grad is None] == []


def test_layers_of_a_u_shape_have_references_of_their_own_and_train_on_several_grids_once_these_are_fixed():
    model, x = uno(), torch.randn(1, 1, 24, 32)
    with pytest.raises(InputError, match=r"fno_blocks\.0\.convs\.0 \(MultipoleConv\) has no reference yet"):
        fix_references(model)
    model(torch.randn(1, 1, 12, 16))
    with pytest.raises(InputError, match=r"a grid of \(24, 32\) in training mode after \(12, 16\)"):
        model(x)
    fix_references(model)
    in_training = model(x)
    assert references(model) == [(12, 16), (12, 16), (6, 8), (6, 8)]
    assert torch.equal(model.eval()(x), in_training)


def test_a_uqno_has_a_band_of_attention_about_a_solution_of_attention():
    base, x = fno(), torch.randn(2, 1, 8, 8)
    base(x)
    model = UQNO(base)
    assert len(convolutions(model)) == 4
    solution, band = model(x)
    assert torch.equal(solution, base.eval()(x)) and torch.equal(band, solution)  # a copy, before training
    band.square().sum().backward()
    assert all(p.grad is not None for c in convolutions(model.residual_model) for p in c.parameters())
    assert all(p.grad is None for p in base.parameters())
    assert torch.equal(pickle.loads(pickle.dumps(model))(x)[1], band)


def test_a_block_adds_its_skip_at_the_points_of_its_convolution():
    """A line through a block whose skip doubles the grid is that line, where the points of the output are."""
    options = {"resolution_scaling_factor": 2, "fno_skip": "identity", "use_channel_mlp": False}
    block = FNOBlocks(4, 4, (4,), conv_module=CONV.with_options(registration="cell"), **options).double()
    for parameter in block.convs.parameters():
        parameter.data.zero_()  # the attention's result is then 0
    grids = (Grid.uniform((n,), registration="cell") for n in (8, 16))
    x, y = (on_grid(lambda x: 1 + x, grid).expand(1, 4, -1) for grid in grids)
    assert_close(block(x), y, **EXACTLY)


def test_hosts_say_what_attention_does_not_have():
    with pytest.raises(InputError, match=r"rank=0\.1 is for a spectral .*use FNO in place of TFNO"):
        TFNO(n_modes=(4, 4), **ONE, hidden_channels=4, conv_module=CONV)
    with pytest.raises(InputError, match="in_channels=1: attention normalises"):
        codano(hidden_channels=None)
    model = fno()
    model.n_modes = (2, 2)
    assert [conv.n_modes for conv in convolutions(model)] == [[2, 2]] * 2


@pytest.mark.parametrize("conv", [MultipoleConv, MultipoleConv.with_options(n_heads=2, periodic=True)])
def test_checkpoints_copies_and_pickles_of_a_host_predict_the_same(conv, tmp_path):
    """neuraloperator pickles what a model is made of: its checkpoints come back, reference and all."""
    model, x = fno(conv), torch.randn(1, 1, 16, 16)
    model(torch.randn(1, 1, 8, 8))
    model.eval().save_checkpoint(tmp_path, "model")
    other = fno(conv, seed=1)
    other.load_state_dict(model.state_dict())
    twins = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        other,
        FNO.from_checkpoint(tmp_path, "model"),
    ]
    for twin in twins:
        assert torch.equal(twin.eval()(x), model(x))
        assert [(type(c), c.reference_shape) for c in convolutions(twin)] == [(conv, (8, 8))] * 2


def test_training_state_of_a_host_is_read_if_its_classes_are_trusted(tmp_path):
    """It is read without classes, an FNO's own neither, unless they are said to be safe."""
    model, x = fno(), torch.randn(1, 1, 16, 16)
    model(torch.randn(1, 1, 8, 8))
    save_training_state(tmp_path, "model", model, AdamW(model.parameters(), lr=1e-3), epoch=1)
    with pytest.raises(pickle.UnpicklingError):
        load_training_state(tmp_path, "model", fno(seed=1))
    with torch.serialization.safe_globals([MultipoleConv, conv_with_options, torch.nn.functional.gelu]):
        loaded, *_ = load_training_state(tmp_path, "model", fno(seed=1))
    assert torch.equal(loaded.eval()(x), model.eval()(x))
