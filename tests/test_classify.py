"""Classifiers of images, evaluated by functions and by commands."""

import json
import re
import shutil
from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import binomtest
from torch import nn
from training import assert_same_run as same
from training import batch_of, noise
from training import train_images as train

from mano_op import InputError
from mano_op.cli import main
from mano_op.registry import model_class
from mano_op.runs import load_run
from mano_op.vision.evaluate import ClassMetrics, class_metrics, evaluate_classifier
from mano_op.vision.images import Images, open_images
from mano_op.vision.processor import ImageProcessor
from mano_op.vision.transforms import resize

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


@pytest.fixture(scope="module")
def kept(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "run"
    train(images, folder, epochs=2, validate=0.2)
    return folder


# Evaluation.


def test_evaluation_matches_logits_at_every_size(kept: Path, images: Images) -> None:
    run = load_run(kept, task="images")
    evaluation = evaluate_classifier(run, images, sizes=[8, 16, (6, 10)], batch_size=7)
    others = [(size, how) for size in ((16, 16), (6, 10)) for how in ("direct", "resized")]
    assert [(row.size, row.how) for row in evaluation.rows] == [((8, 8), "direct"), *others]
    for row in evaluation.rows:
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
    assert json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))["rows"][2]["how"] == "resized"
    assert evaluation.row(16, "resized") is evaluation.rows[2]
    with pytest.raises(InputError, match=r"32x32 direct was not evaluated; there are 8x8 direct, 16x16"):
        evaluation.row(32)


