"""ViT and Swin-V2 beside plain references, the classes of other libraries, and costs counted by hand."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from neuralop.models.base_model import BaseModel
from swin_sources import DEEP, SMALL, TINY, swin_state
from test_multipole import assert_same, draw
from torch import nn

from mano_op.cost import count_flops, count_parameters
from mano_op.errors import InputError
from mano_op.memory import peak_bytes_of
from mano_op.registry import build_model
from mano_op.vision.baselines import SwinClassifier, ViTClassifier

VIT = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "n_heads": 3}
SWIN = {"image_size": 32, "embed_dim": 8, "depths": (2, 2), "n_heads": (2, 4), "window": 4}


def randomised(model):
    """In double precision, evaluated, with values that no initialisation has."""
    torch.manual_seed(1)
    for parameter in model.double().parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


# Parameters.


@pytest.mark.parametrize(
    ("c", "k", "n", "p", "d", "depth", "r"),
    [(3, 1000, 224, 16, 192, 12, 4.0), (1, 7, 24, 8, 20, 3, 1.5), (4, 2, 16, 4, 8, 1, 2.0)],
)
def test_parameters_of_vit_are_those_of_the_formula(c, k, n, p, d, depth, r):
    m = int(r * d)
    embedding = c * p * p * d + d + d + ((n // p) ** 2 + 1) * d  # patches, class token, positions
    attention = 4 * (d * d + d)  # queries, keys, values, output
    block = 2 * 2 * d + attention + (d * m + m) + (m * d + d)
    options = {"image_size": n, "patch_size": p, "embed_dim": d, "depth": depth, "mlp_ratio": r, "n_heads": 1}
    model = ViTClassifier(c, k, **options)
    assert count_parameters(model) == embedding + depth * block + 2 * d + d * k + k


@pytest.mark.parametrize(
    ("c", "k", "p", "e", "depths", "heads", "r"),
    [
        (3, 1000, 4, 96, (2, 2, 6, 2), (3, 6, 12, 24), 4.0),
        (1, 7, 2, 8, (1, 3), (1, 2), 1.5),
        (3, 10, 4, 16, (1, 1, 1), (2, 2, 4), 2.0),
    ],
)
def test_parameters_of_swin_are_those_of_the_formula(c, k, p, e, depths, heads, r):
    expected = c * p * p * e + e + 2 * e
    for stage, (depth, h) in enumerate(zip(depths, heads, strict=True)):
        d = e * 2**stage
        m = int(r * d)
        attention = 4 * d * d + 3 * d + h  # keys have no bias; a scale for each head
        positions = 2 * 512 + 512 + 512 * h
        expected += depth * (attention + positions + 2 * 2 * d + (d * m + m) + (m * d + d))
        expected += 4 * d * 2 * d + 2 * 2 * d if stage + 1 < len(depths) else 2 * d + d * k + k
    options = {"image_size": 64, "patch_size": p, "embed_dim": e, "depths": depths, "n_heads": heads}
    assert count_parameters(SwinClassifier(c, k, mlp_ratio=r, **options)) == expected


def test_the_presets_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        assert count_parameters(ViTClassifier.tiny()) == 5_717_416
        assert count_parameters(SwinClassifier.tiny()) == 28_347_154
        other = SwinClassifier.tiny(1, 10, drop_path=0.0)
    assert other.backbone.config.drop_path_rate == 0.0
    assert other.head.out_features == 10


# What they compute.


def plain_vit(model, x, *, positions=None, p=4, h=3):
    """The logits as the paper writes them, from the parameters of a model."""
    get = dict(model.backbone.named_parameters()).__getitem__

    def linear(name, z):
        return torch.einsum("...i,oi->...o", z, get(f"{name}.weight")) + get(f"{name}.bias")

    def norm(name, z):
        z = z - z.mean(-1, keepdim=True)
        z = z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return z * get(f"{name}.weight") + get(f"{name}.bias")

    patches = x.unflatten(2, (-1, p)).unflatten(4, (-1, p))  # batch, channel, row, in it, column, in it
    kernel = get("embeddings.patch_embeddings.projection.weight")
    z = torch.einsum("bcripj,dcij->brpd", patches, kernel).flatten(1, 2)
    z = z + get("embeddings.patch_embeddings.projection.bias")
    z = torch.cat([get("embeddings.cls_token").expand(len(x), -1, -1), z], 1)
    z = z + (get("embeddings.position_embeddings") if positions is None else positions)
    for i in range(len(model.backbone.layers)):
        at = f"layers.{i}"
        y = norm(f"{at}.layernorm_before", z)
        q, k, v = (
            linear(f"{at}.attention.{name}_proj", y).unflatten(-1, (h, -1)) for name in ("q", "k", "v")
        )
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
        found = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2)
        z = z + linear(f"{at}.attention.o_proj", found)
        y = linear(f"{at}.mlp.fc1", norm(f"{at}.layernorm_after", z))
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        z = z + linear(f"{at}.mlp.fc2", y)
    return norm("layernorm", z)[:, 0] @ model.head.weight.T + model.head.bias


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_vit_is_the_plain_transformer(attention):
    """Outputs, and gradients of the input and of every parameter."""
    model = randomised(ViTClassifier(2, 5, attention=attention, **VIT))
    x = draw(3, 2, 16, 16).requires_grad_()
    ours, plain = model(x), plain_vit(model, x)
    # transformers takes the softmax of written-out scores in single precision.
    close = {"rtol": 1e-10, "atol": 1e-10} if attention == "sdpa" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(ours, plain, **close)
    weights, parameters = draw(3, 5), [x, *model.parameters()]
    for found, expected in zip(
        torch.autograd.grad(ours, parameters, weights),
        torch.autograd.grad(plain, parameters, weights),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, **close)


def test_vit_in_single_precision_is_the_plain_transformer_too():
    torch.manual_seed(0)
    model = ViTClassifier(3, 5, **VIT).eval()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(x), plain_vit(model, x), rtol=1e-5, atol=1e-5)


def cubic(n, m):
    """Cubic convolution with a = -3/4 from n cells to m, both centred, the ends repeated."""
    matrix = np.zeros((m, n))
    for i in range(m):
        at = (i + 0.5) * n / m - 0.5
        for j in range(math.floor(at) - 1, math.floor(at) + 3):
            s, a = abs(at - j), -0.75
            near, far = ((a + 2) * s - (a + 3)) * s * s + 1, (((s - 5) * s + 8) * s - 4) * a
            matrix[i, min(max(j, 0), n - 1)] += near if s <= 1 else far
    return torch.from_numpy(matrix)


@pytest.mark.parametrize("size", [(16, 24), (32, 32), (8, 12), (32, 8), (4, 4)])
def test_vit_at_other_sizes_interpolates_its_positions(size):
    """The class token keeps its own. (32, 8) has as many patches as the model was built for."""
    model = randomised(ViTClassifier(2, 5, **VIT))
    x = draw(2, 2, *size)
    positions = model.backbone.embeddings.position_embeddings
    grid = positions[0, 1:].unflatten(0, (4, 4))
    rows, columns = (cubic(4, n // 4) for n in size)
    grid = torch.einsum("ri,cj,ijd->rcd", rows, columns, grid).flatten(0, 1)
    expected = plain_vit(model, x, positions=torch.cat([positions[0, :1], grid]))
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)


def test_vit_of_images_that_are_no_squares():
    model = randomised(ViTClassifier(2, 5, **VIT | {"image_size": (8, 24)}))
    x = draw(2, 2, 8, 24)
    assert_same(model(x), plain_vit(model, x))
    with pytest.raises(InputError, match="build the model with a square one"):
        model(draw(2, 2, 16, 24))


def of_timm(name, tensor):
    """Our names and tensors of one of timm's."""
    if name.startswith("head.fc"):
        return {name.replace("head.fc", "head"): tensor}
    for theirs, mine in (
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("patch_embed.norm", "embeddings.norm"),
        ("attn.cpb_mlp", "attention.self.continuous_position_bias_mlp"),
        ("attn.logit_scale", "attention.self.logit_scale"),
        ("attn.q_bias", "attention.self.query.bias"),
        ("attn.v_bias", "attention.self.value.bias"),
        ("attn.proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
    ):
        name = name.replace(theirs, mine)
    parts = name.split(".")
    if parts[0] == "layers":
        if parts[2] == "downsample":  # timm has it before the stage, transformers after the one before
            parts[1] = str(int(parts[1]) - 1)
        parts.insert(0, "encoder")
    elif parts[0] == "norm":
        parts[0] = "layernorm"
    name = "backbone." + ".".join(parts)
    if "attn.qkv" in name:
        thirds = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
        return {name.replace("attn.qkv", f"attention.self.{which}"): third for which, third in thirds}
    return {name: tensor}


def of_torchvision(name, tensor):
    """timm's names and tensors of one of torchvision's, whose keys' bias and tables are not used."""
    parts = name.split(".")
    if parts[-1].startswith("relative"):
        return {}
    if parts[0] == "head":
        return {f"head.fc.{parts[-1]}": tensor}
    if parts[0] == "features":
        index = int(parts[1])
        if index == 0:
            return {f"patch_embed.{'proj' if parts[2] == '0' else 'norm'}.{parts[-1]}": tensor}
        head = f"layers.{index // 2}"
        if index % 2 == 0:
            return {".".join([head, "downsample", *parts[2:]]): tensor}
        name = ".".join([head, "blocks", *parts[2:]]).replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")
        name = name.replace("cpb_mlp.fc1", "cpb_mlp.0")
        if name.endswith("qkv.bias"):
            q, _, v = tensor.chunk(3)
            return {name.replace("qkv.bias", "q_bias"): q, name.replace("qkv.bias", "v_bias"): v}
    return {name: tensor}


def of_transformers(name, tensor):
    return {name.replace("swinv2", "backbone").replace("classifier", "head"): tensor}


def renamed(state, *maps):
    for each in maps:
        state = {mine: t for name, tensor in state.items() for mine, t in each(name, tensor).items()}
    return state


def swin_of(layout, config):
    """A model with the weights of another class."""
    maps = {
        "timm": [of_timm],
        "torchvision": [of_torchvision, of_timm],
        "transformers": [of_transformers],
    }[layout]
    source = swin_state(layout, **config)
    options = {name: value for name, value in config.items() if name not in ("batch", "input_size")}
    model = SwinClassifier(3, options.pop("n_classes", 10), **options)
    model.load_state_dict(renamed(source.state, *maps))
    return model.eval(), source


@pytest.mark.parametrize(
    ("layout", "config"),
    [
        ("timm", SMALL),
        ("timm", DEEP),
        ("timm", TINY),
        ("torchvision", SMALL),
        ("torchvision", DEEP),
        # Images for which grids are completed to windows, on the second stage after they were to halves.
        ("torchvision", SMALL | {"image_size": 64, "input_size": (40, 56)}),
        ("torchvision", SMALL | {"image_size": 64, "input_size": (64, 44)}),
        ("transformers", SMALL),
    ],
)
def test_swin_with_the_weights_of_another_class_gives_its_logits(layout, config):
    model, source = swin_of(layout, config)
    single = model(source.images)
    torch.testing.assert_close(single, source.logits_single, rtol=1e-5, atol=1e-5)
    # The tables of offsets are of single precision.
    torch.testing.assert_close(model.double()(source.images.double()), source.logits, rtol=1e-6, atol=1e-6)


def test_swin_completes_images_to_patches_with_zeros():
    model = randomised(SwinClassifier(2, 5, **SWIN))
    x = draw(2, 2, 29, 31)
    assert_same(model(x), model(nn.functional.pad(x, (0, 1, 0, 3))))


# How they start.


def weights(model, *, ndim):
    return {name: p for name, p in model.named_parameters() if p.ndim >= ndim and "logit_scale" not in name}


@pytest.mark.parametrize("model", [ViTClassifier.tiny(), SwinClassifier.tiny()], ids=["ViT", "Swin"])
def test_weights_start_normal_with_the_papers_standard_deviation(model):
    """Of n draws it is known to 1 / sqrt(2n); five times that is allowed for, and the mean as well."""
    for name, p in weights(model, ndim=2).items():
        n = p.numel()
        assert abs(p.std().item() / 0.02 - 1) < 5 / math.sqrt(2 * n), name
        assert abs(p.mean().item() / 0.02) < 5 / math.sqrt(n), name
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name


def test_swin_starts_as_the_identity_in_each_block():
    torch.manual_seed(0)
    model = SwinClassifier(3, 5, **SWIN).eval()
    x = torch.randn(2, 3, 32, 32)
    states = model.backbone(x, output_hidden_states=True).hidden_states
    [first, second] = model.backbone.encoder.layers
    assert_same(states[1], first.downsample(states[0], (8, 8)))
    assert_same(states[2], states[1])
    for block in (*first.blocks, *second.blocks):
        torch.testing.assert_close(
            block.attention.self.logit_scale, torch.full_like(block.attention.self.logit_scale, math.log(10))
        )


def test_stochastic_depth_grows_from_block_to_block():
    model = SwinClassifier(3, 5, drop_path=0.3, **SWIN)
    blocks = [block for stage in model.backbone.encoder.layers for block in stage.blocks]
    found = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert found == pytest.approx([0.0, 0.1, 0.2, 0.3])


# The head, checkpoints, the registry.


@pytest.mark.parametrize(("cls", "options"), [(ViTClassifier, VIT), (SwinClassifier, SWIN)])
def test_the_head_is_apart_and_counted_once(cls, options):
    model = randomised(cls(3, 5, **options))
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names)) == len({id(p) for p in model.parameters()})
    assert {name for name in names if not name.startswith("backbone.")} == {"head.weight", "head.bias"}
    model.backbone.requires_grad_(False)
    x = draw(2, 3, options["image_size"], options["image_size"])
    logits = model(x)
    logits.sum().backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert_same(model.head.bias.grad, torch.full((5,), 2.0, dtype=torch.float64))
    # The logits are linear in it: halving halves them.
    with torch.no_grad():
        for p in model.head.parameters():
            p.mul_(0.5)
    assert_same(model(x), logits / 2)


