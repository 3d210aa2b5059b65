"""The network for images: against its formula, Swin's count of parameters, and what no size may change."""

import copy
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from helpers import rates

from mano_op import InputError
from mano_op.cost import count_parameters
from mano_op.layers.multipole import MultipoleAttention
from mano_op.layers.pyramid import Prolong
from mano_op.memory import peak_bytes_of
from mano_op.models.block import Mlp
from mano_op.registry import build_model
from mano_op.vision import MANOClassifier
from mano_op.vision.stages import PatchEmbedding, PatchMerging, SwinBlock

SMALL = {"image_size": 32, "embed_dim": 8, "depths": [2, 2], "n_heads": [1, 2], "window": 4, "patch_size": 2}


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomised(model, seed=0):
    """Random values for every parameter, those that start from zeros too, in double precision."""
    model = model.double()
    for i, parameter in enumerate(model.parameters()):
        parameter.data += 0.3 * draw(*parameter.shape, seed=seed + i)
    return model


def small(**options):
    return randomised(MANOClassifier(3, 5, **(SMALL | options)))


def plain(**options):
    return randomised(MANOClassifier.plain(1, 5, image_size=8, channels=8, n_layers=2, n_heads=2, **options))


def assert_same(found, expected, rtol=1e-10):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)


def normalised(x, norm):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias


def test_patch_embedding_matches_its_formula():
    patches, x = randomised(PatchEmbedding(2, 6, patch_size=3)), draw(2, 2, 6, 9)
    expected = normalised(patches.project(x).movedim(1, -1), patches.norm).movedim(-1, 1)
    assert_same(patches(x), expected)


def test_cut_patch_is_completed_with_means_of_its_lines():
    patches, x = randomised(PatchEmbedding(1, 6, patch_size=4)), draw(1, 1, 4, 6)
    filled = torch.cat([x, x[..., 4:].mean(-1, keepdim=True).expand(1, 1, 4, 2)], -1)
    assert_same(patches(x), patches(filled))


def test_patch_merging_matches_its_formula():
    merging, x = randomised(PatchMerging(3)), draw(2, 3, 4, 6)
    y = x.movedim(1, -1)
    four = torch.cat([y[:, 0::2, 0::2], y[:, 1::2, 0::2], y[:, 0::2, 1::2], y[:, 1::2, 1::2]], -1)
    expected = normalised(four @ merging.reduction.weight.T, merging.norm).movedim(-1, 1)
    assert_same(merging(x), expected)


def block(**options):
    attention = MultipoleAttention.swin(6, 2, window=4, shift=2)
    return randomised(SwinBlock(attention, Mlp(6, 12, 6, norm=False, non_linearity="gelu"), **options))


def test_swin_block_matches_its_formula():
    part, x = block(), draw(2, 6, 8, 5)
    y = x + normalised(part.attention(x).movedim(1, -1), part.norm1).movedim(-1, 1)
    hidden = F.gelu(y.movedim(1, -1) @ part.mlp.fc1.weight.T + part.mlp.fc1.bias)
    out = hidden @ part.mlp.fc2.weight.T + part.mlp.fc2.bias
    assert_same(part(x), y + normalised(out, part.norm2).movedim(-1, 1))


