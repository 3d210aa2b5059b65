"""Classifiers of images: how they are trained, kept and judged, by the functions and by the commands."""

import json
import re
import shutil
import warnings
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from torch import nn

from mano_op import InputError
from mano_op.cli import main
from mano_op.files import read_tensors
from mano_op.models.data_model import DataModel
from mano_op.registry import build_model, model_class
from mano_op.runs import Run, load_run, save_run, write_evaluation
from mano_op.vision.evaluate import evaluate_classifier
from mano_op.vision.images import Images, open_images, stratified
from mano_op.vision.metrics import ClassMetrics, class_metrics
from mano_op.vision.processor import ImageProcessor
from mano_op.vision.resize import resize
from mano_op.vision.training import cross_entropy, train_classifier


class Pooled(DataModel, name="Test_pooled"):
    """A small classifier for images of any size, with all that a backbone may have of state."""

    def __init__(self, in_channels: int, n_classes: int, width: int = 6, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, n_classes)

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        x = self.dropout(F.gelu(self.norm(self.stem(x))))
        found: torch.Tensor = self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))
        return found


class Flat(DataModel, name="Test_flat"):
    """A linear map of the pixels of images of one size."""

    def __init__(self, in_channels: int, n_classes: int, image_size: int = 8) -> None:
        super().__init__()
        self.head = nn.Linear(in_channels * image_size**2, n_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        found: torch.Tensor = self.head(x.flatten(1))
        return found


class Headless(DataModel, name="Test_headless"):
    def __init__(self, in_channels: int, n_classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(64 * in_channels, n_classes)

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        found: torch.Tensor = self.last(x.flatten(1))
        return found


@pytest.fixture(scope="module")
def images() -> Images:
    """A tenth of the digits."""
    whole = open_images("digits")
    splits = {name: split.subset(range(0, len(split), 10)) for name, split in whole.splits.items()}
    return Images(whole.source, splits, whole.classes, 1, (8, 8), {**whole.origin, "digest": "a tenth"})


def train(images: Any, out: Path, **options: Any) -> Run:
    settings = {"arch": "test_pooled", "epochs": 4, "batch_size": 40, "learning_rate": 1e-2}
    return train_classifier(images, out, **(settings | {"progress": False} | options))


def interrupt(images: Any, out: Path, after: int, **options: Any) -> None:
    def stop(epoch: int, metrics: object) -> None:
        if epoch > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(images, out, log=stop, **options)


def same(one: Run, other: Run) -> None:
    """To the last bit, but for the seconds."""
    for a, b in zip(one.model.state_dict().items(), other.model.state_dict().items(), strict=True):
        assert a[0] == b[0]
        assert a[0] == "_metadata" or torch.equal(a[1], b[1]), a[0]
    histories = [[{**epoch, "seconds": 0} for epoch in run.history] for run in (one, other)]
    assert histories[0] == histories[1]
    assert {**one.training, "machine": 0} == {**other.training, "machine": 0}
    assert one.processor.to_dict() == other.processor.to_dict()
    assert one.classes == other.classes


def batch_of(split: Any) -> dict[str, torch.Tensor]:
    samples = [split[i] for i in range(len(split))]
    return {name: torch.stack([one[name] for one in samples]) for name in ("x", "y")}


# The numbers.


def test_metrics_of_logits_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 0.0], [0.0, float("nan"), 0.0]])
    batch = {"x": logits[:, :, None, None], "y": torch.tensor([0, 2, 1, 0])}
    processor = ImageProcessor([0.0] * 3, [1.0] * 3, n_classes=3, smoothing=0.5)
    model = nn.Flatten().train()
    metrics = class_metrics(model, processor.train(), [batch])
    assert model.training and processor.training
    # Right; second; of two equal ones the first is the answer; no answer at all.
    assert metrics.ranks.tolist() == [0, 1, 1, 3]
    assert (metrics.accuracy(), metrics.accuracy(top=2), metrics.accuracy(top=3)) == (0.25, 0.75, 0.75)
    exact = [np.log(1 + np.exp(-1) + np.exp(-2)), 2 + np.log(1 + np.exp(-3) + np.exp(-2))]
    np.testing.assert_allclose(metrics.losses[:2], exact, rtol=1e-12)
    assert metrics.accuracy_by_class("abc") == {"a": 0.5, "b": 0.0, "c": 0.0}
    two = ClassMetrics(metrics.labels[:2], metrics.ranks[:2], metrics.losses[:2])
    assert two.cross_entropy == pytest.approx(sum(exact) / 2)
    with pytest.raises(InputError, match="no images to evaluate"):
        class_metrics(nn.Flatten(), processor, [])
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3).eval()).train()
    model[1].eval()
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        class_metrics(model, processor.train(), [batch])
    assert model.training and not model[1].training and processor.training


def test_the_loss_is_torchs_summed() -> None:
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3, 2, 2, 1])
    for smoothing in (0.0, 0.3):
        processor = ImageProcessor([0.0], [1.0], n_classes=4, smoothing=smoothing).train()
        targets = processor.preprocess({"x": torch.zeros(5, 1, 1, 1), "y": labels})["y"]
        expected = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
        torch.testing.assert_close(cross_entropy(logits, targets), expected)