@pytest.mark.parametrize(("cls", "options"), [(ViTClassifier, VIT), (SwinClassifier, SWIN)])
def test_a_saved_model_is_the_same(cls, options, tmp_path):
    torch.manual_seed(0)
    model = cls(3, 5, **options).eval()
    x = torch.randn(1, 3, 32, 32)
    model.save_pretrained(tmp_path / "shared")
    model.save_checkpoint(tmp_path, "model")
    for again in (
        cls.from_pretrained(tmp_path / "shared"),
        cls.from_checkpoint(tmp_path, "model").eval(),
    ):
        assert all(map(torch.equal, again.parameters(), model.parameters()))
        assert_same(again(x), model(x), rtol=1e-6)


@pytest.mark.parametrize(
    ("cls", "options", "name"), [(ViTClassifier, VIT, "depth"), (SwinClassifier, SWIN, "depths")]
)
def test_a_file_that_claims_a_million_blocks_is_refused_at_once(cls, options, name, tmp_path):
    cls(3, 5, **options).save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    del described["sha256"]
    described["options"][name] = 10**6 if name == "depth" else [2, 10**6]
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=f"option {name}=.*expected at most"):
        cls.from_pretrained(tmp_path)


def test_they_are_models_of_the_registry():
    assert BaseModel._models["vit_classifier"] is ViTClassifier
    assert BaseModel._models["swin_classifier"] is SwinClassifier
    model = build_model("swin_classifier", {"in_channels": 1, "n_classes": 2, **SWIN})
    assert isinstance(model, SwinClassifier)


