"""Training of classifiers: the loss and its steps, frozen backbones, and models begun from saved ones."""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn
from training import assert_same_run, batch_of, noise
from training import train_images as train

from mano_op import InputError
from mano_op.models.data_model import DataModel
from mano_op.registry import build_model
from mano_op.runs import Run, load_run
from mano_op.vision.evaluate import evaluate_classifier
from mano_op.vision.images import Images, open_images, stratified


class Headless(DataModel, name="Test_headless"):
    def __init__(self, in_channels: int, n_classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(64 * in_channels, n_classes)

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        logits: torch.Tensor = self.last(x.flatten(1))
        return logits


def test_first_error_is_that_of_the_initial_model(images: Images, tmp_path: Path) -> None:
    """With all images in one batch; the initial logits of a linear map of zeros are all alike."""
    options = {"epochs": 1, "batch_size": 1000, "label_smoothing": 0.1}
    flat = train(images, tmp_path / "flat", arch="test_flat", **options)
    assert flat.history[0]["training_error"] == pytest.approx(np.log(10), rel=1e-6)
    run = train(images, tmp_path / "pooled", seed=3, **options)
    torch.manual_seed(3)
    model = build_model("test_pooled", run.options).train()
    sample = run.processor.train().preprocess(batch_of(images["train"]))
    expected = F.cross_entropy(model(sample["x"]), sample["y"][:, 0])
    assert run.history[0]["training_error"] == pytest.approx(expected.item(), rel=1e-5)


def test_first_step_of_a_linear_model_has_a_closed_form(images: Images, tmp_path: Path) -> None:
    """AdamW's first step is the sign of the gradient, softmax less target times pixel; zeros do not decay.

    The rate rises from a 25th of the one that is given.
    """
    run = train(images, tmp_path, arch="test_flat", epochs=1, batch_size=1000, learning_rate=25e-3)
    sample = run.processor.preprocess(batch_of(images["train"]))
    x, residual = sample["x"].flatten(1).double(), 0.1 - sample["y"][:, 0].double()
    for parameter, gradient, least in (
        (run.model.head.weight, residual.T @ x, 1e-2),
        (run.model.head.bias, residual.sum(0), 0.1),  # the classes are not all as large
    ):
        clear = gradient.abs() > least
        assert clear.double().mean() > 0.5
        step = parameter.detach()[clear].double()
        torch.testing.assert_close(step, -1e-3 * gradient[clear].sign(), rtol=1e-4, atol=0)


def test_biases_and_norms_do_not_decay(images: Images, tmp_path: Path) -> None:
    """After the first step, at a 25th of the rate, they differ from a training without by the decay alone."""
    options = {"learning_rate": 25e-2, "epochs": 1, "batch_size": 1000, "seed": 4}
    still = train(images, tmp_path / "still", weight_decay=0.0, **options)
    decayed = train(images, tmp_path / "decayed", weight_decay=0.5, **options)
    torch.manual_seed(4)
    start = dict(build_model("test_pooled", still.options).named_parameters())
    for (name, p), other in zip(still.model.named_parameters(), decayed.model.parameters(), strict=True):
        expected = 0.5 * 1e-2 * start[name] if p.ndim > 1 else torch.zeros_like(p)
        torch.testing.assert_close(p - other, expected, rtol=0, atol=1e-7 if p.ndim > 1 else 0)


def test_training_fits_the_images_and_keeps_the_best_epoch(images: Images, tmp_path: Path) -> None:
    run = train(images, tmp_path, epochs=30, validate="test")
    assert run.history[-1]["training_error"] < 0.5 * run.history[0]["training_error"]
    best = run.history[run.training["best"]["epoch"] - 1]
    assert best["validation_error"] == min(epoch["validation_error"] for epoch in run.history)
    row = evaluate_classifier(run, images).row()
    assert row.cross_entropy == pytest.approx(best["validation_error"], rel=1e-6)
    assert row.accuracy == best["validation_accuracy"] > 0.5
    assert run.training["validation"] == {"samples": len(images["test"])}


def test_held_out_images_are_not_trained_on(images: Images, tmp_path: Path) -> None:
    """Neither for the statistics nor for the errors."""
    run = train(images, tmp_path, validate=0.25, epochs=1)
    labels = images["train"].labels
    n = sum(round(0.25 * int((labels == label).sum())) for label in range(10))
    assert (run.training["samples"], run.training["validation"]) == (len(labels) - n, {"samples": n})
    held = stratified(labels.numpy(), 0.25, 0, images.classes, stream=2)
    kept = batch_of(images["train"])["x"][torch.from_numpy(~held)].double()
    assert len(kept) == run.training["samples"]
    assert run.processor.to_dict()["mean"] == [pytest.approx(kept.mean().item(), rel=1e-9)]
    assert run.processor.to_dict()["std"] == [pytest.approx(kept.std(correction=0).item(), rel=1e-9)]


def test_workers_change_no_number(tmp_path: Path) -> None:
    noise(pets := tmp_path / "pets", 6)
    options = {"image_size": 6, "batch_size": 3, "augmentation": {"flip": True}, "epochs": 2, "validate": 0.3}
    run = train(pets, tmp_path / "run", **options)
    assert_same_run(run, train(pets, tmp_path / "again", num_workers=1, **options))
    assert run.training["image_size"] == [6, 6]


def test_frozen_backbone_is_left_to_the_last_bit(images: Images, tmp_path: Path) -> None:
    """Also what it keeps of the images that it has seen; and it draws nothing."""
    first = train(images, tmp_path / "first", options={"dropout": 0.5}, epochs=2)
    options: dict[str, Any] = {"start": tmp_path / "first", "freeze": "backbone", "batch_size": 1000}
    run = train(images, tmp_path / "run", options={"dropout": 0.5}, **options)
    before, after = (nn.Module.state_dict(model) for model in (first.model, run.model))
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved == ["head.weight", "head.bias"]
    assert all(parameter.requires_grad for parameter in run.model.parameters())
    # In evaluation mode the features are those of a model without dropout.
    without = train(images, tmp_path / "without", options={"dropout": 0.0}, **options)
    assert torch.equal(without.model.head.weight, run.model.head.weight)
    # The error before the first step is that of the saved model in evaluation mode.
    batch = batch_of(images["train"])
    expected = F.cross_entropy(first.predict(batch["x"]), batch["y"])
    assert run.history[0]["training_error"] == pytest.approx(expected.item(), rel=1e-5)


def test_start_gives_its_parameters_and_its_normalisation(images: Images, tmp_path: Path) -> None:
    options: dict[str, Any] = {"options": {"width": 5}, "normalise": {"mean": [0.25], "std": [0.5]}}
    first = train(images, tmp_path / "first", epochs=2, **options)
    still: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-30, "weight_decay": 0.0, "freeze": "backbone"}
    run = train(images, tmp_path / "run", start=tmp_path / "first", seed=9, **still)
    torch.testing.assert_close(nn.Module.state_dict(run.model), nn.Module.state_dict(first.model))
    assert run.options["width"] == 5
    assert run.processor.to_dict()["mean"] == [0.25]
    # Of other classes only the head is new.
    split = images["train"].subset([i for i, label in enumerate(images["train"].labels) if label < 3])
    split.classes = images.classes[:3]
    three = Images("three", {"train": split}, images.classes[:3], 1, (8, 8), images.origin)
    fewer = train(three, tmp_path / "fewer", start=tmp_path / "first", **still)
    assert torch.equal(fewer.model.stem.weight, first.model.stem.weight)
    assert fewer.model.head.weight.shape == (3, 20)
    # A model without a run, by its own folder, which has to be the same when the training is continued.
    first.model.save_pretrained(tmp_path / "model")
    again = train(images, tmp_path / "again", start=tmp_path / "model", **still)
    assert again.processor.to_dict()["mean"] != [0.25]
    shutil.rmtree(tmp_path / "model")
    fewer.model.save_pretrained(tmp_path / "model")
    for given, message in (
        ({"arch": "test_flat"}, "holds a test_pooled, arch='test_flat': give arch='test_pooled'"),
        (
            {"options": {"width": 6}},
            "norm.bias is real 5, expected real 6; .* and 3 more: leave out the options that differ",
        ),
        ({"start": tmp_path / "nowhere"}, "nowhere does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            train(images, tmp_path / "refused", **{"start": tmp_path / "first", **given})
    with pytest.raises(InputError, match=r"started is \w+ there, not"):
        train(images, tmp_path / "again", start=tmp_path / "model", resume=True, **still)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augmentation": {"flip": True}}, "flip=True for digits, but a mirrored 2 is no 2: leave it out"),
        ({"augmentation": {"shift": 8}}, "shift=8 may leave nothing of images of 8 x 8 .*: give at most 2"),
        ({"validate": "valid"}, "digits has no split 'valid'; it has train, test"),
        ({"arch": "test_poled"}, "there is no model 'test_poled'.*did you mean 'test_pooled'"),
        ({"arch": "test_headless", "freeze": "backbone"}, "no module 'head' with parameters among last"),
        ({"options": {"n_classes": 3}}, "option n_classes=3, but the images of digits have n_classes=10"),
        ({"arch": "fno", "options": {"n_modes": [4, 4]}}, "fno has no option 'n_classes'"),
        ({"arch": "test_flat", "options": {"image_size": 7}}, "fails .* for an input of shape .2, 1, 8, 8"),
        ({"normalise": {"mean": [0.5]}}, "expected 'imagenet', or {'mean': .*, 'std': .*}, a number of each"),
        ({"normalise": "imagenet"}, r"a number of each channel \(images of shape \(1, 8, 8\)"),
        ({"image_size": 9}, "image_size=9 for images that are opened already"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_work(
    options: dict[str, Any], message: str, images: Images, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(images, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_run_is_not_written_among_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(tmp_path / "pets", 6)
    monkeypatch.chdir(tmp_path)
    for out in ("pets/run", "pets/a/run", "pets", "pets/../pets/run"):
        with pytest.raises(InputError, match=f"^{out} is within pets, where the images are: give a folder"):
            train("pets", out, image_size=8)  # type: ignore[arg-type]
    assert {path.name for path in (tmp_path / "pets").iterdir()} == {"a", "b"}
    run = train("pets", "pets2", image_size=8, epochs=1)  # type: ignore[arg-type]
    assert packages(run) == {"pillow": version("pillow")}


def packages(run: Run) -> dict[str, str]:
    """The packages that a run records beside those of every run."""
    known = {"transformers", "pillow", "datasets", "scikit-learn"}
    return {name: n for name, n in run.training["machine"]["versions"].items() if name in known}


STAGES = {"patch_size": 1, "embed_dim": 8, "depths": [1, 1], "n_heads": [2, 2], "window": 4}
TOKENS = {"patch_size": 2, "embed_dim": 8, "depth": 1, "n_heads": 2}


@pytest.mark.parametrize(
    ("arch", "options"),
    [("mano_classifier", STAGES), ("swin_classifier", STAGES), ("vit_classifier", TOKENS)],
)
def test_classifiers_of_the_package_are_trained(
    arch: str, options: dict[str, Any], images: Images, tmp_path: Path
) -> None:
    """All of it, then its head alone; and the run is used at twice the size."""
    settings: dict[str, Any] = {"arch": arch, "epochs": 1, "validate": 0.2}
    run = train(images, tmp_path / "run", options=options, **settings)
    assert run.options == {"in_channels": 1, "n_classes": 10, "image_size": 8, **options}
    expected = ["scikit-learn", *["transformers"] * (arch != "mano_classifier")]
    assert packages(run) == {name: version(name) for name in expected}
    head = train(images, tmp_path / "head", start=tmp_path / "run", freeze="backbone", **settings)
    before, after = (nn.Module.state_dict(model) for model in (run.model, head.model))
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved == [name for name in before if name.startswith("head.")]
    read = load_run(tmp_path / "head", task="images")
    batch = batch_of(images["test"].at(16))
    accuracy = (read.predict(batch["x"]).argmax(1) == batch["y"]).double().mean().item()
    assert evaluate_classifier(read, images, sizes=[16]).row(16).accuracy == pytest.approx(accuracy)


def test_linear_model_reaches_the_accuracy_of_scikit_learn(tmp_path: Path) -> None:
    images = open_images("digits")
    run = train(images, tmp_path, arch="test_flat", epochs=15, batch_size=64, weight_decay=0.0)
    accuracy = evaluate_classifier(run, images).row().accuracy
    batches = {name: batch_of(split) for name, split in images.splits.items()}
    x = {name: run.processor.preprocess({"x": b["x"]})["x"].flatten(1) for name, b in batches.items()}
    reference = LogisticRegression(C=0.1, max_iter=1000).fit(x["train"], batches["train"]["y"])
    assert accuracy > 0.94
    assert abs(accuracy - reference.score(x["test"], batches["test"]["y"])) < 0.02


def test_half_precision_trains_every_weight_of_a_classifier(images: Images, tmp_path: Path) -> None:
    run = train(images, tmp_path, arch="mano_classifier", options=STAGES, precision="bfloat16", epochs=1)
    assert run.training["precision"] == "bfloat16"
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in run.model.parameters())
    torch.manual_seed(0)
    initial = build_model("mano_classifier", run.options)
    weights = zip(run.model.named_parameters(), initial.parameters(), strict=True)
    assert not [name for (name, p), other in weights if torch.equal(p, other) and name.endswith("weight")]
    assert 0 < run.history[0]["training_error"] < 2 * np.log(10)
