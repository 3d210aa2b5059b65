"""ViT and Swin-V2 of transformers in our wrapper: parameters, logits of other implementations, refusals."""

import sys

import pytest
import torch
from swin_sources import DEEP, SMALL, swin_state
from torch import nn

from mano_op.cost import count_parameters
from mano_op.errors import InputError
from mano_op.registry import build_model
from mano_op.vision import baselines
from mano_op.vision.baselines import SwinClassifier, ViTClassifier

VIT = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "n_heads": 3}
SWIN = {"image_size": 32, "embed_dim": 8, "depths": (2, 2), "n_heads": (2, 4), "window": 4}
BOTH = pytest.mark.parametrize(("cls", "options"), [(ViTClassifier, VIT), (SwinClassifier, SWIN)])


def test_swin_preset_drops_paths_unless_told_otherwise():
    with torch.device("meta"):
        swin, other = SwinClassifier.tiny(), SwinClassifier.tiny(1, 10, drop_path=0.0)
    assert count_parameters(swin) == 28_347_154
    assert (swin.backbone.config.drop_path_rate, other.backbone.config.drop_path_rate) == (0.2, 0.0)
    assert other.head.out_features == 10


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_vit_logits_are_those_of_transformers_classifier(attention):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    model = ViTClassifier(2, 5, attention=attention, **VIT).eval()
    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 12, "intermediate_size": 48}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 3, "num_channels": 2, "num_labels": 5}
    reference = ViTForImageClassification(ViTConfig(**sizes, **layers, layer_norm_eps=1e-6)).eval()
    reference.vit.load_state_dict(model.backbone.state_dict())
    reference.classifier.load_state_dict(model.head.state_dict())
    for size in ((16, 16), (8, 24)):
        x = torch.randn(3, 2, *size)
        expected = reference(x, interpolate_pos_encoding=size != (16, 16)).logits
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [SMALL, DEEP], ids=["small", "deep"])
def test_swin_logits_are_those_of_transformers_classifier(config):
    source = swin_state("transformers", config)
    model = SwinClassifier(3, 10, **config)
    state = source.state.items()
    names = {name: name.replace("swinv2", "backbone").replace("classifier", "head") for name, _ in state}
    model.load_state_dict({names[name]: t for name, t in state})
    torch.testing.assert_close(model.eval()(source.images), source.logits_single, rtol=1e-5, atol=1e-5)


@BOTH
def test_saved_model_is_read_back(cls, options, tmp_path):
    model = cls(3, 5, **options).eval()
    model.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(again(x), model(x))
    assert {name.split(".")[0] for name, _ in again.named_parameters()} == {"backbone", "head"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@BOTH
def test_models_quantised_to_eight_bits_keep_a_digit(cls, options):
    model, x = cls(3, 5, **options).eval(), torch.randn(2, 3, 32, 32)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        out, expected = quantised(x), model(x)
    assert 0 < (out - expected).norm() < 0.1 * expected.norm()


def test_swin_starts_as_the_identity_and_drops_paths_linearly():
    model = SwinClassifier(3, 5, drop_path=0.3, **SWIN).eval()
    blocks = [block for stage in model.backbone.encoder.layers for block in stage.blocks]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    states = model.backbone(torch.randn(2, 3, 32, 32), output_hidden_states=True).hidden_states
    assert torch.equal(states[1], model.backbone.encoder.layers[0].downsample(states[0], (8, 8)))
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_transformers_is_not_imported_with_the_module():
    origins = [getattr(value, "__module__", None) or name for name, value in vars(baselines).items()]
    assert not [name for name in origins if name.startswith("transformers")]


@BOTH
def test_missing_transformers_is_named_with_its_remedy(cls, options, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"transformers is not installed: pip install 'mano_op\[vision\]'"):
        cls(3, 5, **options)


@pytest.mark.parametrize(
    ("arch", "options", "words"),
    [
        ("vit", {"image_size": (16, 16, 16)}, r"image_size=.*, expected a side or \(height, width\)"),
        ("vit", {"embed_dim": 13}, "multiple of n_heads"),
        ("vit", {"attention": "flash"}, "attention='flash', expected 'sdpa' or 'eager'"),
        ("vit", {"mlp_ratio": 0.01}, "hidden_channels=0"),
        ("vit", {"heads": 3}, "n_heads"),
        ("swin", {"depths": (2, 2, 2)}, "expected one for each of 3 stages"),
        ("swin", {"n_heads": (3, 4)}, "multiple of the number of attention heads"),
    ],
)
def test_unusable_options_are_refused(arch, options, words):
    base = {"in_channels": 3, "n_classes": 5, **(VIT if arch == "vit" else SWIN)}
    with pytest.raises(InputError, match=words):
        build_model(f"{arch}_classifier", base | options)


@pytest.mark.parametrize(
    ("image_size", "shape", "words"),
    [
        (16, (1, 3, 16, 18), "multiples of patch_size"),
        ((8, 24), (1, 3, 16, 24), "of image_size itself if it is not square"),
        (16, (1, 1, 16, 16), r"expected \(batch, in_channels=3"),
    ],
)
def test_vit_refuses_unsuitable_images(image_size, shape, words):
    with pytest.raises(InputError, match=words):
        ViTClassifier(3, 5, **VIT | {"image_size": image_size})(torch.zeros(shape))