def test_transformers_is_imported_when_a_model_is_built():
    code = "import mano_op.vision.baselines, sys; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Refused.


@pytest.mark.parametrize("cls", [ViTClassifier, SwinClassifier])
def test_without_transformers_the_way_to_it_is_told(cls, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'mano_op\[vision\]'"):
        cls(3, 5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 20, "patch_size": 8}, "give multiples"),
        ({"image_size": (16, 16, 16)}, r"image_size=.*, expected a side or \(height, width\)"),
        ({"image_size": 0}, "image_size=0"),
        ({"embed_dim": 13}, "multiple of n_heads"),
        ({"depth": 0}, "depth=0"),
        ({"attention": "flash"}, "'sdpa' or 'eager'"),
        ({"drop": 1.0}, "drop=1.0"),
        ({"attention_drop": -0.1}, "attention_drop=-0.1"),
        ({"mlp_ratio": 0.01}, "leaves no hidden one"),
        ({"mlp_ratio": math.inf}, "finite"),
        ({"heads": 3}, "n_heads"),
    ],
)
def test_vit_refuses_options(options, words):
    with pytest.raises(InputError, match=words):
        ViTClassifier(3, 5, **VIT | options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 4}, "no point left"),
        ({"depths": (2, 2, 2)}, "different lengths"),
        ({"depths": ()}, "for each stage"),
        ({"depths": 2}, "for each stage"),
        ({"depths": (2, 0)}, "depths=0"),
        ({"n_heads": (3, 4)}, "multiple of n_heads"),
        ({"n_heads": "24"}, "for each stage"),
        ({"window": 0}, "window=0"),
        ({"drop_path": True}, "drop_path=True"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
    ],
)
def test_swin_refuses_options(options, words):
    with pytest.raises(InputError, match=words):
        SwinClassifier(3, 5, **SWIN | options)