def test_the_first_error_is_that_of_the_initial_model(images: Images, tmp_path: Path) -> None:
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


def test_the_first_step_of_a_linear_model_in_closed_form(images: Images, tmp_path: Path) -> None:
    """AdamW's first step is the sign of the gradient, softmax less target times pixel; zeros do not decay.

    The rate rises from a 25th of the one that is given.
    """
    run = train(images, tmp_path, arch="test_flat", epochs=1, batch_size=1000, learning_rate=25e-3)
    sample = run.processor.preprocess(batch_of(images["train"]))
    x, target = sample["x"].flatten(1).double(), sample["y"][:, 0].double()
    gradient = (0.1 - target).T @ x
    clear = gradient.abs() > 1e-2
    assert clear.double().mean() > 0.9
    torch.testing.assert_close(
        run.model.head.weight.detach()[clear].double(), -1e-3 * gradient[clear].sign(), rtol=1e-4, atol=0
    )
    # The bias: the classes are not all as large.
    away = (0.1 - target).sum(0)
    torch.testing.assert_close(
        run.model.head.bias.detach()[away.abs() > 0.1].double(), -1e-3 * away[away.abs() > 0.1].sign()
    )


def test_a_linear_model_comes_to_what_scikit_learn_comes_to(tmp_path: Path) -> None:
    images = open_images("digits")
    run = train(images, tmp_path, arch="test_flat", epochs=15, batch_size=64, weight_decay=0.0)
    found = evaluate_classifier(run, images).row()
    parts = {name: batch_of(split) for name, split in images.splits.items()}
    x = {name: run.processor.preprocess({"x": one["x"]})["x"].flatten(1) for name, one in parts.items()}
    rival = LogisticRegression(C=0.1, max_iter=1000).fit(x["train"], parts["train"]["y"])
    assert found.accuracy > 0.94
    assert abs(found.accuracy - rival.score(x["test"], parts["test"]["y"])) < 0.02


# Training.


def test_training_fits_the_images(images: Images, tmp_path: Path) -> None:
    run = train(images, tmp_path, epochs=30, validate="test")
    assert run.history[-1]["training_error"] < 0.5 * run.history[0]["training_error"]
    found = evaluate_classifier(run, images)
    best = run.training["best"]
    kept = run.history[best["epoch"] - 1]
    assert kept["validation_error"] == min(epoch["validation_error"] for epoch in run.history)
    assert found.row().cross_entropy == pytest.approx(kept["validation_error"], rel=1e-6)
    assert found.row().accuracy == kept["validation_accuracy"] > 0.5


def test_what_is_held_out_is_not_trained_on(images: Images, tmp_path: Path) -> None:
    """Neither for the statistics nor for the errors."""
    run = train(images, tmp_path, validate=0.25, epochs=1)
    counts = run.training["samples"], run.training["validation"]
    labels = images["train"].labels
    expected = sum(round(0.25 * int((labels == label).sum())) for label in range(10))
    assert counts == (len(labels) - expected, {"part": 0.25, "samples": expected})
    held = stratified(labels.numpy(), 0.25, 0, images.classes, stream=2)
    kept = batch_of(images["train"])["x"][torch.from_numpy(~held)].double()
    assert len(kept) == run.training["samples"]
    assert run.processor.to_dict()["mean"] == [pytest.approx(kept.mean().item(), rel=1e-9)]
    assert run.processor.to_dict()["std"] == [pytest.approx(kept.std(correction=0).item(), rel=1e-9)]


ALL: dict[str, Any] = {  # every kind of state that there is
    "options": {"dropout": 0.3},
    "augmentation": {"shift": 1, "mixup": 0.2, "crop": 0.6},
    "label_smoothing": 0.1,
    "validate": 0.25,
    "patience": 3,
    "clip": 5.0,
    "accumulate": 2,
}


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize(
    "options",
    [{}, ALL, {"precision": "float16"}, {"freeze": "backbone", "options": {"dropout": 0.3}}],
    ids=["plain", "all", "float16", "frozen"],
)
def test_interrupted_and_not_are_one(
    options: dict[str, Any], after: int, images: Images, tmp_path: Path
) -> None:
    whole = train(images, tmp_path / "whole", **options)
    interrupt(images, tmp_path / "run", after, **options)
    torch.manual_seed(after)  # what was drawn since does not matter
    resumed = train(images, tmp_path / "run", resume=True, **options)
    same(resumed, whole)
    same(load_run(tmp_path / "run", task="images"), whole)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "run.json",
    }