def test_stochastic_depth_skips_samples_and_keeps_the_mean():
    part, x = block(drop_path=0.25), draw(1, 6, 4, 4).expand(4000, 6, 4, 4)
    part.mlp, part.norm2 = torch.nn.Identity(), torch.nn.LayerNorm(6).double()
    torch.nn.init.zeros_(part.norm2.weight)  # the attention alone
    whole = part.eval()(x[:1]) - x[:1]
    torch.manual_seed(0)
    added = part.train()(x) - x
    left_out = added.abs().amax((1, 2, 3)) == 0
    assert abs(left_out.double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    assert_same(added[~left_out], (whole / 0.75).expand_as(added[~left_out]))


def test_classifier_matches_its_formula():
    model, x = small(n_levels=[2, 1]), draw(2, 3, 32, 16)
    y = model.patches(x)
    for part in model.stages[0]:
        y = part(y)
    z = model.merging[0](y)
    for part in model.stages[1]:
        z = part(z)
    z = normalised(z.movedim(1, -1), model.norm)
    first, second = model.forward_features(x)
    assert_same(first, y)
    assert_same(second, z.movedim(-1, 1))
    assert_same(model(x), z.mean((1, 2)) @ model.head.weight.T + model.head.bias)
    assert [first.shape[1], second.shape[1]] == list(model.feature_channels)
    assert [x.shape[2] // f.shape[2] for f in (first, second)] == list(model.feature_strides)
    starts = [
        [part.attention.windows_of((8, 8))[0].axes[0].start for part in stage] for stage in model.stages
    ]
    assert starts == [[0, -2], [0, -2]]  # windows of 4, of which every other block's are shifted by 2


def test_default_is_swin_v2_tiny_with_levels():
    with torch.device("meta"):
        single, default = MANOClassifier(n_levels=1), MANOClassifier()
    published = 28_347_154  # of timm's and transformers' Swin-V2-T
    assert published == count_parameters(single)
    levels = [[part.attention.n_levels for part in stage] for stage in default.stages]
    assert levels == [[4, 4], [3, 3], [2] * 6, [1, 1]]  # 64, 32, 16 and 8 points in windows of 8
    # Of a block a restriction and a prolongation of 2 x 2 taps, and a factor for each level but the first.
    more = sum(depth * 96 * 2**i * (8 + n - 1) for i, (depth, n) in enumerate(((2, 4), (2, 3), (6, 2))))
    assert count_parameters(default) == published + more


@pytest.mark.parametrize("options", [{}, {"blocks": "operator", "halo": 1, "shifted": False}], ids=str)
def test_logits_of_one_colour_are_equal_at_every_size(options):
    """No padding, nor the cut of a patch, window or level, has a part in anything."""
    model, colour = small(n_levels=[2, 2], **options), draw(1, 3, 1, 1)
    for part in model.modules():
        if isinstance(part, Prolong):  # otherwise it tells the points of a cell apart
            part.weight.data[...] = part.weight.data[..., :1, :1]
    expected = model(colour.expand(1, 3, 32, 32))
    for shape in [(7, 31), (33, 40), (19, 13), (64, 9)]:
        assert_same(model(colour.expand(1, 3, *shape)), expected)


@pytest.mark.parametrize("size", [(8, 8), (11, 13)])
@pytest.mark.parametrize("build", [small, plain], ids=["swin", "plain"])
def test_classifier_gradients_are_slopes_of_differences(build, size):
    """Along one random direction of the image and all parameters, of a step that few ReLUs notice."""
    torch.manual_seed(0)
    model = build()
    x, weights = draw(2, model.in_channels, *size).requires_grad_(), draw(2, 5, seed=1)
    tensors = [x, *model.parameters()]
    directions = [draw(*t.shape, seed=i) for i, t in enumerate(tensors)]
    grads = torch.autograd.grad((model(x) * weights).sum(), tensors)
    values = []
    with torch.no_grad():
        for step in (-1e-8, 2e-8):  # to both sides
            for t, direction in zip(tensors, directions, strict=True):
                t += step * direction
            values.append((model(x) * weights).sum().item())
    slope = sum((grad * direction).sum().item() for grad, direction in zip(grads, directions, strict=True))
    assert (values[1] - values[0]) / 2e-8 == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("build", [small, plain], ids=["swin", "plain"])
def test_every_parameter_has_a_gradient_at_every_size(build):
    model = build()
    for size in [(1, 1), (2, 3), (5, 9), (40, 33)]:
        model.zero_grad(set_to_none=True)
        model(draw(1, model.in_channels, *size)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()), size


def test_checkpointed_blocks_change_nothing_but_memory():
    kept = small(depths=[3, 2], drop_path=0.3).train()
    again = copy.deepcopy(kept)
    again.checkpointed = True
    x, grads = draw(2, 3, 64, 64), []
    for model in (kept, again):
        torch.manual_seed(5)
        grads.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
    for grad, expected in zip(*grads, strict=True):
        assert_same(grad, expected)
    less, more = (peak_bytes_of(lambda m=model: m(x).sum().backward()) for model in (again, kept))
    assert less < 0.7 * more


def test_levels_reach_beyond_windows():
    """What a corner of the image has to do with the first stage's features in the other corner."""
    far = []
    for n_levels in (1, None):
        model, x = small(depths=[1], n_heads=[1], n_levels=n_levels), draw(1, 3, 32, 32).requires_grad_()
        [field] = model.forward_features(x)
        (grad,) = torch.autograd.grad(field[0, :, 0, 0].sum(), x)
        far.append(grad[..., -8:, -8:].abs().max())
    assert far[0] == 0 < far[1]


def test_classifier_in_lower_precision_stays_near_its_logits():
    model, x = small(), draw(2, 3, 40, 31)
    for part in model.modules():
        if isinstance(part, MultipoleAttention):
            part.scale.data.clamp_(-1, 1)
    exact, single = model(x), copy.deepcopy(model).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = single(x.float())
    half = copy.deepcopy(model).bfloat16()(x.bfloat16())
    assert (single(x.float()) - exact).norm() < 1e-5 * exact.norm()
    assert 1e-5 * exact.norm() < (mixed - exact).norm() < 5e-2 * exact.norm()
    assert half.dtype == torch.bfloat16 and (half - exact).norm() < 0.3 * exact.norm()


def test_plain_classifier_matches_its_formula():
    """On its own grid: coordinates beside the image, the blocks of MANO, and the mean."""
    model, x = plain(), draw(2, 1, 8, 8)
    at = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    y = torch.cat([x, at[:, None].expand(2, 1, 8, 8), at.expand(2, 1, 8, 8)], 1)
    project = model.patches.project
    tokens = y.movedim(1, -1) @ project.weight.flatten(1).T + project.bias
    y = normalised(tokens, model.patches.norm).movedim(-1, 1)
    for part in model.stages[0]:
        y = y + part.attention(y)
        y = y + part.mlp(y)
    pooled = normalised(y.movedim(1, -1), model.norm).mean((1, 2))
    assert_same(model(x), pooled @ model.head.weight.T + model.head.bias)


def of_smooth_image(model, n):
    at = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    image = torch.sin(3 * at[:, None] + 1) * torch.cos(2 * at) + at
    with torch.no_grad():
        return model(image[None, None])


def test_plain_classifier_converges_under_refinement():
    model = plain()
    logits = [of_smooth_image(model, n) for n in (16, 32, 64, 128)]
    steps = [(fine - coarse).norm().item() for coarse, fine in pairwise(logits)]
    assert (rates(steps) > 1.7).all()


def test_plain_classifier_depends_on_every_pixel():
    model, x = plain(), draw(1, 1, 16, 16).requires_grad_()
    (grad,) = torch.autograd.grad(model(x).sum(), x)
    assert (grad != 0).all()


@pytest.mark.parametrize("size", [(16, 16), (13, 40), (16, 5), (3, 4)])
def test_tiles_change_nothing(size, monkeypatch):
    model, x = plain(), draw(3, 1, *size)
    at_once = model(x)
    monkeypatch.setattr("mano_op.vision.classifier._TILE", 3 * 50)
    with torch.no_grad():
        assert_same(model(x), at_once.detach())


def test_plain_features_average_to_the_heads_input():
    model, x = plain(), draw(2, 1, 16, 24)
    [field] = model.forward_features(x)
    assert field.shape == (2, 8, 16, 24)
    assert_same(model(x), field.mean((2, 3)) @ model.head.weight.T + model.head.bias)


def test_classifier_is_saved_loaded_and_registered(tmp_path):
    model, x = small().eval(), draw(1, 3, 24, 32)
    model.save_pretrained(tmp_path)
    again = MANOClassifier.from_pretrained(tmp_path)
    assert_same(again(x), model(x), rtol=1e-13)
    model.save_checkpoint(tmp_path, "small")
    again = MANOClassifier.from_checkpoint(tmp_path, "small")  # which is of single precision
    assert_same(again.double().eval()(x), copy.deepcopy(model).float().double()(x), rtol=1e-13)
    built = build_model("mano_classifier", {"in_channels": 3, "n_classes": 5, **SMALL})
    assert count_parameters(built) == count_parameters(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size=0, expected a side or .*, whole numbers from 1 to 16384"),
        ({"image_size": "8"}, "image_size='8', expected"),
        ({"depths": [2, 0]}, "depths=0, expected a whole number, at least 1"),
        ({"n_heads": [2]}, r"n_heads=\[2\], expected one for each of 2 stages"),
        ({"n_heads": [3, 2]}, "channels=8 is not divisible by n_heads=3"),
        ({"n_levels": [1, 1, 1]}, r"n_levels=\[1, 1, 1\], expected one for each of 2 stages"),
        ({"blocks": "vit"}, "blocks='vit', expected 'swin' or 'operator'"),
        ({"drop_path": 1.0}, r"drop_path=1\.0, expected a number of at least 0 and less than 1"),
        ({"drop_path": 0.1, "blocks": "operator"}, r"drop_path=0\.1 with blocks='operator', which have none"),
        ({"anchored": True}, "anchored=True with patch_size=2, 2 stages, .* use MANOClassifier.plain"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        MANOClassifier(**({"in_channels": 3, "n_classes": 5} | SMALL | options))


def test_unsuitable_images_are_refused():
    with pytest.raises(InputError, match=r"expected \(batch, in_channels=3, height, width\)"):
        small()(torch.zeros(1, 1, 8, 8, dtype=torch.float64))