@pytest.mark.parametrize(("cls", "options"), [(ViTClassifier, VIT), (SwinClassifier, SWIN)])
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(3, 16, 16), "expected .batch, in_channels=3, height, width"),
        (torch.zeros(1, 1, 16, 16), "your data's in_channels"),
        (torch.zeros(1, 3, 0, 16), "at least 1"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "x.float"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.float64), "float32 parameters"),
    ],
)
def test_what_is_no_image_of_the_model_is_refused(cls, options, x, words):
    with pytest.raises(InputError, match=words):
        cls(3, 5, **options)(x)


def test_vit_refuses_images_that_patches_do_not_cover():
    with pytest.raises(InputError, match="multiples of it"):
        ViTClassifier(3, 5, **VIT)(torch.zeros(1, 3, 16, 18))


# Costs.


def vit_flops(n, p, *, c=3, k=5, d=12, depth=2, r=4):
    patches = (n // p) ** 2
    tokens = patches + 1
    block = tokens * (4 * d * d + 2 * d * r * d) + 2 * tokens**2 * d
    return 2 * (patches * c * p * p * d + depth * block + d * k)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("n", [16, 32])
def test_operations_of_vit_are_those_of_its_products(attention, n):
    model = ViTClassifier(3, 5, attention=attention, **VIT)
    assert count_flops(model, torch.zeros(1, 3, n, n)) == vit_flops(n, 4)


@pytest.mark.parametrize("n", [32, 64])
def test_operations_of_swin_are_those_of_its_products(n):
    """Linear in the points, but for the position MLPs, which know only of windows."""
    p, w, c, k, r = 4, 4, 3, 5, 4
    points, d = (n // p) ** 2, 8
    expected = points * c * p * p * d
    for stage, h in enumerate((2, 4)):
        block = points * (4 * d * d + 2 * d * r * d) + 2 * points * w * w * d
        expected += 2 * (block + (2 * w - 1) ** 2 * (2 * 512 + 512 * h))
        if stage == 0:
            points, d = points // 4, 2 * d
            expected += points * 2 * d * d  # from 4 times half as many channels
    expected += d * k
    model = SwinClassifier(c, k, **SWIN)
    assert count_flops(model, torch.zeros(1, c, n, n)) == 2 * expected


def step_bytes(model, n):
    x = torch.zeros(1, 3, n, n)

    def step():
        model.zero_grad()
        model(x).sum().backward()

    return peak_bytes_of(step)


@pytest.mark.parametrize("depth", [1, 3])
def test_memory_of_written_out_scores_is_one_field_of_them_a_block_and_two_on_the_way(depth):
    """Beside what the kernel takes, which fills less of the moment at which the scores are fullest."""
    n, heads = 128, 3
    options = VIT | {"depth": depth}
    eager, kernel = (step_bytes(ViTClassifier(3, 5, attention=a, **options), n) for a in ("eager", "sdpa"))
    scores = 4 * heads * ((n // 4) ** 2 + 1) ** 2
    assert eager - kernel == pytest.approx((depth + 2) * scores, abs=0.1 * scores)


def test_memory_of_vit_with_the_kernel_and_of_swin_grows_as_the_points():
    for model in (ViTClassifier(3, 5, **VIT), SwinClassifier(3, 5, **SWIN)):
        small, large = step_bytes(model, 64), step_bytes(model, 128)
        assert large < 4.1 * small