def test_other_arguments_or_images_are_refused(images: Images, tmp_path: Path) -> None:
    interrupt(images, tmp_path / "run", 1)
    for options, message in (
        ({"seed": 1}, "seed is 0 there, not 1"),
        ({"augmentation": {"shift": 1}}, r"augmentation\.shift is not given there, not 1"),
        ({"freeze": "backbone"}, "freeze is not given there, not backbone"),
        ({"label_smoothing": 0.1}, r"processor\.smoothing is 0\.0 there, not 0\.1"),
    ):
        with pytest.raises(InputError, match=message):
            train(images, tmp_path / "run", resume=True, **options)
    with pytest.raises(InputError, match=r"images\.digest is a tenth there, not"):
        train("digits", tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="begun and not finished: pass resume=True"):
        train(images, tmp_path / "run")
    finished = train(images, tmp_path / "run", resume=True)
    same(train(images, tmp_path / "run", resume=True), finished)
    with pytest.raises(InputError, match="finished run of another training: epochs is 4 there, not 5"):
        train(images, tmp_path / "run", resume=True, epochs=5)
    with pytest.raises(InputError, match="holds a run already"):
        train(images, tmp_path / "run")


def test_workers_do_not_change_a_number(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        for i in range(6):
            (tmp_path / "pets" / name).mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 255, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    options = {"image_size": 8, "batch_size": 3, "augmentation": {"flip": True}, "epochs": 2, "validate": 0.3}
    here = train(tmp_path / "pets", tmp_path / "here", **options)
    there = train(tmp_path / "pets", tmp_path / "there", num_workers=1, **options)
    same(here, there)
    assert here.training["image_size"] == [8, 8]


def test_a_frozen_backbone_is_left_to_the_last_bit(images: Images, tmp_path: Path) -> None:
    """Also what it keeps of the images that it has seen; and it draws nothing."""
    first = train(images, tmp_path / "first", options={"dropout": 0.5}, epochs=2)
    options: dict[str, Any] = {"start": tmp_path / "first", "freeze": "backbone", "options": {"dropout": 0.5}}
    run = train(images, tmp_path / "run", **options)
    before, after = (one.model.state_dict() for one in (first, run))
    for name, value in before.items():
        if name.startswith("head."):
            assert not torch.equal(value, after[name])
        elif name != "_metadata":
            assert torch.equal(value, after[name]), name
    assert all(parameter.requires_grad for parameter in run.model.parameters())
    # In evaluation mode the features are those of a model without dropout.
    without = train(images, tmp_path / "without", **{**options, "options": {"dropout": 0.0}})
    assert torch.equal(without.model.head.weight, run.model.head.weight)
    with pytest.raises(InputError, match=r"no module 'head' with parameters among last: give the last layer"):
        train(images, tmp_path / "none", arch="test_headless", freeze="backbone")
    assert not (tmp_path / "none").exists()


def test_a_linear_evaluation_is_a_linear_model_on_features(images: Images, tmp_path: Path) -> None:
    """The error before the first step, of features that are computed here."""
    first = train(images, tmp_path / "first", epochs=2)
    run = train(
        images, tmp_path / "run", start=tmp_path / "first", freeze="backbone", epochs=1, batch_size=1000
    )
    sample = first.processor.preprocess(batch_of(images["train"]))
    expected = F.cross_entropy(first.model.eval()(sample["x"]), sample["y"][:, 0])
    assert run.history[0]["training_error"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_start_gives_its_parameters_and_its_normalisation(images: Images, tmp_path: Path) -> None:
    options: dict[str, Any] = {"options": {"width": 5}, "normalise": {"mean": [0.25], "std": [0.5]}}
    first = train(images, tmp_path / "first", epochs=2, **options)
    still: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-30, "weight_decay": 0.0, "freeze": "backbone"}
    run = train(images, tmp_path / "run", start=tmp_path / "first", seed=9, **still)
    for name, value in first.model.state_dict().items():
        if name != "_metadata":
            torch.testing.assert_close(run.model.state_dict()[name], value)
    assert run.options["width"] == 5
    assert run.processor.to_dict()["mean"] == [0.25]
    # Of other classes only the head is new.
    train_rows = [i for i, label in enumerate(images["train"].labels.tolist()) if label < 3]
    split = images["train"].subset(train_rows)
    split.classes = images.classes[:3]
    three = Images("three", {"train": split}, images.classes[:3], 1, (8, 8), images.origin)
    fewer = train(three, tmp_path / "fewer", start=tmp_path / "first", **still)
    assert torch.equal(fewer.model.stem.weight, first.model.stem.weight)
    assert fewer.model.head.weight.shape == (3, 20)
    # A model without a run, by its own folder; others are refused.
    first.model.save_pretrained(tmp_path / "model")
    again = train(images, tmp_path / "again", start=tmp_path / "model", **still)
    assert again.processor.to_dict()["mean"] != [0.25]
    for given, message in (
        ({"arch": "test_flat"}, "holds a test_pooled, arch='test_flat': give arch='test_pooled'"),
        ({"options": {"width": 6}}, r"has stem.weight of shape \(5, 1, 3, 3\), the model to train of \(6, 1"),
        ({"start": tmp_path / "nowhere"}, "nowhere does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            train(images, tmp_path / "refused", **{"start": tmp_path / "first", **given})
    with pytest.raises(InputError, match=r"started is \w+ there, not"):
        shutil.rmtree(tmp_path / "model")
        fewer.model.save_pretrained(tmp_path / "model")
        train(images, tmp_path / "again", start=tmp_path / "model", resume=True, **still)


def test_biases_and_norms_do_not_decay(images: Images, tmp_path: Path) -> None:
    """After the first step, at a 25th of the rate, they differ from a training without by the decay alone."""
    options = {"learning_rate": 25e-2, "epochs": 1, "batch_size": 1000, "seed": 4}
    still = train(images, tmp_path / "still", weight_decay=0.0, **options)
    decayed = train(images, tmp_path / "decayed", weight_decay=0.5, **options)
    torch.manual_seed(4)
    start = dict(build_model("test_pooled", still.options).named_parameters())
    for (name, one), other in zip(still.model.named_parameters(), decayed.model.parameters(), strict=True):
        if one.ndim > 1:
            torch.testing.assert_close(one - other, 0.5 * 1e-2 * start[name], rtol=0, atol=1e-7)
        else:
            assert torch.equal(one, other), name


def test_no_warning_but_neuraloperators_own(images: Images, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = train(images, tmp_path, epochs=1, validate=0.2, augmentation={"shift": 1})
        evaluate_classifier(run, images, sizes=[12])


def test_training_that_diverges_keeps_nothing(images: Images, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has diverged and nothing is kept"):
        train(images, tmp_path, arch="test_flat", learning_rate=1e38)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0, expected a whole number, at least 1"),
        ({"batch_size": 2.5}, "batch_size=2.5, expected a whole number"),
        ({"seed": 2**63}, "expected less than"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"label_smoothing": 1.0}, "^label_smoothing=1.0, expected less than 1: give 0.1"),
        ({"label_smoothing": float("nan")}, "^label_smoothing=nan, expected a finite number, 0 or more"),
        ({"augmentation": {"flip": True}}, "flip=True for digits, but a mirrored 2 is no 2: leave it out"),
        ({"augmentation": {"turn": True}}, "there is no option turn=True of Augmentation"),
        ({"freeze": "head"}, "freeze='head', expected one of none, backbone"),
        ({"validate": "train"}, "validate='train', which is trained on"),
        ({"validate": "valid"}, "digits has no split 'valid'; it has train, test"),
        ({"validate": 2.0}, "validate=2.0, expected a part, between 0 and 1"),
        ({"patience": 2}, "patience=2 without validate"),
        ({"device": "nowhere"}, "device='nowhere' cannot be used here"),
        ({"precision": "float8"}, "precision='float8', expected one of"),
        ({"arch": "test_poled"}, "there is no model 'test_poled'.*did you mean 'test_pooled'"),
        ({"options": {"widht": 8}}, "no option widht"),
        ({"options": {"n_classes": 3}}, "option n_classes=3, but the images of digits have n_classes=10"),
        ({"arch": "fno", "options": {"n_modes": [4, 4]}}, "fno has no option n_classes"),
        ({"arch": "test_flat", "options": {"image_size": 7}}, "cannot take images of shape"),
        ({"normalise": "mine"}, "normalise='mine', expected 'imagenet', or"),
        ({"normalise": "imagenet"}, "for images of 1 channels: give a mean and a std of each"),
        ({"image_size": 9}, "image_size for images that are opened already"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    options: dict[str, Any], message: str, images: Images, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(images, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mano_op.vision.training.ranks", lambda: (2, 0))
    with pytest.raises(InputError, match="a classifier is trained in one process: start it without torchrun"):
        train(images, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_checkpoint_is_tensors_and_plain_values(images: Images, tmp_path: Path) -> None:
    interrupt(images, tmp_path, 1, **ALL)
    found = read_tensors(tmp_path / "checkpoint.pt")
    assert found["asked"]["images"] == images.origin
    assert [epoch["epoch"] for epoch in found["training"]["history"]] == [1]


STAGES = {"patch_size": 1, "embed_dim": 8, "depths": [1, 1], "n_heads": [2, 2], "window": 4}


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("mano_classifier", STAGES),
        ("swin_classifier", STAGES),
        ("vit_classifier", {"patch_size": 2, "embed_dim": 8, "depth": 1, "n_heads": 2}),
    ],
)
def test_the_classifiers_of_the_package_are_trained_and_judged(
    arch: str, options: dict[str, Any], images: Images, tmp_path: Path
) -> None:
    """From all of it to its head alone, and at twice the size."""
    settings: dict[str, Any] = {"arch": arch, "epochs": 2, "validate": 0.2}
    run = train(images, tmp_path / "run", options=options, **settings)
    assert run.options == {"in_channels": 1, "n_classes": 10, "image_size": 8, **options}
    head = train(images, tmp_path / "head", start=tmp_path / "run", freeze="backbone", **settings)
    for name, value in run.model.state_dict().items():
        moved = not torch.equal(value, head.model.state_dict()[name]) if name != "_metadata" else False
        assert moved == name.startswith("head."), name
    found = evaluate_classifier(load_run(tmp_path / "head", task="images"), images, sizes=[16])
    x = batch_of(images["test"].at(16))
    with torch.no_grad():
        logits = head.model(head.processor.preprocess(x)["x"])
    assert found.row(16).accuracy == pytest.approx((logits.argmax(1) == x["y"]).double().mean().item())


def test_the_classifier_is_trained_in_half_precision(images: Images, tmp_path: Path) -> None:
    run = train(images, tmp_path, arch="mano_classifier", options=STAGES, precision="bfloat16", epochs=1)
    assert run.training["precision"] == "bfloat16"
    assert all(one.isfinite().all() and one.dtype == torch.float32 for one in run.model.parameters())
    torch.manual_seed(0)
    start = build_model("mano_classifier", run.options)
    still = [
        name
        for (name, one), other in zip(run.model.named_parameters(), start.parameters(), strict=True)
        if torch.equal(one, other) and name.endswith("weight")
    ]
    assert still == []
    assert 0 < run.history[0]["training_error"] < 2 * np.log(10)


# Runs.


@pytest.fixture(scope="module")
def kept(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "run"
    train(images, folder, epochs=2, validate=0.2)
    return folder


def test_a_run_read_back_computes_the_same(kept: Path, images: Images, tmp_path: Path) -> None:
    run = load_run(kept)
    run.save(tmp_path / "copy")
    again = load_run(tmp_path / "copy", task="images")
    same(again, run)
    x = batch_of(images["test"])["x"]
    assert torch.equal(again.model(x), run.model(x))
    assert not run.model.training and not run.processor.training
    assert run.classes == images.classes and run.image_size == (8, 8)
    assert run.n_parameters == sum(parameter.numel() for parameter in run.model.parameters())
    logits, _ = run.processor.wrap(run.model)(x=x)
    assert torch.equal(logits, run.model(run.processor.preprocess({"x": x})["x"]))


def test_the_card_says_what_the_run_is(kept: Path) -> None:
    card = (kept / "README.md").read_text()
    run = load_run(kept, task="images")
    assert "# test_pooled: images to 10 classes" in card
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in card
    assert f"of {run.n_parameters:,} parameters" in card
    mean = run.processor.to_dict()["mean"][0]
    assert f"| 0 | {mean:.4g} |" in card
    assert f"| validation accuracy | {run.history[-1]['validation_accuracy']:.4g} |" in card


@pytest.mark.parametrize("name", ["<!-- judged: begin -->", "<!-- judged: end -->"])
def test_a_class_may_be_called_anything(name: str, images: Images, tmp_path: Path) -> None:
    """The card shows it as it is, and still has one place for what the run is judged to be."""
    classes = (name, "*b* & `c`\n# d", "golden_retriever", "_e_", *images.classes[4:])
    named = Images(images.source, images.splits, classes, 1, (8, 8), images.origin)
    run = train(named, tmp_path, epochs=1)
    card = (tmp_path / "README.md").read_text()
    [shown] = [line for line in card.splitlines() if "golden" in line]
    escaped = name.replace("<", "&lt;").replace(">", "&gt;")
    assert shown == rf"{escaped}, \*b\* &amp; \`c\` \# d, golden_retriever, \_e\_, 4, 5, 6, 7, 8, 9"
    write_evaluation(tmp_path, "good")
    judged = (tmp_path / "README.md").read_text()
    before, rest = card.split("<!-- judged: begin -->")
    after = rest.split("<!-- judged: end -->")[1]
    assert judged == f"{before}<!-- judged: begin -->\ngood\n<!-- judged: end -->{after}"
    assert load_run(tmp_path, task="images").classes == run.classes == classes


def test_the_packages_that_read_the_images_are_told(kept: Path, tmp_path: Path) -> None:
    known = {"transformers", "pillow", "datasets", "scikit-learn"}

    def told(run: Run) -> dict[str, str]:
        return {name: one for name, one in run.training["machine"]["versions"].items() if name in known}

    assert told(load_run(kept, task="images")) == {"scikit-learn": version("scikit-learn")}
    noise(tmp_path / "pets", 4)
    options = {"patch_size": 4, "embed_dim": 8, "depth": 1, "n_heads": 2}
    images = open_images(tmp_path / "pets", image_size=8)
    run = train(images, tmp_path / "run", arch="vit_classifier", options=options, epochs=1)
    assert told(run) == {name: version(name) for name in ("pillow", "transformers")}


def test_other_runs_are_told_apart(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match="has format 'mano_op classifier run' version 1, expected 'mano_op run' version 1 or 2: it is "
        "of `mano-op train images`, give a run of `mano-op train fields`",
    ):
        load_run(kept)
    shutil.copytree(kept, tmp_path / "run")
    change(tmp_path / "run", lambda d: d.update(format="mano_op run", format_version=2))
    with pytest.raises(
        InputError, match="it is of `mano-op train fields`, give a run of `mano-op train images`"
    ):
        load_run(tmp_path / "run", task="images")


def test_a_run_is_not_written_among_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(tmp_path / "pets", 4)
    monkeypatch.chdir(tmp_path)
    for out in ("pets/run", "pets/a/run", "pets", "pets/../pets/run"):
        with pytest.raises(
            InputError, match=f"^{out} is within pets, where the images are: give a folder els"
        ):
            train("pets", out, image_size=8)  # type: ignore[arg-type]
    assert {path.name for path in (tmp_path / "pets").iterdir()} == {"a", "b"}
    train("pets", "pets2", image_size=8, epochs=1)  # type: ignore[arg-type]


def change(folder: Path, edit: Any) -> None:
    description = json.loads((folder / "run.json").read_text())
    del description["sha256"]  # changed on purpose
    edit(description)
    (folder / "run.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda d: d.update(format="mano_op run"),
            "has format 'mano_op run' version 1, expected 'mano_op cl",
        ),
        (lambda d: d.update(format_version=2), "version 2, expected 'mano_op classifier run' version 1"),
        (lambda d: d.pop("classes"), "'classes' is None, expected a list"),
        (lambda d: d["classes"].pop(), "has 9 classes and a processor of 10"),
        (lambda d: d["classes"].append(7), "'classes' or the 'image_size' of the training are none"),
        (lambda d: d["training"].update(image_size=[8, -8]), "'classes' or the 'image_size'"),
        (lambda d: d["training"].update(image_size="large"), "'classes' or the 'image_size'"),
        (lambda d: d.update(processor={}), "'processor' is no description of one"),
        (lambda d: d["processor"].update(mean=[1e400]), "is not JSON"),
        (lambda d: d["processor"].update(std=[-1.0]), "std of at least 0"),
        (lambda d: d["processor"].update(n_classes="ten"), "n_classes='ten'"),
        (lambda d: d.update(history={}), "'history' is {}, expected a list"),
    ],
)
def test_descriptions_that_are_not_meant_well(edit: Any, message: str, kept: Path, tmp_path: Path) -> None:
    shutil.copytree(kept, tmp_path / "run")
    change(tmp_path / "run", edit)
    with pytest.raises(InputError, match=message):
        load_run(tmp_path / "run", task="images")


def test_damaged_files_are_refused(kept: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(kept, tmp_path / "run"))
    with pytest.raises(InputError, match=r"holds no run\.json, so it is no finished run"):
        load_run(tmp_path, task="images")
    for name, message in (
        ("model.safetensors", "is not as it was written, its sha256"),
        ("config.json", "config.json is not"),
        ("run.json", "run.json is not"),
    ):
        whole = (folder / name).read_bytes()
        place = len(whole) - 40
        (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match=message):
            load_run(folder, task="images")
        (folder / name).write_bytes(whole)
    load_run(folder, task="images")
    with pytest.raises(ValueError, match="not JSON compliant"):
        run = load_run(folder, task="images")
        run.history[0]["training_error"] = float("nan")
        save_run(folder, run)
    load_run(folder, task="images")


# Evaluation.


def test_evaluation_matches_logits_at_every_size(kept: Path, images: Images) -> None:
    run = load_run(kept, task="images")
    found = evaluate_classifier(run, images, sizes=[8, 16, (6, 10)], batch_size=7)
    assert [(row.size, row.how) for row in found.rows] == [
        ((8, 8), "direct"),
        ((16, 16), "direct"),
        ((16, 16), "resized"),
        ((6, 10), "direct"),
        ((6, 10), "resized"),
    ]
    for row in found.rows:
        batch = batch_of(images["test"].at(row.size))
        if row.how == "resized":
            batch["x"] = resize(batch["x"], (8, 8))
        with torch.no_grad():
            logits = run.model(run.processor.preprocess(batch)["x"])
        right = logits.argmax(1) == batch["y"]
        assert row.images == len(right) == 36
        assert row.accuracy == pytest.approx(right.double().mean().item())
        assert row.interval == tuple(binomtest(int(right.sum()), 36).proportion_ci(0.95, "wilson"))
        first = logits.topk(5).indices == batch["y"][:, None]
        assert row.top5 == pytest.approx(first.any(1).double().mean().item())
        assert row.cross_entropy == pytest.approx(F.cross_entropy(logits, batch["y"]).item(), rel=1e-5)
        for label, name in enumerate(run.classes):
            of = right[batch["y"] == label].double()
            assert row.by_class[name] == (pytest.approx(of.mean().item()) if len(of) else None)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["rows"][2]["how"] == "resized"
    assert found.row(16, "resized") is found.rows[2]
    with pytest.raises(InputError, match=r"32x32 direct was not evaluated; there are 8x8 direct, 16x16"):
        found.row(32)


def test_unsuitable_evaluations_are_refused(kept: Path, images: Images, tmp_path: Path) -> None:
    run = load_run(kept, task="images")
    with pytest.raises(InputError, match="has no split 'validation'; it has train, test"):
        evaluate_classifier(run, images, split="validation")
    other = Images("other", images.splits, ("zero", *images.classes[1:]), 1, (8, 8), images.origin)
    with pytest.raises(InputError, match=r"other has 'zero' as class 0, .* trained with '0'"):
        evaluate_classifier(run, other)
    colour = open_images("digits", in_channels=3)
    with pytest.raises(InputError, match="opened with 3 channels, the run was trained with 1"):
        evaluate_classifier(run, colour)
    again = Images(
        "digits", images.splits, images.classes, 1, (8, 8), {**images.origin, "split": {"seed": 1}}
    )
    with pytest.raises(InputError, match="may be among these: open it with the same parts and seed"):
        evaluate_classifier(run, again)
    flat = train(images, tmp_path / "flat", arch="test_flat", epochs=1)
    with pytest.raises(InputError, match=r"test_flat cannot take images of 16x16 .*: leave that size out"):
        evaluate_classifier(flat, images, sizes=[16])
    with torch.no_grad():
        flat.model.head.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="logits that are not finite for images of 8x8"):
        evaluate_classifier(flat, images)
    assert "trained on these images" in evaluate_classifier(run, images, split="train").table()


def noise(folder: Path, n: int, start: int = 0) -> None:
    """Images of two classes, each of its own values and size on the disk."""
    random = np.random.default_rng(start)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(start, start + n):
            Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(
                folder / name / f"{i}.png"
            )


def test_changed_folder_is_not_split_anew(tmp_path: Path) -> None:
    """With one more image, another test split would contain images of the training."""
    noise(tmp_path / "pets", 10)
    first = open_images(tmp_path / "pets", image_size=8)
    run = train(first, tmp_path / "run", epochs=1)
    assert evaluate_classifier(run, tmp_path / "pets").row().images == 4
    noise(tmp_path / "pets", 1, start=10)
    later = open_images(tmp_path / "pets", image_size=8)
    trained = {one.numpy().tobytes() for one in batch_of(first["train"])["x"]}
    assert any(one.numpy().tobytes() in trained for one in batch_of(later["test"])["x"])
    for split in ("test", "train"):
        for images in (tmp_path / "pets", later):
            with pytest.raises(
                InputError,
                match=rf"pets holds other images than .* \(digest \w{{8}}, then \w{{8}}\), and its split "
                rf"'{split}' is drawn .* restore the images, or give images with a split 'test' of their",
            ):
                evaluate_classifier(run, images, split=split)
    (tmp_path / "pets" / "a" / "10.png").unlink()
    (tmp_path / "pets" / "b" / "10.png").unlink()
    assert evaluate_classifier(run, tmp_path / "pets").row().images == 4


def test_own_test_split_of_a_source_is_used(tmp_path: Path) -> None:
    """Instead of the parts of the training; their use is reported for images of the training only."""
    noise(tmp_path / "pets", 10)
    noise(tmp_path / "new" / "train", 4, start=20)
    noise(tmp_path / "new" / "test", 3, start=30)
    first = open_images(tmp_path / "pets", image_size=8, test=0.2, validation=0.3, seed=4)
    run = train(first, tmp_path / "run", epochs=1)
    found = evaluate_classifier(run, tmp_path / "new")
    batch = batch_of(open_images(tmp_path / "new", image_size=8)["test"])
    with torch.no_grad():
        logits = run.model(run.processor.preprocess(batch)["x"])
    assert found.row().images == 6
    assert found.row().cross_entropy == pytest.approx(F.cross_entropy(logits, batch["y"]).item(), rel=1e-5)
    assert evaluate_classifier(run, tmp_path / "pets", split="validation").row().images == 4
    own = train(open_images(tmp_path / "new", image_size=8), tmp_path / "own", epochs=1)
    with pytest.raises(InputError, match="its split 'test' is drawn from them"):  # all were trained on
        evaluate_classifier(own, tmp_path / "new" / "train")
    noise(tmp_path / "other" / "train", 4, start=40)
    noise(tmp_path / "other" / "test", 4, start=50)
    for source, used in (("new", "training"), ("other", None)):
        found = evaluate_classifier(own, tmp_path / source, split="train")
        assert found.used == used
        assert ("It was trained on these images." in found.table()) == bool(used)


def test_use_of_images_in_training_is_reported(images: Images, tmp_path: Path) -> None:
    chosen = train(images, tmp_path / "chosen", epochs=2, validate="test")
    found = evaluate_classifier(load_run(tmp_path / "chosen", task="images"), images)
    assert found.table().endswith(" in nats. Its parameters were chosen on these images.")
    assert found.to_dict()["used"] == "validation"
    assert evaluate_classifier(chosen, images, split="train").to_dict()["used"] == "training"
    held = train(images, tmp_path / "held", epochs=1, validate=0.2)
    assert evaluate_classifier(held, images).to_dict()["used"] is None
    assert evaluate_classifier(held, images).table().endswith(" in nats.")


# The commands.


def test_from_a_folder_of_images_to_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bright and dark images are told apart, and the table has the numbers of the file beside it."""
    random = np.random.default_rng(0)
    for name, low in (("bright", 140), ("dark", 0)):
        for i in range(20):
            (tmp_path / "pets" / name).mkdir(parents=True, exist_ok=True)
            pixels = random.integers(low, low + 110, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    source, run = tmp_path / "pets", tmp_path / "run"
    command = (
        f"train images {source} {run} --arch test_pooled --option width=4 --image-size 12 --test-part 0.3"
    )
    command += (
        " --split-seed 2 --epochs 12 --flip --batch-size 7 --learning-rate 0.02 --validate 0.2 --crop 0.5"
    )
    assert main([*command.split(), "--quiet"]) == 0
    said = capsys.readouterr().out
    made = load_run(run, task="images")
    best = made.training["best"]
    assert said.startswith(f"{run}: test_pooled, {made.n_parameters} parameters, training error ")
    assert said.endswith(f"% of epoch {best['epoch']}\n")
    assert made.training["augmentation"] == {"crop": 0.5, "flip": True, "mixup": 0.0, "shift": 0}
    assert made.training["images"]["split"] == {"test": 0.3, "seed": 2}
    again = f"train images {source} {tmp_path}/again --config {run}/run.json --quiet"
    assert main(again.split()) == 0
    same(load_run(tmp_path / "again", task="images"), made)

    command = f"evaluate images {source} {run} --image-size 12 16x20 --card --out {tmp_path}/out/numbers.json"
    capsys.readouterr()
    assert main([*command.split(), "--quiet"]) == 0
    table = capsys.readouterr().out
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert [(row["size"], row["how"], row["images"]) for row in numbers["rows"]] == [
        ([12, 12], "direct", 12),
        ([16, 20], "direct", 12),
        ([16, 20], "resized", 12),
    ]
    for row, line in zip(numbers["rows"], table.splitlines()[2:], strict=False):
        accuracy = float(re.findall(r"\| +([\d.]+) \[", line)[0])
        assert accuracy == pytest.approx(100 * row["accuracy"], abs=0.05)
        assert f"{row['cross_entropy']:.4f}" in line
    assert numbers["rows"][0]["accuracy"] == 1.0
    assert "in first 5" not in table  # of two classes
    assert table.strip() in (run / "README.md").read_text()
    assert main(command.split()) == 2
    assert "give another path, or --overwrite to replace it" in capsys.readouterr().err


def test_the_command_trains_as_the_function_does(tmp_path: Path) -> None:
    digits, flags = "train images digits", "--arch test_pooled --epochs 1 --quiet"
    command = f"{digits} {tmp_path}/run {flags} --batch-size 300 --shift 1 --label-smoothing 0.1"
    command += " --mixup 0.2 --clip 3 --accumulate 2 --seed 5 --weight-decay 0.01"
    assert main(command.split()) == 0
    options = {"augmentation": {"shift": 1, "mixup": 0.2}, "label_smoothing": 0.1, "clip": 3.0, "seed": 5}
    settings = {"epochs": 1, "batch_size": 300, "learning_rate": 1e-3, "weight_decay": 0.01, "accumulate": 2}
    same(load_run(tmp_path / "run", task="images"), train("digits", tmp_path / "same", **options, **settings))
    frozen = f"{digits} {tmp_path}/head {flags} --freeze backbone --start {tmp_path}/run"
    assert main([*frozen.split(), "--normalise", "mean=[0.5]", "std=[0.5]"]) == 0
    first, second = (load_run(tmp_path / name, task="images") for name in ("run", "head"))
    assert torch.equal(first.model.stem.weight, second.model.stem.weight)
    assert not torch.equal(first.model.head.weight, second.model.head.weight)
    assert second.processor.to_dict()["mean"] == [0.5]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train images digit {new}", "digit is no folder"),
        ("train images digits {new} --arch test_pooled --flip", "flip=True for digits"),
        ("train images digits {kept} --arch test_pooled", "or --overwrite to replace it"),
        ("train images digits {new} --arch test_poled", "there is no model 'test_poled'"),
        ("train images digits {new} --split-seed -1", "split_seed=-1, expected a whole number, at least 0"),
        ("train images digits {new} --label-smoothing nan", "label_smoothing=nan, expected a"),
        ("evaluate images digits {new}", '"{new}" does not exist; see `mano-op evaluate images --help`'),
        ("evaluate images digits {kept} --split tset", "has no split 'tset'"),
        ("evaluate images digits {kept} --out {kept}/run.json", "run.json is there already"),
        ("evaluate images digits {kept} --out {kept} --overwrite", "is a folder: give the path of a file"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    command: str, message: str, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    assert main([*command.format(kept=kept, new=new).split(), "--quiet"]) == 2
    said = capsys.readouterr().err.strip()
    assert message.format(new=new) in said
    assert said.startswith("mano-op: ") and "\n" not in said
    assert not new.exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", None], ids=["latin", "folder"])
def test_a_card_that_cannot_be_read_is_met_before_judging(
    content: bytes | None,
    kept: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Path(shutil.copytree(kept, tmp_path / "run")) / "README.md"
    card.unlink()
    if content is None:
        card.mkdir()
    else:
        card.write_bytes(content)
    monkeypatch.setattr("mano_op.vision.evaluate.class_metrics", None)
    assert main(["evaluate", "images", "digits", str(tmp_path / "run"), "--card", "--quiet"]) == 2
    assert f"{card} is no text in UTF-8" in capsys.readouterr().err


def test_options_are_shown_that_classifiers_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "images", "--help"]) == 0
    shown = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    [option] = re.findall(r"Of the model, as JSON: (\w+)=24", shown)
    assert option in signature(model_class("mano_classifier")).parameters
