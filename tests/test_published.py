"""The layer and the model as published, written out from their description as loops over windows."""

from itertools import product

import pytest
import torch
from einops import rearrange
from test_multipole import assert_same, draw, gradients, randomise

from mano_op.errors import InputError
from mano_op.layers.multipole import MultipoleAttention
from mano_op.models.published import PublishedMANO

# The published layer, written from its description: every window is cut out, normalised, projected and
# attended to by itself, and added to the result. Where it ends outside the grid, it is what lies inside.


def layer_norm(norm, tokens):
    return torch.nn.functional.layer_norm(tokens, norm.weight.shape, norm.weight, norm.bias)


def published_attention(part, x, window, stride, n_heads, head_dim):
    total, held_by = torch.zeros_like(x), torch.zeros(x.shape[2:], dtype=x.dtype)
    starts = []
    for n in x.shape[2:]:
        width = min(window, n)
        starts.append([i for i in range(0, n, min(stride, width)) if i == 0 or i + width - stride < n])
    for i, j in product(*starts):
        box = (..., slice(i, i + window), slice(j, j + window))
        tokens = layer_norm(part.norm2, layer_norm(part.norm1, rearrange(x[box], "b c y x -> b (y x) c")))
        qkv = tokens @ part.qkv.weight.T
        q, k, v = rearrange(qkv, "b n (t h d) -> t b h n d", t=3, h=n_heads, d=head_dim)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        out = rearrange(weights @ v, "b h n d -> b n (h d)")
        if n_heads * head_dim != x.shape[1] or n_heads > 1:  # a single head of full width stays as it is
            out = out @ part.out.weight.T + part.out.bias
        total[box] += rearrange(out, "b (y x) c -> b c y x", y=x[box].shape[-2])
        held_by[box[1:]] += 1
    return total / held_by


def published_restriction(weight, x, rate):
    rows, columns = (-(-n // rate) for n in x.shape[2:])
    cells = []
    for i, j in product(range(rows), range(columns)):
        cell = x[..., rate * i : rate * (i + 1), rate * j : rate * (j + 1)]
        if weight is None:
            cells.append(cell.mean((2, 3)))
            continue
        cell = torch.cat([cell, *[cell.mean(2, keepdim=True)] * (rate - cell.shape[2])], 2)
        cell = torch.cat([cell, *[cell.mean(3, keepdim=True)] * (rate - cell.shape[3])], 3)
        cells.append(torch.einsum("bcyx,ocyx->bo", cell, weight))
    return rearrange(torch.stack(cells), "(y x) b o -> b o y x", y=rows)


def published_prolongation(weight, y, shape, rate):
    points = []
    for i, j in product(*map(range, shape)):
        value = y[..., i // rate, j // rate]
        points.append(value if weight is None else value @ weight[:, :, i % rate, j % rate])
    return rearrange(torch.stack(points), "(y x) b o -> b o y x", y=shape[0])


def published_layer(layer, x, *, window, stride, rate, n_levels, n_heads, head_dim):
    levels = [x]
    for _ in range(n_levels - 1):
        levels.append(published_restriction(getattr(layer.down[0], "weight", None), levels[-1], rate))
    (part,) = layer.attention
    near = [published_attention(part, field, window, stride, n_heads, head_dim) for field in levels]
    out = near[-1]
    for i in range(n_levels - 1):
        finer = near[-2 - i]
        coarser = published_prolongation(getattr(layer.up[0], "weight", None), out, finer.shape[2:], rate)
        out = finer + 1 / (i + 1) * coarser
    return out


@pytest.mark.parametrize("sampling", ["conv", "avg_pool"])
@pytest.mark.parametrize(
    ("shape", "window", "stride", "rate", "n_levels"),
    [
        ((8, 8), 2, 1, 2, 3),
        ((16, 8), 4, 2, 2, 3),
        ((9, 9), 2, 2, 3, 2),
        ((7, 5), 2, 1, 2, 2),  # from here on windows and cells are cut
        ((11, 6), 3, 2, 2, 2),
        ((10, 13), 4, 3, 3, 2),
        ((3, 2), 5, 4, 2, 1),
    ],
)
def test_published_layer_matches_its_description(shape, window, stride, rate, n_levels, sampling):
    """n_levels, floor(log_r n) of the shorter side, is what the layer must find by itself."""
    options = {"window": window, "stride": stride, "rate": rate}
    for n_heads, head_dim in ((2, 3), (1, 4)):
        heads = {"n_heads": n_heads, "head_dim": head_dim}
        layer = randomise(MultipoleAttention.published(4, sampling=sampling, **heads, **options))
        x = draw(2, 4, *shape, seed=5).requires_grad_()
        found, expected = layer(x), published_layer(layer, x, **options, **heads, n_levels=n_levels)
        assert_same(found, expected)
        if n_levels > 1:
            assert_same(gradients(layer, found, x), gradients(layer, expected, x))


@pytest.mark.parametrize("shape", [(12,), (7, 6), (4, 5, 3)])
def test_published_model_is_its_composition(shape):
    """Lift each point; attention and a GELU MLP, each added to what it takes in; a tanh projection."""
    model = randomise(
        PublishedMANO(
            3,
            2,
            hidden_channels=4,
            n_layers=2,
            n_heads=2,
            n_dim=len(shape),
            head_dim=3,
            window=3,
            stride=2,
            rate=3,
            n_levels=2,
            sampling="avg_pool",
            channel_mlp_expansion=1.5,
            projection_channel_ratio=2.0,
        )
    )
    x = draw(2, 3, *shape)
    z = model.lifting(x.movedim(1, -1))
    for block in model.blocks:
        z = z + block.attention(z.movedim(-1, 1)).movedim(1, -1)
        z = z + block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(block.mlp.norm(z))))
    expected = model.projection.fc2(model.projection.fc1(model.norm(z)).tanh()).movedim(-1, 1)
    assert_same(model(x), expected)
    assert torch.equal(model(x, y=draw(2, 2, *shape), name="sample 3"), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels=0, expected a whole number, at least 1"),
        ({"n_layers": 0}, "n_layers=0, expected a whole number, at least 1"),
        ({"stride": 9}, "stride=9, expected .* at most 2"),
        ({"n_heads": 3}, "channels=8 is not divisible by n_heads=3: change one of them, or give head_dim"),
        ({"sampling": "max_pool"}, "sampling='max_pool', expected one of stencil, conv, avg_pool"),
        ({"projection_channel_ratio": 0.01}, "=0.01 of 8 channels makes 0 hidden ones, .*: give 0.12 or"),
        ({"windows": 2}, "PublishedMANO has no option 'windows'.* did you mean 'window'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        PublishedMANO(**({"in_channels": 1, "out_channels": 1, "hidden_channels": 8, "window": 2} | options))
