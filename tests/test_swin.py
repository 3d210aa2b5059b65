"""Start of a MANO from Swin-V2's weights in each published layout: logits, features, gradients, refusals."""

import copy

import pytest
import torch
from swin_sources import CUT, DEEP, ENLARGED, LAYOUTS, SMALL, TINY, randomise, swin_state

from mano_op import InputError, MultipoleAttention
from mano_op.vision import MANOClassifier, SwinClassifier
from mano_op.vision.swin import from_swin_v2
from mano_op.weights import write_weights


def started(layout, config=SMALL, **options):
    source = swin_state(layout, config)
    window = None if layout == "torchvision" else config["window"]
    sizes = {"pretrained_window": config.get("pretrained_window", 0), "image_size": config["image_size"]}
    return source, from_swin_v2(source.state, window=window, **sizes | options).double().eval()


def start(weights, window=4, pretrained_window=0, **options):
    return from_swin_v2(weights, window=window, pretrained_window=pretrained_window, **options)


def assert_starts_as(source, model):
    """Compare logits and features; Swin's tables of offsets are of single precision."""
    with torch.no_grad():
        images = source.images.double()
        torch.testing.assert_close(model(images), source.logits, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.forward_features(images)[-1], source.features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_levels", [1, None, 2])
@pytest.mark.parametrize("config", [SMALL, DEEP], ids=["small", "deep"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_start_has_swins_logits_and_features(layout, config, n_levels):
    assert_starts_as(*started(layout, config, n_levels=n_levels))


def test_start_has_swins_logits_at_published_windows():
    assert_starts_as(*started("transformers", TINY))


def of_layers(model):
    return [module for module in model.modules() if isinstance(module, MultipoleAttention)]


def test_coarser_levels_start_at_zero_and_learn():
    _, model = started("transformers", DEEP)
    images = torch.randn(2, 3, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = model(images)
    model.train()(images).square().sum().backward()
    assert [layer.n_levels for layer in of_layers(model)] == [4, 4, 3, 2, 2, 1]
    for layer in of_layers(model)[:-1]:
        assert (layer.scale[0] == 0).all() and (layer.scale.grad[0] != 0).all()
        # What is multiplied by nothing learns nothing, until after the first step.
        assert (layer.scale.grad[1:] == 0).all() and (layer.down[0].weight.grad == 0).all()
        layer.scale.data -= 1e-2 * layer.scale.grad.sign()
    model.zero_grad()
    after = model(images)
    assert (after - before).norm() > 1e-4 * before.norm()
    after.square().sum().backward()
    for layer in of_layers(model)[:-1]:
        assert (layer.scale.grad != 0).all() and (layer.down[0].weight.grad != 0).all()


def equal(one, other):
    theirs = other.state_dict()
    return all(torch.equal(t, theirs[name]) for name, t in one.state_dict().items() if name != "_metadata")


@pytest.mark.parametrize("prefix", ["module.", "model.backbone."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_prefixes_of_names_are_removed(layout, prefix):
    source, _ = started(layout)
    state = {prefix + name: t for name, t in source.state.items()}
    assert equal(start(state), start(source.state))


def test_layout_of_the_authors_is_read():
    """timm's, but that a stage's merging stands at its end."""
    source, _ = started("timm", DEEP)

    def earlier(name):
        stage = name.split(".")[1]
        return name.replace(f"layers.{stage}.", f"layers.{int(stage) - 1}.") if "downsample" in name else name

    state = {earlier(name).replace("head.fc.", "head."): t for name, t in source.state.items()}
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(1)
    assert equal(start(state), start(source.state))


def test_weights_are_read_from_files(tmp_path):
    source, _ = started("timm")
    expected = start(source.state)
    write_weights(tmp_path / "swin.safetensors", source.state)
    torch.save({"model": source.state}, tmp_path / "swin.pth")
    for name in ("swin.safetensors", "swin.pth"):
        assert equal(start(tmp_path / name), expected)


def test_other_numbers_of_classes_get_a_new_head():
    source, _ = started("timm")
    torch.manual_seed(0)
    model = start(source.state, n_classes=7)
    assert model.head.weight.shape == (7, 32) and model.head.weight.std() < 0.03
    assert torch.equal(start(source.state, n_classes=10).head.weight, source.state["head.fc.weight"])
    backbone = {name: t for name, t in source.state.items() if not name.startswith("head.")}
    headless = start(backbone, n_classes=7)
    images = source.images
    assert torch.equal(headless.forward_features(images)[-1], model.forward_features(images)[-1])
    with pytest.raises(InputError, match=r"head.weight has the shape None, expected 2 axes: give n_classes"):
        start(backbone)


def test_given_weights_stay_unchanged():
    source, _ = started("torchvision")
    before = copy.deepcopy(source.state)
    model = from_swin_v2(source.state)
    model.head.weight.data.zero_()
    assert all(torch.equal(t, before[name]) for name, t in source.state.items())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layers.0.blocks.0.attn.q_bias", None, "q_bias is missing, expected real 16"),
        ("patch_embed.norm.bias", None, "patches.norm.bias is missing, expected real 16"),
        ("layers.0.blocks.0.attn.logit_scale", None, "0.0.*logit_scale has the shape None, expected 1"),
        ("layers.0.blocks.0.mlp.fc1.weight", torch.zeros(3, 0), r"mlp.fc1.weight has the shape \(3, 0\)"),
        ("head.fc.weight", torch.tensor(1.0), r"head.weight has the shape \(\), expected 2"),
        ("norm.weight", torch.ones(3), "norm.weight is real 3, expected real 32: give all weights of one"),
        ("absolute_pos_embed", torch.ones(3), "absolute_pos_embed is real 3, expected missing"),
        ("epoch", 3, "epoch is of int, expected a tensor of floating numbers: give the state dict"),
        ("norm.weight", torch.ones(32).long(), "norm.weight is of torch.int64 on cpu"),
        ("norm.weight", torch.ones(32, device="meta"), "norm.weight is of .* on meta"),
    ],
)
def test_unsuitable_weights_are_refused(name, value, message):
    state = {**started("timm")[0].state, name: value}
    with pytest.raises(InputError, match=message):
        start({key: t for key, t in state.items() if t is not None})


def test_start_takes_the_weights_of_the_registrys_swin():
    swin = SwinClassifier(3, 5, image_size=32, embed_dim=16, depths=[2, 2], n_heads=[2, 4], window=4)
    randomise(swin)
    model, images = from_swin_v2(swin.state_dict(), image_size=32), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(images), swin.eval()(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="window=9, but these weights are of windows of 4: leave it out"):
        from_swin_v2(swin.state_dict(), window=9, pretrained_window=0)


def test_other_state_dicts_are_refused():
    with pytest.raises(InputError, match=r"weights=Linear\(.*\), expected a valid dictionary or"):
        start(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match=r"a state dict with bias, weight, \.\.\. is in no known layout"):
        from_swin_v2({"weight": torch.zeros(1), "bias": torch.zeros(1)}, window=8, pretrained_window=0)


def test_windows_come_from_tables_or_arguments():
    source, _ = started("timm")
    with pytest.raises(InputError, match=r"window=None, .*do not say their windows: .* window=8"):
        from_swin_v2(source.state)
    source, _ = started("torchvision")
    with pytest.raises(InputError, match="window=8, but these weights are of windows of 4"):
        from_swin_v2(source.state, window=8, pretrained_window=0)
    name = "features.1.0.attn.relative_coords_table"
    for table in (torch.zeros(3), torch.zeros(1, 0, 0, 2), 1.03 * source.state[name]):
        with pytest.raises(InputError, match=r"relative_coords_table of shape .* as no window of a Swin-V2"):
            from_swin_v2({**source.state, name: table})
    for key, table in ((name, "code"), ("more.relative_coords_table", source.state[name])):
        weights = {**started("timm")[0].state, key: table}
        with pytest.raises(InputError, match=r"window=None, .*do not say their windows"):
            from_swin_v2(weights)


@pytest.mark.parametrize("config", [CUT, *ENLARGED], ids=["cut", "all stages", "one stage"])
@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_position_bias_counts_offsets_in_windows_of_the_training(layout, config):
    """Of windows that were enlarged after it, and of windows cut to stages of 4 and 2 points a side."""
    assert_starts_as(*started(layout, config))


def test_pretrained_windows_are_required_and_checked():
    source, _ = started("transformers")
    for window, pretrained, message in (
        (4, None, "pretrained_window=None, but these weights .* pretrained_window=0, or"),
        (4, (6,), "pretrained_window=.*, expected one for each of 2 stages"),
        (4, 6, "pretrained_window=.*, expected an instance of Sequence or 0"),
        (4.0, 0, "^window=4.0, expected a whole number"),
        (4, (6.5, 3), "^pretrained_window=6.5, expected a whole number"),
    ):
        with pytest.raises(InputError, match=message):
            from_swin_v2(source.state, window=window, pretrained_window=pretrained)


def test_saved_model_keeps_the_windows_of_the_training(tmp_path):
    source, model = started("transformers", ENLARGED[0])
    model.float().save_pretrained(tmp_path)
    assert_starts_as(source, MANOClassifier.from_pretrained(tmp_path).double())


def test_tables_of_offsets_give_the_windows_of_the_training():
    """Those of timm's and the authors' files, with the offsets of each window of the training."""
    source = swin_state("timm", ENLARGED[0])
    offsets = torch.arange(-7.0, 8.0)
    state = dict(source.state)
    for stage, size in enumerate((6, 3)):
        scaled = 8 * offsets / (size - 1)
        table = torch.stack(torch.meshgrid(*[scaled.sign() * scaled.abs().log1p()] * 2, indexing="ij"), -1)
        table = table / torch.log(torch.tensor(8.0))
        for block in range(2):
            state[f"layers.{stage}.blocks.{block}.attn.relative_coords_table"] = table[None]
    assert_starts_as(source, from_swin_v2(state, image_size=64).double().eval())
    with pytest.raises(
        InputError,
        match=r"pretrained_window=\[0, 0\], but these weights are of windows of \[6, 3\]: leave it out",
    ):
        from_swin_v2(state, image_size=64, pretrained_window=0)