def test_unsuitable_evaluations_are_refused(kept: Path, images: Images, tmp_path: Path) -> None:
    run = load_run(kept, task="images")
    with pytest.raises(InputError, match="has no split 'validation'; it has train, test"):
        evaluate_classifier(run, images, split="validation")
    colour = {"test": replace(images["test"], channels=3)}
    seed = {**images.origin, "split": {"seed": 1}}
    for changes, message in (
        ({"classes": ("zero", *images.classes[1:])}, "digits has 'zero' as class 0, .* trained with '0'"),
        ({"splits": colour, "channels": 3}, "expected 1 channels, .* open files with in_channels=1"),
        ({"origin": seed}, "trained on may be in the split .* open them with the same parts and seed"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_classifier(run, replace(images, **changes))
    flat = train(images, tmp_path / "flat", arch="test_flat", epochs=1)
    with pytest.raises(InputError, match=r"test_flat cannot take images of 16x16 .*: leave that size out"):
        evaluate_classifier(flat, images, sizes=[16])
    with torch.no_grad():
        flat.model.head.bias.fill_(float("nan"))
    with pytest.raises(InputError, match=r"cannot take images of 8x8 .*: its logits are not finite"):
        evaluate_classifier(flat, images)


def test_changed_folder_is_not_split_anew(tmp_path: Path) -> None:
    """With one more image, another test split would contain images of the training."""
    noise(tmp_path / "pets", 10)
    first = open_images(tmp_path / "pets", image_size=8)
    run = train(first, tmp_path / "run", epochs=1)
    assert evaluate_classifier(run, tmp_path / "pets").row().images == 4
    noise(tmp_path / "pets", 1, start=10)
    later = open_images(tmp_path / "pets", image_size=8)
    trained = {x.numpy().tobytes() for x in batch_of(first["train"])["x"]}
    assert any(x.numpy().tobytes() in trained for x in batch_of(later["test"])["x"])
    for split in ("test", "train"):
        message = (
            rf"pets \(digest \w{{8}}\) was split by .* \(digest \w{{8}}\) by .* split '{split}': restore"
        )
        for images in (tmp_path / "pets", later):
            with pytest.raises(InputError, match=message):
                evaluate_classifier(run, images, split=split)
    (tmp_path / "pets" / "a" / "10.png").unlink()
    (tmp_path / "pets" / "b" / "10.png").unlink()
    assert evaluate_classifier(run, tmp_path / "pets").row().images == 4


def test_own_test_split_of_a_source_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Instead of the parts of the training; their use is reported for images of the training only."""
    noise(tmp_path / "pets", 10)
    noise(tmp_path / "new" / "train", 4, start=20)
    noise(tmp_path / "new" / "test", 3, start=30)
    first = open_images(tmp_path / "pets", image_size=8, test=0.2, validation=0.3, seed=4)
    run = train(first, tmp_path / "run", epochs=1)
    row = evaluate_classifier(run, tmp_path / "new").row()
    batch = batch_of(open_images(tmp_path / "new", image_size=8)["test"])
    expected = F.cross_entropy(run.predict(batch["x"]), batch["y"])
    assert (row.images, row.cross_entropy) == (6, pytest.approx(expected.item(), rel=1e-5))
    assert evaluate_classifier(run, tmp_path / "pets", split="validation").row().images == 4
    command = f"train images {tmp_path}/new {tmp_path}/none --image-size 8 --test-part 0.3"
    assert main(command.split()) == 2
    assert f"--test-part 0.3, but {tmp_path}/new has a split 'test': leave" in capsys.readouterr().err
    own = train(open_images(tmp_path / "new", image_size=8), tmp_path / "own", epochs=1)
    with pytest.raises(InputError, match="may be in the split 'test'"):  # all were trained on
        evaluate_classifier(own, tmp_path / "new" / "train")
    noise(tmp_path / "other" / "train", 4, start=40)
    noise(tmp_path / "other" / "test", 4, start=50)
    for source, used in (("new", "training"), ("other", None)):
        assert evaluate_classifier(own, tmp_path / source, split="train").used == used


def test_use_of_images_in_training_is_reported(kept: Path, images: Images, tmp_path: Path) -> None:
    train(images, tmp_path / "chosen", epochs=1, validate="test")
    for folder, split, used, sentence in (
        (tmp_path / "chosen", "test", "validation", " Its parameters were chosen on these images."),
        (tmp_path / "chosen", "train", "training", " It was trained on these images."),
        (kept, "test", None, ""),  # validated on a part of the training images
    ):
        evaluation = evaluate_classifier(load_run(folder, task="images"), images, split=split)
        assert evaluation.to_dict()["used"] == used
        assert evaluation.table().endswith(f" in nats.{sentence}")


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
        " --split-seed 2 --epochs 12 --flip --batch-size 7 --learning-rate 0.02 --validate 0.2 --crop .5"
    )
    assert main([*command.split(), "--quiet"]) == 0
    line = capsys.readouterr().out
    trained = load_run(run, task="images")
    assert line.startswith(f"{run}: test_pooled, {trained.n_parameters} parameters, training error ")
    assert line.endswith(f"% of epoch {trained.training['best']['epoch']}\n")
    assert trained.training["augmentation"] == {"crop": 0.5, "shift": 0, "flip": True, "mixup": 0.0}
    assert trained.training["images"]["split"] == {"test": 0.3, "seed": 2}
    again = f"train images {source} {tmp_path}/again --config {run}/run.json --quiet"
    assert main(again.split()) == 0
    same(load_run(tmp_path / "again", task="images"), trained)

    command = f"evaluate images {source} {run} --image-size 12 16x20 --card --out {tmp_path}/out/numbers.json"
    capsys.readouterr()
    assert main([*command.split(), "--quiet"]) == 0
    table = capsys.readouterr().out
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert [row["size"] for row in numbers["rows"]] == [[12, 12], [16, 20], [16, 20]]
    assert {row["images"] for row in numbers["rows"]} == {12}
    for row, line in zip(numbers["rows"], table.splitlines()[2:], strict=False):
        accuracy = float(re.findall(r"\| +([\d.]+) \[", line)[0])
        assert accuracy == pytest.approx(100 * row["accuracy"], abs=0.05)
        assert f"{row['cross_entropy']:.4f}" in line
    assert numbers["rows"][0]["accuracy"] == 1.0
    assert "in first 5" not in table  # of two classes
    card = (run / "README.md").read_text()
    assert table.strip() in card
    digest = trained.training["images"]["digest"]
    for row in (
        f"| data | pets (folder, digest {digest[:8]}) |\n| split off.test | 0.3 |\n| split off.seed | 2 |\n",
        "| trained on | 22 images of the split train |\n",
        "| validated on | 6 images: a part of the split train, 0.2 |\n",
    ):
        assert row in card
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
        ("train images digits {new} --arch test_pooled --flip", "--flip for digits"),
        ("train images digits {kept} --arch test_pooled", "or --overwrite to replace it"),
        ("train images digits {new} --split-seed -1", "--split-seed -1, expected a whole number, at least 0"),
        ("evaluate images digits {new}", '"{new}" does not exist; see `mano-op evaluate images --help`'),
        ("evaluate images digits {kept} --out {kept}/run.json", "run.json is there already"),
        ("evaluate images digits {kept} --out {kept} --overwrite", "is a folder: give the path of a file"),
    ],
)
def test_input_that_cannot_be_used_is_refused_in_one_line(
    command: str, message: str, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    assert main([*command.format(kept=kept, new=new).split(), "--quiet"]) == 2
    line = capsys.readouterr().err.strip()
    assert message.format(new=new) in line
    assert line.startswith("mano-op: ") and "\n" not in line
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
